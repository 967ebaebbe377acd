"""``cluster up``: the steps, first to last.

Each looks at what is there first: after an ordered shutdown, a power cut, or a start that was interrupted the
same steps lead to the same end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cloudctl.ceph.flags import MAINTENANCE, read_flags, unset_flags
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, VerifyFailed
from cloudctl.operations import containers
from cloudctl.operations.steps import Journal, Step
from cloudctl.power import cephwatch, guests
from cloudctl.power.decide import Stage, judge_absence, sort_guests, start_stages
from cloudctl.power.names import CHECK_COMMANDS, DATABASE
from cloudctl.power.start import start_guests, start_stage, wait_for_ceph, wait_for_services
from cloudctl.power.world import World, instances_of, is_down, switch_on

CHECKED = ("clock-skew", "nic-", "network-", "disk-nearly-full")
"""Findings of the pre-checks that keep a cloud from starting."""
HELD_PHASE = "compute"
"""What starts instances again by itself must wait until it is known which ones ran."""


def build(world: World, journal: Journal, down: Journal) -> list[Step]:
    """Return all steps of a start.

    Args:
        world: the cloud.
        journal: of the start.
        down: of the shutdown before it, as far as there was one.
    """
    stages = start_stages(world.tiers, DATABASE)
    steps = [_nodes(world, down), _checks(world)]
    if world.osds:
        steps += [_ceph(world), _flags(world, down), _health(world)]
    steps.append(_hold(world, stages))
    for stage in stages:
        if stage.key.startswith(HELD_PHASE):
            continue
        steps.append(_start(world, stage, down))
    steps.append(_recorded(world, down))
    steps += [_start(world, stage, down) for stage in stages if stage.key.startswith(HELD_PHASE)]
    return [*steps, _services(world), _dashboard(world), _instances(world), _verify(world)]


def _absent(journal: Journal) -> list[str]:
    return list(journal.facts.get("absent", []))


def _present(journal: Journal, nodes: Sequence[str]) -> list[str]:
    absent = _absent(journal)
    return [node for node in nodes if node not in absent]


def our_flags(down: Journal) -> list[str]:
    """Return the flags that a shutdown set, and that nobody has unset since."""
    return (
        list(down.facts.get("flags_ours", [])) if is_down(down) and not down.facts.get("flags_unset") else []
    )


def _nodes(world: World, down: Journal) -> Step:
    def run(journal: Journal) -> str:
        accepted = sorted({*journal.facts.get("accepted", []), *world.accepted})
        world.accepted = accepted
        journal.keep(accepted=accepted)
        silent = switch_on(world, world.roles.all, optional=accepted)
        absence = judge_absence(world.roles, silent, accepted, osds=world.osds, flags=our_flags(down))
        if absence.stop:
            raise absence.stop[0] if len(absence.stop) == 1 else MultiError(absence.stop)
        for text in absence.notes:
            world.note(text)
        journal.keep(absent=list(absence.without))
        nodes = _present(journal, world.roles.all)
        containers.look(world.site, nodes).all_or_raise()
        return f"{len(nodes)} of {len(world.roles.all)} nodes answer"

    return Step(
        "nodes", "Switch the nodes on, and wait until they answer", run, world.roles.all,
        [world.driver.command(world.roles.all), "ssh (every node)"], every_time=True,
    )  # fmt: skip


def _checks(world: World) -> Step:
    def run(journal: Journal) -> str:
        from cloudctl.checks.collect import check

        checked = check(world.site)
        found = [finding for finding in checked.findings if finding.ref.startswith(CHECKED)]
        warned: dict[str, list[str]] = {}
        for finding in found:
            if finding.warning and finding.node not in warned.setdefault(finding.message, []):
                warned[finding.message].append(str(finding.node))
        for message, where in warned.items():
            world.note(f"{message} ({', '.join(where)})")
        errors = [finding.as_error() for finding in found if not finding.warning]
        errors += [error for node, error in checked.silent.items() if node not in _absent(journal)
                   and node in world.roles.all]  # fmt: skip
        if errors:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
        return f"clocks and networks of {checked.nodes} nodes are right"

    return Step(
        "checks", "Check clocks and networks", run, world.roles.all, ["cloudctl check (clocks, links, pings)"]
    )


def _ceph(world: World) -> Step:
    def run(journal: Journal) -> str:
        return wait_for_ceph(world, without=_absent(journal), accepted=world.accepted)

    return Step(
        "ceph", "Wait until Ceph's daemons are really there", run, cephwatch.nodes_of(world.site, "all"),
        ["systemctl start 'ceph-*' (what does not run)", "ceph quorum_status",
         "ceph daemon osd.N status (each OSD on its own node, since the map lies with nodown set)"],
    )  # fmt: skip


def _flags(world: World, down: Journal) -> Step:
    ours = our_flags(down)

    def run(journal: Journal) -> str:
        mine = our_flags(down)
        if mine:
            unset_flags(world.site, mine)
            down.keep(flags_unset=True)
        left = read_flags(world.site)
        if "pause" in left and "pause" not in down.facts.get("flags_before", []):
            raise CheckFailed(
                "ceph-paused",
                f"Ceph's flag pause is set, and no shutdown of ours set it ({', '.join(left)})",
                where="ceph", hint="if nobody wants it: cloudctl ceph flags unset maintenance; then run "
                "cloudctl cluster up again",
            )  # fmt: skip
        own = f"; left as they are: {', '.join(left)}" if left else ""
        return (f"unset {', '.join(mine)}" if mine else "none of ours is set") + own

    return Step(
        "flags", "Unset the Ceph flags that the shutdown set, and no others", run,
        cephwatch.nodes_of(world.site, "mon")[:1],
        [f"ceph osd unset {flag}" for flag in ours] or [f"ceph osd unset … (of {', '.join(MAINTENANCE)})"],
    )  # fmt: skip


def _health(world: World) -> Step:
    def run(journal: Journal) -> str:
        cluster = set(cephwatch.nodes_of(world.site, "all"))
        absent = bool(cluster & set(_absent(journal))) or bool(cluster & set(world.accepted))
        cephwatch.mark_down(world.site, cluster & set(_absent(journal)), report=world.say)
        return cephwatch.wait_for_health(world.site, absent=absent, report=world.say)

    return Step(
        "health",
        "Wait until Ceph is healthy",
        run,
        (),
        ["ceph osd down (those of absent nodes)", "ceph status"],
    )


def _hold(world: World, stages: Sequence[Stage]) -> Step:
    held = [stage for stage in stages if stage.key.startswith(HELD_PHASE)]
    names = dict.fromkeys(name for s in held for found in s.containers().values() for name in found)

    def run(journal: Journal) -> str:
        from cloudctl import galera

        members = galera.read_members(world.site, probe=False)
        present = {node: member for node, member in members.items() if node not in _absent(journal)}
        if any(member.running and member.primary for member in present.values()):
            return "the database serves: nothing to hold back"
        stopped: dict[str, list[str]] = {}
        for stage in held:
            mine = stage.without(_absent(journal))
            for node, names in containers.stop(world.site, mine.reversed(), report=world.say).items():
                stopped.setdefault(node, []).extend(names)
        count = sum(map(len, stopped.values()))
        return f"{count} containers held back" if count else "nothing runs ahead of the database"

    return Step(
        "hold", "Hold back what would start instances before it is known which ones ran", run,
        [node for stage in held for node in stage.nodes],
        [f"docker stop {' '.join(names)} (only where the database does not serve)"],
    )  # fmt: skip


def _start(world: World, stage: Stage, down: Journal) -> Step:
    def run(journal: Journal) -> str:
        mine = stage.without(_absent(journal))
        if stage.key == "database":
            from cloudctl.power.start import recover_database

            complete = down.facts.get("galera_complete", []) if is_down(down) else []
            detail = recover_database(world, mine, absent=_absent(journal), complete=complete)
            if complete:
                # From now on it is written to: what was said about its members no longer holds.
                down.keep(galera_complete=[])
            return detail
        return start_stage(world, mine, journal)

    return Step(f"start-{stage.key}", stage.title, run, stage.nodes, start_commands(stage))


def start_commands(stage: Stage) -> list[str]:
    """Return what starting a stage does, nodes that do the same in one line."""
    lines: dict[str, list[str]] = {}
    if stage.key == "database":
        nodes = [node for node, names in stage.containers().items() if DATABASE in names]
        others = {node: [n for n in names if n != DATABASE] for node, names in stage.containers().items()}
        for node, names in others.items():
            if names:
                lines.setdefault(f"docker start {' '.join(names)}", []).append(node)
        how = "the most advanced member first, then one at a time"
        first = f"{', '.join(nodes)}: cloudctl galera recover ({how})"
        return [first, *(f"{', '.join(on)}: {command}" for command, on in lines.items())]
    for node, groups in stage.groups.items():
        command = "; ".join(f"docker start {' '.join(group)}" for group in groups)
        lines.setdefault(command, []).append(node)
    return [f"{', '.join(nodes)}: {command}" for command, nodes in lines.items()]


def _recorded(world: World, down: Journal) -> Step:
    def run(journal: Journal) -> str:
        if is_down(down) and "instances" in down.facts:
            journal.keep(instances=down.facts["instances"])
            return f"{len(journal.facts['instances'])} ran when the cloud was shut down"
        # No shutdown wrote it down: the compute database knows what should run.
        found = sort_guests(guests.Cloud(world.site).instances())
        running = [*found.stop, *(i for i in found.busy if i.status in ("ACTIVE", "REBOOT", "HARD_REBOOT"))]
        journal.keep(instances=[instance.as_dict() for instance in running])
        return f"{len(running)} ran, by the compute database"

    return Step(
        "recorded", "Find out which instances ran", run, (), ["openstack server list --all-projects --long"]
    )


def _services(world: World) -> Step:
    def run(journal: Journal) -> str:
        from cloudctl.netcheck.collect import ping_all
        from cloudctl.netcheck.pairs import culprits

        detail = wait_for_services(world, without=_absent(journal))
        answers, silent = ping_all(world.site)
        gone = {*silent, *_absent(journal)}
        asked = {
            node: [peer for peer in peers if peer["node"] not in gone]
            for node, peers in answers.items()
            if node not in gone
        }
        causes = culprits(asked)
        if causes:
            listed = "; ".join(f"{c.network}: {' '.join(filter(None, (c.node, c.detail)))}" for c in causes)
            raise VerifyFailed(
                "network-broken", f"nodes do not reach each other: {listed}",
                hint="cloudctl network check names every pair; then run the same again",
            )  # fmt: skip
        return f"{detail}; every pair of nodes at full MTU"

    return Step(
        "services", "Check services, agents and networks", run, (),
        [*CHECK_COMMANDS, "cloudctl network check"],
    )  # fmt: skip


def _dashboard(world: World) -> Step:
    def run(journal: Journal) -> str:
        from cloudctl.power.dashboard import log_in

        return log_in(world.site)

    address = world.site.get("vip.external", None) or world.site.get("vip.internal")
    return Step("dashboard", "Log in to the dashboard", run, (), [f"https://{address}/"])


def _instances(world: World) -> Step:
    def run(journal: Journal) -> str:
        return start_guests(world, instances_of(journal), without=_absent(journal))

    return Step(
        "instances", "Start exactly the instances that ran", run, (),
        ["openstack server start (every instance that ran)", "openstack server list --all-projects"],
    )  # fmt: skip


def _verify(world: World) -> Step:
    def run(journal: Journal) -> str:
        from cloudctl.runs.lock import SiteLock
        from cloudctl.verify.steps import run_steps
        from cloudctl.verify.tenant import ALL_STEPS, make_world

        with SiteLock(world.site.path, "cluster up", name="verify.lock"):
            report = run_steps(
                ALL_STEPS,
                make_world(world.site),
                after=lambda o: world.say(f"{o.name}: {o.result}" + (f" ({o.detail})" if o.detail else "")),
            )
        if report.error:
            raise report.error
        return f"{len(report.outcomes)} steps passed"

    return Step("verify", "Try the cloud as a tenant", run, (), ["cloudctl verify"])


def close(journal: Journal, down: Journal) -> None:
    """The cloud is up: what the shutdown wrote down is used up."""
    journal.finish()
    if down.open:
        down.finish()
    if down.finished:
        down.keep(up=datetime.now(UTC).isoformat(timespec="seconds"))


def errors_of(error: CloudctlError) -> list[Mapping[str, Any]]:
    """Return an error's parts as data."""
    parts = error.errors if isinstance(error, MultiError) else [error]
    return [part.as_dict() for part in parts]
