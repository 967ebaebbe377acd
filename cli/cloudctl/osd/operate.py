"""``osd add``, ``replace`` and ``remove`` as numbered steps that go on where an earlier run stopped."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cloudctl.ceph.desired import osds_of
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, ConfigError, UsageError
from cloudctl.node.future import future_site
from cloudctl.node.inventory import read_text, write_text
from cloudctl.operations.steps import DONE, UNDONE, Journal, Step
from cloudctl.osd import act, names, remote, throttle, wait
from cloudctl.osd.cluster import Cluster, Osd
from cloudctl.osd.forecast import Forecast, forecast, lost
from cloudctl.osd.remote import Report, ask, mon, read
from cloudctl.site.document import Problems
from cloudctl.site.edit_inventory import set_variables
from cloudctl.site.inventory import read_inventory
from cloudctl.site.load import INVENTORY, load_site
from cloudctl.site.model import Node, Site

STABLE = ("/dev/disk/by-id/", "/dev/disk/by-path/", "/dev/disk/by-partuuid/")
"""Where devices have names that no reboot gives to another one."""


@dataclass
class Plan:
    """What an operation would do.

    Attributes:
        steps: in order.
        lines: what an operator reads before being asked.
        journal: of the operation.
        done: what was changed (filled while the steps run).
        nothing: there is nothing to do.
        ahead: how full OSDs become where some are emptied.
        end: what is told at the end.
        anew: facts with which the journal begins anew; None: it goes on where an earlier run stopped.
    """

    journal: Journal
    steps: list[Step] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    done: list[dict[str, Any]] = field(default_factory=list)
    nothing: bool = False
    ahead: Forecast | None = None
    end: str = "all data is where it belongs"
    anew: dict[str, Any] | None = None


def edited(site: Site, node: str, osds: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the inventory's text that names a node's OSDs, and which variables it sets. Changes nothing.

    Without a variable to set the text is empty.

    Raises:
        ConfigError, MultiError: the text can't be edited, is refused, or another file wins over it.
    """
    changes = names.variables(site.nodes[node], osds)
    if not changes:
        return "", changes
    text = set_variables(read_text(site.path), node, changes)
    with future_site(site.path, text, f"osd-{os.getpid()}") as path:
        left = names.variables(load_site(path, with_secrets=False).nodes[node], osds)
        if not left:
            return text, changes
        document, at = read_inventory(path, INVENTORY, Problems()).hosts[node].origin[next(iter(left))]
        raise ConfigError(
            "osd-inventory-overruled", f"{', '.join(left)} of {node} must change in {INVENTORY}, but"
            f" {document.file} wins over it", where=document.where(*at),
            hint=f"move what it says of {node}'s devices to {INVENTORY}, then run the same again",
        )  # fmt: skip


def write_lines(site: Site, node: str, osds: Sequence[Mapping[str, Any]]) -> str:
    """Let the inventory name a node's OSDs; return what was done, in words."""
    text, changes = edited(load_site(site.path), node, osds)
    if not changes:
        return "the inventory says so already"
    write_text(site.path, text)
    return f"{node}: {', '.join(f'{key}: [{shown(value)}]' for key, value in changes.items())}"


