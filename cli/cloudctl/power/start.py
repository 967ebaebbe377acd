"""Starting things again: what both ``cluster up`` and ``cluster down --abort`` do."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cloudctl.errors import ApplyFailed, CloudctlError, MultiError, VerifyFailed
from cloudctl.operations import containers
from cloudctl.operations.call import call
from cloudctl.operations.steps import Journal
from cloudctl.power import cephwatch, guests
from cloudctl.power.decide import Instance, Stage, safe_without
from cloudctl.power.names import BUS, DATABASE, start_bus
from cloudctl.power.world import World
from cloudctl.status.probes import PROBES, parse

BUS_TIMEOUT = 180.0
SERVICES_TIMEOUT = 300.0


def wait_for_ceph(world: World, *, without: Collection[str], accepted: Collection[str]) -> str:
    """Start Ceph's daemons where they do not run, and wait until they are really there."""
    return cephwatch.wait_for_daemons(
        world.site, without=without, accepted=accepted, osds=world.osds, report=world.say
    )


def start_stage(world: World, stage: Stage, journal: Journal) -> str:
    """Start a stage's containers where they do not run, and wait until they are healthy."""
    if stage.key == "database":
        return recover_database(
            world,
            stage,
            absent=journal.facts.get("absent", []),
            complete=journal.facts.get("galera_complete", []),
        )
    members = [node for node, names in stage.containers().items() if BUS in names]
    size = sum(BUS in names for tier in world.tiers for names in tier.containers.values())
    if 0 < len(members) < size:
        start_bus(world.site, members, size, report=world.say)
    started = containers.start(world.site, stage.groups, report=world.say)
    count = sum(map(len, started.values()))
    total = sum(map(len, stage.containers().values()))
    if members:
        check_bus(world, members)
    return f"{count} of {total} containers started, all healthy"


def recover_database(
    world: World, stage: Stage, *, absent: Collection[str], complete: Collection[str]
) -> str:
    """Bring the database back where it is not healthy, then what belongs to it."""
    from cloudctl import galera

    others = {
        node: [name for name in names if name != DATABASE]
        for node, names in stage.containers().items()
        if node not in absent
    }
    members = galera.read_members(world.site, probe=False)
    missing = [node for node in members if node in absent]
    if galera.is_healthy({node: m for node, m in members.items() if node not in absent}):
        detail = "healthy already"
    else:
        accepted = safe_without(missing, world.accepted, complete)
        for node in accepted:
            why = "as told" if node in world.accepted else "another member holds every write"
            world.note(f"the database is recovered without {node}: {why}")
        try:
            # After an ordered shutdown its verified backup is minutes old, and every member has the same.
            found = galera.recover(
                world.site,
                accept_missing=tuple(accepted),
                copy=not set(complete) - set(absent),
                report=world.say,
            )
            detail = (
                f"{found.size} members at {found.uuid}:{found.position}, from {found.chosen}: {found.reason}"
            )
        except CloudctlError as error:
            # The members found each other meanwhile.
            if error.ref != "galera-healthy":
                raise
            detail = "healthy"
    containers.start(world.site, others, report=world.say)
    return detail


def check_bus(world: World, nodes: Sequence[str]) -> None:
    """Wait until every member of the message bus sees all the others.

    Raises:
        ApplyFailed: they do not find each other, or are apart.
    """
    deadline = time.monotonic() + BUS_TIMEOUT
    question = {"probes": {BUS: PROBES[BUS]}}
    while True:
        answers = call(world.site.path, "cloudctl_status", dict.fromkeys(nodes, question))
        complaint = bus_complaint({node: _told(answer) for node, answer in answers.ok.items()}, nodes)
        if not complaint:
            return
        if time.monotonic() > deadline:
            raise ApplyFailed(
                "bus-incomplete", f"the message bus is not whole: {complaint}", where=", ".join(nodes),
                hint=f"see the container {BUS} there; cloudctl {BUS} reset builds the cluster anew "
                "(messages under way are lost), then run the same again",
            )  # fmt: skip
        time.sleep(2)


def _told(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    probes = answer.get("ansible_facts", {}).get("cloudctl_status", {}).get("probes", {})
    return parse(BUS, probes[BUS])[0] if BUS in probes else None


def bus_complaint(told: Mapping[str, Mapping[str, Any] | None], nodes: Sequence[str]) -> str:
    """Return what is wrong with the message bus, empty when nothing is. Pure.

    Args:
        told: by node, as ``parse_erlang`` returns it; None for a silent one.
        nodes: the members that should be there.
    """
    for node in nodes:
        member = told.get(node)
        if member is None:
            return f"{node} does not tell its state"
        if member["partitions"]:
            return str(member["partitions"][0])
        if len(member["running"]) < len(nodes):
            return f"{node} sees {len(member['running'])} of {len(nodes)} members"
    return ""


def wait_for_services(world: World, *, without: Collection[str]) -> str:
    """Wait until every service and agent of compute, network and volumes reports; absent nodes' need not.

    Raises:
        VerifyFailed, MultiError: some do not.
    """
    from cloudctl.status.collect import collect_api

    deadline = time.monotonic() + SERVICES_TIMEOUT
    last = ""
    while True:
        api = collect_api(world.site)
        complaints = service_complaints(api, without)
        if not complaints:
            counts = (
                f"{len(api['compute'])} compute services, {len(api['network'])} network agents, "
                f"{len(api['volume'])} volume services"
            )
            return f"{counts} report"
        text = "; ".join(complaints)
        if text != last:
            world.say(f"waiting: {text}")
            last = text
        if time.monotonic() > deadline:
            raise VerifyFailed(
                "services-down", f"services do not report: {text}",
                hint="see their containers' logs on those nodes; then run the same again",
            )  # fmt: skip
        time.sleep(2)


def service_complaints(api: Mapping[str, Any], without: Collection[str]) -> list[str]:
    """Return which services do not report, of those that should. Pure.

    Args:
        api: as ``collect_api`` returns it.
        without: nodes that are absent.
    """
    found = [f"{name} API: {why}" for name, why in (api.get("errors") or {}).items()]
    for kind in ("compute", "network", "volume"):
        for row in api.get(kind) or []:
            host = str(row.get("host") or row["name"]).partition("@")[0]
            if row["enabled"] and not row["up"] and host not in without:
                found.append(f"{row['name']} on {host}")
    return found


def start_guests(world: World, wanted: Sequence[Instance], *, without: Collection[str]) -> str:
    """Start exactly the instances that ran.

    Raises:
        VerifyFailed: one that should run does not, and its node is there.
    """
    if not wanted:
        return "none ran"
    cloud = guests.Cloud(world.site)
    done, why = guests.start_all(cloud, wanted, without=without, report=world.say)
    for entry in why:
        world.note(f"instance {entry.name} was not started: {entry.reason}")
    errors: list[CloudctlError] = [
        VerifyFailed(
            "instance-not-running", f"{entry.name}: {entry.reason}",
            hint="cloudctl openstack -- server show tells more; then run the same again",
        )
        for entry in why
        if entry.kind in ("failed", "late")
    ]  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    return f"{len(done)} of {len(wanted)} run: {', '.join(sorted(done))}" if done else "none could be started"
