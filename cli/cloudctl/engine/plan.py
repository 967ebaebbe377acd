"""The plan: what a deploy would change, where, and why. Pure: from observations to decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudctl.engine.definitions import PHASES

Spec = dict[str, Any]
Observations = Mapping[str, Mapping[str, Any]]

_KINDS = ("packages", "files", "units", "network", "containers", "jobs", "cluster")
"""What a node's changes are counted as."""


def due_jobs(specs: Mapping[str, Spec], observed: Observations) -> dict[str, list[Spec]]:
    """Return, by node, the one-shot jobs that have to run.

    A job that runs on one node is due when no node that could run it has done so with the present
    inputs; a ``once`` job when none has ever done it.
    """
    hosts: dict[str, list[str]] = {}
    for node, spec in specs.items():
        for job in spec["jobs"]:
            hosts.setdefault(job["id"], []).append(node)
    due: dict[str, list[Spec]] = {node: [] for node in specs}
    for node in specs:
        for job in observed[node]["jobs"]:
            if job["everywhere"]:
                due[node].append(job)
                continue
            if node != job["first"]:
                continue
            stale = {other for other in specs if any(j["id"] == job["id"] for j in observed[other]["jobs"])}
            if set(hosts[job["id"]]) - stale:
                continue
            if job["once"] and any(job["id"] in observed[other]["markers"] for other in hosts[job["id"]]):
                continue
            due[node].append(job)
    return due


def due_sections(spec: Spec, observed: Mapping[str, Any]) -> list[Spec]:
    """Return the cluster-wide changes that one node has to make."""
    containers = {section["name"]: section["container"] for section in spec.get("sections") or ()}
    found: list[Spec] = [
        {**change, "container": containers.get(change["section"], "")} for change in observed["sections"]
    ]
    return [change for change in found if change.get("action") != "report"]


def _serving(change: Spec, spec: Spec) -> Spec:
    """Return a container's change with what it does for other services, where it does anything."""
    serves = (spec.get("containers") or {}).get(change["name"], {}).get("serves")
    return {**change, "serves": list(serves)} if serves else change


def build(
    specs: Mapping[str, Spec], observed: Observations, ceph: Sequence[Spec] = (), leader: str = ""
) -> Spec:
    """Return the plan.

    Args:
        specs: the rendered nodes.
        observed: what each of them reported.
        ceph: what the Ceph cluster lacks.
        leader: the node that works on it.

    Returns:
        ``nodes`` (by node: packages, files, units, network, containers, jobs, cluster), ``ceph``, ``totals``,
        ``changes`` (whether there is anything to do) and ``scope``: which node does what in which step.
    """
    jobs = due_jobs(specs, observed)
    nodes: dict[str, Spec] = {}
    scope: list[Spec] = []
    for node, spec in specs.items():
        found = observed[node]
        cluster = due_sections(spec, found)
        network = found.get("network") or {}
        changes = {
            "packages": [*found["packages"], *network.get("packages", ())],
            "files": [*found["files"], *network.get("files", ())],
            "units": list(found["units"]),
            "network": network_changes(network),
            "containers": [_serving(change, spec) for change in found["containers"]],
            "jobs": jobs[node],
            "cluster": cluster,
        }
        if any(changes.values()):
            nodes[node] = changes
            scope.append({"name": node, "todo": steps(changes)})
    if ceph:
        entry = next((item for item in scope if item["name"] == leader), None)
        if entry is None:
            scope.append(entry := {"name": leader, "todo": {}})
        entry["todo"]["ceph"] = ["all"]
    for host, paths in due_devices(ceph).items():
        entry = next((item for item in scope if item["name"] == host), None)
        if entry is None:
            scope.append(entry := {"name": host, "todo": {}})
        entry["todo"]["devices"] = paths
    totals = {
        "nodes": len(nodes),
        **{kind: sum(len(changes[kind]) for changes in nodes.values()) for kind in _KINDS},
        "ceph": len(ceph),
    }
    return {
        "nodes": nodes,
        "ceph": [dict(change) for change in ceph],
        "totals": totals,
        "scope": scope,
        "changes": bool(nodes) or bool(ceph),
        "unhealthy": {
            node: list(found["unhealthy"]) for node, found in observed.items() if found["unhealthy"]
        },
    }


