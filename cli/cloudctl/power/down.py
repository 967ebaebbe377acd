"""``cluster down``: the steps, first to last, and how each is taken back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudctl.ceph.flags import MAINTENANCE, read_flags, set_flags, unset_flags
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, Unreachable
from cloudctl.operations import containers
from cloudctl.operations.steps import BEGUN, DONE, Journal, Step
from cloudctl.power import cephwatch, guests
from cloudctl.power.decide import (
    Guests,
    Instance,
    Stage,
    own_flags,
    refusals,
    sort_guests,
    stop_stages,
)
from cloudctl.power.names import BUS, DATABASE
from cloudctl.power.start import start_guests, start_stage, wait_for_ceph
from cloudctl.power.world import World, instances_of, reachable, silent_ones, switch_on, wait_until_off

BUSY_TIMEOUT = 90.0
"""Seconds that instances get to end what is being done with them."""
HARMLESS_KEYS = ("check", "record", "backup")
"""Steps that stop nothing."""


@dataclass
class Options:
    """What the operator wants.

    Attributes:
        power_off: switch the nodes off at the end.
        force: the reason for going down although something is wrong; empty: refuse.
    """

    power_off: bool = False
    force: str = ""


@dataclass
class Preview:
    """What is there now, for a dry run; empty where it was not read."""

    guests: Guests = field(default_factory=Guests)
    flags: list[str] | None = None


def stopped_anything(journal: Journal) -> bool:
    """Tell whether a step that stops something was begun and not taken back."""
    return any(
        entry.get("state") in (BEGUN, DONE)
        for key, entry in journal.as_dict().get("steps", {}).items()
        if key not in HARMLESS_KEYS
    )


# -- the steps ---------------------------------------------------------------------------------


def build(world: World, options: Options, journal: Journal, preview: Preview | None = None) -> list[Step]:
    """Return all steps of a shutdown.

    Args:
        world: the cloud.
        options: what the operator wants; what an earlier run was told counts on.
        journal: of the shutdown; its facts tell which nodes it goes without.
        preview: what is there now (a dry run).
    """
    preview = preview or Preview()
    power_off = options.power_off or bool(journal.facts.get("power_off"))
    stages = stop_stages(world.tiers, world.roles.control, DATABASE, BUS)
    steps = [
        _check(world, options),
        _record(world),
        _backup(world),
        _guests(world, preview),
        *(_stop(world, stage) for stage in stages),
    ]
    if world.osds:
        steps.append(_flags(world, preview))
        steps += [_ceph(world, key, kinds, words) for key, kinds, words in cephwatch.STOP_ORDER]
    if power_off:
        steps += [_power(world, kind, nodes) for kind, nodes in world.roles.off_order]
    return steps


def _present(journal: Journal, nodes: Sequence[str]) -> list[str]:
    absent = journal.facts.get("absent", [])
    return [node for node in nodes if node not in absent]


def _check(world: World, options: Options) -> Step:
    def run(journal: Journal) -> str:
        if stopped_anything(journal):
            return _still_there(world, journal, options)
        errors, absent = inspect(world)
        if errors and not options.force:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
        if errors:
            overridden = [error.render().splitlines()[0] for error in errors]
            journal.keep(force=options.force, overridden=overridden, absent=absent)
            for line in overridden:
                world.note(f"overridden ({options.force}): {line}")
            return f"{len(errors)} problems overridden: {options.force}"
        journal.keep(absent=[])
        return "healthy"

    return Step(
        "check", "Check that the cloud is healthy, and that nothing is under way", run, world.roles.all,
        ["cloudctl status", "ceph status (every placement group active+clean)"], every_time=True,
    )  # fmt: skip


def _still_there(world: World, journal: Journal, options: Options) -> str:
    """A shutdown that is continued: health is gone by now, but nodes that are still needed must answer."""
    off = [
        node
        for kind, nodes in world.roles.off_order
        if journal.state(f"power-{kind}") in (BEGUN, DONE)
        for node in nodes
    ]
    wanted = [node for node in _present(journal, world.roles.all) if node not in off]
    silent = silent_ones(world.site, wanted)
    if silent and not options.force:
        raise Unreachable(
            "node-unreachable", "nodes do not answer by SSH any more", where=", ".join(silent),
            hint="bring them back and run the same again, or go on without them with --force REASON; "
            "cloudctl cluster down --abort takes back what was done",
        )  # fmt: skip
    if silent:
        journal.keep(force=options.force, absent=[*journal.facts.get("absent", []), *silent])
        world.note(f"goes on without {', '.join(silent)} ({options.force})")
    return "going on"


def inspect(world: World) -> tuple[list[CloudctlError], list[str]]:
    """Return why the cloud must not be shut down now, and which nodes do not answer."""
    from cloudctl.commands.status import expected
    from cloudctl.status.collect import collect
    from cloudctl.status.summary import summarise

    facts, silent, api = collect(world.site)
    status = summarise(facts, silent, api, expected(world.site))
    found = refusals(status.as_dict(), osds=sum(world.osds.values()))
    # A node that does not answer is told as such, not as a problem of the cloud.
    errors: list[CloudctlError] = [*silent.values(), *(e for e in found if e.where not in silent)]
    if not api.get("errors"):
        errors += busy_guests(world)
    return errors, [node for node in world.roles.all if node in silent]


def busy_guests(world: World) -> list[CloudctlError]:
    """Return errors for instances that can't be shut down in good order now; waits for those under way."""
    cloud = guests.Cloud(world.site)
    deadline = time.monotonic() + BUSY_TIMEOUT
    told = False
    while True:
        found = sort_guests(cloud.instances())
        if not found.busy or time.monotonic() > deadline:
            break
        if not told:
            world.say(f"waiting for instances under way: {_names(found.busy)}")
            told = True
        time.sleep(2)
    errors: list[CloudctlError] = []
    if found.busy:
        listed = ", ".join(f"{i.name} ({i.task or i.status})" for i in found.busy)
        errors.append(
            CheckFailed("instances-busy", f"something is being done with instances: {listed}",
                        hint="wait until it ends, or give --force REASON")
        )  # fmt: skip
    if found.odd:
        listed = ", ".join(f"{i.name} ({i.status})" for i in found.odd)
        errors.append(
            CheckFailed(
                "instances-odd", f"instances that can't be shut down by the compute API: {listed}",
                hint="unpause or unrescue them; with --force REASON their guests are ended by the hypervisor",
            )
        )  # fmt: skip
    return errors


