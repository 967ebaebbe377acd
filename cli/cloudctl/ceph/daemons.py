"""Ceph's daemons as the node's systemd sees them: read, stop and start them by kind.

They are cephadm's units, ``ceph-<fsid>@<kind>.<id>.service``. Stopping leaves them enabled: they start with
their node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import ceph_nodes
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError, UsageError
from cloudctl.operations.containers import ask, look
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

KINDS = ("mon", "mgr", "osd", "crash")
"""The kinds of daemons, in the order in which they start."""

STOP_ORDER = ("crash", "mgr", "mon", "osd")
"""The documented order (mons, then OSDs); managers and crash collectors have nothing to do without mons."""

Report = Callable[[str], None]
Units = dict[str, dict[str, Any]]


def ceph_units(site: Site | Path) -> list[str]:
    """Return the nodes that carry units of Ceph, monitors first; empty where the site has no Ceph."""
    loaded = site if isinstance(site, Site) else load_site(site)
    return [node.name for node in ceph_nodes(loaded)] if loaded.group("storage") else []


def read_ceph_units(site: Site | Path, nodes: Iterable[str] | None = None) -> dict[str, Units]:
    """Return the units of nodes (default: all that carry Ceph).

    Returns:
        By node and unit ``kind``, ``id``, ``fsid``, ``active`` (systemd's word: active, inactive, failed,
        activating …) and ``enabled``.

    Raises:
        CloudctlError, MultiError: a node does not answer.
    """
    wanted = ceph_units(site) if nodes is None else nodes
    return {node: answer["ceph"] for node, answer in look(site, wanted).all_or_raise().items()}


def stop_ceph(
    site: Site | Path, kind: str, nodes: Iterable[str] | None = None, *, report: Report = lambda line: None
) -> dict[str, list[str]]:
    """Stop the daemons of a kind on nodes (default: all), on all of them at the same time.

    Returns:
        By node, the units that were stopped.

    Raises:
        ApplyFailed, MultiError: a unit does not stop.
    """
    return _work(site, "ceph_stop", kind, nodes, report)


def start_ceph(
    site: Site | Path,
    kind: str,
    nodes: Iterable[str] | None = None,
    *,
    report: Report = lambda line: None,
    timeout: int = 300,
) -> dict[str, list[str]]:
    """Start the daemons of a kind on nodes (default: all) and wait until systemd calls them active.

    That says that they run, not that the cluster has taken them in.

    Args:
        site: the site or its directory.
        kind: one of ``KINDS``.
        nodes: default: all that carry Ceph.
        report: called with a line for each node.
        timeout: seconds.

    Returns:
        By node, the units that were started.

    Raises:
        ApplyFailed, MultiError: a unit does not start.
        CheckFailed: none of the nodes has a daemon of this kind.
    """
    return _work(site, "ceph_start", kind, nodes, report, timeout)


def _work(
    site: Site | Path,
    action: str,
    kind: str,
    nodes: Iterable[str] | None,
    report: Report,
    timeout: int = 300,
) -> dict[str, list[str]]:
    if kind not in KINDS:
        raise UsageError(
            "ceph-kind", f"Ceph has no daemons {kind!r} here", hint=f"one of: {', '.join(KINDS)}"
        )
    wanted = list(ceph_units(site) if nodes is None else nodes)
    call = {"action": action, "kinds": [kind], "timeout": timeout}
    answers = ask(site, dict.fromkeys(wanted, call), changing=True).all_or_raise()
    verb = "stopped" if action == "ceph_stop" else "started"
    for node, answer in answers.items():
        if answer["changed_names"]:
            report(f"{node}: {verb} {', '.join(answer['changed_names'])}")
    errors: list[CloudctlError] = [
        ApplyFailed(f"ceph-{kind}-not-{verb}", f"{unit} is {state['active']}", where=node,
                    hint=f"journalctl -u {unit}, on that node; then run the same again")
        for node, answer in answers.items()
        for unit, state in wrong(answer["ceph"], kind, running=action == "ceph_start").items()
    ]  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    if (
        action == "ceph_start"
        and wanted
        and not any(_of(answer["ceph"], kind) for answer in answers.values())
    ):
        raise CheckFailed(
            "ceph-daemons-missing",
            f"no {kind} of Ceph on {', '.join(wanted)}",
            hint="cloudctl deploy makes them",
        )
    return {node: list(answer["changed_names"]) for node, answer in answers.items()}


def _of(units: Units, kind: str) -> Units:
    return {name: unit for name, unit in units.items() if unit["kind"] == kind}


def wrong(units: Units, kind: str, *, running: bool) -> Units:
    """Return the units of a kind that do not run (or do, where they should not). Pure."""
    up = ("active", "activating", "reloading")
    return {
        name: unit
        for name, unit in _of(units, kind).items()
        if (unit["active"] != "active" if running else unit["active"] in up)
    }
