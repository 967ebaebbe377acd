"""Nodes that leave: what is refused, how instances go, what is done in which order."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from keystoneauth1.exceptions import ConnectFailure
from site_support import lab_site

from cloudctl import osd
from cloudctl.commands import node as node_command
from cloudctl.errors import ApplyFailed, CheckFailed, Unreachable, UsageError
from cloudctl.node import enroll, instances, join, journal, leave
from cloudctl.node.future import future_site
from cloudctl.node.instances import (
    ApiSilent,
    Compute,
    Guest,
    Migration,
    forgotten,
    is_silence,
    refuse_immovable,
    refuse_unconfirmed,
    way_of,
)
from cloudctl.node.join import Change
from cloudctl.node.others import Work
from cloudctl.operations.call import Answers
from cloudctl.operations.steps import Journal
from cloudctl.osd import remote
from cloudctl.osd.cluster import Cluster, Osd, Pool
from cloudctl.power import drivers
from cloudctl.power import guests as guests_module
from cloudctl.power.drivers import OFF, ON, UNKNOWN
from cloudctl.runner import RunResult
from cloudctl.site.edit_inventory import add_host, remove_host
from cloudctl.site.load import load_site
from cloudctl.site.model import Interface, Node, Settings, Site

HOSTS = "inventory/hosts.yml"
FSID = "5c0e4b1e-0000-4000-8000-000000000001"
COMPUTE = {"ansible_host": "10.10.10.22"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    path = lab_site(tmp_path_factory.mktemp("site"))
    text = add_host((path / HOSTS).read_text(), "compute", "compute02", COMPUTE)
    (path / HOSTS).write_text(text)
    return load_site(path)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ref"),
    [("deploy", "node-is-deploy"), ("ctl01", "controller-quorum"), ("osd01", "last-storage")],
)
def test_nodes_that_a_cloud_cannot_lose(site: Site, name: str, ref: str) -> None:
    with pytest.raises((CheckFailed, UsageError)) as caught:
        leave.refuse_indispensable(site, site.nodes[name])
    assert caught.value.ref == ref


def test_the_last_compute_node_stays_and_one_of_two_may_go(site: Site) -> None:
    leave.refuse_indispensable(site, site.nodes["compute02"])
    alone = Site(
        site.path, site.name, site.networks,
        {name: node for name, node in site.nodes.items() if name != "compute01"}, site.settings,
    )  # fmt: skip
    with pytest.raises(CheckFailed) as caught:
        leave.refuse_indispensable(alone, alone.nodes["compute02"])
    assert caught.value.ref == "last-compute"


def with_storage(*nodes: tuple[str, tuple[str, ...]]) -> Site:
    """A site of storage nodes alone, each with a port in the storage network."""
    made = {
        name: Node(name, groups, f"10.10.10.{n}", {"eth1": Interface("eth1", "storage", f"10.10.30.{n}")})
        for n, (name, groups) in enumerate(nodes, 1)
    }
    return Site(Path("/none"), "s", {}, made, {})


def test_a_monitor_goes_to_a_controller_without_one_before_a_storage_node() -> None:
    site = with_storage(
        ("osd01", ("storage", "mons")), ("osd02", ("storage", "mons")), ("osd03", ("storage",)),
        ("ctl01", ("control", "mons")), ("ctl02", ("control",)),
    )  # fmt: skip
    heir = leave.heir_of_monitor(site, site.nodes["osd01"])
    assert heir is not None and heir.name == "ctl02"
    leave.refuse_indispensable(site, site.nodes["osd01"])
    site = with_storage(("osd01", ("storage", "mons")), ("osd02", ("storage",)), ("osd03", ("storage",)))
    heir = leave.heir_of_monitor(site, site.nodes["osd01"])
    assert heir is not None and heir.name == "osd02"


def test_a_node_with_a_monitor_stays_where_nobody_can_take_it() -> None:
    site = with_storage(("osd01", ("storage", "mons")), ("osd02", ("storage", "mons")))
    with pytest.raises(CheckFailed) as caught:
        leave.refuse_indispensable(site, site.nodes["osd01"])
    assert caught.value.ref == "node-holds-monitor"


def test_instances_that_cannot_move_are_named() -> None:
    guests = [
        Guest(str(n), f"vm{n}", "h", status) for n, status in enumerate(["ACTIVE", "ERROR", "SUSPENDED"])
    ]
    with pytest.raises(CheckFailed, match=r"vm1 \(ERROR\), vm2 \(SUSPENDED\)"):
        refuse_immovable("h", guests)
    refuse_immovable("h", guests[:1])


def finished(number: str, *, own: bool = False, source: str = "h") -> Migration:
    return Migration(f"m{number}", number, source, "migration" if own else "resize", "finished", own)


def test_a_resize_that_somebody_has_to_confirm_is_named() -> None:
    now = [Guest(str(n), f"vm{n}", "other", "VERIFY_RESIZE") for n in range(3)]
    moves = [finished("0", own=True), finished("1"), Migration("m2", "2", "h", "resize", "confirming")]
    with pytest.raises(CheckFailed, match=r"confirmed: vm1 \(on other\)$") as caught:
        refuse_unconfirmed("h", moves, now)
    assert caught.value.ref == "resize-unconfirmed"
    # Somebody has reset its state: nothing is left to confirm.
    refuse_unconfirmed("h", moves, [Guest("1", "vm1", "other", "ACTIVE")])


def test_how_instances_leave() -> None:
    ways = {status: way_of(Guest("", "", "", status)) for status in ("ACTIVE", "PAUSED", "SHUTOFF", "ERROR")}
    assert ways == {"ACTIVE": "live", "PAUSED": "live", "SHUTOFF": "cold", "ERROR": ""}
    assert way_of(Guest("", "", "", "SHELVED_OFFLOADED")) == "gone"


# -- a dead node is off, really ------------------------------------------------------------------


class Network:
    """Controllers that ping: what they say by name, ``off`` where they do not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, site: Site, power: str = UNKNOWN) -> None:
        self.site, self.alive_on, self.bare, self.silent = site, set[str](), set[str](), set[str]()
        self.asked: list[set[str]] = []
        driver = SimpleNamespace(states=lambda nodes: dict.fromkeys(nodes, power))
        monkeypatch.setattr(drivers, "power_driver", lambda site: driver)
        monkeypatch.setattr(leave, "ping", lambda address: False)
        monkeypatch.setattr(leave.socket, "create_connection", self.refuse)
        monkeypatch.setattr(leave, "call", self.call)

    def refuse(self, *_: Any, **__: Any) -> None:
        raise OSError

    def call(self, site: Path, module: str, nodes: Any) -> Answers:
        self.asked.append(set(nodes))
        answers = Answers()
        for name, arguments in nodes.items():
            if name in self.silent:
                answers.failed[name] = Unreachable("node-unreachable", "no answer", where=name)
                continue
            told = [
                {
                    **peer,
                    "configured": name not in self.bare,
                    "full": False,
                    "small": None if name in self.bare else peer["network"] in self.alive_on,
                }
                for peer in arguments["peers"]
            ]
            answers.ok[name] = {"ansible_facts": {"cloudctl_ping": told}}
        return answers

    def refused(self, name: str = "compute02") -> CheckFailed | None:
        change = Change(self.site, self.site, [name], {}, {}, None)
        node = self.site.nodes[name]
        leaving = leave.Leaving(self.site, node, ["compute"], change, True, lambda text: None, World({}))
        try:
            leaving._refuse_alive()
        except CheckFailed as error:
            return error
        return None


