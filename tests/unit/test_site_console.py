"""Output: text, JSON, and never a secret."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudctl.console import MASK, Console, Masker, duration

KEY = (
    "-----BEGIN X-----\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\n-----END X-----\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(output: str = "text", masker: Masker | None = None) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Console(output, masker=masker, stdout=out, stderr=err), out, err


@given(st.lists(st.text(min_size=6, max_size=12), max_size=8), st.text(max_size=40), st.data())
def test_no_secret_gets_through(secrets: list[str], text: str, data: st.DataObject) -> None:
    wanted = [secret.strip() for secret in secrets if len(secret.strip()) >= 6 and set(secret) - set("*")]
    chosen = data.draw(st.lists(st.sampled_from(wanted), max_size=3)) if wanted else []
    masked = Masker(wanted).mask(text.join(["", *chosen, ""]))
    # What is left may only be a secret that is made of what stands around a masked one.
    for secret in chosen:
        assert secret not in masked.replace(MASK, "\0")


def test_a_secret_inside_another_is_masked_whole() -> None:
    assert Masker(["abcdef", "xxabcdefxx"]).mask("-xxabcdefxx-abcdef-") == f"-{MASK}-{MASK}-"


def test_forms_of_a_secret() -> None:
    masker = Masker(["a/b+c=secret", KEY])
    assert "secret" not in masker.mask("mysql://u:a%2Fb%2Bc%3Dsecret@h")
    assert "AAAA" not in masker.mask(json.dumps({"key": KEY}))
    assert masker.mask("line AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA") == f"line {MASK}"
    assert masker.mask("-----BEGIN X-----") == "-----BEGIN X-----"


def test_short_values_would_mask_everything() -> None:
    assert Masker(["", "a", "root"]).mask("a root") == "a root"


def test_public_halves_are_no_secret() -> None:
    masker = Masker.for_secrets({"ca_certificate": "C" * 20, "x_public_key": "P" * 20, "ca_key": "K" * 20})
    assert masker.mask("C" * 20 + "P" * 20 + "K" * 20) == "C" * 20 + "P" * 20 + MASK


def test_data_is_masked_in_keys_and_values() -> None:
    masked = Masker(["secret1"]).mask_data({"a": ["secret1", 1, None], "secret1": {"b": ("x secret1",)}})
    assert masked == {"a": [MASK, 1, None], MASK: {"b": [f"x {MASK}"]}}


def test_masking_is_fast() -> None:
    masker = Masker(f"{index:032d}" for index in range(150))
    line = "ordinary output of a node " * 40
    start = time.perf_counter()
    for _ in range(1000):
        masker.mask(line)
    assert time.perf_counter() - start < 1


def test_everything_passes_the_masker() -> None:
    console, out, err = make(masker=Masker(["canary-1"]))
    console.line("canary-1")
    console.error("canary-1")
    console.progress("canary-1", node="n", phase="p")
    console.table(["canary-1"], [["canary-1"]])
    console.result({}, "canary-1")
    assert "canary" not in out.getvalue() + err.getvalue()
    console, out, err = make("json", masker=Masker(["canary-1"]))
    console.result({"a": "canary-1"})
    assert json.loads(out.getvalue()) == {"a": MASK}


def test_json_has_standard_output_to_itself() -> None:
    console, out, err = make("json")
    console.line("text")
    console.progress("text")
    console.result({"a": 1}, "never")
    assert json.loads(out.getvalue()) == {"a": 1}
    assert err.getvalue().count("text") == 2


def test_a_table_lines_up() -> None:
    console, out, _ = make()
    console.table(("NAME", "N", "OK"), [("a", 5, True), ("longer", 12, None)])
    assert out.getvalue() == "NAME     N  OK\na        5  yes\nlonger  12  -\n"
    console.table(("NAME",), [])
    assert out.getvalue().endswith("NAME\n")


def test_progress_tells_the_time() -> None:
    console, out, _ = make()
    console.progress("pulling", node="ctl01", phase="identity")
    assert re.fullmatch(r"\[ +0\.\ds\] identity ctl01: pulling\n", out.getvalue())


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Console(stdout=io.StringIO()).style("x", "bad") == "x"
    assert Console(stdout=Terminal()).style("x", "bad") != "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Console(stdout=Terminal()).style("x", "bad") == "x"


def test_durations() -> None:
    assert [duration(value) for value in (0.04, 4.21, 187)] == ["0.0 s", "4.2 s", "3 min 07 s"]
