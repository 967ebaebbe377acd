"""Each mistake gives one clear error, at its file and line."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_support import edit, make_site

from cloudctl.errors import ConfigError, MultiError
from cloudctl.main import run
from cloudctl.site import certificates, load_site
from cloudctl.site.model import Site
from cloudctl.site.validate import validate_site

HOSTS, NETWORKS, SETTINGS = "inventory/hosts.yml", "networks.yml", "settings.yml"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path)


def refs(site: Path) -> list[tuple[str, str | None]]:
    _, errors = validate_site(site, with_secrets=False)
    assert all(error.exit_code == 3 for error in errors)
    return [(error.ref, error.where) for error in errors]


@dataclass
class Mistake:
    """Text replaced in a file, and the error that it gives.

    ``where`` is the line, counted from the replaced one, or a place; ``more`` are errors that follow from it.
    """

    file: str
    old: str
    new: str
    ref: str
    hint: str | None = None
    where: int | str = 0
    more: tuple[str, ...] = ()


CTL03 = "ctl03: {ansible_host: 10.10.10.13}"
COMPUTE01 = "compute01: {ansible_host: 10.10.10.21}"
CONTROL_PORTS = "  control: {eth0: management, eth1: tenant, eth2: storage, eth3: api, eth4: external}"
COMPUTE_PORTS = "  compute: {eth0: management, eth1: tenant, eth2: storage}"

MISTAKES = {
    "yaml malformed": Mistake(
        SETTINGS, "region: RegionOne", "region: [RegionOne", "yaml-malformed", where="settings.yml:"
    ),
    "tab": Mistake(
        SETTINGS, "  region: RegionOne", "\tregion: RegionOne", "yaml-malformed", where="settings.yml:"
    ),
    "duplicate key": Mistake(
        SETTINGS, "  region: RegionOne", "  region: A\n  region: B", "duplicate-key", where=1
    ),
    "unknown key": Mistake(SETTINGS, "  region:", "  regoin:", "unknown-key", "did you mean 'region'?"),
    "unknown section": Mistake(
        SETTINGS, "virtualisation:", "virtualization:", "unknown-key", "'virtualisation'"
    ),
    "wrong type": Mistake(SETTINGS, "name: cloud", "name: [cloud]", "wrong-type"),
    "number for text": Mistake(SETTINGS, "name: cloud", "name: 5", "wrong-type"),
    "wrong choice": Mistake(SETTINGS, "type: kvm", "type: xen", "wrong-value"),
    "not an address": Mistake(SETTINGS, "internal: 10.10.10.250", "internal: 10.10.10.256", "wrong-value"),
    "out of range": Mistake(NETWORKS, "mtu: 9000\n  # Clients", "mtu: 9999\n  # Clients", "out-of-range"),
    "missing setting": Mistake(SETTINGS, "  internal: 10.10.10.250\n", "", "key-missing", where=-1),
    "empty vip": Mistake(SETTINGS, "  internal: 10.10.10.250", "  internal:", "key-missing"),
    "cidr with host bits": Mistake(NETWORKS, "cidr: 10.10.20.0/24", "cidr: 10.10.20.1/24", "wrong-value"),
    "cidr without prefix": Mistake(NETWORKS, "cidr: 10.10.20.0/24", "cidr: 10.10.20.0", "wrong-value"),
    "no cidr": Mistake(NETWORKS, "    cidr: 10.10.20.0/24\n", "", "key-missing", where=-1),
    "unknown network": Mistake(
        NETWORKS, "  replication:", "  replicaton:", "unknown-key", "'replication'", more=("unknown-network",)
    ),
    "vip in networks": Mistake(
        NETWORKS, "    gateway: 10.10.10.1", "    vip: 10.10.10.250", "unknown-key", "vip.internal"
    ),
    "networks overlap": Mistake(
        NETWORKS, "cidr: 10.10.20.0/24", "cidr: 10.10.30.0/25", "network-overlap", where=4, more=()
    ),
    "gateway outside": Mistake(
        NETWORKS, "gateway: 10.10.10.1", "gateway: 10.10.9.1", "gateway-outside-network"
    ),
    "pool outside": Mistake(NETWORKS, "10.10.50.199]", "10.10.51.199]", "pool-outside-network"),
    "nothing in a list": Mistake(NETWORKS, "10.10.50.199]", "]", "wrong-value"),
    "nothing as an address": Mistake(NETWORKS, "10.10.50.199]", "null]", "wrong-type"),
    "port on nothing": Mistake(NETWORKS, "  deploy: {eth0: management}", "  deploy: {eth0: }", "wrong-type"),
    "section is a word": Mistake(SETTINGS, "cloud:\n", "ceph: yes please\ncloud:\n", "wrong-type"),
    "pool reversed": Mistake(NETWORKS, "10.10.50.199]", "10.10.50.10]", "pool-reversed"),
    "pool with gateway": Mistake(NETWORKS, "[10.10.50.100", "[10.10.50.1", "pool-overlap"),
    "pool of one": Mistake(NETWORKS, "[10.10.50.100, 10.10.50.199]", "[10.10.50.100]", "wrong-value"),
    "tenant mtu": Mistake(NETWORKS, "mtu: 9000\n  # Clients", "mtu: 1300\n  # Clients", "mtu-too-small"),
    "port on no network": Mistake(
        NETWORKS, COMPUTE_PORTS, COMPUTE_PORTS.replace("tenant", "tennant"), "unknown-network", "'tenant'"
    ),
    "network twice": Mistake(
        NETWORKS, COMPUTE_PORTS, COMPUTE_PORTS.replace("eth2: storage", "eth2: tenant"), "network-twice"
    ),
    "interface name": Mistake(
        NETWORKS, COMPUTE_PORTS, COMPUTE_PORTS.replace("eth2", "eth2-is-far-too-long"), "interface-name"
    ),
    "unknown group of ports": Mistake(
        NETWORKS, COMPUTE_PORTS, COMPUTE_PORTS.replace("compute", "computes"), "unknown-key", "'compute'"
    ),
    "no management port": Mistake(
        NETWORKS,
        "  deploy: {eth0: management}",
        "  deploy: {eth0: tenant}",
        "management-missing",
        where=f"{HOSTS}:13",
    ),
    "no address": Mistake(HOSTS, COMPUTE01, "compute01:", "address-missing"),
    "address a name": Mistake(
        HOSTS, COMPUTE01, "compute01: {ansible_host: compute01.example}", "wrong-value"
    ),
    "duplicate address": Mistake(
        HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.10.11}", "duplicate-address"
    ),
    "address of a gateway": Mistake(
        HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.10.1}", "duplicate-address"
    ),
    "address outside": Mistake(
        HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.11.21}", "address-outside-network"
    ),
    "broadcast address": Mistake(
        HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.10.255}", "address-outside-network"
    ),
    "own address outside": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth1: {address: 10.10.30.99}}}",
        "address-outside-network",
    ),
    "own address taken": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth1: {address: 10.10.20.22}}}",
        "duplicate-address",
        where=1,
    ),
    "other management address": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth0: {address: 10.10.10.99}}}",
        "address-mismatch",
    ),
    "address in the pool": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth3: {network: external, address: 10.10.50.120}}}",  # noqa: E501
        "pool-overlap",
    ),
    "own port on no network": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth3: {network: apj}}}",
        "unknown-network",
        "'api'",
    ),
    "own port without network": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth7: {mtu: 1500}}}",
        "interface-network",
    ),
    "own network twice": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth3: {network: tenant, address: null}}}",
        "network-twice",
    ),
    "own interface with a bad name": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {'eth3;x': {network: api}}}",
        "interface-name",
    ),
    "link with a smaller mtu": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth1: {mtu: 1500}}}",
        "mtu-mismatch",
    ),
    "not a mac": Mistake(
        HOSTS,
        COMPUTE01,
        'compute01: {ansible_host: 10.10.10.21, interfaces: {eth0: {mac: "52:54:00:12:34"}}}',
        "wrong-value",
    ),
    "duplicate mac": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, interfaces: {eth0: {mac: 52:54:00:AA:bb:01}, eth1: {mac: 52:54:00:aa:bb:01}}}",  # noqa: E501
        "duplicate-mac",
    ),
    "unknown variable": Mistake(
        HOSTS,
        "        devices: [",
        "        device: [",
        "unknown-key",
        "'devices'",
        more=("devices-missing",) * 3,
    ),
    "unknown key in a group": Mistake(
        HOSTS, "    compute:\n      hosts:", "    compute:\n      host:", "unknown-key", "'hosts'", where=1
    ),
    "two controllers": Mistake(
        HOSTS, f"        {CTL03}\n", "", "controllers-even", where=-4, more=("mons-even",)
    ),
    "host range": Mistake(HOSTS, COMPUTE01, "compute[01:04]:", "inventory-format"),
    "name": Mistake(HOSTS, "compute01:", "Compute_01:", "node-name"),
    "node twice in a group": Mistake(
        HOSTS, COMPUTE01, f"{COMPUTE01}\n        {COMPUTE01}", "duplicate-key", where=1
    ),
    "node twice": Mistake(
        HOSTS,
        "    newnodes:",
        "    newnodes:\n    other: {hosts: {compute01: {ansible_host: 10.10.10.99}}}",
        "duplicate-node",
        where=1,
    ),
    "new node in use": Mistake(
        HOSTS, "    newnodes:", "    newnodes: {hosts: {compute01: }}", "newnode-in-use"
    ),
    "node without a role": Mistake(
        HOSTS,
        "    newnodes:",
        "    newnodes:\n    storge: {hosts: {osd9: {ansible_host: 10.10.10.99}}}",
        "node-without-role",
        "'storage'",
        where=1,
    ),
    "groups in a circle": Mistake(
        HOSTS,
        "        control:\n    newnodes",
        "        control: {children: {mons: }}\n    newnodes",
        "group-cycle",
        where="inventory/hosts.yml:",
    ),
    "device twice": Mistake(
        HOSTS, "devices: [/dev/sdc, /dev/sdd", "devices: [/dev/sdc, /dev/sdc", "device-twice"
    ),
    "journal is a device": Mistake(HOSTS, "[/dev/sdb1,", "[/dev/sdc,", "device-twice"),
    "journals too few": Mistake(HOSTS, "[/dev/sdb1, ", "[", "journal-count"),
    "not a device": Mistake(HOSTS, "[/dev/sdb1,", "[sdb1,", "wrong-value"),
    "devices of a compute node": Mistake(
        HOSTS,
        COMPUTE01,
        "compute01: {ansible_host: 10.10.10.21, devices: [/dev/sdb]}",
        "devices-unused",
    ),
    "vip outside": Mistake(
        SETTINGS, "internal: 10.10.10.250", "internal: 10.10.20.250", "vip-outside-network"
    ),
    "external vip outside": Mistake(
        SETTINGS, "external: 192.168.124.250", "external: 10.10.10.251", "vip-outside-network"
    ),
    "vip of a node": Mistake(SETTINGS, "internal: 10.10.10.250", "internal: 10.10.10.11", "vip-in-use"),
    "vip of a derived address": Mistake(
        SETTINGS, "external: 192.168.124.250", "external: 192.168.124.11", "vip-in-use"
    ),
    "vip of a gateway": Mistake(SETTINGS, "internal: 10.10.10.250", "internal: 10.10.10.1", "vip-in-use"),
    "pool with fewer copies": Mistake(
        SETTINGS, "cloud:\n", "ceph: {pools: {size: 2, min_size: 3}}\ncloud:\n", "ceph-pool-size"
    ),
    "more copies than nodes": Mistake(
        SETTINGS, "cloud:\n", "ceph: {pools: {size: 4}}\ncloud:\n", "ceph-pool-size"
    ),
    "tls without files": Mistake(
        SETTINGS, "cloud:\n", "tls: {certificate: no.pem}\ncloud:\n", "tls-file-missing"
    ),
    "service unknown": Mistake(
        SETTINGS, "cloud:\n", "services: {alhpa: {workers: 1}}\ncloud:\n", "unknown-key", "'alpha'"
    ),
    "service setting unknown": Mistake(
        SETTINGS, "cloud:\n", "services: {alpha: {worker: 1}}\ncloud:\n", "unknown-key", "'workers'"
    ),
    "service setting wrong": Mistake(
        SETTINGS, "cloud:\n", "services: {alpha: {workers: 0}}\ncloud:\n", "out-of-range"
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_error_at_its_line(site: Path, name: str) -> None:
    mistake = MISTAKES[name]
    assert refs(site) == []
    place = edit(site, mistake.file, mistake.old, mistake.new)
    _, errors = validate_site(site, with_secrets=False)
    shown = "\n".join(error.render() for error in errors)
    assert [error.ref for error in errors] == [mistake.ref, *mistake.more], shown
    where = errors[0].where or ""
    file, line = place.rsplit(":", 1)
    if isinstance(mistake.where, int):
        assert where == f"{file}:{int(line) + mistake.where}", shown
    else:
        assert where.startswith(mistake.where), shown
    assert mistake.hint is None or mistake.hint in str(errors[0].hint), shown


def test_malformed_yaml_names_line_and_column(site: Path) -> None:
    (site / "settings.yml").write_text("cloud:\n  name: a\n b: c\n")
    assert refs(site)[0][0] == "yaml-malformed"
    assert refs(site)[0][1] == "settings.yml:3:2"


@pytest.mark.parametrize("file", [HOSTS, NETWORKS, SETTINGS])
def test_a_missing_file_is_named(site: Path, file: str) -> None:
    (site / file).unlink()
    _, errors = validate_site(site, with_secrets=False)
    assert [error.ref for error in errors] == ["file-missing"], [error.render() for error in errors]
    assert file in errors[0].message


def test_an_ini_inventory_is_refused_clearly(site: Path) -> None:
    (site / HOSTS).unlink()
    (site / "inventory" / "hosts").write_text("[control]\nctl01\n")
    assert refs(site) == [("inventory-format", "inventory/hosts:1")]


def test_a_host_number_that_does_not_fit(site: Path) -> None:
    edit(site, NETWORKS, "cidr: 10.10.40.0/24", "cidr: 10.10.40.0/25")
    assert [ref for ref, _ in refs(site)] == ["address-outside-network"] * 3


def test_no_mons(site: Path) -> None:
    edit(site, HOSTS, "    mons:\n      children:\n        control:\n", "    mons:\n")
    assert [ref for ref, _ in refs(site)] == ["group-empty"]


def test_no_controllers(site: Path) -> None:
    text = (site / HOSTS).read_text()
    start, end = text.index("        ctl01"), text.index("    compute:")
    (site / HOSTS).write_text(text[:start] + text[end:])
    assert [ref for ref, _ in refs(site)] == ["group-empty", "group-empty"]


def test_several_deploy_nodes(site: Path) -> None:
    edit(
        site,
        HOSTS,
        "        cloud-deploy:",
        "        deploy2: {ansible_host: 10.10.10.3}\n        cloud-deploy:",
    )
    assert [ref for ref, _ in refs(site)] == ["deploy-nodes"]


def test_two_ports_of_two_groups_clash(site: Path) -> None:
    edit(site, HOSTS, "    newnodes:", "    newnodes:\n    storage2: {}")
    edit(site, HOSTS, "      hosts:\n        compute01", "      hosts:\n        ctl01:\n        compute01")
    assert refs(site) == []
    edit(site, NETWORKS, COMPUTE_PORTS, "  compute: {eth0: management, eth1: tenant, eth2: api}")
    assert [ref for ref, _ in refs(site)] == ["interface-conflict"]


def test_both_vips_the_same(site: Path) -> None:
    edit(
        site,
        NETWORKS,
        "  # Users reach the API and the dashboard.\n  api:\n    cidr: 192.168.124.0/24\n    mtu: 1500\n",
        "",
    )
    edit(site, NETWORKS, ", eth3: api", "")
    edit(
        site, HOSTS, "          interfaces:\n            eth1: {network: api, address: 192.168.124.10}\n", ""
    )
    edit(site, SETTINGS, "192.168.124.250", "10.10.10.251")
    assert refs(site) == []
    edit(site, SETTINGS, "10.10.10.251", "10.10.10.250")
    assert [ref for ref, _ in refs(site)] == ["vip-in-use"]


def test_the_external_vip_is_not_the_gateway(site: Path) -> None:
    edit(site, NETWORKS, "cidr: 192.168.124.0/24\n", "cidr: 192.168.124.0/24\n    gateway: 192.168.124.250\n")
    assert [ref for ref, _ in refs(site)] == ["vip-in-use"]


def test_a_vip_in_the_pool(site: Path) -> None:
    edit(site, SETTINGS, "external: 192.168.124.250", "external: 10.10.50.150")
    assert [ref for ref, _ in refs(site)] == ["vip-outside-network", "pool-overlap"]


def test_a_new_node_is_fine_by_itself(site: Path) -> None:
    edit(site, HOSTS, "    newnodes:", "    newnodes: {hosts: {compute05: {ansible_host: 10.10.10.25}}}")
    assert refs(site) == []


def test_ports_of_a_group_without_nodes_may_miss_their_network(site: Path) -> None:
    text = (site / HOSTS).read_text()
    start, end = text.index("        ceph-osd01"), text.index("    # The Ceph monitors")
    (site / HOSTS).write_text(text[:start] + text[end:])
    text = (site / NETWORKS).read_text()
    start, end = text.index("  replication:"), text.index("  # Users reach")
    (site / NETWORKS).write_text(text[:start] + text[end:])
    edit(site, NETWORKS, "  storage: {eth0: management, eth1: storage, eth2: replication}\n", "")
    assert refs(site) == []


def test_no_management_network(site: Path) -> None:
    text = (site / NETWORKS).read_text()
    start, end = text.index("  management:\n"), text.index("  # VM to VM")
    (site / NETWORKS).write_text(text[:start] + text[end:])
    assert refs(site)[0] == ("network-missing", "networks.yml:2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a]\n", ("wrong-type", "networks.yml:1")),
        ("interfaces: {}\n", ("key-missing", "networks.yml:1")),
        ("# only a comment\n", ("key-missing", "networks.yml:1")),
    ],
)
def test_networks_of_another_shape(site: Path, text: str, expected: tuple[str, str]) -> None:
    (site / NETWORKS).write_text(text)
    assert refs(site)[0] == expected


def test_an_unknown_part_of_networks(site: Path) -> None:
    with (site / NETWORKS).open("a") as stream:
        stream.write("interface: {}\n")
    assert [ref for ref, _ in refs(site)] == ["unknown-key"]


@pytest.mark.parametrize("text", ["{", "[]", '{"keystone": 5}', "\udcff"])
def test_a_damaged_image_lock(site: Path, text: str) -> None:
    (site / "images.lock.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert [ref for ref, _ in refs(site)] == ["file-unreadable" if text == "\udcff" else "json-malformed"]


def test_a_provided_certificate_must_be_named(site: Path) -> None:
    edit(site, SETTINGS, "cloud:\n", "tls: {source: provided}\ncloud:\n")
    assert [ref for ref, _ in refs(site)] == ["tls-file-missing"] * 3


def test_an_override_that_is_not_text(site: Path) -> None:
    (site / "overrides" / "alpha.conf").write_bytes(b"\xff\xfe")
    assert refs(site) == [("override-malformed", "overrides/alpha.conf")]


def test_loading_raises_what_validation_finds(site: Path) -> None:
    edit(site, SETTINGS, "  region:", "  regoin:")
    with pytest.raises(ConfigError) as one:
        load_site(site, with_secrets=False)
    assert one.value.ref == "unknown-key" and not isinstance(one.value, MultiError)
    edit(site, HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.10.11}")
    with pytest.raises(MultiError) as several:
        load_site(site, with_secrets=False)
    assert [error.ref for error in several.value.errors] == ["unknown-key", "duplicate-address"]
    assert several.value.exit_code == 3


def test_the_deploy_node_may_be_the_router(site: Path) -> None:
    edit(
        site,
        HOSTS,
        "eth1: {network: api, address: 192.168.124.10}",
        "eth2: {network: external, address: 10.10.50.1}",
    )
    assert refs(site) == []


def test_overrides(site: Path) -> None:
    overrides = site / "overrides"
    (overrides / "alpha.conf").write_text("[DEFAULT]\ndebug = true\n")
    (overrides / "alpha").mkdir()
    (overrides / "alpha" / "ctl01.conf").write_text("[DEFAULT]\n")
    (overrides / "alpha" / "ctl01.json").write_text("{}")
    (overrides / "beta.yaml").write_text("a: 1\n")
    assert refs(site) == []
    (overrides / "alpah.conf").write_text("")
    (overrides / "alpha" / "ctl09.conf").write_text("")
    (overrides / "alpha" / "ctl02.conf").write_text("[DEFAULT]\n= nothing\n")
    (overrides / "alpha" / "ctl02.json").write_text("{\n}}")
    (overrides / "beta.yaml").write_text("a: 1\nb: [\n")
    (overrides / "gamma").mkdir()
    _, errors = validate_site(site, with_secrets=False)
    assert [(error.ref, error.where) for error in errors] == [
        ("unknown-override", "overrides/alpah.conf"),
        ("override-malformed", "overrides/alpha/ctl02.conf:2"),
        ("override-malformed", "overrides/alpha/ctl02.json:2"),
        ("unknown-override", "overrides/alpha/ctl09.conf"),
        ("override-malformed", "overrides/beta.yaml:3"),
        ("unknown-override", "overrides/gamma"),
    ]
    assert errors[0].hint == "did you mean 'alpha.conf'?"


def test_a_provided_certificate_must_fit(site: Path) -> None:
    ca, ca_key = certificates.make_ca("c")
    certificate, key = certificates.make_certificate(ca, ca_key, "c", ["10.10.10.250"])
    edit(
        site,
        SETTINGS,
        "cloud:\n",
        "tls: {source: provided, certificate: t.pem, key: t.key, ca: ca.pem}\ncloud:\n",
    )
    assert [ref for ref, _ in refs(site)] == ["tls-file-missing"] * 3
    for name, content in (("t.pem", certificate), ("t.key", key), ("ca.pem", ca)):
        (site / name).write_text(content)
    assert refs(site) == []
    (site / "t.key").write_text(ca_key)
    _, errors = validate_site(site, with_secrets=False)
    assert [error.message for error in errors] == ["the key does not belong to the certificate"]
    (site / "t.pem").write_text("nothing")
    assert [ref for ref, _ in refs(site)] == ["tls-invalid"]
    old, old_key = certificates.make_certificate(ca, ca_key, "c", ["10.10.10.250"], days=0)
    (site / "t.pem").write_text(old)
    (site / "t.key").write_text(old_key)
    _, errors = validate_site(site, with_secrets=False)
    assert f"{datetime.datetime.now(datetime.UTC):%Y-%m}" in errors[0].message


@pytest.mark.parametrize("count", [1, 3, 5])
def test_odd_numbers_of_controllers_are_fine(site: Path, count: int) -> None:
    text = (site / HOSTS).read_text()
    start, end = text.index("        ctl01"), text.index("    compute:")
    hosts = "".join(f"        ctl0{i}: {{ansible_host: 10.10.10.1{i}}}\n" for i in range(1, count + 1))
    (site / HOSTS).write_text(text[:start] + hosts + text[end:])
    assert refs(site) == []


@given(st.lists(st.integers(1, 254), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_addresses_used_twice_are_always_found(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    if not _cache:
        _cache.append(make_site(tmp_path_factory.mktemp("any")))
    site = _cache[0]
    good = (site / HOSTS).read_text()
    text = good
    for index, number in enumerate(numbers, start=1):
        text = text.replace(
            f"compute0{index}: {{ansible_host: 10.10.10.2{index}}}",
            f"compute0{index}: {{ansible_host: 10.10.10.{number}}}",
        )
    (site / HOSTS).write_text(text)
    try:
        found = [ref for ref, _ in refs(site) if ref in ("duplicate-address", "vip-in-use")]
    finally:
        (site / HOSTS).write_text(good)
    taken = [2, 11, 12, 13, 211, 212, 213, 1, 250]
    everyone = taken + numbers
    twice = len(everyone) - len(set(everyone))
    assert bool(found) == bool(twice)
    assert found.count("vip-in-use") == (250 in numbers)


_cache: list[Path] = []


def command(site: Path, *arguments: str) -> int:
    return run(["--site", str(site), "validate", *arguments])


def test_the_command_says_that_all_is_well(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(site, "--no-secrets") == 0
    assert capsys.readouterr().out == "site cloud: 11 nodes, 6 networks, valid\n"


def test_the_command_prints_every_error(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(site, SETTINGS, "  region:", "  regoin:")
    edit(site, HOSTS, COMPUTE01, "compute01: {ansible_host: 10.10.10.11}")
    assert command(site, "--no-secrets") == 3
    text = capsys.readouterr().err
    assert "error[unknown-key]: unknown key 'regoin' in cloud\n   at: settings.yml:4\n" in text
    assert "  try: did you mean 'region'?\n" in text
    assert "error[duplicate-address]: 10.10.10.11 is the address of both ctl01 and compute01" in text


def test_the_command_for_programs(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(site, "--no-secrets", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True
    edit(site, SETTINGS, "  region:", "  regoin:")
    assert command(site, "--no-secrets", "--output", "json") == 3
    result = json.loads(capsys.readouterr().out)
    assert (result["valid"], result["nodes"], result["errors"][0]["ref"]) == (False, 11, "unknown-key")


def test_no_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path) == 3
    assert "error[site-missing]" in capsys.readouterr().err


def test_the_model_is_there_in_spite_of_errors(site: Path) -> None:
    edit(site, SETTINGS, "  region:", "  regoin:")
    found, _ = validate_site(site, with_secrets=False)
    assert isinstance(found, Site) and found.get("cloud.region") == "RegionOne"
