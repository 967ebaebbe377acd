"""What switching off and on decides: which nodes, containers, flags and instances, in which order. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cloudctl.errors import CheckFailed, CloudctlError
from cloudctl.operations.containers import Tier, by_node
from cloudctl.site.model import Node, Site

NOTHING_STOPPED_TTL = timedelta(hours=1)
"""How long a shutdown that stopped nothing yet may be continued: its backup and its list of instances age."""


# -- nodes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """The cloud's nodes by what is lost without them; each node once.

    A node with several tasks counts where it is needed longest: a controller that runs VMs is a controller.
    """

    compute: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    deploy: tuple[str, ...] = ()

    @property
    def off_order(self) -> list[tuple[str, tuple[str, ...]]]:
        """Kinds and nodes in the order in which they are switched off."""
        kinds = [("compute", self.compute), ("storage", self.storage), ("control", self.control)]
        return [(kind, nodes) for kind, nodes in kinds if nodes]

    @property
    def all(self) -> list[str]:
        """Every node but the deploy node, in the order in which they are switched on."""
        return [*self.control, *self.storage, *self.compute]


def roles(site: Site) -> Roles:
    """Return the nodes that are switched off and on.

    The deploy node runs this, so it stays, whatever else it does; nodes without a task (``newnodes``) are
    left alone.
    """
    found: dict[str, list[str]] = {"compute": [], "storage": [], "control": [], "deploy": []}
    for node in site.nodes.values():
        if kind := kind_of(node):
            found[kind].append(node.name)
    return Roles(**{kind: tuple(names) for kind, names in found.items()})


def kind_of(node: Node) -> str | None:
    """Return compute, storage, control or deploy; None for a node without a task."""
    groups = set(node.groups)
    if "deploy" in groups:
        return "deploy"
    if groups & {"control", "mons"}:
        return "control"
    if "storage" in groups:
        return "storage"
    return "compute" if "compute" in groups else None


# -- containers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Containers that are stopped, or started, in one step.

    Attributes:
        key: computes, api, balancer, bus, database, network, or a tier's own name.
        title: what an operator calls it.
        groups: by node, lists of containers in START order; stopping takes them from the last.
    """

    key: str
    title: str
    groups: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return list(self.groups)

    def containers(self) -> dict[str, list[str]]:
        """Return by node the names of all its containers."""
        return {node: [name for group in groups for name in group] for node, groups in self.groups.items()}

    def reversed(self) -> dict[str, list[list[str]]]:
        """Return by node the lists in the order in which they are stopped."""
        return {node: [list(group) for group in reversed(groups)] for node, groups in self.groups.items()}

    def without(self, nodes: Collection[str]) -> Stage:
        """Return the stage without some nodes."""
        kept = {node: groups for node, groups in self.groups.items() if node not in nodes}
        return Stage(self.key, self.title, kept)


def _stage(key: str, title: str, parts: Iterable[Mapping[str, Sequence[str]]]) -> Stage:
    return Stage(key, title, by_node(parts))


def stop_stages(tiers: Sequence[Tier], controllers: Collection[str], database: str, bus: str) -> list[Stage]:
    """Return the stages of a shutdown, first to last: the documented order, which is the start's reversed.

    Computes with their part of the network; the API services of all controllers at the same time; what hands
    connections to them; the message bus; the database; at last the controllers' network.

    Args:
        tiers: in start order.
        controllers: nodes whose network containers go last.
        database, bus: containers that have a stage of their own.
    """

    def of(phases: Collection[str]) -> list[Tier]:
        return [tier for tier in tiers if tier.phase in phases]

    def place(name: str) -> int:
        return next(
            (i for i, tier in enumerate(tiers) if any(name in names for names in tier.containers.values())),
            -1,
        )

    infrastructure = of(["infrastructure"])
    at_database, at_bus = place(database), place(bus)
    upper, bus_parts, lower = [], [], []
    for tier in infrastructure:
        index = tiers.index(tier)
        if index == at_bus and index != at_database:
            bus_parts.append(tier.containers)
        elif index <= at_database:
            lower.append(tier.containers)
        else:
            upper.append(tier.containers)
    others = [node for tier in tiers for node in tier.containers if node not in controllers]
    stages = [
        _stage(
            "computes",
            "Stop the compute nodes' services",
            [tier.only(set(others)).containers for tier in of(["network"])]
            + [tier.containers for tier in of(["compute"])],
        ),
        _stage(
            "api",
            "Stop the API services of all controllers at the same time",
            [tier.containers for tier in of(["identity", "control"])],
        ),
        _stage("balancer", "Stop the load balancer", upper),
        _stage("bus", "Stop the message bus", bus_parts),
        _stage("database", "Stop the database, one member at a time", lower),
        _stage(
            "network",
            "Stop the controllers' network services",
            [tier.only(controllers).containers for tier in of(["network"])],
        ),
    ]
    return [stage for stage in stages if stage.groups]


