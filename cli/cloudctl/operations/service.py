"""Stopping, starting and restarting a service or a single container: what, where, in which order.

Deciding is pure; ``run`` works on nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cloudctl.engine.definitions import Service
from cloudctl.errors import ApplyFailed, CheckFailed, UsageError, VerifyFailed
from cloudctl.operations import clusters, containers
from cloudctl.operations.containers import Tier
from cloudctl.site.model import Site
from cloudctl.status.summary import Expected

STOP, START, RESTART = "stop", "start", "restart"
ALL = "all"
"""Stands for every container."""
SETTLE = 6.0
"""Seconds in which the load balancer notices that a copy is back: its checks, and a little more."""
WHOLE_TIMEOUT = 180.0
"""Seconds in which a cluster has to be whole after one of its members was started."""
AT_RISK = (
    "bring that member back first: cloudctl status tells what is wrong,"
    " cloudctl service restart NAME --node NODE restarts it alone"
)
"""How to go on where a restart would take the majority away."""
Facts = Mapping[str, Mapping[str, Any]]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """Containers on some nodes that are worked on at the same time: one step.

    Attributes:
        action: stop, start or restart.
        containers: by node.
        hand_over: the virtual addresses of the node, which another one gets first (``containers.restart``).
    """

    action: str
    containers: dict[str, list[str]]
    hand_over: dict[str, Any] = field(default_factory=dict)

    def commands(self) -> list[str]:
        """Return what is done in the words of the engine's command line."""
        first = [f"give up {', '.join(self.hand_over['addresses'])}"] if self.hand_over else []
        return first + [
            f"docker {self.action} {' '.join(names)}"
            for names in sorted({tuple(n) for n in self.containers.values()})
        ]


@dataclass
class Work:
    """What is to be done.

    Attributes:
        action: stop, start or restart.
        names: all containers that were chosen.
        batches: in order.
        losses: what will not work afterwards (or meanwhile), for the operator to read before.
        serious: a service is gone, or a cluster without a majority.
        notes: worth knowing.
    """

    action: str
    names: list[str]
    batches: list[Batch] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    serious: bool = False
    notes: list[str] = field(default_factory=list)

    def nodes(self) -> list[str]:
        """Return every node that is worked on, once."""
        return list(dict.fromkeys(node for batch in self.batches for node in batch.containers))


def choose(name: str, services: Sequence[Service], tiers: Sequence[Tier], nodes: Sequence[str]) -> list[Tier]:
    """Return the tiers with nothing but a service's containers (or one container), on some nodes. Pure.

    Args:
        name: of a service, else of a container; or ``ALL``.
        services: those of the site.
        tiers: of the site, in the order in which they start.
        nodes: only on these; empty: on all.

    Raises:
        UsageError: there is no such service or container, with a suggestion; or it does not run there.
    """
    by_service = {service.name: {c.name for c in service.containers} for service in services}
    present = {c for tier in tiers for names in tier.containers.values() for c in names}
    wanted = present if name == ALL else by_service.get(name) or ({name} if name in present else None)
    if wanted is None:
        close = get_close_matches(name, [*by_service, *sorted(present)], 1)
        hint = f"did you mean {close[0]!r}?" if close else f"services: {', '.join(sorted(by_service))}"
        raise UsageError("service-unknown", f"there is no service or container {name!r}", hint=hint)
    chosen = []
    for tier in tiers:
        kept = {
            node: [c for c in names if c in wanted]
            for node, names in tier.containers.items()
            if (not nodes or node in nodes) and wanted & set(names)
        }
        if kept:
            chosen.append(Tier(tier.name, tier.phase, tier.services, kept))
    if not chosen:
        has = sorted(
            {node for tier in tiers for node, names in tier.containers.items() if wanted & set(names)}
        )
        where = (
            f"{name} runs on {', '.join(has)}" if has else f"{name} has no container on any node of this site"
        )
        raise UsageError(
            "service-not-there", f"{name} has no container on {', '.join(nodes) or 'any node'}", hint=where
        )
    return chosen