@pytest.fixture
def three(tmp_path: Path) -> Site:
    """A site of three controllers and two compute nodes."""
    path = lab_site(tmp_path / "three")
    text = add_host((path / HOSTS).read_text(), "compute", "compute02", COMPUTE)
    for number in (2, 3):
        address = {"ansible_host": f"10.10.10.1{number}"}
        text = add_host(text, "control", f"ctl0{number}", address)
    (path / HOSTS).write_text(text)
    return load_site(path)


def test_a_node_is_dead_where_controllers_have_tried_every_network(
    three: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, three)
    assert network.refused() is None
    assert network.asked == [{"ctl01", "ctl02", "ctl03"}], "all in one call"
    network.silent = {"ctl01"}
    assert network.refused() is None, "the others have tried"
    network.alive_on = {"storage"}
    error = network.refused()
    assert error is not None and error.ref == "node-alive" and "network storage" in error.message


def test_a_node_whose_state_nobody_knows_is_not_dead(three: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, three)
    network.silent = {"ctl01", "ctl02", "ctl03"}
    error = network.refused()
    assert error is not None and error.ref == "node-unknown-state"
    assert "management, storage, tenant" in error.message and "ctl02" in error.message
    # A controller without its port has tried nothing.
    network.silent, network.bare = {"ctl01"}, {"ctl02", "ctl03"}
    error = network.refused()
    assert error is not None and error.ref == "node-unknown-state"
    network.bare = {"ctl02"}
    assert network.refused() is None


def test_the_power_control_knows_it_better(three: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, three, OFF)
    network.silent = {"ctl01", "ctl02", "ctl03"}
    assert network.refused() is None
    network.silent, network.alive_on = {"ctl01"}, {"storage"}
    error = network.refused()
    assert error is not None and error.ref == "node-alive", "another machine has its address"
    error = Network(monkeypatch, three, ON).refused()
    assert error is not None and "its power is on" in error.message


def test_a_network_without_controllers_is_tried_by_the_others_that_have_it(site: Site) -> None:
    text = add_host(
        (site.path / HOSTS).read_text(),
        "storage",
        "osd02",
        {"ansible_host": "10.10.10.212", "devices": ["/dev/vdb"]},
    )
    with future_site(site.path, text) as path:
        two = load_site(path)
    asked = leave.witnesses(two, two.nodes["osd02"])
    assert {name: [peer["network"] for peer in peers] for name, peers in asked.items()} == {
        "ctl01": ["management", "storage"], "osd01": ["replication"],
    }  # fmt: skip
    assert leave.untried(asked, []) == ["management", "replication", "storage"]
    # Nobody can say anything of a network that only the node itself has.
    assert "replication" not in leave.untried(leave.witnesses(site, site.nodes["osd01"]), [])


# -- instances on their way ----------------------------------------------------------------------


class World(Compute):
    """An API in which every step of a move takes one look.

    Args:
        guests: by id, the instance.
        stuck: ids that come back to where they were.
    """

    def __init__(self, guests: dict[str, Guest], stuck: tuple[str, ...] = ()) -> None:
        self.now = guests
        self.stuck = stuck
        self.asked: list[tuple[str, str]] = []
        self.most = 0
        self.looks = self.late = 0
        self.runs: set[str] = set()
        self.ended: list[str] = []
        self.moves: list[Migration] = []

    def guests(self, node: str = "") -> list[Guest]:
        moving = [guest for guest in self.now.values() if guest.task]
        self.most = max(self.most, len(moving))
        seen = [guest for guest in self.now.values() if node in ("", guest.host)]
        for guest in moving:
            where = guest.host if guest.id in self.stuck else "other"
            status = "VERIFY_RESIZE" if guest.task == "cold" and where == "other" else guest.status
            self.now[guest.id] = Guest(guest.id, guest.name, where, status)
        return seen

    def _act(self, guest: Guest, body: dict[str, Any]) -> None:
        (action,) = body
        self.asked.append((guest.id, action))
        if action == "confirmResize":
            self.now[guest.id] = Guest(guest.id, guest.name, guest.host, "SHUTOFF")
            self.moves = [move for move in self.moves if move.guest != guest.id]
        elif action == "os-resetState":
            self.now[guest.id] = Guest(guest.id, guest.name, guest.host, body[action]["state"].upper())
        else:
            task = "cold" if action == "migrate" else "moving"
            status = self.now[guest.id].status
            if action == "evacuate":
                if status in ("PAUSED", "SUSPENDED", "RESCUE", "BUILD"):
                    raise ApplyFailed("compute-api-refused", f"Cannot 'evacuate' while it is {status}")
                status = "ACTIVE" if status == "ERROR" else status
            self.now[guest.id] = Guest(guest.id, guest.name, guest.host, status, task)

    def _why(self, guest: Guest) -> str:
        return "no room"

    def under_way(self, node: str) -> list[Migration]:
        self.looks += 1
        theirs = {move.guest for move in self.moves}
        own = [
            finished(guest.id, own=True)
            for guest in self.now.values()
            if guest.status == "VERIFY_RESIZE" and guest.id not in theirs
        ]
        return [*self.moves, *own, *([Migration("m0", "0", node)] if self.looks <= self.late else [])]

    def running(self, node: str) -> set[str]:
        return self.runs

    def end_migrations(self, stale: Sequence[Migration]) -> None:
        self.ended += [move.id for move in stale]
        self.moves = [move for move in self.moves if move not in stale]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances.time, "sleep", lambda seconds: None)


def guests(*states: str) -> dict[str, Guest]:
    return {str(n): Guest(str(n), f"vm{n}", "h", state) for n, state in enumerate(states)}


def test_running_instances_move_live_two_at_a_time() -> None:
    world = World({**guests(*["ACTIVE"] * 5), "x": Guest("x", "x", "elsewhere", "ACTIVE")})
    assert world.move_away("h", lambda text: None) == "5 instances moved"
    assert {action for _id, action in world.asked} == {"os-migrateLive"}
    assert world.most == instances.PARALLEL
    assert {guest.host for key, guest in world.now.items() if key != "x"} == {"other"}


def test_a_stopped_instance_moves_as_it_is() -> None:
    world = World(guests("SHUTOFF"))
    world.move_away("h", lambda text: None)
    assert [action for _id, action in world.asked] == ["migrate", "confirmResize"]
    assert world.now["0"].status == "SHUTOFF"


