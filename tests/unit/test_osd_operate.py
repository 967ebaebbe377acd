"""``osd add``, ``replace`` and ``remove`` as a whole, played on a storage node's disks without a node."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from site_support import lab_site
from test_ceph_module import ceph
from test_osd import cluster, osd

from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, UsageError
from cloudctl.operations.call import Answers
from cloudctl.operations.steps import Journal, execute
from cloudctl.osd import act, operate, remote, throttle, wait
from cloudctl.osd.cluster import Cluster, Osd, Pool
from cloudctl.osd.operate import Plan, plan_abandon, plan_add, plan_remove, plan_replace, steps_back
from cloudctl.site.edit_inventory import set_variables
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

HOSTS = "inventory/hosts.yml"
MIB, GIB = 1 << 20, 1 << 30
A, B, C, J, NEW, OTHER = (f"/dev/disk/by-id/{name}" for name in ("a", "b", "c", "j", "new", "other"))


class Killed(Exception):
    """The run ends here."""


class World:
    """A storage node's disks and the cluster's OSDs, changed by the module's own decisions.

    Attributes:
        disks: by path, what the module would read of them.
        asked: commands that changed the cluster.
        killed: a mode of the module in whose call the run ends, and whether after its work.
        overwrites: the orchestrator makes OSDs over half-made ones, and leaves their ids.
    """

    def __init__(self, path: Path, disks: dict[str, dict[str, Any]], *osds: Osd) -> None:
        self.path, self.disks = path, disks
        others = (osd(n, f"osd0{2 + n % 2}") for n in range(10, 14))
        self.state: Cluster = cluster(*osds, *others)
        self.asked: list[str] = []
        self.killed: tuple[str, bool] | None = None
        self.overwrites = False
        self.fsid = str(load_site(path).secrets["ceph_fsid"])
        self.before: list[str] = []
        self.made = 0

    @property
    def site(self) -> Site:
        return load_site(self.path)

    def says(self, name: str) -> Any:
        """Return what the inventory says of the node."""
        return self.site.nodes["osd01"].vars.get(name)

    def label(self, path: str, uuid: str, journal: str = "") -> None:
        """Let an OSD be on a device, as the cluster's."""
        self.disks[path]["label"] = {"osd_uuid": uuid, "ceph_fsid": self.fsid, "description": "main"}
        for slot in self.disks[journal]["partitions"] if journal else ():
            if slot["label"] is None or slot["label"]["osd_uuid"] == uuid:
                slot["label"] = {"osd_uuid": uuid, "ceph_fsid": "", "description": "bluefs db"}
                return

    def probe(self, path: str) -> dict[str, Any]:
        return self.disks.get(path) or {**disk(path), "error": "there is no such device"}

    def call(self, _site: Path, _module: str, calls: Any, *, changing: bool = False) -> Answers:
        found = Answers()
        for node, arguments in calls.items():
            mode = arguments["mode"]
            if self.killed == (mode, False):
                raise Killed
            try:
                found.ok[node] = getattr(self, mode)(**arguments)
            except ceph.CephFailure as error:
                found.failed[node] = ApplyFailed("ceph-failed", str(error), where=node)
            if self.killed == (mode, True):
                raise Killed
        return found

    def devices(self, **a: Any) -> dict[str, Any]:
        checked = ceph.check_devices(
            a["data"], a["journals"], a["fsid"], self.probe, a["journal_size"], a["journal_minimum"],
            a["osds"], a["only"], a["leaving"],
        )  # fmt: skip
        return {"devices": checked}

    def prepare(self, **a: Any) -> dict[str, Any]:
        done = ceph.prepare_devices(
            a["data"], a["journals"], a["fsid"], a["journal_size"], a["journal_minimum"], self.probe,
            only=a["only"],
        )  # fmt: skip
        return {"done": done}

    def apply(self, **a: Any) -> dict[str, Any]:
        desired = a["desired"]
        self.before = desired["before"]
        found = {
            "osds": [
                {"id": o.id, "uuid": o.uuid, "host": o.host, "device": o.device}
                for o in self.state.osds.values()
                if o.started
            ]
        }
        devices = ceph.adopt_unstarted(a["devices"], [], [o.uuid for o in self.state.osds.values()])
        missing = ceph.missing_osds(desired, found, devices)
        specs, refused = ceph.osd_specs(missing, devices)
        if refused:
            raise ceph.CephFailure("; ".join(refused))
        classes = {
            int(p.rsplit("-", 1)[1]): s["spec"].get("crush_device_class", "hdd")
            for s in specs
            for p in s["spec"]["data_devices"]["paths"]
        }
        for wanted in missing:
            self.discard(wanted["data"])
            self.make(wanted["data"], wanted["journal"] or "", classes[wanted["slot"]])
        return {"changes": [{"kind": "osd", "name": m["data"], "action": "create"} for m in missing]}

    def half_make(self, path: str, number: int) -> None:
        """Let the power fail while an OSD is being made."""
        self.put(Osd(number, uuid=f"half{number}", started=False))
        self.label(path, f"half{number}")
        self.disks[path]["label"]["ceph_fsid"] = ""

    def discard(self, path: str) -> None:
        """Give up an OSD that was half made on a device, as the module does after a while."""
        for item in list(self.state.osds.values()):
            if self.disks[path]["label"] and self.disks[path]["label"]["osd_uuid"] == item.uuid:
                assert not item.started
                self.disks[path]["label"] = None
                if not self.overwrites:
                    self.drop(item.id)

    def make(self, path: str, journal: str = "", device_class: str = "hdd") -> None:
        """Make an OSD, which gets the lowest free id."""
        self.made += 1
        number = next(n for n in range(99) if n not in self.state.osds)
        uuid = f"made{self.made}"
        self.label(path, uuid, journal)
        self.put(osd(number, "osd01", uuid=uuid, device_class=device_class, device=self.disks[path]["real"]))

    def wipe(self, **a: Any) -> dict[str, Any]:
        paths = ceph.find_remains(a["data"], a["journals"], a["fsid"], a["osds"], self.probe)
        for path in paths[: 1 if self.killed == ("wipe", True) else None]:
            for item in self.disks.values():
                if item["real"] == path:
                    item["label"] = None
                for slot in item["partitions"]:
                    if slot["path"] == path:
                        slot["label"] = None
        return {"done": [{"name": path} for path in paths]}

    def put(self, *osds: Osd) -> None:
        self.state = replace(self.state, osds={**self.state.osds, **{item.id: item for item in osds}})

    def drop(self, number: int) -> None:
        self.state = replace(self.state, osds={n: o for n, o in self.state.osds.items() if n != number})

    def ask(self, _site: Any, steps: Sequence[Any], _what: str, **_more: Any) -> list[dict[str, Any]]:
        for step in steps:
            command = step["cmd"]
            values = [str(v) for k, v in command.items() if k not in ("prefix", "format")]
            self.asked.append(" ".join([command["prefix"], *values]))
            self.change(command)
        return [{"rc": 0, "out": "", "err": ""} for _ in steps]

    def change(self, command: dict[str, Any]) -> None:
        ids = [int(str(n).removeprefix("osd.")) for n in command.get("ids") or [command.get("id", -1)]]
        match command["prefix"]:
            case "osd new":
                number = next(n for n in range(99) if n not in self.state.osds)
                self.put(Osd(number, uuid=command["uuid"], started=False))
            case "osd rm" | "osd purge-new" | "osd purge-actual":
                for number in ids:
                    self.drop(number)
            case "orch daemon rm":
                for name in command["names"]:
                    number = int(name.removeprefix("osd."))
                    self.put(replace(self.state.osds[number], up=False))
            case "osd crush reweight":
                number = int(command["name"].removeprefix("osd."))
                weight = command["weight"]
                self.put(replace(self.state.osds[number], weight=weight, pgs=8 if weight else 0))
            case "osd in":
                for number in ids:
                    self.put(replace(self.state.osds[number], share=1.0))
            case "osd crush set-device-class":
                for number in ids:
                    self.put(replace(self.state.osds[number], device_class=command["class"]))

    def run(self, plan: Plan) -> None:
        """Do what the command does once the operator has said yes."""
        operate.begin(plan)
        execute(plan.steps, plan.journal)
        plan.journal.finish()


