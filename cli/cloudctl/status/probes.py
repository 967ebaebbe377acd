"""What is asked inside containers, and how the answers are read.

Which clusters there are, and how each is asked, comes from the service definitions (``status``); this knows
how the kinds of clusters answer, and Ceph.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cloudctl.engine.definitions import CLUSTER_KINDS, Cluster, Service, load_services

_CEPH = ["ceph", "--connect-timeout", "10", "-n", "mon.", "-k", "/var/lib/ceph/mon/ceph-{hostname}/keyring"]
_CEPH_PROBES: dict[str, dict[str, Any]] = {
    "ceph": {"container": "ceph-*-mon[-.]*", "command": [*_CEPH, "status", "--format", "json"]},
    "ceph_version": {"container": "ceph-*-mon[-.]*", "command": ["ceph", "--version"]},
}


def clusters_of(services: Iterable[Service]) -> tuple[Cluster, ...]:
    """Return the clusters that these services are made of, in the order in which they are told."""
    found = [cluster for service in services for cluster in service.clusters]
    return tuple(sorted(found, key=lambda cluster: CLUSTER_KINDS.index(cluster.kind)))


@lru_cache(maxsize=1)
def known_clusters() -> tuple[Cluster, ...]:
    """Return the clusters of the services that come with cloudctl; a site may have more."""
    return clusters_of(load_services())


def __getattr__(name: str) -> dict[str, dict[str, Any]]:
    """Give ``PROBES``: ``probes`` of ``known_clusters``, read when they are asked for."""
    if name != "PROBES":
        raise AttributeError(name)
    return probes(())


def probes(mons: Sequence[str], clusters: Iterable[Cluster] | None = None) -> dict[str, dict[str, Any]]:
    """Return by name what is asked, as ``cloudctl_status`` takes it: container (pattern), command, user.

    Args:
        mons: addresses of Ceph's monitors. The configuration in a monitor's container may name the first one
            alone, which need not be there.
        clusters: default: those of the services that come with cloudctl.
    """
    found: dict[str, dict[str, Any]] = {}
    for cluster in known_clusters() if clusters is None else clusters:
        if cluster.command:
            found[cluster.name] = {"container": cluster.container, "command": list(cluster.command)}
            if cluster.user:
                found[cluster.name]["user"] = cluster.user
    found |= _CEPH_PROBES
    if mons:
        status = _CEPH_PROBES["ceph"]
        command = [*_CEPH, "-m", ",".join(mons), *status["command"][len(_CEPH) :]]
        found["ceph"] = {**status, "command": command}
    return found


def parse_galera(text: str) -> dict[str, Any]:
    """Read ``show status like 'wsrep_%'`` as printed with ``-NB``.

    Returns:
        ``size`` (members that this one sees), ``state`` (Synced …), ``primary`` (part of the majority),
        ``ready``.
    """
    values = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {
        "size": int(values.get("wsrep_cluster_size") or 0),
        "state": values.get("wsrep_local_state_comment", ""),
        "primary": values.get("wsrep_cluster_status", "") == "Primary",
        "ready": values.get("wsrep_ready", "") == "ON",
    }


def parse_erlang(text: str) -> dict[str, Any]:
    """Read ``rabbitmqctl cluster_status --formatter json``.

    Returns:
        ``running`` and ``members`` (node names), ``partitions`` and ``alarms`` (texts), ``apart`` (by host,
        the hosts that it went on without and does not see as a part of the cluster since).
    """
    data = json.loads(text)
    return {
        "members": sorted(data.get("disk_nodes", []) + data.get("ram_nodes", [])),
        "running": sorted(data.get("running_nodes", [])),
        "partitions": sorted(
            f"{node} does not see {', '.join(others)}"
            for node, others in (data.get("partitions") or {}).items()
        ),
        "apart": {
            host_of(node): sorted(host_of(other) for other in others)
            for node, others in (data.get("partitions") or {}).items()
        },
        "alarms": sorted(_alarm(alarm) for alarm in data.get("alarms") or []),
    }


def host_of(name: str) -> str:
    """Return the host of an Erlang node's name."""
    return name.rpartition("@")[2]


def _alarm(alarm: Any) -> str:
    if isinstance(alarm, Mapping):
        return " ".join(str(alarm[key]) for key in ("node", "type", "resource") if key in alarm)
    return str(alarm)


def parse_ovsdb(text: str) -> dict[str, Any]:
    """Read ``ovn-appctl cluster/status``.

    Returns:
        ``role`` (leader, follower, candidate), ``status`` (cluster member …), ``leader`` (known at all),
        ``servers`` (how many the cluster has), ``address`` (this one's).
    """

    def field(name: str) -> str:
        match = re.search(rf"^{name}: *(.*)$", text, re.MULTILINE)
        return match.group(1).strip() if match else ""

    servers = text.partition("\nServers:\n")[2]
    return {
        "role": field("Role"),
        "status": field("Status"),
        "leader": field("Leader") not in ("", "unknown"),
        "servers": len(re.findall(r"^ +\w+ \(\w+ at ", servers, re.MULTILINE)) or 1,
        "address": field("Address"),
    }


