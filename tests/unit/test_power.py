"""Switching the cloud off and on: what is decided, and that a run that was killed goes on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from cloudctl.errors import ApplyFailed, CheckFailed
from cloudctl.main import cli
from cloudctl.operations.containers import Tier
from cloudctl.operations.steps import BEGUN, DONE, Journal, execute, undo
from cloudctl.power import cephwatch, decide, down, guests, start, world
from cloudctl.power.dashboard import login_form
from cloudctl.power.decide import (
    Instance,
    Roles,
    ceph_complaints,
    dirty_pgs,
    is_stale,
    judge_absence,
    kind_of,
    next_batch,
    own_flags,
    refusals,
    safe_without,
    sort_guests,
    start_action,
    start_stages,
    stop_stages,
)
from cloudctl.site.model import Node


def node(name: str, *groups: str) -> Node:
    return Node(name, groups, "10.0.0.1")


# -- nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        (("control", "mons"), "control"),
        (("control", "compute"), "control"),
        (("mons",), "control"),
        (("storage", "compute"), "storage"),
        (("compute",), "compute"),
        (("deploy",), "deploy"),
        (("deploy", "control"), "deploy"),
        (("newnodes",), None),
    ],
)
def test_a_node_counts_where_it_is_needed_longest(groups: tuple[str, ...], kind: str | None) -> None:
    assert kind_of(node("n", *groups)) == kind


def test_nodes_go_off_computes_first_and_the_deploy_node_never() -> None:
    roles = Roles(compute=("c1",), storage=("s1",), control=("k1", "k2"), deploy=("d",))
    assert roles.off_order == [("compute", ("c1",)), ("storage", ("s1",)), ("control", ("k1", "k2"))]
    assert roles.all == ["k1", "k2", "s1", "c1"]


# -- containers -----------------------------------------------------------------------------------

TIERS = [
    Tier("network-1", "network", ("switch",), {"k1": ["ovs"], "c1": ["ovs"]}),
    Tier("network-2", "network", ("net",), {"k1": ["nb"], "c1": ["agent"]}),
    Tier("infrastructure-1", "infrastructure", ("db", "cache"), {"k1": ["db", "cache"], "k2": ["db"]}),
    Tier("infrastructure-2", "infrastructure", ("bus",), {"k1": ["bus"]}),
    Tier("infrastructure-3", "infrastructure", ("lb",), {"k1": ["lb"]}),
    Tier("infrastructure-4", "infrastructure", ("vip",), {"k1": ["vip"]}),
    Tier("identity-1", "identity", ("id",), {"k1": ["id"]}),
    Tier("control-1", "control", ("api",), {"k1": ["api"], "k2": ["api"]}),
    Tier("compute-1", "compute", ("vms",), {"c1": ["vms"]}),
]


def test_a_shutdown_takes_the_documented_order() -> None:
    stages = stop_stages(TIERS, ("k1", "k2"), "db", "bus")
    assert [stage.key for stage in stages] == ["computes", "api", "balancer", "bus", "database", "network"]
    by_key = {stage.key: stage.reversed() for stage in stages}
    assert by_key["computes"] == {"c1": [["vms"], ["agent"], ["ovs"]]}
    assert by_key["api"] == {"k1": [["api"], ["id"]], "k2": [["api"]]}
    assert by_key["balancer"] == {"k1": [["vip"], ["lb"]]}
    assert by_key["database"] == {"k1": [["db", "cache"]], "k2": [["db"]]}
    assert by_key["network"] == {"k1": [["nb"], ["ovs"]]}


def test_every_container_is_stopped_and_started_exactly_once() -> None:
    wanted = sorted((n, c) for tier in TIERS for n, names in tier.containers.items() for c in names)
    for stages in (stop_stages(TIERS, ("k1", "k2"), "db", "bus"), start_stages(TIERS, "db")):
        found = sorted((n, c) for s in stages for n, names in s.containers().items() for c in names)
        assert found == wanted


def test_a_start_goes_tier_by_tier_and_recovers_the_database() -> None:
    stages = start_stages(TIERS, "db")
    assert [stage.key for stage in stages] == [
        "network", "database", "infrastructure-2", "infrastructure-3", "infrastructure-4",
        "identity-1", "control-1", "compute-1",
    ]  # fmt: skip
    assert stages[0].groups == {"k1": [["ovs"], ["nb"]], "c1": [["ovs"], ["agent"]]}


def test_database_members_stop_one_at_a_time_the_last_one_is_told() -> None:
    stage = next(s for s in stop_stages(TIERS, ("k1", "k2"), "db", "bus") if s.key == "database")
    stage = type(stage)("database", "", {n: [[c.replace("db", down.DATABASE) for c in g] for g in gs]
                                         for n, gs in stage.groups.items()})  # fmt: skip
    lines = down.stop_commands(stage)
    assert lines[0] == "k1: docker stop cache"
    assert lines[1].startswith("k2: docker stop") and lines[2].startswith("k1: docker stop")
    assert "last" in lines[2]


# -- health ---------------------------------------------------------------------------------------


def status(*problems: dict[str, Any], pgs: dict[str, int] | None = None) -> dict[str, Any]:
    return {"problems": list(problems), "ceph": {"pgs": pgs or {"active+clean": 97}}}


def test_a_healthy_cloud_may_go_down() -> None:
    warning = {"ref": "x", "message": "m", "where": "", "warning": True}
    assert refusals(status(warning, pgs={"active+clean": 3, "active+clean+scrubbing+deep": 1}), osds=3) == []


def test_degraded_placement_groups_refuse_though_nothing_else_says_so() -> None:
    errors = refusals(status(pgs={"active+clean": 90, "active+undersized+degraded": 7}), osds=3)
    assert [error.ref for error in errors] == ["ceph-pgs-not-clean"]
    assert "7 active+undersized+degraded" in errors[0].message


@pytest.mark.parametrize(
    "state", ["active+remapped+backfilling", "peering", "active+clean+inconsistent", "down"]
)
def test_what_counts_as_unclean(state: str) -> None:
    assert dirty_pgs({state: 1, "active+clean": 2}) == {state: 1}


def test_every_problem_of_the_status_refuses() -> None:
    problem = {"ref": "galera-incomplete", "message": "2 of 3", "where": "galera", "warning": False}
    assert [e.ref for e in refusals(status(problem), osds=0)] == ["galera-incomplete"]


def test_what_keeps_ceph_from_counting_as_healthy() -> None:
    state = {
        "health": "HEALTH_WARN",
        "checks": {"OSDMAP_FLAGS": "noscrub"},
        "pgs": {"active+clean": 9},
        "mgr": True,
    }
    assert ceph_complaints(state, {"OSDMAP_FLAGS"}, absent=False) == []
    assert ceph_complaints({**state, "mgr": False}, {"OSDMAP_FLAGS"}, absent=False)
    degraded = {
        **state,
        "checks": {"PG_DEGRADED": "x", "OSD_DOWN": "1 osd down"},
        "pgs": {"active+undersized": 9},
    }
    assert len(ceph_complaints(degraded, (), absent=False)) == 3
    assert ceph_complaints(degraded, (), absent=True) == []
    assert ceph_complaints({**degraded, "pgs": {"down": 1}}, (), absent=True)
    assert ceph_complaints({**degraded, "checks": {"OBJECT_UNFOUND": "3"}}, (), absent=True)


@pytest.mark.parametrize(
    ("state", "seconds", "ending"),
    [
        ({"checks": {}, "health": "HEALTH_OK"}, 1, "HEALTH_OK"),
        ({"checks": {"OSD_NEARFULL": "1 nearfull osd"}}, 61, "warnings stay: 1 nearfull osd (OSD_NEARFULL)"),
        ({"checks": {"OSD_FULL": "1 full osd"}, "health": "HEALTH_ERR"}, 421, None),
        ({"checks": {"PG_DEGRADED": "x"}, "pgs": {"active+undersized": 9}}, 421, None),
    ],
)
def test_a_start_waits_for_data_and_goes_on_with_warnings(
    state: dict[str, Any], seconds: float, ending: str | None, monkeypatch: Any
) -> None:
    now = [0.0]
    whole = {"health": "HEALTH_WARN", "pgs": {"active+clean": 9}, "mgr": True, **state}
    monkeypatch.setattr(cephwatch, "read_state", lambda site: whole)
    monkeypatch.setattr(cephwatch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cephwatch.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    said: list[str] = []
    try:
        told = cephwatch.wait_for_health(None, absent=False, report=said.append)  # type: ignore[arg-type]
    except ApplyFailed as error:
        assert ending is None and error.ref == "ceph-not-healthy"
    else:
        assert ending is not None and told.endswith(ending)
    assert now[0] == pytest.approx(seconds, abs=1)


# -- flags ----------------------------------------------------------------------------------------


def test_flags_that_the_operator_had_set_are_not_ours() -> None:
    assert own_flags(["noout", "nodown", "pause"], ["noscrub", "noout"]) == ["nodown", "pause"]


# -- absent nodes ---------------------------------------------------------------------------------

THREE = Roles(compute=("c1",), storage=("s1", "s2"), control=("k1", "k2", "k3"))


def test_a_storage_node_is_not_done_without_unless_told() -> None:
    found = judge_absence(THREE, ["s2"], [], osds={"s2": 2}, flags=["noout", "pause"])
    assert [error.ref for error in found.stop] == ["storage-node-absent"]
    assert "2 OSDs" in found.stop[0].message and "still set" in found.stop[0].message
    assert "--accept-missing s2" in str(found.stop[0].hint)
    told = judge_absence(THREE, ["s2"], ["s2"], osds={"s2": 2}, flags=[])
    assert not told.stop and told.without == ("s2",) and told.notes


def test_a_minority_of_controllers_may_be_absent_a_majority_never() -> None:
    one = judge_absence(THREE, ["k2"], [], osds={}, flags=[])
    assert not one.stop and "k2" in one.notes[0]
    two = judge_absence(THREE, ["k2", "k3"], ["k2", "k3"], osds={}, flags=[])
    assert [error.ref for error in two.stop] == ["controllers-absent"]
    single = Roles(control=("k1",))
    assert judge_absence(single, ["k1"], [], osds={}, flags=[]).stop


def test_the_database_does_without_a_member_only_when_nothing_can_be_lost() -> None:
    assert safe_without(["k3"], [], []) == []
    assert safe_without(["k3"], ["k3"], []) == ["k3"]
    assert safe_without(["k3"], [], ["k1", "k2", "k3"]) == ["k3"]
    assert safe_without(["k3"], [], ["k3"]) == []


def test_members_that_hold_every_write() -> None:
    def member(synced: bool, seqno: int) -> Any:
        return SimpleNamespace(synced=synced, seqno=seqno)

    assert down.complete_members({"a": member(True, 9), "b": member(True, 9), "c": member(True, 8)}) == [
        "a",
        "b",
    ]
    assert down.complete_members({"a": member(False, 9), "b": member(True, 8)}) == ["b"]
    assert down.complete_members({"a": member(False, -1)}) == []


# -- instances ------------------------------------------------------------------------------------


def vm(name: str, status: str = "ACTIVE", *, task: str = "", power: int = 1, host: str = "c1") -> Instance:
    return Instance(name, name, host, status, task, power)


def test_instances_are_sorted_by_what_a_shutdown_does_with_them() -> None:
    found = sort_guests(
        [
            vm("runs"), vm("off", "SHUTOFF", power=4), vm("paused", "PAUSED", power=3),
            vm("moves", "MIGRATING"), vm("busy", task="rebooting"), vm("broken", "ERROR", power=0),
            vm("asleep", "SUSPENDED", power=7), vm("shelved", "SHELVED_OFFLOADED", power=4),
        ]
    )  # fmt: skip
    assert [i.name for i in found.stop] == ["runs"]
    assert [i.name for i in found.odd] == ["paused"]
    assert [i.name for i in found.busy] == ["moves", "busy"]
    assert [i.name for i in found.leave] == ["off", "broken", "asleep", "shelved"]


def test_no_host_works_on_too_many_at_once() -> None:
    waiting = [vm("a"), vm("b"), vm("c", host="c2"), vm("d")]
    assert [i.name for i in next_batch(waiting, [vm("x")], per_host=2)] == ["a", "c"]


@pytest.mark.parametrize(
    ("instance", "tried", "action"),
    [
        (None, False, "gone"),
        (vm("a"), False, "done"),
        (vm("a", power=4), False, "reboot"),
        (vm("a", power=4), True, "wait"),
        (vm("a", "SHUTOFF", power=4), False, "start"),
        (vm("a", "ERROR", power=0), False, "reset"),
        (vm("a", "ERROR", power=0), True, "failed"),
        (vm("a", "SHUTOFF", task="powering-on"), False, "wait"),
        (vm("a", "PAUSED", power=3), False, "left"),
    ],
)
def test_what_an_instance_needs_to_run_again(instance: Instance | None, tried: bool, action: str) -> None:
    assert start_action(instance, tried=tried) == action


def test_hypervisors_know_how_a_guest_ended() -> None:
    text = "aa-1 shut off (shutdown)\nbb-2 shut off (destroyed)\ncc-3 running (booted)\n\n"
    found = guests.parse_domains(text)
    assert [guests.is_running(found[i]) for i in ("aa-1", "bb-2", "cc-3")] == [False, False, True]
    assert guests.forced({"c1": found}, ["aa-1", "bb-2", "cc-3"]) == ["bb-2"]
    assert guests.forced({"c1": found}, ["aa-1"]) == []


class FakeCloud:
    """A compute API whose guests need one look to end; ``stuck`` ones never do by themselves."""

    def __init__(
        self, *instances: Instance, stuck: tuple[str, ...] = (), broken: tuple[str, ...] = ()
    ) -> None:
        self.now = {i.id: i for i in instances}
        self.stuck, self.broken = stuck, broken
        self.calls: list[tuple[str, str]] = []

    def instances(self) -> list[Instance]:
        return list(self.now.values())

    def _set(self, i: Instance, status: str, power: int) -> None:
        self.now[i.id] = Instance(i.id, i.name, i.host, status, "", power)

    def stop(self, i: Instance) -> None:
        self.calls.append(("stop", i.id))
        if i.id not in self.stuck:
            self._set(i, "SHUTOFF", 4)

    def start(self, i: Instance) -> None:
        self.calls.append(("start", i.id))
        self._set(i, "ERROR" if i.id in self.broken else "ACTIVE", 0 if i.id in self.broken else 1)

    def reset(self, i: Instance) -> None:
        self.calls.append(("reset", i.id))

    def reboot(self, i: Instance) -> None:
        self.calls.append(("reboot", i.id))
        self._set(i, "ACTIVE", 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_stopping_leaves_alone_what_is_off_already(quick: None) -> None:
    cloud: Any = FakeCloud(vm("a"), vm("b", "SHUTOFF", power=4), vm("other"))
    late = guests.stop_all(Any, cloud, [vm("a"), vm("b")], limit=60, report=lambda line: None)
    assert late == [] and cloud.calls == [("stop", "a")]


def test_a_guest_that_does_not_end_is_switched_off_by_its_hypervisor(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud: Any = FakeCloud(vm("a"), stuck=("a",))

    def end(site: Any, ids: Any, *, patience: int) -> None:
        assert patience == 0
        for uuid in ids["c1"]:
            cloud._set(cloud.now[uuid], "SHUTOFF", 4)

    monkeypatch.setattr(guests, "end_domains", end)
    assert guests.stop_all(Any, cloud, [vm("a")], limit=-1, report=lambda line: None) == ["a"]


def test_exactly_the_recorded_instances_are_started(quick: None) -> None:
    cloud: Any = FakeCloud(
        vm("ran", "SHUTOFF", power=4), vm("was-off", "SHUTOFF", power=4), vm("resumed"),
        vm("lost", "SHUTOFF", power=4, host="c9"), vm("broke", "ERROR", power=0),
    )  # fmt: skip
    wanted = [vm("ran"), vm("resumed"), vm("lost"), vm("broke"), vm("deleted")]
    done, why = guests.start_all(cloud, wanted, without=["c9"], report=lambda line: None)
    assert sorted(done) == ["broke", "ran", "resumed"]
    assert {(entry.name, entry.kind) for entry in why} == {("lost", "absent"), ("deleted", "gone")}
    assert cloud.calls == [("start", "ran"), ("reset", "broke"), ("reboot", "broke")]


def test_an_instance_that_fails_again_is_told(quick: None) -> None:
    cloud: Any = FakeCloud(vm("a", "SHUTOFF", power=4), broken=("a",))
    cloud.reboot = lambda i: cloud.calls.append(("reboot", i.id))
    done, why = guests.start_all(cloud, [vm("a")], without=[], report=lambda line: None)
    assert done == [] and [entry.kind for entry in why] == ["failed"]


# -- services -------------------------------------------------------------------------------------


def test_services_of_absent_nodes_need_not_report() -> None:
    def row(host: str, up: bool, enabled: bool = True) -> dict[str, Any]:
        return {"name": "x", "host": host, "up": up, "enabled": enabled}

    api = {"compute": [row("k1", True), row("k2", False)], "volume": [row("k3@rbd", False)],
           "network": [row("c1", False, False)], "errors": {}}  # fmt: skip
    assert start.service_complaints(api, ["k2", "k3"]) == []
    assert start.service_complaints(api, []) == ["x on k2", "x on k3"]
    assert start.service_complaints({"errors": {"identity": "no route"}}, []) == ["identity API: no route"]


def test_the_message_bus_is_whole_when_every_member_sees_all() -> None:
    good = {"running": ["a", "b"], "partitions": []}
    assert start.bus_complaint({"k1": good, "k2": good}, ["k1", "k2"]) == ""
    assert "1 of 2" in start.bus_complaint(
        {"k1": good, "k2": {"running": ["b"], "partitions": []}}, ["k1", "k2"]
    )
    assert "does not tell" in start.bus_complaint({"k1": good}, ["k1", "k2"])
    apart = {"running": ["a", "b"], "partitions": ["a does not see b"]}
    assert start.bus_complaint({"k1": apart, "k2": good}, ["k1", "k2"]) == "a does not see b"


def test_osds_are_asked_one_by_one_on_their_own_nodes() -> None:
    units = {
        "s1": {"u": {"kind": "osd", "id": "3"}, "v": {"kind": "crash", "id": "s1"}},
        "k1": {"w": {"kind": "mon", "id": "k1"}},
    }
    questions = cephwatch.osd_questions(units)
    assert list(questions) == ["s1"] and list(questions["s1"]["probes"]) == ["osd.3"]
    assert cephwatch.read_osd({"rc": 0, "stdout": '{"state": "active"}'}) == "active"
    assert cephwatch.read_osd({"rc": 1, "stdout": ""}) == cephwatch.read_osd(None) == "off"
    assert cephwatch.read_osd({"rc": 0, "stdout": "?"}) == "unreadable"


def test_osds_of_absent_nodes_are_marked_down_where_the_map_calls_them_up(monkeypatch: Any) -> None:
    tree = {
        "nodes": [
            {"id": -1, "type": "root", "name": "default", "children": [-2, -3]},
            {"id": -2, "type": "host", "name": "osd01", "children": [0, 3]},
            {"id": -3, "type": "host", "name": "osd02", "children": [1, 2]},
            *(
                {"id": n, "type": "osd", "name": f"osd.{n}", "status": "down" if n == 2 else "up"}
                for n in range(4)
            ),
        ]
    }
    asked: list[Sequence[str]] = []

    def mon_command(site: Any, command: Sequence[str]) -> tuple[str, str]:
        asked.append(command)
        return json.dumps(tree), "ctl01"

    monkeypatch.setattr(cephwatch, "mon_command", mon_command)
    said: list[str] = []
    assert cephwatch.mark_down(None, {"osd02", "ctl03"}, report=said.append) == ["1"]  # type: ignore[arg-type]
    assert asked[1:] == [["osd", "down", "1"]] and said == ["absent, marked down: osd.1"]
    asked.clear()
    assert cephwatch.mark_down(None, [], report=said.append) == [] and not asked  # type: ignore[arg-type]


# -- the dashboard --------------------------------------------------------------------------------


def test_the_login_form_is_found_among_others() -> None:
    page = """<form action="/lang"><input name="l" value="en"></form>
    <form action="/auth/login/" method="post"><input type="hidden" name="csrf" value="t0k">
    <input name="username"><input type="password" name="password"></form>"""
    assert login_form(page) == ("/auth/login/", {"csrf": "t0k", "username": "", "password": ""})
    assert login_form("<p>overview</p>") == ("", {})


# -- journals -------------------------------------------------------------------------------------


def test_an_old_shutdown_that_stopped_nothing_begins_anew() -> None:
    now = datetime.now(UTC)
    old = (now - timedelta(hours=2)).isoformat()
    assert is_stale(old, now, stopped_anything=False)
    assert not is_stale(old, now, stopped_anything=True)
    assert not is_stale(now.isoformat(), now, stopped_anything=False)


def test_only_what_stops_something_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    journal.mark("backup", DONE)
    assert not down.stopped_anything(journal)
    journal.mark("guests", BEGUN)
    assert down.stopped_anything(journal)


def test_other_commands_are_refused_while_the_cloud_is_off(tmp_path: Path) -> None:
    world.refuse_while_off(tmp_path, "deploy")
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    with pytest.raises(CheckFailed, match="unfinished"):
        world.refuse_while_off(tmp_path, "deploy")
    journal.finish()
    with pytest.raises(CheckFailed, match="was shut down"):
        world.refuse_while_off(tmp_path, "deploy")
    journal.keep(up="2026-01-01")
    world.refuse_while_off(tmp_path, "deploy")


class Crash(BaseException):
    """The process is gone: nothing after this runs."""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cloud of which every action is a line in a log."""
    log: list[str] = []
    flags = {"noscrub"}
    monkeypatch.setattr(down, "inspect", lambda w: ([], []))
    monkeypatch.setattr(down.cephwatch, "ceph_units", lambda site: ["k1", "s1"])
    monkeypatch.setattr(down, "read_flags", lambda site: sorted(flags))
    monkeypatch.setattr(down, "set_flags", lambda site, names: (log.append("flags"), flags.update(names)))
    monkeypatch.setattr(down, "unset_flags", lambda site, names: flags.difference_update(names))
    monkeypatch.setattr(
        down.containers, "stop", lambda site, c, report: log.append(f"stop {sorted(c)}") or {}
    )
    monkeypatch.setattr(down.containers, "poweroff", lambda site, nodes, report: log.append(f"off {nodes}"))
    monkeypatch.setattr(
        down.cephwatch, "stop", lambda site, kinds, nodes, report: log.append(f"ceph {kinds[0]}") or 1
    )
    monkeypatch.setattr(down.cephwatch, "start", lambda site, kinds, nodes, report: 1)
    monkeypatch.setattr(down.cephwatch, "wait_for_health", lambda site, absent, report: "HEALTH_OK")
    monkeypatch.setattr(down, "wait_for_ceph", lambda w, without, accepted: "")
    monkeypatch.setattr(down, "start_stage", lambda w, stage, journal: log.append(f"start {stage.key}") or "")
    monkeypatch.setattr(
        down, "start_guests", lambda w, wanted, without: log.append(f"boot {[i.name for i in wanted]}") or ""
    )
    monkeypatch.setattr(down, "switch_on", lambda w, nodes: log.append(f"on {sorted(nodes)}") or [])
    monkeypatch.setattr(down, "reachable", lambda site, nodes: list(nodes))
    monkeypatch.setattr(down, "wait_until_off", lambda w, nodes: None)
    monkeypatch.setattr(down.guests, "Cloud", lambda site: FakeCloud(vm("a"), vm("b", "SHUTOFF", power=4)))
    monkeypatch.setattr(down.guests, "stop_all", lambda *a, **k: log.append("guests") or [])
    monkeypatch.setattr(down.guests, "domains", lambda site, computes: ({}, {}))
    backup = SimpleNamespace(
        make=lambda site, kind, report: log.append("backup") or SimpleNamespace(id="B1", path="/b")
    )
    import cloudctl

    monkeypatch.setattr(cloudctl, "backup", backup, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "cloudctl.backup", backup)
    galera = SimpleNamespace(read_members=lambda site, **options: {})
    monkeypatch.setattr(cloudctl, "galera", galera, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "cloudctl.galera", galera)
    return log