def disk(real: str, *slots: dict[str, Any]) -> dict[str, Any]:
    return {
        "real": real, "size": 8 * GIB, "label": None, "mounts": [], "children": [], "signatures": [],
        "whole": True, "partitions": list(slots),
    }  # fmt: skip


Make = Callable[..., World]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_site(tmp_path_factory.mktemp("osd"))


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    path = tmp_path / "site"
    shutil.copytree(template, path)

    def make(*osds: Osd, shared: int = 0, **disks: str | None) -> World:
        """Return a node with disks a, b, … (the uuid of the OSD on each; None: there is none in its place).

        Args:
            shared: how many journals share the device j; their owners are the OSDs in their order.
        """
        fsid = str(load_site(path).secrets["ceph_fsid"])
        found: dict[str, dict[str, Any]] = {
            f"/dev/disk/by-id/{name}": disk(f"/dev/sd-{name}") for name in disks
        }
        size = 8 * GIB // max(1, shared) // MIB * MIB - MIB
        slots = [
            {
                "number": n, "name": ceph.slot_name(fsid, n), "path": f"/dev/sd-j{n}", "size": size,
                "start": MIB + (n - 1) * size,
                "label": {"osd_uuid": owner.uuid, "ceph_fsid": "", "description": "bluefs db"},
            }
            for n, owner in enumerate(osds[:shared], start=1)
        ]  # fmt: skip
        found[J] = disk("/dev/sd-j", *slots)
        played = World(path, found, *osds)
        for name, uuid in disks.items():
            if uuid:
                played.label(f"/dev/disk/by-id/{name}", uuid)
        in_use = [f"/dev/disk/by-id/{name}" for name in disks if name in "abc"]
        variables = {"devices": in_use, "journal_devices": [J] * len(in_use) if shared else []}
        hosts = path / HOSTS
        hosts.write_text(set_variables(hosts.read_text(), "osd01", variables))
        for name in [name for name, uuid in disks.items() if uuid is None]:
            del found[f"/dev/disk/by-id/{name}"]
        desired = {"mons": [{"name": "ctl01"}], "hosts": [{"name": "osd01"}]}
        for module in (act, operate, remote, throttle):
            monkeypatch.setattr(module, "ask", played.ask)
        for module in (act, operate, remote):
            monkeypatch.setattr(module, "read", lambda _site: played.state)
        monkeypatch.setattr(wait, "until", lambda *_a, **_m: played.state)
        monkeypatch.setattr(wait, "pause", lambda: None)
        monkeypatch.setattr(throttle, "hold", lambda *_a: None)
        monkeypatch.setattr(remote, "call", played.call)
        monkeypatch.setattr(remote, "desired_of", lambda _site: desired)
        monkeypatch.setattr(remote, "reach", lambda _site: "ctl01")
        monkeypatch.setattr(ceph, "link", lambda *_a: None)
        monkeypatch.setattr(ceph.os, "makedirs", lambda *_a, **_m: None)
        return played

    return make


