"""The message bus after a partition that did not heal, or with a member that does not come back.

What to do is decided from what every member says, by pure functions; the steps are numbered and written down,
so that a run that was killed goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudctl.engine.definitions import Service
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, Unreachable, VerifyFailed
from cloudctl.operations import containers
from cloudctl.operations.steps import BEGUN, DONE, Journal, Step
from cloudctl.site.model import Site
from cloudctl.status.probes import PROBES, host_of, mutual, parse_erlang

CONTAINER = str(PROBES["rabbitmq"]["container"])
USER = str(PROBES["rabbitmq"]["user"])
DATA = "mnesia"
"""Directory of a member's data in its volume."""
PORTS = (4369, 25672)
"""Where members find and talk to each other."""
REPLICATED = ("quorum", "rabbit_quorum_queue")
"""What a quorum queue calls its type, by version."""
JOIN_TIMEOUT = 240
RECONNECT_TIMEOUT = 180
SETTLE_TIMEOUT = 60
ALONE_TIMEOUT = 75
"""Seconds that members get to start while others are absent: one that waits for nobody needs thirty."""

HEALTHY, COMPLETE, START, RESET, RESTART, REBUILD = (
    "healthy", "complete", "start", "reset", "restart", "rebuild",
)  # fmt: skip
"""Nothing to do; queues lack replicas; start stopped members; reset some; start all again; make it anew."""
WITH_DATA = (START, RESTART)
"""After these it is decided again: a member that does not come back with its data is reset then."""