def shown(value: object) -> str:
    """Return a variable's value as an operator writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def settle(site: Site, report: Report, ignore: Collection[str] = ()) -> str:
    """Wait until all data is where it should be, but for complaints that were there before; return words."""
    wait.until(
        site, lambda now: wait.for_data(now, ignore), report=report, timeout=site.get("ceph.backfill.timeout")
    )
    return "all PGs active+clean"


def _begin(journal: Journal, request: Mapping[str, Any], again: str) -> None:
    """Begin, or go on with the same request.

    Raises:
        UsageError: another one of this kind is not finished.
    """
    if journal.open and journal.facts.get("request") not in (None, dict(request)):
        raise UsageError(
            "osd-unfinished", f"an earlier run is not finished: {journal.facts.get('command', '')}",
            hint="run it again first: it goes on where it stopped; or give it up by the same with --abandon; "
            f"then: {again}",
        )  # fmt: skip
    if not journal.open:
        journal.begin()
    journal.keep(request=dict(request), command=again)


def _state(journal: Journal, key: str) -> str | None:
    """Return where a step of an unfinished operation stands."""
    return journal.state(key) if journal.open else None


# -- add ---------------------------------------------------------------------------------------


def plan_add(
    site: Site,
    name: str,
    devices: Sequence[str],
    report: Report,
    *,
    journal_device: str | None = None,
    device_class: str | None = None,
) -> Plan:
    """Return how devices of a node become OSDs. Reads the cluster and the node; changes nothing.

    Args:
        devices: without any, those that the inventory names and that have no OSD yet.

    Raises:
        UsageError, ConfigError, CheckFailed, MultiError: why it can't be done.
    """
    node = names.storage_node(site, name)
    for path in [*devices, *([journal_device] if journal_device else [])]:
        if not path.startswith("/dev/"):
            raise UsageError(
                "osd-device-path", f"{path!r} is no path of a device", hint="for example /dev/disk/by-id/…"
            )
    osds, new = names.with_new(node, devices, journal_device, device_class)
    report("reading the cluster")
    cluster = read(site)
    if name not in cluster.hosts:
        raise CheckFailed(
            "osd-node-absent", f"{name} is not part of the storage cluster", where=name,
            hint=f"cloudctl node add {name}, or cloudctl deploy",
        )  # fmt: skip
    known = {osd.uuid: osd for osd in cluster.osds.values()}
    report(f"looking at the devices of {name}")
    wanted = list(devices) or [osd["data"] for osd in osds]
    checks = remote.look(site, {name: osds}, known=known, only=wanted)
    data = [item for item in checks[name] if item["role"] == "data" and item["osd_uuid"] in known]
    running = {item["path"]: known[item["osd_uuid"]] for item in data if known[item["osd_uuid"]].started}
    half_made = {item["path"]: known[item["osd_uuid"]] for item in data if item["path"] not in running}
    names.refuse_foreign(name, checks, cluster, [path for path in new if path not in half_made])
    remote.refuse_devices(remote.concerned(checks, {name: osds}, wanted))
    todo = [osd for osd in osds if osd["data"] in wanted and osd["data"] not in running]
    others = [
        running[path]
        for path in devices
        if device_class and path in running and running[path].device_class != device_class
    ]
    if others:
        act.refuse(forecast(with_class(cluster, others, str(device_class)), [], before=cluster))
    journal = Journal(site.path, "osd-add")
    plan = Plan(journal)
    unfinished = Journal(site.path, throttle.NAME).open
    _text, changes = edited(site, name, osds)
    plan.nothing = (
        not todo
        and not others
        and not changes
        and not unfinished
        and not wait.for_data(cluster, wait.others_complaints(cluster)).words
    )
    sizes = {item["path"]: item["size"] for item in checks[name]}
    for osd in todo:
        size = f" ({sizes.get(osd['data'], 0) / 2**30:.0f} GiB)"
        on = f", journal on {osd['journal']}" if osd["journal"] else ""
        kind = f", class {osd['device_class']}" if osd["device_class"] else ""
        plan.lines.append(f"{name}: {osd['data']}{size} becomes an OSD{on}{kind}")
    plan.lines += [
        f"{osd.name} of {name}: class {device_class} (now {osd.device_class or 'none'}), its data moves"
        for osd in others
    ]
    plan.lines += [f"inventory, {name}: {key}: {shown(value)}" for key, value in changes.items()]
    if plan.nothing:
        return plan

    def make(_journal: Journal) -> str:
        before = set(read(site).osds)
        fresh = load_site(site.path)
        paths = [osd["data"] for osd in todo]
        halves = {osd.uuid: osd.id for path, osd in half_made.items() if path in paths}
        journal.keep(halves={**journal.facts.get("halves", {}), **halves})
        made = remote.create(fresh, {name: osds_of(fresh.nodes[name])}, paths, report=report)
        plan.done.extend({"node": name, **change} for change in made)
        after = read(site)
        told = [f"osd.{number}" for number in sorted(set(after.osds) - before)]
        # Where the orchestrator made an OSD over one that was half made, that one's id is left.
        left = [
            osd.id
            for osd in after.osds.values()
            if journal.facts["halves"].get(osd.uuid) == osd.id and not osd.started
        ]
        _purge_new(site, left, "giving back ids of OSDs that never ran")
        return ", ".join(told) or "they run already"

    def classify(_journal: Journal) -> str:
        now = read(site).osds
        left = [now[osd.id] for osd in others if osd.id in now and now[osd.id].device_class != device_class]
        steps = [step for osd in left for step in _class_steps(osd, str(device_class))]
        if steps:
            ask(site, steps, "setting device classes", changing=True)
        plan.done.extend({"node": name, "kind": "osd", "name": osd.name, "action": "update"} for osd in left)
        return ", ".join(osd.name for osd in left) or "they have it"

    def note(_journal: Journal) -> str:
        said = write_lines(site, name, osds)
        if changes:
            plan.done.append({"node": name, "kind": "inventory", "name": name, "action": "update"})
        return said

    plan.steps = [
        Step("inventory", "name the devices in the inventory", note, nodes=["deploy"], every_time=True),
        Step("throttle", "let clients come first", lambda _j: _hold(site, report), every_time=True),
        Step(
            "create", "make the OSDs", make, nodes=[name], every_time=True,
            commands=[_prepare(osd["data"], osd["journal"]) for osd in todo],
        ),
        *([Step("class", "set the class of OSDs that run", classify, every_time=True,
                commands=[f"ceph osd crush set-device-class {device_class} {osd.name}" for osd in others])]
          if others else []),
        *_last_steps(site, report, cluster),
    ]  # fmt: skip
    return plan


def with_class(cluster: Cluster, osds: Collection[Osd], device_class: str) -> Cluster:
    """Return the cluster as it is when some of its OSDs have another class. Pure."""
    changed = {osd.id: replace(osd, device_class=device_class) for osd in osds}
    return replace(cluster, osds={**cluster.osds, **changed})


def _class_steps(osd: Osd, device_class: str) -> list[remote.Step]:
    """Return the commands that give an OSD another class than it has. Pure."""
    wanted: dict[str, Any] = {"class": device_class, "ids": [osd.name]}
    return [mon("osd crush rm-device-class", ids=[osd.name]), mon("osd crush set-device-class", **wanted)]


def _prepare(device: str, journal: str | None) -> str:
    """Return the command that makes an OSD, for a dry run."""
    return f"ceph-volume raw prepare --bluestore --data {device}" + (
        f" --block.db {journal} (or a part)" if journal else ""
    )


def _last_steps(site: Site, report: Report, before: Cluster) -> list[Step]:
    """Return how every operation ends."""
    ignore = wait.others_complaints(before)
    return [
        Step(
            "settle", "wait until data is where it belongs", lambda _: settle(site, report, ignore),
            every_time=True,
        ),
        Step("restore", "restore the options", lambda _: _release(site, report), every_time=True),
    ]  # fmt: skip


def _hold(site: Site, report: Report) -> str:
    throttle.hold(site, report)
    return ""


def _release(site: Site, report: Report) -> str:
    throttle.release(site, report)
    return ""


# -- remove ------------------------------------------------------------------------------------


def plan_remove(site: Site, ids: Sequence[int], report: Report, *, zap: str | None = None) -> Plan:
    """Return how OSDs are emptied and removed. Reads the cluster and the nodes; changes nothing.

    Args:
        zap: a lasting name of the device to erase afterwards; it must be one of these OSDs'.

    Raises:
        UsageError, CheckFailed, MultiError: why it can't be done.
    """
    if not ids:
        raise UsageError("osd-missing", "which OSDs are to be removed?", hint="cloudctl osd remove 3 7")
    if zap and not zap.startswith(STABLE):
        raise UsageError(
            "osd-zap-name", f"{zap} may be another disk after the next boot", where="--zap",
            hint="name it by /dev/disk/by-id/… (ls -l /dev/disk/by-id, on its node)",
        )  # fmt: skip
    journal = Journal(site.path, "osd-remove")
    numbers = sorted(set(ids))
    request: dict[str, Any] = {"ids": numbers, "zap": zap}
    command = f"cloudctl osd remove {' '.join(map(str, numbers))}" + (f" --zap {zap}" if zap else "")
    plan = Plan(journal)
    if journal.open and journal.facts.get("request") != request:
        _begin(journal, request, command)
    report("reading the cluster")
    cluster = act.read_at_rest(site, report)
    facts: list[dict[str, Any]] = journal.facts.get("osds", []) if journal.open else []
    if not facts:
        facts = _identify(site, cluster, names.pick(cluster, ids), report)
    here = [number for number in numbers if number in cluster.osds]
    ahead = forecast(cluster, here)
    if here and _state(journal, "drain") != "done":
        act.refuse(ahead)
    for host in {fact["host"] for fact in facts}:
        node = site.nodes.get(host)
        if node is not None:
            edited(site, host, names.without(node, [fact["path"] for fact in facts if fact["host"] == host]))
    if zap and _state(journal, "erase") != "done":
        owner = _owner(site, zap, facts, report, begun=_state(journal, "erase") is not None)
        for fact in facts:
            fact["zap"] = fact["uuid"] == owner
    plan.lines = [
        f"osd.{fact['id']} of {fact['host']}" + (f" ({fact['path']})" if fact["path"] else "") + " goes"
        for fact in facts
    ]
    plan.ahead = ahead
    plan.lines += _outlook(ahead)
    if zap:
        plan.lines.append(f"{zap} is erased")
    lost_line = [f"osd.{fact['id']}" for fact in facts if not fact["path"]]
    if lost_line:
        plan.lines.append(f"not in the inventory: {', '.join(lost_line)}")
    hosts = list(dict.fromkeys(fact["host"] for fact in facts))

    def remember(_journal: Journal) -> str:
        _begin(journal, request, command)
        weights = {str(fact["id"]): fact["weight"] for fact in facts}
        journal.keep(osds=facts)
        throttle.hold(site, report)
        return "weights: " + ", ".join(f"osd.{number} {weight:g}" for number, weight in weights.items())

    def empty(_journal: Journal) -> str:
        act.drain(site, numbers, report)
        return "empty, and complete elsewhere"

    def purge(_journal: Journal) -> str:
        gone = act.remove(site, numbers, report)
        plan.done.extend({"kind": "osd", "name": f"osd.{number}", "action": "remove"} for number in gone)
        return ", ".join(f"osd.{number}" for number in gone) or "gone already"

    def wipe(_journal: Journal) -> str:
        erased = []
        for fact in facts:
            if fact.get("zap"):
                journals = [fact["journal"]] if fact["journal"] else []
                erased += remote.erase(site, fact["host"], [str(zap)], journals, [fact["uuid"]])
        plan.done.extend({"kind": "device", "name": path, "action": "erase"} for path in erased)
        return ", ".join(erased) or "erased already"

    def forget(_journal: Journal) -> str:
        said = []
        for host in hosts:
            node = load_site(site.path).nodes.get(host)
            paths = [fact["path"] for fact in facts if fact["host"] == host and fact["path"]]
            if node is not None and paths:
                said.append(write_lines(site, host, names.without(node, paths)))
                plan.done.append({"node": host, "kind": "inventory", "name": host, "action": "update"})
        return "; ".join(said)

    plan.steps = [
        Step("remember", "write down what there is, let clients come first", remember, every_time=True),
        Step(
            "drain", "empty the OSDs", empty,
            commands=[f"ceph osd crush reweight osd.{number} 0" for number in here],
        ),
        Step(
            "purge", "remove them from the cluster", purge, nodes=hosts,
            commands=[f"ceph osd purge {number}" for number in here],
        ),
        *([Step("erase", "erase the device", wipe, nodes=hosts, commands=[f"wipe {zap}"])] if zap else []),
        Step("inventory", "take the devices out of the inventory", forget, nodes=["deploy"]),
        *_last_steps(site, report, cluster),
    ]  # fmt: skip
    return plan


def _outlook(ahead: Forecast) -> list[str]:
    moved = ahead.moved_kb / 2**20
    fullest = max(ahead.full, key=lambda number: ahead.full[number], default=None)
    lines = [f"about {moved:.1f} GiB move to other OSDs"]
    if fullest is not None:
        lines.append(
            f"fullest afterwards: osd.{fullest}, {ahead.full[fullest]:.0%} (now {ahead.before[fullest]:.0%})"
        )
    return lines


def _identify(site: Site, cluster: Cluster, osds: Collection[Osd], report: Report) -> list[dict[str, Any]]:
    """Return for each OSD where it is, and which lines of the inventory are its.

    Raises:
        CheckFailed: a node does not answer, and without it a line can't be told.
    """
    hosts = {osd.host for osd in osds if osd.host in site.nodes}
    checks: remote.Checks = {}
    silent: dict[str, CloudctlError] = {}
    for host in sorted(hosts):
        report(f"looking at the devices of {host}")
        try:
            checks |= remote.look(site, {host: osds_of(site.nodes[host])})
        except CloudctlError as error:
            report(f"{host}: {error.message}")
            silent[host] = error
    found = []
    for osd in osds:
        node = site.nodes.get(osd.host)
        path = names.line_of(osd, cluster, node, checks.get(osd.host, ()))
        if not path and node is not None and osds_of(node) and osd.host in silent:
            raise CheckFailed(
                "osd-line-unknown",
                f"which device in the inventory is {osd.name} can't be told: {silent[osd.host].message}",
                where=osd.host, hint=f"switch {osd.host} on, then run the same again; if it will never come"
                f" back: cloudctl node remove {osd.host} --dead",
            )  # fmt: skip
        journals = {entry["data"]: entry["journal"] for entry in osds_of(node)} if node else {}
        found.append(
            {
                "id": osd.id, "host": osd.host, "uuid": osd.uuid, "path": path,
                "journal": journals.get(path) or "", "weight": osd.weight, "kb": osd.kb,
                "class": osd.device_class, "share": osd.share,
            }
        )  # fmt: skip
    return found


def _owner(
    site: Site, zap: str, facts: Sequence[Mapping[str, Any]], report: Report, *, begun: bool = False
) -> str:
    """Return the uuid of the OSD that is on a device that is to be erased.

    Args:
        facts: where it was found before, ``zap`` says whose it is.
        begun: an earlier run may have erased it: an empty device is the one that it found then.

    Raises:
        CheckFailed: it is none of those that go.
    """
    uuids = {fact["uuid"]: fact for fact in facts}
    seen = []
    for host in dict.fromkeys(fact["host"] for fact in facts):
        report(f"looking at {zap} of {host}")
        item = {"host": host, "data": zap, "journal": None, "slot": 1, "device_class": ""}
        found = remote.look(site, {host: [item]}, known=uuids)[host][0]
        if found["osd_uuid"] in uuids and uuids[found["osd_uuid"]]["host"] == host:
            return str(found["osd_uuid"])
        erased = [fact for fact in facts if fact["host"] == host and fact.get("zap")]
        if begun and erased and found["state"] == "empty":
            return str(erased[0]["uuid"])
        seen.append(f"{host}: {found['reason'] or 'it is empty'}")
    ids = ", ".join(f"osd.{fact['id']}" for fact in facts)
    raise CheckFailed(
        "osd-zap-other", f"{zap} is not the device of {ids}: {'; '.join(seen)}", where="--zap",
        hint="nothing was changed; ls -l /dev/disk/by-id on the node tells its devices",
    )  # fmt: skip


# -- replace -----------------------------------------------------------------------------------


def plan_replace(
    site: Site, number: int, device: str | None, report: Report, *, degraded: bool = False
) -> Plan:
    """Return how an OSD is made anew on another device, with its id, place and journal.

    Args:
        device: the new one; None: the one in the same place, under the name that the inventory has.
        degraded: do not empty an OSD that still runs; its data has a copy less until the new one has it.

    Raises:
        UsageError, CheckFailed, MultiError: why it can't be done.
    """
    if device is not None and not device.startswith("/dev/"):
        raise UsageError("osd-device-path", f"{device!r} is no path of a device")
    journal = Journal(site.path, "osd-replace")
    request = {"id": number, "device": device}
    command = f"cloudctl osd replace {number}" + (f" {device}" if device else "")
    plan = Plan(journal)
    report("reading the cluster")
    cluster = act.read_at_rest(site, report)
    fact: dict[str, Any] = journal.facts.get("osd", {}) if journal.open else {}
    here = cluster.osds.get(number)
    redirected = journal.open and journal.facts.get("request") not in (None, request)
    if redirected and _state(journal, "create") == DONE:
        # What is left of the earlier one is to wait: this one does that, too.
        plan.anew, fact, redirected = {}, {}, False
    elif redirected and journal.facts["request"]["id"] != number:
        _begin(journal, request, command)
    elif redirected and fact and here and here.started and here.uuid != fact["uuid"]:
        # The new one was made, and is to go again: place, weight and class are still the first one's.
        plan.anew, redirected = {"placeholders": journal.facts.get("placeholders", [])}, False
        fact = {**fact, "uuid": here.uuid}

    def state(key: str) -> str | None:
        return _state(journal, key) if plan.anew is None else None

    if not fact:
        (osd,) = names.pick(cluster, [number])
        (fact,) = _identify(site, cluster, [osd], report)
        if osd.host not in site.nodes:
            raise CheckFailed(
                "osd-node-absent", f"osd.{number} is on no node of the inventory", where=osd.host
            )
    host = str(fact["host"])
    node = names.storage_node(site, host)
    begun = state("forget") is not None
    if not _line(fact, node):
        fact = names.with_line(fact, device, node)
    old = _line(fact, node)
    new = device or old
    fact = {**fact, "named": [*(path for path in fact.get("named", []) if path != new), new]}
    running = here is not None and here.up and here.uuid == fact["uuid"]
    if not begun:
        _refuse_replace(cluster, number, running, degraded)
    if not begun or redirected:
        _refuse_new(site, cluster, node, old, new, fact, report)
    edited(site, host, names.exchanged(node, old, new))
    empty_first = running and not degraded and not begun
    plan.lines = [f"osd.{number} of {host}: {new} takes the place of {old}"]
    if fact["journal"]:
        plan.lines.append(f"its journal on {fact['journal']} is used again")
    if empty_first:
        plan.lines += [f"osd.{number} runs: it is emptied first", *_outlook(forecast(cluster, [number]))]
    elif running:
        plan.lines.append("it is not emptied first: until the new one has its data, that has a copy less")

    def remember(_journal: Journal) -> str:
        if redirected:
            journal.keep(request=request)
        _begin(journal, request, command)
        journal.keep(osd=fact)
        throttle.hold(site, report)
        return f"osd.{number}, weight {fact['weight']:g}, class {fact['class']}"

    def empty(_journal: Journal) -> str:
        act.drain(site, [number], report)
        act.refuse_unsafe(site, [number])
        return "empty, and complete elsewhere"

    def forget(_journal: Journal) -> str:
        now = read(site).osds.get(number)
        if now is None or now.uuid != fact["uuid"]:
            return "gone already"
        act.stop(site, [number], report)
        # Not `purge`: the place in the map, with its weight and class, is the new one's.
        steps = [mon("auth rm", entity=f"osd.{number}"), mon("osd rm", ids=[str(number)])]
        ask(site, steps, f"taking osd.{number} out", changing=True)
        plan.done.append({"kind": "osd", "name": f"osd.{number}", "action": "remove"})
        return ""

    def reuse(_journal: Journal) -> str:
        if not fact["journal"]:
            return "it has none"
        erased = remote.erase(site, host, [], [fact["journal"]], [fact["uuid"]])
        return ", ".join(erased) or "free already"

    def note(_journal: Journal) -> str:
        fresh = load_site(site.path).nodes[host]
        line = _line(fact, fresh)
        if new == line:
            return "the name stays"
        plan.done.append({"node": host, "kind": "inventory", "name": host, "action": "update"})
        return write_lines(site, host, names.exchanged(fresh, line, new))

    def make(_journal: Journal) -> str:
        _make_same(site, number, new, fact, journal, report)
        plan.done.append({"node": host, "kind": "osd", "name": f"osd.{number}", "action": "create"})
        return f"osd.{number} runs on {new}"

    plan.steps = [
        Step("remember", "write down what there is, let clients come first", remember, every_time=True),
        *([Step("drain", "empty the OSD", empty, commands=[f"ceph osd crush reweight osd.{number} 0"])]
          if empty_first or state("drain") == DONE else []),
        Step("forget", "take the old one out, its place stays", forget, nodes=[host],
             commands=[f"ceph osd rm {number}"]),
        Step("journal", "make its journal free", reuse, nodes=[host]),
        Step("inventory", "name the new device in the inventory", note, nodes=["deploy"], every_time=True),
        Step("create", "make the OSD with the same id", make, nodes=[host],
             commands=[_prepare(new, fact["journal"])]),
        *_last_steps(site, report, cluster),
    ]  # fmt: skip
    return plan


def _line(fact: Mapping[str, Any], node: Node) -> str:
    """Return the device in the inventory that is an OSD's now; "" where none is. Pure.

    Of the devices that were named one after the other, one or none has got there.
    """
    paths = [osd["data"] for osd in osds_of(node)]
    return next((path for path in [*reversed(fact.get("named", [])), str(fact["path"])] if path in paths), "")


def _refuse_replace(cluster: Cluster, number: int, running: bool, degraded: bool) -> None:
    """Refuse what would lose data.

    Raises:
        CheckFailed, MultiError: it would.
    """
    single = [pool.name for pool in cluster.pools if pool.size < 2]
    if not running:
        act.refuse(Forecast(problems=lost(cluster)))
        here = cluster.osds.get(number)
        if single and here is not None and here.weight > 0:  # one without a weight was emptied
            raise CheckFailed(
                "osd-data-loss", f"osd.{number} may hold the only copy in the pools {', '.join(single)}",
                where="ceph", hint=f"bring osd.{number} back, or let these pools keep two copies (ceph osd"
                " pool set POOL size 2) or, if their data may go, delete them; then run the same again",
            )  # fmt: skip
        return
    if not degraded:
        ahead = forecast(cluster, [number])
        if ahead.problems:
            raise CheckFailed(
                "osd-not-emptied", f"osd.{number} runs and can't be emptied first: {ahead.problems[0][1]}",
                where="ceph", hint="--degraded replaces it without: its data has a copy less for a while",
            )  # fmt: skip
        return
    if cluster.unclean or single:
        why = (
            f"pools with a single copy: {', '.join(single)}"
            if single
            else f"{cluster.unclean} PGs are not clean"
        )
        raise CheckFailed(
            "osd-data-loss", f"osd.{number} may hold the last copy of something: {why}", where="ceph",
            hint="wait until all data has its copies (cloudctl status), then run the same again; where it is "
            "the emptying that does not end: --abandon first",
        )  # fmt: skip


def _refuse_new(
    site: Site, cluster: Cluster, node: Node, old: str, new: str, fact: Mapping[str, Any], report: Report
) -> None:
    """Refuse a new device that is not empty, or not there, or whose journal has no room.

    Args:
        old: in whose line of the inventory it is to be.

    Raises:
        CheckFailed, MultiError, UsageError: it may not be used.
    """
    host, own = node.name, osds_of(node)
    if new != old and new in [entry["data"] for entry in own]:
        raise UsageError("osd-device-twice", f"{new} is another OSD's device", where=names.FILE)
    if new in [entry["journal"] for entry in own]:
        raise UsageError("osd-device-twice", f"{new} is a journal device of {host}", where=names.FILE)
    known = {osd.uuid: osd for osd in cluster.osds.values()}
    report(f"looking at {new} of {host}")
    osds = {host: names.exchanged(node, old, new)}
    here = cluster.osds.get(fact["id"])
    leaving = [fact["uuid"], *([here.uuid] if here and not here.started else [])]
    checks = remote.look(site, osds, known=known, only=[new], leaving=leaving)
    (found,) = (item for item in checks[host] if item["path"] == new)
    if found["osd_uuid"] and found["osd_uuid"] == fact["uuid"]:
        raise CheckFailed(
            "osd-device-same", f"{new} still holds osd.{fact['id']}", where=host,
            hint="put the new disk in its place, or name the new one: cloudctl osd replace ID DEVICE",
        )  # fmt: skip
    names.refuse_foreign(host, {host: [found]}, cluster, [new])
    remote.refuse_devices(remote.concerned(checks, osds, [new]))


def _make_same(
    site: Site, number: int, device: str, fact: Mapping[str, Any], journal: Journal, report: Report
) -> None:
    """Make an OSD that gets a certain id: the lowest free one, so all lower ones are taken meanwhile.

    The orchestrator can't ask for an id on raw devices.
    """
    fresh = load_site(site.path)
    host = str(fact["host"])
    osds = {host: osds_of(fresh.nodes[host])}
    cluster = read(site)
    mine = cluster.osds.get(number)
    if mine is not None and not mine.started and _is_lost(site, mine, osds):
        if fact["journal"]:
            remote.erase(site, host, [], [fact["journal"]], [mine.uuid])
        _purge_new(site, [number], f"giving the id {number} back")
        cluster = read(site)
        mine = cluster.osds.get(number)
    if mine is None or not mine.up:
        if mine is None:
            lower = [n for n in range(number) if n not in cluster.osds]
            ids = [str(uuid.uuid4()) for _ in lower]
            journal.keep(placeholders=[*journal.facts.get("placeholders", []), *ids])
            if ids:
                ask(site, [mon("osd new", uuid=one) for one in ids], "keeping lower ids", changing=True)
        remote.create(fresh, osds, [device], report=report)
    cluster = read(site)
    _give_back(site, cluster, journal)
    made = cluster.osds.get(number)
    if made is None or made.uuid == fact["uuid"] or made.host != host:
        raise ApplyFailed("osd-other-id", f"the new OSD did not get the id {number}", where=host,
                          hint="see `ceph osd tree`; then run the same again")  # fmt: skip
    _place(site, made, fact)


def _give_back(site: Site, cluster: Cluster, journal: Journal) -> None:
    """Give back the ids that were kept from others while an OSD was to get its own."""
    held = set(journal.facts.get("placeholders") or ())
    fill = [osd.id for osd in cluster.osds.values() if osd.uuid in held and not osd.up]
    _purge_new(site, fill, "giving lower ids back")


def _purge_new(site: Site, ids: Sequence[int], what: str) -> None:
    """Give back ids of OSDs that never started; Ceph itself refuses any other."""
    steps = [mon("osd purge-new", id=number, yes_i_really_mean_it=True) for number in ids]
    if steps:
        ask(site, steps, what, changing=True)


def _is_lost(site: Site, osd: Osd, osds: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Return whether an OSD that never started is on no device of its node: it only keeps its id from others.

    One that is being made at this moment has its label within seconds.
    """
    for _look in range(5):
        checks = remote.look(site, osds, known=[osd.uuid])
        if osd.uuid in {
            item["osd_uuid"] for items in checks.values() for item in items if item["role"] == "data"
        }:
            return False
        wait.pause()
    return True


