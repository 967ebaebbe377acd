"""From what was read to a judgement: what is wrong, where, and how to go on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cloudctl.engine.definitions import Cluster
from cloudctl.errors import CloudctlError
from cloudctl.status.probes import known_clusters, parse


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        ref: kebab-case identifier.
        message: what is wrong.
        where: the node, or the part of the cloud.
        hint: how to go on.
        warning: worth knowing, but the cloud works.
    """

    ref: str
    message: str
    where: str
    hint: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Expected:
    """What the site wants.

    Attributes:
        containers: by node, the containers that should run, as ``{"name", "service"}``.
        nodes: every node's groups, in the order of the inventory.
        mons: how many Ceph monitors; 0: no Ceph.
        osds: how many OSDs.
        vips: virtual addresses.
        release: OpenStack release.
        schedules: how the units of this cloud's schedules begin; empty: none is looked at.
        joining: nodes whose adding was begun and did not end, with the group that they are to join.
        leaving: nodes whose removal was begun and did not end.
        replacing: controllers whose replacement was begun and did not end.
        clusters: the clustered services; default: those that come with cloudctl.
    """

    containers: Mapping[str, Sequence[Mapping[str, str]]]
    nodes: Mapping[str, Sequence[str]]
    mons: int = 0
    osds: int = 0
    vips: Mapping[str, str] = field(default_factory=dict)
    release: str = ""
    schedules: str = ""
    joining: Mapping[str, str] = field(default_factory=dict)
    leaving: Sequence[str] = ()
    replacing: Sequence[str] = ()
    clusters: Sequence[Cluster] = field(default_factory=known_clusters)

    def nodes_of(self, container: str) -> list[str]:
        """Return the nodes on which a container should run."""
        return [
            node for node, wanted in self.containers.items() if any(c["name"] == container for c in wanted)
        ]


@dataclass
class Status:
    """The judged state; ``sections`` is what the tables show, ready for JSON."""

    problems: list[Problem] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """True when nothing is wrong (warnings do not count)."""
        return not any(not problem.warning for problem in self.problems)

    def add(self, ref: str, message: str, where: str, hint: str = "", *, warning: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(ref, message, where, hint, warning))

    def as_dict(self) -> dict[str, Any]:
        """Return everything for ``--output json``."""
        return {
            "healthy": self.healthy,
            "problems": [asdict(problem) for problem in self.problems],
            **self.sections,
        }


def summarise(
    facts: Mapping[str, Mapping[str, Any]],
    silent: Mapping[str, CloudctlError],
    api: Mapping[str, Any],
    expected: Expected,
) -> Status:
    """Judge the cloud.

    Args:
        facts: by node, what ``cloudctl_status`` returned.
        silent: by node, why it does not answer.
        api: what ``collect_api`` returned.
        expected: what the site wants.
    """
    status = Status()
    answers, unread = _read_probes(facts, expected)
    _nodes(status, facts, silent, expected)
    _containers(status, facts, expected)
    _unread(status, unread)
    for cluster in expected.clusters:
        if judge := _JUDGES.get(cluster.kind):
            judge(status, cluster, answers.get(cluster.name, {}), len(expected.nodes_of(cluster.container)))
    status.sections["clusters"] = [
        {"kind": cluster.kind, "title": cluster.title, "name": cluster.name, "section": _section(cluster)}
        for cluster in expected.clusters
        if cluster.kind in _JUDGES
    ]
    _vips(status, facts, expected)
    _ceph(status, answers, expected)
    _api(status, api, expected)
    _schedules(status, facts, expected)
    _moves(status, expected)
    _versions(status, facts, answers, expected)
    return status


Answers = dict[str, dict[str, dict[str, Any]]]
"""By probe and node, the parsed answer."""


def _read_probes(
    facts: Mapping[str, Mapping[str, Any]], expected: Expected
) -> tuple[Answers, list[tuple[str, str, str]]]:
    answers: Answers = {}
    unread: list[tuple[str, str, str]] = []
    for node, known in facts.items():
        for name, answer in (known.get("probes") or {}).items():
            data, why = parse(name, answer, expected.clusters)
            if data is None:
                unread.append((name, node, why))
            else:
                answers.setdefault(name, {})[node] = data
    return answers, unread


