"""The programs inside the images: configuration by contract, the cluster's first node, its check."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudctl.paths import data_root

IMAGES = data_root() / "images"
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="files get owners")


def program(path: str) -> ModuleType:
    """Load a program of an image as a module."""
    source = IMAGES / path
    name = source.name
    loader = importlib.machinery.SourceFileLoader(name, str(source))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


set_configs = program("base/files/usr/local/bin/kolla_set_configs")
mariadb = program("mariadb/files/usr/local/bin/cloudctl_mariadb")
clustercheck = program("mariadb/files/usr/local/bin/cloudctl_clustercheck")


class Container:
    """A root directory in which kolla_set_configs works."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(set_configs, "CONFIGURED", str(root / "configured"))
        monkeypatch.setattr(set_configs, "RUN_COMMAND", str(root / "run_command"))
        monkeypatch.setenv("KOLLA_CONFIG_STRATEGY", "COPY_ALWAYS")
        monkeypatch.delenv("KOLLA_CONFIG", raising=False)
        monkeypatch.delenv("KOLLA_CONFIG_FILE", raising=False)

    def run(self, config: object, *arguments: str) -> int:
        text = config if isinstance(config, str) else json.dumps(config)
        self.monkeypatch.setenv("KOLLA_CONFIG", text)
        self.monkeypatch.setattr(sys, "argv", ["kolla_set_configs", *arguments])
        status = set_configs.main()
        assert isinstance(status, int)
        return status

    def file(self, name: str, text: str = "x") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def entry(self, source: str, dest: str, **more: object) -> dict[str, object]:
        return {
            "source": str(self.root / source),
            "dest": f"{self.root}/{dest}",
            "owner": "root",
            "perm": "0600",
            **more,
        }


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    return Container(tmp_path, monkeypatch)


def test_copies_with_owner_and_mode(container: Container) -> None:
    container.file("in/a.conf", "secret")
    entry = container.entry("in/a.conf", "etc/a.conf", owner="daemon:root")
    assert container.run({"command": "run me", "config_files": [entry]}) == 0
    target = container.root / "etc/a.conf"
    assert target.read_text() == "secret"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.stat().st_uid == 1
    assert (container.root / "run_command").read_text() == "run me"


def test_check_tells_changes(container: Container) -> None:
    source = container.file("in/a.conf")
    config = {"command": "c", "config_files": [container.entry("in/a.conf", "etc/a.conf")]}
    assert container.run(config, "--check") == 1
    assert container.run(config) == 0
    assert container.run(config, "--check") == 0
    assert container.run({**config, "command": "other"}, "--check") == 1
    (container.root / "etc/a.conf").chmod(0o644)
    assert container.run(config, "--check") == 1
    assert container.run(config) == 0
    source.write_text("new")
    assert container.run(config, "--check") == 1


def test_glob_into_directory(container: Container) -> None:
    container.file("in/1.conf", "1")
    container.file("in/2.conf", "2")
    assert container.run({"command": "c", "config_files": [container.entry("in/*.conf", "etc/d/")]}) == 0
    assert sorted(path.name for path in (container.root / "etc/d").iterdir()) == ["1.conf", "2.conf"]


def test_directory_replaces_or_merges(container: Container) -> None:
    container.file("in/d/new", "new")
    container.file("etc/d/old", "old")
    merge = container.entry("in/d", "etc/d", merge=True)
    assert container.run({"command": "c", "config_files": [merge]}) == 0
    assert sorted(path.name for path in (container.root / "etc/d").iterdir()) == ["new", "old"]
    assert container.run({"command": "c", "config_files": [container.entry("in/d", "etc/d")]}) == 0
    assert [path.name for path in (container.root / "etc/d").iterdir()] == ["new"]
    # who may read the files may enter the directory
    assert stat.S_IMODE((container.root / "etc/d").stat().st_mode) == 0o700


def test_missing_file_unless_optional(container: Container) -> None:
    entry = container.entry("in/none", "etc/none")
    assert container.run({"command": "c", "config_files": [entry]}) == 1
    assert container.run({"command": "c", "config_files": [{**entry, "optional": True}]}) == 0


@pytest.mark.parametrize(
    "config",
    [
        "no JSON",
        {},
        {"command": "c", "surprise": 1},
        {"command": "c", "config_files": [{"source": "/a", "dest": "/b"}]},
        {"command": "c", "config_files": [{"source": "/a", "dest": "/b", "owner": "root", "perm": "rw"}]},
        {"command": "c", "config_files": [{"source": "/a", "dest": "/b", "owner": "no-one", "perm": "0600"}]},
        {"command": "c", "permissions": [{"path": "/a", "owner": "root", "mode": "0600"}]},
    ],
)
def test_invalid_configuration_exits_2(container: Container, config: object) -> None:
    assert container.run(config) == 2