_START_TITLES = {
    "network": "Start the network services",
    "infrastructure": "Start the infrastructure",
    "identity": "Start the identity service",
    "control": "Start the API services",
    "compute": "Start the compute nodes' services",
}


def start_stages(tiers: Sequence[Tier], database: str) -> list[Stage]:
    """Return the stages of a start, first to last: tier by tier, the network's tiers in one.

    The stage with the database is called ``database``; all others have their tier's name.
    """
    stages = [
        _stage(
            "network",
            _START_TITLES["network"],
            [tier.containers for tier in tiers if tier.phase == "network"],
        )
    ]
    for tier in tiers:
        if tier.phase == "network":
            continue
        services = ", ".join(tier.services)
        if any(database in names for names in tier.containers.values()):
            stages.append(
                _stage("database", f"Recover the database, then start {services}", [tier.containers])
            )
        else:
            title = f"{_START_TITLES[tier.phase]}: {services}"
            stages.append(_stage(tier.name, title, [tier.containers]))
    return [stage for stage in stages if stage.groups]


# -- health before a shutdown ------------------------------------------------------------------


CLEAN = frozenset({"active", "clean", "scrubbing", "deep", "snaptrim", "snaptrim_wait", "laggy", "wait"})
"""Words of a placement group's state that say nothing bad about its data."""


def dirty_pgs(pgs: Mapping[str, int]) -> dict[str, int]:
    """Return the states of placement groups that are not clean, with their numbers.

    >>> dirty_pgs({"active+clean": 90, "active+clean+scrubbing+deep": 1, "active+undersized+degraded": 6})
    {'active+undersized+degraded': 6}
    """
    return {
        state: count
        for state, count in pgs.items()
        if count and (not {"active", "clean"} <= set(state.split("+")) or set(state.split("+")) - CLEAN)
    }


def refusals(status: Mapping[str, Any], *, osds: int) -> list[CloudctlError]:
    """Return why a cloud in this state must not be shut down without a reason; empty when it may.

    Args:
        status: what ``cloudctl status --output json`` prints.
        osds: how many the site has.
    """
    hint = "mend it first, or shut down all the same with --force REASON"
    errors: list[CloudctlError] = []
    for problem in status["problems"]:
        if not problem["warning"]:
            errors.append(
                CheckFailed(problem["ref"], problem["message"], where=problem["where"] or None, hint=hint)
            )
    ceph = status.get("ceph") or {}
    if osds and ceph.get("pgs") and (dirty := dirty_pgs(ceph["pgs"])):
        listed = ", ".join(f"{count} {state}" for state, count in sorted(dirty.items()))
        errors.insert(
            0,
            CheckFailed(
                "ceph-pgs-not-clean", f"placement groups are not clean: {listed}", where="ceph",
                hint="wait until Ceph has recovered (cloudctl status), or give --force REASON",
            ),
        )  # fmt: skip
    return errors


# -- flags -------------------------------------------------------------------------------------


def own_flags(wanted: Sequence[str], before: Collection[str]) -> list[str]:
    """Return the flags that we set, and later unset: those that nobody had set before.

    >>> own_flags(["noout", "pause"], ["noout", "noscrub"])
    ['pause']
    """
    return [flag for flag in wanted if flag not in before]