def _nodes(
    status: Status,
    facts: Mapping[str, Mapping[str, Any]],
    silent: Mapping[str, CloudctlError],
    expected: Expected,
) -> None:
    rows = []
    for node, groups in expected.nodes.items():
        known = (facts.get(node) or {}).get("node") or {}
        memory = known.get("memory") or {}
        rows.append(
            {
                "name": node,
                "groups": list(groups),
                "reachable": node in facts,
                "uptime": known.get("uptime"),
                "load": known.get("load"),
                "memory_available": memory.get("available"),
                "memory_total": memory.get("total"),
                "disks": known.get("disks") or {},
            }
        )
        if node in facts:
            for path, disk in (known.get("disks") or {}).items():
                if disk["total"] and disk["free"] / disk["total"] < 0.05:
                    share = 100 * disk["free"] / disk["total"]
                    status.add(
                        "disk-full", f"only {share:.0f} % of {path} is free", node,
                        "remove what is not needed there, or give it more room",
                    )  # fmt: skip
            continue
        error = silent.get(node)
        if error is None:
            status.add(
                "node-unread", "the node was not asked", node, "see the run's log: 'cloudctl runs show --log'"
            )
        else:
            # The cloud does not need a machine that waits to be added.
            status.add(
                error.ref, error.message, node, error.hint or "",
                warning="newnodes" in groups or node in expected.leaving,
            )  # fmt: skip
    status.sections["nodes"] = rows


