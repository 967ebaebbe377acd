"""Reads the Ansible inventory: the YAML form, with group_vars and host_vars beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudctl.site.document import Document, Problems, read_document
from cloudctl.site.schema import schema, suggestion

_BODY = ("hosts", "children", "vars")

Origin = tuple[Document, tuple[Any, ...]]


@dataclass(frozen=True)
class Host:
    """A host of the inventory.

    Attributes:
        name: inventory name.
        where: ``file:line`` at which it is first named.
        groups: every group it is in, in the order of the inventory, ``all`` left out.
        vars: merged variables.
        origin: where each variable was set.
        direct: groups that name it themselves, with the place.
    """

    name: str
    where: str
    groups: tuple[str, ...]
    vars: Mapping[str, Any]
    origin: Mapping[str, Origin]
    direct: Mapping[str, str]


@dataclass(frozen=True)
class Inventory:
    """Hosts and groups in the order of the file.

    Attributes:
        hosts: by name.
        groups: where each is defined.
        vars: by group, what its members get from it, from what contains it and from ``all``.
    """

    hosts: Mapping[str, Host] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    vars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class _Group:
    name: str
    where: str
    parents: list[str] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Origin] = field(default_factory=dict)


@dataclass
class _HostVars:
    vars: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Origin] = field(default_factory=dict)


def read_inventory(site: Path, file: str, problems: Problems) -> Inventory:
    """Read the inventory of a site; what is wrong goes to ``problems``."""
    directory = file.rsplit("/", 1)[0]
    document = _read_hosts(site, file, problems)
    if document is None:
        return Inventory()
    reader = _Reader(document, problems)
    for name, body in document.data.items():
        reader.group(name, body, (name,), None)
    cycle = _cycle(reader.groups)
    if cycle:
        where = reader.groups[cycle[0]].where
        problems.add("group-cycle", f"groups contain each other: {' > '.join(cycle)}", where)
        return Inventory()
    for group in reader.groups.values():
        _vars_file(site, f"{directory}/group_vars/{group.name}", group.vars, group.origin, problems)
    if "all" not in reader.groups:
        everyone = _Group("all", document.where())
        _vars_file(site, f"{directory}/group_vars/all", everyone.vars, everyone.origin, problems)
        reader.groups["all"] = everyone
    for name, own in reader.hosts.items():
        _vars_file(site, f"{directory}/host_vars/{name}", own.vars, own.origin, problems)
    return _merge(reader)


def _read_hosts(site: Path, file: str, problems: Problems) -> Document | None:
    example = "all: {children: {control: {hosts: {ctl01: {ansible_host: 10.10.10.11}}}}}"
    for other in ("inventory/hosts", "inventory/hosts.ini", "inventory/hosts.yaml"):
        if not (site / file).exists() and (site / other).is_file():
            problems.add(
                "inventory-format",
                f"the inventory must be {file}, in YAML, not {other}",
                f"{other}:1",
                example,
            )
            return None
    document = read_document(site, file, problems)
    if document is None:
        return None
    if not isinstance(document.data, dict):
        problems.add(
            "inventory-format", "the inventory must be a mapping of groups", document.where(), example
        )
        return None
    return document


class _Reader:
    def __init__(self, document: Document, problems: Problems) -> None:
        self.document = document
        self.problems = problems
        self.groups: dict[str, _Group] = {}
        self.hosts: dict[str, _HostVars] = {}
        self.first: dict[str, str] = {}

    def group(self, name: Any, body: Any, path: tuple[Any, ...], parent: str | None) -> None:
        where = self.document.where(*path)
        name = str(name)
        group = self.groups.setdefault(name, _Group(name, where))
        if parent is not None and parent not in group.parents:
            group.parents.append(parent)
        if body is None:
            return
        if not isinstance(body, dict):
            self.problems.add("inventory-format", f"group {name} must be a mapping", where)
            return
        for key, value in body.items():
            here = (*path, key)
            if key not in _BODY:
                hint = suggestion(key, _BODY, otherwise=f"a group holds {', '.join(_BODY)}")
                self.problems.add(
                    "unknown-key", f"unknown key '{key}' in group {name}", self.document.where(*here), hint
                )
            elif value is None:
                continue
            elif not isinstance(value, dict):
                self.problems.add(
                    "inventory-format",
                    f"'{key}' of group {name} must be a mapping",
                    self.document.where(*here),
                )
            elif key == "hosts":
                for host, own in value.items():
                    self.host(group, str(host), own, (*here, host))
            elif key == "children":
                for child, content in value.items():
                    self.group(child, content, (*here, child), name)
            else:
                _take(value, self.document, here, group.vars, group.origin, self.problems)

    def host(self, group: _Group, name: str, own: Any, path: tuple[Any, ...]) -> None:
        where = self.document.where(*path)
        if "[" in name:
            self.problems.add(
                "inventory-format", f"host ranges are not supported: {name}", where, "name each node"
            )
            return
        if not _valid_name(name):
            self.problems.add(
                "node-name",
                f"'{name}' cannot be a host name",
                where,
                "use lower-case letters, digits and hyphens",
            )
        group.hosts[name] = where
        first = self.first.setdefault(name, where)
        host = self.hosts.setdefault(name, _HostVars())
        if own is None:
            return
        if not isinstance(own, dict):
            self.problems.add("inventory-format", f"the variables of {name} must be a mapping", where)
            return
        for key, value in own.items():
            if key in host.vars and host.vars[key] != value:
                self.problems.add(
                    "duplicate-node",
                    f"node {name} is defined twice with different {key} (first at {first})",
                    self.document.where(*path, key),
                    "give each node a name of its own; in further groups only name it",
                )
        fresh = {key: value for key, value in own.items() if key not in host.vars}
        _take(fresh, self.document, path, host.vars, host.origin, self.problems)


def _valid_name(name: str) -> bool:
    plain = name.replace("-", "").replace(".", "")
    return bool(plain) and plain.isascii() and plain.isalnum() and name == name.lower() and len(name) <= 63


def _take(
    values: Mapping[Any, Any],
    document: Document,
    path: tuple[Any, ...],
    target: dict[str, Any],
    origin: dict[str, Origin],
    problems: Problems,
) -> None:
    """Add variables to a group or host; refuse those that nothing reads."""
    known = schema()["inventory"]
    for key, value in values.items():
        here = (*path, key)
        if key not in known and not str(key).startswith(("ansible_", "custom_")):
            hint = suggestion(key, known, otherwise="variables of your own start with custom_")
            problems.add("unknown-key", f"unknown inventory variable '{key}'", document.where(*here), hint)
            continue
        target[str(key)] = value
        origin[str(key)] = (document, here)


def _vars_file(
    site: Path, stem: str, target: dict[str, Any], origin: dict[str, Origin], problems: Problems
) -> None:
    """Read group_vars/NAME.yml or host_vars/NAME.yml; it wins over what the inventory itself says."""
    if "\0" in stem or ".." in stem.split("/"):
        return
    for suffix in (".yml", ".yaml"):
        document = read_document(site, stem + suffix, problems, required=False)
        if document is None or document.data is None:
            continue
        if not isinstance(document.data, dict):
            problems.add("wrong-type", f"{stem}{suffix} must be a mapping", document.where())
            continue
        _take(document.data, document, (), target, origin, problems)


def _cycle(groups: Mapping[str, _Group]) -> list[str] | None:
    """Return a chain of groups that contain each other, None when there is none."""
    done: set[str] = set()
    for start in groups:
        chain: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, depth = stack.pop()
            del chain[depth:]
            if name in chain:
                return [*chain[chain.index(name) :], name]
            if name in done and not chain:
                continue
            chain.append(name)
            stack.extend((parent, depth + 1) for parent in groups[name].parents)
        done.add(start)
    return None


def _merge(reader: _Reader) -> Inventory:
    order = {name: index for index, name in enumerate(reader.groups)}
    ancestors: dict[str, frozenset[str]] = {}

    def above(name: str) -> frozenset[str]:
        if name not in ancestors:
            found = {name}
            for parent in reader.groups[name].parents:
                found |= above(parent)
            ancestors[name] = frozenset(found)
        return ancestors[name]

    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            parents = reader.groups[name].parents
            depths[name] = 0 if name == "all" else 1 + max((depth(parent) for parent in parents), default=0)
        return depths[name]

    member: dict[str, set[str]] = {name: {"all"} for name in reader.hosts}
    direct: dict[str, dict[str, str]] = {name: {} for name in reader.hosts}
    for group in reader.groups.values():
        for name, where in group.hosts.items():
            member[name] |= above(group.name)
            direct[name][group.name] = where

    def given(names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Origin]]:
        values: dict[str, Any] = {}
        origin: dict[str, Origin] = {}
        # Ansible's order: parents before children, then by name; the last wins.
        for group_name in sorted(names, key=lambda item: (depth(item), item)):
            values.update(reader.groups[group_name].vars)
            origin.update(reader.groups[group_name].origin)
        return values, origin

    hosts: dict[str, Host] = {}
    for name, own in reader.hosts.items():
        values, origin = given(member[name])
        values.update(own.vars)
        origin.update(own.origin)
        groups = tuple(sorted(member[name] - {"all", "ungrouped"}, key=order.__getitem__))
        hosts[name] = Host(name, reader.first[name], groups, values, origin, direct[name])
    places = {name: group.where for name, group in reader.groups.items()}
    return Inventory(hosts, places, {name: given({"all", *above(name)})[0] for name in places})