@dataclass(frozen=True)
class View:
    """The cluster as one member sees it.

    Attributes:
        state: of its container: running, exited …, absent; unreachable for a node that does not answer.
        running: nodes whose member runs, in its view; empty where it does not answer.
        members: nodes that belong to the cluster, in its view.
        apart: nodes that it does not see because of a partition.
        started: when its container was started.
        error: why it does not answer.
    """

    state: str
    running: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    started: str = ""
    error: str = ""


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why.

    Attributes:
        kind: one of the constants above.
        keep: the members whose data counts.
        reset: the members that lose theirs and get it from the others.
        forget: members of nodes that are none any more.
        moved: whose old data an earlier, interrupted run moved away.
        start: the members whose containers are stopped; they start with their data.
        reason: in words.
    """

    kind: str
    keep: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    reason: str = ""
    start: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "kind": self.kind,
            "keep": list(self.keep),
            "reset": list(self.reset),
            "forget": list(self.forget),
            "moved": list(self.moved),
            "reason": self.reason,
            "start": list(self.start),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Return what ``as_dict`` wrote down."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class Wanted:
    """What the site wants of the message bus.

    Attributes:
        nodes: of its members.
        users, vhosts: which there have to be.
        volume: of a member's data.
        clients: by account, the containers that connect with it, by node.
    """

    nodes: tuple[str, ...]
    users: tuple[str, ...] = ()
    vhosts: tuple[str, ...] = ()
    volume: str = ""
    clients: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


def node_name(node: str) -> str:
    """Return what a member calls itself."""
    return f"rabbit@{node}"


def wanted(site: Site, services: Sequence[Service], tiers: Sequence[containers.Tier]) -> Wanted:
    """Return what the site wants of the message bus. Pure."""
    nodes = [node for tier in tiers for node, names in tier.containers.items() if CONTAINER in names]
    container = next(c for service in services for c in service.containers if c.name == CONTAINER)
    mounts = [text if isinstance(text, str) else str(text["volume"]) for text in container.volumes]
    volume = next(text.partition(":")[0] for text in mounts if text.split(":")[1] == "/var/lib/rabbitmq")
    clients: dict[str, dict[str, list[str]]] = {}
    vhosts: dict[str, None] = {}
    for service in services:
        messaging = service.raw.get("messaging")
        if not messaging:
            continue
        vhosts[str(messaging.get("vhost", "/"))] = None
        own = {c.name for c in service.containers}
        using = clients.setdefault(str(messaging["user"]), {})
        for tier in tiers:
            for node, names in tier.containers.items():
                using.setdefault(node, []).extend(name for name in names if name in own)
    return Wanted(tuple(nodes), tuple(clients), tuple(vhosts), volume, clients)


# -- deciding ----------------------------------------------------------------------------------


def groups_of(views: Mapping[str, View]) -> list[frozenset[str]]:
    """Return the groups of members that see each other, the one to keep first. Pure.

    The largest counts most; of groups of the same size the one with the member that has run longest.
    """
    groups = mutual({node: view.running - view.apart for node, view in views.items() if node in view.running})

    def rank(group: set[str]) -> tuple[int, str]:
        return -len(group), min(views[node].started or "~" for node in group)

    return [frozenset(group) for group in sorted(groups, key=rank)]


def decide(views: Mapping[str, View], *, lacking: Iterable[str] = ()) -> Decision:
    """Decide what has to be done. Pure.

    Args:
        views: of every node that should have a member.
        lacking: nodes that lack a replica of a queue (known where all members run).

    Raises:
        Unreachable, CheckFailed: nothing can be done now; the reason and how to go on are told.
    """
    nodes = frozenset(views)
    groups = groups_of(views)
    best = groups[0] if groups else frozenset()
    strangers = frozenset(m for node in best for m in views[node].members) - nodes
    whole = best == nodes and all(views[node].members >= nodes and not views[node].apart for node in nodes)
    if whole and not strangers:
        if set(lacking):
            why = f"queues have no replica on {', '.join(sorted(set(lacking)))}"
            return Decision(COMPLETE, tuple(sorted(best)), reason=why)
        return Decision(HEALTHY, tuple(sorted(best)), reason="all members run and see each other")
    silent = sorted(node for node in nodes if views[node].state == "unreachable")
    if silent:
        raise Unreachable(
            "rabbitmq-node-unreachable",
            "the node does not answer, so its member can't be reset",
            where=", ".join(silent),
            hint="bring the node back (it may heal by itself then), and look again",
        )
    absent = sorted(node for node in nodes if views[node].state == "absent")
    if absent:
        raise CheckFailed(
            "rabbitmq-absent",
            "the member's container does not exist",
            where=", ".join(absent),
            hint="cloudctl deploy makes it",
        )
    if len(best) <= len(nodes) // 2:
        parts = " | ".join(", ".join(sorted(group)) for group in groups) or "none serves"
        why = f"no majority sees each other ({parts}): all start again together, with their data"
        return Decision(RESTART, reason=why)
    stopped = tuple(sorted(node for node in nodes - best if views[node].state not in UP))
    if stopped:
        why = (
            f"{', '.join(sorted(best))} see each other; {', '.join(stopped)} is stopped: with its data first"
        )
        return Decision(START, tuple(sorted(best)), reason=why, start=stopped)
    reset = tuple(sorted(nodes - best))
    words = [f"{', '.join(sorted(best))} see each other"]
    words += [f"{node} {_trouble(views[node], best)}" for node in reset]
    words += [f"{name} is no node of the site any more" for name in sorted(strangers)]
    return Decision(RESET, tuple(sorted(best)), reset, tuple(sorted(strangers)), reason="; ".join(words))


def first_without_others(states: Mapping[str, Mapping[str, Any] | None], size: int) -> str | None:
    """Return the member that has to start without the others, so that the rest of a majority starts. Pure.

    A member waits at its start for those that stopped after it. When one of these does not come back, the
    newest of those that wait goes first. Its queues are whole: a majority has every confirmed message.

    Args:
        states: of the members' containers, by node, after all were told to start.
        size: how many members there should be.

    Returns:
        None where too few wait, or all do: then nothing says that one of them is broken.
    """
    waiting = {
        node: state
        for node, state in states.items()
        if state and state["state"] == "running" and not state["looping"]
    }
    if not size // 2 < len(waiting) < size:
        return None
    return max(waiting, key=lambda node: (str(waiting[node]["finished"]), node))


def go_on(
    begun: Decision,
    views: Mapping[str, View],
    states: Callable[[str], str | None],
    *,
    everything: bool = False,
) -> tuple[Decision | None, list[str]]:
    """Decide whether an interrupted run's decision still holds. Pure.

    Args:
        begun: what was decided then.
        views: of every member now; the cluster is not whole.
        states: of a step in the journal, by its key.
        everything: the cluster may be made anew.

    Returns:
        The decision to go on with (None: decide anew), and the keys of steps that have to be done again.
    """
    if begun.kind == REBUILD:
        # As long as no data were moved away, that needs to be allowed again.
        holds = states("start") != DONE and (everything or states("aside") is not None)
        return (begun if holds else None), []
    if begun.kind in WITH_DATA:
        return (None if states("start") == DONE else begun), []
    groups = groups_of(views)
    best = groups[0] if groups else frozenset()
    if not (begun.reset and set(begun.keep) <= best and len(best) > len(views) // 2):
        return None, []
    if all(states(f"join-{node}") == DONE for node in begun.reset):
        return None, []
    # One that was started empty and is not there yet may have made a cluster of its own meanwhile.
    astray = [node for node in begun.reset if states(f"join-{node}") == BEGUN and node not in best]
    return begun, [f"{step}-{node}" for node in astray for step in ("stop", "forget", "aside")]


def _trouble(view: View, best: frozenset[str]) -> str:
    if view.state == "restarting":
        return "starts again and again"
    if view.error:
        return f"does not serve ({view.error})"
    if not view.members & best:
        return "is in a cluster of its own"
    return "does not see them"


UP = ("running", "restarting")
"""States of a container that was not stopped by anybody."""


# -- reading -----------------------------------------------------------------------------------


def read_view(node: str, state: Mapping[str, Any] | None, answer: Mapping[str, Any] | None) -> View:
    """Return a member's view from the state of its container and its answer to cluster_status. Pure."""
    if state is None:
        return View("absent")
    status, started = str(state["state"]), str(state.get("started") or "")
    if answer is None or answer["rc"] != 0:
        return View(status, started=started, error=_said(answer or {}))
    try:
        found = parse_erlang(str(answer["stdout"]))
    except (ValueError, AttributeError) as error:
        return View(status, started=started, error=f"its answer cannot be read ({error})")
    return View(
        status,
        started=started,
        running=frozenset(host_of(name) for name in found["running"]),
        members=frozenset(host_of(name) for name in found["members"]),
        # It tells what the others do not see as well.
        apart=frozenset(found["apart"].get(node, ())),
    )