def _place(site: Site, made: Osd, fact: Mapping[str, Any]) -> None:
    """Give the new OSD its class, and the weight of its size, unless the old one had been given another."""
    steps = []
    size, before = made.kb / 2**30, float(fact["kb"]) / 2**30
    own = float(fact["weight"])
    weight = size if not own or not before or abs(own - before) <= 0.02 * before else own
    if abs(made.weight - weight) > 0.02 * weight:
        steps.append(mon("osd crush reweight", name=made.name, weight=round(weight, 5)))
    if fact["class"] and made.device_class != fact["class"]:
        steps += _class_steps(made, fact["class"])
    if steps:
        ask(site, steps, f"placing {made.name}", changing=True)


# -- giving up ---------------------------------------------------------------------------------

TAKEN = {"replace": ("forget", "create"), "remove": ("purge", "inventory")}
"""By operation the step with which OSDs begin to go, and the one after which only data is waited for."""


def plan_abandon(site: Site, action: str, ids: Sequence[int], report: Report) -> Plan:
    """Return how an unfinished operation is given up: OSDs that were being emptied fill again.

    Args:
        action: replace or remove.
        ids: the same as the operation's.

    Raises:
        UsageError: nothing is unfinished, or something else is; or its OSDs are going already.
    """
    journal = Journal(site.path, f"osd-{action}")
    facts = journal.facts if journal.open else {}
    request, command = facts.get("request") or {}, facts.get("command", "")
    begun = request.get("ids", [request["id"]] if "id" in request else sorted(set(ids)))
    if not journal.open or begun != sorted(set(ids)):
        raise UsageError(
            "osd-abandon-other",
            f"another one is not finished: {command}" if journal.open else f"no osd {action} is unfinished",
            hint=f"to give that up: {command} --abandon" if journal.open else "there is nothing to give up",
        )  # fmt: skip
    first, last = TAKEN[action]
    if journal.state(first) is not None and journal.state(last) != DONE:
        also = "; another device may be named" if action == "replace" else ""
        raise UsageError(
            "osd-abandon-late", "its OSDs are being taken out already: it can't be given up any more",
            hint=f"complete it: {command}{also}",
        )  # fmt: skip
    report("reading the cluster")
    cluster = read(site)
    found = facts.get("osds") or ([facts["osd"]] if facts.get("osd") else [])
    steps = steps_back(cluster, found)
    plan = Plan(journal, end="given up; data goes back by itself (cloudctl status)")
    plan.lines = [f"{command} is given up", *(_words(step) for step in steps)]

    def fill(_journal: Journal) -> str:
        if journal.state("drain") is not None:
            journal.mark("drain", UNDONE)  # whoever goes on after all empties them again
        now = read(site)
        back = steps_back(now, found)
        if back:
            ask(site, back, "giving OSDs their weights back", changing=True)
            plan.done.extend({"kind": "osd", "name": str(step["cmd"].get("name") or step["cmd"]["ids"][0]),
                              "action": "update"} for step in back)  # fmt: skip
        _give_back(site, now, journal)
        return f"{len(back)} changed"

    plan.steps = [
        Step("weights", "give OSDs their weights back", fill, every_time=True,
             commands=[_words(step) for step in steps]),
        Step("restore", "restore the options", lambda _: _release(site, report), every_time=True),
    ]  # fmt: skip
    return plan


