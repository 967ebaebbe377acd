"""Bringing the database cluster back after an outage, one member at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloudctl.engine.definitions import Container, load_services
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, ConfigError, UsageError, VerifyFailed
from cloudctl.galera.decide import BOOTSTRAP, HEALTHY, JOIN, REFUSE, Decision, Renewed, decide
from cloudctl.galera.members import (
    HEADERS,
    NO_UUID,
    Member,
    format_table,
    is_healthy,
    member_of,
    rows,
    unreachable,
)
from cloudctl.operations.call import Answers, call
from cloudctl.operations.steps import Journal
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

MODULE = "cloudctl_galera"
JOURNAL = "galera-recover"
CONTAINER = "mariadb"
DATA = "/var/lib/mysql"
STATUS_COMMAND = [
    "mariadb", "--no-auto-rehash", "--connect-timeout=5", "-NBe", "SHOW GLOBAL STATUS LIKE 'wsrep\\_%'",
]  # fmt: skip
POSITION_COMMAND = ["mariadbd", "--wsrep-recover", "--skip-log-error", "--skip-networking"]
PATIENCE = 45.0
"""Seconds after a container's start in which members that all lost power find together by themselves."""
STOP_TIMEOUT = 60
"""Seconds for a server to end; it is killed then (one that waits for others does not listen)."""
JOIN_SLICE = 20
"""Seconds that one call to a joining node waits: after each there is a word for the operator."""
JOIN_TIMEOUT = 900.0
"""Seconds for a member to be synced; one that receives a full copy has as long as it takes."""
MAX_RESTARTS = 4

Report = Callable[[str], None]


@dataclass(frozen=True)
class Recovery:
    """How a recovery ended.

    Attributes:
        size: members of the cluster.
        uuid, position: of the cluster.
        chosen: the member that started it (or those that served all along, by comma).
        reason: why that one.
        bootstrapped: it was started anew (else members only joined).
        joined: the members that joined, in order.
        left_out: members that were accepted as missing.
        copy: where the chosen one's data was copied to before (``node:path``), None where it was not.
        copies: all copies on all nodes, with their size in bytes.
        members: the table at the end.
    """

    size: int
    uuid: str
    position: int
    chosen: str
    reason: str
    bootstrapped: bool = False
    joined: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    copy: str | None = None
    copies: Mapping[str, int] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        return {
            "size": self.size,
            "uuid": self.uuid,
            "position": self.position,
            "chosen": self.chosen,
            "reason": self.reason,
            "bootstrapped": self.bootstrapped,
            "joined": list(self.joined),
            "left_out": list(self.left_out),
            "copy": self.copy,
            "copies": dict(self.copies),
            "members": [member.as_dict() for member in self.members.values()],
        }


# -- talking to the nodes ----------------------------------------------------------------------


