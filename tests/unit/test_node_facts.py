"""What the inventory should say about a machine, from what it has."""

from __future__ import annotations

from typing import Any

import pytest

from cloudctl.errors import CheckFailed
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