def steps_back(cluster: Cluster, facts: Sequence[Mapping[str, Any]]) -> list[remote.Step]:
    """Return the commands that undo the emptying of OSDs, of those that are still the same. Pure.

    Args:
        facts: what was written down of each before.
    """
    steps = []
    for fact in facts:
        osd = cluster.osds.get(fact["id"])
        if osd is None or osd.uuid != fact["uuid"]:
            continue
        if fact["weight"] and not osd.weight:
            steps.append(mon("osd crush reweight", name=osd.name, weight=fact["weight"]))
        # One that is down and was marked out stays out: nobody would answer for its data.
        if fact.get("share") and not osd.share and osd.up:
            steps.append(mon("osd in", ids=[str(osd.id)]))
    return steps


def _words(step: remote.Step) -> str:
    """Return a command as an operator types it."""
    cmd = step["cmd"]
    values = [cmd["name"], f"{cmd['weight']:g}"] if "name" in cmd else cmd["ids"]
    return " ".join(["ceph", cmd["prefix"], *values])


def begin(plan: Plan) -> None:
    """Begin the operation, or go on with it."""
    if plan.anew is None:
        plan.journal.begin()
    else:
        plan.journal.restart(**plan.anew)


def finish(plan: Plan) -> None:
    """The operation is complete."""
    if plan.journal.open:
        plan.journal.finish()


def as_json(plan: Plan) -> dict[str, Any]:
    """Return what a dry run shows, as data."""
    return {
        "summary": plan.lines,
        **(
            {"forecast": {"full": dict(plan.ahead.full), "before": dict(plan.ahead.before)}}
            if plan.ahead
            else {}
        ),
        "steps": [
            {"name": s.key, "title": s.title, "nodes": list(s.nodes), "commands": list(s.commands)}
            for s in plan.steps
        ],
    }
