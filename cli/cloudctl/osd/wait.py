"""Waiting for data to be where it should be, with progress and without an end that only a clock decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cloudctl.errors import CloudctlError, Unreachable, VerifyFailed
from cloudctl.osd.cluster import Cluster
from cloudctl.osd.remote import Report, read
from cloudctl.site.model import Site
from cloudctl.status.summary import _CEPH_WARNINGS as HARMLESS

POLL = 3.0
"""Seconds between two looks."""


def pause() -> None:
    """Wait for the next look."""
    time.sleep(POLL)


@dataclass(frozen=True)
class Waiting:
    """What is still to be done; ``left`` falls as it goes on.

    Attributes:
        left: anything that can be compared; a change means progress.
        words: for the operator; empty when there is nothing left.
    """

    left: tuple[object, ...]
    words: str


def others_complaints(cluster: Cluster) -> set[str]:
    """Return the complaints that are not about OSDs and data: those of before are not waited for."""
    return {name for name in cluster.health if not name.startswith(("PG_", "OBJECT_", "OSD_"))}


def for_data(cluster: Cluster, ignore: Collection[str] = ()) -> Waiting:
    """Return what is missing until every PG is active+clean and nothing complains. Pure.

    Args:
        ignore: complaints that were there before.
    """
    parts = []
    if cluster.unclean:
        total = sum(cluster.pg_states.values())
        parts.append(f"{total - cluster.unclean} of {total} PGs clean")
        if cluster.misplaced:
            parts.append(f"{cluster.misplaced} objects to move")
        if cluster.degraded:
            parts.append(f"{cluster.degraded} copies missing")
        if cluster.bytes_per_second:
            parts.append(f"{cluster.bytes_per_second / 2**20:.1f} MiB/s")
    complaints = [
        f"{name}: {text}" for name, text in sorted(cluster.health.items())
        if name not in HARMLESS and name not in ignore
        and not (cluster.unclean and name.startswith(("PG_", "OBJECT_")))
    ]  # fmt: skip
    left = (cluster.unclean, cluster.misplaced, cluster.degraded, tuple(complaints))
    return Waiting(left, ", ".join([*parts, *complaints]))


def for_empty(cluster: Cluster, ids: Collection[int]) -> Waiting:
    """Return what is missing until some OSDs hold nothing and their data is complete elsewhere. Pure."""
    held = {number: cluster.osds[number].pgs for number in ids if number in cluster.osds}
    on = sum(held.values())
    base = for_data(cluster)
    # A flag, or a node that is off, need not hold up the emptying; data that is not complete must.
    unclean = cluster.unclean
    words = []
    if on:
        words.append(f"{on} PGs still on {', '.join(f'osd.{n}' for n in held if held[n])}")
    if unclean:
        words.append(base.words)
    return Waiting((on, unclean, cluster.misplaced, cluster.degraded), "; ".join(words))


def until(
    site: Site,
    what: Callable[[Cluster], Waiting],
    *,
    report: Report,
    timeout: float,
    calm: int = 2,
    read_cluster: Callable[[Site], Cluster] = read,
    sleep: Callable[[float], None] = time.sleep,
) -> Cluster:
    """Wait until nothing is left to do.

    Args:
        what: says what is left.
        timeout: seconds without any progress.
        calm: so many looks in a row must find nothing left: PGs are looked at with a delay.

    Returns:
        The cluster then.

    Raises:
        VerifyFailed: no progress for ``timeout`` seconds.
        Unreachable: no monitor answers for that long.
    """
    moved, left, quiet, said = time.monotonic(), None, 0, ""
    while True:
        try:
            cluster = read_cluster(site)
            waiting = what(cluster)
        except Unreachable as error:
            waiting, cluster = Waiting(("silent",), error.message), None
        except CloudctlError as error:
            if error.ref != "ceph-refused":  # a manager that has just begun knows no PGs yet
                raise
            waiting, cluster = Waiting(("refused",), error.message), None
        quiet = 0 if waiting.words else quiet + 1
        if cluster is not None and quiet >= calm:
            return cluster
        if waiting.left != left:
            moved, left = time.monotonic(), waiting.left
        if waiting.words and waiting.words != said:
            report(waiting.words)
            said = waiting.words
        if time.monotonic() - moved > timeout:
            raise VerifyFailed(
                "osd-no-progress", f"no progress for {timeout:.0f} s: {waiting.words}", where="ceph",
                hint="cloudctl status and `ceph health detail` tell more; then run the same again",
            )  # fmt: skip
        sleep(POLL)