def parse_ceph(text: str) -> dict[str, Any]:
    """Read ``ceph status --format json``.

    Returns:
        ``health``, ``checks`` ({name: text}, muted ones left out), ``quorum`` and ``mons`` (names), ``osds``,
        ``osds_up``, ``osds_in``, ``mgr`` (one is active), ``pgs`` ({state: number}), ``bytes_used``,
        ``bytes_total``.
    """
    data = json.loads(text)
    health = data.get("health") or {}
    osds = data.get("osdmap") or {}
    osds = osds.get("osdmap", osds)  # nested in older releases
    pgs = data.get("pgmap") or {}
    return {
        "health": health.get("status", ""),
        "checks": {
            name: (check.get("summary") or {}).get("message", "")
            for name, check in (health.get("checks") or {}).items()
            if not check.get("muted")
        },
        "quorum": sorted(data.get("quorum_names") or []),
        "mons": int((data.get("monmap") or {}).get("num_mons") or 0),
        "mgr": bool((data.get("mgrmap") or {}).get("available")),
        "osds": int(osds.get("num_osds") or 0),
        "osds_up": int(osds.get("num_up_osds") or 0),
        "osds_in": int(osds.get("num_in_osds") or 0),
        "pgs": {entry["state_name"]: entry["count"] for entry in pgs.get("pgs_by_state") or []},
        "bytes_used": int(pgs.get("bytes_used") or 0),
        "bytes_total": int(pgs.get("bytes_total") or 0),
    }


def parse_ceph_version(text: str) -> dict[str, Any]:
    """Read ``ceph --version``: ``{"version": "18.2.7"}``."""
    match = re.search(r"ceph version (\S+)", text)
    return {"version": match.group(1) if match else ""}


PARSERS = {
    "galera": parse_galera,
    "erlang": parse_erlang,
    "ovsdb": parse_ovsdb,
    "ceph": parse_ceph,
    "ceph_version": parse_ceph_version,
}
"""By kind of cluster; Ceph's two questions are kinds of their own."""


def parse(
    name: str, answer: Mapping[str, Any], clusters: Iterable[Cluster] | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Read a probe's answer.

    Args:
        clusters: among which its name is; default: those of the services that come with cloudctl.
        answer: ``{rc, stdout, stderr}``.

    Returns:
        ``(data, "")``, or ``(None, why not)``.
    """
    if answer.get("rc") != 0:
        lines = str(answer.get("stderr") or answer.get("stdout") or "").strip().splitlines()
        return None, lines[-1] if lines else f"ended with {answer.get('rc')}"
    try:
        among = known_clusters() if clusters is None else clusters
        kind = next((cluster.kind for cluster in among if cluster.name == name), name)
        return PARSERS[kind](str(answer["stdout"])), ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"its answer cannot be read ({error})"


def mutual(sees: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Return the groups of members that all see each other. Pure.

    Args:
        sees: by member, whom it sees, itself included.
    """
    groups: list[set[str]] = []
    for node in sorted(sees):
        joined = {other for other in sees if other in sees[node] and node in sees[other]} | {node}
        # All of a group see all of it; a member between two that do not see each other is in one only.
        for group in groups:
            if all(other in joined for other in group):
                group.add(node)
                break
        else:
            groups.append({node})
    return groups


def _together(answers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the members of the group that is a majority; empty: there is none."""
    members = {host_of(name) for data in answers.values() for name in data["members"]}
    sees = {
        node: {host_of(name) for name in data["running"]} - set(data["apart"].get(node, ()))
        for node, data in answers.items()
    }
    largest = max(mutual({node: seen for node, seen in sees.items() if node in seen}), key=len, default=set())
    return largest if len(largest) * 2 > len(members) else set()


def working(answers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the nodes whose member of one cluster works, in the majority's view. Pure.

    Args:
        answers: by node, a probe's parsed answer (``parse``); kinds differ in fields.
    """
    if any("apart" in data for data in answers.values()):
        return _together(answers)
    found: set[str] = set()
    for node, data in answers.items():
        if "primary" in data:
            works = data["primary"] and data["ready"] and data["state"] == "Synced"
        elif "leader" in data:
            works = data["leader"] and data["status"] == "cluster member"
        else:
            # All of a quorum tell the same.
            found |= set(data.get("quorum") or ())
            continue
        if works:
            found.add(node)
    return found