class Nodes:
    """The nodes that have a member, and calls to them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        container = member_container(site)
        self.names = [node.name for node in site.nodes.values() if set(container.groups) & set(node.groups)]
        volumes = [volume for volume in container.volumes if isinstance(volume, str)]
        entry = site.images.get(container.image) or {}
        self.arguments: dict[str, Any] = {
            "container": container.name,
            "image": str(entry.get("reference") or container.image),
            "volumes": volumes,
            "data": next(volume.partition(":")[0] for volume in volumes if volume.split(":")[1] == DATA),
            "status_command": STATUS_COMMAND,
            "position_command": POSITION_COMMAND,
        }

    def call(self, action: str, nodes: Mapping[str, Mapping[str, Any]]) -> Answers:
        """Do one action on some nodes at once, with further arguments for each."""
        wanted = {node: {**self.arguments, "action": action, **more} for node, more in nodes.items()}
        return call(self.site.path, MODULE, wanted, changing=action not in ("read", "wait"))

    def one(self, action: str, node: str, **more: Any) -> dict[str, Any]:
        """Do one action on one node.

        Raises:
            CloudctlError: the node did not answer, or could not do it.
        """
        return self.call(action, {node: more}).all_or_raise()[node]


def member_container(site: Site) -> Container:
    """Return the definition of the container that is a member of the database cluster.

    Raises:
        ConfigError: the site has none, or one that starts in a way of its own.
    """
    for service in load_services(site.path):
        for container in service.containers:
            if container.name == CONTAINER and site.get(f"services.{service.name}.enabled", True):
                return container
    raise ConfigError("galera-not-here", "the site has no database cluster of its own", where="settings.yml")


def read_members(site: Site, *, probe: bool = True) -> dict[str, Member]:
    """Read all members at once; disturbs no server.

    Args:
        site: the site.
        probe: ask the storage engine for its position where no server runs (a second or more).

    Returns:
        By node, in the order of the inventory; a node that does not answer has ``reachable`` False.
    """
    return _read(Nodes(site), probe=probe)


def _read(nodes: Nodes, *, probe: bool = True) -> dict[str, Member]:
    answers = nodes.call("read", {name: {"probe": probe} for name in nodes.names})
    found: dict[str, Member] = {}
    for name in nodes.names:
        if name in answers.ok:
            found[name] = member_of(name, answers.ok[name]["member"])
        else:
            error = answers.failed[name]
            if error.exit_code == 5:
                found[name] = unreachable(name, error.message)
            else:
                # The node is there, its engine is not: what the data says cannot be read.
                found[name] = replace(unreachable(name, error.message), container="unreadable")
    return found


def _settled(members: Mapping[str, Member], patience: float) -> bool:
    """Whether the members will not change by themselves any more."""
    if is_healthy(members):
        return True
    return not any(
        member.container == "restarting"
        or (member.running and not member.synced and (member.running_for or 0) < patience)
        for member in members.values()
    )


def read_settled(nodes: Nodes, report: Report, patience: float = PATIENCE) -> dict[str, Member]:
    """Read the members, and again while those that were just started may still find together."""
    end = time.monotonic() + patience
    members = _read(nodes, probe=False)
    if not _settled(members, patience):
        report(f"members were started a moment ago: up to {patience:.0f} s for them to find together")
        while not _settled(members, patience) and time.monotonic() < end:
            time.sleep(2)
            members = _read(nodes, probe=False)
    return members if is_healthy(members) else _read(nodes)


# -- deciding ----------------------------------------------------------------------------------


def check_names(names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse names that are no members.

    Raises:
        UsageError: there is no such member, or none would be left.
    """
    wanted = set(names)
    for name in sorted(wanted - set(known)):
        raise UsageError(
            "galera-member-unknown",
            f"{name!r} has no member of the database cluster",
            hint=f"one of: {', '.join(known)}",
        )
    if wanted and wanted >= set(known):
        raise UsageError("galera-all-missing", "not all members can be left out")


def _renewed(journal: Journal) -> Renewed | None:
    facts = journal.facts.get("renewed")
    return Renewed(str(facts["node"]), tuple(facts["uuids"])) if facts else None


def _keep(journal: Journal, renewed: Renewed) -> None:
    journal.keep(renewed={"node": renewed.node, "uuids": list(renewed.uuids)})


def table(members: Mapping[str, Member]) -> list[str]:
    """Return the members as lines of text."""
    return format_table(HEADERS, rows(members))


def look(
    site: Site, *, accept_missing: Iterable[str] = (), report: Report = lambda line: None
) -> tuple[dict[str, Member], Decision]:
    """Read and decide, and do nothing: what ``recover`` would begin with.

    Returns:
        The members and the decision (a refusal is one, too).
    """
    nodes = Nodes(site)
    check_names(accept_missing, nodes.names)
    renewed = _renewed(Journal(site.path, JOURNAL))
    members = read_settled(nodes, report)
    return members, _decide_twice(nodes, members, accept_missing, renewed)[1]


def _decide_twice(
    nodes: Nodes, members: dict[str, Member], accept_missing: Iterable[str], renewed: Renewed | None
) -> tuple[dict[str, Member], Decision]:
    """Decide; members that were joining while they were read one after the other are read again."""
    accepted = tuple(accept_missing)
    decision = decide(members, accept_missing=accepted, renewed=renewed)
    for _ in range(2):
        if decision.error is None or decision.error.ref != "galera-split":
            break
        time.sleep(3)
        members = _read(nodes)
        decision = decide(members, accept_missing=accepted, renewed=renewed)
    return members, decision


# -- doing -------------------------------------------------------------------------------------


