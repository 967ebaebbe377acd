"""A node's network, from the inventory to the files of its network backend.

Backends are functions from a node to files; ``systemd-networkd`` is the one in use, others join
``BACKENDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network

from cloudctl.site.model import Interface, Node, Site

TENANT_BRIDGE = "br-data"
"""Bridge that holds the tunnel address where the datapath runs in userspace."""


def networkd_files(site: Site, node: Node) -> dict[str, str]:
    """Return path to content of the systemd-networkd files of one node."""
    userspace = site.get("datapath") == "netdev"
    files = {}
    for interface in node.interfaces.values():
        network = site.networks.get(interface.network)
        cidr = network.cidr if network else None
        bridged = userspace and interface.network == "tenant" and _switches(node)
        address = None if bridged else interface.address
        gateway = None
        if network is not None and interface.network == "management" and network.gateway:
            gateway = str(network.gateway)
            if gateway == interface.address:
                gateway = None
        files[f"/etc/systemd/network/05-cloudctl-{interface.name}.network"] = _unit(
            interface, address, cidr, interface.mtu, gateway
        )
        if bridged:
            files[f"/etc/systemd/network/05-cloudctl-{TENANT_BRIDGE}.network"] = _unit(
                Interface(
                    name=TENANT_BRIDGE,
                    network="tenant",
                    address=interface.address,
                    mac=None,
                    mtu=interface.mtu,
                ),
                interface.address,
                cidr,
                interface.mtu,
                None,
            )
    return files


def _switches(node: Node) -> bool:
    """Whether the node runs a virtual switch: only there the tenant address moves to a bridge."""
    return "control" in node.groups or "compute" in node.groups


def _unit(
    interface: Interface, address: str | None, cidr: IPv4Network | None, mtu: int, gateway: str | None
) -> str:
    match = f"MACAddress={interface.mac}" if interface.mac else f"Name={interface.name}"
    lines = [
        "# Written by cloudctl from the site's networks and inventory.",
        "[Match]",
        match,
        "",
        "[Link]",
        f"MTUBytes={mtu}",
        f"RequiredForOnline={'yes' if interface.network == 'management' else 'no'}",
        "",
        "[Network]",
        "LinkLocalAddressing=no",
        "IPv6AcceptRA=no",
        "LLDP=no",
        # Addresses that others add (a virtual IP) survive a reload of this file.
        "KeepConfiguration=static",
    ]
    if address is not None and cidr is not None:
        lines.append(f"Address={address}/{cidr.prefixlen}")
    if gateway:
        lines.append(f"Gateway={gateway}")
    return "\n".join(lines) + "\n"


BACKENDS: dict[str, Callable[[Site, Node], dict[str, str]]] = {"systemd-networkd": networkd_files}