# -- Ceph after a start ------------------------------------------------------------------------


FOLLOWS_FROM_ABSENCE = frozenset(
    {
        "MON_DOWN", "OSD_DOWN", "OSD_HOST_DOWN", "OSD_ROOT_DOWN", "PG_DEGRADED", "PG_AVAILABILITY",
        "OBJECT_UNFOUND", "OBJECT_MISPLACED", "CEPHADM_HOST_CHECK_FAILED", "CEPHADM_FAILED_DAEMON",
        "MGR_DOWN", "PG_RECOVERY_FULL", "CEPHADM_REFRESH_FAILED",
    }
)  # fmt: skip
"""Health checks that are expected while a node of the cluster is absent."""


def ceph_complaints(state: Mapping[str, Any], harmless: Collection[str], *, absent: bool) -> list[str]:
    """Return what keeps a cluster from counting as healthy; empty when it does.

    Args:
        state: as ``parse_ceph`` returns it.
        harmless: health checks that say nothing about data.
        absent: a node of the cluster is absent, and the operator goes on without it.
    """
    if absent:
        # Reads and writes must work; what is only incomplete has to wait for the node.
        bad = {s: n for s, n in state["pgs"].items() if n and "active" not in s.split("+")}
        allowed = set(harmless) | (FOLLOWS_FROM_ABSENCE - {"OBJECT_UNFOUND"})
    else:
        bad = dirty_pgs(state["pgs"])
        allowed = set(harmless)
    found = [f"{message} ({name})" for name, message in state["checks"].items() if name not in allowed]
    found += [f"{count} placement groups are {name}" for name, count in sorted(bad.items())]
    if not state["mgr"]:
        found.append("no manager is active")
    if state["health"] == "HEALTH_ERR" and not found:
        found.append("it reports HEALTH_ERR")
    return found


# -- absent nodes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Absence:
    """What the absence of nodes means for a start.

    Attributes:
        stop: errors: it goes no further without the operator's word.
        notes: what the operator is told while it goes on.
        without: the nodes that it goes on without.
    """

    stop: tuple[CloudctlError, ...] = ()
    notes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def judge_absence(
    roles: Roles,
    absent: Collection[str],
    accepted: Collection[str],
    *,
    osds: Mapping[str, int],
    flags: Sequence[str],
) -> Absence:
    """Decide whether a cloud may come up without nodes.

    Storage nodes only with the operator's word: data could be incomplete, and Ceph would begin to copy. A
    minority of the controllers may be absent; without a majority nothing works. Computes take only their
    instances with them.

    Args:
        roles: of the nodes.
        absent: nodes that do not answer.
        accepted: nodes that the operator goes on without.
        osds: by storage node, how many OSDs it has.
        flags: Ceph flags that are ours and still set.
    """
    stop: list[CloudctlError] = []
    notes: list[str] = []
    kept = f"; nothing was changed in Ceph, the flags {', '.join(flags)} are still set" if flags else ""
    for node in [name for name in roles.all if name in absent]:
        if node in roles.storage:
            count = osds.get(node, 0)
            lost = f"{count} OSD{'s' * (count != 1)} on it"
            if node not in accepted:
                stop.append(
                    CheckFailed(
                        "storage-node-absent", f"the storage node does not answer: {lost}{kept}", where=node,
                        hint=f"switch it on and run cloudctl cluster up again, or go on without it: "
                        f"cloudctl cluster up --accept-missing {node}",
                    )
                )  # fmt: skip
            else:
                notes.append(f"goes on without the storage node {node} ({lost}), as told")
        elif node in roles.control:
            notes.append(f"comes up without the controller {node}: it joins when it is switched on later")
        else:
            notes.append(f"comes up without the compute node {node}: its instances stay off")
    present = [node for node in roles.control if node not in absent]
    if roles.control and len(present) <= len(roles.control) // 2:
        gone = [node for node in roles.control if node in absent]
        stop.append(
            CheckFailed(
                "controllers-absent",
                f"{len(present)} of {len(roles.control)} controllers answer: no majority{kept}",
                where=", ".join(gone),
                hint="switch on more of them, then run cloudctl cluster up again",
            )
        )
    without = tuple(name for name in roles.all if name in absent)
    return Absence(tuple(stop), tuple(notes), without)