class FakeSite:
    """Just enough of a site for the steps."""

    path = Path("/nowhere")

    def __init__(self) -> None:
        self.nodes = {
            n.name: n
            for n in (
                node("k1", "control", "mons"),
                node("s1", "storage"),
                node("c1", "compute"),
                node("d", "deploy"),
            )
        }

    def group(self, name: str) -> list[Node]:
        return [n for n in self.nodes.values() if name in n.groups]

    def get(self, path: str, default: Any = None) -> Any:
        return default


def make_world() -> world.World:
    made = world.World(site=FakeSite())  # type: ignore[arg-type]
    names = {"db": down.DATABASE, "bus": down.BUS}
    made.__dict__["tiers"] = [
        Tier(
            tier.name,
            tier.phase,
            tier.services,
            {n: [names.get(c, c) for c in cs] for n, cs in tier.containers.items() if n != "k2"},
        )
        for tier in TIERS
    ]
    made.__dict__["osds"] = {"s1": 1}
    return made


def test_a_shutdown_killed_in_any_step_goes_on_and_does_each_step_once(
    tmp_path: Path, fakes: list[str]
) -> None:
    options = down.Options(power_off=True)
    (tmp_path / "whole").mkdir()
    whole = Journal(tmp_path / "whole", world.DOWN)
    whole.begin()
    steps = down.build(make_world(), options, whole)
    execute(steps, whole)
    expected = list(fakes)
    assert expected[0] == "backup" and expected[-1] == "off ['k1']"
    assert expected.index("flags") < expected.index("ceph mon") < expected.index("ceph osd")

    for number, _step in enumerate(steps):
        fakes.clear()
        place = tmp_path / str(number)
        place.mkdir()

        def explode(n: int, total: int, step: Any, at: int = number) -> None:
            if n == at + 1:
                raise Crash

        first = Journal(place, world.DOWN)
        first.begin()
        with pytest.raises(Crash):
            execute(down.build(make_world(), options, first), first, announce=explode)
        again = Journal(place, world.DOWN)
        assert again.begin()
        execute(down.build(make_world(), options, again), again)
        assert fakes == expected, f"killed before step {number + 1}"
        runs = {key: entry["runs"] for key, entry in again.as_dict()["steps"].items()}
        assert all(count == 1 for key, count in runs.items() if key != "check")