def _names(instances: Sequence[Instance]) -> str:
    return ", ".join(instance.name for instance in instances) or "none"


def _record(world: World) -> Step:
    def run(journal: Journal) -> str:
        carried: Mapping[str, Any] = journal.facts.get("carried", {})
        try:
            found = sort_guests(guests.Cloud(world.site).instances())
            running = [*found.stop, *found.odd, *found.busy]
        except CloudctlError as error:
            if not journal.facts.get("force"):
                raise
            world.note(f"the compute API is silent; the hypervisors are asked what runs ({error.message})")
            running = _from_hypervisors(world, journal)
        # Ran before an earlier shutdown, and was not started again since.
        known = {instance.id for instance in running}
        running += [Instance(**e) for e in carried.get("instances", []) if e["id"] not in known]
        flags: list[str] = []
        if world.osds:
            flags = carried["flags_before"] if "flags_before" in carried else read_flags(world.site)
        ours = own_flags(MAINTENANCE, flags) if world.osds else []
        journal.keep(
            instances=[instance.as_dict() for instance in running], flags_before=flags, flags_ours=ours
        )
        own = f"; Ceph's flags already set: {', '.join(flags)}" if flags else ""
        return f"{len(running)} instances run ({_names(running)}){own}"

    return Step(
        "record", "Write down which instances run, and which Ceph flags are set", run, (),
        ["openstack server list --all-projects --long",
         *(["ceph osd dump | grep flags"] if world.osds else [])],
    )  # fmt: skip


def _from_hypervisors(world: World, journal: Journal) -> list[Instance]:
    found, _failed = guests.domains(world.site, _present(journal, hypervisors(world)))
    return [
        Instance(id=uuid, name=uuid, host=node, status="ACTIVE", power=guests.RUNNING)
        for node, states in found.items()
        for uuid, state in states.items()
        if guests.is_running(state)
    ]


def hypervisors(world: World) -> list[str]:
    """Return the nodes that run guests."""
    return [node.name for node in world.site.group("compute")]


def _backup(world: World) -> Step:
    def run(journal: Journal) -> str:
        from cloudctl import backup

        manifest = backup.make(world.site, kind="full", report=world.say)
        journal.keep(backup=str(manifest.id), backup_path=str(manifest.path))
        return f"{manifest.id}, verified, in {manifest.path}"

    return Step(
        "backup", "Back up the database, and verify the backup; no further if that fails", run, (),
        ["cloudctl db backup", "cloudctl db verify"],
    )  # fmt: skip