def _said(answer: Mapping[str, Any]) -> str:
    """Return the line of a failed tool's output that tells most: its last one is about its usage."""
    lines = [line.strip() for line in str(answer.get("stderr") or "").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines[-1:] or ["it does not answer"])[0]


def ctl(
    site: Site, nodes: Iterable[str], *args: str, tool: str = "rabbitmqctl", timeout: int = 60
) -> tuple[dict[str, dict[str, Any]], dict[str, CloudctlError]]:
    """Run a tool of the message bus in its container on nodes."""
    command = [tool, "--quiet", *args]
    return containers.run_in(site, nodes, CONTAINER, command, user=USER, timeout=timeout)


def _one(
    site: Site, node: str, *args: str, tool: str = "rabbitmqctl", timeout: int = 60, fine: str = ""
) -> str:
    """Return what a tool prints on one node.

    Args:
        fine: a text of its error that means that it was done before.

    Raises:
        ApplyFailed: it failed.
    """
    answers, failed = ctl(site, [node], *args, tool=tool, timeout=timeout)
    if node in failed:
        raise failed[node]
    answer = answers[node]
    said = f"{answer['stdout']}\n{answer['stderr']}".strip()
    if answer["rc"] != 0 and not (fine and fine in said.lower()):
        raise ApplyFailed(
            "rabbitmq-command",
            f"{tool} {' '.join(args)}: {said[-500:] or answer['rc']}",
            where=node,
            hint="mend the cause and run the same command again",
        )
    return str(answer["stdout"])