def test_a_run_that_was_killed_before_it_confirmed_a_move_goes_on() -> None:
    world = World({"0": Guest("0", "vm0", "other", "VERIFY_RESIZE")})
    assert world.move_away("h", lambda text: None) == "1 instances moved"
    assert world.asked == [("0", "confirmResize")]


def test_a_stopped_instance_that_moves_at_the_second_try_is_confirmed() -> None:
    world = World(guests("SHUTOFF"), stuck=("0",))
    done = world._act

    def act(guest: Guest, body: dict[str, Any]) -> None:
        world.stuck = () if world.asked else ("0",)
        done(guest, body)

    world._act = act  # type: ignore[method-assign]
    assert world.move_away("h", lambda text: None) == "1 instances moved"
    assert [action for _id, action in world.asked] == ["migrate", "migrate", "confirmResize"]


def test_a_move_that_is_just_being_confirmed_is_not_confirmed_again() -> None:
    world = World({"0": Guest("0", "vm0", "other", "VERIFY_RESIZE")})
    states = iter(["post-migrating", "finished", "confirming", "confirming"])

    def under_way(node: str) -> list[Migration]:
        state = next(states, "")
        if not state:  # confirmed: the instance shows it a moment later
            world.looks += 1
            if world.looks > 2:
                world.now["0"] = Guest("0", "vm0", "other", "SHUTOFF")
        return [Migration("m0", "0", "h", "migration", state, own=True)] if state else []

    def act(guest: Guest, body: dict[str, Any]) -> None:
        world.asked.append((guest.id, next(iter(body))))

    world.under_way, world._act = under_way, act  # type: ignore[method-assign]
    world.move_away("h", lambda text: None)
    assert world.asked == [("0", "confirmResize")]


@pytest.mark.parametrize("host", ["h", "other"])
def test_a_resize_of_somebody_else_is_left_to_him(host: str) -> None:
    world = World({**guests("ACTIVE"), "1": Guest("1", "vm1", host, "VERIFY_RESIZE")})
    world.moves = [finished("1", source="h" if host == "other" else "other")]
    with pytest.raises(ApplyFailed, match="1 of 2 instances were not moved: vm1: it was resized and waits"):
        world.move_away("h", lambda text: None)
    assert world.asked == [("0", "os-migrateLive")] and not world.ended


def test_an_instance_whose_build_was_under_way_is_moved_too() -> None:
    world = World(guests("ACTIVE"))
    look = world.guests
    looks = 0

    def late(node: str = "") -> list[Guest]:
        nonlocal looks
        looks += 1
        if looks == 2:
            world.now["9"] = Guest("9", "late", "h", "BUILD")
        elif looks == 4:
            world.now["9"] = Guest("9", "late", "h", "ACTIVE")
        return look(node)

    world.guests = late  # type: ignore[method-assign]
    assert world.move_away("h", lambda text: None) == "2 instances moved"
    assert world.asked == [("0", "os-migrateLive"), ("9", "os-migrateLive")]


def test_services_are_not_ended_while_the_api_has_an_instance_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(leave, "call", lambda *args, **options: called.append(args))
    for guest, moves in [
        (Guest("0", "vm0", "compute02", "BUILD"), []),
        (Guest("0", "vm0", "other", "VERIFY_RESIZE"), [finished("0", source="compute02")]),
    ]:
        world = World({"0": guest, "1": Guest("1", "", "other", "ACTIVE")})
        world.moves = moves
        with pytest.raises(ApplyFailed, match=rf"1 instances came meanwhile: vm0 \({guest.status}\)"):
            leaving(site, world).stop_services()
    assert not called
    World({"1": Guest("1", "", "other", "ACTIVE")}).refuse_left("compute02")


def test_the_last_compute_node_that_works_stays_though_it_is_empty(site: Site) -> None:
    world = World({})
    world.others_up = lambda node: []  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match="without compute02 no compute node takes instances") as caught:
        leaving(site, world)._check_compute()
    assert caught.value.ref == "no-other-compute"
    # A dead one takes none either: a warning is enough, unless its instances need a place.
    said: list[str] = []
    dead = leaving(site, world, dead=True)
    dead.say = said.append
    dead._check_compute()
    assert said == ["warning: no compute node takes instances"]
    world.now["0"] = Guest("0", "vm0", "compute02", "ACTIVE")
    with pytest.raises(CheckFailed):
        dead._check_compute()
    # One that had only begun to join may go.
    del world.now["0"]
    node = Node("compute02", ("newnodes",), "10.10.10.22")
    half = Site(site.path, site.name, site.networks, {**site.nodes, "compute02": node}, site.settings)
    leaving(half, world)._check_compute()


def test_a_tenants_resize_is_refused_before_anything_is_changed(site: Site) -> None:
    world = World({"0": Guest("0", "vm0", "other", "VERIFY_RESIZE")})
    world.moves = [finished("0", source="compute02")]
    world.others_up = lambda node: ["other"]  # type: ignore[method-assign]
    with pytest.raises(CheckFailed) as caught:
        leaving(site, world)._check_compute()
    assert caught.value.ref == "resize-unconfirmed"
    assert leaving(site, world, dead=True)._check_compute().startswith("0 instances")


def test_resizes_away_from_a_dead_node_end() -> None:
    world = World(
        {
            **guests("ACTIVE"),
            "1": Guest("1", "vm1", "other", "VERIFY_RESIZE"),
            "2": Guest("2", "vm2", "other", "ACTIVE"),  # its run was killed in between
            "3": Guest("3", "vm3", "h", "VERIFY_RESIZE"),  # it came from elsewhere
        }
    )
    world.moves = [finished("1"), finished("2"), finished("3", source="other")]
    assert world.evacuate("h", lambda text: None) == "2 instances evacuated"
    assert world.asked == [
        ("1", "os-resetState"), ("0", "evacuate"), ("3", "confirmResize"), ("3", "evacuate"),
    ]  # fmt: skip
    assert world.ended == ["m1", "m2"] and world.now["1"].status == "ACTIVE"
    # One that arrives only while the others are started.
    world.now["1"] = Guest("1", "vm1", "other", "VERIFY_RESIZE")
    world.moves = [finished("1")]
    world._await_ended("h", lambda text: None, dead=True)
    assert world.ended[2:] == ["m1"] and world.now["1"].status == "ACTIVE"


def test_which_migrations_have_not_ended() -> None:
    def row(state: str, kind: str = "migration", user: str = "me") -> Any:
        return SimpleNamespace(
            uuid=state, server_id="v", source_compute="h", dest_compute="o", migration_type=kind,
            status=state, user_id=user,
        )  # fmt: skip

    rows = [row("confirmed"), row("finished"), row("finished", user="x"), row("finished", "resize")]
    compute = SimpleNamespace(migrations=lambda host: rows)
    world = Compute(SimpleNamespace())  # type: ignore[arg-type]
    world.__dict__["_cloud"] = SimpleNamespace(compute=compute, current_user_id="me")
    assert [(move.state, move.own) for move in world.under_way("h")] == [
        ("finished", True), ("finished", False), ("finished", False),
    ]  # fmt: skip