def _containers(status: Status, facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> None:
    services: dict[str, dict[str, int]] = {}
    rows = []
    for node, wanted in expected.containers.items():
        engine = (facts.get(node) or {}).get("engine") or {}
        if node in facts and engine.get("error") and wanted:
            status.add(
                "engine-down", f"the container engine does not answer: {engine['error']}", node,
                "systemctl status docker, on that node; 'cloudctl deploy' installs and starts it",
            )  # fmt: skip
        found = {c["name"]: c for c in (facts.get(node) or {}).get("containers") or []}
        for container in wanted:
            name, service = container["name"], container["service"]
            count = services.setdefault(service, {"wanted": 0, "running": 0, "healthy": 0})
            count["wanted"] += 1
            state = found.get(name) or {
                "state": "absent" if node in facts else "unknown",
                "health": "",
                "status": "",
            }
            running = state["state"] == "running"
            # A container without a health check is as healthy as it can tell.
            healthy = running and state["health"] in ("healthy", "")
            count["running"] += running
            count["healthy"] += healthy
            rows.append(
                {
                    "node": node,
                    "service": service,
                    "name": name,
                    "state": state["state"],
                    "health": state["health"],
                    "status": state["status"],
                }
            )
            if node in facts and not engine.get("error") and not healthy:
                _container_problem(status, node, name, state)
    status.sections["services"] = services
    status.sections["containers"] = rows


def _container_problem(status: Status, node: str, name: str, state: Mapping[str, str]) -> None:
    if state["state"] == "absent":
        status.add("container-absent", f"{name} does not exist", node, "'cloudctl deploy' makes it")
    elif state["state"] != "running":
        status.add(
            "container-stopped", f"{name} is {state['state']} ({state['status']})", node,
            f"docker logs {name}, on that node; 'cloudctl deploy' starts it",
        )  # fmt: skip
    elif state["health"] == "starting":
        status.add("container-starting", f"{name} is still starting", node, "wait, and look again")
    else:
        status.add(
            "container-unhealthy", f"{name} runs but its health check fails", node,
            f"docker inspect -f '{{{{json .State.Health}}}}' {name}, on that node",
        )  # fmt: skip


def _unread(status: Status, unread: Sequence[tuple[str, str, str]]) -> None:
    for name, node, why in unread:
        status.add("state-unreadable", f"{name.replace('_', ' ')} does not tell its state: {why}", node)


Members = Mapping[str, Mapping[str, Any]]
"""By node, what a member of one cluster told."""


def _section(cluster: Cluster) -> str:
    """Return where a cluster's state is kept: the clusters of one service together."""
    return "galera" if cluster.kind == "galera" else cluster.service


def _galera(status: Status, cluster: Cluster, members: Members, wanted: int) -> None:
    status.sections[_section(cluster)] = {"wanted": wanted, "members": dict(members)}
    if not wanted:
        return
    log = f"see the log of the container {cluster.container} there"
    hint = f"it comes back by itself while a majority runs; {log}"
    for node, member in members.items():
        if not member["primary"] or not member["ready"]:
            status.add(
                "galera-no-majority", "the database is not part of the majority and refuses work", node, hint
            )
        elif member["state"] != "Synced":
            status.add("galera-not-synced", f"the database is '{member['state']}', not Synced", node, hint)
    size = max((member["size"] for member in members.values() if member["primary"]), default=0)
    if size < wanted:
        status.add(
            "galera-incomplete", f"the database cluster has {size} of {wanted} members", cluster.name, hint
        )


def _erlang(status: Status, cluster: Cluster, members: Members, wanted: int) -> None:
    status.sections[_section(cluster)] = {"wanted": wanted, "members": dict(members)}
    if not wanted:
        return
    log = f"see the log of the container {cluster.container}"
    running = max((len(member["running"]) for member in members.values()), default=0)
    if running < wanted:
        status.add(
            f"{cluster.service}-incomplete", f"the message bus has {running} of {wanted} members",
            cluster.name, f"{log} on the missing one",
        )  # fmt: skip
    seen: set[tuple[str, str]] = set()
    for node, member in members.items():
        for kind, texts in (("partition", member["partitions"]), ("alarm", member["alarms"])):
            for text in texts:
                if (kind, text) not in seen:
                    seen.add((kind, text))
                    status.add(f"{cluster.service}-{kind}", f"the message bus: {text}", node, log)


def _ovsdb(status: Status, cluster: Cluster, members: Members, wanted: int) -> None:
    leaders = [node for node, member in members.items() if member["role"] == "leader"]
    status.sections.setdefault(_section(cluster), {})[cluster.name] = {
        "wanted": wanted,
        "leader": leaders[0] if leaders else None,
        "members": dict(members),
    }
    if not wanted:
        return
    joined = sum(member["status"] == "cluster member" for member in members.values())
    if joined < wanted:
        status.add(
            f"{cluster.service}-incomplete", f"{cluster.title}: {joined} of {wanted} members", cluster.name,
            f"see the log of the container {cluster.container} on the missing one",
        )  # fmt: skip
    if not leaders and members:
        status.add(
            f"{cluster.service}-no-leader", f"{cluster.title} has no leader", cluster.name,
            "a majority of the controllers must run",
        )  # fmt: skip
    for node, member in members.items():
        if member["servers"] > wanted:
            status.add(
                f"{cluster.service}-stale-member",
                f"{cluster.title} has {member['servers']} members, {wanted} are wanted", node,
                f"remove the stale one: {cluster.command[0]} cluster/kick",
            )  # fmt: skip
            break


_JUDGES: Mapping[str, Callable[[Status, Cluster, Members, int], None]] = {
    "galera": _galera,
    "erlang": _erlang,
    "ovsdb": _ovsdb,
}
"""By kind of cluster."""


def _vips(status: Status, facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> None:
    section: dict[str, Any] = {}
    keepers = [cluster.container for cluster in expected.clusters if cluster.kind == "vip"]
    for name, address in expected.vips.items():
        holders = [
            node
            for node, known in facts.items()
            if any(entry["address"] == address for entry in known.get("addresses") or [])
        ]
        section[name] = {"address": address, "holders": holders}
        if not holders:
            status.add(
                "vip-without-holder", f"no node holds the {name} virtual address {address}", f"vip {name}",
                f"see the log of the container {' or '.join(keepers) or 'that holds it'} on the controllers",
            )  # fmt: skip
        elif len(holders) > 1:
            status.add(
                "vip-held-twice", f"{', '.join(holders)} all hold the {name} virtual address {address}",
                f"vip {name}", "the controllers do not hear each other's VRRP: check the management network",
            )  # fmt: skip
    status.sections["vip"] = section


# What Ceph complains about although it works as configured.
_CEPH_WARNINGS = {
    "AUTH_INSECURE_GLOBAL_ID_RECLAIM",
    "AUTH_INSECURE_GLOBAL_ID_RECLAIM_ALLOWED",
    "BLOCK_DEVICE_STALLED_READ_ALERT",
    "BLUEFS_SPILLOVER",
    "BLUESTORE_SLOW_OP_ALERT",
    "DB_DEVICE_STALLED_READ_ALERT",
    "LARGE_OMAP_OBJECTS",
    "MON_DISK_LOW",
    "OSDMAP_FLAGS",
    "OSD_SLOW_PING_TIME_BACK",
    "OSD_SLOW_PING_TIME_FRONT",
    "PG_NOT_DEEP_SCRUBBED",
    "PG_NOT_SCRUBBED",
    "POOL_APP_NOT_ENABLED",
    "POOL_NO_REDUNDANCY",
    "POOL_TOO_FEW_PGS",
    "POOL_TOO_MANY_PGS",
    "RECENT_CRASH",
    "RECENT_MGR_MODULE_CRASH",
    "TELEMETRY_CHANGED",
    "TOO_FEW_PGS",
}


def _ceph(status: Status, answers: Answers, expected: Expected) -> None:
    members = answers.get("ceph", {})
    if not expected.mons and not members:
        status.sections["ceph"] = None
        return
    if not members:
        status.sections["ceph"] = {"health": "unknown"}
        status.add(
            "ceph-silent", "no Ceph monitor tells the cluster's state", "ceph",
            "check the monitors' containers on the mon nodes; a majority of them must run",
        )  # fmt: skip
        return
    # All of a quorum tell the same; one without quorum would not have answered.
    state = next(iter(members.values()))
    status.sections["ceph"] = {**state, "mons_wanted": expected.mons, "osds_wanted": expected.osds}
    if len(state["quorum"]) < expected.mons:
        status.add(
            "ceph-mons-missing", f"{len(state['quorum'])} of {expected.mons} monitors are in quorum", "ceph",
            "check the monitors' containers on the mon nodes",
        )  # fmt: skip
    osds = max(expected.osds, state["osds"])
    if state["osds_up"] < osds:
        status.add(
            "ceph-osds-down", f"{state['osds_up']} of {osds} OSDs are up", "ceph",
            "'ceph osd tree' in 'cephadm shell' names them; see their containers' logs",
        )  # fmt: skip
    for check, message in state["checks"].items():
        status.add(
            "ceph-" + check.lower().replace("_", "-"), f"Ceph: {message}", "ceph",
            "'ceph health detail' in 'cephadm shell' on a mon node", warning=check in _CEPH_WARNINGS,
        )  # fmt: skip
    if state["health"] == "HEALTH_ERR" and not state["checks"]:
        status.add("ceph-error", "Ceph reports HEALTH_ERR", "ceph")


_API_NAMES = {
    "identity": "the identity API",
    "compute": "the compute API",
    "hypervisors": "the compute API",
    "network": "the network API",
    "volume": "the volume API",
}


def _api(status: Status, api: Mapping[str, Any], expected: Expected) -> None:
    for name in ("compute", "hypervisors", "network", "volume"):
        rows = api.get(name)
        status.sections[name] = rows
        for row in rows or []:
            where = str(row.get("host") or row["name"])
            if not row["enabled"]:
                # Disabled on purpose, for example for maintenance; then it may be down too.
                status.add("service-disabled", f"{row['name']} is disabled", where, warning=True)
            elif not row["up"]:
                status.add(
                    "service-down", f"{row['name']} does not report ({name})", where,
                    "see its container's log on that node",
                    warning=where in expected.joining or where in expected.leaving,
                )  # fmt: skip
    shown: set[tuple[str, str]] = set()
    for name, why in (api.get("errors") or {}).items():
        if (_API_NAMES[name], why) in shown:
            continue
        shown.add((_API_NAMES[name], why))
        status.add(
            "api-silent", f"{_API_NAMES[name]} does not answer: {why}", f"api {name}",
            "see the containers above, and who holds the virtual address",
        )  # fmt: skip
    status.sections["api_errors"] = dict(api.get("errors") or {})


def _schedules(status: Status, facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> None:
    section: dict[str, Any] = {}
    for node, known in facts.items():
        for unit, run in (known.get("schedules") or {}).items():
            if not expected.schedules or not unit.startswith(expected.schedules):
                continue
            name = unit[len(expected.schedules) :]
            section[name] = {"node": node, **run}
            if run.get("result") not in ("", "success"):
                ended = datetime.fromtimestamp(float(run.get("ended") or 0), UTC)
                how = f"failed at {ended.isoformat(timespec='seconds')} ({run.get('result')}, "
                how += f"exit code {run.get('status')})"
                if run.get("result") == "interrupted":
                    how = (
                        f"began at {ended.isoformat(timespec='seconds')} and did not end: the node went down"
                    )
                status.add(
                    "scheduled-run-failed",
                    f"the last scheduled {name} {how}",
                    node, f"cloudctl runs list, or journalctl -u {unit} on that node; it ends with a success",
                    warning=True,
                )  # fmt: skip
    status.sections["schedules"] = section


def _moves(status: Status, expected: Expected) -> None:
    status.sections["joining"] = dict(expected.joining)
    status.sections["leaving"] = list(expected.leaving)
    for node, role in expected.joining.items():
        status.add(
            "node-add-unfinished", f"{node} was to join {role}, and that did not end", node,
            f"cloudctl node add {node} goes on; the rest of the cloud is as before", warning=True,
        )  # fmt: skip
    for node in expected.leaving:
        status.add(
            "node-remove-unfinished", f"{node} was to be removed, and that did not end", node,
            f"cloudctl node remove {node} goes on", warning=True,
        )  # fmt: skip
    status.sections["replacing"] = list(expected.replacing)
    for node in expected.replacing:
        status.add(
            "node-replace-unfinished", f"a new machine was to become {node}, and that did not end", node,
            f"cloudctl node replace {node} goes on", warning=True,
        )  # fmt: skip


def _versions(
    status: Status, facts: Mapping[str, Mapping[str, Any]], answers: Answers, expected: Expected
) -> None:
    def values(pick: Any) -> list[str]:
        return sorted({str(value) for known in facts.values() if (value := pick(known))})

    status.sections["versions"] = {
        "openstack": expected.release,
        "ceph": sorted({answer["version"] for answer in answers.get("ceph_version", {}).values()}),
        "engine": values(lambda known: (known.get("engine") or {}).get("version")),
        "kernel": values(lambda known: (known.get("node") or {}).get("kernel")),
        "system": values(lambda known: (known.get("node") or {}).get("system")),
    }
