"""Operator's overrides merged over our configuration files, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml

Ini = dict[str, dict[str, list[str]]]


def parse_ini(text: str) -> Ini:
    """Parse an oslo.config style file: section to key to values (a repeated key has several).

    Keys before the first section belong to the section ``""``. Continuation lines join their key.

    Raises:
        ValueError: a line is neither section, key, comment nor continuation; names the line.
    """
    sections: Ini = {}
    current = sections.setdefault("", {})
    last: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            if not stripped:
                last = None
            continue
        if line[0] in " \t" and last is not None:
            last[-1] += "\n" + line.rstrip()
            continue
        if stripped[0] == "[":
            if not stripped.endswith("]"):
                raise ValueError(f"line {number}: section header without a closing bracket")
            current = sections.setdefault(stripped[1:-1].strip(), {})
            last = None
            continue
        separators = [index for index in (stripped.find("="), stripped.find(":")) if index > 0]
        if not separators:
            raise ValueError(f"line {number}: neither 'key = value' nor a section: {stripped!r}")
        cut = min(separators) if "=" not in stripped else stripped.index("=")
        key, value = stripped[:cut].strip(), stripped[cut + 1 :].strip()
        last = current.setdefault(key, [])
        last.append(value)
    if not sections[""]:
        del sections[""]
    return sections


def override_ini(base: str, over: Ini) -> str:
    """Return ``base`` with the keys of ``over``: theirs replace all values of ours, everything else stays.

    Lines, comments and order of ``base`` are kept, so that a difference shows what changed and no more.
    """
    left = {section: dict(keys) for section, keys in over.items()}
    lines: list[str] = []
    section, dropping = "", False
    section_end: dict[str, int] = {}

    def emit(wanted: str, key: str) -> None:
        values = left.get(wanted, {}).pop(key, [])
        lines.extend(f"{key} = {value}".rstrip() for value in values)

    for line in base.splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]") and line[0] not in " \t":
            section, dropping = stripped[1:-1].strip(), False
            lines.append(line)
        elif not stripped or stripped[0] in "#;":
            dropping = dropping and bool(stripped)
            lines.append(line)
            if not stripped:
                continue
        elif line[0] in " \t":
            if not dropping:
                lines.append(line)
        else:
            key = next(iter(next(iter(parse_ini(line).values()))))
            dropping = key in over.get(section, {})
            if dropping:
                emit(section, key)
            else:
                lines.append(line)
        section_end[section] = len(lines)
    for name, end in sorted(section_end.items(), key=lambda item: -item[1]):
        added = [
            f"{key} = {value}".rstrip() for key, values in left.pop(name, {}).items() for value in values
        ]
        lines[end:end] = added
    fresh = {name: keys for name, keys in left.items() if keys}
    first = fresh.pop("", {})
    head = dump_ini({"": first}).splitlines() if first else []
    tail = ["", *dump_ini(fresh).splitlines()] if fresh else []
    return "\n".join([*head, *lines, *tail]).strip("\n") + "\n"


def dump_ini(sections: Ini) -> str:
    """Write sections as text, in their order."""
    lines: list[str] = []
    for section, keys in sections.items():
        if section:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        lines += [f"{key} = {value}".rstrip() for key, values in keys.items() for value in values]
    return "\n".join(lines) + "\n"


def _merge_mappings(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge_mappings(base.get(key), value) for key, value in over.items()}}
    return over


def _ini(base: str, overrides: Sequence[str]) -> str:
    for text in overrides:
        base = override_ini(base, parse_ini(text))
    return base


def _yaml(base: str, overrides: Sequence[str]) -> str:
    merged = yaml.safe_load(base)
    for text in overrides:
        merged = _merge_mappings(merged, yaml.safe_load(text) or {})
    return yaml.safe_dump(merged, sort_keys=False)


def _json(base: str, overrides: Sequence[str]) -> str:
    merged = json.loads(base)
    for text in overrides:
        merged = _merge_mappings(merged, json.loads(text))
    return json.dumps(merged, indent=2) + "\n"


def _raw(_base: str, overrides: Sequence[str]) -> str:
    return overrides[-1]


FORMATS: dict[str, Callable[[str, Sequence[str]], str]] = {
    "ini": _ini,
    "yaml": _yaml,
    "json": _json,
    "raw": _raw,
}
"""How overrides merge, by the ``format`` of the file; ``raw`` files are replaced whole."""


def merge(base: str, overrides: Sequence[str], file_format: str) -> str:
    """Return ``base`` with the overrides (least specific first) merged over it."""
    if not overrides:
        return base
    return FORMATS[file_format](base, overrides)