def recover(
    site: Site | Path,
    *,
    accept_missing: Sequence[str] = (),
    copy: bool = True,
    report: Report = lambda line: None,
    patience: float = PATIENCE,
) -> Recovery:
    """Bring the database cluster back; may be called again after a crash at any point.

    The caller holds the site's lock.

    Args:
        site: the site, or its directory.
        accept_missing: members whose data may be left out.
        copy: copy the chosen member's data before it starts the cluster.
        report: called with a line for every step.
        patience: seconds for members that were just started to find together by themselves.

    Returns:
        The cluster at the end.

    Raises:
        CheckFailed: it is healthy; or nothing safe can be said (nothing was stopped then).
        Unreachable: a member's node does not answer and was not accepted as missing.
        ApplyFailed, VerifyFailed: a member could not be started or does not get synced.
    """
    if isinstance(site, Path):
        site = load_site(site)
    nodes = Nodes(site)
    check_names(accept_missing, nodes.names)
    journal = Journal(site.path, JOURNAL)
    for _ in range(4):
        members = read_settled(nodes, report, patience)
        members, decision = _decide_twice(nodes, members, accept_missing, _renewed(journal))
        _show(members, decision, report)
        if decision.kind == REFUSE:
            assert decision.error is not None
            raise decision.error
        if decision.kind == HEALTHY:
            if journal.open:
                journal.finish()
            raise CheckFailed(
                "galera-healthy",
                f"the database cluster needs no recovery: {decision.reason}, position "
                f"{decision.uuid}:{decision.seqno}; nothing was stopped",
            )
        if decision.kind == JOIN:
            _begin(journal)
            return _join(nodes, members, decision, journal, report)
        _require_own_image(site)
        found = _start_anew(nodes, members, decision, accept_missing, copy, journal, report)
        if found is not None:
            return found
        report("a server became a part of a serving cluster meanwhile: looking again")
    raise VerifyFailed(
        "galera-unsteady",
        "the members come and go: no decision holds long enough to be carried out",
        hint="look at the network between the controllers, then run this again",
    )


def _require_own_image(site: Site) -> None:
    """Refuse to start a cluster with images whose start command does not look at grastate.dat.

    Raises:
        ConfigError: other images are used.
    """
    if site.get("image_set") != "debian":
        raise ConfigError(
            "galera-image-set",
            f"a cluster is not started anew with images of the set {site.get('image_set')!r}",
            where="settings.yml",
            hint="start the chosen member with --wsrep-new-cluster as these images want it; the others are "
            "joined by running this again",
        )


def _show(members: Mapping[str, Member], decision: Decision, report: Report) -> None:
    for line in table(members):
        report(line)
    for line in describe(decision):
        report(line)


def describe(decision: Decision) -> list[str]:
    """Return the choice and its consequences as lines of text."""
    if decision.kind == REFUSE:
        return []
    if decision.kind == HEALTHY:
        return [f"healthy: {decision.reason}"]
    if decision.kind == JOIN:
        return [f"choice: {decision.reason}"]
    if not decision.chosen:
        return [f"choice: after the servers are stopped ({decision.reason})"]
    lines = [
        f"choice: {decision.chosen} starts the cluster from {decision.uuid}:{decision.seqno}",
        f"reason: {decision.reason}",
    ]
    if decision.joiners:
        lines.append(f"then, one at a time: {', '.join(decision.joiners)}")
    if decision.left_out:
        lines.append(
            f"left out: {', '.join(decision.left_out)}; writes that only it has are lost. The cluster gets "
            "a new UUID, so that it copies everything when it comes back"
        )
    return lines


def _begin(journal: Journal) -> None:
    """Open the journal, or go on with an open one. What an earlier recovery gave up stays known."""
    renewed = journal.facts.get("renewed")
    if not journal.begin() and renewed:
        journal.keep(renewed=renewed)