def read_views(site: Site, nodes: Sequence[str]) -> dict[str, View]:
    """Ask every member."""
    states = containers.look(site, nodes)
    running = [
        n for n, a in states.ok.items() if (a["containers"].get(CONTAINER) or {}).get("state") == "running"
    ]
    answers, _failed = ctl(site, running, "cluster_status", "--formatter", "json", timeout=30)
    views = {
        node: read_view(node, answer["containers"].get(CONTAINER), answers.get(node))
        for node, answer in states.ok.items()
    }
    return {node: views.get(node) or View("unreachable", error=states.failed[node].message) for node in nodes}


def read_queues(site: Site, node: str) -> list[dict[str, Any]]:
    """Return every queue: vhost, name, type, members, online (names of members)."""
    found: list[dict[str, Any]] = []
    for vhost in read_names(site, node, "list_vhosts", "name"):
        text = _one(
            site,
            node,
            "list_queues",
            "-p",
            vhost,
            "name",
            "type",
            "members",
            "online",
            "--formatter",
            "json",
            timeout=120,
        )
        found += [{"vhost": vhost, **queue} for queue in json.loads(text)]
    return found


def read_names(site: Site, node: str, what: str, key: str, *columns: str) -> list[str]:
    """Return one column of a list, each value once."""
    text = _one(site, node, what, *columns, "--formatter", "json")
    return list(dict.fromkeys(str(entry[key]) for entry in json.loads(text)))


def lacking(
    queues: Iterable[Mapping[str, Any]], nodes: Iterable[str], *, key: str = "members"
) -> dict[str, int]:
    """Return, by node, how many replicated queues have no replica there. Pure.

    Args:
        queues: see ``read_queues``.
        nodes: where there should be one.
        key: ``members``, or ``online`` to count those that run only.
    """
    found: dict[str, int] = {}
    for queue in queues:
        if queue.get("type") not in REPLICATED:
            continue
        for node in nodes:
            if node_name(node) not in (queue.get(key) or []):
                found[node] = found.get(node, 0) + 1
    return found


def holding(queues: Iterable[Mapping[str, Any]], node: str) -> list[str]:
    """Return the replicated queues that count on a replica on a node, and on others. Pure."""
    return sorted(
        f"{queue['vhost']} {queue['name']}"
        for queue in queues
        if queue.get("type") in REPLICATED
        and node_name(node) in (queue.get("members") or [])
        and len(queue["members"]) > 1
    )


# -- steps -------------------------------------------------------------------------------------


def steps(site: Site, want: Wanted, decision: Decision, report: Callable[[str], None]) -> list[Step]:
    """Return the steps of a decision.

    After those of one of ``WITH_DATA`` the members are asked again.
    """
    nodes = list(want.nodes)
    if decision.kind == RESTART:
        return _stop_start(site, want, nodes, report, data=True)
    if decision.kind == START:
        return [_start(site, list(decision.start), nodes, report)]
    found: list[Step] = []
    if decision.kind == REBUILD:
        found += _stop_start(site, want, nodes, report, data=False)
    keeper = decision.keep[0] if decision.keep else nodes[0]
    for name in decision.forget:
        found.append(_forget(site, keeper, name))
    for node in decision.reset:
        found += _reset(site, want, keeper, node, report)
    found.append(
        Step(
            "running",
            "All members run and see each other",
            lambda journal: _await_members(site, nodes),
            nodes,
            ["rabbitmqctl cluster_status"],
        )
    )
    if decision.kind != REBUILD:
        found.append(
            Step(
                "grow",
                "Every queue has a replica on every member",
                lambda journal: _grow(site, keeper, nodes),
                [keeper],
                [f"rabbitmq-queues grow {node_name(node)} all" for node in nodes]
                + ["rabbitmq-queues rebalance quorum"],
            )
        )
    found.append(
        Step(
            "definitions",
            "Accounts and vhosts are there",
            lambda journal: _definitions(site, keeper, want),
            [keeper],
            ["rabbitmqctl list_users", "rabbitmqctl list_vhosts"],
        )
    )
    if want.clients:
        found.append(
            Step(
                "clients",
                "The services are connected again",
                lambda journal: _reconnected(site, keeper, want),
                [keeper],
                ["rabbitmqctl list_connections user"],
            )
        )
    moved = list(dict.fromkeys([*decision.reset, *decision.moved]))
    if decision.kind == REBUILD:
        moved = nodes
    if moved:
        found.append(
            Step(
                "discard",
                "Remove the old data",
                lambda journal: _discard(site, want, moved),
                moved,
                [f"rm -r {DATA} (moved away before), in the volume {want.volume}"],
            )
        )
    return found