def test_one_that_does_not_move_is_named_and_the_others_moved() -> None:
    world = World(guests("ACTIVE", "ACTIVE", "ACTIVE"), stuck=("1",))
    with pytest.raises(ApplyFailed, match="1 of 3 instances were not moved: vm1: no room"):
        world.move_away("h", lambda text: None)
    assert [guest.host for guest in world.now.values()] == ["other", "h", "other"]
    assert world.asked.count(("1", "os-migrateLive")) == instances.TRIES


def test_a_dead_nodes_instances_are_evacuated_whatever_they_are() -> None:
    world = World(guests("ACTIVE", "SHUTOFF", "ERROR", "SHELVED_OFFLOADED"))
    assert world.evacuate("h", lambda text: None).startswith("3 instances")
    assert {action for _id, action in world.asked} == {"evacuate"}


def test_a_dead_nodes_paused_suspended_and_rescued_instances_run_again_elsewhere() -> None:
    world = World(guests("PAUSED", "SUSPENDED", "RESCUE"))
    assert world.evacuate("h", lambda text: None) == "3 instances evacuated"
    assert [action for _id, action in world.asked] == ["os-resetState", "evacuate"] * 3
    assert {(guest.host, guest.status) for guest in world.now.values()} == {("other", "ACTIVE")}


def test_an_instance_that_a_dead_node_was_building_is_named_first(site: Site) -> None:
    world = World({"0": Guest("0", "vm0", "compute02", "BUILD"), "1": Guest("1", "", "compute02", "PAUSED")})
    world.others_up = lambda node: ["other"]  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match=r"not built yet: vm0$") as caught:
        leaving(site, world, dead=True)._check_compute()
    assert caught.value.ref == "instance-not-movable"
    del world.now["0"]
    assert leaving(site, world, dead=True)._check_compute().startswith("1 instances")


def gone() -> ApiSilent:
    return ApiSilent("compute-api-silent", "no answer")


def test_a_moment_without_the_api_is_waited_for() -> None:
    world = World(guests("ACTIVE", "SHUTOFF"))
    look, act = world.under_way, world._act
    silent = iter([True, False, True, True] + [False, True] * 50)
    lost = iter([True, True, False] * 50)

    def under_way(node: str) -> list[Migration]:
        if next(silent, False):
            raise gone()
        return look(node)

    def asked(guest: Guest, body: dict[str, Any]) -> None:
        if next(lost):
            raise gone()
        act(guest, body)

    world.under_way, world._act = under_way, asked  # type: ignore[method-assign]
    assert world.move_away("h", lambda text: None) == "2 instances moved"
    assert [action for key, action in world.asked if key == "0"] == ["os-migrateLive"]
    assert [action for key, action in world.asked if key == "1"] == ["migrate", "confirmResize"]


def test_an_api_that_stays_away_ends_the_run_with_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 5))
    monkeypatch.setattr(instances.time, "monotonic", lambda: next(clock))
    world = World(guests("ACTIVE"))

    def nobody(*args: Any) -> Any:
        raise gone()

    world._act = nobody  # type: ignore[method-assign]
    with pytest.raises(ApplyFailed, match="1 of 1 instances were not moved: vm0: the API did not answer"):
        world.move_away("h", lambda text: None)
    world.under_way = nobody  # type: ignore[method-assign]
    with pytest.raises(ApiSilent):
        world.move_away("h", lambda text: None)


@pytest.mark.parametrize("begins", [True, False])
def test_an_evacuation_without_an_answer_is_never_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(instances.time, "monotonic", lambda: next(clock))
    world = World(guests("ACTIVE"))
    act = world._act

    def asked(guest: Guest, body: dict[str, Any]) -> None:
        act(guest, body)
        if not begins:
            world.now["0"] = guest
        raise gone()

    world._act = asked  # type: ignore[method-assign]
    if begins:
        assert world.evacuate("h", lambda text: None) == "1 instances evacuated"
    else:
        with pytest.raises(ApplyFailed, match="vm0: the API did not answer"):
            world.evacuate("h", lambda text: None)
    assert world.asked == [("0", "evacuate")]


@pytest.mark.parametrize("dead", [True, False])
def test_what_was_asked_for_without_an_answer_and_began_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """Its migration shows, its task does not; it ends without having moved, and is begun again then."""
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(instances.time, "monotonic", lambda: next(clock))
    world = World(guests("ACTIVE"))
    act, asked = world._act, list[str]()
    kind = "evacuation" if dead else "live-migration"

    def lost(guest: Guest, body: dict[str, Any]) -> None:
        asked.append(guest.id)
        if len(asked) == 1:
            world.looks = 0
            raise gone()
        act(guest, body)

    def under_way(node: str) -> list[Migration]:
        world.looks += 1
        return [Migration("m", "0", "h", kind, "running")] if len(asked) == 1 and world.looks < 50 else []

    world._act, world.under_way = lost, under_way  # type: ignore[method-assign]
    end = world.evacuate if dead else world.move_away
    assert end("h", lambda text: None).startswith("1 instances")
    assert len(asked) == 2 and world.looks >= 50


def test_what_counts_as_silence() -> None:
    class Answer(Exception):
        status_code = 503

    def compute(post: Any) -> Compute:
        world = Compute(SimpleNamespace())  # type: ignore[arg-type]
        world.__dict__["_cloud"] = SimpleNamespace(compute=SimpleNamespace(post=post))
        return world

    def nobody(*args: Any, **options: Any) -> Any:
        raise ConnectFailure("Unable to establish connection")

    vm = Guest("0", "vm0", "h", "ACTIVE")
    with pytest.raises(ApiSilent, match="evacuate of vm0: no answer: Unable to establish connection"):
        compute(nobody)._act(vm, {"evacuate": {}})
    sent: list[Any] = []

    def proxy(*args: Any, **options: Any) -> Any:
        sent.append(options["connect_retries"])
        return SimpleNamespace(status_code=504)

    with pytest.raises(ApiSilent, match="504"):
        compute(proxy)._act(vm, {"evacuate": {}})
    assert sent == [0], "the client would send it twice"
    assert is_silence(Answer()) and not is_silence(ValueError())


def test_network_agents_that_cannot_be_listed_end_with_a_message() -> None:
    looks = iter([[SimpleNamespace(id="a", agent_type="OVN Controller agent")], None, []])

    def agents(host: str) -> Any:
        found = next(looks)
        if found is None:
            raise ConnectFailure("nobody")
        return found

    def delete(agent: Any) -> None:
        raise ConnectFailure("nobody")

    world = Compute(SimpleNamespace())  # type: ignore[arg-type]
    world._complete, world._own = lambda node: [], lambda node: []  # type: ignore[method-assign]
    empty = SimpleNamespace(json=lambda: {"resource_providers": []}, raise_for_status=lambda: None)
    world.__dict__["_cloud"] = SimpleNamespace(
        network=SimpleNamespace(agents=agents, delete_agent=delete),
        placement=SimpleNamespace(get=lambda path, microversion: empty),
    )
    assert world.forget("h") == "nothing was left"