def _guests(world: World, preview: Preview) -> Step:
    limit = float(world.site.get("power.guest_timeout", 300))

    def run(journal: Journal) -> str:
        wanted = instances_of(journal)
        computes = _present(journal, hypervisors(world))
        ids = {instance.id for instance in wanted}
        late: list[str] = []
        if wanted:
            world.say(f"shutting down {len(wanted)} instances: {_names(wanted)}")
            late = _stop_by_api(world, journal, wanted, limit)
        found, failed = guests.domains(world.site, computes)
        if failed:
            error = next(iter(failed.values()))
            raise error
        left = {
            node: [uuid for uuid, state in states.items() if guests.is_running(state)]
            for node, states in found.items()
        }
        ended = sum(len(uuids) for uuids in left.values())
        if ended:
            world.note(f"{ended} guests that the compute API did not stop are ended by their hypervisor")
            guests.end_domains(world.site, left)
            found, _failed = guests.domains(world.site, computes)
        names = {instance.id: instance.name for instance in wanted}
        hard = [names.get(uuid, uuid) for uuid in guests.forced(found, ids)]
        hard = sorted({*hard, *late})
        journal.keep(forced=hard)
        if hard:
            world.note(f"had to be forced off: {', '.join(hard)}")
        rest = f", {len(hard)} had to be forced: {', '.join(hard)}" if hard else ", all by themselves"
        return f"{len(wanted)} instances off{rest if wanted else ''}"

    def undo(journal: Journal) -> str:
        return start_guests(world, instances_of(journal), without=journal.facts.get("absent", []))

    commands = [f"openstack server stop {i.id}   # {i.name} on {i.host}" for i in preview.guests.stop]
    return Step(
        "guests", "Shut down the instances", run, hypervisors(world),
        [*(commands or ["openstack server stop (every instance that runs)"]),
         f"after {limit:.0f} s: virsh destroy", "virsh list (nothing is left)"],
        undo=undo,
    )  # fmt: skip


def _stop_by_api(world: World, journal: Journal, wanted: Sequence[Instance], limit: float) -> list[str]:
    forced = bool(journal.facts.get("force"))
    odd = {i.id for i in wanted if i.status != "ACTIVE" or i.task}
    try:
        cloud = guests.Cloud(world.site)
        # What the API would refuse is left to the hypervisor.
        mine = [i for i in wanted if i.id not in odd] if forced else list(wanted)
        return guests.stop_all(world.site, cloud, mine, limit=limit, report=world.say)
    except CloudctlError as error:
        if not forced or error.ref != "compute-api-silent":
            raise
        world.note("the compute API is silent: the hypervisors end the guests")
        return []


def _stop(world: World, stage: Stage) -> Step:
    def run(journal: Journal) -> str:
        mine = stage.without(journal.facts.get("absent", []))
        if stage.key == "database":
            return _stop_database(world, journal, mine)
        stopped = containers.stop(world.site, mine.reversed(), report=world.say)
        return f"{sum(map(len, stopped.values()))} containers stopped"

    def undo(journal: Journal) -> str:
        return start_stage(world, stage.without(journal.facts.get("absent", [])), journal)

    return Step(f"stop-{stage.key}", stage.title, run, stage.nodes, stop_commands(stage), undo=undo)


def stop_commands(stage: Stage) -> list[str]:
    """Return what stopping a stage does, nodes that do the same in one line."""
    lines: dict[str, list[str]] = {}
    if stage.key == "database":
        for node, names in stage.containers().items():
            others = [name for name in names if name != DATABASE]
            if others:
                lines.setdefault(f"docker stop {' '.join(others)}", []).append(node)
        shared = [f"{', '.join(nodes)}: {command}" for command, nodes in lines.items()]
        members = [node for node, names in stage.containers().items() if DATABASE in names]
        one_by_one = [f"{node}: docker stop {DATABASE}" for node in reversed(members)]
        if len(one_by_one) > 1:
            one_by_one[-1] += "   # the last one: it will be started first"
        return shared + one_by_one
    for node, groups in stage.reversed().items():
        command = "; ".join(f"docker stop {' '.join(group)}" for group in groups)
        lines.setdefault(command, []).append(node)
    return [f"{', '.join(nodes)}: {command}" for command, nodes in lines.items()]


