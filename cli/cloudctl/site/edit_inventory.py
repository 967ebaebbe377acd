"""Edits the text of an inventory: a host comes, goes or moves, and every other line stays as it is.

PyYAML would write the file anew, without its comments. So lines are put in and taken out by hand, and the
result is read back: what it says must be exactly the wanted change, else nothing is returned.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from cloudctl.errors import ConfigError, UsageError

FILE = "inventory/hosts.yml"
_ALIAS = re.compile(r"\s*:\s*\*[^\s,\[\]{}]+")
_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")


def add_host(text: str, group: str, name: str, variables: Mapping[str, Any]) -> str:
    """Return the inventory with a host at the end of a group; the group is made where it is missing.

    Args:
        text: the inventory, YAML.
        group: name of a group below ``all``.
        name: the host's.
        variables: its variables (plain data).

    Raises:
        UsageError: the host is there already.
        ConfigError: the text is laid out in a way that can't be edited.
    """
    if _groups_of(_read(text), name):
        raise UsageError("host-exists", f"{name} is in the inventory already", where=FILE)

    def change(data: dict[str, Any]) -> None:
        _give(data, group, name, dict(variables))

    return _checked(text, _insert(text, group, name, [f"{_scalar(name)}: {_flow(variables)}"]), change)


def remove_host(text: str, name: str) -> str:
    """Return the inventory without a host; it goes from every group that names it.

    Raises:
        UsageError: there is no such host.
        ConfigError: the text is laid out in a way that can't be edited.
    """
    groups = _groups_of(_read(text), name)
    if not groups:
        raise UsageError("host-unknown", f"there is no {name} in the inventory", where=FILE)
    edited = text
    for group in groups:
        edited, _block = _cut(edited, group, name)

    def change(data: dict[str, Any]) -> None:
        for group in groups:
            del _hosts_with(data, group, name)[name]

    return _checked(text, edited, change)


def move_host(text: str, name: str, group: str, source: str = "newnodes") -> str:
    """Return the inventory with a host in another group, its own lines (and comments) unchanged.

    It leaves the group that it comes from, and no other one.

    Raises:
        UsageError: there is no such host in the source, or it is there already.
        ConfigError: the layout can't be edited.
    """
    groups = _groups_of(_read(text), name)
    if not groups:
        raise UsageError("host-unknown", f"there is no {name} in the inventory", where=FILE)
    if group in groups:
        raise UsageError("host-in-group", f"{name} is in {group} already", where=FILE)
    if source not in groups:
        raise UsageError("host-not-in-group", f"{name} is not in {source}", where=FILE)
    edited, block = _cut(text, source, name)
    edited = _insert(edited, group, name, block)

    def change(data: dict[str, Any]) -> None:
        _give(data, group, name, _hosts_with(data, source, name).pop(name))

    return _checked(text, edited, change)


def group_names(text: str) -> set[str]:
    """Return the names of all groups, empty ones, too."""
    found: set[str] = set()

    def walk(groups: Mapping[str, Any]) -> None:
        for name, body in groups.items():
            found.add(str(name))
            if isinstance(body, dict):
                walk(body.get("children") or {})

    walk(_read(text))
    return found


def names_in(text: str, group: str) -> list[str]:
    """Return the hosts that a group names itself, without those of the groups in it."""
    places = _places(_read(text), group)
    return [host for groups in places for host in (groups[group] or {}).get("hosts") or ()]


def swap_member(text: str, group: str, old: str, new: str) -> str:
    """Return the inventory with another host at a host's place in one group; its other groups stay.

    Raises:
        ConfigError: the group does not name the old host itself, or the layout can't be edited.
    """
    if old not in names_in(text, group):
        raise ConfigError(
            "host-not-in-group",
            f"the group {group} does not name {old} itself",
            where=FILE,
            hint=f"put {new} into {group} in its place by hand",
        )
    edited, _block = _cut(text, group, old)
    edited = _insert(edited, group, new, [f"{_scalar(new)}:"])

    def change(data: dict[str, Any]) -> None:
        hosts = _hosts_with(data, group, old)
        del hosts[old]
        hosts[new] = None

    return _checked(text, edited, change)


def set_variables(text: str, name: str, variables: Mapping[str, Any]) -> str:
    """Return the inventory with variables of a host set, over those it has; other lines stay.

    Raises:
        UsageError: there is no such host.
        ConfigError: the layout can't be edited.
    """
    groups = _groups_of(_read(text), name)
    if not groups:
        raise UsageError("host-unknown", f"there is no {name} in the inventory", where=FILE)
    data = _read(text)
    group = next((g for g in groups if _hosts_with(data, g, name)[name]), groups[0])
    key, value = _host_nodes(text, group, name)
    if isinstance(value, yaml.MappingNode) and value.value:
        own = {k.value: (k, v) for k, v in value.value}
        edits = [_replace(text, *own[k], item) for k, item in variables.items() if k in own]
        new = [f"{_scalar(k)}: {_flow(item)}" for k, item in variables.items() if k not in own]
        if value.flow_style:
            at = _value_end(text, *value.value[-1])
            edits.append((at, at, "".join(f", {entry}" for entry in new)))
        else:
            at, indent = _line_end(text, _last_line(value)), value.value[0][0].start_mark.column
            edits.append((at, at, "".join(f"\n{' ' * indent}{entry}" for entry in new)))
    else:
        edits = [_replace(text, key, value, variables)]
    edited = text
    for start, end, words in sorted(edits, reverse=True):
        edited = edited[:start] + words + edited[end:]

    def change(data: dict[str, Any]) -> None:
        hosts = _hosts_with(data, group, name)
        hosts[name] = {**(hosts[name] or {}), **variables}

    return _checked(text, edited, change)


def _replace(text: str, key: yaml.Node, value: yaml.Node, new: Any) -> tuple[int, int, str]:
    """Return where a key's value stands, and what takes its place: (start, end, text), its comment kept."""
    start = int(key.end_mark.index)
    line = text[start : _line_end(text, key.start_mark.line)]
    comment = _trailing_comment(line) if value.start_mark.line > key.start_mark.line else ""
    return start, _value_end(text, key, value), f": {_flow(new)}{comment}"