def test_a_node_does_its_part_after_its_instances_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(guests("ACTIVE"))
    world.late = 20
    said: list[str] = []
    world.move_away("h", said.append)
    assert world.looks == 21 and sum("puts away" in line or "put away" in line for line in said) == 1
    world.looks, world.late = 0, 10**9
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr(instances.time, "monotonic", lambda: next(clock))
    world.runs = {"0"}
    with pytest.raises(ApplyFailed) as caught:
        world._await_ended("h", said.append)
    assert caught.value.ref == "migrations-under-way" and not world.ended
    world.runs = set()
    world._await_ended("h", said.append)
    assert world.ended == ["m0"] and "ended" in said[-1]


def test_an_evacuation_whose_task_has_ended_is_not_begun_again_before_its_own_end() -> None:
    world = World({"0": Guest("0", "vm0", "h", "ACTIVE")})
    looks = 0

    def look(node: str = "") -> list[Guest]:
        nonlocal looks
        looks += 1
        # The task has ended, the host is still the old one, for some looks.
        host = "h" if looks < 6 else "other"
        return [g for g in [Guest("0", "vm0", host, "ACTIVE")] if node in ("", g.host)]

    def under_way(node: str) -> list[Migration]:
        world.looks += 1
        return [Migration("m", "0", "h", "evacuation")] if world.asked and world.looks < 9 else []

    world.guests, world.under_way = look, under_way  # type: ignore[method-assign]
    world.evacuate("h", lambda text: None)
    assert world.asked == [("0", "evacuate")]
    assert not world.ended, "another node is about to end it"
    # Nor by a run that goes on after one that was killed.
    world.asked, looks = [], 0
    world.under_way = lambda node: [Migration("m", "0", "h", "evacuation")] if looks < 6 else []  # type: ignore[method-assign]
    world.evacuate("h", lambda text: None)
    assert world.asked == []


def test_only_a_migration_that_nobody_works_on_is_ended() -> None:
    moves = [Migration(f"m{n}", str(n), "h") for n in range(6)]
    now = [
        Guest("0", "", "other", "ACTIVE"),
        Guest("1", "", "other", "ACTIVE", "migrating"),
        Guest("2", "", "h", "ACTIVE"),
        Guest("3", "", "other", "ACTIVE"),
        Guest("5", "", "other", "VERIFY_RESIZE"),
    ]
    assert [move.id for move in forgotten(moves, now, {"3"})] == ["m0", "m4"], "the last one was deleted"


def test_what_a_dead_node_was_at_is_not_waited_for() -> None:
    world = World({"0": Guest("0", "vm0", "h", "MIGRATING", "migrating")}, ())
    world.late = 10**9
    world.guests = lambda node="": [g for g in world.now.values() if node in ("", g.host)]  # type: ignore[method-assign]
    done = world._act

    def act(guest: Guest, body: dict[str, Any]) -> None:
        done(guest, body)
        world.now["0"] = Guest("0", "vm0", "other", "ACTIVE")

    world._act = act  # type: ignore[method-assign]
    assert world.evacuate("h", lambda text: None) == "1 instances evacuated"
    assert world.asked == [("0", "evacuate")] and world.ended == ["m0"]
    # One that is being evacuated (by a run that was interrupted) is waited for.
    world.now["0"] = Guest("0", "vm0", "h", "REBUILD", "rebuilding")
    looks = iter(range(3))

    def look(node: str = "") -> list[Guest]:
        if next(looks, None) is None:
            world.now["0"] = Guest("0", "vm0", "other", "ACTIVE")
        return [g for g in world.now.values() if node in ("", g.host)]

    world.guests = look  # type: ignore[method-assign]
    world.asked.clear()
    world.evacuate("h", lambda text: None)
    assert world.asked == []


def test_a_node_without_instances_is_empty() -> None:
    assert World({}).move_away("h", lambda text: None) == "0 instances moved"


class Placement:
    """Knows some nodes' resource providers; an instance that was started elsewhere holds some of each."""

    def __init__(self, known: list[str]) -> None:
        self.known = known
        self.held = {"other": {"resources": {"VCPU": 1}}, **{uuid: {"resources": {}} for uuid in known}}

    def get(self, path: str, raise_exc: bool = True, microversion: str = "") -> Any:
        what, _, rest = path.lstrip("/").partition("/")
        uuid = rest.partition("/")[0]
        body: dict[str, Any] = {}
        if rest.endswith("/inventories"):
            body = {"inventories": {"VCPU": {}} if uuid in self.known else {}}
        elif rest.endswith("/allocations"):
            body = {"allocations": {"vm": {}} if uuid in self.held else {}}
        elif what == "allocations":
            body = {"allocations": dict(self.held), "consumer_generation": 3}
        else:
            name = path.partition("name=n")[2]
            body = {"resource_providers": [{"uuid": name}] if name in self.known else []}
        status = 404 if rest.endswith("/inventories") and uuid not in self.known else 200
        return SimpleNamespace(status_code=status, json=lambda: body, raise_for_status=lambda: None)

    def post(self, path: str, json: dict[str, Any]) -> Any:
        self.known.append(json["uuid"])
        return SimpleNamespace(raise_for_status=lambda: None)

    def put(self, path: str, json: dict[str, Any], microversion: str) -> Any:
        assert (path, json["consumer_generation"]) == ("/allocations/vm", 3)
        self.held = json["allocations"]
        return SimpleNamespace(raise_for_status=lambda: None)

    def delete(self, path: str) -> Any:
        uuid = path.rpartition("/")[2]
        assert uuid not in self.held, "it is in use"
        self.known.remove(uuid)
        return SimpleNamespace(raise_for_status=lambda: None)


@pytest.mark.parametrize("known", [["a", "b"], ["a"]])
def test_a_node_that_died_before_it_was_registered_is_forgotten(known: list[str]) -> None:
    placement = Placement(known)
    rows = [{"id": n, "hypervisor_hostname": f"n{n}", "service": {"host": f"n{n}"}} for n in "ab"]
    listed = SimpleNamespace(json=lambda: {"hypervisors": rows}, raise_for_status=lambda: None)
    service = SimpleNamespace(host="nb", binary="nova-compute", availability_zone="nova")
    removed: list[Any] = []

    def delete(one: Any) -> None:
        assert "b" in placement.known, "the API would end with 500"
        removed.append(one)

    compute = SimpleNamespace(
        get=lambda path, microversion: listed, services=lambda: [service], delete_service=delete
    )
    network = SimpleNamespace(agents=lambda host: [])
    world = Compute(SimpleNamespace())  # type: ignore[arg-type]
    world.__dict__["_cloud"] = SimpleNamespace(compute=compute, network=network, placement=placement)
    assert world.forget("nb") == "nova-compute, its resource provider" and removed == [service]
    assert placement.known == ["a"] and "b" not in placement.held and "other" in placement.held


