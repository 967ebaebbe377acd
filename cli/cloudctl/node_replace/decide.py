"""Whether a controller may be replaced, what is lost with it, and whether it is whole afterwards. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudctl.ceph.desired import mon_nodes
from cloudctl.engine.definitions import Cluster as Definition
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, UsageError
from cloudctl.node_replace.members import Member
from cloudctl.site.model import Node, Site
from cloudctl.status.probes import working

Answer = Mapping[str, Any]

SILENT, ITSELF, NEW = "silent", "itself", "new"
"""What is found at a dead node's address: nothing, a machine with the pinned host key, another machine."""


@dataclass(frozen=True)
class Cluster:
    """A cluster as the replacement sees it.

    Attributes:
        name: by which its members are asked (``cloudctl.status.probes``).
        title: what an operator calls it.
        nodes: of its members, the dead one too.
    """

    name: str
    title: str
    nodes: tuple[str, ...]


def check_target(site: Site, name: str, address: str | None) -> Node:
    """Return the node that is to be replaced.

    Raises:
        UsageError: there is no such node, it is no controller, or the address is another one.
        CheckFailed: it holds OSDs.
    """
    node = site.nodes.get(name)
    control = [other.name for other in site.group("control")]
    if node is None:
        raise UsageError(
            "node-unknown", f"there is no node {name!r} in the inventory",
            hint=f"controllers: {', '.join(control)}",
        )  # fmt: skip
    if name not in control:
        raise UsageError(
            "node-no-controller", f"{name} is no controller ({', '.join(node.groups)})",
            hint=f"cloudctl node remove {name} --dead, then cloudctl node enroll and node add",
        )  # fmt: skip
    if len(control) < 3:
        raise UsageError(
            "node-no-majority", f"with {len(control)} controllers nobody knows what {name} knew",
            hint="install the controllers anew and restore a backup: cloudctl deploy, cloudctl db restore",
        )  # fmt: skip
    if address is not None and address != node.address:
        raise UsageError(
            "address-differs", f"all nodes know {name} by {node.address}, not {address}",
            where="inventory/hosts.yml",
            hint="give the new machine that address on the management network: another one would change, and "
            "restart, what runs on every other node",
        )  # fmt: skip
    if node.vars.get("devices"):
        raise CheckFailed(
            "node-has-osds", f"{name} holds OSDs ({', '.join(map(str, node.vars['devices']))})", where=name,
            hint="their data is rebuilt from the others first: cloudctl osd remove; then without devices",
        )  # fmt: skip
    return node


def check_machine(name: str, address: str, found: str, running: Sequence[str], other: Sequence[str]) -> None:
    """Refuse to replace a machine that is alive, or that carries what the cloud left on it.

    Args:
        name: the node.
        address: its address.
        found: ``SILENT``, ``ITSELF`` or ``NEW``.
        running: the cloud's containers that run on it.
        other: those that are there and do not run.

    Raises:
        CheckFailed: it is not dead, or not fresh.
    """
    if running:
        raise CheckFailed(
            "node-alive", f"{name} is not dead: it answers as itself, and {_shorten(running)} run there",
            where=name,
            hint="cloudctl status tells what is wrong with it; cloudctl deploy repairs it. A machine that "
            "is to go is switched off first",
        )  # fmt: skip
    if other:
        raise CheckFailed(
            "node-not-fresh", f"the machine at {address} carries containers of the cloud: {_shorten(other)}",
            where=name,
            hint="cloudctl deploy brings a stopped node back; for a replacement install the machine anew",
        )  # fmt: skip


def check_told(name: str, address: str, answer: Answer | None, why: str) -> None:
    """Refuse a machine with the old one's host key that does not tell what it carries. Pure.

    Args:
        name: the node.
        address: its address.
        answer: what it tells of its containers; None: nothing.
        why: it tells nothing.

    Raises:
        CheckFailed: it may be the old one, alive.
    """
    if answer is not None:
        if answer["engine"] or not answer["installed"]:
            return
        why = "its container engine does not run"
    raise CheckFailed(
        "node-unknown-state",
        f"the machine at {address} has the host key of {name} and does not tell what it carries: {why}",
        where=name,
        hint="if it is the old one, cloudctl deploy repairs it, or it is switched off to go; a machine "
        "installed anew that kept the host key gets one of its own: rm /etc/ssh/ssh_host_*; ssh-keygen -A; "
        "systemctl restart ssh",
    )