def _stop_start(
    site: Site, want: Wanted, nodes: list[str], report: Callable[[str], None], *, data: bool
) -> list[Step]:
    names = {node: [CONTAINER] for node in nodes}

    def halt(journal: Journal) -> str:
        return _worked(containers.stop(site, names, report=report), "stopped")

    def begin(journal: Journal) -> str:
        return _worked(containers.start(site, names, report=report, timeout=JOIN_TIMEOUT), "started")

    found = [Step("stop", "Stop all members", halt, nodes, [f"docker stop {CONTAINER}"])]
    if not data:
        found.append(
            Step(
                "aside",
                "Move the data of all members away: queued messages are lost",
                lambda journal: _aside(site, want, nodes),
                nodes,
                [f"mv {DATA}, in the volume {want.volume}"],
            )
        )
    if data:
        return [*found, _start(site, nodes, nodes, report)]
    found.append(
        Step("start", "Start all members at the same time", begin, nodes, [f"docker start {CONTAINER}"])
    )
    return found


def _start(site: Site, nodes: list[str], every: list[str], report: Callable[[str], None]) -> Step:
    """Start members with their data; one that does not come back is no error while a majority is there."""

    def run(journal: Journal) -> str:
        try:
            containers.start(site, {n: [CONTAINER] for n in nodes}, report=report, timeout=JOIN_TIMEOUT)
        except CloudctlError:
            groups = groups_of(read_views(site, every))
            if not groups or len(groups[0]) <= len(every) // 2:
                if not _start_first(site, every, len(every), report):
                    raise
                return _settled(site, every)
            return f"{', '.join(sorted(groups[0]))} see each other"
        return _settled(site, every)

    many = "all members at the same time" if len(nodes) > 1 else nodes[0]
    return Step("start", f"Start {many}, with the data", run, nodes, [f"docker start {CONTAINER}"])


def _start_first(site: Site, nodes: Sequence[str], size: int, report: Callable[[str], None]) -> bool:
    """Let one member of a waiting majority start without the others; return whether there is one."""
    found = {node: a["containers"].get(CONTAINER) for node, a in containers.look(site, nodes).ok.items()}
    first = first_without_others(found, size)
    if first is None:
        return False
    report(f"{first}: starts without waiting for members that stopped after it and do not come back")
    _one(site, first, "force_boot")
    containers.restart(site, {first: [CONTAINER]}, report=report, timeout=JOIN_TIMEOUT)
    return True


def start_majority(site: Site, nodes: Sequence[str], size: int, *, report: Callable[[str], None]) -> None:
    """Start members while others are absent.

    They wait for a member that stopped after them, for half an hour; an absent one can be that. Where a
    majority waits, one starts first: whoever is absent could confirm nothing without it.

    Args:
        nodes: the members that are there.
        size: how many there should be.

    Raises:
        CloudctlError: they do not start, and too few of them wait.
    """
    names = {node: [CONTAINER] for node in nodes}
    try:
        containers.start(site, names, report=report, timeout=ALONE_TIMEOUT)
    except CloudctlError:
        if not _start_first(site, nodes, size, report):
            raise
        containers.start(site, names, report=report, timeout=JOIN_TIMEOUT)


