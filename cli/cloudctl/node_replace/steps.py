"""The numbered steps of a replacement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloudctl.node.enroll import Request
from cloudctl.node_replace import decide, machine
from cloudctl.node_replace.members import fill
from cloudctl.node_replace.world import World, check_others
from cloudctl.operations.steps import Journal, Step
from cloudctl.runner import Event

WHOLE_TIMEOUT = 600
HEALTHY_TIMEOUT = 300
SETTLED_TIMEOUT = 180


@dataclass
class Run:
    """What the steps need of the command.

    Attributes:
        request: returns how the new machine is contacted (it asks for a password where one is wanted).
        confirm: asked about a host key.
        on_event: told of every event of the deploy.
    """

    request: Callable[[], Request]
    confirm: machine.Confirm
    on_event: Callable[[Event], None] = lambda event: None


def steps(world: World, run: Run) -> list[Step]:
    """Return the steps, in order; each looks at what is there first."""
    name, others = world.name, [node for node in world.others if world.names[node]]
    found = [
        Step(
            "majority", f"Without {name}, every cluster has a majority",
            lambda journal: _majority(world, journal), others, ["cloudctl status"], every_time=True,
        ),
        Step(
            "take-in", f"The new machine is {name}: pin its host key, install the deploy key",
            lambda journal: _take_in(world, run, journal), [name],
            [f"ssh-keygen -R {world.node.address}; ssh-copy-id root@{world.node.address}"],
        ),
    ]  # fmt: skip
    for member in world.members:
        if member.forget:
            found.append(
                Step(
                    f"forget-{member.status}", f"The others forget {name}: {member.title}",
                    lambda journal, member=member: world.forget(member),  # type: ignore[misc]
                    [world.keeper(member.container)], [" ".join(fill(member.forget, world.node))],
                )
            )  # fmt: skip
    if world.mon:
        found.append(
            Step(
                "forget-ceph", f"Ceph forgets {name}: its monitor, its host",
                lambda journal: world.ceph_forget(), [],
                [f"ceph orch host rm {name} --offline --force", f"ceph mon remove {name}"],
            )
        )  # fmt: skip
    for entry in world.leftovers:
        found.append(
            Step(
                f"clear-{entry.service}", f"Nothing else carries the name {name}: {entry.title}",
                lambda journal, entry=entry: world.clear(entry),  # type: ignore[misc]
                [world.keeper(entry.container)], [" ".join(fill(entry.listed, world.node))],
            )
        )  # fmt: skip
    found += [
        Step(
            "adopt", "Jobs that the cloud has done already stay done", lambda journal: _adopt(world, journal),
            [name],
        ),
        Step(
            "deploy", f"Make the machine {name}: packages, network, files, keys, containers",
            lambda journal: _deploy(world, run), [name], [f"cloudctl deploy --node {name}"],
        ),
    ]  # fmt: skip
    if world.mon:
        found.append(
            Step(
                "join-ceph", f"Ceph takes {name} in: host, monitor, manager",
                lambda journal: world.ceph_join(), [],
                [f"ceph orch host add {name} {world.node.address}", "ceph orch apply mon|mgr"],
            )
        )  # fmt: skip
    found.append(
        Step(
            "whole", "Every cluster has all its members",
            lambda journal: world.await_whole(WHOLE_TIMEOUT), [name, *others], every_time=True,
        )
    )  # fmt: skip
    for member in world.members:
        if member.complete:
            found.append(
                Step(
                    f"complete-{member.status}", f"{member.title}: the new member gets its part",
                    lambda journal, member=member: world.complete(member),  # type: ignore[misc]
                    [world.keeper(member.container)],
                    [" ".join(fill(command, world.node)) for command in member.complete],
                )
            )  # fmt: skip
    found += [
        Step(
            "healthy", "The cloud is healthy, nothing is registered twice",
            lambda journal: world.await_healthy(HEALTHY_TIMEOUT), [], ["cloudctl status"], every_time=True,
        ),
        Step(
            "settled", "A deploy would change nothing", lambda journal: _settled(world, journal), [],
            ["cloudctl plan"], every_time=True,
        ),
        Step(
            "untouched", "No container of another node was stopped, started or made anew",
            lambda journal: _untouched(world, journal), others, every_time=True,
        ),
    ]  # fmt: skip
    return found


def _majority(world: World, journal: Journal) -> str:
    lines = check_others(world)
    if "others" not in journal.facts:
        journal.keep(others=world.started([node for node in world.others if world.names[node]]))
    return "; ".join(lines)


def _take_in(world: World, run: Run, journal: Journal) -> str:
    fingerprint = machine.take_in(
        world.site, world.node, run.request(), confirm=run.confirm, say=world.report,
        ours=str(journal.facts.get("fingerprint") or ""),
    )  # fmt: skip
    journal.keep(fingerprint=fingerprint)
    return fingerprint


def _adopt(world: World, journal: Journal) -> str:
    plan = world.plan()
    changing = decide.changed_services(plan, world.name)
    done, due = decide.to_adopt(world.jobs(), world.name, changing)
    _own, left = decide.left_in(plan, world.name)
    journal.keep(left_before=left)
    if due:
        world.report(f"left to the deploy, their services are about to change: {', '.join(due)}")
    return world.adopt(done)


def _deploy(world: World, run: Run) -> str:
    done: dict[str, int] = {}
    for entry in world.deploy(run.on_event).changed:
        kind = str(entry.get("kind", "change"))
        done[kind] = done.get(kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(done.items())) or "nothing to do"


def _settled(world: World, journal: Journal) -> str:
    words, others = world.await_settled(SETTLED_TIMEOUT)
    if others:
        journal.keep(left=others)
        words += f"; elsewhere it would, as before the replacement: {', '.join(others)}"
    return words


def _untouched(world: World, journal: Journal) -> str:
    before: dict[str, Any] = journal.facts.get("others") or {}
    touched = decide.touched(before, world.started(list(before)))
    journal.keep(touched=touched)
    count = sum(len(found) for found in before.values())
    if touched:
        return f"{len(touched)} of {count} were: {', '.join(touched[:8])}"
    return f"{count} containers of {len(before)} nodes have the same id and start time as before"
