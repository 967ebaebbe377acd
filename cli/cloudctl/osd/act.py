"""Emptying and removing OSDs: what commands, and the removal of a whole node, are made of. Repeatable."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError
from cloudctl.osd import wait
from cloudctl.osd.cluster import Cluster
from cloudctl.osd.forecast import Forecast, forecast
from cloudctl.osd.remote import Report, Step, ask, mgr, mon, read
from cloudctl.site.model import Site

PEERING = 90.0
"""Seconds in which the placement groups of OSDs that died are expected to have agreed."""


def refuse(found: Forecast) -> None:
    """Refuse what a forecast finds wrong.

    Raises:
        CheckFailed, MultiError: one error for each problem.
    """
    hints = {
        "osd-near-full": "add OSDs first (cloudctl osd add), or delete data",
        "osd-failure-domain": "add OSDs on another node first (cloudctl osd add, cloudctl node add)",
        "osd-data-loss": "bring back the OSDs that are down (cloudctl status names them)",
    }
    errors: list[CloudctlError] = [
        CheckFailed(ref, words, where="ceph", hint=hints.get(ref)) for ref, words in found.problems
    ]
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


def read_at_rest(site: Site, report: Report = lambda line: None, *, timeout: float = PEERING) -> Cluster:
    """Read the cluster when its placement groups have agreed on who has them.

    For some seconds after OSDs died they do not, and look as if data were out of reach. The state at the end
    of the time is returned, whatever it is.

    Args:
        site: whose Ceph is asked.
        report: told once what is waited for.
        timeout: seconds.
    """
    end, told = time.monotonic() + timeout, False
    while True:
        cluster = read(site)
        # Those of an OSD that died are stale until another one has taken over.
        busy = [s for s in cluster.inactive if any(word in s for word in ("peering", "activating", "stale"))]
        if not busy or time.monotonic() > end:
            return cluster
        if not told:
            report(f"waiting: {sum(cluster.inactive[state] for state in busy)} PGs agree on who has them")
            told = True
        time.sleep(2)


def look_ahead(site: Site, ids: Collection[int]) -> Forecast:
    """Return what removing some OSDs would do to the cluster as it is now."""
    return forecast(read(site), ids)


def drain(site: Site, ids: Collection[int], report: Report = lambda line: None) -> Cluster:
    """Move all data away from OSDs and wait until it is complete elsewhere.

    Nothing is checked before; see ``forecast`` and ``refuse``. OSDs that do not exist any more are left out.

    Args:
        ids: of the OSDs.
        report: called with a line whenever something has changed.

    Returns:
        The cluster then.

    Raises:
        VerifyFailed: no progress for ``ceph.backfill.timeout`` seconds; running it again goes on.
    """
    cluster = read(site)
    here = [cluster.osds[number] for number in ids if number in cluster.osds]
    steps: list[Step] = [
        mon("osd crush reweight", name=osd.name, weight=0.0) for osd in here if osd.weight > 0
    ]
    # One that is off keeps its place in the map until it is out.
    steps += [mon("osd out", ids=[str(osd.id)]) for osd in here if not osd.up and osd.share > 0]
    if steps:
        ask(site, steps, "emptying OSDs", changing=True)
    numbers = [osd.id for osd in here]
    return wait.until(
        site,
        lambda now: wait.for_empty(now, numbers),
        report=report,
        timeout=site.get("ceph.backfill.timeout"),
    )


def remove(
    site: Site, ids: Collection[int], report: Report = lambda line: None, *, dead: bool = False
) -> list[int]:
    """Remove OSDs that hold nothing any more: their daemons, keys, and places in the maps.

    Args:
        ids: those that are gone already are left out.
        report: called with a line for each OSD.
        dead: their node does not answer: its daemons can't be removed, and are marked down.

    Returns:
        The ids that were removed.

    Raises:
        CheckFailed: Ceph says that data would be lost; nothing was changed.
        ApplyFailed: an OSD does not end.
    """
    cluster = read(site)
    here = [cluster.osds[number] for number in ids if number in cluster.osds]
    if not here:
        return []
    refuse_unsafe(site, [osd.id for osd in here])
    stop(site, [osd.id for osd in here], report, dead=dead)
    for osd in here:
        ask(
            site,
            [mon("osd purge-actual", id=osd.id, yes_i_really_mean_it=True)],
            f"removing {osd.name}",
            changing=True,
        )
        report(f"{osd.name} of {osd.host} is removed")
    return [osd.id for osd in here]


def refuse_unsafe(site: Site, ids: Sequence[int]) -> None:
    """Ask Ceph itself whether OSDs can be destroyed.

    Raises:
        CheckFailed: no.
    """
    question = mgr("osd safe-to-destroy", ids=[str(number) for number in ids], may_fail=True)
    (answer,) = ask(site, [question], "asking whether it is safe")
    if answer["rc"]:
        reason = (answer["err"] or answer["out"]).strip() or f"error {answer['rc']}"
        raise CheckFailed(
            "osd-data-loss", f"Ceph says that data would be lost: {reason}", where="ceph",
            hint="run the same again: it goes on emptying them",
        )  # fmt: skip


def stop(site: Site, ids: Sequence[int], report: Report, *, dead: bool = False, timeout: int = 90) -> None:
    """End the daemons of OSDs for good, and wait until the cluster calls them down.

    Raises:
        ApplyFailed: one is up after ``timeout`` seconds.
    """
    names = [f"osd.{number}" for number in ids]
    if not dead:
        # A daemon that is gone already is no error: an earlier run may have got so far.
        steps = [
            mgr("orch daemon rm", names=[name], force=True, may_fail=True, timeout=120) for name in names
        ]
        answers = ask(site, steps, f"ending {', '.join(names)}", changing=True)
        for name, answer in zip(names, answers, strict=False):
            if answer["rc"] and "unable to find" not in answer["err"].lower():
                report(f"{name}: {answer['err'].strip()}")
    for tries in range(timeout // 3):
        cluster = read(site)
        up = [number for number in ids if number in cluster.osds and cluster.osds[number].up]
        if not up:
            return
        if dead or tries == 5:
            ask(
                site,
                [mon("osd down", ids=[str(number) for number in up])],
                "marking OSDs down",
                changing=True,
            )
        wait.pause()
    raise ApplyFailed(
        "osd-still-up", f"{', '.join(f'osd.{number}' for number in up)} did not end", where="ceph",
        hint="see `ceph orch ps --daemon-type osd`; then run the same again",
    )  # fmt: skip