def _settled(site: Site, nodes: Sequence[str]) -> str:
    """Wait a while until all see each other; say who does."""
    end = time.monotonic() + SETTLE_TIMEOUT
    while True:
        groups = groups_of(read_views(site, nodes))
        best = sorted(groups[0]) if groups else []
        if len(best) == len(nodes) or time.monotonic() > end:
            return f"{', '.join(best) or 'nobody'} see each other"
        time.sleep(3)


def _reset(site: Site, want: Wanted, keeper: str, node: str, report: Callable[[str], None]) -> list[Step]:
    names = {node: [CONTAINER]}

    def halt(journal: Journal) -> str:
        return _worked(containers.stop(site, names, report=report), "stopped")

    def begin(journal: Journal) -> str:
        containers.start(site, names, report=report, timeout=JOIN_TIMEOUT)
        return _await_members(site, [keeper, node])

    return [
        Step(f"stop-{node}", f"Stop the member on {node}", halt, [node], [f"docker stop {CONTAINER}"]),
        _forget(site, keeper, node),
        Step(
            f"aside-{node}",
            f"Move the data of {node} away",
            lambda journal: _aside(site, want, [node]),
            [node],
            [f"mv {DATA}, in the volume {want.volume}"],
        ),
        Step(
            f"join-{node}",
            f"Start {node} empty: it joins the others",
            begin,
            [node],
            [f"docker start {CONTAINER}"],
        ),
    ]


def _forget(site: Site, keeper: str, node: str) -> Step:
    def run(journal: Journal) -> str:
        before = node not in read_views(site, [keeper])[keeper].members
        if not before:
            _one(site, keeper, "forget_cluster_node", node_name(node), timeout=120, fine="not in the cluster")
        # That takes its replicas out as well, but for those that a run that was killed left.
        if holding(read_queues(site, keeper), node):
            _one(site, keeper, "shrink", node_name(node), tool="rabbitmq-queues", timeout=300)
        if left := holding(read_queues(site, keeper), node):
            raise VerifyFailed(
                "rabbitmq-replicas", f"it still counts as a replica of {', '.join(left[:5])}", where=node,
                hint="a queue without a majority of its replicas: bring its other members back, or delete it",
            )  # fmt: skip
        return "no member any more" if before else ""

    return Step(
        f"forget-{node}",
        f"The others forget {node}",
        run,
        [keeper],
        [f"rabbitmqctl forget_cluster_node {node_name(node)}"],
    )


def _worked(done: Mapping[str, Sequence[str]], verb: str) -> str:
    nodes = [node for node, names in done.items() if names]
    return f"{verb} on {', '.join(nodes)}" if nodes else f"{verb} before"


def _aside(site: Site, want: Wanted, nodes: Sequence[str]) -> str:
    call = {"action": "aside", "container": CONTAINER, "volume": want.volume, "path": DATA}
    containers.ask(site, dict.fromkeys(nodes, call), changing=True).all_or_raise()
    return ""


def _discard(site: Site, want: Wanted, nodes: Sequence[str]) -> str:
    call = {"action": "discard", "volume": want.volume, "path": DATA}
    containers.ask(site, dict.fromkeys(nodes, call), changing=True).all_or_raise()
    return ""


def _await_members(site: Site, nodes: Sequence[str]) -> str:
    """Wait until these members run and see each other."""
    end = time.monotonic() + JOIN_TIMEOUT
    while True:
        views = read_views(site, nodes)
        seen = all(set(nodes) <= views[node].running and not views[node].apart & set(nodes) for node in nodes)
        if seen:
            return f"{len(views[nodes[0]].running)} members run"
        if time.monotonic() > end:
            said = "; ".join(
                f"{node} sees {', '.join(sorted(view.running)) or view.error or 'nobody'}"
                for node, view in views.items()
            )
            raise VerifyFailed(
                "rabbitmq-not-whole",
                f"after {JOIN_TIMEOUT} s {said}",
                where=", ".join(nodes),
                hint="check the ports 4369 and 25672 between the controllers and the members' logs, then run "
                "the same again; --all --lose-messages makes the cluster anew",
            )
        time.sleep(3)