def quiet(_line: str) -> None:
    pass


def dead(number: int, device: str = "") -> Osd:
    return osd(number, "osd01", up=False, device=device)


def refs(error: CloudctlError) -> list[str]:
    return [one.ref for one in getattr(error, "errors", [error])]


# -- another disk of the node has failed -------------------------------------------------------


def test_an_osd_is_replaced_while_another_disk_of_the_node_is_dead(world: Make) -> None:
    played = world(dead(0, A), dead(3, B), osd(6, "osd01"), a=None, b=None, c="u6", new="")
    played.run(plan_replace(played.site, 0, NEW, quiet))
    assert played.state.osds[0].uuid == "made1"
    assert played.says("devices") == [NEW, B, C]
    assert played.state.osds[3] == dead(3, B)


def test_two_failed_disks_are_replaced_one_by_one_under_their_old_names(world: Make) -> None:
    """The journals of all are on one device, which has no other room: each gets the place of its own."""
    played = world(dead(0), dead(3), osd(6, "osd01"), shared=3, a="", b="", c="u6")
    with pytest.raises(CheckFailed) as caught:
        plan_replace(played.site, 0, None, quiet)
    assert caught.value.ref == "osd-line-unknown"
    for number, device in ((0, A), (3, B)):
        played.run(plan_replace(played.site, number, device, quiet))
    assert [played.state.osds[n].uuid for n in (0, 3, 6)] == ["made1", "made2", "u6"]
    assert [slot["label"]["osd_uuid"] for slot in played.disks[J]["partitions"]] == ["made1", "made2", "u6"]
    assert played.says("devices") == [A, B, C]


