"""The lab's switches and cables.

All bridges, and the switch ends of all cables, live in one network namespace of their own: the host has no
address there, no firewall rule of the host applies, and deleting the namespace deletes them all.
"""

from __future__ import annotations

import json
from pathlib import Path

from cloudctl.lab.host import run
from cloudctl.lab.topology import NETNS, NETWORKS, LabNode

_LARGEST_MTU = 9000


def exists() -> bool:
    """Return whether the switches exist."""
    return Path("/run/netns", NETNS).exists()


def ensure() -> None:
    """Make the namespace and the bridges that are missing."""
    if not exists():
        run(["ip", "netns", "add", NETNS])
    present = {link["ifname"] for link in _links()}
    batch = ["link set lo up"]
    for network in NETWORKS.values():
        if network.bridge not in present:
            # Snooping would lose VRRP and neighbour discovery here: no router asks who listens.
            batch.append(
                f"link add {network.bridge} mtu {_LARGEST_MTU} type bridge stp_state 0 mcast_snooping 0"
            )
        batch.append(f"link set {network.bridge} up")
    _batch(batch)
    run(
        [
            *("ip", "netns", "exec", NETNS, "sh", "-c"),
            "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done;"
            "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done",
        ]
    )


def port(node: LabNode, nic: str) -> str:
    """Return the name of the switch's end of a cable (15 characters at most)."""
    return f"{node.name[-10:]}.{nic}"


def plug_in(node: LabNode, pid: int) -> None:
    """Connect the NICs that a running node (``pid``: its first process) lacks."""
    present = {link["ifname"]: link for link in _links()}
    batch = []
    for nic, network_name in node.nics.items():
        end = port(node, nic)
        if end in present:
            continue
        batch += [
            f"link add {end} mtu {node.mtu_limits.get(nic, _LARGEST_MTU)} type veth"
            f" peer name {nic} mtu 1500 address {node.mac(nic)} netns {pid}",
            f"link set {end} master {NETWORKS[network_name].bridge} up",
        ]
    if batch:
        _batch(batch)


def unplug(node: LabNode) -> None:
    """Disconnect all of a node's NICs; a running node falls silent at once."""
    if not exists():
        return
    present = {link["ifname"] for link in _links()}
    ends = [port(node, nic) for nic in node.nics]
    if batch := [f"link del {end}" for end in ends if end in present]:
        # A stopping node's namespace may take its ends away between the listing and this.
        run(["ip", "-n", NETNS, "-force", "-batch", "-"], stdin="\n".join(batch) + "\n", check=False)


def remove() -> None:
    """Delete the switches and every cable."""
    if exists():
        present = [link["ifname"] for link in _links() if link["ifname"] != "lo"]
        # Named one by one: a namespace that some process still holds would keep them alive.
        batch = "".join(f"link del {name}\n" for name in present)
        run(["ip", "-n", NETNS, "-force", "-batch", "-"], stdin=batch, check=False)
        run(["ip", "netns", "delete", NETNS])


def _links() -> list[dict[str, str]]:
    links = json.loads(run(["ip", "-n", NETNS, "-json", "link", "show"]) or "[]")
    return [link for link in links if link]


def _batch(lines: list[str]) -> None:
    run(["ip", "-n", NETNS, "-batch", "-"], stdin="\n".join(lines) + "\n")