def _grow(site: Site, keeper: str, nodes: Sequence[str]) -> str:
    """Give every quorum queue a replica on every member, and spread the leaders."""
    queues = read_queues(site, keeper)
    for node in lacking(queues, nodes):
        _one(site, keeper, "grow", node_name(node), "all", tool="rabbitmq-queues", timeout=600)
    end = time.monotonic() + JOIN_TIMEOUT
    while left := lacking(read_queues(site, keeper), nodes, key="online"):
        if time.monotonic() > end:
            listed = ", ".join(f"{count} on {node}" for node, count in left.items())
            raise VerifyFailed(
                "rabbitmq-replicas",
                f"queues without a running replica: {listed}",
                where=keeper,
                hint="rabbitmq-queues quorum_status QUEUE says why; run the same again",
            )
        time.sleep(3)
    _one(site, keeper, "rebalance", "quorum", tool="rabbitmq-queues", timeout=300)
    return f"{len(queues)} queues"


def _definitions(site: Site, keeper: str, want: Wanted) -> str:
    def absent() -> list[str]:
        users = read_names(site, keeper, "list_users", "user")
        vhosts = read_names(site, keeper, "list_vhosts", "name")
        return [f"account {name}" for name in want.users if name not in users] + [
            f"vhost {name}" for name in want.vhosts if name not in vhosts
        ]

    if absent():
        _one(site, keeper, "import_definitions", "/etc/rabbitmq/definitions.json", timeout=120)
    if left := absent():
        raise VerifyFailed(
            "rabbitmq-definitions",
            f"missing: {', '.join(left)}",
            where=keeper,
            hint="cloudctl deploy writes the definitions; then run the same again",
        )
    return f"{len(want.users)} accounts, {len(want.vhosts)} vhosts"


def _reconnected(site: Site, keeper: str, want: Wanted) -> str:
    """Wait until every service whose containers run is connected with its account."""
    nodes = sorted({node for using in want.clients.values() for node, names in using.items() if names})
    states = containers.look(site, nodes).ok
    waiting = {
        user
        for user, using in want.clients.items()
        if any(
            (states.get(node, {}).get("containers", {}).get(name) or {}).get("state") == "running"
            for node, names in using.items()
            for name in names
        )
    }
    end = time.monotonic() + RECONNECT_TIMEOUT
    while True:
        left = waiting - set(read_names(site, keeper, "list_connections", "user", "user"))
        if not left:
            return f"{', '.join(sorted(waiting)) or 'nobody'} connected"
        if time.monotonic() > end:
            raise VerifyFailed(
                "rabbitmq-no-clients",
                f"not connected after {RECONNECT_TIMEOUT} s: {', '.join(sorted(left))}",
                where=keeper,
                hint=f"cloudctl service restart {sorted(left)[0]}",
            )
        time.sleep(3)


def cut_off(
    site: Site, nodes: Iterable[str], keep: Iterable[str], *, running: bool = True
) -> dict[str, list[str]]:
    """Return by node which members can't be reached from there: a reset member would stay alone.

    Args:
        site: the site.
        nodes: from where.
        keep: the members to reach.
        running: they run, so that a refused connection tells of the network, too.
    """
    addresses = {node: site.nodes[node].address for node in keep}
    targets = [f"{address}:{port}" for address in addresses.values() for port in PORTS]
    call = {"action": "reach", "targets": targets}
    answers = containers.ask(site, dict.fromkeys(nodes, call)).all_or_raise()
    unreached = {
        node: sorted(t for t, why in answer["unreached"].items() if running or "refused" not in why.lower())
        for node, answer in answers.items()
    }
    return {node: found for node, found in unreached.items() if found}
