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


def merge_ini(layers: Sequence[Ini]) -> Ini:
    """Merge: a key of a later layer replaces all values of the earlier ones; the rest stays."""
    merged: Ini = {}
    for layer in layers:
        for section, keys in layer.items():
            merged.setdefault(section, {}).update({key: list(values) for key, values in keys.items()})
    return merged


def dump_ini(sections: Ini) -> str:
    """Write the sections back, in their order."""
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
    return dump_ini(merge_ini([parse_ini(text) for text in (base, *overrides)]))


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
