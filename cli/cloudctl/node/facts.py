"""From what a machine has to what the inventory should say about it. Pure, but for the question itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudctl.errors import CheckFailed
from cloudctl.operations.call import call
from cloudctl.site.model import Node, Site

GIB = 1 << 30
LEAST = 1 * GIB
"""Bytes; a smaller disk is no OSD's, and no journal's."""

_ORDER = ("tenant", "storage", "replication", "api", "external")
"""Which networks get the faster ports first."""


@dataclass
class Proposal:
    """What the inventory should say.

    Attributes:
        variables: to be written.
        reasons: why, one line each.
        notes: what could not be decided.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def ask(site: Site, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by node what ``cloudctl_inspect`` found; on waiting nodes, ports that are down are tried.

    Raises:
        CloudctlError, MultiError: a node does not answer.
    """
    calls = {name: {"raise_ports": "newnodes" in site.nodes[name].groups} for name in names}
    answers = call(site.path, "cloudctl_inspect", calls).all_or_raise()
    return {name: answer["machine"] for name, answer in answers.items()}


def propose(
    node: Node,
    role: str,
    networks: Mapping[str, str],
    machine: Mapping[str, Any],
    group: Mapping[str, Any] | None = None,
) -> Proposal:
    """Return what a node's inventory variables should be.

    Args:
        node: as the inventory has it.
        role: compute, storage or whatever it is to be; empty when nobody said.
        networks: the role's ports: kernel name to network.
        machine: as returned by ``ask``.
        group: variables that the role's group gives to its nodes.
    """
    found = Proposal()
    if not role and "newnodes" in node.groups:
        found.notes.append("say what it is to be: `role: compute` or `role: storage` in the inventory")
    if role and networks:
        _ports(found, node, networks, machine["ports"])
    if role == "storage":
        journals = any(values.get("journal_devices") for values in (node.vars, group or {}))
        _disks(found, machine["disks"], journals)
    return found


def _ports(
    found: Proposal, node: Node, networks: Mapping[str, str], ports: Sequence[Mapping[str, Any]]
) -> None:
    """Name the machine's ports: the one with the management address, then the faster ones first.

    Where all are as fast, those that are called as networks.yml calls them are what was meant.
    """
    own = [port for port in ports if node.address in port["addresses"]]
    wanted = sorted(
        ((name, network) for name, network in networks.items() if network != "management"),
        key=lambda item: (_ORDER.index(item[1]) if item[1] in _ORDER else len(_ORDER), item[0]),
    )
    management = next((name for name, network in networks.items() if network == "management"), None)
    left = [port for port in ports if port not in own and port["link"] is not False]
    if management and not own:
        found.notes.append(f"no port has the management address {node.address}")
    cut = {port["name"] for port in ports if port["link"] is False}
    found.notes += [f"{name} has no link: it is not chosen" for name, _network in wanted if name in cut]
    chosen = _chosen([name for name, _network in wanted], left)
    if len(chosen) < len(wanted):
        without = ", ".join(network for name, network in wanted if name not in chosen)
        found.notes.append(
            f"{len(left)} more ports with a link for {len(wanted)} networks: none for {without}"
        )
    if management and own:
        chosen[management] = own[0]
    for name in _names_taken(chosen, ports):
        found.notes.append(
            f"{networks[name]}: {chosen.pop(name)['name']} cannot be called {name}, another port keeps that "
            f"name: put the cable into {name}, or give the ports other names in networks.yml"
        )
    found.notes += [
        f"{port['name']} is down: nobody knows whether it has a cable"
        for port in chosen.values()
        if port["link"] is None
    ]
    written = node.vars.get("interfaces") or {}
    interfaces: dict[str, Any] = {name: dict(entry or {}) for name, entry in written.items()}
    reasons = []
    for name in networks:
        if name in chosen:
            port = chosen[name]
            if port["name"] != name or "mac" in interfaces.get(name, {}):
                interfaces[name] = {**interfaces.get(name, {}), "mac": port["mac"]}
            speed = f", {port['speed']} Mbit/s" if port["speed"] else ""
            reasons.append(f"{networks[name]}: {port['name']} ({port['mac']}{speed}) as {name}")
    if interfaces != written:
        found.variables["interfaces"] = interfaces
    elif len(chosen) == len(networks) and all(port["name"] == name for name, port in chosen.items()):
        reasons = [f"ports are called as networks.yml does: {_shown(networks)}"]
    found.reasons += reasons


def _chosen(names: Sequence[str], ports: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return by name a port: the faster ones first; where all are as fast, those that are called so stay.

    Args:
        names: the wanted ones, in their order.
        ports: those that may be chosen.
    """

    def rank(port: Mapping[str, Any]) -> tuple[bool, int]:
        return port["link"] is None, -(port["speed"] or 0)

    # One that has a wanted name is used in any case: no other port can be given that name beside it.
    used = sorted(ports, key=lambda port: (port["name"] not in names, *rank(port)))[: len(names)]
    alike = len({port["speed"] for port in used if port["speed"]}) <= 1
    chosen = {port["name"]: port for port in used if alike and port["name"] in names}
    others = sorted((port for port in used if port not in chosen.values()), key=rank)
    return {**chosen, **dict(zip((name for name in names if name not in chosen), others, strict=False))}


def _names_taken(chosen: Mapping[str, Mapping[str, Any]], ports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that cannot be given to another port: the one that is called so keeps its name."""
    taken: list[str] = []
    while True:
        moves = {
            port["name"]: name for name, port in chosen.items() if name not in taken and port["name"] != name
        }
        staying = {port["name"] for port in ports} - set(moves)
        more = [name for name in moves.values() if name in staying]
        if not more:
            return taken
        taken += more


def _shown(networks: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {network}" for name, network in networks.items())


def _disks(found: Proposal, disks: Sequence[Mapping[str, Any]], named: bool) -> None:
    """Choose data and journal disks: data on spinning or larger ones, journals on SSDs.

    Args:
        named: the node, or its group, has ``journal_devices``: they do not fit other data disks.
    """
    free = [disk for disk in disks if not disk["content"] and not disk["system"] and disk["size"] >= LEAST]
    for disk in disks:
        if disk not in free:
            why = disk["content"] or ("the system uses it" if disk["system"] else "it is too small")
            found.notes.append(f"{disk['path']} ({size(disk['size'])}) is left alone: {why}")
    if not free:
        found.notes.append("no empty disk")
        return
    spinning = [disk for disk in free if disk["rotational"]]
    solid = [disk for disk in free if not disk["rotational"]]
    if spinning and solid:
        data, journals, why = spinning, solid, "spinning disks hold data, SSDs their journals"
    else:
        most = max(disk["size"] for disk in free)
        data = [disk for disk in free if disk["size"] * 2 > most]
        journals = [disk for disk in free if disk["size"] * 2 <= most]
        why = (
            "larger disks hold data, smaller ones their journals" if journals else "all disks are alike: data"
        )
    found.variables["devices"] = [disk["path"] for disk in data]
    found.reasons.append(why)
    if journals:
        # As documented: several journals share an SSD; with several SSDs, evenly.
        chosen = journals[: len(data)]
        found.variables["journal_devices"] = [
            chosen[i * len(chosen) // len(data)]["path"] for i in range(len(data))
        ]
    elif named:
        found.variables["journal_devices"] = []


def size(count: int) -> str:
    """Return a number of bytes as people say it."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def refuse_members(node: Node) -> None:
    """Refuse to write about a node that is in use: its OSDs and ports follow from what is written now.

    Raises:
        CheckFailed: it is.
    """
    if "newnodes" not in node.groups:
        raise CheckFailed(
            "node-in-use", f"{node.name} is a node of the cloud ({', '.join(node.groups)})", where=node.name,
            hint="change the inventory by hand, look at cloudctl plan, then deploy",
        )  # fmt: skip