# -- its OSDs ------------------------------------------------------------------------------------


def storage(*osds: Osd, **more: Any) -> Cluster:
    others = [Osd(n, f"osd0{n}", weight=1.0, kb=100, kb_used=86 * (n == 2), pgs=8, up=True) for n in (2, 3)]
    return Cluster({osd.id: osd for osd in [*osds, *others]}, [Pool("vms", 3, 2)], **more)


def test_osds_that_an_earlier_run_has_emptied_are_no_reason_against_a_removal() -> None:
    full = Osd(0, "osd01", weight=1.0, kb=100, pgs=8, up=True)
    held = storage(full)
    found = leave.what_leaves(held, held.on("osd01"))
    assert found is not None
    # osd.2 is fuller than the first run foresaw, and two nodes are too few for three copies
    assert {ref for ref, _words in found.problems} == {"osd-failure-domain", "osd-near-full"}
    for half in (replace(full, weight=0.0), replace(full, pgs=0)):  # on its way; never used
        assert leave.what_leaves(storage(half), [half]) is not None
    empty = replace(full, weight=0.0, pgs=0)
    assert leave.what_leaves(storage(empty), [empty]) is None
    assert leave.what_leaves(storage(pg_states={"down": 1}), []) is None


def test_an_osd_that_is_off_may_hold_what_nobody_can_reach() -> None:
    off = Osd(0, "osd01", weight=0.0, up=False)
    assert leave.what_leaves(storage(off), [off]) is None
    found = leave.what_leaves(storage(off, pg_states={"down": 1}), [off])
    assert found is not None and [ref for ref, _words in found.problems] == ["osd-data-loss"]


def test_without_an_osd_other_nodes_data_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(osd, "read", lambda _site: storage())
    monkeypatch.setattr(osd, "read_at_rest", lambda _site, _say: storage(pg_states={"down": 1}))
    monkeypatch.setattr(osd, "drain", lambda *_args: pytest.fail("it waits"))
    change = Change(site, site, ["osd01"], {}, {}, None)
    leaving = leave.Leaving(site, site.nodes["osd01"], ["storage"], change, True, print, World({}))
    assert leaving.drain() == "it has no OSD"
    assert leaving._check_storage() == "no OSD"
    assert leaving.report["osds"] == []


class Fenced(Compute):
    """A node that was called dead; its API takes that back after some refusals.

    Args:
        refusals: how many.
    """

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.put: list[dict[str, Any]] = []

    def services(self) -> list[Any]:
        return [SimpleNamespace(host="h", status="enabled", is_forced_down=True)]

    def _put(self, service: Any, body: dict[str, Any]) -> None:
        if "forced_down" in body and self.refusals:
            self.refusals -= 1
            raise ApplyFailed("compute-api-refused", "Unable to force up host h")
        self.put.append(body)


def test_a_node_that_was_called_dead_and_came_back_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Fenced(refusals=3)
    assert world.disable("h") == "no new instances come"
    assert [next(iter(body)) for body in world.put] == ["forced_down", "status"]
    assert world.put[0] == {"forced_down": False}
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(instances.time, "monotonic", lambda: next(clock))
    world = Fenced(refusals=10**6)
    with pytest.raises(ApplyFailed, match="still counts it as dead: Unable to force up") as caught:
        world.disable("h")
    assert caught.value.ref == "node-still-fenced" and not world.put


# -- the steps -----------------------------------------------------------------------------------


def keys(
    site: Site, name: str, roles: list[str], *, dead: bool, heir: str = "", ceph: bool = False
) -> list[str]:
    cluster = {"fsid": FSID} if ceph else None
    change = Change(site, site, [name], {"ctl01": Work(files=[{"path": "/etc/hosts"}])}, {}, cluster)
    leaving = leave.Leaving(site, site.nodes[name], roles, change, dead, lambda text: None, World({}), heir)
    steps = leave.build(leaving)
    assert all(step.every_time for step in steps)
    return [step.key for step in steps]


def leaving(site: Site, compute: Compute, *, dead: bool = False) -> leave.Leaving:
    """compute02 on its way out."""
    change = Change(site, site, ["compute02"], {}, {}, None)
    return leave.Leaving(site, site.nodes["compute02"], ["compute"], change, dead, lambda text: None, compute)


def test_what_is_done_in_which_order(site: Site) -> None:
    assert keys(site, "compute02", ["compute"], dead=False) == [
        "disable", "move", "stop", "unregister", "tell", "settle",
    ]  # fmt: skip
    assert keys(site, "compute02", ["compute"], dead=True) == [
        "fence", "evacuate", "unregister", "tell", "settle",
    ]  # fmt: skip
    assert keys(site, "osd01", ["storage"], dead=False) == [
        "drain", "osds", "host", "stop", "tell", "settle",
    ]  # fmt: skip
    assert keys(site, "osd01", ["storage"], dead=True) == ["drain", "osds", "host", "tell", "settle"]
    # A monitor goes first; from a dead node last, when no deploy waits for it any more.
    assert keys(site, "osd01", ["storage"], dead=False, heir="ctl01")[:2] == ["monitor", "drain"]
    assert keys(site, "osd01", ["storage"], dead=True, heir="ctl01")[-2:] == ["settle", "monitor"]
    # A compute node that holds one is a host of Ceph.
    assert keys(site, "compute02", ["compute"], dead=False, heir="ctl01", ceph=True) == [
        "monitor", "disable", "move", "host", "stop", "unregister", "tell", "settle",
    ]  # fmt: skip
    assert keys(site, "compute02", ["compute"], dead=True, heir="ctl01", ceph=True) == [
        "fence", "evacuate", "host", "unregister", "tell", "settle", "monitor",
    ]  # fmt: skip
    assert "host" not in keys(site, "compute02", ["compute"], dead=False, ceph=True)
    # One that only waits is forgotten.
    assert keys(site, "compute02", [], dead=False) == ["tell", "settle"]