def plan(
    action: str,
    chosen: Sequence[Tier],
    facts: Facts,
    expected: Expected,
    services: Sequence[Service],
    *,
    controllers: Iterable[str],
    vips: Iterable[str] = (),
    first: str | None = None,
) -> Work:
    """Decide what is done in which order, and what it costs. Pure.

    Args:
        action: stop, start or restart.
        chosen: see ``choose``.
        facts: what the nodes report (``cloudctl.status.collect``).
        expected: what the site wants.
        services: those of the site.
        controllers: their nodes, which are worked on one at a time.
        vips: virtual addresses: the node that holds one is restarted last, so that it moves once.
        first: the node whose member of an ordered cluster starts first.
    """
    names = list(dict.fromkeys(c for tier in chosen for held in tier.containers.values() for c in held))
    work = Work(action, names)
    if action == STOP:
        for tier in reversed(chosen):
            work.batches += _stop_batches(tier, facts)
        _losses(work, facts, expected, services)
    elif action == START:
        for tier in chosen:
            work.batches += _start_batches(tier, facts, first)
    else:
        vips = list(vips)
        holders = holders_of(vips, facts)
        for tier in chosen:
            work.batches += _restart_batches(tier, facts, set(controllers), holders)
        work.batches = [_giving_up(batch, holders, vips, facts, services) for batch in work.batches]
        _gaps(work, facts, expected)
    return work


def _running(facts: Facts, node: str) -> set[str]:
    items = (facts.get(node) or {}).get("containers") or []
    return {item["name"] for item in items if item["state"] in ("running", "restarting", "paused")}


def _present(facts: Facts, node: str, name: str) -> bool:
    return any(item["name"] == name for item in (facts.get(node) or {}).get("containers") or [])


def _healthy(facts: Facts, node: str, name: str) -> bool:
    return node in clusters.members_up(name, facts)


def _stop_batches(tier: Tier, facts: Facts) -> list[Batch]:
    todo = {node: [c for c in names if c in _running(facts, node)] for node, names in tier.containers.items()}
    todo = {node: names for node, names in todo.items() if names}
    if not todo:
        return []
    if any(_ordered(c) for names in todo.values() for c in names):
        # One at a time, the first node last: it is clear whose data is the newest.
        return [Batch(STOP, {node: todo[node]}) for node in reversed(todo)]
    return [Batch(STOP, todo)]


def _start_batches(tier: Tier, facts: Facts, first: str | None) -> list[Batch]:
    todo = {
        node: [c for c in names if not _healthy(facts, node, c)] for node, names in tier.containers.items()
    }
    todo = {node: names for node, names in todo.items() if names}
    if not todo:
        return []
    if any(_ordered(c) for names in todo.values() for c in names):
        return [Batch(START, {node: todo[node]}) for node in sorted(todo, key=lambda node: node != first)]
    return [Batch(START, todo)]