def due_devices(ceph: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return by node the devices on which OSDs are to be made."""
    due: dict[str, list[str]] = {}
    for change in ceph:
        if change["kind"] == "osd" and change["action"] == "create":
            host, _colon, path = str(change["name"]).partition(":")
            due.setdefault(host, []).append(path)
    return due


def steps(changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the steps that one node takes part in: step to the names it works on (``all`` for files)."""
    todo: dict[str, list[str]] = {}
    network = changes.get("network") or []
    own = {name for change in network for name in change["packages"]}
    others = [change for change in changes["files"] if change["area"] != "network"]
    if set(changes["packages"]) - own or others or changes["units"]:
        todo["files"] = ["all"]
    if network:
        # What was never configured has nothing to lose: all such nodes at once, the others one by one.
        todo["network" if network[0]["from"] else "network_first"] = ["all"]
    for change in changes["containers"]:
        phase = change["phase"] or PHASES[-1]
        step = "roll" if change["action"] in ("recreate", "reload") else "create"
        todo.setdefault(f"{phase}_{step}", []).append(change["name"])
    for job in changes["jobs"]:
        todo.setdefault(f"{job['phase']}_{job['at']}", []).append(job["id"])
    for change in changes["cluster"]:
        names = todo.setdefault(f"{change['after']}_sections", [])
        if change["section"] not in names:
            names.append(change["section"])
    return todo


def network_changes(found: Mapping[str, Any]) -> list[Spec]:
    """Return what happens to a node's network: nothing, or one entry (its files are among the files)."""
    if not any(found.get(key) for key in ("pending", "packages", "files", "daemons", "renames")):
        return []
    return [{key: found[key] for key in ("backend", "from", "pending", "packages", "daemons", "renames")}]


def _network_lines(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for change in changes:
        before, after = change["from"], change["backend"]
        lines.append(f"  network: {after}" if before in (None, after) else f"  network: {before} -> {after}")
        if change["pending"]:
            lines.append(
                "    confirm the change of a run that was interrupted, before the node takes it back"
            )
        lines += [f"    {action} {unit}" for action, unit in change["daemons"]]
        lines += [f"    rename port {old} to {new}" for old, new in change["renames"]]
    return lines


def select(
    plan: Spec,
    *,
    nodes: Sequence[str] = (),
    services: Sequence[str] = (),
    needs: Mapping[str, Sequence[str]] | None = None,
) -> Spec:
    """Return the plan limited to some nodes or services (an empty selection means all).

    A service takes along what it needs of others: its databases, accounts and registrations, its pools and
    keys in Ceph, and, when it is new, that those who serve it (a load balancer its frontends, a broker its
    messaging user) read their files again. Nothing of another service is made anew.

    Args:
        needs: by service, what it needs: as containers say that they serve it, and ``kind name`` of Ceph's.
    """
    if not nodes and not services:
        return plan
    wanted = {need for service in services for need in (needs or {}).get(service, ())}
    served = wanted if _arrives(plan, services) else set()
    ceph, notes = _ceph_for(plan, wanted, nodes, services)
    kept: dict[str, Spec] = {}
    scope: list[Spec] = []
    for node, changes in plan["nodes"].items():
        if nodes and node not in nodes:
            continue
        if services:
            cluster = [
                change for change in changes["cluster"] if set(change.get("for") or ()) & set(services)
            ]
            serving = [
                change for change in changes["containers"]
                if change["service"] not in services and set(change.get("serves", ())) & served
            ]  # fmt: skip
            containers = [
                change for change in changes["containers"]
                if change["service"] in services or (change in serving and change["action"] == "reload")
            ]  # fmt: skip
            notes += [
                f"{change['name']} on {node}, which serves {', '.join(services)}, is left as it is: more is "
                f"due than to read its files again ({change['action']}); deploy {change['service']} too"
                for change in serving
                if change["action"] != "reload"
            ]
            # What reconciles cluster-wide state reads its files when it works.
            names = {change["name"] for change in containers} | {change["container"] for change in cluster}
            changes = {
                **changes,
                "packages": [],
                "units": [],
                "network": [],
                # The compose file describes the node's containers: without it none could be brought up.
                "files": [
                    change for change in changes["files"]
                    if change["area"] == "compose" or change.get("container") in names
                ],
                "containers": containers,
                "jobs": [job for job in changes["jobs"] if job["service"] in services],
                "cluster": cluster,
            }  # fmt: skip
        if any(changes.values()):
            kept[node] = changes
            todo = steps(changes)
            if services and changes["files"]:
                todo["files"] = [change["path"] for change in changes["files"]]
            if services:
                for step in [step for step in todo if step.endswith("_sections")]:
                    todo[step] = [f"{name}:{','.join(services)}" for name in todo[step]]
            scope.append({"name": node, "todo": todo})
    if ceph:
        _add_ceph(scope, plan)
    totals = {kind: sum(len(changes[kind]) for changes in kept.values()) for kind in _KINDS}
    return {
        **plan,
        "nodes": kept,
        "ceph": ceph,
        "scope": scope,
        "totals": {"nodes": len(kept), **totals, "ceph": len(ceph)},
        "changes": bool(kept) or bool(ceph),
        "notes": notes,
    }


def _arrives(plan: Spec, services: Sequence[str]) -> bool:
    """Whether one of these services is new: a container or something cluster-wide of it is not there yet."""
    return any(
        any(c["action"] == "create" and c["service"] in services for c in changes["containers"])
        or any(set(c.get("for") or ()) & set(services) for c in changes["cluster"])
        for changes in plan["nodes"].values()
    )


def _ceph_for(
    plan: Spec, wanted: set[str], nodes: Sequence[str], services: Sequence[str]
) -> tuple[list[Spec], list[str]]:
    """Return what Ceph lacks of what is wanted, and notes on what cannot be done by itself."""
    own = [change for change in plan["ceph"] if f"{change['kind']} {change['name']}" in wanted]
    if not own or nodes:
        return [], []
    if len(own) < len(plan["ceph"]):
        lacking = ", ".join(f"{change['kind']} {change['name']}" for change in own)
        return [], [
            f"Ceph lacks {lacking}, which {', '.join(services)} needs, and more than that: "
            "deploy without --service first"
        ]
    return [dict(change) for change in own], []


def _add_ceph(scope: list[Spec], plan: Spec) -> None:
    """Let the node that works on Ceph do so."""
    leader = next(item["name"] for item in plan["scope"] if "ceph" in item["todo"])
    entry = next((item for item in scope if item["name"] == leader), None)
    if entry is None:
        scope.append(entry := {"name": leader, "todo": {}})
    entry["todo"]["ceph"] = ["all"]


def same(plan: Spec, other: Spec) -> bool:
    """Whether two plans would change the same."""
    return all(plan[key] == other[key] for key in ("nodes", "ceph"))


def surprises(plan: Spec, changed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a deploy did otherwise than planned, because the node had changed in between.

    Every step compares again what it is about to change, so that nothing is done twice or blindly.

    Args:
        changed: what was done: ``node``, ``kind`` and ``name`` of files and containers (others are left out).

    Returns:
        One line for each node.
    """
    done: dict[str, set[tuple[str, str]]] = {}
    for entry in changed:
        if entry.get("kind") in ("file", "container"):
            done.setdefault(str(entry["node"]), set()).add((str(entry["kind"]), str(entry["name"])))
    lines = []
    for node in sorted({*plan["nodes"], *done}):
        changes = plan["nodes"].get(node) or {"files": [], "containers": []}
        wanted = {("file", str(change["path"])) for change in changes["files"]}
        wanted |= {("container", str(change["name"])) for change in changes["containers"]}
        had = done.get(node, set())
        parts = []
        for title, items in (("right already", wanted - had), ("changed as well", had - wanted)):
            if items:
                parts.append(f"{title}: {_shorten([' '.join(item) for item in sorted(items)])}")
        if parts:
            lines.append(f"{node} was not as planned when its turn came; {'; '.join(parts)}")
    return lines


def describe(plan: Spec, *, diff: bool = True) -> list[str]:
    """Return the plan as lines that a person reads."""
    lines: list[str] = []
    for node, changes in plan["nodes"].items():
        lines.append(f"{node}:")
        if changes["packages"]:
            lines.append(f"  install packages: {', '.join(changes['packages'])}")
        lines += _network_lines(changes.get("network") or [])
        created = [
            change["path"] for change in changes["files"]
            if change["action"] == "create" and not change.get("diff")
        ]  # fmt: skip
        if created:
            lines.append(f"  write {len(created)} new files: {_shorten(created)}")
        for change in changes["files"]:
            if change["action"] != "create" or change.get("diff"):
                lines.append(f"  {change['action']} file {change['path']}")
                if diff and change["area"] != "compose":  # its labels repeat what the containers' reasons say
                    lines += [f"      {line}" for line in change.get("diff", [])]
        for change in changes["units"]:
            lines.append(f"  {change['action']} unit {change['name']} ({change['from']})")
        for change in changes["containers"]:
            lines.append(f"  {change['action']} container {change['name']}: {reasons(change['reasons'])}")
        for job in changes["jobs"]:
            lines.append(f"  run job {job['service']}/{job['name']}: {reasons(job['reasons'])}")
        for change in changes["cluster"]:
            why = f": {change['reason']}" if change.get("reason") else ""
            lines.append(f"  {change['action']} {change['kind']} {change['name']}{why}")
    if plan["ceph"]:
        lines.append("ceph:")
        for change in plan["ceph"]:
            why = f": {change['reason']}" if change.get("reason") else ""
            lines.append(f"  {change['action']} {change['kind']} {change['name']}{why}")
    return [*lines, *(f"note: {note}" for note in plan.get("notes") or ())]


def summary(plan: Spec) -> str:
    """Return one line: how much of what would change."""
    if not plan["changes"]:
        return "nothing to change"
    names = {
        "packages": "packages", "files": "files", "units": "units", "network": "networks",
        "containers": "containers",
        "jobs": "jobs", "cluster": "cluster entries", "ceph": "Ceph changes",
    }  # fmt: skip
    parts = [f"{plan['totals'][key]} {label}" for key, label in names.items() if plan["totals"].get(key)]
    return f"{plan['totals']['nodes']} nodes: {', '.join(parts)}"


def reasons(items: Sequence[Mapping[str, Any]]) -> str:
    """Return the reasons of one change: attribute, from, to."""
    if len(items) == 1 and items[0]["from"] is None:
        return "not there yet"
    return "; ".join(f"{item['attribute']} {_value(item['from'])} -> {_value(item['to'])}" for item in items)


def _value(value: object) -> str:
    return "none" if value is None else str(value)


def _shorten(paths: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(paths[:most])
    return shown if len(paths) <= most else f"{shown}, … {len(paths) - most} more"