def test_a_nodes_host_key_goes_and_all_others_stay(tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text(
        "10.10.10.22,compute02 ssh-ed25519 A\n10.10.10.222,x ssh-ed25519 B\n# compute02\n"
        "[10.10.10.22]:2222,[compute02]:2222 ssh-ed25519 C\n10.10.10.22,gateway ssh-rsa D\n"
    )
    leave.forget_host_key(
        tmp_path, Node("compute02", ("compute",), "10.10.10.22", vars={"ansible_port": 2222})
    )
    assert (tmp_path / "known_hosts").read_text() == (
        "10.10.10.222,x ssh-ed25519 B\n# compute02\ngateway ssh-rsa D\n"
    )


def test_a_half_joined_node_that_was_removed_is_forgotten(tmp_path: Path) -> None:
    journal.begin(tmp_path, journal.ADD, {"compute02": "compute"})
    journal.drop(tmp_path, journal.ADD, "compute02")
    waiting = {"compute02": Node("compute02", ("newnodes",), "10.10.10.22")}
    assert journal.joining(Site(tmp_path, "cloud", {}, waiting, Settings({}))) == {}
    # One of the same name that comes later finds no step done.
    first = journal.begin(tmp_path, journal.ADD, {"compute03": "compute"})
    first.mark("register", "done")
    assert journal.begin(tmp_path, journal.ADD, {"compute03": "compute"}).state("register") == "done"
    journal.drop(tmp_path, journal.ADD, "compute03")
    assert journal.begin(tmp_path, journal.ADD, {"compute03": "compute"}).state("register") is None
    journal.drop(tmp_path, journal.ADD, "compute03")
    journal.begin(tmp_path, journal.REMOVE, {"osd02": "alive"})
    assert journal.leaving(tmp_path) == ["osd02"]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        # The power was cut seconds ago; the orchestrator notices when it looks.
        (["", "", "Offline"], ["orch host ls", "cephadm check-host"] * 2 + ["orch host ls", "rm offline"]),
        (["Offline"], ["orch host ls", "rm offline"]),
        # It will not believe it: the host goes as one that is there.
        (["", "", "", ""], ["orch host ls", "cephadm check-host"] * 3 + ["orch host ls", "rm"]),
        ([None], ["orch host ls"]),
    ],
)
def test_a_dead_node_leaves_the_orchestrator_whatever_that_believes(
    monkeypatch: pytest.MonkeyPatch, site: Site, looks: list[str | None], expected: list[str]
) -> None:
    said = iter(looks)
    asked: list[str] = []

    def ask(site: Site, steps: list[dict[str, Any]], what: str, **options: Any) -> list[dict[str, Any]]:
        (step,) = steps
        prefix = step["cmd"]["prefix"]
        if prefix == "orch host ls":
            asked.append(prefix)
            status = next(said)
            hosts = [{"hostname": "ctl01", "status": ""}]
            hosts += [] if status is None else [{"hostname": "osd04", "status": status}]
            return [{"rc": 0, "out": json.dumps(hosts)}]
        if prefix == "orch host rm":
            asked.append("rm offline" if step["cmd"].get("offline") else "rm")
        elif prefix != "osd crush remove":
            asked.append(prefix)
        return [{"rc": 0, "out": ""}]

    monkeypatch.setattr(remote, "ask", ask)
    healths = iter([{"CEPHADM_REFRESH_FAILED": "failed to probe", "OSD_DOWN": "2"}, {"OSD_DOWN": "2"}])
    monkeypatch.setattr(osd, "read", lambda site: SimpleNamespace(health=next(healths)))
    change = Change(site, site, ["osd04"], {}, {}, None)
    node = Node("osd04", ("storage",), "10.10.10.34")
    leaving = leave.Leaving(site, node, ["storage"], change, True, lambda text: None, World({}), "")
    assert leaving.forget_host() == "no host of Ceph any more"
    assert asked == [*expected, "orch ps"]


