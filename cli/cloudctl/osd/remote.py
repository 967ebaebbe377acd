"""Talking to the cluster and to the storage nodes for work on OSDs: one call each."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import build, device_arguments, mon_nodes
from cloudctl.engine.render import Renderer
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError, Unreachable
from cloudctl.operations.call import call
from cloudctl.osd.cluster import QUESTIONS, Cluster, Osd, parse
from cloudctl.site.model import Site

MODULE = "cloudctl_ceph"
Report = Callable[[str], None]
Step = Mapping[str, Any]
Checks = dict[str, list[dict[str, Any]]]

_ANSWERED: dict[Path, str] = {}
"""The monitor's node that answered last, by site: it is asked first."""


def desired_of(site: Site) -> dict[str, Any]:
    """Return the cluster that the site asks for.

    Raises:
        CheckFailed: the site has no storage nodes.
        ConfigError, MultiError: what is wrong with the site.
    """
    if not site.group("storage"):
        raise CheckFailed("ceph-absent", "the site has no storage nodes, so there is no Ceph cluster")
    return build(site, [service.raw for service in Renderer(site).services])


def mon(prefix: str, *, may_fail: bool = False, data: str = "", timeout: int = 60, **arguments: Any) -> Step:
    """Return a command for the monitors."""
    return _step("mon", prefix, may_fail, data, timeout, arguments)


def mgr(prefix: str, *, may_fail: bool = False, data: str = "", timeout: int = 60, **arguments: Any) -> Step:
    """Return a command for the manager (the orchestrator, for example)."""
    return _step("mgr", prefix, may_fail, data, timeout, arguments)


def _step(
    to: str, prefix: str, may_fail: bool, data: str, timeout: int, arguments: Mapping[str, Any]
) -> Step:
    cmd = {"prefix": prefix, "format": "json", **arguments}
    return {"to": to, "cmd": cmd, "in": data, "timeout": timeout, "may_fail": may_fail}


def ask(site: Site, steps: Sequence[Step], what: str, *, changing: bool = False) -> list[dict[str, Any]]:
    """Carry out commands in order, in one call to the first monitor's node that answers.

    Args:
        what: is being done, for the error.
        changing: the commands change the cluster (then only a node that was not reached is passed over).

    Returns:
        For each step ``rc``, ``out``, ``err``.

    Raises:
        ApplyFailed: a command that may not fail did; those after it were not carried out.
        Unreachable: no monitor answers.
    """
    desired = {"fsid": site.secrets["ceph_fsid"], "image": _image(site)}
    failed: list[CloudctlError] = []
    for node in sorted(mon_nodes(site), key=lambda item: item.name != _ANSWERED.get(site.path)):
        arguments = {"mode": "ask", "node": node.name, "steps": [dict(step) for step in steps], **desired}
        answers = call(site.path, MODULE, {node.name: arguments}, changing=changing)
        if node.name not in answers.ok:
            failed.append(answers.failed[node.name])
            continue
        found: list[dict[str, Any]] = answers.ok[node.name]["answers"]
        _ANSWERED[site.path] = node.name
        for step, answer in zip(steps, found, strict=False):
            if answer["rc"] and not step["may_fail"]:
                reason = (answer["err"] or answer["out"]).strip() or f"error {answer['rc']}"
                raise ApplyFailed(
                    "ceph-refused", f"{what}: {reason}", where=node.name, hint="cloudctl status tells more"
                )
        return found
    raise Unreachable(
        "ceph-no-quorum", f"no Ceph monitor answers: {'; '.join(error.message for error in failed)}",
        hint="a majority of the monitors must run: systemctl start ceph.target on their nodes",
    )  # fmt: skip


def _image(site: Site) -> str:
    return str((site.images.get("ceph") or {}).get("reference", ""))


def read(site: Site) -> Cluster:
    """Return the cluster as it is.

    Raises:
        Unreachable: no monitor answers.
    """
    steps = [
        _step("mon" if name != "df" else "mgr", "", False, "", 60, question)
        for name, question in QUESTIONS.items()
    ]
    hosts = mgr("orch host ls", timeout=20, may_fail=True)
    answers = ask(site, [*steps, hosts], "reading the cluster")
    decoded = {name: json.loads(answer["out"]) for name, answer in zip(QUESTIONS, answers, strict=False)}
    names = json.loads(answers[-1]["out"]) if not answers[-1]["rc"] else []
    return parse({**decoded, "hosts": [host["hostname"] for host in names]})


def look(
    site: Site,
    wanted: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    known: Iterable[str] = (),
    mode: str = "devices",
    only: Collection[str] = (),
    leaving: Collection[str] = (),
) -> Checks:
    """Return what is on nodes' devices (or prepare them), by node.

    Args:
        wanted: by node, its OSDs as in ``cloudctl.ceph.desired.osds_of``.
        known: uuids of this cluster's OSDs.
        mode: devices or prepare.
        only: data devices that become OSDs now; journal devices need room for theirs alone. None: all.
        leaving: uuids of OSDs whose journals will be free.

    Raises:
        CloudctlError, MultiError: a node does not answer, or a device can't be prepared.
    """
    journal = {
        "size": int(site.get("ceph.journal.size") or 0),
        "minimum": int(site.get("ceph.journal.minimum")),
    }
    calls = {}
    for node, osds in wanted.items():
        desired = {"osds": osds, "fsid": site.secrets["ceph_fsid"], "journal": journal}
        calls[node] = {
            **device_arguments(desired, node, mode),
            "osds": sorted(known), "only": sorted(only), "leaving": sorted(leaving),
        }  # fmt: skip
    answers = call(site.path, MODULE, calls, changing=mode == "prepare").all_or_raise()
    return {node: answer.get("devices") or answer.get("done") or [] for node, answer in answers.items()}


