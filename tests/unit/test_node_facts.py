"""What the inventory should say about a machine, from what it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import cloudctl_net as net
from hypothesis import given
from hypothesis import strategies as st

from cloudctl.errors import CheckFailed
from cloudctl.node import facts
from cloudctl.node.facts import GIB, propose, refuse_members, size
from cloudctl.node.listing import state_of
from cloudctl.site.model import Node

STORAGE = {"eth0": "management", "eth1": "storage", "eth2": "replication"}
NODE = Node("osd09", ("newnodes",), "10.10.10.219")


def disk(path: str, gib: float, *, rotational: bool = True, content: str = "", system: bool = False) -> Any:
    return {
        "path": f"/dev/disk/by-id/{path}", "name": f"/dev/{path}", "size": int(gib * GIB),
        "rotational": rotational, "content": content, "system": system, "model": "",
    }  # fmt: skip


def port(name: str, *, speed: int | None = 10000, link: bool | None = True, address: str = "") -> Any:
    return {
        "name": name, "mac": f"52:54:00:00:00:{name[-1]}0", "speed": speed, "link": link, "mtu": 1500,
        "addresses": [address] if address else [],
    }  # fmt: skip


def disks(*items: Any) -> dict[str, Any]:
    return propose(NODE, "storage", {}, {"ports": [], "disks": list(items)}).variables


def paths(*names: str) -> list[str]:
    return [f"/dev/disk/by-id/{name}" for name in names]


def test_data_on_spinning_disks_journals_on_the_ssd() -> None:
    # As documented: five journals share one SSD; the system's disk is left alone.
    found = disks(
        disk("a", 200, rotational=False, content="2 partitions", system=True),
        disk("b", 400, rotational=False),
        *(disk(name, 4000) for name in "cdefg"),
    )
    assert found == {"devices": paths(*"cdefg"), "journal_devices": paths(*"bbbbb")}


def test_larger_disks_hold_data_where_all_are_of_a_kind() -> None:
    found = disks(disk("a", 8), disk("j", 2), disk("b", 8))
    assert found == {"devices": paths("a", "b"), "journal_devices": paths("j", "j")}


def test_disks_that_are_alike_are_all_data() -> None:
    found = disks(disk("a", 960, rotational=False), disk("b", 900, rotational=False))
    assert found == {"devices": paths("a", "b")}


def test_several_ssds_share_the_journals_evenly() -> None:
    found = disks(*(disk(name, 4000) for name in "abcd"), *(disk(n, 400, rotational=False) for n in "xy"))
    assert found["journal_devices"] == paths(*"xxyy")


def test_journals_that_are_named_already_do_not_stay_beside_other_data_disks() -> None:
    machine = {"ports": [], "disks": [disk("a", 4000), disk("b", 4000)]}
    old = {"journal_devices": ["/dev/sdz"]}
    wanted = {"devices": paths("a", "b"), "journal_devices": []}
    assert propose(NODE, "storage", {}, machine, old).variables == wanted
    assert propose(Node("n", ("newnodes",), "1", vars=old), "storage", {}, machine).variables == wanted
    machine["disks"].append(disk("j", 400, rotational=False))
    assert propose(NODE, "storage", {}, machine, old).variables["journal_devices"] == paths("j", "j")


@pytest.mark.parametrize(
    "bad",
    [
        disk("u", 4000, content="gpt"),
        disk("u", 4000, content="LVM2_member"),
        disk("u", 4000, content="mounted at /srv", system=True),
        disk("u", 0.5),
    ],
)
def test_a_disk_with_anything_on_it_is_left_alone(bad: Any) -> None:
    found = propose(NODE, "storage", {}, {"ports": [], "disks": [disk("a", 4000), bad]})
    assert found.variables == {"devices": paths("a")}
    assert any("left alone" in note for note in found.notes)


def test_without_an_empty_disk_nothing_is_proposed() -> None:
    found = propose(NODE, "storage", {}, {"ports": [], "disks": [disk("a", 8, content="xfs")]})
    assert found.variables == {}
    assert "no empty disk" in found.notes


def ports(*items: Any) -> Any:
    return propose(NODE, "storage", STORAGE, {"ports": list(items), "disks": []})


def test_ports_that_are_called_as_wanted_need_no_words() -> None:
    found = ports(port("eth0", address="10.10.10.219"), port("eth1"), port("eth2", link=None))
    # Two of unknown speed are alike.
    assert "interfaces" not in found.variables


def test_other_names_are_found_by_mac_and_the_faster_port_comes_first() -> None:
    found = ports(
        port("eno1", speed=1000, address="10.10.10.219"), port("enp2", speed=1000), port("enp3", speed=10000)
    )
    assert found.variables["interfaces"] == {
        "eth0": {"mac": "52:54:00:00:00:10"},
        "eth1": {"mac": "52:54:00:00:00:30"},
        "eth2": {"mac": "52:54:00:00:00:20"},
    }


def test_what_is_written_about_ports_stays() -> None:
    node = Node("n", ("newnodes",), "10.10.10.219", vars={"interfaces": {"eth1": {"address": "10.10.30.9"}}})
    machine = {"ports": [port("eno1", address="10.10.10.219"), port("enp2"), port("enp3")], "disks": []}
    found = propose(node, "storage", STORAGE, machine).variables["interfaces"]
    assert found["eth1"] == {"address": "10.10.30.9", "mac": "52:54:00:00:00:20"}


def test_a_port_without_a_cable_is_not_chosen() -> None:
    found = ports(port("eno1", address="10.10.10.219"), port("enp2", link=False), port("enp3"))
    assert found.variables["interfaces"]["eth1"] == {"mac": "52:54:00:00:00:30"}
    assert any("none for replication" in note for note in found.notes)


def test_a_cable_in_another_port_is_told_where_the_name_is_taken() -> None:
    # No other port can be called eth1: it is there, and stays what it is called, as does eth2.
    found = ports(port("eth0", address="10.10.10.219"), port("eth1", link=False), port("eth2"), port("eth3"))
    assert "interfaces" not in found.variables
    assert found.notes[0] == "eth1 has no link: it is not chosen"
    assert found.notes[1].startswith("storage: eth3 cannot be called eth1, another port keeps that name")
    assert found.reasons == [
        "management: eth0 (52:54:00:00:00:00, 10000 Mbit/s) as eth0",
        "replication: eth2 (52:54:00:00:00:20, 10000 Mbit/s) as eth2",
    ]


def test_ports_that_have_wanted_names_are_used_before_others() -> None:
    own = port("eth0", address="10.10.10.219")
    found = ports(own, port("eth1", speed=1000), port("eth2"), port("eth3", speed=25000))
    assert found.variables["interfaces"] == {
        "eth1": {"mac": "52:54:00:00:00:20"},
        "eth2": {"mac": "52:54:00:00:00:10"},
    }
    # A speed that is not known is no reason to give a port another name.
    found = ports(own, port("eth1", speed=None, link=None), port("eth2"), port("eth3"))
    assert "interfaces" not in found.variables


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["eth0", "eth1", "eth2", "eth3", "ens1", "ens2"]),
            st.sampled_from([None, 1000, 10000]), st.sampled_from([None, True, False]),
        ),
        max_size=6, unique_by=lambda item: item[0],
    ),
    st.integers(0, 5),
)  # fmt: skip
def test_every_proposal_can_be_carried_out(given_ports: list[Any], own: int) -> None:
    there = [
        {**port(name, speed=speed, link=link, address="10.10.10.219" if number == own else ""), "mac": name}
        for number, (name, speed, link) in enumerate(given_ports)
    ]
    found = ports(*there).variables.get("interfaces", {})
    wanted = [{"name": name, "mac": entry["mac"]} for name, entry in found.items()]
    assert len({entry["mac"] for entry in wanted}) == len(wanted)
    net.renames([{"name": item["name"], "mac": item["mac"], "kind": None} for item in there], wanted)


def test_of_the_networks_that_are_called_as_wanted_the_other_one_lacks_a_port() -> None:
    found = ports(port("eth0", address="10.10.10.219"), port("eth1", link=False), port("eth2"))
    assert "interfaces" not in found.variables
    assert any("none for storage" in note for note in found.notes)


def test_ports_that_are_down_come_last_and_are_told() -> None:
    found = ports(
        port("eno1", address="10.10.10.219"), port("ens1", speed=None, link=None),
        port("ens2", speed=None, link=None), port("ens3", speed=1000),
    )  # fmt: skip
    assert found.variables["interfaces"]["eth1"] == {"mac": "52:54:00:00:00:30"}
    assert found.variables["interfaces"]["eth2"] == {"mac": "52:54:00:00:00:10"}
    assert found.notes == ["ens1 is down: nobody knows whether it has a cable", "no empty disk"]
    found = ports(port("eth0", address="10.10.10.219"), port("eth1", link=None), port("eth2"))
    assert found.notes == ["eth1 is down: nobody knows whether it has a cable", "no empty disk"]


def test_a_port_that_was_named_by_its_mac_is_named_anew() -> None:
    node = Node(
        "n", ("newnodes",), "1", vars={"interfaces": {"eth1": {"mac": "52:54:00:00:00:90", "mtu": 1500}}}
    )
    machine = {"ports": [port("eth0", address="1"), port("eth1"), port("eth2")], "disks": []}
    found = propose(node, "storage", STORAGE, machine).variables["interfaces"]
    assert found == {"eth1": {"mac": "52:54:00:00:00:10", "mtu": 1500}}


def test_nothing_is_proposed_for_a_node_that_is_to_be_nothing() -> None:
    machine = {"ports": [port("eth0")], "disks": [disk("a", 100)]}
    found = propose(NODE, "", {}, machine)
    assert found.variables == {}
    assert any("role: storage" in note for note in found.notes)
    assert propose(Node("x", ("mine",), "10.10.10.9"), "", {}, machine).notes == []


def test_only_ports_of_waiting_nodes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def call(path: Any, module: str, calls: dict[str, Any]) -> Any:
        asked.update(calls)
        return SimpleNamespace(all_or_raise=lambda: {name: {"machine": {}} for name in calls})

    monkeypatch.setattr(facts, "call", call)
    nodes = {"osd09": NODE, "osd01": Node("osd01", ("storage",), "10.10.10.211")}
    facts.ask(SimpleNamespace(path="", nodes=nodes), list(nodes))  # type: ignore[arg-type]
    assert asked == {"osd09": {"raise_ports": True}, "osd01": {"raise_ports": False}}


def test_only_waiting_nodes_are_written_about() -> None:
    refuse_members(NODE)
    with pytest.raises(CheckFailed):
        refuse_members(Node("osd01", ("storage",), "10.10.10.211"))


def test_where_a_node_stands() -> None:
    assert state_of(NODE, {}, []) == "enrolled"
    assert state_of(NODE, {"osd09": "storage"}, []) == "joining"
    member = Node("osd01", ("storage",), "10.10.10.211")
    assert state_of(member, {}, []) == "member"
    assert state_of(member, {}, ["osd01"]) == "leaving"


def test_sizes() -> None:
    assert [size(n) for n in (512, 3 << 20, 8 * GIB, 4 << 40)] == [
        "512 bytes",
        "3.0 MiB",
        "8.0 GiB",
        "4.0 TiB",
    ]
