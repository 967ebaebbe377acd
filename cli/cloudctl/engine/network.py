"""A node's network, from the inventory to the files of its network backend. Pure.

Backends are functions from a node to files. Which one a node gets is set, or follows from its operating
system: then every backend is rendered, and the node chooses (``playbooks/module_utils/cloudctl_net.py``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface
from typing import Any

from cloudctl.site.model import Node, Site

TENANT_BRIDGE = "br-data"
"""Bridge that holds the tunnel address where the datapath runs in userspace."""

AUTO = "auto"
HEADER = "# Written by cloudctl from the site's networks and inventory."
ETHERNET_MTU = 1500
"""Bytes; what a port has where nobody says anything."""

_NAMESPACE = uuid.UUID("5e2c5bb4-7f0e-4b0e-9d0e-6b1f0c1d5a11")
_STACKED = "bridge bond vlan macvlan ipvlan vxlan dummy tun openvswitch"
"""Kinds of devices that stand on a port: they may carry its MAC address, but are not the port."""


@dataclass(frozen=True)
class Port:
    """A port as the backends write it.

    Attributes:
        name: the kernel's name, the one the port shall have.
        network: name of the network.
        mac: lower case; the port is found by it and given the name.
        address: with prefix length (10.10.10.11/24); None when unnumbered.
        gateway: the node's default route, on the management port only.
        mtu: bytes.
        virtual: no port of the machine: others make it, it only gets its address.
    """

    name: str
    network: str
    mac: str | None
    address: str | None
    gateway: str | None
    mtu: int
    virtual: bool = False


def ports(site: Site, node: Node) -> list[Port]:
    """Return what is to be configured on a node, in the order of its interfaces."""
    userspace = site.get("datapath") == "netdev"
    found: list[Port] = []
    for interface in node.interfaces.values():
        network = site.networks.get(interface.network)
        address = None
        if interface.address is not None and network is not None and network.cidr is not None:
            address = f"{interface.address}/{network.cidr.prefixlen}"
        gateway = None
        if network is not None and interface.network == "management" and network.gateway:
            gateway = None if str(network.gateway) == interface.address else str(network.gateway)
        bridged = userspace and interface.network == "tenant" and _switches(node)
        found.append(
            Port(
                interface.name,
                interface.network,
                interface.mac,
                None if bridged else address,
                gateway,
                interface.mtu,
            )
        )
        if bridged:
            found.append(Port(TENANT_BRIDGE, "tenant", None, address, None, interface.mtu, virtual=True))
    return found


def _switches(node: Node) -> bool:
    """Whether the node runs a virtual switch: only there the tenant address moves to a bridge."""
    return "control" in node.groups or "compute" in node.groups


# -- systemd-networkd --------------------------------------------------------------------------


def networkd_files(site: Site, node: Node) -> dict[str, str]:
    """Return path to content of the systemd-networkd files of one node, names of ports included."""
    files = {f"/etc/systemd/network/05-cloudctl-{p.name}.network": _unit(p) for p in ports(site, node)}
    return {**files, **name_files(site, node, "systemd-networkd")}


def name_files(site: Site, node: Node, daemon: str) -> dict[str, str]:
    """Return what gives ports their names by MAC address at every boot, before ``daemon`` configures them.

    udev does it by ``.link`` files, port by port: it can't give a name that another port still has. What two
    ports that swap their names are left with is put right once a boot.
    """
    links = link_files(site, node)
    if not links:
        return {}
    table = "".join(f"{port.mac} {port.name}\n" for port in ports(site, node) if port.mac)
    return {
        **links,
        "/etc/cloudctl/name-ports": _NAME_PORTS.replace("@TABLE@\n", table).replace(
            "@KINDS@", _STACKED.replace(" ", "|")
        ),
        f"/etc/systemd/system/{daemon}.service.d/05-cloudctl-ports.conf": "\n".join(
            [HEADER, "[Service]", "ExecStartPre=-+/bin/sh /etc/cloudctl/name-ports", ""]
        ),
    }


_NAME_PORTS = """\
#!/bin/sh
# Written by cloudctl. Gives ports the names that udev could not: of two that swap theirs, neither is free.
# Once a boot; what stands on a port may carry its address.
set -C
: >/run/cloudctl-ports-named || exit 0
udevadm settle --timeout=15
number=0
moves=
while read -r mac name; do
  [ "$(cat "/sys/class/net/$name/address" 2>/dev/null)" = "$mac" ] && continue
  for place in /sys/class/net/*; do
    read -r found <"$place/address" || continue
    [ "$found" = "$mac" ] || continue
    port=${place##*/}
    if ip -details -json link show dev "$port" | grep -qE '"info_kind":"(@KINDS@)"'; then continue; fi
    ip link set dev "$port" down
    ip link set dev "$port" name "cctl$number" && moves="$moves cctl$number:$name"
    number=$((number + 1))
    break
  done
