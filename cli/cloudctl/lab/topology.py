"""What a lab consists of: nodes, networks, NICs, disks. Pure data and functions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from cloudctl.errors import UsageError

VARIABLE = "CLOUDCTL_LAB"
"""The environment variable that names the lab."""


def lab_name(given: str | None) -> str:
    """Return the lab's name, ``lab`` where none is given.

    Raises:
        UsageError: no dash is allowed in it: containers of ``a-b`` would look like those of ``a``.
    """
    name = given or "lab"
    if not re.fullmatch(r"[a-z][a-z0-9]{0,14}", name):
        raise UsageError(
            "lab-name",
            f"{name!r} can't be a lab's name: a letter, then at most 14 letters and digits, all small",
            hint=f"unset {VARIABLE}, or give another name",
        )
    return name


NAME = lab_name(os.environ.get(VARIABLE))
"""Of the lab that this process works on."""

PREFIX = f"cloudctl-{NAME}-"
"""Of every container of the lab."""

NETNS = f"cloudctl-{NAME}"
"""The network namespace that plays the switches: all bridges and the switch ends of all cables."""


@dataclass(frozen=True)
class LabNetwork:
    """A switch.

    Attributes:
        mtu: bytes; the MTU that the product puts on the NICs. The switch itself always passes 9000.
    """

    name: str
    cidr: IPv4Network
    mtu: int
    number: int

    @property
    def bridge(self) -> str:
        return f"br-{self.name}"

    def address(self, host_number: int) -> str:
        """Return the address of the host with that number, without the prefix length."""
        return str(self.cidr.network_address + host_number)


def _networks() -> dict[str, LabNetwork]:
    table = [
        ("management", "10.10.10.0/24", 1500),
        ("tenant", "10.10.20.0/24", 9000),
        ("storage", "10.10.30.0/24", 9000),
        ("replication", "10.10.40.0/24", 9000),
        ("api", "192.168.124.0/24", 1500),
        ("external", "10.10.50.0/24", 1500),
    ]
    return {
        name: LabNetwork(name, IPv4Network(cidr), mtu, number)
        for number, (name, cidr, mtu) in enumerate(table, start=1)
    }


NETWORKS = _networks()

NICS: dict[str, dict[str, str]] = {
    "deploy": {"eth0": "management", "eth1": "api", "eth2": "external"},
    "control": {
        "eth0": "management",
        "eth1": "tenant",
        "eth2": "storage",
        "eth3": "api",
        "eth4": "external",
    },
    "compute": {"eth0": "management", "eth1": "tenant", "eth2": "storage"},
    "storage": {"eth0": "management", "eth1": "storage", "eth2": "replication"},
}
"""Role -> NIC -> network."""

DEPLOY_ADDRESSES = {"eth0": 2, "eth1": 10, "eth2": 1}
"""The deploy node's host number on each network. It is no node of the cloud: the lab sets all its NICs."""

FIRST_HOST_NUMBER = {"deploy": 2, "control": 11, "compute": 21, "storage": 211}
STEM = {"control": "ctl", "compute": "compute", "storage": "osd"}
DATA_SIZE = 8 * 2**30
JOURNAL_SIZE = 2 * 2**30
FIRST_MINOR = 201
MINORS_PER_NODE = 10
MINORS_PER_LAB = 400
"""Loop device minors are the machine's: each lab has a block of its own, the lab ``lab`` the first one."""

TOPOLOGIES = {
    "full": {"control": 3, "compute": 2, "storage": 3},
    "small": {"control": 1, "compute": 1, "storage": 1},
    # For tests of roles and single services: three servers without disks.
    "molecule": {"control": 3},
    # Ceph alone: what works on OSDs.
    "storage": {"control": 1, "storage": 3},
}


@dataclass(frozen=True)
class Disk:
    """A disk of a node: a sparse file on the host, a loop device with a fixed minor in the node.

    Attributes:
        size: bytes.
    """

    name: str
    minor: int
    size: int

    @property
    def device(self) -> str:
        return f"/dev/loop{self.minor}"