def test_strategy(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    source = container.file("in/a", "1")
    config = {"command": "c", "config_files": [container.entry("in/a", "etc/a")]}
    monkeypatch.setenv("KOLLA_CONFIG_STRATEGY", "SOMETIMES")
    assert container.run(config) == 1
    monkeypatch.setenv("KOLLA_CONFIG_STRATEGY", "COPY_ONCE")
    assert container.run(config) == 0
    source.write_text("2")
    assert container.run(config) == 0
    assert (container.root / "etc/a").read_text() == "1"


def test_permissions(container: Container) -> None:
    container.file("data/sub/f").chmod(0o644)
    container.file("data/keep").chmod(0o644)
    entry = {
        "path": str(container.root / "data"),
        "owner": "daemon",
        "perm": "0640",
        "recurse": True,
        "exclude": [".*/keep"],
    }
    directory = {"path": str(container.root / "made"), "owner": "daemon", "perm": "0750"}
    assert container.run({"command": "c", "permissions": [entry], "directories": [directory]}) == 0
    assert (container.root / "data/sub/f").stat().st_uid == 1
    assert stat.S_IMODE((container.root / "data/sub/f").stat().st_mode) == 0o640
    assert stat.S_IMODE((container.root / "data/sub").stat().st_mode) == 0o750
    assert (container.root / "data/keep").stat().st_uid == 0
    assert stat.S_IMODE((container.root / "made").stat().st_mode) == 0o750


def test_permissions_follow_no_link(container: Container) -> None:
    outside = container.file("outside")
    (container.root / "data").mkdir()
    (container.root / "data/link").symlink_to(outside)
    entry = {"path": str(container.root / "data"), "owner": "daemon", "perm": "0600", "recurse": True}
    assert container.run({"command": "c", "permissions": [entry]}) == 0
    assert outside.stat().st_uid == 0


# -- MariaDB


CNF = """
# comment
[client]
port = 1
[mysqld]
wsrep-on = ON
skip-name-resolve
wsrep_cluster_address = "gcomm://10.0.0.1,10.0.0.2:14567, 10.0.0.3?pc.wait_prim=yes"
wsrep_node_address = 10.0.0.2:14567
"""


def test_server_options() -> None:
    options = mariadb.server_options([CNF, "[galera]\nwsrep_on=OFF\n"])
    assert options["wsrep_on"] == "OFF"
    assert "port" not in options


def test_other_members() -> None:
    options = mariadb.server_options([CNF])
    assert mariadb.other_members(options) == [("10.0.0.1", 4567), ("10.0.0.3", 4567)]


@pytest.mark.parametrize(
    ("address", "members"),
    [
        ("", []),
        ("gcomm://", []),
        ("dummy://", []),
        ("gcomm://[fd00::1]:4567,db2", [("fd00::1", 4567), ("db2", 4567)]),
    ],
)
def test_cluster_members(address: str, members: list[tuple[str, int]]) -> None:
    assert mariadb.cluster_members(address) == members


@pytest.mark.parametrize(
    ("safe", "answering", "new"),
    [
        ("1", [], True),
        ("1", [False, False], True),
        ("1", [False, True], False),
        ("0", [False, False], False),
        ("0", [True], False),
    ],
)
def test_starts_new_cluster(safe: str, answering: list[bool], new: bool) -> None:
    grastate = mariadb.GRASTATE.format(uuid=mariadb.NO_UUID, seqno="-1", safe=safe)
    assert mariadb.starts_new_cluster(grastate, answering) is new


@given(st.text(), st.lists(st.booleans()))
def test_nobody_starts_a_second_cluster(text: str, answering: list[bool]) -> None:
    if any(answering):
        assert not mariadb.starts_new_cluster(text + "\nsafe_to_bootstrap: 1\n", answering)


def test_an_empty_node_joins() -> None:
    assert not mariadb.starts_new_cluster("", [False, False])


def test_mark_safe_keeps_the_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "DATA", tmp_path)
    mariadb.write_grastate("0f0f", "17", safe=False)
    assert mariadb.mark_safe() == 0
    fields = mariadb.parse_grastate((tmp_path / "grastate.dat").read_text())
    assert fields == {"version": "2.1", "uuid": "0f0f", "seqno": "17", "safe_to_bootstrap": "1"}


def test_bootstrap_leaves_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "DATA", tmp_path)
    (tmp_path / "mysql").mkdir()
    monkeypatch.setattr(mariadb.subprocess, "run", lambda *_, **__: pytest.fail("nothing may run"))
    assert mariadb.bootstrap() == 0
    assert not (tmp_path / "grastate.dat").exists()


def test_bootstrap_starts_over_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "DATA", tmp_path)
    monkeypatch.setattr(mariadb, "INIT_SQL", tmp_path / "none.sql")
    (tmp_path / "mysql").mkdir()
    (tmp_path / mariadb.UNFINISHED).touch()
    ran: list[str] = []
    monkeypatch.setattr(mariadb.subprocess, "run", lambda command, **_: ran.append(command[0]))
    assert mariadb.bootstrap() == 0
    assert ran == ["mariadb-install-db", "mariadbd"]
    assert not (tmp_path / "mysql").exists()
    assert not (tmp_path / mariadb.UNFINISHED).exists()
    assert mariadb.safe_to_bootstrap((tmp_path / "grastate.dat").read_text())


@pytest.mark.parametrize(
    ("status", "donor", "usable"),
    [
        ({"wsrep_ready": "ON", "wsrep_local_state": "4"}, False, True),
        ({"wsrep_ready": "OFF", "wsrep_local_state": "4"}, False, False),
        ({"wsrep_ready": "ON", "wsrep_local_state": "2"}, False, False),
        ({"wsrep_ready": "ON", "wsrep_local_state": "2"}, True, True),
        ({"wsrep_ready": "ON", "wsrep_local_state": "1"}, True, False),
        ({}, False, False),
    ],
)
def test_clustercheck(status: dict[str, str], donor: bool, usable: bool) -> None:
    assert clustercheck.verdict(status, donor)[0] is usable