# -- instances ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instance:
    """A VM as the compute API tells it.

    Attributes:
        status: ACTIVE, SHUTOFF, PAUSED …
        task: what is being done with it; empty when nothing is.
        power: 1 runs, 3 paused, 4 off, 7 suspended; 0 unknown.
    """

    id: str
    name: str
    host: str
    status: str
    task: str = ""
    power: int = 0

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Guests:
    """What happens to each instance when the cloud goes down.

    Attributes:
        stop: they run; they are stopped, and started again later.
        leave: they are off already, or their memory is on disk.
        odd: they hold a running guest that the compute API would not stop (paused, in rescue).
        busy: something is being done with them.
    """

    stop: tuple[Instance, ...] = ()
    leave: tuple[Instance, ...] = ()
    odd: tuple[Instance, ...] = ()
    busy: tuple[Instance, ...] = ()


_ODD = frozenset({"PAUSED", "RESCUE", "VERIFY_RESIZE"})


def sort_guests(instances: Iterable[Instance]) -> Guests:
    """Sort the instances by what a shutdown does with them."""
    parts: dict[str, list[Instance]] = {"stop": [], "leave": [], "odd": [], "busy": []}
    for instance in instances:
        if instance.task or instance.status in ("BUILD", "MIGRATING", "RESIZE", "REBUILD", "PASSWORD"):
            kind = "busy"
        elif instance.status in ("ACTIVE", "REBOOT", "HARD_REBOOT"):
            kind = "stop"
        elif instance.status in _ODD and instance.power not in (4, 7):
            kind = "odd"
        else:
            kind = "leave"
        parts[kind].append(instance)
    return Guests(**{kind: tuple(found) for kind, found in parts.items()})


def next_batch(waiting: Sequence[Instance], working: Iterable[Instance], *, per_host: int) -> list[Instance]:
    """Return the instances to begin with now, so that no host works on more than ``per_host`` of them."""
    load: dict[str, int] = {}
    for instance in working:
        load[instance.host] = load.get(instance.host, 0) + 1
    chosen = []
    for instance in waiting:
        if load.get(instance.host, 0) < per_host:
            load[instance.host] = load.get(instance.host, 0) + 1
            chosen.append(instance)
    return chosen


def start_action(instance: Instance | None, *, tried: bool) -> str:
    """Return what an instance that should run needs: done, wait, start, reset, reboot, gone, left, failed.

    Args:
        instance: as it is now; None when there is none any more.
        tried: a reboot was tried already.
    """
    if instance is None:
        return "gone"
    if instance.task:
        return "wait"
    if instance.status == "ACTIVE":
        if instance.power == 1:
            return "done"
        return "wait" if tried else "reboot"
    if instance.status in ("SHUTOFF", "STOPPED"):
        return "start"
    if instance.status == "ERROR":
        return "failed" if tried else "reset"
    if instance.status in ("REBOOT", "HARD_REBOOT", "BUILD"):
        return "wait"
    # Somebody paused, suspended or shelved it meanwhile: theirs to undo.
    return "left"


# -- a journal that is continued ---------------------------------------------------------------


def is_stale(started: str, now: datetime, *, stopped_anything: bool) -> bool:
    """Tell whether an unfinished shutdown begins anew: its backup is old and nothing was stopped yet."""
    if stopped_anything:
        return False
    try:
        return now - datetime.fromisoformat(started) > NOTHING_STOPPED_TTL
    except ValueError:
        return True


# -- the database's members --------------------------------------------------------------------


def safe_without(absent: Collection[str], accepted: Collection[str], complete: Collection[str]) -> list[str]:
    """Return the absent members that the database may be recovered without.

    Those that the operator accepts; and after an ordered shutdown, all, as long as a member is present that
    was seen to hold every write after the last client had gone.

    Args:
        complete: members that held every write.
    """
    if set(complete) - set(absent):
        return sorted(absent)
    return sorted(set(absent) & set(accepted))