def _restart_batches(tier: Tier, facts: Facts, controllers: set[str], holders: set[str]) -> list[Batch]:
    def place(node: str) -> tuple[bool, bool]:
        # What does not work loses nothing; the holder of an address comes last.
        well = all(node in clusters.members_well(c, facts) for c in tier.containers[node])
        return well, node in holders

    nodes = sorted(tier.containers, key=place)
    here = [node for node in nodes if node in controllers]
    others = [node for node in nodes if node not in controllers]
    size = max(1, len(others) // 10)
    parts = [[node] for node in here] + [others[i : i + size] for i in range(0, len(others), size)]
    return [Batch(RESTART, {node: list(tier.containers[node]) for node in part}) for part in parts]


def _giving_up(
    batch: Batch, holders: set[str], vips: Iterable[str], facts: Facts, services: Sequence[Service]
) -> Batch:
    """Return the step of a node that holds the virtual addresses with how it gives them up to another."""
    names = {name for held in batch.containers.values() for name in held}
    if not holders & set(batch.containers) or not names & {clusters.BALANCER, clusters.HOLDER}:
        return batch
    able = clusters.members_up(clusters.BALANCER, facts) & clusters.members_up(clusters.HOLDER, facts)
    if not able - set(batch.containers):
        return batch
    ports = {
        int(front[key])
        for service in services
        for front in service.frontends
        if front.get("mode", "http") == "http"
        for key in ("port", "public_port")
        if key in front
    }
    over = {"holder": clusters.HOLDER, "addresses": sorted(vips), "ports": sorted(ports)}
    return Batch(batch.action, batch.containers, over)


def _ordered(name: str) -> bool:
    cluster = clusters.BY_CONTAINER.get(name)
    return cluster is not None and cluster.ordered


def holders_of(vips: Iterable[str], facts: Facts) -> set[str]:
    """Return the nodes that hold a virtual address. Pure."""
    wanted = set(vips)
    return {
        node for node, known in facts.items()
        if wanted & {entry["address"] for entry in known.get("addresses") or []}
    }  # fmt: skip


def _stopped_by(work: Work) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for batch in work.batches:
        for node, names in batch.containers.items():
            for name in names:
                found.setdefault(name, set()).add(node)
    return found


def _losses(work: Work, facts: Facts, expected: Expected, services: Sequence[Service]) -> None:
    service_of = {c.name: service for service in services for c in service.containers}
    groups = {c.name: c.groups for service in services for c in service.containers}
    for name, nodes in _stopped_by(work).items():
        wanted = expected.nodes_of(name)
        left = [node for node in wanted if node not in nodes and name in _running(facts, node)]
        service = service_of[name]
        fronts = [front["name"] for front in service.frontends if front.get("container") == name]
        cluster = clusters.BY_CONTAINER.get(name)
        if cluster is not None and len(wanted) > 1:
            _cluster_loss(work, cluster, name, left, len(wanted), services)
        elif "control" not in groups[name]:
            work.losses.append(
                f"{name} on {', '.join(sorted(nodes))}: nothing else does its work for these nodes"
            )
            work.serious = True
        elif not left:
            what = f"{', '.join(fronts)} answers no more" if fronts else "no copy is left"
            copy = "the only copy" if len(wanted) == 1 else f"all {len(wanted)} copies"
            using = clusters.users(cluster, services) if cluster else []
            needed = f"; {', '.join(using)} need it" if using else ""
            work.losses.append(f"{name}, {copy}: {what} ({service.description}){needed}")
            work.serious = True
        else:
            work.losses.append(f"{name}: {len(left)} of {len(wanted)} copies are left, on {', '.join(left)}")


def _cluster_loss(
    work: Work,
    cluster: clusters.Cluster,
    name: str,
    left: Sequence[str],
    wanted: int,
    services: Sequence[Service],
) -> None:
    majority = wanted // 2 + 1
    using = clusters.users(cluster, services)
    needed = f"; {', '.join(using)} need it" if using else ""
    if len(left) >= majority:
        spare = len(left) - majority
        more = f"{spare} more may fail" if spare else "no other may fail"
        work.losses.append(f"{name}: {cluster.title} goes on with {len(left)} of {wanted} members; {more}")
        return
    work.serious = True
    kept = f"{len(left)} of {wanted} members are left, no majority" if left else "no member is left"
    work.losses.append(f"{name}: {cluster.title} stops ({kept}): {cluster.lost}{needed}")


def _gaps(work: Work, facts: Facts, expected: Expected) -> None:
    for name in work.names:
        wanted = expected.nodes_of(name)
        if len(wanted) == 1 and name in _running(facts, wanted[0]):
            work.losses.append(f"{name}: its only copy is away while it is restarted")
    for batch in work.batches:
        for name in refused(batch, facts, expected):
            away = clusters.members_ill(name, facts, expected)
            work.losses.append(
                f"{name}: no majority is left while {', '.join(batch.containers)} restarts,"
                f" because {', '.join(away)} does not work in {clusters.BY_CONTAINER[name].title} now"
            )
            work.serious = True


def refused(batch: Batch, facts: Facts, expected: Expected) -> list[str]:
    """Return the members whose restart would take the majority away from a cluster that has one. Pure."""
    found = []
    for name in dict.fromkeys(c for names in batch.containers.values() for c in names):
        if name not in clusters.BY_CONTAINER:
            continue
        wanted = expected.nodes_of(name)
        up = clusters.members_well(name, facts)
        majority = len(wanted) // 2 + 1
        left = up - {node for node, names in batch.containers.items() if name in names}
        if len(wanted) > 2 and len(up) >= majority > len(left):
            found.append(name)
    return found


def missing(work: Work, facts: Facts) -> list[tuple[str, str]]:
    """Return node and name of the containers that are to run and do not exist. Pure."""
    return [
        (node, name)
        for batch in work.batches
        if batch.action != STOP
        for node, names in batch.containers.items()
        for name in names
        if node in facts and not _present(facts, node, name)
    ]


# -- doing it ----------------------------------------------------------------------------------


def first_member(site: Site, chosen: Sequence[Tier], facts: Facts, expected: Expected) -> str | None:
    """Return the node whose member of an ordered cluster has to start first; None where it does not matter.

    Raises:
        CheckFailed: no member runs, and none says that it was the last one to stop.
    """
    names = {c for tier in chosen for held in tier.containers.values() for c in held if _ordered(c)}
    for name in names:
        wanted = expected.nodes_of(name)
        if len(wanted) < 2 or any(name in _running(facts, node) for node in wanted):
            continue
        from cloudctl.galera import read_members

        members = read_members(site)
        last = [node for node, member in members.items() if member.safe_to_bootstrap]
        if len(last) != 1:
            who = f"each of {', '.join(last)} says that it" if last else "none says that it"
            raise CheckFailed(
                "galera-not-clean",
                f"no member of the database cluster runs, and {who} was the last one to stop",
                hint="cloudctl galera recover finds the newest data and starts the cluster from it",
            )  # fmt: skip
        if last[0] not in {node for tier in chosen for node in tier.containers}:
            raise CheckFailed(
                "galera-order", "the member that stopped last has to start first", where=last[0],
                hint="start it on all nodes, or there first",
            )  # fmt: skip
        return last[0]
    return None


def run(
    site: Site,
    work: Work,
    expected: Expected,
    services: Sequence[Service],
    *,
    report: Report,
    timeout: int = containers.START_TIMEOUT,
    changed: Callable[[Mapping[str, Sequence[str]], str], None] = lambda names, action: None,
) -> None:
    """Do it, step by step.

    Args:
        site: the site.
        work: see ``plan``.
        expected: what the site wants.
        services: those of the site.
        report: told every step.
        timeout: seconds for containers to become healthy.
        changed: told what was changed where, after each step.

    Raises:
        CloudctlError: the first step that fails; the steps after it are not begun.
    """
    behind = {str(front.get("container")) for service in services for front in service.frontends}
    for number, batch in enumerate(work.batches, start=1):
        if batch.action == STOP:
            done = containers.stop(site, batch.containers, report=report)
        elif batch.action == START:
            done = containers.start(site, batch.containers, report=report, timeout=timeout)
        else:
            _may_restart(site, batch, expected)
            done = containers.restart(
                site, batch.containers, report=report, timeout=timeout, hand_over=batch.hand_over
            )
        changed(done, batch.action)
        if batch.action == STOP:
            continue
        names = {c for held in batch.containers.values() for c in held}
        more = number < len(work.batches)
        ordered = any(_ordered(c) for c in names)
        if batch.action == RESTART or (ordered and not more):
            left = clusters.wait_whole(site, names, expected, timeout=WHOLE_TIMEOUT, waiting=report)
            if left and batch.action == RESTART and more:
                raise ApplyFailed(
                    "cluster-not-whole",
                    f"after the restart on {', '.join(batch.containers)}: {left[0].message}",
                    where=left[0].where,
                    hint="the other members were left alone; mend this one, then run the same again",
                )
        if batch.action == RESTART and more and names & behind:
            time.sleep(SETTLE)


def _may_restart(site: Site, batch: Batch, expected: Expected) -> None:
    """Look again just before: a member may have been lost since the plan was made."""
    concerned = [c for held in batch.containers.values() for c in held if c in clusters.BY_CONTAINER]
    if not concerned:
        return
    nodes = sorted({node for name in concerned for node in expected.nodes_of(name)})
    facts = clusters.ask(site, concerned, nodes)
    lost = refused(batch, facts, expected)
    if lost:
        away = dict.fromkeys(node for name in lost for node in clusters.members_ill(name, facts, expected))
        raise CheckFailed(
            "majority-at-risk",
            f"a restart of {', '.join(lost)} now would leave no majority of its cluster:"
            f" {', '.join(away)} does not work in it",
            where=", ".join(batch.containers),
            hint=AT_RISK,
        )  # fmt: skip


def verify(site: Site, work: Work, expected: Expected) -> list[str]:
    """Look whether it is as it should be now.

    Returns:
        Warnings: what is wrong with clusters because of members that were not worked on.

    Raises:
        VerifyFailed: a container is not in the wanted state.
    """
    states = containers.read(site, work.nodes())
    wrong = judge(work, states)
    if wrong:
        raise VerifyFailed(
            "service-not-as-wanted", "; ".join(wrong), where=", ".join(work.nodes()),
            hint="cloudctl status, and the container's log on that node",
        )  # fmt: skip
    if work.action == STOP:
        return []
    names = [name for name in work.names if name in clusters.BY_CONTAINER]
    if not names:
        return []
    clusters.wait_whole(site, names, expected, timeout=60)
    nodes = sorted({node for name in names for node in expected.nodes_of(name)})
    left = clusters.problems(names, clusters.ask(site, names, nodes), expected)
    return [f"{problem.where}: {problem.message}" for problem in left]


def judge(work: Work, states: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return what is not as it should be. Pure."""
    wrong = []
    for batch in work.batches:
        for node, names in batch.containers.items():
            for name in names:
                state = states.get(node, {}).get(name) or {"state": "absent", "health": ""}
                up = state["state"] in ("running", "restarting")
                well = state["state"] == "running" and state["health"] in ("", "healthy")
                if work.action == STOP and up:
                    wrong.append(f"{name} on {node} runs again")
                elif work.action != STOP and not well:
                    wrong.append(f"{name} on {node} is {state['health'] or state['state']}")
    return wrong