done <<'END'
@TABLE@
END
for move in $moves; do
  ip link set dev "${move%%:*}" name "${move#*:}"
done
"""


def link_files(site: Site, node: Node) -> dict[str, str]:
    """Return the ``.link`` files by which udev gives ports their names, at every boot; any backend's."""
    return {
        f"/etc/systemd/network/05-cloudctl-{port.name}.link": "\n".join(
            [
                HEADER,
                "[Match]",
                f"MACAddress={port.mac}",
                f"Kind=!{_STACKED}",
                "",
                "[Link]",
                f"Name={port.name}",
                "",
            ]
        )
        for port in ports(site, node)
        if port.mac
    }


def _unit(port: Port) -> str:
    match = [f"MACAddress={port.mac}", f"Kind=!{_STACKED}"] if port.mac else [f"Name={port.name}"]
    lines = [
        HEADER,
        "[Match]",
        *match,
        "",
        "[Link]",
        f"MTUBytes={port.mtu}",
        f"RequiredForOnline={'yes' if port.network == 'management' else 'no'}",
        "",
        "[Network]",
        "LinkLocalAddressing=no",
        "IPv6AcceptRA=no",
        "LLDP=no",
        # Addresses that others add (a virtual IP) survive a reload of this file.
        "KeepConfiguration=static",
    ]
    if port.address:
        lines.append(f"Address={port.address}")
    if port.gateway:
        lines.append(f"Gateway={port.gateway}")
    return "\n".join(lines) + "\n"


# -- netplan -----------------------------------------------------------------------------------


def netplan_files(site: Site, node: Node) -> dict[str, str]:
    """Return netplan's one file, and the ``.link`` files of ports that are found by their MAC address.

    Names come from our own ``.link`` files, in netplan only the names are used: its ``set-name`` looks for
    the permanent address, which a virtual machine's or container's port may not have.
    """
    lines = [HEADER, "network:", "  version: 2", "  renderer: networkd", "  ethernets:"]
    for port in ports(site, node):
        lines += [
            f"    {port.name}:",
            # Addresses that others add (a virtual IP) survive when the file is applied again.
            "      critical: true",
            "      dhcp4: false",
            "      dhcp6: false",
            "      accept-ra: false",
            "      link-local: []",
            f"      mtu: {port.mtu}",
        ]
        if port.network != "management":
            lines.append("      optional: true")
        if port.address:
            lines.append(f"      addresses: [{port.address}]")
        if port.gateway:
            lines.append(f"      routes: [{{to: default, via: {port.gateway}}}]")
    return {
        "/etc/netplan/90-cloudctl.yaml": "\n".join(lines) + "\n",
        **name_files(site, node, "systemd-networkd"),
    }


# -- NetworkManager ----------------------------------------------------------------------------


def networkmanager_files(site: Site, node: Node) -> dict[str, str]:
    """Return NetworkManager's keyfiles, one a port, and the file that makes it manage just these."""
    found = ports(site, node)
    directory = "/etc/NetworkManager"
    files = {
        f"{directory}/system-connections/cloudctl-{port.name}.nmconnection": _keyfile(node, port)
        for port in found
    }
    lines = [HEADER, "[main]", "no-auto-default=*"]
    for port in found:
        # Also where a rule of the distribution leaves such a port alone. By its name, too: NetworkManager may
        # not know the address yet when it finds the port at a boot.
        match = (f"mac:{port.mac};" if port.mac else "") + f"interface-name:={port.name}"
        lines += ["", f"[device-cloudctl-{port.name}]", f"match-device={match}", "managed=1"]
    files[f"{directory}/conf.d/05-cloudctl.conf"] = "\n".join(lines) + "\n"
    return {**files, **name_files(site, node, "NetworkManager")}