def test_an_abort_takes_back_exactly_what_was_done(tmp_path: Path, fakes: list[str]) -> None:
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    steps = down.build(make_world(), down.Options(), journal)
    at = next(i for i, step in enumerate(steps) if step.key == "stop-bus")

    def explode(n: int, total: int, step: Any) -> None:
        if n == at + 1:
            raise Crash

    with pytest.raises(Crash):
        execute(steps, journal, announce=explode)
    fakes.clear()
    undo(down.build(make_world(), down.Options(), journal), journal)
    assert fakes == ["start balancer", "start api", "start computes", "boot ['a']"]


def test_the_operators_own_flags_are_recorded_and_kept(tmp_path: Path, fakes: list[str]) -> None:
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    execute(down.build(make_world(), down.Options(), journal), journal)
    assert journal.facts["flags_before"] == ["noscrub"]
    assert journal.facts["flags_ours"] == [
        "noout",
        "norecover",
        "norebalance",
        "nobackfill",
        "nodown",
        "pause",
    ]
    assert [i["name"] for i in journal.facts["instances"]] == ["a"]


def test_nothing_is_stopped_when_the_backup_fails(
    tmp_path: Path, fakes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudctl

    def fail(site: Any, kind: str, report: Any) -> None:
        raise ApplyFailed("backup-failed", "disk full")

    monkeypatch.setattr(cloudctl.backup, "make", fail)  # type: ignore[attr-defined]
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    with pytest.raises(ApplyFailed):
        execute(down.build(make_world(), down.Options(force="no matter what"), journal), journal)
    assert fakes == [] and not down.stopped_anything(journal)


def test_a_sick_cloud_is_refused_and_a_reason_overrides(
    tmp_path: Path, fakes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = CheckFailed("ceph-pgs-not-clean", "7 degraded")
    monkeypatch.setattr(down, "inspect", lambda w: ([error], ["c1"]))
    journal = Journal(tmp_path, world.DOWN)
    journal.begin()
    with pytest.raises(CheckFailed):
        execute(down.build(make_world(), down.Options(), journal), journal)
    assert fakes == []
    execute(down.build(make_world(), down.Options(force="fire"), journal), journal)
    assert journal.facts["force"] == "fire" and journal.facts["absent"] == ["c1"]
    assert not any("c1" in line for line in fakes)


# -- the printed runbook -------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/power-inspection.md"


def test_every_command_of_the_printed_page_is_one_that_is_known() -> None:
    lines = [
        line
        for block in re.findall(r"^```sh.*?\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("cloudctl ")
    ]
    lines += re.findall(r"`(cloudctl [^`]*)`", PAGE.read_text())
    assert len(lines) > 20
    for line in lines:
        parent = click.Context(cli)
        command: click.Command = cli
        words = shlex.split(line)[1:]
        while isinstance(command, click.Group) and words:
            found = command.get_command(parent, words[0])
            assert found is not None, line
            command = found
            words = words[1:]
        command.make_context(str(command.name), words, parent=parent)


def test_every_error_on_the_printed_page_is_one_that_is_raised() -> None:
    code = "\n".join(path.read_text() for path in Path(decide.__file__).parents[1].rglob("*.py"))
    cells = re.findall(r"^\| (`[a-z`…, -]+`) \|", PAGE.read_text(), re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([a-z-]+)…?`", cell)}
    assert len(named) > 15
    for name in named:
        verb = re.fullmatch(r"ceph-not-(stopped|started)", name)
        assert f'"{name}' in code or (verb and '"ceph-not-{verb}"' in code), name


@pytest.mark.parametrize(
    ("complete", "absent", "copied"),
    [([], [], True), (["c1", "c2"], [], False), (["c1", "c2"], ["c2"], False), (["c2"], ["c2"], True)],
)
def test_the_database_is_copied_first_unless_an_ordered_shutdown_left_it_whole(
    monkeypatch: pytest.MonkeyPatch, complete: list[str], absent: list[str], copied: bool
) -> None:
    from cloudctl import galera

    asked: dict[str, Any] = {}

    def recover(site: Any, **options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(size=2, uuid="u", position=1, chosen="c1", reason="it is the newest")

    monkeypatch.setattr(galera, "read_members", lambda site, **options: dict.fromkeys(["c1", "c2"]))
    monkeypatch.setattr(galera, "is_healthy", lambda members: False)
    monkeypatch.setattr(galera, "recover", recover)
    monkeypatch.setattr(start.containers, "start", lambda *a, **k: {})
    world_ = SimpleNamespace(site=None, accepted=absent, say=lambda line: None, note=lambda line: None)
    start.recover_database(world_, decide.Stage("database", "", {}), absent=absent, complete=complete)  # type: ignore[arg-type]
    assert asked["copy"] is copied


def test_a_deploy_is_refused_while_the_cloud_is_off_a_plan_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudctl.engine import opening

    monkeypatch.setattr(opening, "load_site", lambda path: SimpleNamespace(path=path, secrets={}))
    monkeypatch.setattr(opening, "check_selection", lambda *args: None)
    Journal(tmp_path, world.DOWN).begin()
    with opening.opening("plan", tmp_path, (), (), "text"):
        pass
    with (
        pytest.raises(CheckFailed, match="a shutdown of the cloud is unfinished"),
        opening.opening("deploy", tmp_path, (), (), "text"),
    ):
        pass


def test_silent_nodes_are_asked_once_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(world, "answers_ssh", lambda site, name: asked.append(name) or name == "c1")
    assert world.silent_ones(None, ["c1", "k1", "s1"]) == ["k1", "s1"]  # type: ignore[arg-type]
    assert sorted(asked) == ["c1", "k1", "s1"]


@pytest.mark.parametrize(("present", "alone"), [(3, False), (2, True)])
def test_a_message_bus_without_all_members_starts_by_its_majority(
    present: int, alone: bool, monkeypatch: Any
) -> None:
    nodes = ["k1", "k2", "k3"]
    tier = Tier("infrastructure-2", "infrastructure", ("bus",), {node: ["rabbitmq"] for node in nodes})
    stage = decide.start_stages([tier], "db")[0].without(nodes[present:])
    asked: list[tuple[list[str], int]] = []
    monkeypatch.setattr(
        start, "start_bus", lambda site, members, size, report: asked.append((list(members), size))
    )
    monkeypatch.setattr(start.containers, "start", lambda site, groups, report: {})
    monkeypatch.setattr(start, "check_bus", lambda world, members: None)
    world_ = SimpleNamespace(site=None, tiers=[tier], say=lambda line: None)
    start.start_stage(world_, stage, SimpleNamespace(facts={}))  # type: ignore[arg-type]
    assert asked == ([(nodes[:present], 3)] if alone else [])
