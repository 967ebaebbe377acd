"""What would keep a machine from joining: its own checks, and its networks tried with all peers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cloudctl.checks.judge import Finding
from cloudctl.netcheck.pairs import pairs
from cloudctl.osd.cluster import Cluster
from cloudctl.site.model import Site

Trial = Mapping[str, Any]


def trials(site: Site, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return by machine what ``cloudctl_trial`` is asked: its ports, and its peers that are nodes already.

    Args:
        site: as it will be.
        names: the machines.
    """
    wanted: dict[str, dict[str, Any]] = {}
    peers = pairs(site.nodes, site.networks)
    for name in names:
        node = site.nodes[name]
        ports = []
        for port in node.interfaces.values():
            network = site.networks[port.network]
            if port.address is None or network.prefix is None:
                continue
            ports.append(
                {
                    "interface": port.name,
                    "mac": port.mac or "",
                    "network": port.network,
                    "address": port.address,
                    "prefix": network.prefix,
                    "mtu": port.mtu,
                }
            )
        wanted[name] = {
            "ports": ports,
            "peers": [
                peer
                for peer in peers.get(name, [])
                if peer["node"] not in names and "newnodes" not in site.nodes[peer["node"]].groups
            ],
        }
    return wanted


def judge_leftovers(name: str, devices: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A new machine has no OSD of this cluster: one that is there was removed, or is another's. Pure."""
    for device in devices:
        if device["state"] == "ours":
            yield Finding(
                "osd-device-refused",
                f"{device['path']} cannot be used for an OSD: it holds {device['reason']}, which was "
                "removed, or belongs to another node",
                name,
                "name an empty device; if its data may go, wipe it yourself (wipefs --all)",
            )


def adopted(devices: Sequence[Mapping[str, Any]], cluster: Cluster) -> list[dict[str, Any]]:
    """Return what is on devices as the cluster's list of OSDs makes it look. Pure.

    A run that ended in the middle of making an OSD leaves a label that names no cluster. The monitors know
    it: they list its OSD as one that never started, and whoever makes the OSDs makes it anew.
    """
    fresh = {osd.uuid for osd in cluster.osds.values() if not osd.started}
    return [
        {**item, "state": "ours", "reason": f"OSD {item['osd_uuid']}, never started"}
        if item["state"] == "refused" and item.get("osd_uuid") in fresh
        else dict(item)
        for item in devices
    ]


def judge_trial(name: str, trial: Trial) -> Iterator[Finding]:
    """Judge how a machine's networks answered. Pure.

    A peer that alone is silent is down, or cut off itself: that is no fault of the machine.
    """
    for fault in trial["faults"]:
        yield Finding(
            "port-unusable",
            f"network {fault['network']} cannot be tried: {fault['why']}",
            name,
            "check the cable, the switch port and 'interfaces'",
        )
    for taken in trial["taken"]:
        yield Finding(
            "address-duplicate",
            f"another machine (MAC {taken['mac']}) has {taken['address']} on network {taken['network']}",
            name,
            "free the address, or give the node another one on this network ('interfaces')",
        )
    networks: dict[str, list[Trial]] = {}
    for peer in trial["peers"]:
        networks.setdefault(str(peer["network"]), []).append(peer)
    for network, peers in networks.items():
        yield from _judge_network(name, network, peers)


def _judge_network(name: str, network: str, peers: Sequence[Trial]) -> Iterator[Finding]:
    small = [peer for peer in peers if not peer["full"] and peer["small"]]
    silent = [peer for peer in peers if not peer["full"] and not peer["small"]]
    if small:
        size = max(int(peer["mtu"]) for peer in small)
        interface, mtu = str(small[0]["interface"]), int(small[0]["interface_mtu"])
        if 0 < mtu < size:
            yield Finding(
                "network-mtu",
                f"network {network}: {interface} has MTU {mtu}, {size} is wanted",
                name,
                f"on the machine: ip link set dev {interface} mtu {size}; the deploy makes it stay",
            )
            return
        yield Finding(
            "network-mtu",
            f"network {network}: packets of {size} bytes do not pass to {_names(small)}, small ones do",
            name,
            "set the MTU of the switch ports between them"
            if len(small) == len(peers)
            else "set the MTU of the switch ports to these nodes",
        )
    if silent and len(silent) == len(peers):
        yield Finding(
            "network-cut",
            f"network {network}: nobody answers ({_names(silent)})",
            name,
            "check the cable, and the switch port's VLAN",
        )
    elif silent:
        yield Finding(
            "peer-silent", f"network {network}: {_names(silent)} does not answer", name,
            "cloudctl network check", warning=True,
        )  # fmt: skip


def _names(peers: Sequence[Trial], most: int = 5) -> str:
    names = [str(peer["node"]) for peer in peers]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