def _stop_database(world: World, journal: Journal, stage: Stage) -> str:
    """Everything beside the database at once, then its members one at a time; the last one is noted."""
    others = {
        node: [name for name in names if name != DATABASE] for node, names in stage.containers().items()
    }
    containers.stop(world.site, others, report=world.say)
    members = [node for node, names in stage.containers().items() if DATABASE in names]
    from cloudctl import galera

    if "galera_complete" not in journal.facts:
        # Nobody writes any more: what all members have now is all that there is.
        journal.keep(galera_complete=complete_members(galera.read_members(world.site, probe=False)))
    complete = journal.facts["galera_complete"]
    order = sorted(reversed(members), key=lambda node: node in complete)
    for node in order:
        stopped = containers.stop(world.site, {node: [DATABASE]}, report=world.say)
        if stopped.get(node):
            journal.keep(galera_last=node)
    last = journal.facts.get("galera_last") or (order[-1] if order else "")
    return f"last member: {last}" + (f"; {len(complete)} members hold every write" if complete else "")


def complete_members(members: Mapping[str, Any]) -> list[str]:
    """Return the members that hold every write, seen while they run and nobody writes. Pure."""
    running = {node: member for node, member in members.items() if member.synced}
    newest = max((int(member.seqno) for member in running.values()), default=-1)
    return sorted(node for node, member in running.items() if newest >= 0 and int(member.seqno) == newest)


def _flags(world: World, preview: Preview) -> Step:
    def run(journal: Journal) -> str:
        ours = journal.facts["flags_ours"]
        set_flags(world.site, ours)
        shown = read_flags(world.site)
        missing = [flag for flag in MAINTENANCE if flag not in shown]
        if missing:
            raise CheckFailed(
                "flags-not-shown", f"Ceph does not show {', '.join(missing)}", where="ceph",
                hint="run the same again",
            )  # fmt: skip
        kept = [flag for flag in journal.facts["flags_before"] if flag not in ours]
        return f"all six show{'; yours before: ' + ', '.join(kept) if kept else ''}"

    def undo(journal: Journal) -> str:
        absent = journal.facts.get("absent", [])
        wait_for_ceph(world, without=absent, accepted=absent)
        unset_flags(world.site, journal.facts["flags_ours"])
        return cephwatch.wait_for_health(world.site, absent=bool(absent), report=world.say)

    wanted = own_flags(MAINTENANCE, preview.flags or [])
    already = [flag for flag in MAINTENANCE if flag not in wanted]
    return Step(
        "flags", "Set Ceph's six flags, and see that they show", run,
        cephwatch.nodes_of(world.site, "mon")[:1],
        [*(f"ceph osd set {flag}" for flag in wanted),
         *(f"{flag} is set already, and stays set later" for flag in already), "ceph osd dump | grep flags"],
        undo=undo,
    )  # fmt: skip


def _ceph(world: World, key: str, kinds: Sequence[str], words: str) -> Step:
    nodes = cephwatch.nodes_of(world.site, kinds[0])

    def run(journal: Journal) -> str:
        mine = _present(journal, nodes)
        return f"{cephwatch.stop(world.site, kinds, mine, report=world.say)} stopped"

    def undo(journal: Journal) -> str:
        return f"{cephwatch.start(world.site, kinds, _present(journal, nodes), report=world.say)} started"

    return Step(
        f"ceph-{key}", f"Stop Ceph's {words}", run, nodes,
        [f"systemctl stop 'ceph-*@{kind}.*'" for kind in kinds], undo=undo,
    )  # fmt: skip


_POWER_TITLES = {
    "compute": "Switch the compute nodes off",
    "storage": "Switch the storage nodes off",
    "control": "Switch the controllers off",
}


def _power(world: World, kind: str, nodes: Sequence[str]) -> Step:
    def run(journal: Journal) -> str:
        mine = _present(journal, nodes)
        on = reachable(world.site, mine)
        if on:
            try:
                containers.poweroff(world.site, on, report=world.say)
            except CloudctlError:
                # One that went off between the look and the call is what was wanted.
                if reachable(world.site, on):
                    raise
        wait_until_off(world, mine)
        return f"{len(on)} switched off" if on else "off already"

    def undo(journal: Journal) -> str:
        mine = _present(journal, nodes)
        silent = switch_on(world, mine)
        if silent:
            raise Unreachable(
                "node-absent", "nodes do not come back", where=", ".join(silent),
                hint="switch them on and run cloudctl cluster down --abort again, or cloudctl cluster up",
            )  # fmt: skip
        return f"{len(mine)} on again"

    return Step(f"power-{kind}", _POWER_TITLES[kind], run, nodes, ["systemctl poweroff"], undo=undo)


def preview_of(world: World) -> Preview:
    """Read what a dry run shows: the instances and the flags; what can't be read stays unknown."""
    preview = Preview()
    try:
        preview.guests = sort_guests(guests.Cloud(world.site).instances())
        if world.osds:
            preview.flags = read_flags(world.site)
    except CloudctlError as error:
        world.say(f"not read: {error.message}")
    return preview
