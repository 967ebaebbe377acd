"""The site directory that the lab writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudctl.errors import UsageError
from cloudctl.lab import manager, nodes, sitedir
from cloudctl.lab.topology import topology


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sitedir, "SITE", tmp_path / "site")
    monkeypatch.setattr(nodes, "STATE", tmp_path)
    monkeypatch.setattr(sitedir, "public_key", lambda: "ssh-ed25519 AAAA test")
    monkeypatch.setattr(nodes, "host_key", lambda node: f"ssh-ed25519 {node.name}")
    return tmp_path / "site"


def write(name: str) -> list[str]:
    lines: list[str] = []
    sitedir.write(topology(name).values(), lines.append)
    return lines


def test_the_written_site_is_valid(site: Path) -> None:
    from cloudctl.site import load_site

    write("full")
    loaded = load_site(site, with_secrets=False)
    assert loaded.nodes["ctl01"].address_on("tenant") == "10.10.20.11"
    assert loaded.nodes["osd01"].address_on("replication") == "10.10.40.211"
    assert loaded.nodes["deploy"].address_on("api") == "192.168.124.10"
    assert [node.name for node in loaded.group("mons")] == ["ctl01", "ctl02", "ctl03"]


@pytest.mark.parametrize(("name", "size", "least"), [("small", 1, 1), ("full", 3, 2)])
def test_as_many_copies_as_storage_nodes(site: Path, name: str, size: int, least: int) -> None:
    from cloudctl.site import load_site

    write(name)
    loaded = load_site(site, with_secrets=False)
    assert (loaded.get("ceph.pools.size"), loaded.get("ceph.pools.min_size")) == (size, least)


def test_a_lab_without_storage_is_a_valid_site(site: Path) -> None:
    from cloudctl.site import load_site

    write("molecule")
    loaded = load_site(site, with_secrets=False)
    assert loaded.group("storage") == []
    assert [node.name for node in loaded.group("control")] == ["ctl01", "ctl02", "ctl03"]


def test_spare_disks_are_not_in_the_inventory() -> None:
    nodes = list(topology("storage", data_disks=2, spare_disks=1).values())
    host = sitedir.inventory(nodes)["all"]["children"]["storage"]["hosts"]["osd01"]
    assert host["devices"] == ["/dev/loop201", "/dev/loop203"]
    assert host["journal_devices"] == ["/dev/loop202", "/dev/loop202"]


def test_another_lab_gets_its_own_loop_devices(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitedir, "STATES", site.parent)
    monkeypatch.setattr(sitedir.lab_nodes, "loop_minors_in_use", lambda: set())
    monkeypatch.setattr(sitedir, "NAME", "second")
    other = site.parent / "cloudctl-third" / "site"
    other.mkdir(parents=True)
    (other / "lab.json").write_text('{"first_minor": 601, "nodes": {}}')
    assert sitedir.first_minor() == 1001
    sitedir.save_record({"first_minor": 1401, "nodes": {"osd01": "storage"}})
    assert sitedir.first_minor() == 1401
    assert sitedir.recorded_nodes()["osd01"].disks[0].device == "/dev/loop1401"


def test_the_usual_lab_keeps_its_loop_devices(site: Path) -> None:
    assert sitedir.first_minor() == 201


def test_a_bigger_topology_rewrites_only_untouched_files(site: Path) -> None:
    write("small")
    settings = site / "settings.yml"
    settings.write_text(settings.read_text() + "sysctl: {vm.swappiness: 10}\n")
    lines = write("full")
    assert "ctl03" in (site / "inventory" / "hosts.yml").read_text()
    assert "swappiness" in settings.read_text()
    assert [line for line in lines if "settings.yml" in line]


def test_an_own_inventory_is_kept(site: Path) -> None:
    write("small")
    inventory = site / "inventory" / "hosts.yml"
    inventory.write_text("all: {}\n")
    write("full")
    assert inventory.read_text() == "all: {}\n"


def test_known_hosts_keep_strangers(site: Path) -> None:
    write("small")
    pinned = site / "known_hosts"
    pinned.write_text("elsewhere ssh-ed25519 X\n10.10.10.11,ctl01 ssh-ed25519 OLD\n")
    write("small")
    text = pinned.read_text()
    assert "elsewhere ssh-ed25519 X" in text
    assert "OLD" not in text
    assert text.count("10.10.10.11,") == 1


def test_the_vault_password_is_private_and_kept(site: Path) -> None:
    write("small")
    password = site / ".vault-password"
    first = password.read_text()
    assert password.stat().st_mode & 0o777 == 0o600
    assert len(first.strip()) >= 32
    write("small")
    assert password.read_text() == first
    assert ".vault-password" in (site / ".gitignore").read_text().splitlines()


def test_storage_nodes_name_their_disks() -> None:
    inventory = sitedir.inventory(topology("full").values())
    storage = inventory["all"]["children"]["storage"]["hosts"]
    assert storage["osd02"]["devices"] == ["/dev/loop211"]
    assert storage["osd02"]["journal_devices"] == ["/dev/loop212"]
    assert yaml.safe_load(yaml.safe_dump(inventory)) == inventory


def test_the_site_knows_nothing_of_a_bare_server(site: Path) -> None:
    write("small")
    before = {name: (site / name).read_text() for name in ("inventory/hosts.yml", "known_hosts")}
    record = sitedir.record()
    nodes_of = {node.name: node.role for node in topology("small").values()} | {"compute03": "compute"}
    bare = {"compute03": {"data_disks": 1, "mtu_limits": {"eth2": 1500}}}
    sitedir.save_record(record | {"nodes": nodes_of, "bare": bare})
    known = sitedir.recorded_nodes()
    assert known["compute03"].bare
    assert known["compute03"].mtu_limits == {"eth2": 1500}
    assert not known["compute01"].bare
    lines: list[str] = []
    sitedir.write(known.values(), lines.append)
    assert {name: (site / name).read_text() for name in before} == before


def test_the_password_of_bare_servers_is_private_and_stays(site: Path) -> None:
    first = sitedir.installer_password()
    assert len(first) >= 12
    assert sitedir.installer_password() == first
    path = site / ".cloudctl" / sitedir.INSTALLER_PASSWORD
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_remade_server_stays_in_the_inventory_and_its_key_is_not_pinned(site: Path) -> None:
    write("small")
    before = {name: (site / name).read_text() for name in ("inventory/hosts.yml", "known_hosts")}
    sitedir.save_record(
        sitedir.record()
        | {
            "nodes": {node.name: node.role for node in topology("small").values()},
            "remade": ["ctl01", "gone"],
        }
    )
    known = sitedir.recorded_nodes()
    assert [name for name, node in known.items() if node.remade] == ["ctl01"]
    assert known["ctl01"].unknown and not known["ctl01"].bare and not known["compute01"].unknown
    assert known["ctl01"].mac("eth0") == topology("small")["ctl01"].mac("eth0")
    (site / "known_hosts").write_text(before["known_hosts"].replace("ed25519 ctl01", "ed25519 OLD"))
    sitedir.write(known.values(), lambda line: None)
    assert (site / "inventory/hosts.yml").read_text() == before["inventory/hosts.yml"]
    assert "ed25519 OLD" in (site / "known_hosts").read_text()


def test_a_machine_is_made_anew_only_in_place_of_one_that_is_off(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("small")
    sitedir.save_record(
        sitedir.record() | {"nodes": {node.name: node.role for node in topology("small").values()}}
    )
    calls: list[str] = []
    running = {"ctl01": 7}
    monkeypatch.setattr(manager, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(manager, "check_host", lambda: None)
    monkeypatch.setattr(manager.images, "node_image", lambda: "image")
    monkeypatch.setattr(manager.network, "unplug", lambda node: calls.append(f"unplug {node.name}"))
    monkeypatch.setattr(manager.network, "ensure", lambda: None)
    monkeypatch.setattr(nodes, "pid", lambda node: running.get(node.name, 0))
    monkeypatch.setattr(nodes, "remove", lambda name: calls.append(f"remove {name}"))
    monkeypatch.setattr(nodes, "detach_disks", lambda name: calls.append(f"detach {name}"))
    monkeypatch.setattr(nodes, "start", lambda node: calls.append(f"start {node.name}"))
    monkeypatch.setattr(nodes, "wait", lambda node: calls.append(f"wait {node.name}"))

    def create(node: Any, image: str, key: str, mounts: list[str], *, password: str) -> None:
        assert node.unknown and not key and not mounts and len(password) >= 12
        assert not old.exists(), "its disks and its host key are still there"
        calls.append(f"create {node.name}")

    monkeypatch.setattr(nodes, "create", create)
    with pytest.raises(UsageError) as caught:
        manager.remake("ctl01", lambda line: None)
    assert caught.value.ref == "lab-node-on"
    with pytest.raises(UsageError) as caught:
        manager.remake("deploy", lambda line: None)
    assert caught.value.ref == "lab-node-deploy"
    assert calls == [] and "remade" not in sitedir.record()
    running.clear()
    old = nodes.directory(topology("small")["ctl01"]) / "disks"
    old.mkdir(parents=True)
    manager.remake("ctl01", lambda line: None)
    manager.remake("ctl01", lambda line: None)
    once = [f"{what} ctl01" for what in ("unplug", "remove", "detach", "create", "start", "wait")]
    assert calls == once * 2
    assert sitedir.record()["remade"] == ["ctl01"]