def _keyfile(node: Node, port: Port) -> str:
    lines = [
        HEADER,
        "[connection]",
        f"id=cloudctl-{port.name}",
        # The same at every rendering, another one for each port.
        f"uuid={uuid.uuid5(_NAMESPACE, f'{node.name}/{port.name}')}",
        "type=ethernet",
        "autoconnect=true",
        "autoconnect-priority=100",
    ]
    lines += [] if port.mac else [f"interface-name={port.name}"]
    lines += ["", "[ethernet]"]
    lines += [f"mac-address={port.mac.upper()}"] if port.mac else []
    lines += [f"mtu={port.mtu}", "", "[ipv4]"]
    if port.address:
        lines += ["method=manual", f"address1={port.address}"]
        lines += [f"gateway={port.gateway}"] if port.gateway else ["never-default=true"]
    else:
        lines.append("method=disabled")
    lines += ["", "[ipv6]", "method=disabled"]
    return "\n".join(lines) + "\n"


# -- ifcfg -------------------------------------------------------------------------------------


def ifcfg_files(site: Site, node: Node) -> dict[str, str]:
    """Return the documented ``ifcfg-ethN`` files: their keys in their order, nothing else."""
    return {f"/etc/sysconfig/network-scripts/ifcfg-{port.name}": _ifcfg(port) for port in ports(site, node)}


def _ifcfg(port: Port) -> str:
    lines = [f"DEVICE={port.name}"]
    lines += [f"HWADDR={port.mac.upper()}"] if port.mac else []
    lines += ["BOOTPROTO=none", "ONBOOT=yes"]
    if port.address:
        address = IPv4Interface(port.address)
        lines += [f"IPADDR={address.ip}", f"NETMASK={address.netmask}"]
    lines += [f"GATEWAY={port.gateway}"] if port.gateway else []
    lines += [f"MTU={port.mtu}"] if port.mtu != ETHERNET_MTU else []
    return "\n".join(lines) + "\n"


# -- a node ------------------------------------------------------------------------------------

Backend = Callable[[Site, Node], dict[str, str]]

BACKENDS: Mapping[str, Backend] = {
    "systemd-networkd": networkd_files,
    "netplan": netplan_files,
    "networkmanager": networkmanager_files,
    "ifcfg": ifcfg_files,
}

_PRIVATE = ("/etc/netplan/", "/etc/NetworkManager/system-connections/")
"""Where a backend refuses files that others may read, or warns of them."""


def wanted_backend(site: Site, node: Node) -> str:
    """Return the node's backend as the site says it: the inventory's, else the setting; maybe ``auto``."""
    return str(node.vars.get("network_backend") or site.get("network.backend", AUTO))


def network_spec(site: Site, node: Node) -> dict[str, Any]:
    """Return a node's network as the node-side module takes it.

    Returns:
        ``wanted`` (a backend, or auto), ``ports``, and ``backends``: the files of each that may be chosen,
        or under ``refused`` why it can't be.
    """
    wanted = wanted_backend(site, node)
    found = ports(site, node)
    backends: dict[str, Any] = {}
    for name in BACKENDS if wanted == AUTO else [wanted]:
        reason = refusal(name, found)
        backends[name] = {"refused": reason} if reason else {"files": _files(BACKENDS[name](site, node))}
    return {"wanted": wanted, "ports": [asdict(port) for port in found], "backends": backends}


def refusal(backend: str, found: list[Port]) -> str | None:
    """Return why a backend can't configure these ports, None where it can."""
    if backend in ("networkmanager", "ifcfg") and any(port.virtual for port in found):
        return f"with datapath netdev the tunnel address is on {TENANT_BRIDGE}, which {backend} does not know"
    return None


def _files(files: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"path": path, "content": content, "mode": "0600" if path.startswith(_PRIVATE) else "0644"}
        for path, content in files.items()
    ]
