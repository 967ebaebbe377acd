"""What there is of nodes: the inventory's view, with what runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudctl.engine.render import Renderer
from cloudctl.node import journal
from cloudctl.node.inventory import WAITING
from cloudctl.site.model import Node, Site


def rows(site: Site) -> list[dict[str, Any]]:
    """Return every node with its groups, addresses and where it stands; nobody is asked."""
    joining, leaving = journal.joining(site), journal.leaving(site.path)
    mons = {node.name for node in site.group("mons")}
    return [
        {
            "name": node.name,
            "address": node.address,
            "groups": list(node.groups),
            "role": _role(node),
            "mon": node.name in mons,
            "state": state_of(node, joining, leaving),
        }
        for node in site.nodes.values()
    ]


def state_of(node: Node, joining: Mapping[str, str], leaving: list[str]) -> str:
    """Return where a node stands: member, enrolled, joining, leaving. Pure."""
    if node.name in leaving:
        return "leaving"
    if WAITING in node.groups:
        return "joining" if node.name in joining else "enrolled"
    return "member"


def _role(node: Node) -> str:
    if WAITING in node.groups:
        return str(node.vars.get("role") or "")
    known = ("deploy", "control", "compute", "storage", "mons")
    return ", ".join(group for group in known if group in node.groups and not _implied(group, node))


def _implied(group: str, node: Node) -> bool:
    return group == "mons" and "control" in node.groups


def details(site: Site, node: Node) -> dict[str, Any]:
    """Return all that the site says of a node; nobody is asked."""
    renderer = Renderer(site)
    managed = WAITING not in node.groups
    row = next(entry for entry in rows(site) if entry["name"] == node.name)
    return {
        **row,
        "ports": [
            {
                "name": port.name,
                "network": port.network,
                "address": port.address,
                "mtu": port.mtu,
                "mac": port.mac,
            }
            for port in node.interfaces.values()
        ],
        "devices": list(node.vars.get("devices") or []),
        "journal_devices": list(node.vars.get("journal_devices") or []),
        "containers": [container.name for container in renderer.containers_of(node)] if managed else [],
    }


def live(site: Site, node: Node) -> dict[str, Any]:
    """Ask the node and the APIs what is true of it now.

    Returns:
        ``reachable`` (with ``error``), ``uptime``, ``memory``, ``containers`` by name with state and health,
        ``instances`` (None where the compute API does not answer).
    """
    from cloudctl.netcheck.collect import silent_nodes
    from cloudctl.runner import run_playbook

    result = run_playbook(
        site.path, "status", {"cloudctl_probes": {}, "cloudctl_show": "all:!all"}, limit=[node.name]
    )
    silent = silent_nodes(result)
    facts: dict[str, Any] = {}
    for answer in result.facts.get(node.name, {}).values():
        facts = (answer.get("ansible_facts") or {}).get("cloudctl_status") or facts
    known = facts.get("node") or {}
    found: dict[str, Any] = {
        "reachable": bool(facts),
        "error": silent[node.name].message if node.name in silent else None,
        "uptime": known.get("uptime"),
        "load": known.get("load"),
        "memory": known.get("memory"),
        "system": known.get("system"),
        "kernel": known.get("kernel"),
        "containers": {
            entry["name"]: {"state": entry["state"], "health": entry["health"]}
            for entry in facts.get("containers") or []
        },
        "instances": None,
    }
    if "compute" in node.groups:
        found["instances"] = _instances(site, node)
    return found


def _instances(site: Site, node: Node) -> list[dict[str, str]] | None:
    from cloudctl.errors import CloudctlError
    from cloudctl.power.guests import Cloud

    try:
        instances = Cloud(site).instances()
    except CloudctlError:
        return None
    return [
        {"id": entry.id, "name": entry.name, "status": entry.status}
        for entry in instances
        if entry.host == node.name
    ]