def concerned(
    checks: Checks, osds: Mapping[str, Sequence[Mapping[str, Any]]], only: Collection[str]
) -> Checks:
    """Return what was found on some data devices and on their journal devices. Pure."""
    paths = {
        node: {path for osd in own if osd["data"] in only for path in (osd["data"], osd["journal"])}
        for node, own in osds.items()
    }
    return {node: [item for item in items if item["path"] in paths[node]] for node, items in checks.items()}


def without_osd(
    checks: Checks,
    osds: Mapping[str, Sequence[Mapping[str, Any]]],
    only: Collection[str],
    present: Iterable[Osd],
) -> list[dict[str, Any]]:
    """Return those of some devices' OSDs that are not on them: none is, or one that never started. Pure."""
    started = {osd.uuid for osd in present if osd.started}
    running = {
        (node, item["path"])
        for node, items in checks.items()
        for item in items
        if item["role"] == "data" and item["osd_uuid"] in started
    }
    return [
        dict(osd)
        for node, own in osds.items()
        for osd in own
        if osd["data"] in only and (node, osd["data"]) not in running
    ]


def create(
    site: Site,
    osds: Mapping[str, Sequence[Mapping[str, Any]]],
    only: Collection[str],
    *,
    report: Report = lambda line: None,
    timeout: int = 600,
) -> list[dict[str, Any]]:
    """Make OSDs of some devices, which are checked, on all their nodes at once; those that run stay.

    Data is not waited for; see ``cloudctl.osd.wait``. The nodes' other devices are left alone, whatever is on
    them, and need not be there.

    Args:
        osds: by node all its OSDs, as in ``cloudctl.ceph.desired.osds_of``.
        only: the data devices that become OSDs.
        timeout: seconds without a new OSD.

    Returns:
        What was changed.

    Raises:
        CheckFailed, MultiError: a device may not be used; nothing was changed.
        ApplyFailed: an OSD was not made.
    """
    if not only:
        return []
    desired = desired_of(site)
    present = read(site).osds.values()
    checks = look(site, osds, known=[osd.uuid for osd in present], only=only)
    todo = without_osd(checks, osds, only, present)
    if not todo:
        return []
    only = [osd["data"] for osd in todo]
    checks = concerned(checks, osds, only)
    refuse_devices(checks)
    names = set(osds)
    report(f"preparing devices of {', '.join(sorted(names))}")
    look(site, osds, mode="prepare", only=only)
    leader = reach(site)
    mons = sorted(desired["mons"], key=lambda item: bool(item["name"] != leader))
    part = {
        **desired,
        "mons": mons,
        "hosts": [host for host in desired["hosts"] if host["name"] in names],
        "osds": todo,
        "before": [osd.uuid for osd in present if osd.started],
        # What a deploy brings about is not this command's business.
        "config": {}, "clients": [], "pools": [],
    }  # fmt: skip
    ready = {node: [{**item, "prepared": True} for item in items] for node, items in checks.items()}
    report("making OSDs")
    arguments = {"mode": "apply", "desired": part, "devices": ready, "timeout": timeout, "settle": False}
    answer = call(site.path, MODULE, {leader: arguments}, changing=True).all_or_raise()[leader]
    # Ceph's word that so many OSDs came is not enough: they are to be on these devices.
    present = read(site).osds.values()
    checks = look(site, osds, known=[osd.uuid for osd in present], only=only)
    lacking = without_osd(checks, osds, only, present)
    if lacking:
        raise ApplyFailed(
            "osd-not-made", f"no OSD was made on {', '.join(osd['data'] for osd in lacking)}",
            where=lacking[0]["host"],
            hint="`ceph orch ls osd` and `ceph log last cephadm` tell more; then run the same again",
        )  # fmt: skip
    changes: list[dict[str, Any]] = answer["changes"]
    return changes


def reach(site: Site) -> str:
    """Return a monitor's node that answers.

    Raises:
        Unreachable: none does.
    """
    if site.path not in _ANSWERED:
        ask(site, [], "reaching a monitor")
    return _ANSWERED[site.path]


def refuse_devices(checks: Checks) -> None:
    """Refuse devices that may not be used.

    Raises:
        CheckFailed, MultiError: one error for each.
    """
    errors: list[CloudctlError] = [
        CheckFailed(
            "osd-device-refused", f"{item['path']} cannot be used for an OSD: {item['reason']}", where=node,
            hint="name each device once (ls -l /dev/disk/by-id, on the node)" if item.get("same_as")
            else "name another journal device: this one may hold journals of OSDs that run"
            if item.get("role") == "journal"
            else "name an empty device; if its data may go, wipe it yourself (wipefs --all)",
        )
        for node, items in checks.items()
        for item in items
        if item["state"] == "refused"
    ]  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


def erase(
    site: Site, node: str, data: Sequence[str], journals: Sequence[str], uuids: Sequence[str]
) -> list[str]:
    """Erase devices and journals of OSDs that the cluster does not have any more; return their paths.

    Args:
        data: devices to erase; each must be one of those OSDs.
        journals: journal devices in which to look for those OSDs' journals.
        uuids: of the OSDs.

    Raises:
        CloudctlError: a device is not one of theirs; then nothing was erased.
    """
    arguments = {
        "mode": "wipe", "fsid": site.secrets["ceph_fsid"], "data": list(data), "journals": list(journals),
        "osds": list(uuids),
    }  # fmt: skip
    answer = call(site.path, MODULE, {node: arguments}, changing=True).all_or_raise()[node]
    return [str(entry["name"]) for entry in answer["done"]]
