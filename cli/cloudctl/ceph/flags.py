"""The cluster-wide flags of Ceph's OSD map: reading, setting, unsetting, each confirmed by reading back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import mon_hosts, mon_nodes
from cloudctl.errors import ApplyFailed, CheckFailed, Unreachable, UsageError
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
    "full": "clients cannot write, as though the OSDs were full",
    "noautoscale": "the number of PGs stays as it is in every pool",
}
"""Flags that can be set and unset, and what each does."""

_MON = "ceph-*-mon[-.]*"
_CEPH = ("ceph", "--connect-timeout", "10", "-n", "mon.", "-k", "/var/lib/ceph/mon/ceph-{hostname}/keyring")
_SHOWN_AS = {"pauserd": "pause", "pausewr": "pause"}
_CHANGE = 'verb=$1; shift; flags=$1; shift; for flag in $flags; do "$@" osd "$verb" "$flag" || exit; done'
"""One process on one node for all flags: with a call for each, six of them would take half a minute."""


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
            hint = f"did you mean {close[0]!r}?" if close else known
            raise UsageError("flag-unknown", f"Ceph has no flag {name!r}", hint=hint)
    return list(dict.fromkeys(found))


def parse_flags(text: str) -> list[str]:
    """Return the flags that can be set by hand, from ``ceph osd dump --format json``. Pure."""
    flags = [_SHOWN_AS.get(flag, flag) for flag in str(json.loads(text).get("flags", "")).split(",")]
    return [flag for flag in FLAGS if flag in flags]


def mon_command(
    site: Site | Path, command: Sequence[str], *, timeout: int = 60, node: str | None = None
) -> tuple[str, str]:
    """Run a ``ceph`` command through a monitor that is in the quorum.

    Args:
        site: the site or its directory.
        command: without ``ceph`` itself.
        timeout: seconds.
        node: ask this monitor's node; default: all of them, at the same time, and take the first answer. So
            it has to be given for commands that change something.

    Returns:
        What it printed, and the node that answered.

    Raises:
        Unreachable: no monitor answers (none runs, or they have no quorum).
        ApplyFailed: the command itself was refused.
        CheckFailed: the site has no Ceph.
    """
    loaded = site if isinstance(site, Site) else load_site(site)
    return _ask(loaded, [*_client(loaded), *command], " ".join(command), timeout, node)


def _client(site: Site) -> list[str]:
    """Return ``ceph`` as called in a monitor's container, whose own configuration may name one monitor."""
    return [*_CEPH, "-m", ",".join(mon_hosts(site))]


def _ask(site: Site, command: Sequence[str], shown: str, timeout: int, node: str | None) -> tuple[str, str]:
    if not site.group("storage"):
        raise CheckFailed("ceph-absent", "the site has no storage nodes, so there is no Ceph cluster")
    nodes = [node] if node else [item.name for item in mon_nodes(site)]
    answers, failed = run_in(site, nodes, _MON, command, timeout=timeout)
    for name in nodes:
        if name in answers and answers[name]["rc"] == 0:
            return str(answers[name]["stdout"]), name
    reasons = {name: failed[name].message if name in failed else _reason(answers[name]) for name in nodes}
    for name, answer in answers.items():
        if not no_quorum(answer):
            raise ApplyFailed("ceph-refused", f"ceph {shown}: {reasons[name]}", where=name)
    said = "; ".join(f"{name}: {text}" for name, text in reasons.items())
    raise Unreachable(
        "ceph-no-quorum", f"no Ceph monitor answers: {said}",
        hint="a majority of the monitors must run: systemctl start ceph.target on their nodes",
    )  # fmt: skip


def no_quorum(answer: Mapping[str, Any]) -> bool:
    """Whether another monitor may know more: this one does not run, or is in no quorum. Pure."""
    text = str(answer.get("stderr") or "").lower()
    signs = ("timed out", "etimedout", "rados_connect", "connecting to the cluster", "is not running")
    return answer["rc"] in (124, 125, 126, 127, 137) or any(sign in text for sign in signs)


def _reason(answer: Mapping[str, Any]) -> str:
    lines = str(answer.get("stderr") or answer.get("stdout") or "").strip().splitlines()
    return lines[-1] if lines else f"ended with {answer['rc']}"


def read_flags(site: Site | Path) -> list[str]:
    """Return the flags that are set, of those that can be set by hand.

    Raises:
        Unreachable: no monitor is in a quorum.
    """
    return _read(site if isinstance(site, Site) else load_site(site))[0]


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


def _read(site: Site) -> tuple[list[str], str]:
    text, node = mon_command(site, ["osd", "dump", "--format", "json"])
    return parse_flags(text), node


def to_change(before: Iterable[str], names: Sequence[str], *, wanted: bool) -> list[str]:
    """Return which of the flags have to be changed. Pure."""
    present = set(before)
    return [name for name in names if (name in present) != wanted]


def _change(site: Site | Path, names: Sequence[str], *, wanted: bool) -> list[str]:
    loaded = site if isinstance(site, Site) else load_site(site)
    before, node = _read(loaded)
    todo = to_change(before, names, wanted=wanted)
    if not todo:
        return []
    verb = "set" if wanted else "unset"
    command = ["bash", "-c", _CHANGE, "flags", verb, " ".join(todo), *_client(loaded)]
    _ask(loaded, command, f"osd {verb} {' '.join(todo)}", 60 + 10 * len(todo), node)
    left = to_change(_read(loaded)[0], todo, wanted=wanted)
    if left:
        shown = "does not show them" if wanted else "still shows them"
        raise ApplyFailed(
            "flag-not-confirmed", f"{', '.join(left)}: {verb}, but Ceph {shown}", hint="run the same again"
        )
    return todo
