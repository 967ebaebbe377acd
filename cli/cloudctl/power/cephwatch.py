"""Ceph while the cloud goes down and comes up: daemons that really run, and health worth going on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cloudctl.ceph.daemons import KINDS, ceph_units, read_ceph_units, wrong
from cloudctl.ceph.desired import mon_nodes
from cloudctl.ceph.flags import mon_command
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError
from cloudctl.operations.call import call
from cloudctl.operations.containers import ask
from cloudctl.power.decide import ceph_complaints
from cloudctl.site.model import Site
from cloudctl.status.probes import parse_ceph
from cloudctl.status.summary import _CEPH_WARNINGS as HARMLESS

Report = Callable[[str], None]
STOP_ORDER = (
    ("mon", ("mon",), "monitors"),
    ("mgr", ("mgr", "crash"), "managers"),
    ("osd", ("osd",), "OSDs"),
)
"""Key, kinds of daemons and their name, in the documented order of a shutdown."""
DAEMONS_TIMEOUT = 240.0
HEALTH_TIMEOUT = 420.0
WARNINGS_TIMEOUT = 60.0
"""Seconds that warnings get to go away while all data is there."""


def nodes_of(site: Site, kind: str) -> list[str]:
    """Return the nodes on which daemons of a kind may run; ``all``: of any kind."""
    if not site.group("storage"):
        return []
    if kind == "mon":
        return [node.name for node in mon_nodes(site)]
    return [node.name for node in site.group("storage")] if kind == "osd" else ceph_units(site)


def stop(site: Site, kinds: Sequence[str], nodes: Sequence[str], *, report: Report) -> int:
    """Stop the daemons of some kinds, all at once; they stay enabled. Returns how many were stopped."""
    return _work(site, "ceph_stop", kinds, nodes, report)


def start(site: Site, kinds: Sequence[str], nodes: Sequence[str], *, report: Report) -> int:
    """Start the daemons of some kinds where they do not run. Returns how many were started."""
    return _work(site, "ceph_start", kinds, nodes, report)


def _work(site: Site, action: str, kinds: Sequence[str], nodes: Sequence[str], report: Report) -> int:
    running = action == "ceph_start"
    calls = {node: {"action": action, "kinds": list(kinds)} for node in nodes}
    answers = ask(site, calls, changing=True).all_or_raise()
    verb = "started" if running else "stopped"
    errors: list[CloudctlError] = []
    count = 0
    for node, answer in answers.items():
        names = [_short(name) for name in answer["changed_names"]]
        count += len(names)
        if names:
            report(f"{node}: {verb} {', '.join(names)}")
        errors += [
            ApplyFailed(
                f"ceph-not-{verb}", f"{_short(unit)} is {state['active']}", where=node,
                hint=f"journalctl -u '{unit}', on that node; then run the same again",
            )
            for kind in kinds
            for unit, state in wrong(answer["ceph"], kind, running=running).items()
        ]  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    return count


def _short(unit: str) -> str:
    """Return ``osd.3`` of a unit's long name."""
    return unit.partition("@")[2].removesuffix(".service") or unit