def test_what_the_orchestrator_goes_on_complaining_of_is_told(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    healths = iter(
        [{"CEPHADM_STRAY_HOST": "before"}] + [{"CEPHADM_STRAY_HOST": "", "CEPHADM_PAUSED": "x"}] * 99
    )
    monkeypatch.setattr(osd, "read", lambda site: SimpleNamespace(health=next(healths)))
    monkeypatch.setattr(remote, "ask", lambda *_a, **_k: [{"rc": 0, "out": "[]"}])
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(leave.time, "monotonic", lambda: next(clock))
    change = Change(site, site, ["osd04"], {}, {}, None)
    node = Node("osd04", ("storage",), "10.10.10.34")
    leaving = leave.Leaving(site, node, ["storage"], change, False, lambda text: None, World({}), "")
    assert leaving.forget_host() == "no host of Ceph any more; Ceph complains: CEPHADM_PAUSED: x"


def test_a_controller_that_is_off_does_not_keep_a_node_from_leaving(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with future_site(site.path, remove_host((site.path / HOSTS).read_text(), "compute02")) as path:
        change = join.change_of(site, load_site(path), ["compute02"])
        assert change.others["ctl01"].jobs, "it finds the compute nodes anew"
        off = {"host": "ctl01", "unreachable": True, "task": "t", "msg": "no route to host"}
        monkeypatch.setattr(join, "run_playbook", lambda *_, **__: RunResult(rc=4, failures=[off]))
        node = site.nodes["compute02"]
        leaving = leave.Leaving(site, node, ["compute"], change, True, lambda text: None, World({}))
        assert leaving.tell().endswith("; not reached, a deploy does the rest: ctl01")
        # A node that comes is not complete without it.
        with pytest.raises(Unreachable):
            join.tell(change, lambda text: None)
        wrong = off | {"unreachable": False}
        monkeypatch.setattr(join, "run_playbook", lambda *_, **__: RunResult(rc=2, failures=[wrong]))
        with pytest.raises(ApplyFailed):
            leaving.tell()


# -- the end of its services -----------------------------------------------------------------------


class Shell:
    """A node whose programs only write down that they were called; those in ``fails`` end with an error."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.log = path / "bin", path / "log"
        self.scripts: list[str] = []
        self.bin.mkdir()
        (self.bin / "sh").symlink_to("/bin/sh")
        (path / "compose.yml").touch()
        self.answer: dict[str, Any] = {"rc": 0, "stdout": "", "stderr": ""}
        for name in ("docker", "rm", "nft", "cephadm", "pgrep", "virsh"):
            self.program(name)
        monkeypatch.setattr(leave, "COMPOSE_PATH", str(path / "compose.yml"))
        monkeypatch.setattr(leave, "call", self.call)
        monkeypatch.setattr(guests_module, "run_in", lambda *_, **__: ({"compute02": self.answer}, {}))

    def program(self, name: str, end: str = "") -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{end}\n')
        (self.bin / name).chmod(0o755)

    def run(self, argv: list[str]) -> str:
        self.scripts.append(argv[-1])
        done = subprocess.run(argv, env={"PATH": str(self.bin)}, capture_output=True, text=True, check=True)
        return done.stdout

    def call(self, site: Path, module: str, nodes: Any, *, changing: bool) -> Answers:
        return Answers({name: {"stdout": self.run(arguments["argv"])} for name, arguments in nodes.items()})

    def said(self) -> str:
        """The scripts that were run."""
        return "\n".join(self.scripts)

    def called(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


def leaving_of(site: Site, roles: list[str], ceph: dict[str, str] | None = None) -> leave.Leaving:
    change = Change(site, site, ["compute02"], {}, {}, ceph)
    return leave.Leaving(site, site.nodes["compute02"], roles, change, False, lambda text: None, World({}))


def test_the_end_of_the_services_is_told_only_where_they_have_ended(site: Site, shell: Shell) -> None:
    leaving = leaving_of(site, ["storage"])
    shell.program("docker", "echo cannot connect to the engine >&2; exit 1")
    with pytest.raises(ApplyFailed, match="cannot connect to the engine") as caught:
        leaving.stop_services()
    assert caught.value.ref == "services-not-ended" and caught.value.where == "compute02"
    assert shell.called() == ["docker"], "what the next try needs is still there"
    shell.program("docker")
    leaving.stop_services()
    assert shell.called() == ["docker", "docker", "rm", "nft"]


def test_the_daemons_of_a_compute_node_with_a_monitor_end(site: Site, shell: Shell) -> None:
    leaving = leaving_of(site, ["compute"], {"fsid": FSID})
    leaving.stop_services()
    assert FSID not in shell.said()
    leaving.heir = "ctl01"
    leaving.stop_services()
    assert f"/var/lib/ceph/{FSID}" in shell.said()


def test_guests_are_looked_for_where_their_hypervisor_does_not_run(site: Site, shell: Shell) -> None:
    leaving = leaving_of(site, ["compute"])
    shell.answer = {"rc": 125, "stdout": "", "stderr": "no container runs here"}
    shell.program("pgrep", "echo 4711; echo 4712")
    with pytest.raises(ApplyFailed, match="2 guests still run on compute02: process 4711, process 4712"):
        leaving.stop_services()
    shell.program("pgrep", "exit 3")
    with pytest.raises(ApplyFailed) as caught:
        leaving.stop_services()
    assert caught.value.ref == "hypervisor-silent" and "docker" not in shell.called()
    shell.program("pgrep", "exit 1")
    leaving.stop_services()
    assert "docker" in shell.called()


@pytest.mark.parametrize("code", [124, 1])
def test_a_hypervisor_that_does_not_answer_is_not_without_guests(site: Site, shell: Shell, code: int) -> None:
    shell.answer = {"rc": code, "stdout": "", "stderr": "no end within 60 s"}
    with pytest.raises(ApplyFailed, match="no end within 60 s") as caught:
        leaving_of(site, ["compute"]).stop_services()
    assert caught.value.ref == "hypervisor-silent" and shell.called() == []


def test_guests_of_which_the_hypervisor_cannot_tell_the_state_count_as_running(shell: Shell) -> None:
    listing = ["sh", "-c", guests_module.LIST_GUESTS]
    one = (
        "if [ $1 = list ]; then echo u1; echo u2; elif [ $3 = u1 ]; then echo 'shut off (x)'; else exit 1; fi"
    )
    shell.program("virsh", one)
    found = guests_module.parse_domains(shell.run(listing))
    assert [uuid for uuid, state in found.items() if guests_module.is_running(state)] == ["u2"]
    assert set(found) == {"u1", "u2"}
    shell.program("virsh", "exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        shell.run(listing)


# -- a removal that was interrupted after the inventory had lost the node --------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of its own whose deploys are counted in ``deploys``."""
    path = lab_site(tmp_path / "own")
    (path / "known_hosts").write_text("10.10.10.214,osd04 ssh-ed25519 A\n10.10.10.11,ctl01 ssh-ed25519 B\n")
    monkeypatch.setattr(leave, "deploy", lambda site: deployed(site))
    return path


def deployed(site: Path) -> Any:
    with (site / "deploys").open("a") as stream:
        stream.write("x")
    return SimpleNamespace(changed=[])


def run(site: Path, *arguments: str) -> Any:
    return CliRunner().invoke(node_command.command, [*arguments, "--output", "json"], obj=site)


def test_the_same_command_goes_on_when_the_inventory_has_lost_the_node(own: Path) -> None:
    state = journal.begin(own, journal.REMOVE, {"osd04": "dead"})
    state.keep(monitor="ctl01", address="10.10.10.214", port=None)
    state.mark("settle", "done")
    state.mark("monitor", "begun")
    dry = run(own, "remove", "osd04", "--dead", "--dry-run")
    assert dry.exception is None and journal.leaving(own) == ["osd04"], dry.exception
    (own / "inventory" / "host_vars").mkdir()
    (own / "inventory" / "host_vars" / "osd04.yaml").touch()
    result = run(own, "remove", "osd04", "--dead")
    assert result.exception is None, result.exception
    assert json.loads(result.stdout)["left"] == ["inventory/host_vars/osd04.yaml"]
    assert [step["name"] for step in json.loads(result.stdout)["steps"]] == ["settle", "monitor"]
    assert (own / "deploys").read_text() == "x"
    assert (own / "known_hosts").read_text() == "10.10.10.11,ctl01 ssh-ed25519 B\n"
    assert journal.leaving(own) == [] and not Journal(own, journal.REMOVE).open
    # Now it is like any other name that nobody knows.
    assert run(own, "remove", "osd04").exception.ref == "node-unknown"


def test_a_removal_that_another_one_came_after_ends_too(own: Path) -> None:
    journal.begin(own, journal.REMOVE, {"osd04": "dead"}).keep(monitor="ctl01")
    other = journal.begin(own, journal.REMOVE, {"osd05": "alive"})
    other.keep(monitor="ctl02")
    assert run(own, "remove", "osd04").exception is None
    assert not (own / "deploys").exists(), "the other one's monitor is not its"
    assert journal.leaving(own) == ["osd05"]
    assert Journal(own, journal.REMOVE).open and Journal(own, journal.REMOVE).facts["monitor"] == "ctl02"


def test_a_machine_that_comes_again_is_not_leaving(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.begin(own, journal.REMOVE, {"osd04": "dead"})

    def enrolled(site: Site, requests: Any, **_: Any) -> enroll.Result:
        contact = enroll.Contact(requests[0], None, "ssh-ed25519", "AAAA")
        return enroll.Result([enroll.Enrolled(contact)], {})

    monkeypatch.setattr(enroll, "enroll", enrolled)
    result = run(own, "enroll", "osd04", "--address", "10.10.10.214", "--yes")
    assert result.exception is None and journal.leaving(own) == [], result.exception
    # One that somebody wrote into the inventory by hand.
    journal.begin(own, journal.REMOVE, {"compute02": "dead"})
    text = add_host((own / HOSTS).read_text(), "newnodes", "compute02", COMPUTE | {"role": "compute"})
    (own / HOSTS).write_text(text)
    for name, answer in (("check", ""), ("describe", [])):
        monkeypatch.setattr(join.Joining, name, lambda self, answer=answer: answer)
    monkeypatch.setattr(
        join, "change_of", lambda before, after, names: Change(before, after, names, {}, {}, None)
    )
    monkeypatch.setattr(join, "build", lambda joining, computes: [])
    result = run(own, "add", "compute02", "--yes")
    assert result.exception is None and journal.leaving(own) == [], result.exception