@dataclass(frozen=True)
class LabNode:
    """A server of the lab.

    Attributes:
        bare: made by ``lab add-node``: its operating system and a user with a password, unknown to the site.
        mtu_limits: NIC -> bytes that its switch port passes at most, where that is less than the others do.
        remade: a new machine in place of one that the site knows (``lab remake``), delivered as a bare one.
    """

    name: str
    role: str
    host_number: int
    disks: tuple[Disk, ...] = field(default=())
    bare: bool = False
    mtu_limits: Mapping[str, int] = field(default_factory=dict)
    remade: bool = False

    @property
    def unknown(self) -> bool:
        """Delivered with an account and a password instead of the operator's key."""
        return self.bare or self.remade

    @property
    def container(self) -> str:
        return PREFIX + self.name

    @property
    def nics(self) -> dict[str, str]:
        return NICS[self.role]

    @property
    def address(self) -> str:
        """The management address."""
        return NETWORKS["management"].address(self.host_number)

    def mac(self, nic: str) -> str:
        """Return the NIC's fixed address, locally administered: network and host number."""
        network = NETWORKS[self.nics[nic]]
        return f"02:63:6c:{network.number:02x}:00:{self.host_number:02x}"

    def configured(self) -> dict[str, str]:
        """Return NIC -> address/length of the NICs that work when the server is delivered."""
        numbers = DEPLOY_ADDRESSES if self.role == "deploy" else {"eth0": self.host_number}
        result = {}
        for nic, number in numbers.items():
            network = NETWORKS[self.nics[nic]]
            result[nic] = f"{network.address(number)}/{network.cidr.prefixlen}"
        return result


def make_node(
    name: str,
    role: str,
    first_minor: int = FIRST_MINOR,
    *,
    bare: bool = False,
    data_disks: int = 1,
    spare_disks: int = 0,
    mtu_limits: Mapping[str, int] | None = None,
) -> LabNode:
    """Return the node with that name: the number at its end gives addresses and disks.

    Args:
        first_minor: of the lab's block of loop devices.
        bare: see ``LabNode``.
        data_disks: of a storage node, beside its journal disk; up to eight.
        spare_disks: of a storage node, empty ones that the inventory does not name.
        mtu_limits: see ``LabNode``.

    Raises:
        UsageError: the name has no number, or the lab has no room for it.
    """
    if role == "deploy":
        return LabNode(name, role, FIRST_HOST_NUMBER[role])
    match = re.fullmatch(r"[a-z][a-z-]*?(\d+)", name)
    room = {"control": 9, "compute": 150, "storage": 35}
    if role not in room or not match or not 1 <= int(match[1]) <= room[role]:
        raise UsageError("lab-node-name", f"{name!r} does not end in a number that a {role} node can have")
    index = int(match[1]) - 1
    disks: tuple[Disk, ...] = ()
    if role == "storage":
        minor = first_minor + index * MINORS_PER_NODE
        if data_disks < 1 or spare_disks < 0 or data_disks + spare_disks > MINORS_PER_NODE - 2:
            raise UsageError(
                "lab-node-disks",
                f"{name} can have 1 to {MINORS_PER_NODE - 2} data disks, spare ones included",
            )
        names = [f"data{n}" for n in range(2, data_disks + 1)]
        names += [f"spare{n}" for n in range(1, spare_disks + 1)]
        more = (Disk(disk, minor + n, DATA_SIZE) for n, disk in enumerate(names, start=2))
        disks = (Disk("data1", minor, DATA_SIZE), Disk("journal1", minor + 1, JOURNAL_SIZE), *more)
    if unknown := sorted(set(mtu_limits or {}) - set(NICS[role])):
        raise UsageError(
            "lab-node-nic", f"{name} has no {', '.join(unknown)}", hint=f"its NICs: {', '.join(NICS[role])}"
        )
    return LabNode(name, role, FIRST_HOST_NUMBER[role] + index, disks, bare, dict(mtu_limits or {}))


def topology(
    name: str, first_minor: int = FIRST_MINOR, *, data_disks: int = 1, spare_disks: int = 0
) -> dict[str, LabNode]:
    """Return the nodes of a topology, the deploy node first.

    Args:
        data_disks, spare_disks: of each storage node.
    """
    nodes = [make_node("deploy", "deploy")]
    for role, count in TOPOLOGIES[name].items():
        nodes += [
            make_node(
                f"{STEM[role]}{number:02d}", role, first_minor, data_disks=data_disks, spare_disks=spare_disks
            )
            for number in range(1, count + 1)
        ]
    return {node.name: node for node in nodes}


def free_block(taken: Iterable[int], in_use: Iterable[int]) -> int:
    """Return the first minor of a block of loop devices that is nobody's.

    The very first block is left to the lab ``lab``.

    Args:
        taken: first minors of the blocks of other labs.
        in_use: minors of loop devices that are attached to something.
    """
    in_use = set(in_use)
    blocked = {*taken, FIRST_MINOR}
    first = FIRST_MINOR
    while first in blocked or in_use & set(range(first, first + MINORS_PER_LAB)):
        first += MINORS_PER_LAB
    return first
