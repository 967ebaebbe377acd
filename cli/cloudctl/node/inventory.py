"""What the inventory says about a machine that is to come, and the text in which it has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloudctl.errors import ConfigError, UsageError
from cloudctl.runs.lock import state_directory
from cloudctl.runs.record import write_atomically
from cloudctl.site.edit_inventory import add_host, move_host, remove_host
from cloudctl.site.load import INVENTORY
from cloudctl.site.model import Node, Site

WAITING = "newnodes"
ROLES = ("compute", "storage")
_EMPTY = "newnodes.empty"
_ANYBODY = "-"  # no host can be called so


def read_text(site: Path) -> str:
    """Return the inventory's text, its lines ended by ``\\n``."""
    return (site / INVENTORY).read_text(encoding="utf-8")


def write_text(site: Path, text: str) -> None:
    """Write the inventory, whole or not at all; its permissions stay, and how its lines end."""
    path = site / INVENTORY
    with path.open(encoding="utf-8", newline="") as stream:
        present = stream.read()
    if not present.endswith("\n"):
        text = text.removesuffix("\n")
    if "\r\n" in present:
        text = text.replace("\n", "\r\n")
    write_atomically(path, text, mode=path.stat().st_mode & 0o777)


def role_of(node: Node) -> str:
    """Return the group that a waiting node is to join: its ``role``, else what its disks tell. Pure.

    Raises:
        ConfigError: nothing tells it.
    """
    role = node.vars.get("role")
    if role in ROLES:
        return str(role)
    if role is None and node.vars.get("devices"):
        return "storage"
    raise ConfigError(
        "node-role-missing",
        f"the inventory does not say what {node.name} is to be",
        where=INVENTORY,
        hint=f"give it `role: {ROLES[0]}` or `role: {ROLES[1]}`",
    )


def waiting(site: Site, names: Sequence[str]) -> dict[str, str]:
    """Return by node the group that it is to join.

    Raises:
        UsageError: an unknown node, or one that is in use.
    """
    found: dict[str, str] = {}
    for name in names:
        node = site.nodes.get(name)
        if node is None:
            others = ", ".join(other.name for other in site.group(WAITING)) or "none"
            raise UsageError(
                "node-unknown",
                f"there is no node {name!r} in the inventory",
                hint=f"cloudctl node enroll {name} --address …; waiting to be added: {others}",
            )
        if WAITING not in node.groups:
            raise UsageError(
                "node-in-use",
                f"{name} is a node of the cloud already ({', '.join(node.groups)})",
                where=INVENTORY,
            )
        found[name] = role_of(node)
    return found


def joined(text: str, roles: Mapping[str, str]) -> str:
    """Return the inventory with nodes in their groups, their own lines unchanged. Pure."""
    for name, role in roles.items():
        text = move_host(text, name, role)
    return text


def remember_empty(site: Site, before: str) -> None:
    """Keep how ``newnodes`` was written while it was empty: empty again, it is written so again."""
    lines = _lines_of_waiting(before)
    if lines is not None and not site.group(WAITING):
        text = "\n".join(before.splitlines()[lines[0] : lines[1] + 1])
        write_atomically(state_directory(site.path) / _EMPTY, text + "\n")


def tidied(site: Path, text: str) -> str:
    """Return the inventory with an emptied ``newnodes`` as it was written before somebody came into it.

    Only where what stands there now is what coming and going make of that; else somebody wrote into it.
    """
    lines = _lines_of_waiting(text)
    kept = state_directory(site) / _EMPTY
    if lines is None or not kept.is_file():
        return text
    every = text.splitlines()
    edited = [*every[: lines[0]], *kept.read_text(encoding="utf-8").splitlines(), *every[lines[1] + 1 :]]
    result = "\n".join(edited) + "\n"
    try:
        emptied = remove_host(add_host(result, WAITING, _ANYBODY, {}), _ANYBODY)
    except (ConfigError, UsageError):
        return text
    return result if emptied == text else text


def _lines_of_waiting(text: str) -> tuple[int, int] | None:
    """Return first and last line of the group ``newnodes``, as far as it is written one line a thing."""
    lines = text.splitlines()
    for first, line in enumerate(lines):
        match = re.fullmatch(rf"(\s*){WAITING}:(\s*(\{{\}}|null|~)?\s*(#.*)?)", line)
        if match is None:
            continue
        last = first
        for number in range(first + 1, len(lines)):
            inner = lines[number]
            if inner.strip() and len(inner) - len(inner.lstrip()) <= len(match[1]):
                break
            if inner.strip() and not inner.strip().startswith("#"):
                last = number
        return first, last
    return None
