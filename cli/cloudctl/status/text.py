"""The state as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cloudctl.console import Console
from cloudctl.status.summary import Status


def show(console: Console, status: Status) -> None:
    """Print the state: tables first, what is wrong last, so that it is on the screen at the end."""
    sections = status.sections
    console.table(
        ("NODE", "GROUPS", "REACHED", "UP", "LOAD", "MEMORY FREE", "DISK FREE"),
        [
            (
                node["name"],
                " ".join(node["groups"]),
                node["reachable"],
                _uptime(node["uptime"]),
                None if node["load"] is None else f"{node['load']:.1f}",
                _of(node["memory_available"], node["memory_total"]),
                _of((node["disks"].get("/") or {}).get("free"), (node["disks"].get("/") or {}).get("total")),
            )
            for node in sections["nodes"]
        ],
    )
    console.line()
    console.table(
        ("SERVICE", "WANTED", "RUNNING", "HEALTHY"),
        [
            (name, count["wanted"], count["running"], count["healthy"])
            for name, count in sections["services"].items()
        ],
    )
    console.line()
    for line in cluster_lines(sections):
        console.line(line)
    for title, key in (
        ("COMPUTE SERVICE", "compute"),
        ("HYPERVISOR", "hypervisors"),
        ("NETWORK AGENT", "network"),
        ("VOLUME SERVICE", "volume"),
    ):
        if sections.get(key):
            console.line()
            console.table(
                (title, "HOST", "STATE"),
                [(row["name"], row.get("host", row["name"]), _state(row)) for row in sections[key]],
            )
    console.line()
    for problem in status.problems:
        mark = console.style("warning", "warn") if problem.warning else console.style("problem", "bad")
        console.line(f"{mark}[{problem.ref}]: {problem.message}")
        console.line(f"   at: {problem.where}")
        if problem.hint:
            console.line(f"  try: {problem.hint}")
    count = sum(not problem.warning for problem in status.problems)
    if status.healthy:
        console.line(console.style("The cloud is healthy.", "ok"))
    else:
        console.line(console.style(f"The cloud is not healthy: {count} problem{'s' * (count != 1)}.", "bad"))


def _galera(members: Mapping[str, Any], wanted: int, entry: Mapping[str, Any]) -> str:
    synced = sum(member["state"] == "Synced" and member["primary"] for member in members.values())
    return f"{synced}/{wanted} Synced"


def _erlang(members: Mapping[str, Any], wanted: int, entry: Mapping[str, Any]) -> str:
    running = max((len(member["running"]) for member in members.values()), default=0)
    return f"{running}/{wanted} running"


def _ovsdb(members: Mapping[str, Any], wanted: int, entry: Mapping[str, Any]) -> str:
    joined = sum(member["status"] == "cluster member" for member in members.values())
    return f"{joined}/{wanted} members, leader {entry['leader'] or 'none'}"


_STATES: Mapping[str, Callable[[Mapping[str, Any], int, Mapping[str, Any]], str]] = {
    "galera": _galera,
    "erlang": _erlang,
    "ovsdb": _ovsdb,
}
"""By kind of cluster, its state in a few words."""


def cluster_lines(sections: dict[str, Any]) -> list[str]:
    """Return one line for each cluster: its members and who leads."""
    lines = []
    for cluster in sections["clusters"]:
        entry = sections[cluster["section"]]
        if cluster["kind"] == "ovsdb":
            entry = entry[cluster["name"]]
        if entry["wanted"]:
            title = f"{cluster['title']:<15}"
            lines.append(f"{title} {_STATES[cluster['kind']](entry['members'], entry['wanted'], entry)}")
    for name, entry in sections["vip"].items():
        title = f"VIP {name}"
        lines.append(f"{title:<15} {entry['address']} on {', '.join(entry['holders']) or 'no node'}")
    ceph = sections["ceph"]
    if ceph and "osds" in ceph:
        lines.append(
            f"Ceph            {ceph['health']}, mons {len(ceph['quorum'])}/{ceph['mons_wanted']} in quorum, "
            f"OSDs {ceph['osds_up']}/{max(ceph['osds_wanted'], ceph['osds'])} up, "
            f"{size(ceph['bytes_used'])} of {size(ceph['bytes_total'])} used"
        )
    elif ceph:
        lines.append(f"Ceph            {ceph['health']}")
    versions = sections["versions"]
    shown = [f"OpenStack {versions['openstack']}"] if versions["openstack"] else []
    shown += [
        f"{title} {', '.join(versions[key])}"
        for title, key in (("Ceph", "ceph"), ("engine", "engine"), ("kernel", "kernel"), ("", "system"))
        if versions[key]
    ]
    lines.append("Versions        " + "; ".join(text.strip() for text in shown))
    return lines


def _state(row: dict[str, Any]) -> str:
    return ("up" if row["up"] else "down") + ("" if row["enabled"] else ", disabled")


def size(value: float) -> str:
    """Return bytes as people say it: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _of(free: float | None, total: float | None) -> str | None:
    return None if free is None or not total else f"{size(free)} ({100 * free / total:.0f} %)"


def _uptime(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    days, rest = divmod(int(seconds), 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