def _start_anew(
    nodes: Nodes,
    before: Mapping[str, Member],
    decision: Decision,
    accept_missing: Sequence[str],
    copy: bool,
    journal: Journal,
    report: Report,
) -> Recovery | None:
    """Stop all members, choose from their data at rest, start one and join the others.

    Returns:
        The cluster; None where a server turned out to serve: nothing safe was decided then.
    """
    _begin(journal)
    running = [name for name, member in before.items() if member.container in ("running", "restarting")]
    answers, members = Answers(), dict(before)
    if running:
        report(f"stopping the members that run without a cluster: {', '.join(running)}")
        answers = nodes.call("stop", {name: {"timeout": STOP_TIMEOUT} for name in running})
    stopped = [name for name, answer in answers.ok.items() if not answer.get("serves")]
    try:
        answers.all_or_raise()
        if running:
            # The data at rest decide, not what was known of servers that ran. One that serves meanwhile is
            # never stopped; then the others join it.
            members = _read(nodes)
        decision = decide(members, accept_missing=accept_missing, renewed=_renewed(journal), at_rest=True)
        if running:
            _show(members, decision, report)
        if decision.error is not None:
            raise decision.error
        if decision.kind != BOOTSTRAP:
            return None
        chosen = members[decision.chosen]
        made = _copy(nodes, chosen, decision, report) if copy else None
    except CloudctlError:
        # Nothing was decided: as it was before.
        if stopped:
            report(f"starting again what was stopped: {', '.join(stopped)}")
            with contextlib.suppress(CloudctlError):
                nodes.call("start", {name: {"timeout": 0} for name in stopped}).all_or_raise()
        raise
    if made is None and not copy:
        report("no copy of the data is made")
    if decision.new_identity:
        # Before the node is touched: a later run must know which data is the older one.
        before_it = _renewed(journal) or Renewed(decision.chosen, ())
        _keep(journal, before_it.and_now(decision.chosen, decision.uuid))
    elif (old := _renewed(journal)) and old.node != decision.chosen and decision.uuid not in old.uuids:
        _keep(journal, replace(old, node=decision.chosen))
    journal.keep(chosen=decision.chosen, reason=decision.reason, copy=made)
    report(f"{decision.chosen}: starts the cluster")
    state = (
        {"uuid": NO_UUID, "seqno": -1, "safe": True}
        if decision.new_identity
        # -1: the server asks its own data when it starts
        else {"uuid": decision.uuid, "seqno": -1, "safe": True}
    )
    first = _start(nodes, decision.chosen, state, 1, report)
    report(f"{decision.chosen}: {first.state}, {first.uuid}:{first.seqno}")
    if not decision.new_identity and (first.uuid != decision.uuid or first.seqno < decision.seqno):
        raise VerifyFailed(
            "galera-position-lost",
            f"the server began at {first.uuid}:{first.seqno} instead of {decision.uuid}:{decision.seqno}",
            where=decision.chosen,
            hint="nothing joined it; its data before this is in the copy",
        )
    return _join(nodes, members, decision, journal, report)


def _copy(nodes: Nodes, chosen: Member, decision: Decision, report: Report) -> str:
    """Copy the chosen member's data; return where to."""
    label = f"{chosen.node}-{decision.uuid[:8]}-{decision.seqno}"
    report(f"{chosen.node}: copying its data ({_size(chosen.bytes)})")
    answer = nodes.one("copy", chosen.node, label=label)["copy"]
    if answer.get("refused"):
        raise CheckFailed(
            "galera-no-space",
            f"a copy of its data needs {_size(answer['needed'])} in {answer['path']}, "
            f"{_size(answer['free'])} are free",
            where=chosen.node,
            hint="make room (cloudctl galera copies shows earlier ones), or go on without a copy: --no-copy",
        )
    word = "copied to" if answer["made"] else "is copied already:"
    report(f"{chosen.node}: {word} {answer['path']} ({_size(answer['bytes'])})")
    return f"{chosen.node}:{answer['path']}"


def _size(number: int) -> str:
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _join(
    nodes: Nodes,
    members: Mapping[str, Member],
    decision: Decision,
    journal: Journal,
    report: Report,
) -> Recovery:
    """Let the missing members join, one at a time, and look at the whole at the end."""
    facts = journal.facts
    serving = [name for name, member in members.items() if decision.kind == JOIN and member.synced]
    size = len(serving) if decision.kind == JOIN else 1
    for node in decision.joiners:
        size += 1
        _join_one(nodes, members[node], decision, size, report)
    final = _read(nodes, probe=False)
    wanted = [name for name in nodes.names if name not in decision.left_out]
    bad = [name for name in wanted if not final[name].synced or final[name].size < len(wanted)]
    uuids = {final[name].uuid for name in wanted}
    if bad or len(uuids) != 1:
        for line in table(final):
            report(line)
        raise VerifyFailed(
            "galera-not-whole",
            "not all members are synced parts of one cluster",
            where=", ".join(bad) or None,
            hint="run this again: it goes on from here",
        )
    journal.finish()
    started_here = facts.get("chosen") if decision.kind == JOIN else None
    return Recovery(
        size=final[wanted[0]].size,
        uuid=uuids.pop(),
        position=max(final[name].seqno for name in wanted),
        chosen=str(started_here or decision.chosen),
        reason=str(facts.get("reason") or decision.reason) if started_here else decision.reason,
        bootstrapped=decision.kind == BOOTSTRAP or bool(started_here),
        joined=decision.joiners,
        left_out=decision.left_out,
        copy=facts.get("copy"),
        copies={
            f"{name}:{copy.path}": copy.bytes for name, member in final.items() for copy in member.copies
        },
        members=final,
    )