def osd_questions(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return by node what to ask each of its OSDs: its own state, by its own socket. Pure.

    The map of the cluster can't be asked: with nodown set it calls those up that are off.
    """
    return {
        node: {
            "probes": {
                f"osd.{unit['id']}": {
                    "container": f"ceph-*-osd[-.]{unit['id']}",
                    "command": ["ceph", "daemon", f"osd.{unit['id']}", "status"],
                }
                for unit in owned.values()
                if unit["kind"] == "osd"
            }
        }
        for node, owned in found.items()
        if any(unit["kind"] == "osd" for unit in owned.values())
    }


def osd_states(site: Site, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """Return by node and OSD what it says of itself: active, booting …; off where it is silent."""
    questions = osd_questions(found)
    answers = call(site.path, "cloudctl_status", questions)
    states: dict[str, dict[str, str]] = {}
    for node, question in questions.items():
        told = answers.ok.get(node, {}).get("ansible_facts", {}).get("cloudctl_status", {}).get("probes", {})
        states[node] = {name: read_osd(told.get(name)) for name in question["probes"]}
    return states


def read_osd(answer: Mapping[str, Any] | None) -> str:
    """Read ``ceph daemon osd.N status``. Pure."""
    if answer is None or answer.get("rc") != 0:
        return "off"
    try:
        return str(json.loads(answer["stdout"])["state"])
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def wait_for_daemons(
    site: Site,
    *,
    without: Collection[str],
    accepted: Collection[str],
    osds: Mapping[str, int],
    report: Report,
) -> str:
    """Start what does not run, and wait until every daemon is there.

    Monitors are there when they are in quorum, an OSD when it says so itself.

    Args:
        without: nodes that are absent.
        accepted: nodes whose OSDs may be missing.
        osds: by storage node, how many OSDs there should be.

    Raises:
        CheckFailed, MultiError: daemons are missing; nothing was changed in the cluster.
    """
    nodes = [name for name in nodes_of(site, "all") if name not in without]
    start(site, KINDS, nodes, report=report)
    deadline = time.monotonic() + DAEMONS_TIMEOUT
    last = ""
    while True:
        missing, state = _missing(site, nodes, osds, accepted)
        if not missing:
            up = sum(osds.get(node, 0) for node in nodes)
            return f"{len(state['quorum'])} of {state['mons']} monitors in quorum, {up} OSDs there"
        text = "; ".join(error.message for error in missing)
        if text != last:
            report(f"waiting: {text}")
            last = text
        if time.monotonic() > deadline:
            raise missing[0] if len(missing) == 1 else MultiError(missing)
        time.sleep(2)


def _missing(
    site: Site, nodes: Sequence[str], osds: Mapping[str, int], accepted: Collection[str]
) -> tuple[list[CloudctlError], dict[str, Any]]:
    hint = "see its log there (cephadm logs, journalctl); then run cloudctl cluster up again"
    errors: list[CloudctlError] = []
    state: dict[str, Any] = {}
    try:
        state = read_state(site)
    except CloudctlError as error:
        errors.append(CheckFailed("ceph-no-quorum", error.message, where="ceph", hint=error.hint))
    found = read_ceph_units(site, nodes)
    states = osd_states(site, found)
    for node, wanted in osds.items():
        if node not in nodes or node in accepted:
            continue
        told = states.get(node, {})
        down = [name for name, word in told.items() if word != "active"]
        lost = wanted - len(told)
        if down or lost > 0:
            names = [f"{name} is {told[name]}" for name in sorted(down)]
            if lost > 0:
                names.append(f"{lost} of its {wanted} OSDs are not known there")
            errors.append(
                CheckFailed(
                    "osd-missing", f"{', '.join(names)}; the flags stay as they are", where=node,
                    hint=f"{hint}, or go on without it: cloudctl cluster up --accept-missing {node}",
                )
            )  # fmt: skip
    return errors, state


def claimed_up(tree: Mapping[str, Any], nodes: Collection[str]) -> list[str]:
    """Return the OSDs of some nodes that the cluster's map calls up, by number. Pure.

    Args:
        tree: ``ceph osd tree --format json``.
        nodes: their hosts.
    """
    entries = {entry["id"]: entry for entry in tree["nodes"]}
    mine = {
        number
        for entry in entries.values()
        if entry["type"] == "host" and entry["name"] in nodes
        for number in entry.get("children") or []
    }
    return [str(number) for number in sorted(mine) if entries[number].get("status") == "up"]


def mark_down(site: Site, nodes: Collection[str], *, report: Report) -> list[str]:
    """Tell the cluster's map that the OSDs of absent nodes are down, and return which.

    Those of a shutdown with nodown are up in the map although they are off; the monitors can take more than
    five minutes to believe what the others report, and until then no placement group of theirs serves. One
    that runs after all reports itself up again.
    """
    if not nodes:
        return []
    found = claimed_up(json.loads(mon_command(site, ["osd", "tree", "--format", "json"])[0]), nodes)
    if found:
        mon_command(site, ["osd", "down", *found])
        report(f"absent, marked down: {', '.join(f'osd.{number}' for number in found)}")
    return found


def read_state(site: Site) -> dict[str, Any]:
    """Return ``ceph status``, read.

    Raises:
        Unreachable: no monitor has a quorum.
    """
    text, _node = mon_command(site, ["status", "--format", "json"])
    return parse_ceph(text)


def wait_for_health(site: Site, *, absent: bool, report: Report, timeout: float = HEALTH_TIMEOUT) -> str:
    """Wait until Ceph is healthy; flags that the operator set do not count against it.

    Where all data is there and only warnings stay, it goes on with them after ``WARNINGS_TIMEOUT`` and says
    so: a cloud that is off for the sake of a warning helps nobody.

    Raises:
        ApplyFailed: it is not within the time; says what is wrong.
    """
    deadline = time.monotonic() + timeout
    calm = 0
    whole_since = None
    last: list[str] = []
    while True:
        try:
            state = read_state(site)
            complaints = ceph_complaints(state, HARMLESS, absent=absent)
            whole = not ceph_complaints(state, state["checks"], absent=absent)
        except CloudctlError as error:
            complaints, state, whole = [error.message], {}, False
        calm = calm + 1 if not complaints else 0
        whole_since = (whole_since or time.monotonic()) if whole else None
        if complaints and whole_since and time.monotonic() - whole_since > WARNINGS_TIMEOUT:
            return f"all data is there; warnings stay: {'; '.join(complaints)}"
        # The managers' first look at the placement groups comes some seconds after their start.
        if calm >= 2:
            return str(state["health"]) + (
                f" ({', '.join(sorted(state['checks']))})" if state["checks"] else ""
            )
        if complaints and complaints != last:
            report("waiting: " + "; ".join(complaints))
            last = complaints
        if complaints and time.monotonic() > deadline:
            raise ApplyFailed(
                "ceph-not-healthy", f"Ceph is not healthy after {timeout:.0f} s: {'; '.join(complaints)}",
                where="ceph",
                hint="cloudctl status and `ceph health detail` tell more; then run the same again",
            )  # fmt: skip
        time.sleep(1)
