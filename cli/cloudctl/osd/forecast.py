"""What removing OSDs would do: where the data goes, how full that gets, and what would be lost. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloudctl.osd.cluster import Cluster, Osd, Pool

MOST_SKEW = 2.0
"""CRUSH does not fill OSDs evenly: one that holds more than its part goes on so, up to this factor."""


@dataclass(frozen=True)
class Forecast:
    """How the cluster would be.

    Attributes:
        full: how full each remaining OSD gets, 0 to 1.
        before: how full it is.
        moved_kb: data that has to be copied elsewhere (KiB).
        problems: why it must not be done: (reference, words); empty when it may.
    """

    full: Mapping[int, float] = field(default_factory=dict)
    before: Mapping[int, float] = field(default_factory=dict)
    moved_kb: int = 0
    problems: Sequence[tuple[str, str]] = ()

    @property
    def fullest(self) -> float:
        """How full the fullest OSD gets, 0 to 1."""
        return max(self.full.values(), default=0.0)


def spread(weights: Mapping[str, float], copies: int) -> dict[str, float]:
    """Return how many copies of the average object each place gets: by weight, but one at most.

    A place too large for its weight's part takes one copy of everything, and the others share the rest.
    """
    places = {name: weight for name, weight in weights.items() if weight > 0}
    if len(places) <= copies:
        return dict.fromkeys(places, 1.0)
    result: dict[str, float] = {}
    left = float(copies)
    while places:
        total = sum(places.values())
        whole = [name for name, weight in places.items() if weight * left >= total]
        if not whole:
            result.update({name: left * weight / total for name, weight in places.items()})
            break
        for name in whole:
            result[name] = 1.0
            del places[name]
        left -= len(whole)
    return result


def expected(osds: Collection[Osd], pools: Sequence[Pool]) -> dict[int, float]:
    """Return how much data CRUSH puts on each OSD (KiB)."""
    kb = {osd.id: 0.0 for osd in osds}
    for pool in pools:
        places = domains(osds, pool)
        weights = {name: sum(osd.weight * osd.share for osd in held) for name, held in places.items()}
        one_copy = pool.kb / max(1, pool.size)
        for name, part in spread(weights, pool.size).items():
            for osd in places[name]:
                kb[osd.id] += one_copy * part * osd.weight * osd.share / weights[name]
    return kb


def domains(osds: Collection[Osd], pool: Pool) -> dict[str, list[Osd]]:
    """Return the OSDs that take a pool's data by what holds one copy at most."""
    found: dict[str, list[Osd]] = {}
    for osd in osds:
        if osd.takes_data and pool.device_class in ("", osd.device_class):
            found.setdefault(osd.host if pool.domain == "host" else osd.name, []).append(osd)
    return found


def forecast(cluster: Cluster, ids: Collection[int], *, before: Cluster | None = None) -> Forecast:
    """Return what removing some OSDs would do.

    Args:
        cluster: as it is, or will be.
        ids: of the OSDs that go; those that are gone already do not matter.
        before: as it is, where it will be another one in more than these.

    Returns:
        With ``problems`` where it would lose data, take from a pool a place that its copies need, or bring an
        OSD above the ratio from which Ceph complains.
    """
    going = set(ids)
    here = list(cluster.osds.values())
    rest = [osd for osd in here if osd.id not in going]
    were = [
        # One that is off keeps its place until it goes.
        replace(osd, up=True, share=1.0) if osd.id in going else osd
        for osd in (before or cluster).osds.values()
    ]
    problems = lost(cluster) + places_lacking(were, rest, cluster.pools)
    holds, after = expected(here, cluster.pools), expected(rest, cluster.pools)
    full, now = {}, {}
    for osd in rest:
        if not osd.kb:
            continue
        fixed = max(0, osd.kb_used - osd.kb_data)
        skew = osd.kb_data / holds[osd.id] if holds[osd.id] > 0.01 * osd.kb else 1.0
        skew = min(MOST_SKEW, max(1.0, skew))
        now[osd.id] = osd.kb_used / osd.kb
        full[osd.id] = (fixed + after[osd.id] * skew) / osd.kb if osd.takes_data else now[osd.id]
    # CRUSH never puts less on what is left: an estimate below what is there is of no use.
    full = {number: max(value, now[number]) for number, value in full.items()}
    over = sorted(
        (number for number, value in full.items() if value >= cluster.nearfull), key=lambda n: -full[n]
    )
    if over:
        named = ", ".join(f"osd.{number} {full[number]:.0%} (now {now[number]:.0%})" for number in over[:4])
        problems.append(
            ("osd-near-full", f"it would fill {named}; Ceph complains from {cluster.nearfull:.0%} on")
        )
    moved = sum(osd.kb_data for osd in here if osd.id in going and osd.up)
    return Forecast(full, now, moved, problems)


def lost(cluster: Cluster) -> list[tuple[str, str]]:
    """Return whether any OSD may hold the only copy of something: (reference, words)."""
    problems = []
    if cluster.inactive:
        states = ", ".join(f"{count} {state}" for state, count in sorted(cluster.inactive.items()))
        problems.append(
            (
                "osd-data-loss",
                f"PGs without a reachable copy: {states}; an OSD that goes may hold it",
            )
        )
    if cluster.unfound:
        problems.append(
            ("osd-data-loss", f"{cluster.unfound} objects are not found: an OSD that is down may hold them")
        )
    return problems


def places_lacking(
    before: Collection[Osd], rest: Collection[Osd], pools: Sequence[Pool]
) -> list[tuple[str, str]]:
    """Return which pools would have fewer places than copies, and fewer than they have: (reference, words).

    Args:
        before: the OSDs as they are.
        rest: as they will be.
    """
    lacking: dict[tuple[int, str, str, int], list[str]] = {}
    for pool in pools:
        count = len(domains(rest, pool))
        if count < min(pool.size, len(domains(before, pool))):
            lacking.setdefault((pool.size, pool.device_class, pool.domain, count), []).append(pool.name)
    problems = []
    for (size, device_class, domain, count), names in lacking.items():
        what = "nodes" if domain == "host" else "OSDs"
        kind = (
            f" with OSDs of class {device_class}"
            if device_class
            else " with OSDs"
            if domain == "host"
            else ""
        )
        problems.append(
            (
                "osd-failure-domain",
                f"the pools {', '.join(sorted(names))} keep {size} copies on different {what}, and {count} "
                f"{what}{kind} would be left",
            )
        )
    return problems
