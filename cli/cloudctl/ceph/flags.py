"""The cluster-wide flags of Ceph's OSD map: reading, setting, unsetting, each confirmed by reading back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import mon_nodes
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError, Unreachable, UsageError
from cloudctl.operations.containers import run_in
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

MAINTENANCE = ("noout", "norecover", "norebalance", "nobackfill", "nodown", "pause")
"""The documented flags of a planned shutdown, in the order in which they are set."""

NAMED_SETS = {"maintenance": MAINTENANCE}

FLAGS: dict[str, str] = {
    "noout": "OSDs that are down are not marked out: their data is not copied elsewhere",
    "norecover": "nothing is recovered",
    "norebalance": "nothing is moved to balance the OSDs",
    "nobackfill": "nothing is backfilled",
    "nodown": "OSDs that do not answer are not marked down (what is reported as up may be off)",
    "pause": "clients can neither read nor write",
    "noup": "OSDs that start are not marked up",
    "noin": "OSDs that start are not marked in",
    "noscrub": "no scrubbing",
    "nodeep-scrub": "no deep scrubbing",
    "nosnaptrim": "removed snapshots are not trimmed",
    "notieragent": "no work of the cache tiers' agent",
    "noautoscale": "the number of placement groups stays as it is in every pool",
}
"""Flags that can be set and unset, and what each does."""

_MON = "ceph-*-mon[-.]*"
_CEPH = ("ceph", "--connect-timeout", "10", "-n", "mon.", "-k", "/var/lib/ceph/mon/ceph-{hostname}/keyring")
_SHOWN_AS = {"pauserd": "pause", "pausewr": "pause"}


def expand(names: Iterable[str]) -> list[str]:
    """Return the flags that the names stand for: flags, or the name of a set (``maintenance``). Pure.

    Raises:
        UsageError: an unknown flag, with a suggestion.
    """
    found: list[str] = []
    for name in names:
        if name in NAMED_SETS:
            found += NAMED_SETS[name]
        elif name in FLAGS:
            found.append(name)
        else:
            close = get_close_matches(name.lower(), [*FLAGS, *NAMED_SETS], 1)
            known = f"one of: {', '.join([*FLAGS, *NAMED_SETS])}"
            raise UsageError(
                "flag-unknown",
                f"Ceph has no flag {name!r}",
                hint=f"did you mean {close[0]!r}?" if close else known,
            )
    return list(dict.fromkeys(found))


def parse_flags(text: str) -> list[str]:
    """Return the flags that can be set by hand, from ``ceph osd dump --format json``. Pure."""
    flags = [_SHOWN_AS.get(flag, flag) for flag in str(json.loads(text).get("flags", "")).split(",")]
    return [flag for flag in FLAGS if flag in flags]


def mon_command(
    site: Site | Path, command: Sequence[str], *, timeout: int = 60, node: str | None = None
) -> tuple[str, str]:
    """Run a ``ceph`` command through a monitor that has a quorum.

    Args:
        site: the site or its directory.
        command: without ``ceph`` itself.
        timeout: seconds.
        node: ask this monitor first.

    Returns:
        What it printed, and the node that was asked.

    Raises:
        Unreachable: no monitor answers (none runs, or they have no quorum).
        ApplyFailed: the command itself was refused.
        ConfigError: the site has no Ceph.
    """
    loaded = site if isinstance(site, Site) else load_site(site)
    if not loaded.group("storage"):
        raise CheckFailed("ceph-absent", "the site has no storage nodes, so there is no Ceph cluster")
    nodes = [item.name for item in mon_nodes(loaded)]
    order = sorted(nodes, key=lambda name: name != node)
    reasons: dict[str, str] = {}
    for name in order:
        answers, failed = run_in(loaded, [name], _MON, [*_CEPH, *command], timeout=timeout)
        if name in failed:
            reasons[name] = failed[name].message
            continue
        answer = answers[name]
        if answer["rc"] == 0:
            return str(answer["stdout"]), name
        reasons[name] = _reason(answer)
        if not _no_quorum(answer):
            raise ApplyFailed("ceph-refused", f"ceph {' '.join(command)}: {reasons[name]}", where=name)
    said = "; ".join(f"{name}: {text}" for name, text in reasons.items())
    raise Unreachable(
        "ceph-no-quorum", f"no Ceph monitor answers: {said}",
        hint="cloudctl status shows the monitors; cloudctl ceph daemons start mon starts them",
    )  # fmt: skip


def _no_quorum(answer: Mapping[str, Any]) -> bool:
    """Whether another monitor may know more: this one does not run, or is in no quorum."""
    text = str(answer.get("stderr") or "").lower()
    return answer["rc"] in (124, 125, 126, 127, 137) or any(
        word in text
        for word in ("timed out", "etimedout", "rados_connect", "connecting to cluster", "is not running")
    )


def _reason(answer: Mapping[str, Any]) -> str:
    lines = str(answer.get("stderr") or answer.get("stdout") or "").strip().splitlines()
    return lines[-1] if lines else f"ended with {answer['rc']}"


def read_flags(site: Site | Path) -> list[str]:
    """Return the flags that are set, of those that can be set by hand.

    Raises:
        Unreachable: no monitor is in a quorum.
    """
    text, _node = mon_command(site, ["osd", "dump", "--format", "json"])
    return parse_flags(text)


def set_flags(site: Site | Path, names: Iterable[str]) -> list[str]:
    """Set flags, in the order given; those that are set already stay.

    Returns:
        Those that were not set before.

    Raises:
        ApplyFailed: a flag does not show afterwards.
        UsageError: there is no such flag; nothing was changed.
    """
    return _change(site, expand(names), wanted=True)


def unset_flags(site: Site | Path, names: Iterable[str]) -> list[str]:
    """Unset flags; see ``set_flags``.

    Returns:
        Those that were set before.
    """
    return _change(site, expand(names), wanted=False)


def _change(site: Site | Path, names: Sequence[str], *, wanted: bool) -> list[str]:
    loaded = site if isinstance(site, Site) else load_site(site)
    text, node = mon_command(loaded, ["osd", "dump", "--format", "json"])
    before = parse_flags(text)
    todo = [name for name in names if (name in before) != wanted]
    for name in todo:
        _text, node = mon_command(loaded, ["osd", "set" if wanted else "unset", name], node=node)
    if not todo:
        return []
    text, _node = mon_command(loaded, ["osd", "dump", "--format", "json"], node=node)
    after = parse_flags(text)
    verb = "set" if wanted else "unset"
    errors: list[CloudctlError] = [
        ApplyFailed(
            "flag-not-confirmed",
            f"{name} was {verb}, but Ceph does not show it so",
            hint="run the same again",
        )
        for name in todo
        if (name in after) != wanted
    ]
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    return todo
