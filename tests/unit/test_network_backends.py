"""A node's network: what the backends' files say, which one a node gets, what a change does and undoes."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils import cloudctl_net as net
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudctl.engine import netchange, network, plan
from cloudctl.site.model import Interface, Network, Node, Settings, Site

MAC = "52:54:00:aa:bb:01"


def make(
    ports: list[Interface], *, groups: tuple[str, ...] = ("compute",), gateway: str | None = "10.10.10.1",
    values: dict[str, Any] | None = None, own: dict[str, Any] | None = None,
) -> tuple[Site, Node]:  # fmt: skip
    """Return a site with one node that has these ports."""
    networks = {
        name: Network(name, IPv4Network(cidr) if cidr else None, gateway if name == "management" else None)
        for name, cidr in {
            "management": "10.10.10.0/24",
            "tenant": "10.10.20.0/24",
            "storage": "10.10.30.0/24",
            "replication": "10.10.40.0/24",
            "external": None,
        }.items()
    }
    node = Node("n1", groups, "10.10.10.21", {port.name: port for port in ports}, own or {})
    given_settings = {"datapath": "system", "network": {"backend": "auto"}, **(values or {})}
    return Site(Path("/x"), "x", networks, {"n1": node}, Settings(given_settings)), node


def port(name: str, on: str, address: str | None, mac: str | None = None, mtu: int = 1500) -> Interface:
    return Interface(name, on, address, mac, mtu)


COMPUTE = [
    port("eth0", "management", "10.10.10.21", "52:54:00:aa:bb:00"),
    port("eth1", "tenant", "10.10.20.21", MAC, 9000),
    port("eth2", "storage", "10.10.30.21", "52:54:00:aa:bb:02"),
]


def wanted(*names: tuple[str, str | None]) -> list[dict[str, Any]]:
    """Return ports as the node-side module gets them: name and MAC address."""
    return [{"name": name, "mac": mac, "address": None, "virtual": False} for name, mac in names]


# -- rendering ---------------------------------------------------------------------------------


def test_ifcfg_files_are_those_of_the_runbook() -> None:
    assert network.ifcfg_files(*make(COMPUTE)) == {
        "/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nHWADDR=52:54:00:AA:BB:00\nBOOTPROTO=none\n"
        "ONBOOT=yes\nIPADDR=10.10.10.21\nNETMASK=255.255.255.0\nGATEWAY=10.10.10.1\n",
        "/etc/sysconfig/network-scripts/ifcfg-eth1": "DEVICE=eth1\nHWADDR=52:54:00:AA:BB:01\nBOOTPROTO=none\n"
        "ONBOOT=yes\nIPADDR=10.10.20.21\nNETMASK=255.255.255.0\nMTU=9000\n",
        "/etc/sysconfig/network-scripts/ifcfg-eth2": "DEVICE=eth2\nHWADDR=52:54:00:AA:BB:02\nBOOTPROTO=none\n"
        "ONBOOT=yes\nIPADDR=10.10.30.21\nNETMASK=255.255.255.0\n",
    }


def test_an_ifcfg_file_leaves_out_what_is_not_known() -> None:
    files = network.ifcfg_files(*make([port("eth4", "external", None)], groups=("control",), gateway=None))
    assert list(files.values()) == ["DEVICE=eth4\nBOOTPROTO=none\nONBOOT=yes\n"]


def test_networkd_finds_a_port_by_its_mac_and_names_it() -> None:
    files = network.networkd_files(*make([COMPUTE[1]]))
    unit, link = (files[f"/etc/systemd/network/05-cloudctl-eth1.{kind}"] for kind in ("network", "link"))
    assert f"MACAddress={MAC}\n" in unit and "\nName=" not in unit
    assert "MTUBytes=9000\n" in unit and "Address=10.10.20.21/24\n" in unit
    assert re.search(rf"\[Match\]\nMACAddress={MAC}\nKind=!bridge .*\n\n\[Link\]\nName=eth1\n", link)


def test_a_port_without_mac_has_its_name_already() -> None:
    files = network.networkd_files(*make([port("eth1", "tenant", "10.10.20.21")]))
    assert list(files) == ["/etc/systemd/network/05-cloudctl-eth1.network"]
    assert "[Match]\nName=eth1\n" in files["/etc/systemd/network/05-cloudctl-eth1.network"]


def test_netplan_says_all_of_it_in_one_file() -> None:
    files = network.netplan_files(*make(COMPUTE))
    data = yaml.safe_load(files["/etc/netplan/90-cloudctl.yaml"])["network"]
    assert (data["version"], data["renderer"]) == (2, "networkd")
    ports = data["ethernets"]
    assert ports["eth0"]["addresses"] == ["10.10.10.21/24"] and "optional" not in ports["eth0"]
    assert ports["eth0"]["routes"] == [{"to": "default", "via": "10.10.10.1"}]
    assert ports["eth1"]["mtu"] == 9000 and ports["eth1"]["optional"] and "routes" not in ports["eth1"]
    assert not any(
        ports[name][key] for name in ports for key in ("dhcp4", "dhcp6", "accept-ra", "link-local")
    )
    assert sum(path.endswith(".link") for path in files) == 3


def test_networkmanager_has_a_private_keyfile_for_each_port() -> None:
    site, node = make([*COMPUTE[:2], port("eth2", "storage", "10.10.30.21"), port("eth4", "external", None)])
    found = network.network_spec(site, node)["backends"]["networkmanager"]["files"]
    keyfiles = {}
    for entry in found:
        if entry["path"].endswith(".nmconnection"):
            assert entry["mode"] == "0600"
            keyfiles[Path(entry["path"]).stem] = configparser.ConfigParser()
            keyfiles[Path(entry["path"]).stem].read_string(entry["content"])
    one = keyfiles["cloudctl-eth0"]
    assert (one["ipv4"]["address1"], one["ipv4"]["gateway"]) == ("10.10.10.21/24", "10.10.10.1")
    assert one["ethernet"]["mac-address"] == "52:54:00:AA:BB:00" and "interface-name" not in one["connection"]
    assert keyfiles["cloudctl-eth1"]["ethernet"]["mtu"] == "9000"
    assert keyfiles["cloudctl-eth1"]["ipv4"]["never-default"] == "true"
    assert keyfiles["cloudctl-eth2"]["connection"]["interface-name"] == "eth2"
    assert keyfiles["cloudctl-eth4"]["ipv4"]["method"] == "disabled"
    assert len({keyfile["connection"]["uuid"] for keyfile in keyfiles.values()}) == 4
    again = network.network_spec(site, node)["backends"]["networkmanager"]["files"]
    assert again == found, "a profile's uuid must be the same at every rendering"


hosts = st.integers(min_value=2, max_value=254)


@settings(deadline=None)
@given(
    number=hosts, mtu=st.integers(min_value=1280, max_value=9216), gateway=st.none() | hosts,
    mac=st.none() | st.integers(min_value=0, max_value=2**24 - 1), bare=st.booleans(),
)  # fmt: skip
def test_every_backend_says_the_same(
    number: int, mtu: int, gateway: int | None, mac: int | None, bare: bool
) -> None:
    router = f"10.10.10.{gateway}" if gateway else None
    text = None if mac is None else f"52:54:00:{mac >> 16 & 255:02x}:{mac >> 8 & 255:02x}:{mac & 255:02x}"
    site, node = make(
        [
            port("eth0", "management", f"10.10.10.{number}"),
            port("data0", "tenant", None if bare else f"10.10.20.{number}", text, mtu),
        ],
        gateway=router,
    )
    expected = {f"10.10.10.{number}/24"} | (set() if bare else {f"10.10.20.{number}/24"})
    routers = {router} - {None, f"10.10.10.{number}"}
    for name, backend in network.BACKENDS.items():
        files = backend(site, node)
        assert {a for path, content in files.items() for a in net.addresses_in(path, content)} == expected, (
            name
        )
        assert {r for content in files.values() for r in net.gateways_in(content)} == routers, name
        everything = "\n".join(files.values())
        assert text is None or text in everything.lower(), name
        assert mtu == 1500 or re.search(rf"(?i)mtu(bytes)?[=:] ?{mtu}\n", everything), name
        assert all(content.endswith("\n") for content in files.values())


# -- which backend -----------------------------------------------------------------------------

DEBIAN = {"ID": "debian", "VERSION_ID": "13"}
UBUNTU = {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"}
CENTOS7 = {"ID": "centos", "ID_LIKE": "rhel fedora", "VERSION_ID": "7"}
ROCKY9 = {"ID": "rocky", "ID_LIKE": "rhel centos fedora", "VERSION_ID": "9.4"}
FEDORA = {"ID": "fedora", "VERSION_ID": "41"}


@pytest.mark.parametrize(
    ("system", "programs", "running", "expected"),
    [
        (DEBIAN, {"systemd-networkd"}, {"systemd-networkd"}, "systemd-networkd"),
        (DEBIAN, {"systemd-networkd"}, set(), "systemd-networkd"),
        (DEBIAN, {"systemd-networkd", "netplan"}, {"systemd-networkd"}, "netplan"),
        (DEBIAN, {"systemd-networkd", "networkmanager"}, {"networkmanager"}, "networkmanager"),
        (DEBIAN, {"networkmanager"}, {"networkmanager", "systemd-networkd"}, "systemd-networkd"),
        (UBUNTU, {"systemd-networkd", "netplan", "networkmanager"}, {"networkmanager"}, "netplan"),
        (UBUNTU, {"systemd-networkd"}, {"systemd-networkd"}, "systemd-networkd"),
        (CENTOS7, {"networkmanager", "ifcfg"}, {"networkmanager"}, "ifcfg"),
        ({"ID": "rhel", "VERSION_ID": "7.9"}, {"ifcfg"}, set(), "ifcfg"),
        ({"ID": "ol", "ID_LIKE": "fedora", "VERSION_ID": "7.9"}, {"ifcfg"}, set(), "ifcfg"),
        (
            {"ID": "rhel", "VERSION_ID": "8.10"},
            {"networkmanager", "ifcfg"},
            {"networkmanager"},
            "networkmanager",
        ),
        (ROCKY9, {"networkmanager"}, {"networkmanager"}, "networkmanager"),
        (FEDORA, {"networkmanager"}, {"networkmanager"}, "networkmanager"),
        ({"ID": "fedora", "VERSION_ID": "7"}, set(), set(), "networkmanager"),
        (
            {"ID": "opensuse-leap", "ID_LIKE": "suse"},
            {"networkmanager"},
            {"networkmanager"},
            "networkmanager",
        ),
        ({"ID": "arch"}, {"systemd-networkd"}, {"systemd-networkd"}, "systemd-networkd"),
        ({}, {"networkmanager"}, set(), "networkmanager"),
        ({}, set(), set(), "systemd-networkd"),
    ],
)
def test_the_operating_system_decides(
    system: dict[str, str], programs: set[str], running: set[str], expected: str
) -> None:
    assert net.choose_backend("auto", None, system, programs, running) == expected


@settings(deadline=None)
@given(
    wanted=st.sampled_from(net.BACKENDS), current=st.none() | st.sampled_from(net.BACKENDS),
    programs=st.sets(st.sampled_from(net.BACKENDS)), running=st.sets(st.sampled_from(net.BACKENDS)),
    system=st.sampled_from([DEBIAN, UBUNTU, CENTOS7, ROCKY9, {}]),
)  # fmt: skip
def test_what_is_set_wins_then_what_is_there(
    wanted: str, current: str | None, programs: set[str], running: set[str], system: dict[str, str]
) -> None:
    assert net.choose_backend(wanted, current, system, programs, running) == wanted
    chosen = net.choose_backend("auto", current, system, programs, running)
    assert chosen == (current or chosen) and chosen in net.BACKENDS


def test_the_present_backend_is_the_confirmed_one_else_that_of_our_files() -> None:
    unit = "/etc/systemd/network/05-cloudctl-eth0.network"
    assert net.current_backend({"backend": "ifcfg"}, [unit]) == "ifcfg"
    assert net.current_backend({"backend": "nonsense"}, [unit]) == "systemd-networkd"
    assert (
        net.current_backend({}, ["/etc/netplan/90-cloudctl.yaml", unit.replace("network", "link")])
        == "netplan"
    )
    assert net.current_backend({}, []) is None


def test_os_release_is_read_with_its_quotes() -> None:
    text = 'NAME="CentOS Linux"\nVERSION_ID="7"\nID="centos"\n# x=y\nID_LIKE=\'rhel fedora\'\nBROKEN="a\n\n'
    found = net.parse_os_release(text)
    assert (found["NAME"], found["VERSION_ID"], found["ID_LIKE"]) == ("CentOS Linux", "7", "rhel fedora")
    assert "x" not in found and found["BROKEN"] == '"a'


def test_a_node_may_differ_from_the_setting() -> None:
    site, node = make(COMPUTE, values={"network": {"backend": "netplan"}})
    assert list(network.network_spec(site, node)["backends"]) == ["netplan"]
    site, node = make(COMPUTE, values={"network": {"backend": "netplan"}}, own={"network_backend": "ifcfg"})
    assert list(network.network_spec(site, node)["backends"]) == ["ifcfg"]
    site, node = make(COMPUTE, values={"network": {"backend": "ifcfg"}}, own={"network_backend": "auto"})
    assert list(network.network_spec(site, node)["backends"]) == list(net.BACKENDS)


def test_a_bridge_of_the_userspace_datapath_needs_a_backend_that_knows_it() -> None:
    site, node = make(COMPUTE, values={"datapath": "netdev"})
    spec = network.network_spec(site, node)
    assert [name for name, entry in spec["backends"].items() if "refused" in entry] == [
        "networkmanager",
        "ifcfg",
    ]
    bridge = next(entry for entry in spec["ports"] if entry["name"] == "br-data")
    assert bridge["virtual"] and bridge["address"] == "10.10.20.21/24"
    assert next(e for e in spec["ports"] if e["name"] == "eth1")["address"] is None


# -- what fights -------------------------------------------------------------------------------

PORTS = wanted(("eth0", None), ("stor0", MAC))


@pytest.mark.parametrize(
    ("kind", "text", "ours"),
    [
        ("systemd-networkd", "[Match]\nName=eth0\n[Network]\nDHCP=yes\n", True),
        ("systemd-networkd", "[Match]\nName=en* eth*\n", True),
        ("systemd-networkd", "[Match]\nName=eno1\n[Network]\nName=eth0\n", False),
        ("systemd-networkd", "[Match]\nName=!eth0 stor0\n", False),
        ("systemd-networkd", "[Match]\nName=!eth0\n", True),
        ("systemd-networkd", "[Match]\nType=ether\n", True),
        ("systemd-networkd", "[Match]\nDriver=virtio_net\nType=\n", True),
        ("systemd-networkd", "[Match]\nType=wlan\n", False),
        ("systemd-networkd", "[Match]\nType=ether\nName=eth9\n", False),
        ("systemd-networkd", "[Match]\nKind=bridge\n", False),
        ("systemd-networkd", "[Network]\nDHCP=yes\n", False),
        ("systemd-networkd", f"[Match]\nMACAddress={MAC.upper()}\n", True),
        ("systemd-networkd", "[Match]\nMACAddress=52:54:00:00:00:99\n", False),
        ("netplan", "network:\n  ethernets:\n    eth0:\n      dhcp4: true\n", True),
        ("netplan", "network:\n  ethernets:\n    'eth0': {dhcp4: true}\n", True),
        ("netplan", f'network:\n  ethernets:\n    a:\n      match: {{macaddress: "{MAC.upper()}"}}\n', True),
        ("netplan", "network:\n  ethernets:\n    eth9:\n      dhcp4: true\n", False),
        ("netplan", "network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n", True),
        ("netplan", 'network:\n  ethernets:\n    all:\n      match: {name: "eth*"}\n', True),
        ("netplan", "network:\n  ethernets:\n    all:\n      match:\n        name: en*\n", False),
        ("netplan", "network:\n  ethernets:\n    a: {match: {driver: ixgbe}}\n", True),
        ("netplan", "network:\n  ethernets:\n    # eth0: not now\n    eth9: {}\n", False),
        ("networkmanager", "[connection]\ninterface-name=eth0\n", True),
        ("networkmanager", f"[ethernet]\nmac-address={MAC.upper()}\n", True),
        ("networkmanager", "[connection]\ninterface-name=eth01\n", False),
        ("ifcfg", 'DEVICE="eth0"\nONBOOT=yes\n', True),
        ("ifcfg", f"DEVICE=eth7\nHWADDR={MAC.upper()}\n", True),
        ("ifcfg", "DEVICE=eth7\n", False),
        ("ifupdown", "auto eth0\niface eth0 inet dhcp\n", True),
        ("ifupdown", "auto lo\niface lo inet loopback\n", False),
    ],
)
def test_a_file_of_others_is_about_our_ports_or_not(kind: str, text: str, ours: bool) -> None:
    assert net.configures(kind, "/etc/x/ifcfg-name", text, PORTS) is ours


def test_ifupdowns_file_keeps_the_ports_that_are_not_ours() -> None:
    text = (
        "# The loopback\nsource interfaces.d/*\nauto lo eth0\niface lo inet loopback\n\nallow-hotplug eth0\n"
        "iface eth0 inet static\n  address 10.0.0.1/24\n  gateway 10.0.0.254\n\nauto eth9\n"
        "iface eth9 inet dhcp\n"
    )
    assert net.without_ports(text, {"eth0", "eth1"}) == (
        "# The loopback\nsource interfaces.d/*\nauto lo\niface lo inet loopback\n\nauto eth9\n"
        "iface eth9 inet dhcp\n"
    )
    assert net.without_ports(text, {"eth5"}) == text


UNIT = "[Match]\nName=eth0\n"
PLAN = "network:\n  ethernets:\n    eth0: {}\n"


@pytest.mark.parametrize(
    ("backend", "gone"),
    [
        ("systemd-networkd", {"/n/00-a.network", "/k/eth0"}),
        ("netplan", {"/n/00-a.network", "/p/50.yaml", "/k/eth0"}),
        ("networkmanager", {"/n/00-a.network", "/n/80-a.network", "/p/50.yaml", "/k/eth0"}),
        ("ifcfg", {"/n/00-a.network", "/n/80-a.network", "/p/50.yaml", "/k/eth0"}),
    ],
)
def test_only_what_comes_before_ours_or_beside_it_is_taken_away(backend: str, gone: set[str]) -> None:
    files = {
        "systemd-networkd": {
            "/n/00-a.network": UNIT,
            "/n/80-a.network": UNIT,
            "/n/00-b.network": "[Match]\nName=b\n",
        },
        "netplan": {"/p/50.yaml": PLAN},
        "networkmanager": {"/k/eth0": "[connection]\ninterface-name=eth0\n", "/k/w": "[connection]\nid=w\n"},
    }
    found = net.conflicts(backend, files, PORTS, [])
    assert found == dict.fromkeys(gone)


CLOUD_IMAGE = (
    "network:\n  version: 2\n  ethernets:\n    all-en:\n      match:\n        name: en*\n      dhcp4: true\n"
    "    all-eth:\n      match: {name: 'eth*'}\n      dhcp4: true\n"
)
TWO_PORTS = (
    "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: false\n\n      critical: true\n"
    "    office0:\n      addresses: [192.168.1.2/24]\n"
)


def test_a_cloud_images_file_for_all_ports_goes() -> None:
    files = {"netplan": {"/p/90-default.yaml": CLOUD_IMAGE}}
    links = [
        link("eth0", "", None, "10.10.10.11/24"),
        link("eth9", "", None),
        link("en0", "", "tun", "10.9.9.9/24"),
    ]
    assert net.conflicts("networkmanager", files, PORTS, links) == {"/p/90-default.yaml": None}
    assert net.conflicts("systemd-networkd", files, PORTS, links) == {}, "comes after ours"


def test_what_stands_on_a_port_or_is_no_ethernet_is_no_other_port() -> None:
    text = f"network:\n  ethernets:\n    a:\n      match: {{macaddress: '{MAC}'}}\n      gateway4: 0.0.0.0\n"
    links = [link("stor0", MAC), link("br0", MAC, "bridge", "10.10.10.11/24"), link("gre0", "0.0.0.0", "gre")]
    assert net.conflicts("netplan", {"netplan": {"/p": text}}, PORTS, links) == {"/p": None}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("netplan", CLOUD_IMAGE),
        ("netplan", "network: {ethernets: {eth0: {dhcp4: true}, eth9: {dhcp4: true}}}\n"),
        ("netplan", "network:\n  ethernets:\n    eth0: {dhcp4: true,\n    dhcp6: true}\n    eth9: {}\n"),
        ("netplan", "network:\n  ethernets:\n    eth0: {}\n  vlans:\n    eth9: {link: eth0, id: 9}\n"),
        ("systemd-networkd", "[Match]\nName=eth0 eth9\n"),
        ("systemd-networkd", "[Match]\nType=ether\n"),
    ],
)
def test_a_file_that_another_port_needs_is_not_taken_away(kind: str, text: str) -> None:
    links = [link("eth0"), link("eth9", "", None, "192.168.1.2/24")]
    with pytest.raises(net.NetworkError) as caught:
        net.conflicts("networkmanager", {kind: {"/x/50": text}}, PORTS, links)
    assert caught.value.ref == "network-backend-refused"
    assert "/x/50 configures eth9 as well" in str(caught.value) and "/x/50" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("netplan", "network:\n  ethernets: {eno1: {}}\n  bonds:\n    eth0: {interfaces: [eno1]}\n"),
        ("ifupdown", "auto eth0\niface eth0 inet manual\n  bond-slaves eno1\n"),
        ("networkmanager", "[connection]\ntype=bond\ninterface-name=eth0\n"),
    ],
)
def test_a_file_that_makes_a_port_is_not_taken_away(kind: str, text: str) -> None:
    links = [link("eth0", "", "bond"), link("eno1")]
    with pytest.raises(net.NetworkError, match="/x/50 makes eth0") as caught:
        net.conflicts("networkmanager", {kind: {"/x/50": text}}, PORTS, links)
    assert caught.value.ref == "network-backend-refused"
    # networkd makes it by another file.
    unit = {"systemd-networkd": {"/x/00-a.network": UNIT}}
    assert net.conflicts("systemd-networkd", unit, PORTS, links) == {"/x/00-a.network": None}


def test_netplans_file_keeps_the_ports_that_are_not_ours() -> None:
    links = [link("eth0", "", None, "10.10.10.11/24"), link("office0"), link("br0", MAC, "bridge")]
    found = net.conflicts("networkmanager", {"netplan": {"/p/50.yaml": TWO_PORTS}}, PORTS, links)
    rest = found["/p/50.yaml"]
    assert rest is not None
    assert yaml.safe_load(rest)["network"]["ethernets"] == {"office0": {"addresses": ["192.168.1.2/24"]}}
    # Another port that this machine does not have needs nothing.
    assert net.conflicts("netplan", {"netplan": {"/p": TWO_PORTS}}, PORTS, [link("eth0")]) == {"/p": None}
    only_ours = "network:\n  ethernets:\n    eth0: {}\n  bridges:\n    br0: {}\n"
    assert net.without_blocks(only_ours, {"eth0"}) == "network:\n  bridges:\n    br0: {}\n"


def test_a_stanza_of_ours_goes_from_a_file_that_stays() -> None:
    text = "auto eth0\niface eth0 inet dhcp\nauto eth9\niface eth9 inet dhcp\n"
    found = net.conflicts("systemd-networkd", {"ifupdown": {"/etc/network/interfaces": text}}, PORTS, [])
    assert found == {"/etc/network/interfaces": "auto eth9\niface eth9 inet dhcp\n"}


RUNNING = {"active": True, "enabled": True}
OFF = {"active": False, "enabled": False}
NETWORKD, NM = "systemd-networkd.service", "NetworkManager.service"


@pytest.mark.parametrize(
    ("backend", "remaining", "states", "expected"),
    [
        ("systemd-networkd", {}, {NETWORKD: RUNNING}, []),
        ("systemd-networkd", {}, {NETWORKD: {"active": True, "enabled": False}}, [("start", NETWORKD)]),
        ("netplan", {}, {NETWORKD: RUNNING, NM: OFF}, []),
        ("networkmanager", {}, {NETWORKD: RUNNING, NM: OFF}, [("stop", NETWORKD), ("start", NM)]),
        ("networkmanager", {"systemd-networkd": ["/n/b"]}, {NETWORKD: RUNNING, NM: RUNNING}, []),
        ("systemd-networkd", {}, {NETWORKD: OFF, NM: RUNNING}, [("stop", NM), ("start", NETWORKD)]),
        ("systemd-networkd", {"networkmanager": ["/k/w"]}, {NETWORKD: RUNNING, NM: RUNNING}, []),
        ("ifcfg", {}, {NM: RUNNING}, []),
    ],
)
def test_daemons_that_have_nothing_left_to_do_are_switched_off(
    backend: str, remaining: dict[str, list[str]], states: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert net.daemon_changes(backend, remaining, states) == expected


@settings(deadline=None)
@given(
    states=st.fixed_dictionaries(
        {NETWORKD: st.sampled_from([RUNNING, OFF]), NM: st.sampled_from([RUNNING, OFF])}
    ),
    backend=st.sampled_from(net.BACKENDS),
)
def test_daemons_are_as_before_after_undoing(states: dict[str, Any], backend: str) -> None:
    now = {unit: state["active"] for unit, state in states.items()}
    changes = net.daemon_changes(backend, {}, states)
    for action, unit in [*changes, *net.daemons_back(changes, states)]:
        now[unit] = action == "start"
    assert now == {unit: state["active"] for unit, state in states.items()}


# -- names of ports ----------------------------------------------------------------------------


def link(name: str, mac: str = "", kind: str | None = None, *addresses: str) -> dict[str, Any]:
    return {"name": name, "mac": mac, "kind": kind, "addresses": list(addresses)}


def test_a_port_with_another_name_is_renamed() -> None:
    links = [link("enp3s0", MAC), link("br0", MAC, "bridge"), link("eth0", "52:54:00:00:00:01")]
    assert net.renames(links, PORTS) == [("enp3s0", "stor0")]
    assert net.renames([link("stor0", MAC)], PORTS) == []
    assert net.renames([], PORTS) == []


def test_a_name_that_another_port_keeps_is_an_error() -> None:
    links = [link("enp3s0", MAC), link("stor0", "52:54:00:00:00:01")]
    with pytest.raises(net.NetworkError) as caught:
        net.renames(links, PORTS)
    assert caught.value.ref == "network-port-name"


@settings(deadline=None)
@given(st.permutations(["eth0", "eth1", "eth2", "eth3"]), st.integers(min_value=1, max_value=4))
def test_ports_swap_their_names(names: list[str], count: int) -> None:
    links = [link(f"eth{number}", f"52:54:00:00:00:0{number}") for number in range(4)]
    ports = wanted(*((name, f"52:54:00:00:00:0{number}") for number, name in enumerate(names[:count])))
    try:
        moves = net.renames(links, ports)
    except net.NetworkError:
        leaving = {f"eth{n}" for n, name in enumerate(names[:count]) if name != f"eth{n}"}
        assert any(name not in leaving for n, name in enumerate(names[:count]) if name != f"eth{n}")
        return
    present = {entry["name"]: entry["mac"] for entry in links}
    for line in net.rename_lines(moves):
        if match := re.fullmatch(r"ip link set dev (\S+) name (\S+)", line):
            assert match[2] not in present
            present[match[2]] = present.pop(match[1])
    assert all(present[entry["name"]] == entry["mac"] for entry in ports)


@settings(deadline=None)
@given(order=st.permutations(["eth0", "eth1", "eth2"]))
def test_at_a_boot_ports_get_their_names_whatever_the_kernel_called_them(order: list[str]) -> None:
    files = network.networkd_files(*make(COMPUTE))
    drop_in = files["/etc/systemd/system/systemd-networkd.service.d/05-cloudctl-ports.conf"]
    assert "ExecStartPre=-+/bin/sh /etc/cloudctl/name-ports\n" in drop_in
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        macs = {name: str(interface.mac) for interface, name in zip(COMPUTE, order, strict=True)}
        present = named(root, files, macs)
        assert present == {interface.name: interface.mac for interface in COMPUTE}
        # It works once a boot.
        (root / "net/eth0").rename(root / "net/other")
        subprocess.run(["sh", root / "script"], env={"PATH": f"{root}:/usr/bin:/bin"})
        assert (root / "net/other").exists()


def named(root: Path, files: dict[str, str], macs: dict[str, str]) -> dict[str, str]:
    """Run what names ports on a machine with these devices (name to MAC); return their names after it."""
    for name, mac in macs.items():
        (root / "net" / name).mkdir(parents=True)
        (root / "net" / name / "address").write_text(f"{mac}\n")
    # `ip link set dev A name B` moves a directory, and fails where there is a B or it is too long.
    (root / "ip").write_text(
        f"""#!/bin/sh