def check_fresh(name: str, address: str, carried: Sequence[str]) -> None:
    """Refuse a machine on which something of a cloud lies: its data would be started instead of copied. Pure.

    Args:
        name: the node.
        address: the machine's.
        carried: paths that a machine with nothing but its operating system does not have.

    Raises:
        CheckFailed: it is not fresh.
    """
    if carried:
        raise CheckFailed(
            "node-not-fresh", f"the machine at {address} carries data of a cloud: {_shorten(carried)}",
            where=name,
            hint="install it anew, with empty disks; if it is the old one, cloudctl deploy repairs it",
        )  # fmt: skip


def clusters(
    site: Site, found: Iterable[Definition], containers: Mapping[str, Sequence[str]]
) -> list[Cluster]:
    """Return the clusters of the site that can be asked, Ceph's monitors last.

    Args:
        site: the site.
        found: from the definitions.
        containers: by node, what should run there.
    """
    result = [
        Cluster(
            cluster.name,
            cluster.title,
            tuple(node for node, names in containers.items() if cluster.container in names),
        )
        for cluster in found
        if cluster.command
    ]
    if site.group("storage"):
        result.append(Cluster("ceph", "Ceph's monitors", tuple(node.name for node in mon_nodes(site))))
    return [cluster for cluster in result if cluster.nodes]


def check_quorum(
    name: str, wanted: Sequence[Cluster], answers: Mapping[str, Mapping[str, Answer]]
) -> list[str]:
    """Refuse while the others of a cluster are no majority: what the dead one knew may be nowhere else.

    Args:
        name: the node that is replaced.
        wanted: the clusters.
        answers: by cluster and node.

    Returns:
        One line for each cluster.

    Raises:
        CheckFailed, MultiError: every cluster without a majority.
    """
    errors: list[CloudctlError] = []
    lines: list[str] = []
    for cluster in wanted:
        others = [node for node in cluster.nodes if node != name]
        good = [node for node in others if node in working(answers.get(cluster.name, {}))]
        lines.append(f"{cluster.title}: {', '.join(good) or 'none'} of {len(cluster.nodes)}")
        if len(good) * 2 <= len(cluster.nodes):
            bad = [node for node in others if node not in good]
            errors.append(
                CheckFailed(
                    "no-quorum",
                    f"{cluster.title}: without {name}, {len(good)} of {len(cluster.nodes)} members work"
                    + (f" (not {', '.join(bad)})" if bad else ""),
                    where=", ".join(bad) or name,
                    hint="bring the others together first: cloudctl status says what is wrong with each",
                )
            )
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    return lines


def check_gone(name: str, wanted: Sequence[Cluster], answers: Mapping[str, Mapping[str, Answer]]) -> None:
    """Refuse a node that takes part in a cluster, whatever its SSH server says.

    Args:
        name: the node that is replaced.
        wanted: the clusters.
        answers: of the others, by cluster and node.

    Raises:
        CheckFailed: the others see its member.
    """
    seen = []
    for cluster in wanted:
        others = [data for node, data in answers.get(cluster.name, {}).items() if node != name]
        names = {str(entry).rpartition("@")[2] for data in others for entry in data.get("running") or ()}
        names |= {str(entry) for data in others for entry in data.get("quorum") or ()}
        # A database's member counts the others, without names.
        sizes = [int(data["size"]) for data in others if data.get("primary")]
        if name in names or any(size >= len(cluster.nodes) for size in sizes):
            seen.append(cluster.title)
    if seen:
        raise CheckFailed(
            "node-alive", f"{name} is not dead: the others see it in {', '.join(seen)}", where=name,
            hint="switch it off; a machine that lost its power a moment ago is noticed within half a minute",
        )  # fmt: skip