def _join_one(nodes: Nodes, member: Member, decision: Decision, size: int, report: Report) -> None:
    """Start one member (one that runs is waited for) and wait until it is synced."""
    node = member.node
    if member.running and decision.kind == JOIN:
        report(f"{node}: runs already, waiting for it")
        with contextlib.suppress(VerifyFailed):
            _wait(nodes, node, size, report, quiet=PATIENCE * 2)
            report(f"{node}: synced")
            return
        report(f"{node}: does not get anywhere, is started anew")
    if member.container == "restarting" or member.running:
        answer = nodes.one("stop", node, timeout=STOP_TIMEOUT)
        if answer.get("serves"):
            report(f"{node}: synced")
            return
    report(f"{node}: joins")
    _start(nodes, node, _joiner_state(member), size, report)
    report(f"{node}: synced")


def _joiner_state(member: Member) -> dict[str, Any] | None:
    """Return what a joining member's grastate.dat is to say; the view that it saved goes in any case.

    Without a valid file the server would not use its own position and copy everything; one that was cut short
    while it received a full copy must copy everything.
    """
    if not member.data and not member.transfer and member.grastate.state == "missing":
        return None
    if member.transfer or not member.uuid:
        return {"uuid": NO_UUID, "seqno": -1, "safe": False}
    return {"uuid": member.uuid, "seqno": -1, "safe": False}


def _start(nodes: Nodes, node: str, state: dict[str, Any] | None, size: int, report: Report) -> Member:
    """Start a member with this grastate.dat (None: as it is) and wait until it is synced; see ``_wait``."""
    answer = nodes.one("start", node, grastate=state, timeout=JOIN_SLICE)
    member = member_of(node, answer["member"])
    return member if member.synced and member.size >= size else _wait(nodes, node, size, report)


def _wait(nodes: Nodes, node: str, size: int, report: Report, *, quiet: float | None = None) -> Member:
    """Wait until a member is synced in a cluster of at least ``size``.

    Args:
        quiet: give up after so many seconds without a full copy under way (default: ``JOIN_TIMEOUT``).

    Raises:
        VerifyFailed: it failed, or took too long.
    """
    began = time.monotonic()
    alive, restarts = began, None
    while True:
        answer = nodes.one("wait", node, timeout=JOIN_SLICE)
        member = member_of(node, answer["member"])
        if member.synced and member.size >= size:
            return member
        now = time.monotonic()
        if member.transfer and member.running:
            alive = now
        restarts = member.restarts if restarts is None else restarts
        failing = member.container in ("exited", "missing", "dead")
        if failing or member.restarts - restarts >= MAX_RESTARTS or now - alive > (quiet or JOIN_TIMEOUT):
            raise VerifyFailed(
                "galera-member-fails",
                f"the member is {member.container}, {member.state or 'does not answer'}, after "
                f"{now - began:.0f} s\n{answer.get('tail') or ''}".rstrip(),
                where=node,
                hint=f"see docker logs {CONTAINER} and its log on the node, mend it, and run this again: "
                "it goes on from here",
            )
        state = member.state or ("receives a full copy" if member.transfer else "starts")
        report(f"{node}: {state}, {now - began:.0f} s")


# -- copies ------------------------------------------------------------------------------------


def forget_copies(site: Site, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Remove copies.

    Args:
        site: the site.
        wanted: by node, names of copies.

    Returns:
        By node, what was removed.
    """
    nodes = Nodes(site)
    answers = nodes.call("forget", {node: {"names": list(names)} for node, names in wanted.items()})
    found = {node: list(answer["removed"]) for node, answer in answers.ok.items()}
    if answers.failed:
        raise ApplyFailed(
            "galera-copy-stays",
            "; ".join(f"{node}: {error.message}" for node, error in answers.failed.items()),
            where=", ".join(answers.failed),
        )
    return found