cd {root}/net
echo "$*" >>{root}/called
case "$*" in
  *"show dev br"*) echo '[{{"ifname":"x","linkinfo":{{"info_kind":"openvswitch"}}}}]' ;;
  *"show dev"*) echo '[{{"ifname":"x","linkinfo":{{"info_kind":"veth","info_slave_kind":"bridge"}}}}]' ;;
  *" name "*) [ ! -e "$6" ] && [ ${{#6}} -le 15 ] && mv "$4" "$6" ;;
esac
"""
    )
    (root / "ip").chmod(0o755)
    script = files["/etc/cloudctl/name-ports"].replace("/sys/class/net", f"{root}/net")
    script = script.replace("/run/cloudctl", f"{root}/cloudctl").replace("udevadm settle", "true")
    (root / "script").write_text(script)
    subprocess.run(["sh", root / "script"], env={"PATH": f"{root}:/usr/bin:/bin"}, check=True)
    return {place.name: (place / "address").read_text().strip() for place in (root / "net").iterdir()}


def test_a_bridge_with_a_ports_address_is_never_renamed(tmp_path: Path) -> None:
    files = network.networkd_files(*make(COMPUTE))
    bridges = {"br-ex": "52:54:00:aa:bb:00", "br-int": MAC}
    # eth0 has its name; eth1 has another one still.
    macs = {**bridges, "eth0": "52:54:00:aa:bb:00", "zz1": MAC}
    found = named(tmp_path, files, macs)
    assert found == {**bridges, "eth0": "52:54:00:aa:bb:00", "eth1": MAC}
    assert not re.search(r"set dev (br|eth0)", (tmp_path / "called").read_text())


def test_long_names_are_swapped(tmp_path: Path) -> None:
    ports = [
        port("enp129s0f0np0", "management", "10.10.10.21", "52:54:00:aa:bb:00"),
        port("enp129s0f1np1", "tenant", "10.10.20.21", MAC),
    ]
    macs = {"enp129s0f0np0": MAC, "enp129s0f1np1": "52:54:00:aa:bb:00"}
    found = named(tmp_path, network.networkd_files(*make(ports)), macs)
    assert found == {"enp129s0f0np0": "52:54:00:aa:bb:00", "enp129s0f1np1": MAC}


def test_both_sides_know_the_same_kinds_of_devices() -> None:
    assert set(network._STACKED.split()) == net.STACKED


def test_names_are_nobodys_business_where_no_address_is_given() -> None:
    files = network.netplan_files(*make([port("eth0", "management", "10.10.10.21")]))
    assert list(files) == ["/etc/netplan/90-cloudctl.yaml"]


# -- addresses ---------------------------------------------------------------------------------


def test_only_addresses_of_the_old_files_are_removed() -> None:
    before = {"/n/05-cloudctl-eth0.network": "Address=10.10.10.11/24\nGateway=10.10.10.1\n"}
    after = {"/n/05-cloudctl-eth0.network": "Address=10.10.10.12/24\n"}
    links = [
        link("eth0", "", None, "10.10.10.11/24", "10.10.10.250/32"),
        link("eth1", "", None, "10.10.20.11/24"),
    ]
    assert net.leftovers(before, after, links) == [
        "ip route del default via 10.10.10.1 2>/dev/null || true",
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/promote_secondaries || true",
        "ip address del 10.10.10.11/24 dev eth0 2>/dev/null || true",
    ]
    assert net.leftovers(before, before, links) == []
    # A second file goes that says what ours, which stays, says.
    assert net.leftovers(before, {}, links, frozenset({"10.10.10.11/24", "10.10.10.1"})) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("IPADDR=10.0.0.1\nNETMASK=255.255.255.0\n", ["10.0.0.1/24"]),
        ('IPADDR="10.0.0.1"  # office\nNETMASK="255.255.0.0"\n', ["10.0.0.1/16"]),
        ("IPADDR='10.0.0.1'\nPREFIX=24\n", ["10.0.0.1/24"]),
        ("IPADDR0=10.0.0.1\nPREFIX0=24\nIPADDR1=10.0.1.1\nPREFIX1=25\n", ["10.0.0.1/24", "10.0.1.1/25"]),
        ("IPADDR=$address\nPREFIX=24\nIPADDR1=10.0.0.1\nNETMASK1=\n", []),
        ("BOOTPROTO=dhcp\n", []),
    ],
)
def test_an_ifcfg_file_is_read_as_the_shell_does(text: str, found: list[str]) -> None:
    assert net.addresses_in("/x/ifcfg-eth0", text) == found


def test_ifupdown_may_say_the_mask_in_a_line_of_its_own() -> None:
    text = "iface eth0 inet static\n  address 10.0.0.1\n  netmask 255.255.255.0\n  gateway 10.0.0.254\n"
    path = "/etc/network/interfaces"
    assert net.addresses_in(path, text + "iface eth1 inet static\n  address 10.0.1.1/25\n") == [
        "10.0.0.1/24",
        "10.0.1.1/25",
    ]
    assert net.addresses_in(path, "iface eth0 inet dhcp\n  post-up ip route add 10.9.0.0/16 dev eth0\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "      gateway4: 10.10.10.1\n",
        "    eth0: {gateway4: '10.10.10.1'}\n",
        "      routes: [{to: default, via: 10.10.10.1}]\n",
        "  gateway 10.10.10.1\n",
        "address1=10.10.10.21/24,10.10.10.1\n",
        "gateway=10.10.10.1\n",
        'GATEWAY="10.10.10.1"\n',
    ],
)
def test_a_router_is_found_in_every_kind_of_file(text: str) -> None:
    assert net.gateways_in(text) == ["10.10.10.1"]


def test_what_was_there_before_a_change_stays_when_it_is_taken_back() -> None:
    ports = [{"name": "eth0", "address": "10.10.10.11/24"}, {"name": "eth1", "address": "10.10.20.11/24"}]
    after = {f"/n/05-cloudctl-{port['name']}.network": f"Address={port['address']}\n" for port in ports}
    # An installer's file that the change left alone gives eth0 the same address.
    had = [link("eth0", "", None, "10.10.10.11/24", "10.10.10.250/32"), link("eth1", "", None)]
    drop = "ip address del 10.10.20.11/24 dev eth1 2>/dev/null || true"
    lines = net.undo_lines({}, after, ports, had, [], ["reload"])
    assert lines[:2] == [drop, "reload"] and lines[3] == drop
    # Nothing may have read the old files. The virtual address may be on another node by now.
    add = "ip address add 10.10.10.11/24 dev eth0 2>/dev/null || true"
    assert lines[4:] == ["ip link set dev eth0 up", add]


def test_the_default_route_of_before_stays_or_comes_back() -> None:
    ports = [{"name": "eth0", "address": "10.10.10.11/24"}]
    after = {"/n/05-cloudctl-eth0.network": "Address=10.10.10.11/24\nGateway=10.10.10.1\n"}
    had = [link("eth0", "", None, "10.10.10.11/24")]
    routes = [
        {"dst": "default", "gateway": "10.10.10.1", "dev": "eth0", "protocol": "dhcp", "metric": 100}
        | {"prefsrc": "10.10.10.11", "flags": ["onlink"]}
    ]
    lines = net.undo_lines({}, after, ports, had, routes, [])
    assert not any("del default" in line for line in lines)
    back = "ip route replace default via 10.10.10.1 dev eth0 proto dhcp metric 100 src 10.10.10.11 onlink"
    assert lines[-1] == f"{back} || true"
    without = net.undo_lines({}, after, ports, had, [], [])
    assert "ip route del default via 10.10.10.1 2>/dev/null || true" in without


def test_what_read_the_old_files_takes_them_up_again() -> None:
    profile = {"/etc/NetworkManager/system-connections/Wired.nmconnection": "[connection]\n"}
    stanza = {"/etc/network/interfaces": "auto eth0\niface eth0 inet static\n  address 10.0.0.5\n"}
    script = {"/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\n"}
    on, off = {NETWORKD: RUNNING, NM: RUNNING}, {NETWORKD: OFF, NM: OFF}
    up = "nmcli --wait 15 connection up uuid ab-1"

    def told(before: dict[str, str], units: dict[str, Any], profiles: dict[str, str]) -> str:
        return "\n".join(net.back_lines(before, ["eth0", "eth1"], units, profiles))

    lines = told(profile, {NM: RUNNING}, {"eth0": "ab-1"})
    assert lines.index("nmcli connection reload") < lines.index(up) and "networkctl" not in lines
    lines = told({}, on, {})
    assert lines.index("nmcli connection reload") < lines.index("networkctl reload") and "uuid" not in lines
    lines = told(stanza, off, {})
    assert lines.endswith("ifup --force --ignore-errors eth0") and "networkctl" not in lines
    assert told(script, off, {}).endswith("ifdown eth0 || true\nifup eth0")
    # On the RHEL family NetworkManager may read these files.
    assert "ifup" not in told(script, {NM: RUNNING}, {"eth0": "ab-1"})


def test_networkmanagers_profiles_are_those_of_the_ports_that_it_configures() -> None:
    status = "eth0:connected:ab-1\neth1:connected (externally):cd-2\neth2:disconnected:\nlo:unmanaged:\n"
    assert net.parse_profiles(status) == {"eth0": "ab-1"} and net.parse_profiles("") == {}


def test_an_address_that_moved_goes_back_to_its_port() -> None:
    before = {"/n/05-cloudctl-eth0.network": "Address=10.10.10.11/24\n"}
    after = {"/n/05-cloudctl-eth1.network": "Address=10.10.10.11/24\n"}
    ports = [{"name": "eth0", "address": None}, {"name": "eth1", "address": "10.10.10.11/24"}]
    had = [link("eth0", "", None, "10.10.10.11/24"), link("eth1", "", None)]
    drop = "ip address del 10.10.10.11/24 dev eth1 2>/dev/null || true"
    assert net.undo_lines(before, after, ports, had, [], ["reload"])[:2] == [drop, "reload"]


def test_an_address_that_moves_leaves_its_port_first() -> None:
    before = {"/n/05-cloudctl-eth0.network": "Address=10.10.10.11/24\n"}
    ports = [{"name": "eth1", "mac": None, "address": "10.10.10.11/24"}]
    links = [link("eth0", "", None, "10.10.10.11/24")]
    assert net.moved(before, ports, links) == ["ip address del 10.10.10.11/24 dev eth0 2>/dev/null || true"]
    assert net.moved({}, ports, links) == []


# -- the scripts -------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that plays the node's: programs that only write down how they were called."""
    monkeypatch.setattr(net, "STATE", str(tmp_path / "state"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "networkctl", "netplan", "nmcli", "udevadm", "ip", "ifup", "ifdown"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/called\n')
        (programs / name).chmod(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "called").touch()
    (tmp_path / "state/pending/files").mkdir(parents=True)
    return tmp_path


def play(machine: Path, script: str, *arguments: str) -> int:
    """Run a script of the pending change with the machine's programs."""
    environment = {**os.environ, "PATH": f"{machine}/bin:/usr/bin:/bin"}
    return subprocess.run(["sh", machine / "state/pending" / script, *arguments], env=environment).returncode


def pending(
    machine: Path, forward: list[str], renamed: list[tuple[str, str]] | None = None
) -> tuple[Path, Path]:
    """Prepare a change: one file was changed, another is new."""
    old, new = machine / "etc/old file", machine / "etc/new"
    place = machine / "state/pending"
    (place / "files/0").write_text("before\n")
    old.write_text("after\n")
    new.write_text("new\n")
    saved = [{"path": str(old), "copy": "files/0"}, {"path": str(new), "copy": None}]
    daemons = [("stop", NM), ("start", NETWORKD)]
    (place / "undo").write_text(net.undo_script(saved, daemons, renamed or [], ["networkctl reload"]))
    (place / "apply").write_text(net.apply_script(forward))
    return old, new


def test_the_old_files_come_back_and_are_taken_up(machine: Path) -> None:
    old, new = pending(machine, [], [("enp3s0", "stor0")])
    (machine / "state/pending/started").touch()
    assert play(machine, "undo", "timer") == 0
    assert old.read_text() == "before\n" and not new.exists()
    called = (machine / "called").read_text()
    assert "systemctl stop NetworkManager.service" in called and "networkctl reload" in called
    assert called.index("link set dev stor0 down") < called.index("link set dev cctl0 name enp3s0")
    assert (machine / "state/undone/reason").read_text() == "timer\n"
    assert not (machine / "state/pending").exists()


def test_a_port_that_was_not_renamed_yet_is_not_renamed_back(machine: Path) -> None:
    pending(machine, [], [("enp3s0", "stor0")])
    play(machine, "undo", "timer")
    assert "ip link" not in (machine / "called").read_text()


def test_at_a_boot_only_files_and_daemons_are_put_back(machine: Path) -> None:
    old, _new = pending(machine, [])
    play(machine, "undo", "boot")
    called = (machine / "called").read_text()
    assert old.read_text() == "before\n"
    assert "networkctl" not in called and "systemctl start --no-block systemd-networkd.service" in called
    # udev gives the ports their old names before anything configures them.
    start = called.index("systemctl start")
    assert called.index("udevadm trigger") < called.index("udevadm settle") < start


def test_at_a_boot_nothing_waits_for_a_disk_that_udev_is_still_to_find() -> None:
    words = {
        key: value.split() for key, _equals, value in (x.partition("=") for x in net.BOOT_UNIT.splitlines())
    }
    assert words["RequiresMountsFor"] == ["/var/lib/cloudctl/network", "/etc"]
    assert "local-fs.target" not in words["After"]
    assert not any("udev" in unit for unit in words["Before"])


def test_taking_a_change_back_ends_all_of_what_takes_it_up(machine: Path) -> None:
    pending(machine, [])
    play(machine, "undo", "timer")
    called = (machine / "called").read_text().splitlines()
    kill = called.index("systemctl kill --signal=KILL cloudctl-network-apply.service")
    assert called.index("systemctl stop cloudctl-network-apply.timer") < kill


def test_a_confirmed_change_is_not_undone(machine: Path) -> None:
    old, _new = pending(machine, [])
    undo = (machine / "state/pending/undo").read_text()
    (machine / "state/pending").rename(machine / "state/kept")
    (machine / "late").write_text(undo)
    assert subprocess.run(["sh", machine / "late", "timer"]).returncode == 0
    assert old.read_text() == "after\n"


def test_a_change_that_works_leaves_its_result(machine: Path) -> None:
    old, _new = pending(machine, ["networkctl reload"])
    assert play(machine, "apply") == 0
    assert (machine / "state/pending/result").read_text().startswith("0 ") and old.read_text() == "after\n"


def test_a_change_that_cannot_be_taken_up_is_undone_at_once(machine: Path) -> None:
    old, new = pending(machine, ["false", "networkctl reload"])
    play(machine, "apply")
    assert old.read_text() == "before\n" and not new.exists()
    assert (machine / "state/undone/reason").read_text() == "failed\n"
    # The service that runs this is not told to stop itself.
    assert "cloudctl-network-apply" not in (machine / "called").read_text()


# -- comparing ---------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's directories below a temporary one, without devices, with systemd-networkd running."""
    monkeypatch.setattr(net, "OURS", tuple(f"{tmp_path}{path}" for path in net.OURS))
    monkeypatch.setattr(net, "OTHERS", {kind: f"{tmp_path}{path}" for kind, path in net.OTHERS.items()})
    for name in ("STATE", "RECORD", "CLOUD_INIT", "CLOUD_INIT_OFF", "SCRIPTS"):
        monkeypatch.setattr(net, name, f"{tmp_path}{getattr(net, name)}")
    monkeypatch.setattr(net, "read_links", list)
    monkeypatch.setattr(net, "read_routes", list)
    monkeypatch.setattr(net, "read_profiles", dict)
    monkeypatch.setattr(net, "read_units", lambda: {NETWORKD: RUNNING})
    found = {"networkctl": "/x", "apt-get": "/x"}
    monkeypatch.setattr(net.shutil, "which", lambda name, path=None: found.get(name))
    return tmp_path


def rendered(root: Path, backend: str) -> dict[str, Any]:
    site, node = make([port("eth0", "management", "10.10.10.21")], own={"network_backend": backend})
    spec = network.network_spec(site, node)
    for entry in spec["backends"].values():
        for file in entry["files"]:
            file["path"] = f"{root}{file['path']}"
    return spec


def write_wanted(root: Path, backend: str) -> None:
    for entry in rendered(root, backend)["backends"][backend]["files"]:
        path = Path(entry["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(entry["content"])
        path.chmod(int(entry["mode"], 8))


def test_a_node_that_is_as_wanted_has_no_change(root: Path) -> None:
    write_wanted(root, "systemd-networkd")
    (root / "etc/systemd/network/80-installer-eth0.network").write_text(UNIT)
    found = net.compare(rendered(root, "auto"))
    assert found["backend"] == found["from"] == "systemd-networkd"
    assert not net.is_change(found) and plan.network_changes(net.public(found)) == []


def test_a_change_that_nobody_confirmed_is_not_the_nodes_network_yet(root: Path) -> None:
    write_wanted(root, "systemd-networkd")
    Path(net.STATE, net.PENDING).mkdir(parents=True)
    found = net.compare(rendered(root, "auto"))
    assert (found["pending"], found["from"], found["files"]) == (True, None, [])
    assert net.is_change(found)


def test_switching_takes_the_old_files_away_and_shows_them(root: Path) -> None:
    write_wanted(root, "systemd-networkd")
    found = net.compare(rendered(root, "netplan"))
    assert (found["from"], found["backend"], found["packages"]) == (
        "systemd-networkd",
        "netplan",
        ["netplan.io"],
    )
    actions = {Path(change["path"]).name: change["action"] for change in found["files"]}
    assert actions == {"05-cloudctl-eth0.network": "remove", "90-cloudctl.yaml": "create"}
    assert "-Address=10.10.10.21/24" in found["files"][0]["diff"]
    assert "+      addresses: [10.10.10.21/24]" in found["files"][1]["diff"]


def test_a_daemon_that_another_port_still_needs_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [link("eth0"), link("office0", "", None, "192.168.1.2/24")]
    monkeypatch.setattr(net, "read_links", lambda: links)
    file = root / "etc/netplan/50-installer.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TWO_PORTS)
    found = net.compare(rendered(root, "networkmanager"))
    assert "office0" in found["texts"][str(file)] and ("stop", NETWORKD) not in found["daemons"]
    file.write_text(CLOUD_IMAGE)
    links.pop()
    found = net.compare(rendered(root, "networkmanager"))
    assert found["texts"][str(file)] is None and ("stop", NETWORKD) in found["daemons"]


def test_a_remembered_ifcfg_file_goes_as_well(root: Path) -> None:
    left = root / "etc/sysconfig/network-scripts/ifcfg-eth9"
    left.parent.mkdir(parents=True)
    left.write_text("DEVICE=eth9\n")
    record = Path(net.RECORD)
    record.parent.mkdir(parents=True)
    record.write_text(f'{{"backend": "ifcfg", "files": ["{left}"]}}')
    found = net.compare(rendered(root, "systemd-networkd"))
    assert {(change["path"], change["action"]) for change in found["files"]} >= {(str(left), "remove")}


def test_cloud_init_is_told_to_leave_the_network_alone(root: Path) -> None:
    write_wanted(root, "systemd-networkd")
    Path(net.CLOUD_INIT).mkdir(parents=True)
    found = net.compare(rendered(root, "systemd-networkd"))
    assert [change["path"] for change in found["files"]] == [net.CLOUD_INIT_OFF]


def test_a_backend_whose_programs_cannot_be_had_is_an_error(root: Path) -> None:
    with pytest.raises(net.NetworkError) as caught:
        net.compare(rendered(root, "ifcfg"))
    assert caught.value.ref == "network-backend-missing"


def test_ifcfg_needs_the_directory_as_well_as_a_program_that_debian_has_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net.shutil, "which", lambda name, path=None: "/x")
    with pytest.raises(net.NetworkError, match=r"needs ifup with .*/network-scripts, which is not"):
        net.compare(rendered(root, "ifcfg"))
    (root / "etc/sysconfig/network-scripts").mkdir(parents=True)
    assert net.compare(rendered(root, "ifcfg"))["backend"] == "ifcfg"


def test_an_ifcfg_file_names_the_mac_address_that_the_node_knows(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net.shutil, "which", lambda name, path=None: "/x")
    monkeypatch.setattr(net, "read_links", lambda: [link("eth0", MAC)])
    file = installed(root, "/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nBOOTPROTO=dhcp\n")
    text = net.compare(rendered(root, "ifcfg"))["texts"][str(file)]
    assert text.startswith(f"DEVICE=eth0\nHWADDR={MAC.upper()}\nBOOTPROTO=none\nONBOOT=yes\nIPADDR=")
    file.write_text(text)
    file.chmod(0o644)
    assert net.compare(rendered(root, "ifcfg"))["files"] == []
    given = "DEVICE=eth0\nHWADDR=52:54:00:00:00:01\n"
    assert net.with_hwaddr("/x/ifcfg-eth0", given, [link("eth0", MAC)]) == given
    assert net.with_hwaddr("/x/ifcfg-eth1", "DEVICE=eth1\n", [link("eth0", MAC)]) == "DEVICE=eth1\n"


def test_a_refused_backend_is_an_error(root: Path) -> None:
    spec = rendered(root, "ifcfg")
    spec["backends"]["ifcfg"] = {"refused": "because"}
    with pytest.raises(net.NetworkError) as caught:
        net.compare(spec)
    assert caught.value.ref == "network-backend-refused" and "because" in str(caught.value)


# -- changing and confirming -------------------------------------------------------------------


def load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "playbooks/library/cloudctl_network.py"
    spec = importlib.util.spec_from_file_location("cloudctl_network", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Changed:
    """A node whose network was changed, and waits for the confirmation.

    Attributes:
        called: programs that were run.
    """

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.module = load()
        self.called: list[str] = []
        self.place = place
        patch.setattr(net, "STATE", str(place))
        patch.setattr(net, "RECORD", str(place / "backend.json"))
        for name in ("pending", "undone"):
            patch.setattr(self.module, name.upper(), str(place / name))
        patch.setattr(self.module, "run", self.run)
        patch.setattr(self.module, "connection", lambda: "77/9000")
        patch.setattr(self.module, "connected_at", lambda name: 100.0)
        patch.setattr(self.module, "missing_addresses", lambda ports, seconds: [])
        (place / "pending").mkdir(parents=True)
        info = {"token": "t", "connection": "5/1", "backend": "netplan", "files": ["/a"], "ports": []}
        (place / "pending/info.json").write_text(json.dumps(info))
        (place / "pending/result").write_text("0 99.5\n")

    def run(self, argv: list[str], **_options: object) -> str:
        self.called.append(" ".join(argv))
        if argv[1].endswith("pending/undo"):
            (self.place / "pending").rename(self.place / "undone")
            (self.place / "undone/reason").write_text(argv[2])
        return ""


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changed:
    return Changed(tmp_path / "state", monkeypatch)


def test_a_change_of_a_killed_run_is_taken_over_where_it_is_the_wanted_one(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"backend": "netplan", "from": None, "pending": True}
    same |= {key: [] for key in ("packages", "files", "daemons", "renames")}
    monkeypatch.setattr(net, "compare", lambda network: same)
    answer = changed.module.apply({}, 35)
    assert (answer["token"], answer["taken_over"]) == ("t", True)
    assert not changed.called, "its timer goes on"
    assert changed.module.confirm("t", []) == {"state": "confirmed"}


def test_a_new_connection_confirms_and_stops_the_timer(changed: Changed) -> None:
    assert changed.module.confirm("t", []) == {"state": "confirmed"}
    assert "systemctl stop cloudctl-network-undo.timer" in changed.called
    assert not (changed.place / "pending").exists()
    record = net.read_record()
    assert (record["backend"], record["files"]) == ("netplan", ["/a"])
    assert changed.module.confirm("t", []) == {"state": "confirmed"}, (
        "an answer that got lost is asked for again"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connection", lambda: "5/1"),
        ("connected_at", lambda name: 99.5),
        ("taken_up", lambda: None),
    ],
)
def test_a_connection_that_proves_nothing_does_not_confirm(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(changed.module, name, value)
    assert changed.module.confirm("t", [])["state"] == "pending"
    assert (changed.place / "pending").exists() and not changed.called


def test_an_address_that_did_not_come_up_is_no_success(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed.module, "missing_addresses", lambda ports, seconds: ["10.0.0.1/24 on eth1"])
    found = changed.module.confirm("t", [])
    assert (found["state"], found["reason"]) == ("undone", "refused") and "eth1" in found["why"]


def test_the_deploy_node_must_reach_another(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed.module, "reaches", lambda address: address == "10.0.0.2")
    assert changed.module.confirm("t", ["10.0.0.1", "10.0.0.2"])["state"] == "confirmed"


def test_a_deploy_node_that_reaches_nobody_goes_back(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed.module, "reaches", lambda address: False)
    assert changed.module.confirm("t", ["10.0.0.1"])["state"] == "undone"


def test_another_change_is_not_confirmed(changed: Changed) -> None:
    assert changed.module.confirm("other", []) == {"state": "unknown"}
    assert (changed.place / "pending").exists()


def test_a_change_that_was_taken_back_says_why(changed: Changed) -> None:
    changed.run(["sh", "pending/undo", "timer"])
    assert changed.module.confirm("t", [])["reason"] == "timer"


def test_nothing_to_change_is_nothing_done(root: Path, changed: Changed) -> None:
    (changed.place / "pending").rename(changed.place / "gone")
    write_wanted(root, "systemd-networkd")
    assert changed.module.apply(rendered(root, "auto"), 35) == {"changed": False, "done": []}
    assert changed.called == ["systemctl is-active cloudctl-network-undo.service"]
    assert not (changed.place / "pending").exists()


def test_an_earlier_change_is_waited_for_until_it_is_over(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter(["active\n", "deactivating\n", "inactive\n"])

    def run(argv: list[str], **_options: object) -> str:
        return next(ends) if "is-active" in argv else ""

    def sleep(_seconds: float) -> None:
        if (changed.place / "pending").exists():
            (changed.place / "pending").rename(changed.place / "undone")
            write_wanted(root, "systemd-networkd")

    monkeypatch.setattr(changed.module, "run", run)
    monkeypatch.setattr(changed.module.time, "sleep", sleep)
    assert changed.module.apply(rendered(root, "auto"), 35)["changed"] is False
    assert next(ends, "over") == "over" and not (changed.place / "pending").exists()


def test_a_change_is_armed_before_anything_is_written(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (changed.place / "pending").rename(changed.place / "gone")
    write_wanted(root, "systemd-networkd")
    unit = next((root / "etc/systemd/network").glob("*.network"))
    before = unit.read_text() + "# by hand\n"
    unit.write_text(before)
    monkeypatch.setattr(changed.module, "BOOT", str(root / "boot.service"))
    seen = {}

    def transient(name: str, seconds: int, accuracy: str, argv: list[str]) -> None:
        seen[name] = (seconds, unit.read_text() == before)

    monkeypatch.setattr(changed.module, "transient", transient)
    answer = changed.module.apply(rendered(root, "auto"), 35)
    assert answer["changed"] and answer["done"][-1]["kind"] == "network"
    assert seen["cloudctl-network-undo"] == (35, True) and seen["cloudctl-network-apply"][1] is False
    assert (changed.place / "pending/files/0").read_text() == before
    assert (root / "boot.service").exists()


def armed(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any],
    links: list[dict[str, Any]], **units: dict[str, bool],
) -> tuple[str, str]:  # fmt: skip
    """Change a node's network up to where it is taken up; return the scripts that do that and undo it."""
    (changed.place / "pending").rename(changed.place / "gone")
    monkeypatch.setattr(changed.module, "BOOT", str(root / "boot.service"))
    monkeypatch.setattr(changed.module, "KEPT", str(root / "kept"))
    monkeypatch.setattr(net, "read_links", lambda: links)
    states = {NETWORKD: units.get("networkd", OFF), NM: units.get("manager", OFF)}
    monkeypatch.setattr(net, "read_units", lambda: states)
    monkeypatch.setattr(net.shutil, "which", lambda name, path=None: "/x")
    changed.module.apply(spec, 35)
    apply, undo = ((changed.place / "pending" / name).read_text() for name in ("apply", "undo"))
    return apply, undo


def installed(root: Path, path: str, text: str) -> Path:
    place = Path(f"{root}{path}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def test_a_first_change_goes_back_to_what_the_installer_set_up(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "read_profiles", lambda: {"eth0": "ab-1"})
    route = {"dst": "default", "gateway": "10.10.10.1", "dev": "eth0", "flags": []}
    monkeypatch.setattr(net, "read_routes", lambda: [route])
    profile = "[connection]\ninterface-name=eth0\n[ipv4]\naddress1=10.10.10.50/24,10.10.10.1\n"
    installed(root, "/etc/NetworkManager/system-connections/Wired.nmconnection", profile)
    links = [link("eth0", "", None, "10.10.10.50/24")]
    _apply, undo = armed(root, changed, monkeypatch, rendered(root, "networkmanager"), links, manager=RUNNING)
    for line in (
        "nmcli --wait 15 connection up uuid ab-1",
        "ip address add 10.10.10.50/24 dev eth0",
        "ip route replace default via 10.10.10.1 dev eth0",
    ):
        assert line in undo
    assert "networkctl" not in undo and "del default" not in undo


def test_a_port_that_is_renamed_goes_back_under_its_old_name(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [link("enp3s0", MAC, None, "10.10.10.50/24")]
    spec = rendered(root, "systemd-networkd")
    spec["ports"][0]["mac"] = MAC
    apply, undo = armed(root, changed, monkeypatch, spec, links, networkd=RUNNING)
    assert apply.index("name eth0") < apply.index("touch /run/cloudctl-ports-named") < apply.index("reload")
    assert "networkctl reconfigure enp3s0" in undo and "networkctl reconfigure eth0" not in undo
    assert "ip address add 10.10.10.50/24 dev enp3s0" in undo
    assert undo.index("name enp3s0") < undo.index("ip address del 10.10.10.21/24 dev enp3s0")


def test_a_second_file_with_the_same_address_goes_without_it(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wanted(root, "netplan")
    text = (
        "network:\n  ethernets:\n    eth0:\n      addresses: [10.10.10.21/24]\n      gateway4: 10.10.10.1\n"
    )
    second = installed(root, "/etc/netplan/99-local.yaml", text)
    links = [link("eth0", "", None, "10.10.10.21/24")]
    apply, _undo = armed(root, changed, monkeypatch, rendered(root, "netplan"), links, networkd=RUNNING)
    assert not second.exists() and "networkctl reconfigure eth0" in apply
    assert "ip address del" not in apply and "ip route del" not in apply


def test_an_installers_file_that_is_overwritten_is_kept(
    root: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = "DEVICE=eth0\nBOOTPROTO=dhcp\n"
    file = installed(root, "/etc/sysconfig/network-scripts/ifcfg-eth0", old)
    spec = rendered(root, "ifcfg")
    armed(root, changed, monkeypatch, spec, [link("eth0", "", None, "10.10.10.50/24")])
    kept = Path(f"{root}/kept{file}")
    assert "IPADDR=10.10.10.21" in file.read_text() and kept.read_text() == old
    # Ours is no installer's: it is known by name.
    kept.unlink()
    Path(net.RECORD).write_text(json.dumps({"backend": "ifcfg", "files": [str(file)]}))
    (changed.place / "gone").rename(changed.place / "before")
    file.write_text(old)
    armed(root, changed, monkeypatch, spec, [])
    assert file.read_text() != old and not kept.exists()


# -- the plan, and how a change ended ----------------------------------------------------------

OBSERVED: dict[str, Any] = {
    "packages": [], "files": [], "units": [], "containers": [], "jobs": [], "markers": [], "sections": [],
    "unhealthy": [],
}  # fmt: skip
CHANGE = {"path": "/etc/netplan/90-cloudctl.yaml", "area": "network", "container": "", "action": "create"}


def planned(**values: Any) -> dict[str, Any]:
    found = {
        "backend": "netplan", "from": "systemd-networkd", "packages": [], "files": [], "daemons": [],
        "renames": [], "pending": False, **values,
    }  # fmt: skip
    return plan.build({"n1": {"jobs": []}}, {"n1": {**OBSERVED, "network": found}})


def test_the_plan_shows_a_changed_network_whole() -> None:
    made = planned(files=[{**CHANGE, "diff": ["@@ -0,0 +1 @@", "+network:"]}], packages=["netplan.io"])
    assert made["scope"] == [{"name": "n1", "todo": {"network": ["all"]}}]
    lines = "\n".join(plan.describe(made))
    assert "network: systemd-networkd -> netplan" in lines and "install packages: netplan.io" in lines
    assert "create file /etc/netplan/90-cloudctl.yaml" in lines and "      +network:" in lines
    assert "1 networks" in plan.summary(made)


def test_a_first_network_comes_with_all_other_first_ones() -> None:
    made = planned(**{"from": None, "files": [CHANGE]})
    assert made["scope"] == [{"name": "n1", "todo": {"network_first": ["all"]}}]


def test_a_name_or_a_daemon_alone_is_a_change() -> None:
    for part in ({"renames": [("enp3s0", "eth0")]}, {"daemons": [("start", NETWORKD)]}):
        made = planned(**part)
        assert made["changes"] and made["scope"][0]["todo"] == {"network": ["all"]}
    assert not planned()["changes"]


def test_a_change_that_nobody_confirmed_is_a_change() -> None:
    made = planned(**{"from": None, "pending": True})
    assert made["scope"] == [{"name": "n1", "todo": {"network_first": ["all"]}}]
    assert "confirm the change of a run that was interrupted" in "\n".join(plan.describe(made))


def test_a_selection_of_services_leaves_the_network_alone() -> None:
    made = plan.select(planned(files=[CHANGE]), services=["web"])
    assert not made["changes"] and made["totals"]["network"] == 0


def test_every_end_has_its_error() -> None:
    assert netchange.judge("n1", {"state": "confirmed"}, 3) is None
    ends = {
        "network-rolled-back": {"state": "undone", "reason": "timer"},
        "network-not-applied": {"state": "undone", "reason": "failed", "log": "+ netplan generate\nbad yaml"},
        "network-lost": None,
    }
    for ref, answer in ends.items():
        error = netchange.judge("n1", answer, 44)
        assert error is not None and error.ref == ref and error.where == "n1"
    refused = netchange.judge("n1", {"state": "undone", "reason": "refused", "why": "not there"}, 9)
    assert refused is not None and "not there" in refused.message and refused.ref == "network-not-applied"
    boot = netchange.judge("n1", {"state": "undone", "reason": "boot"}, 9)
    assert boot is not None and boot.ref == "network-rolled-back"
    assert netchange.judge("n1", {"state": "pending"}, 99).ref == "network-lost"  # type: ignore[union-attr]


def test_waiting_ends_when_the_node_has_said_how_it_ended() -> None:
    assert netchange.is_end({"state": "confirmed"}) and netchange.is_end({"state": "undone", "ended": True})
    assert not netchange.is_end({"state": "pending"})
    assert not netchange.is_end({"state": "undone", "ended": False})
    assert netchange.ran_out({"state": "undone", "reason": "timer"})
    assert not netchange.ran_out({"state": "undone", "reason": "refused"}) and not netchange.ran_out(None)


def test_the_nodes_reason_becomes_the_operators_error() -> None:
    answer = {"failed": True, "msg": "no", "network_error": {"ref": "network-port-name", "hint": "h"}}
    error = netchange.with_error("n1", answer)["cloudctl_error"]
    assert (error["ref"], error["where"], error["hint"], error["exit_code"]) == (
        "network-port-name",
        "n1",
        "h",
        4,
    )
    assert netchange.with_error("n1", {"failed": True, "msg": "other"}) == {"failed": True, "msg": "other"}