def incomplete(wanted: Sequence[Cluster], answers: Mapping[str, Mapping[str, Answer]]) -> list[str]:
    """Return the clusters that lack a member, one line each."""
    lines = []
    for cluster in wanted:
        good = working(answers.get(cluster.name, {}))
        missing = [node for node in cluster.nodes if node not in good]
        if missing:
            count = len(cluster.nodes)
            lines.append(f"{cluster.title}: {count - len(missing)} of {count}, not {', '.join(missing)}")
    return lines


def lost(
    name: str, volumes: Mapping[str, Sequence[str]], found: Iterable[Member], *, mon: bool
) -> dict[str, list[str]]:
    """Return what the dead machine's disks held.

    Args:
        name: the node.
        volumes: by volume, the containers that use it.
        found: the clusters of the definitions.
        mon: it carried a monitor of Ceph.

    Returns:
        ``copied`` (what the others have too) and ``gone`` (what nobody else has), lines for an operator.
    """
    copied = {member.volume: member.title for member in found if member.volume}
    result: dict[str, list[str]] = {"copied": [], "gone": []}
    for volume, containers in volumes.items():
        if volume in copied:
            result["copied"].append(f"volume {volume}: {copied[volume]}, copied from the other members")
        else:
            result["gone"].append(f"volume {volume} of {_shorten(containers)}")
    if mon:
        result["copied"].append("the store of Ceph's monitor, copied from the other monitors")
    result["gone"].append(f"the logs of {name}: its journal, /var/log, the containers' own")
    result["gone"].append("whatever was installed or changed on it by hand")
    return result


def to_adopt(
    jobs: Iterable[Mapping[str, Any]], name: str, others_change: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the one-shot jobs that the cloud has done already, and those that are left to the deploy.

    The record of a job lies on the node that ran it. When that node is replaced, a job that is for the whole
    cloud must not look as if nobody had done it: making the database's data anew is one of them.

    Args:
        jobs: of the new node, as rendered.
        name: of the new node.
        others_change: services whose containers on other nodes are about to change: their jobs may be due.

    Returns:
        Ids to write down as done, and ids that may be due.
    """
    done: list[str] = []
    due: list[str] = []
    waiting = set(others_change)
    for job in jobs:
        if job["everywhere"] or job["first"] != name:
            continue
        (due if job["service"] in waiting and not job["once"] else done).append(str(job["id"]))
    return done, due


def changed_services(plan: Mapping[str, Any], name: str) -> set[str]:
    """Return the services whose containers on other nodes a plan would change."""
    return {
        str(change["service"])
        for node, changes in plan["nodes"].items()
        if node != name
        for change in changes["containers"]
    }


def left_in(plan: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """Return what a plan would still change on the new node (or in Ceph), and on which others, in words."""
    counts = {node: sum(len(items) for items in changes.values()) for node, changes in plan["nodes"].items()}
    own = [f"{counts[name]} changes on {name}"] if name in counts else []
    own += [f"Ceph: {change['kind']} {change['name']}: {change['reason']}" for change in plan["ceph"]]
    return own, [f"{count} on {node}" for node, count in counts.items() if node != name]


def duplicates(api: Mapping[str, Any], name: str) -> list[str]:
    """Return what the APIs list more than once for the node: the dead one beside the new one."""
    lines = []
    for kind in ("compute", "network", "volume"):
        rows = [f"{row['name']} of {row['host']}" for row in api.get(kind) or () if host_of(row) == name]
        lines += [
            f"{row}: {rows.count(row)} times ({kind})" for row in sorted(set(rows)) if rows.count(row) > 1
        ]
    return lines


def host_of(row: Mapping[str, Any]) -> str:
    """Return the node of an API's row; a volume service's host carries its backend behind an @."""
    return str(row.get("host") or "").partition("@")[0].partition(".")[0]


def touched(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the containers of other nodes that were made or started anew, ``node: container``."""
    return [
        f"{node}: {container}"
        for node, containers in before.items()
        for container, known in containers.items()
        if node in after and list(after[node].get(container) or ()) != list(known)
    ]


def _shorten(names: Sequence[str], most: int = 4) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