def test_what_can_not_be_made_is_refused_before_anything_changes(world: Make) -> None:
    """The old journal is on another device than the inventory says now, which has no room."""
    played = world(dead(0, A), osd(6, "osd01"), shared=2, a="", c="u6")
    first = played.disks[J]["partitions"][0]
    first["label"] = {**first["label"], "osd_uuid": "another"}
    with pytest.raises(CheckFailed) as caught:
        plan_replace(played.site, 0, A, quiet)
    assert caught.value.ref == "osd-device-refused" and "too small" in caught.value.message
    assert "wipe" not in str(caught.value.hint)
    assert played.asked == []


def test_a_disk_is_added_while_another_disk_of_the_node_is_dead(world: Make) -> None:
    played = world(dead(0), osd(6, "osd01"), a=None, c="u6", new="")
    played.run(plan_add(played.site, "osd01", [NEW], quiet))
    assert played.disks[NEW]["label"]["osd_uuid"] == "made1"
    assert played.says("devices") == [A, C, NEW]


def test_a_disk_that_waits_for_another_osd_is_left_alone(world: Make) -> None:
    played = world(dead(0), osd(6, "osd01"), a="", c="u6", new="")
    played.run(plan_add(played.site, "osd01", [NEW], quiet))
    assert played.disks[A]["label"] is None
    assert played.disks[NEW]["label"]["osd_uuid"] == "made1"


# -- the power failed while an OSD was being made ----------------------------------------------


@pytest.mark.parametrize("device", [B, NEW])
@pytest.mark.parametrize("overwrites", [False, True])
def test_an_osd_that_was_half_made_is_made_anew(world: Make, device: str, overwrites: bool) -> None:
    played = world(osd(0, "osd01"), a="u0", b="", new="")
    played.half_make(device, 1)
    played.overwrites = overwrites
    plan = plan_add(played.site, "osd01", [device], quiet)
    assert not plan.nothing
    played.run(plan)
    assert played.disks[device]["label"]["osd_uuid"] == "made1"
    assert "half1" not in played.before  # it may start after all, and counts then
    assert [item.uuid for item in played.state.osds.values() if not item.started] == []


def test_a_device_of_an_unknown_osd_is_still_refused(world: Make) -> None:
    played = world(osd(0, "osd01"), a="u0", b="")
    played.half_make(B, 1)
    played.drop(1)
    with pytest.raises(CheckFailed) as caught:
        plan_add(played.site, "osd01", [B], quiet)
    assert caught.value.ref == "osd-device-refused" and "unknown Ceph OSD" in caught.value.message


@pytest.mark.parametrize("wiped", [False, True])
def test_a_replacement_that_was_half_made_gets_its_id(world: Make, wiped: bool) -> None:
    """A lower id is free; the operator may have wiped the new disk meanwhile, but not its journal."""
    played = world(dead(3, A), osd(6, "osd01"), shared=2, a=None, c="u6", new="")
    played.killed = ("apply", False)
    plan = plan_replace(played.site, 3, NEW, quiet)
    with pytest.raises(Killed):
        played.run(plan)
    played.killed = None
    assert sorted(played.state.osds)[:3] == [0, 1, 2]
    played.half_make(NEW, 3)
    played.disks[J]["partitions"][0]["label"] = {
        "osd_uuid": "half3",
        "ceph_fsid": "",
        "description": "bluefs db",
    }
    if wiped:
        played.disks[NEW]["label"] = None
    else:
        played.disks[J]["partitions"][0]["label"] = None
    played.run(plan_replace(played.site, 3, NEW, quiet))
    assert played.state.osds[3].uuid == "made1"
    assert played.disks[J]["partitions"][0]["label"]["osd_uuid"] == "made1"
    assert sorted(played.state.osds) == [3, 6, 10, 11, 12, 13]


# -- an OSD on the device that was named, or an error ------------------------------------------


def test_a_disk_is_added_beside_an_osd_that_the_inventory_does_not_name(world: Make) -> None:
    played = world(osd(0, "osd01"), osd(9, "osd01"), a="u0", new="")
    plan = plan_add(played.site, "osd01", [NEW], quiet)
    played.run(plan)
    assert played.disks[NEW]["label"]["osd_uuid"] == "made1"
    assert {"node": "osd01", "kind": "osd", "name": NEW, "action": "create"} in plan.done


