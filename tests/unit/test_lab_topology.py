"""The lab's nodes, addresses and disks."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address

import pytest

from cloudctl.errors import UsageError
from cloudctl.lab.network import port
from cloudctl.lab.topology import (
    FIRST_MINOR,
    MINORS_PER_LAB,
    NETWORKS,
    TOPOLOGIES,
    LabNode,
    free_block,
    lab_name,
    make_node,
    topology,
)


def test_small_is_part_of_full() -> None:
    assert set(topology("small")) < set(topology("full"))
    assert next(iter(topology("full"))) == "deploy"


def test_documented_addresses() -> None:
    addresses = {name: node.address for name, node in topology("full").items()}
    assert addresses["deploy"] == "10.10.10.2"
    assert addresses["ctl03"] == "10.10.10.13"
    assert addresses["compute02"] == "10.10.10.22"
    assert addresses["osd01"] == "10.10.10.211"


def test_nothing_is_given_out_twice() -> None:
    nodes = [
        make_node("deploy", "deploy"),
        *(make_node(f"ctl{number:02d}", "control") for number in range(1, 10)),
        *(make_node(f"compute{number:02d}", "compute") for number in range(1, 100)),
        *(make_node(f"osd{number:02d}", "storage") for number in range(1, 36)),
    ]
    addresses = [node.address for node in nodes]
    macs = [node.mac(nic) for node in nodes for nic in node.nics]
    ports = [port(node, nic) for node in nodes for nic in node.nics]
    minors = [disk.minor for node in nodes for disk in node.disks]
    for values in (addresses, macs, ports, minors):
        assert len(values) == len(set(values))
    assert max(len(name) for name in ports) <= 15


def test_addresses_stay_clear_of_virtual_ones() -> None:
    reserved = {IPv4Address("10.10.10.250"), IPv4Address("192.168.124.250")}
    last = make_node("osd35", "storage")
    assert not reserved & {IPv4Address(network.address(last.host_number)) for network in NETWORKS.values()}


def test_networks_do_not_overlap() -> None:
    pairs = itertools.combinations(NETWORKS.values(), 2)
    assert not [pair for pair in pairs if pair[0].cidr.overlaps(pair[1].cidr)]


@pytest.mark.parametrize(
    ("name", "role"),
    [("ctl10", "control"), ("osd00", "storage"), ("osd", "storage"), ("x1", "router"), ("1", "compute")],
)
def test_impossible_nodes_are_refused(name: str, role: str) -> None:
    with pytest.raises(UsageError):
        make_node(name, role)


def test_only_management_works_on_delivery() -> None:
    for node in topology("full").values():
        expected = {"eth0", "eth1", "eth2"} if node.role == "deploy" else {"eth0"}
        assert set(node.configured()) == expected


def test_macs_are_unicast_and_local() -> None:
    node: LabNode
    for node in topology("full").values():
        assert all(int(node.mac(nic).split(":")[0], 16) & 0b11 == 0b10 for nic in node.nics)


def test_every_topology_has_what_a_cloud_needs() -> None:
    for name in ("full", "small"):
        assert {"control", "compute", "storage"} <= set(TOPOLOGIES[name])


def test_the_topology_for_molecule_has_no_disks() -> None:
    nodes = topology("molecule")
    assert list(nodes) == ["deploy", "ctl01", "ctl02", "ctl03"]
    assert not any(node.disks for node in nodes.values())


def test_more_disks_share_the_journal_disk() -> None:
    nodes = topology("storage", data_disks=2, spare_disks=3)
    disks = {disk.name: disk.minor - FIRST_MINOR for disk in nodes["osd01"].disks}
    assert disks == {"data1": 0, "journal1": 1, "data2": 2, "spare1": 3, "spare2": 4, "spare3": 5}
    assert not nodes["ctl01"].disks
    minors = [disk.minor for node in nodes.values() for disk in node.disks]
    assert len(minors) == len(set(minors)) == 18


@pytest.mark.parametrize(("data", "spare"), [(0, 0), (9, 0), (5, 4), (1, -1)])
def test_more_disks_than_a_server_has_room_for(data: int, spare: int) -> None:
    with pytest.raises(UsageError):
        topology("storage", data_disks=data, spare_disks=spare)


@pytest.mark.parametrize(("given", "expected"), [(None, "lab"), ("", "lab"), ("second2", "second2")])
def test_the_lab_has_a_name(given: str | None, expected: str) -> None:
    assert lab_name(given) == expected


@pytest.mark.parametrize("given", ["a-b", "Lab", "1st", "x" * 16, "a/b", "a b", "."])
def test_names_that_could_be_mistaken_are_refused(given: str) -> None:
    with pytest.raises(UsageError):
        lab_name(given)


def test_labs_share_no_loop_device() -> None:
    second = free_block([], [])
    assert second == FIRST_MINOR + MINORS_PER_LAB  # the first block belongs to the lab of the usual name
    third = free_block([FIRST_MINOR, second], [])
    names = [f"osd{number:02d}" for number in range(1, 36)]
    minors = [
        disk.minor
        for first in (FIRST_MINOR, second, third)
        for name in names
        for disk in make_node(name, "storage", first).disks
    ]
    assert len(minors) == len(set(minors)) == 3 * 35 * 2


def test_a_block_with_a_used_device_is_skipped() -> None:
    second = FIRST_MINOR + MINORS_PER_LAB
    assert free_block([], [0, second + MINORS_PER_LAB - 1]) == second + MINORS_PER_LAB


def test_a_bare_server_has_its_disks_and_limits() -> None:
    node = make_node("osd04", "storage", bare=True, data_disks=3, mtu_limits={"eth1": 1500})
    assert [disk.name for disk in node.disks] == ["data1", "journal1", "data2", "data3"]
    assert len({disk.minor for disk in node.disks}) == 4
    assert node.bare
    assert node.mtu_limits == {"eth1": 1500}
    # The first two keep their minors: a lab that was made before has them.
    assert node.disks[:2] == make_node("osd04", "storage").disks


@pytest.mark.parametrize("wrong", [{"data_disks": 0}, {"data_disks": 9}, {"mtu_limits": {"eth7": 1500}}])
def test_a_server_that_the_lab_has_no_room_for_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_node("osd04", "storage", bare=True, **wrong)  # type: ignore[arg-type]


def test_disks_of_all_servers_have_minors_of_their_own() -> None:
    nodes = [make_node(f"osd{n:02d}", "storage", data_disks=8) for n in range(1, 6)]
    minors = [disk.minor for node in nodes for disk in node.disks]
    assert len(set(minors)) == len(minors)
