"""The desired state of the Ceph cluster."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudctl import ceph
from cloudctl.errors import ConfigError, MultiError
from cloudctl.site.model import Interface, Network, Node, Secrets, Settings, Site

FSID = "11111111-2222-4333-8444-555555555555"
IMAGE = "10.10.10.2:5000/cloudctl/ceph@sha256:" + "a" * 64
GLANCE: dict[str, Any] = {
    "name": "glance",
    "ceph": {
        "pools": [{"name": "images", "application": "rbd"}],
        "client": {"name": "glance", "caps": {"osd": "profile rbd pool=images", "mon": "profile rbd"}},
    },
}


def make_node(name: str, number: int, *groups: str, **variables: Any) -> Node:
    networks = {"eth0": "management", "eth1": "storage"}
    if "storage" in groups:
        networks["eth2"] = "replication"
    tens = {"management": 10, "storage": 30, "replication": 40}
    interfaces = {
        nic: Interface(nic, network, f"10.10.{tens[network]}.{number}") for nic, network in networks.items()
    }
    return Node(name, (*groups, "all"), f"10.10.10.{number}", interfaces, variables)


def make_site(
    *nodes: Node, ceph_settings: dict[str, Any] | None = None, secrets: dict[str, str] | None = None
) -> Site:
    if not nodes:
        nodes = (
            *(make_node(f"ctl0{i}", 10 + i, "control", "mons") for i in (1, 2, 3)),
            *(make_node(f"osd0{i}", 210 + i, "storage", devices=["/dev/sdb"]) for i in (1, 2, 3)),
        )
    settings = {
        "osd_memory_target": 1 << 30,
        "config": {},
        "pools": {"size": 3, "min_size": 2, "device_class": {}, "extra": []},
        "journal": {"size": None, "minimum": 512 << 20},
    }
    for key in ("pools", "journal"):
        ceph_settings = {**(ceph_settings or {}), key: settings[key] | (ceph_settings or {}).get(key, {})}
    known = {
        "ceph_fsid": FSID,
        "ceph_ssh_private_key": "PRIVATE\n",
        "ceph_ssh_public_key": "ssh-ed25519 A c\n",
    }
    cidrs = {"management": 10, "storage": 30, "replication": 40}
    return Site(
        path=Path("/site"),
        name="test",
        networks={name: Network(name, IPv4Network(f"10.10.{third}.0/24")) for name, third in cidrs.items()},
        nodes={node.name: node for node in nodes},
        settings=Settings({"ceph": settings | (ceph_settings or {})}),
        secrets=Secrets(known | {"ceph_client_glance_key": "AQBkey=="} | (secrets or {})),
        images={"ceph": {"reference": IMAGE}},
    )


def errors_of(site: Site, *services: dict[str, Any]) -> set[str]:
    with pytest.raises((ConfigError, MultiError)) as caught:
        ceph.build(site, services)
    error = caught.value
    return {e.ref for e in error.errors} if isinstance(error, MultiError) else {error.ref}


def test_the_documented_topology() -> None:
    desired = ceph.build(make_site(), [GLANCE])
    assert desired["fsid"] == FSID
    assert desired["image"] == IMAGE
    assert desired["mons"] == [{"name": f"ctl0{i}", "address": f"10.10.30.1{i}"} for i in (1, 2, 3)]
    assert desired["mgrs"] == ["ctl01", "ctl02"]
    assert (desired["public_network"], desired["cluster_network"]) == ("10.10.30.0/24", "10.10.40.0/24")
    assert [h["name"] for h in desired["hosts"]] == ["ctl01", "ctl02", "ctl03", "osd01", "osd02", "osd03"]
    assert desired["hosts"][0] == {"name": "ctl01", "address": "10.10.10.11", "labels": ["_admin"]}
    assert desired["hosts"][3] == {"name": "osd01", "address": "10.10.10.211", "labels": []}
    assert desired["osds"][0] == {
        "host": "osd01",
        "data": "/dev/sdb",
        "journal": None,
        "slot": 1,
        "device_class": "",
    }
    assert desired["pools"] == [
        {"name": "images", "application": "rbd", "size": 3, "min_size": 2, "pg_num": 32, "device_class": ""}
    ]
    assert desired["config"]["osd"] == {
        "osd_memory_target": str(1 << 30),
        "osd_memory_target_autotune": "false",
    }


def test_without_a_group_mons_the_controllers_run_them() -> None:
    nodes = [make_node("ctl01", 11, "control"), make_node("osd01", 211, "storage", devices=["/dev/sdb"])]
    desired = ceph.build(make_site(*nodes, ceph_settings={"pools": {"size": 1, "min_size": 1}}), [GLANCE])
    assert [mon["name"] for mon in desired["mons"]] == ["ctl01"]
    assert desired["mgrs"] == ["ctl01"]


def test_a_single_copy_is_allowed_and_silences_its_warning() -> None:
    site = make_site(ceph_settings={"pools": {"size": 1, "min_size": 1}})
    config = ceph.build(site, [GLANCE])["config"]["global"]
    assert config["mon_allow_pool_size_one"] == "true"
    assert config["mon_warn_on_pool_no_redundancy"] == "false"
    assert "mon_allow_pool_size_one" not in ceph.build(make_site(), [GLANCE])["config"]["global"]


def test_settings_override_our_options_key_by_key() -> None:
    site = make_site(ceph_settings={"config": {"osd": {"osd_max_backfills": 1}, "global": {"ms_x": True}}})
    config = ceph.build(site, [GLANCE])["config"]
    assert config["osd"]["osd_max_backfills"] == "1"
    assert config["osd"]["osd_memory_target"] == str(1 << 30)
    assert config["global"]["ms_x"] == "true"


def test_the_desired_state_holds_no_secret() -> None:
    site = make_site()
    text = repr(ceph.build(site, [GLANCE]))
    for name, value in site.secrets.items():
        if name not in ("ceph_fsid", "ceph_ssh_public_key"):
            assert value.strip() not in text, name


def test_a_rotated_key_is_a_different_state() -> None:
    before = ceph.build(make_site(), [GLANCE])["clients"][0]
    after = ceph.build(make_site(secrets={"ceph_client_glance_key": "AQCother=="}), [GLANCE])["clients"][0]
    assert before["key_digest"] != after["key_digest"]
    assert before["caps"] == {"mon": "profile rbd", "osd": "profile rbd pool=images"}


def test_secrets_for_the_module() -> None:
    secrets = ceph.secrets(make_site(), [GLANCE])
    assert secrets == {
        "ssh_private_key": "PRIVATE\n",
        "ssh_public_key": "ssh-ed25519 A c\n",
        "client_keys": {"glance": "AQBkey=="},
    }


def test_a_missing_client_key_is_named() -> None:
    service = {"name": "nova", "ceph": {"client": {"name": "nova", "caps": {"mon": "profile rbd"}}}}
    with pytest.raises(ConfigError, match="ceph_client_nova_key"):
        ceph.secrets(make_site(), [service])


def test_a_site_without_secrets_can_be_built_and_compared() -> None:
    site = make_site()
    bare = Site(site.path, site.name, site.networks, site.nodes, site.settings, images=site.images)
    assert ceph.build(bare, [GLANCE])["clients"][0]["key_digest"] == ""


def test_journals_pair_with_devices_in_order() -> None:
    node = make_node(
        "osd01", 211, "storage", devices=["/dev/sdb", "/dev/sdc"], journal_devices=["/dev/x1", "/dev/x2"]
    )
    assert ceph.devices_of(node) == [("/dev/sdb", "/dev/x1"), ("/dev/sdc", "/dev/x2")]


def test_five_disks_share_one_journal_device() -> None:
    disks = [f"/dev/sd{letter}" for letter in "cdefg"]
    node = make_node(
        "osd01",
        211,
        "storage",
        devices=disks,
        journal_devices=["/dev/sdb"] * 5,
        device_classes={"/dev/sdd": "ssd"},
    )
    osds = ceph.desired.osds_of(node)
    assert [(osd["data"], osd["journal"], osd["slot"]) for osd in osds] == [
        (disk, "/dev/sdb", slot) for slot, disk in enumerate(disks, start=1)
    ]
    assert [osd["device_class"] for osd in osds] == ["", "ssd", "", "", ""]


def test_pools_have_classes_as_data() -> None:
    extra = [{"name": "archive", "device_class": "hdd", "size": 2, "min_size": 1}]
    site = make_site(ceph_settings={"pools": {"device_class": {"images": "ssd"}, "extra": extra}})
    pools = {pool["name"]: pool for pool in ceph.build(site, [GLANCE])["pools"]}
    assert {name: (pool["device_class"], pool["size"]) for name, pool in pools.items()} == {
        "archive": ("hdd", 2),
        "images": ("ssd", 3),
    }


def test_a_class_for_a_pool_that_is_not_there() -> None:
    site = make_site(ceph_settings={"pools": {"device_class": {"image": "ssd"}}})
    assert errors_of(site, GLANCE) == {"ceph-pool-unknown"}


def test_a_pool_without_a_name() -> None:
    assert errors_of(make_site(ceph_settings={"pools": {"extra": [{"size": 1}]}}), GLANCE) == {
        "ceph-pool-name"
    }


@pytest.mark.parametrize(
    ("variables", "ref"),
    [
        ({"devices": ["/dev/sdb", "/dev/sdb"]}, "ceph-device-twice"),
        ({"devices": ["/dev/sdb"], "journal_devices": ["/dev/sdb"]}, "ceph-device-twice"),
        ({"devices": ["/dev/sdc", "/dev/sdd"], "journal_devices": ["/dev/sdb"]}, "ceph-journal-count"),
        ({"devices": "/dev/sdb"}, "ceph-device-list"),
        ({"devices": ["sdb"]}, "ceph-device-list"),
    ],
)
def test_device_lists_that_make_no_sense(variables: dict[str, Any], ref: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ceph.devices_of(make_node("osd01", 211, "storage", **variables))
    assert caught.value.ref == ref
    assert "osd01" in caught.value.message


def test_all_errors_at_once() -> None:
    nodes = [
        Node("ctl01", ("mons", "all"), "10.10.10.11"),
        make_node("osd01", 211, "storage", devices=["/dev/sdb", "/dev/sdb"]),
    ]
    assert errors_of(make_site(*nodes), GLANCE) == {"ceph-no-address", "ceph-device-twice", "ceph-pool-size"}


def test_a_pool_needs_as_many_nodes_as_copies() -> None:
    nodes = [make_node("ctl01", 11, "mons"), make_node("osd01", 211, "storage", devices=["/dev/sdb"])]
    assert errors_of(make_site(*nodes), GLANCE) == {"ceph-pool-size"}


def test_min_size_above_size() -> None:
    assert errors_of(make_site(ceph_settings={"pools": {"size": 2, "min_size": 3}}), GLANCE) == {
        "ceph-pool-size"
    }


def test_capabilities_for_a_pool_that_nobody_declares() -> None:
    service = {
        "name": "nova",
        "ceph": {"client": {"name": "nova", "caps": {"mon": "profile rbd", "osd": "profile rbd pool=vmz"}}},
    }
    assert errors_of(make_site(), service) == {"ceph-caps"}


def test_the_same_pool_declared_differently() -> None:
    other = {"name": "other", "ceph": {"pools": [{"name": "images", "application": "cephfs"}]}}
    assert errors_of(make_site(), GLANCE, other) == {"ceph-pool-conflict"}
    same = {"name": "other", "ceph": {"pools": [{"name": "images"}]}}
    assert len(ceph.build(make_site(), [GLANCE, same])["pools"]) == 1


def test_a_lock_file_without_the_image() -> None:
    site = make_site()
    other = Site(
        site.path, site.name, site.networks, site.nodes, site.settings, site.secrets, {"nova-api": {}}
    )
    assert errors_of(other, GLANCE) == {"image-missing"}


@given(st.lists(st.integers(0, 8), max_size=8), st.lists(st.integers(5, 12), max_size=8))
def test_pairs_use_every_device_exactly_once_or_are_refused(data: list[int], journals: list[int]) -> None:
    node = make_node(
        "osd01",
        211,
        "storage",
        devices=[f"/dev/d{i}" for i in data],
        journal_devices=[f"/dev/d{i}" for i in journals],
    )
    try:
        pairs = ceph.devices_of(node)
    except ConfigError:
        return
    # A journal device may serve several, and is never a data device as well.
    used = [path for path, _journal in pairs] + sorted({journal for _path, journal in pairs if journal})
    assert len(used) == len(set(used))
    assert [pair[0] for pair in pairs] == [f"/dev/d{i}" for i in data]
    assert [pair[1] for pair in pairs if pair[1]] == [f"/dev/d{i}" for i in journals]