def test_an_osd_that_does_not_come_is_an_error(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although another one came to the node meanwhile."""
    played = world(osd(0, "osd01"), a="u0", new="", other="")
    monkeypatch.setattr(played, "make", lambda *_a: played.put(osd(7, "osd01")))
    with pytest.raises(ApplyFailed) as caught:
        played.run(plan_add(played.site, "osd01", [NEW], quiet))
    assert (caught.value.ref, caught.value.where) == ("osd-not-made", "osd01")
    assert NEW in caught.value.message


def test_what_came_meanwhile_is_not_made_again(world: Make) -> None:
    played = world(osd(0, "osd01"), a="u0", new="")
    plan = plan_add(played.site, "osd01", [NEW], quiet)
    played.make(NEW)
    played.killed = ("prepare", False)
    played.run(plan)
    assert played.made == 1


def test_an_osd_that_runs_gets_the_class(world: Make) -> None:
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6")
    plan = plan_add(played.site, "osd01", [A], quiet, device_class="ssd")
    assert "osd.0 of osd01: class ssd (now hdd), its data moves" in plan.lines
    played.run(plan)
    assert played.asked == ["osd crush rm-device-class ['osd.0']", "osd crush set-device-class ssd ['osd.0']"]
    assert played.state.osds[0].device_class == "ssd"
    assert played.says("device_classes") == {A: "ssd"}
    assert plan_add(played.site, "osd01", [A], quiet, device_class="ssd").nothing
    played.put(osd(0, "osd01"))  # the inventory says it, the cluster does not
    assert not plan_add(played.site, "osd01", [A], quiet, device_class="ssd").nothing


def test_a_class_that_leaves_a_pool_too_few_nodes_is_refused(world: Make) -> None:
    played = world(osd(0, "osd01"), a="u0")
    played.state = replace(played.state, pools=[Pool("vms", 3, 2, "hdd", kb=1)])
    with pytest.raises(CheckFailed) as caught:
        plan_add(played.site, "osd01", [A], quiet, device_class="ssd")
    assert caught.value.ref == "osd-failure-domain"
    assert played.says("device_classes") is None


# -- killed while a device is erased -----------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 2])
def test_a_removal_that_ended_in_the_erasing_is_completed(world: Make, shared: int) -> None:
    played = world(osd(0, "osd01"), osd(6, "osd01"), shared=shared, a="u0", c="u6")
    played.killed = ("wipe", True)  # after the first label
    with pytest.raises(Killed):
        played.run(plan_remove(played.site, [0], quiet, zap=A))
    assert 0 not in played.state.osds
    assert bool(played.disks[A]["label"]) == bool(shared)
    played.killed = None
    played.run(plan_remove(played.site, [0], quiet, zap=A))
    assert played.disks[A]["label"] is None and played.disks[C]["label"]
    assert [bool(slot["label"]) for slot in played.disks[J]["partitions"]] == [False, True][:shared]
    assert played.says("devices") == [C]


@pytest.mark.parametrize("spoil", [{"signatures": ["ext4"]}, {"error": "there is no such device"}])
def test_another_device_under_the_name_is_not_taken_for_the_erased_one(
    world: Make, spoil: dict[str, Any]
) -> None:
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6")
    played.killed = ("wipe", True)
    with pytest.raises(Killed):
        played.run(plan_remove(played.site, [0], quiet, zap=A))
    played.killed = None
    played.disks[A].update(spoil)
    with pytest.raises(CheckFailed) as caught:
        plan_remove(played.site, [0], quiet, zap=A)
    assert caught.value.ref == "osd-zap-other"


def test_an_empty_device_is_nobodys_before_the_erasing_began(world: Make) -> None:
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6", other="")
    with pytest.raises(CheckFailed) as caught:
        plan_remove(played.site, [0], quiet, zap=OTHER)
    assert caught.value.ref == "osd-zap-other"
    facts = [{"id": 0, "host": "osd01", "uuid": "u0", "zap": True}]
    with pytest.raises(CheckFailed):
        operate._owner(played.site, OTHER, facts, quiet)
    assert operate._owner(played.site, OTHER, facts, quiet, begun=True) == "u0"


# -- another device than the one that was named first ------------------------------------------


def broken_off(played: World, mode: str, number: int, device: str) -> None:
    """Let a replacement end in the first call of the module in some mode, before its work."""
    played.killed = (mode, False)
    with pytest.raises(Killed):
        played.run(plan_replace(played.site, number, device, quiet))
    played.killed = None


@pytest.mark.parametrize("mode", ["wipe", "prepare", "apply"])
def test_another_device_is_named_while_the_new_osd_does_not_exist(world: Make, mode: str) -> None:
    played = world(dead(3, A), osd(6, "osd01"), shared=2, a=None, c="u6", new="", other="")
    broken_off(played, mode, 3, NEW)
    del played.disks[NEW]
    with pytest.raises(CheckFailed):  # it is looked at before anything changes
        plan_replace(played.site, 3, "/dev/disk/by-id/nothing", quiet)
    played.run(plan_replace(played.site, 3, OTHER, quiet))
    assert played.says("devices") == [OTHER, C]
    assert played.state.osds[3].uuid == "made1"
    assert played.disks[OTHER]["label"]["osd_uuid"] == "made1"
    assert sorted(played.state.osds) == [3, 6, 10, 11, 12, 13]
    assert not Journal(played.path, "osd-replace").open


def test_the_device_that_was_half_made_is_exchanged_too(world: Make) -> None:
    played = world(dead(3, A), osd(6, "osd01"), shared=2, a=None, c="u6", new="", other="")
    broken_off(played, "apply", 3, NEW)
    played.half_make(NEW, 3)
    slot = played.disks[J]["partitions"][0]
    slot["label"] = {"osd_uuid": "half3", "ceph_fsid": "", "description": "bluefs db"}
    played.run(plan_replace(played.site, 3, OTHER, quiet))
    assert played.state.osds[3].uuid == slot["label"]["osd_uuid"] == "made1"


def test_the_first_name_is_taken_after_all(world: Make) -> None:
    played = world(dead(3, A), osd(6, "osd01"), a="", c="u6", new="")
    broken_off(played, "apply", 3, NEW)
    assert played.says("devices") == [NEW, C]
    played.run(plan_replace(played.site, 3, A, quiet))
    assert played.says("devices") == [A, C]
    assert played.disks[A]["label"]["osd_uuid"] == "made1"


@pytest.mark.parametrize("step", ["", "_place", "settle"])
def test_the_new_disk_dies_before_the_end(world: Make, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Its OSD was made; it is replaced in its turn, and a lower free id stays free."""
    played = world(dead(3, A), osd(6, "osd01"), shared=2, a=None, c="u6", new="", other="")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step:
            patch.setattr(operate, step, _kill)
        else:
            played.killed = ("apply", True)
        played.run(plan_replace(played.site, 3, NEW, quiet))
    played.killed = None
    played.put(replace(played.state.osds[3], up=False))
    del played.disks[NEW]
    played.run(plan_replace(played.site, 3, OTHER, quiet))
    assert played.says("devices") == [OTHER, C]
    assert played.state.osds[3].uuid == played.disks[J]["partitions"][0]["label"]["osd_uuid"] == "made2"
    assert sorted(played.state.osds) == [3, 6, 10, 11, 12, 13]


def _kill(*_arguments: Any, **_more: Any) -> None:
    raise Killed


def test_another_osd_is_replaced_while_one_is_only_waited_for(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = world(dead(3, A), osd(6, "osd01"), a=None, c="u6", new="", other="")
    broken_off(played, "apply", 3, NEW)
    with pytest.raises(UsageError) as caught:
        plan_replace(played.site, 6, OTHER, quiet)
    assert caught.value.ref == "osd-unfinished" and caught.value.hint is not None
    assert caught.value.hint.endswith(f"cloudctl osd replace 6 {OTHER}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(operate, "settle", _kill)
        played.run(plan_replace(played.site, 3, NEW, quiet))
    played.put(replace(played.state.osds[6], up=False))
    plan = plan_replace(played.site, 6, OTHER, quiet)
    assert plan.lines == [f"osd.6 of osd01: {OTHER} takes the place of {C}"]
    played.run(plan)
    assert played.says("devices") == [NEW, OTHER]
    assert [played.state.osds[number].uuid for number in (3, 6)] == ["made1", "made2"]


@pytest.mark.parametrize("up", [True, False])
def test_an_osd_that_can_not_be_emptied_is_replaced_without(
    world: Make, monkeypatch: pytest.MonkeyPatch, up: bool
) -> None:
    """Because the operator says so, or because it failed meanwhile."""
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6", new="")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(act, "drain", _kill)
        played.run(plan_replace(played.site, 0, NEW, quiet))
    played.put(replace(played.state.osds[0], up=up))
    plan = plan_replace(played.site, 0, NEW, quiet, degraded=up)
    assert [step.key for step in plan.steps][:2] == ["remember", "forget"]
    monkeypatch.setattr(act, "drain", _kill)
    played.killed = ("apply", False)
    with pytest.raises(Killed):
        played.run(plan)
    played.killed = None
    played.run(plan_replace(played.site, 0, NEW, quiet))
    assert played.state.osds[0].uuid == "made1"


# -- giving up ---------------------------------------------------------------------------------


def drained(played: World, monkeypatch: pytest.MonkeyPatch, make_plan: Callable[[], Plan]) -> None:
    """Let an operation end while it waits for OSDs to be empty."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(wait, "until", _kill)
        played.run(make_plan())


@pytest.mark.parametrize("action", ["remove", "replace"])
def test_an_emptying_is_given_up(world: Make, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    released: list[Site] = []
    monkeypatch.setattr(throttle, "release", lambda site, _report: released.append(site))
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6", new="")
    before = played.state

    def plan() -> Plan:
        if action == "remove":
            return plan_remove(played.site, [0], quiet)
        return plan_replace(played.site, 0, NEW, quiet)

    drained(played, monkeypatch, plan)
    assert played.state.osds[0].weight == 0
    given_up = plan_abandon(played.site, action, [0], quiet)
    assert given_up.lines[1:] == ["ceph osd crush reweight osd.0 0.0976562"]
    played.run(given_up)
    assert played.state == before and len(released) == 1
    assert not Journal(played.path, f"osd-{action}").open
    played.asked.clear()
    played.run(plan())  # from the beginning, the emptying too
    assert "osd crush reweight osd.0 0.0" in played.asked


def test_who_goes_on_after_all_empties_the_osd_again(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that gave up was killed after the weights were back."""
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6", new="")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(act, "stop", _kill)
        played.run(plan_replace(played.site, 0, NEW, quiet))
    journal = Journal(played.path, "osd-replace")
    journal.mark("forget", "begun")
    with pytest.raises(UsageError) as caught:
        plan_abandon(played.site, "replace", [0], quiet)
    assert caught.value.ref == "osd-abandon-late"
    data = journal.as_dict()
    del data["steps"]["forget"]
    journal.save()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(throttle, "release", _kill)
        played.run(plan_abandon(played.site, "replace", [0], quiet))
    assert played.state.osds[0].weight
    drained(played, monkeypatch, lambda: plan_replace(played.site, 0, NEW, quiet))
    assert played.state.osds[0].weight == 0


def test_what_can_not_be_given_up(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    played = world(osd(0, "osd01"), osd(6, "osd01"), a="u0", c="u6", new="")
    with pytest.raises(UsageError) as caught:
        plan_abandon(played.site, "replace", [0], quiet)
    assert "no osd replace is unfinished" in caught.value.message
    drained(played, monkeypatch, lambda: plan_replace(played.site, 0, NEW, quiet))
    with pytest.raises(UsageError) as caught:
        plan_abandon(played.site, "replace", [6], quiet)
    assert caught.value.hint == f"to give that up: cloudctl osd replace 0 {NEW} --abandon"


def test_waiting_is_given_up(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    played = world(dead(0, A), osd(6, "osd01"), a="", c="u6")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(operate, "settle", _kill)
        played.run(plan_replace(played.site, 0, None, quiet))
    before = played.state
    played.run(plan_abandon(played.site, "replace", [0], quiet))
    assert played.state == before
    assert not Journal(played.path, "osd-replace").open


def test_only_what_was_changed_is_taken_back() -> None:
    fact = {"id": 0, "uuid": "u0", "weight": 0.5, "share": 1.0}

    def back(**now: Any) -> list[str]:
        return [str(step["cmd"]["prefix"]) for step in steps_back(cluster(osd(0, "osd01", **now)), [fact])]

    assert back(weight=0.5) == []
    assert back(weight=0.0) == ["osd crush reweight"]
    assert back(weight=0.0, share=0.0) == ["osd crush reweight", "osd in"]
    assert back(weight=0.0, share=0.0, up=False) == ["osd crush reweight"]
    assert back(weight=0.0, uuid="another") == []
    assert steps_back(cluster(osd(1, "osd01")), [fact]) == []