def _value_end(text: str, key: yaml.Node, value: yaml.Node) -> int:
    """Return the index in the text at which a key's value ends."""
    if value.end_mark.index < key.end_mark.index:
        alias = _ALIAS.match(text, key.end_mark.index)  # what it means stands elsewhere
        if alias is None:
            raise _layout_error()
        return alias.end()
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    if block or (isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")):
        return _line_end(text, _last_line(value))
    return int(value.end_mark.index)


# -- reading -----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Takes values with Ansible's own tags (``!vault``, ``!unsafe``) as they are."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read(text: str) -> dict[str, Any]:
    try:
        data = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError("yaml-syntax", f"the inventory is no YAML: {error}", where=FILE) from error
    if not isinstance(data, dict):
        raise ConfigError("inventory-format", "the inventory must be a mapping of groups", where=FILE)
    return data


def _all_groups(data: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def walk(groups: Mapping[str, Any]) -> None:
        for name, body in groups.items():
            if isinstance(body, dict):
                found.append((str(name), body))
                walk(body.get("children") or {})

    walk(data)
    return found


def _groups_of(data: Mapping[str, Any], host: str) -> list[str]:
    return [name for name, body in _all_groups(data) if host in (body.get("hosts") or {})]


def _hosts_with(data: Mapping[str, Any], group: str, host: str) -> dict[str, Any]:
    """Return the hosts of a group, at the place where it names a host (it may be written at several)."""
    bodies = [body for name, body in _all_groups(data) if name == group]
    found: dict[str, Any] = next(body["hosts"] for body in bodies if host in (body.get("hosts") or {}))
    return found


def _give(data: dict[str, Any], group: str, name: str, variables: Any) -> None:
    """Put a host into a group: where this one is written, preferably with hosts, else below ``all``."""
    places = _places(data, group)
    if not places:
        data["all"] = data.get("all") or {}
        data["all"]["children"] = data["all"].get("children") or {}
        places = [data["all"]["children"]]
    place = next((groups for groups in places if "hosts" in (groups.get(group) or {})), places[0])
    body = place[group] = place.get(group) or {}
    body["hosts"] = {**(body.get("hosts") or {}), name: variables}


def _places(groups: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """Return what holds a group: the top, or the children of another one."""
    found = [groups] if group in groups else []
    for body in groups.values():
        if isinstance(body, dict):
            found += _places(body.get("children") or {}, group)
    return found


def _compose(text: str) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    return node


Pair = tuple[yaml.Node, yaml.Node]


def _item(node: yaml.Node, key: str) -> Pair | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    for own, value in node.value:
        if isinstance(own, yaml.ScalarNode) and own.value == key:
            return own, value
    return None


def _group_nodes(text: str, group: str) -> list[Pair]:
    found: list[Pair] = []

    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, body in node.value:
                if key.value == group:
                    found.append((key, body))
                children = _item(body, "children")
                if children:
                    walk(children[1])

    walk(_compose(text))
    return found


def _host_nodes(text: str, group: str, name: str) -> Pair:
    for _key, body in _group_nodes(text, group):
        hosts = _item(body, "hosts")
        host = _item(hosts[1], name) if hosts else None
        if host:
            return host
    raise ConfigError("inventory-layout", f"{name} was not found in {group}", where=FILE)


def _last_line(node: yaml.Node) -> int:
    """Return the line on which a node's own text ends (a block's end mark lies behind the comments)."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        if isinstance(last, tuple):
            return max(_last_line(last[0]), _last_line(last[1]))
        return _last_line(last)
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "":
        return (
            int(node.start_mark.line) if node.start_mark.column else -1
        )  # nothing is written: the key counts
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return int(node.end_mark.line) - 1
    return int(node.end_mark.line)


def _line_end(text: str, line: int) -> int:
    """Return the index in the text at which a line (from 0) ends."""
    return sum(len(each) + 1 for each in text.split("\n")[: line + 1]) - 1


# -- writing -----------------------------------------------------------------------------------


def _cut(text: str, group: str, name: str) -> tuple[str, list[str]]:
    """Take a host's lines and the comments right above out; return the rest, and them without indent."""
    key, value = _host_nodes(text, group, name)
    lines = text.splitlines()
    first, last = key.start_mark.line, max(key.start_mark.line, _last_line(value))
    indent = key.start_mark.column
    if lines[first][:indent].strip() or lines[last][
        _end_column(lines, key, value, last) :
    ].strip().startswith(","):
        raise ConfigError(
            "inventory-layout",
            f"{name} stands on one line with other hosts",
            where=f"{FILE}:{first + 1}",
            hint="give every host a line of its own",
        )
    while first and lines[first - 1].strip().startswith("#") and _indent(lines[first - 1]) == indent:
        first -= 1
    block = [line[indent:] if line.strip() else "" for line in lines[first : last + 1]]
    return "\n".join([*lines[:first], *lines[last + 1 :]]) + "\n", block


def _end_column(lines: list[str], key: yaml.Node, value: yaml.Node, last: int) -> int:
    mark = value.end_mark if value.end_mark.line == last else key.end_mark
    return int(mark.column) if mark.line == last else len(lines[last])


def _insert(text: str, group: str, name: str, block: list[str]) -> str:
    """Put a host's lines at the end of a group."""
    lines = text.splitlines()
    found = _group_nodes(text, group)
    at, indent, head = 0, 0, list[str]()
    if not found:
        everything = _item(_compose(text), "all")
        children = _item(everything[1], "children") if everything else None
        if not children or not isinstance(children[1], yaml.MappingNode) or not children[1].value:
            raise ConfigError(
                "inventory-layout", "there is no all.children to add a group to", where=FILE,
                hint=f"write `{group}:` where your groups stand",
            )  # fmt: skip
        if children[1].flow_style:
            raise _flow_error(children[0])
        column = children[1].value[0][0].start_mark.column
        at = max(_last_line(children[1]), children[1].value[-1][0].start_mark.line) + 1
        step = column - children[0].start_mark.column
        head = [f"{' ' * column}{_scalar(group)}:", f"{' ' * (column + step)}hosts:"]
        indent = column + 2 * step
    else:
        key, body = next(((k, b) for k, b in found if _item(b, "hosts")), found[0])
        column = key.start_mark.column
        hosts = _item(body, "hosts")
        if isinstance(body, yaml.MappingNode) and body.flow_style and body.value:
            raise _flow_error(key)
        if hosts is None:
            filled = isinstance(body, yaml.MappingNode) and bool(body.value)
            inner = body.value[0][0].start_mark.column if filled else column + 2
            at = (_last_line(body) if filled else key.start_mark.line) + 1
            if not filled:
                lines[key.start_mark.line] = _key_alone(lines[key.start_mark.line], key)
            head = [f"{' ' * inner}hosts:"]
            indent = inner + 2
        else:
            inner = hosts[0].start_mark.column
            value = hosts[1]
            if isinstance(value, yaml.MappingNode) and value.value:
                if value.flow_style:
                    raise _flow_error(hosts[0])
                indent = value.value[0][0].start_mark.column
                at = max(_last_line(value), value.value[-1][0].start_mark.line) + 1
            else:
                at = hosts[0].start_mark.line + 1
                indent = inner + 2
                lines[at - 1] = _key_alone(lines[at - 1], hosts[0])
    own = [" " * indent + line if line else "" for line in block]
    return "\n".join([*lines[:at], *head, *own, *lines[at:]]) + "\n"


def _key_alone(line: str, key: yaml.Node) -> str:
    """Return a key's line without its empty value (``{}``, ``null``), its comment kept."""
    return line[: key.end_mark.column] + ":" + _trailing_comment(line)


def _trailing_comment(line: str) -> str:
    match = re.search(r"\s+#.*$", line)
    return match.group(0) if match else ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _flow_error(key: yaml.Node) -> ConfigError:
    return ConfigError(
        "inventory-layout",
        "a group written in braces can't be edited",
        where=f"{FILE}:{key.start_mark.line + 1}",
        hint="write its hosts one below the other",
    )


def _layout_error() -> ConfigError:
    return ConfigError(
        "inventory-layout", "the inventory is laid out in a way that can't be edited", where=FILE,
        hint="make the change by hand",
    )  # fmt: skip


def _scalar(value: str) -> str:
    if _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=True).strip()


def _flow(value: Any) -> str:
    """Return plain data on one line, as one writes it by hand."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_scalar(str(key))}: {_flow(item)}" for key, item in value.items())
        return "{" + inner + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        return _scalar(value)
    return json.dumps(value)


def _checked(before: str, after: str, change: Any) -> str:
    """Return the edited text where it says what is wanted, and nothing else."""
    wanted = copy.deepcopy(_read(before))
    change(wanted)
    try:
        found = _load(after)
    except yaml.YAMLError:
        found = None
    if _tidy(found) != _tidy(wanted):
        raise _layout_error()
    return after


def _tidy(value: Any) -> Any:
    """Return data with empty mappings and nothing made equal: both mean the same in an inventory."""
    if isinstance(value, dict):
        return {str(key): _tidy(item) for key, item in value.items()} or None
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return value
