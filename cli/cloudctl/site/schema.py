"""Checks values against schema.yml (and the settings that services declare), and knows the defaults."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from cloudctl.errors import ConfigError
from cloudctl.paths import data_root
from cloudctl.site.document import Document, Problems

try:
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}
_NAMES = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}


@cache
def schema() -> dict[str, Any]:
    """Return the content of schema.yml."""
    text = Path(__file__).with_name("schema.yml").read_text(encoding="utf-8")
    result = yaml.load(text, Loader=_Loader)
    assert isinstance(result, dict)
    return result


def is_key(entry: Any) -> bool:
    """Tell a key of the schema from a section (a section may well have a key called ``type``)."""
    return isinstance(entry, dict) and isinstance(entry.get("description"), str)


def defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of defaults of a section of the schema."""
    return {
        key: _copy(entry.get("default")) if is_key(entry) else defaults(entry)
        for key, entry in section.items()
    }


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


@lru_cache(maxsize=8)
def service_definitions(*directories: Path) -> dict[str, dict[str, Any]]:
    """Return the service definitions by name, as plain YAML (the engine checks them, we only look things up).

    Args:
        directories: each holds ``<name>/service.yml``; default: the services that come with cloudctl.

    Raises:
        ConfigError: a definition is not YAML.
    """
    found: dict[str, dict[str, Any]] = {}
    for root in directories or (data_root() / "services",):
        for file in sorted(root.glob("[!_]*/service.yml")):
            try:
                content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
            except yaml.YAMLError as error:
                raise ConfigError(
                    "service-definition", f"not valid YAML: {error}", where=str(file)
                ) from error
            if isinstance(content, dict):
                found[str(content.get("name", file.parent.name))] = content
    return found


def site_definitions(site: Path, services_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the definitions of the services that come with cloudctl and of the site's own."""
    return service_definitions(services_dir or data_root() / "services", site / "services")


def service_settings(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the schema of ``services:`` in settings.yml: what each service declares and what all share."""
    result: dict[str, dict[str, Any]] = {}
    for name, definition in definitions.items():
        declared = definition.get("settings") or {}
        keys = {key: dict(schema()["service"][key]) for key in schema()["service"]}
        for key, entry in declared.items():
            entry = dict(entry) if isinstance(entry, dict) else {"default": entry}
            entry.setdefault("description", "")
            keys[str(key)] = entry
        result[name] = keys
    return result


def full_settings_schema(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of settings.yml, services included."""
    return {**schema()["settings"], "services": service_settings(definitions)}


def suggestion(word: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """Return a did-you-mean hint for a word that is not among the known ones."""
    names = sorted({str(name) for name in known})
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if otherwise:
        return otherwise
    return f"known: {', '.join(names)}" if names and len(names) <= 20 else None


def check_section(
    section: Mapping[str, Any], value: Any, document: Document, path: tuple[Any, ...], problems: Problems
) -> dict[str, Any]:
    """Check a mapping against a section of the schema.

    Returns:
        The section's defaults with the valid values filled in; what is not valid is left at its default.
    """
    result = defaults(section)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.add("wrong-type", f"{_dotted(path)} must be a mapping", document.where(*path))
        return result
    for key, item in value.items():
        here = (*path, key)
        entry = section.get(key)
        if entry is None:
            inside = f" in {_dotted(path)}" if path else ""
            hint = suggestion(key, section, otherwise=_elsewhere(key, path))
            problems.add("unknown-key", f"unknown key '{key}'{inside}", document.where(*here), hint)
        elif is_key(entry):
            if check_value(entry, item, document, here, problems):
                result[key] = item
        else:
            result[key] = check_section(entry, item, document, here, problems)
    return result


def _elsewhere(key: Any, path: tuple[Any, ...]) -> str | None:
    """Return a hint for a key that exists, but in another place."""
    if key == "vip" and path[:1] == ("networks",):
        return "the virtual addresses are vip.internal and vip.external in settings.yml"
    return None


def check_value(
    entry: Mapping[str, Any], value: Any, document: Document, path: tuple[Any, ...], problems: Problems
) -> bool:
    """Check one value against its entry of the schema; report what is wrong; tell whether it is valid."""
    if value is None and "default" in entry and entry["default"] is None:
        return True
    reason = _refusal(entry, value)
    if reason is not None:
        ref, text = reason
        problems.add(ref, f"{_dotted(path)} {text}", document.where(*path))
        return False
    valid = True
    if isinstance(value, list) and "items" in entry:
        for index, item in enumerate(value):
            valid = check_value(entry["items"], item, document, (*path, index), problems) and valid
    if isinstance(value, dict) and "values" in entry:
        for key, item in value.items():
            valid = check_value(entry["values"], item, document, (*path, key), problems) and valid
    return valid


def _refusal(entry: Mapping[str, Any], value: Any) -> tuple[str, str] | None:
    wanted = str(entry.get("type", ""))
    types = _TYPES.get(wanted)
    # bool is an int in Python, but `mtu: true` is a mistake.
    if types and (not isinstance(value, types) or (wanted == "int" and isinstance(value, bool))):
        hint = " (write it in quotes)" if wanted == "str" and isinstance(value, int | float) else ""
        return "wrong-type", f"must be {_NAMES[wanted]}, not {_show(value)}{hint}"
    if "enum" in entry and value not in entry["enum"]:
        return "wrong-value", f"must be one of {', '.join(map(str, entry['enum']))}, not {_show(value)}"
    if "min" in entry and value < entry["min"]:
        return "out-of-range", f"must be at least {entry['min']}, not {value}"
    if "max" in entry and value > entry["max"]:
        return "out-of-range", f"must be at most {entry['max']}, not {value}"
    if "length" in entry and len(value) != entry["length"]:
        return "wrong-value", f"must have {entry['length']} items, not {len(value)}"
    form = entry.get("format")
    if form is not None and isinstance(value, str):
        wrong = _FORMATS[form](value)
        if wrong is not None:
            return "wrong-value", f"{wrong}: {_show(value)}"
    return None


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _yaml_word(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _yaml_word(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path) if path else "the file"


def _ip(value: str) -> str | None:
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return "is not an IPv4 address"
    return None


def _cidr(value: str) -> str | None:
    if "/" not in value:
        return "needs a prefix length, like 10.10.10.0/24"
    try:
        network = ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        return "is not an IPv4 network"
    if str(network) != value:
        return f"has bits set in its host part (the network is {network})"
    if network.prefixlen > 30:
        return "is too small"
    return None


def _url(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    return None if valid and " " not in value else "is not an http or https URL"


def _hostport(value: str) -> str | None:
    match = re.fullmatch(r"[A-Za-z0-9.-]+(?::(\d{1,5}))?", value)
    if match is None or (match[1] and not 0 < int(match[1]) < 65536):
        return "is not a host with an optional port"
    return None


def _matches(pattern: str, wrong: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)
    return lambda value: None if compiled.fullmatch(value) else wrong


_FORMATS: dict[str, Callable[[str], str | None]] = {
    "ip": _ip,
    "cidr": _cidr,
    "url": _url,
    "hostport": _hostport,
    "mac": _matches(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", "is not a MAC address like 52:54:00:12:34:56"),
    "name": _matches(
        r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", "is not a name (letters, digits, - _ .)"
    ),
    "path": _matches(r"[^\0\n]+", "is not a path"),
    "device": _matches(r"/dev/[A-Za-z0-9/._:+-]+", "is not a device path like /dev/sdb"),
    "interface": _matches(r"[^\s/:]{1,15}", "is not an interface name (15 characters at most)"),
}
