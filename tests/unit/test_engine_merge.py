"""Overrides merge key by key; nothing else of a file changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudctl.engine.merge import dump_ini, merge, override_ini, parse_ini

names = st.text("abcdefghij_", min_size=1, max_size=8)
values = st.text("abc:/=,.%$ 019", max_size=12).map(str.strip)
files = st.dictionaries(
    names, st.dictionaries(names, st.lists(values, min_size=1, max_size=3), min_size=1), min_size=1
)


@given(files)
def test_what_is_written_reads_back(sections: dict[str, dict[str, list[str]]]) -> None:
    assert parse_ini(dump_ini(sections)) == sections


@given(files, files)
def test_an_override_wins_and_the_rest_stays(
    base: dict[str, dict[str, list[str]]], over: dict[str, dict[str, list[str]]]
) -> None:
    merged = parse_ini(override_ini(dump_ini(base), over))
    for section, keys in base.items():
        for key, value in keys.items():
            assert merged[section][key] == over.get(section, {}).get(key, value)
    for section, keys in over.items():
        for key, value in keys.items():
            assert merged[section][key] == value


def test_repeated_keys_are_replaced_together() -> None:
    base = "[a]\nfilter = one\nfilter = two\nkeep = 1\n"
    assert merge(base, ["[a]\nfilter = three\n"], "ini") == "[a]\nfilter = three\nkeep = 1\n"


def test_only_the_overridden_lines_differ() -> None:
    base = "# ours\n[a]\n# why\none = 1\n\ntwo = 2\n\n[b]\nthree = 3\n"
    merged = merge(base, ["[a]\ntwo = 22\nnew = x\n[c]\nfour = 4\n"], "ini")
    assert merged == "# ours\n[a]\n# why\none = 1\n\ntwo = 22\nnew = x\n\n[b]\nthree = 3\n\n[c]\nfour = 4\n"


def test_continuation_lines_belong_to_their_key() -> None:
    assert parse_ini("[a]\nlist = one,\n  two\nnext = 1\n")["a"] == {"list": ["one,\n  two"], "next": ["1"]}


@pytest.mark.parametrize("text", ["[a\nb = 1\n", "[a]\nnonsense\n"])
def test_a_malformed_line_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"line [12]:"):
        parse_ini(text)


def test_without_override_the_text_is_untouched() -> None:
    assert merge("# comment\n[a]\nb=1\n", [], "ini") == "# comment\n[a]\nb=1\n"


def test_json_and_yaml_merge_deeply() -> None:
    assert '"b": 2' in merge('{"a": {"b": 1, "c": 3}}', ['{"a": {"b": 2}}'], "json")
    assert merge("a: {b: 1, c: 3}\n", ["a: {b: 2}\n"], "yaml") == "a:\n  b: 2\n  c: 3\n"


def test_raw_files_are_replaced_whole() -> None:
    assert merge("one\n", ["two\n", "three\n"], "raw") == "three\n"
