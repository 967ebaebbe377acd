"""Backups on the disk: half-made ones never count, damaged ones are told, copies are whole."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from site_support import make_site
from test_backup import archive, make

from cloudctl.backup import places, remote, schedule, take
from cloudctl.backup.choose import Server
from cloudctl.backup.manifest import Manifest
from cloudctl.backup.nodes import Servers
from cloudctl.backup.store import Store, check_room
from cloudctl.errors import ApplyFailed, CheckFailed, ConfigError, MultiError, UsageError, VerifyFailed
from cloudctl.site.load import load_site
from cloudctl.site.model import Settings, Site
from cloudctl.site.names import secret_names
from cloudctl.site.schema import site_definitions
from cloudctl.site.secrets import generate
from cloudctl.site.validate import validate_site
from cloudctl.status.summary import Expected, summarise

LIBRARY = Path(__file__).resolve().parents[2] / "playbooks" / "library"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_site(tmp_path_factory.mktemp("backup"))
    generate(path)
    return path


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Site:
    loaded = load_site(made)
    values = {
        **loaded.settings,
        "backup": {**loaded.settings["backup"], "directory": str(tmp_path / "backups")},
    }
    return replace(loaded, settings=Settings(values))


@pytest.fixture
def store(site: Site) -> Store:
    store = Store(site)
    store.prepare()
    return store


def put(store: Store, name: str, content: bytes = b"content" * 100, **changes: Any) -> Manifest:
    """Store a backup that counts."""
    with store.making(name) as path:
        stored = store.store(path / "data", f"{name}/data", iter([content]))
        backup = make(name, cloud=store.cloud, key=store.key_id, files=[stored], **changes)
        store.publish(backup, path)
    return backup


def test_a_stored_backup_is_read_again(store: Store) -> None:
    put(store, "a", b"hello")
    found, unreadable = store.read()
    assert list(found) == ["a"] and not unreadable
    store.check_files(found["a"])
    assert found["a"].path is not None
    with store.reading(found["a"].path / "data", "a/data", True) as pieces:
        assert b"".join(pieces) == b"hello"
    assert (found["a"].path / "data").stat().st_mode & 0o777 == 0o600
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert b"hello" not in (found["a"].path / "data").read_bytes()


def test_a_file_that_was_cut_off_or_changed_is_told_by_its_name(store: Store) -> None:
    backup = put(store, "a")
    put(store, "earlier")
    assert backup.path is not None
    file = backup.path / "data"
    whole = file.read_bytes()
    for spoilt in (whole[:-1], whole[:10] + bytes([whole[10] ^ 1]) + whole[11:], b""):
        file.write_bytes(spoilt)
        with pytest.raises(CheckFailed, match="damaged") as caught:
            store.check_files(backup)
        assert caught.value.where == str(file)
        # The seal alone tells it too.
        with pytest.raises(CheckFailed), store.reading(file, "a/data", True) as pieces:
            list(pieces)
    file.unlink()
    with pytest.raises(CheckFailed):
        store.check_files(backup)
    store.check_files(store.read()[0]["earlier"])


def test_a_failed_backup_leaves_nothing_and_earlier_ones_as_they_were(store: Store) -> None:
    put(store, "a")

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError("the connection is gone")

    with pytest.raises(RuntimeError), store.making("b") as path:
        store.store(path / "data", "b/data", broken())
    assert [entry.name for entry in store.directory.iterdir()] == ["a"]


def test_a_full_disk_is_told_and_nothing_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "a")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cloudctl.backup.crypt.Sink.finish", full)
    with pytest.raises(ApplyFailed) as caught, store.making("b") as path:
        store.store(path / "data", "b/data", iter([b"x"]))
    assert caught.value.ref == "disk-full"
    assert [entry.name for entry in store.directory.iterdir()] == ["a"]


def test_too_little_room_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(CheckFailed) as caught:
        check_room(tmp_path, 1 << 60)
    assert caught.value.ref == "disk-full"


def test_what_a_killed_run_left_is_removed_and_never_counts(store: Store) -> None:
    put(store, "a")
    for name in (".new-b", ".old-c"):
        (store.directory / name).mkdir()
        (store.directory / name / "data").write_bytes(b"x")
    assert list(store.read()[0]) == ["a"]
    store.prepare()
    assert [entry.name for entry in store.directory.iterdir()] == ["a"]


def test_directories_without_a_good_manifest_are_told_and_kept(store: Store) -> None:
    put(store, "a")
    (store.directory / "stray").mkdir()
    (store.directory / "a").rename(store.directory / "moved")
    found, unreadable = store.read()
    assert not found
    assert set(unreadable) == {"stray", "moved"}
    assert "holds the backup a" in unreadable["moved"].message


def test_another_clusters_backup_is_told(store: Store, site: Site) -> None:
    put(store, "a")
    secrets = {**site.secrets, "ceph_fsid": "another", "backup_key": "another"}
    other = Store(replace(site, name="south", secrets=secrets))
    _found, unreadable = other.read()
    assert unreadable["a"].ref == "backup-of-another-cluster"


def test_archived_logs_are_listed_and_damage_is_told(store: Store) -> None:
    known = archive(1, 2)
    store.save_index(known)
    store.save_index(replace(known, lineage="M"))
    assert store.archives() == ({"L": known, "M": replace(known, lineage="M")}, [])
    file = store.log_directory(known) / "index.json"
    file.write_text(file.read_text().replace("9000", "9001"))
    found, damaged = store.archives()
    assert list(found) == ["M"]
    assert [(error.ref, error.where) for error in damaged] == [("backup-damaged", str(file))]


def test_without_encryption_files_are_plain_and_still_checked(site: Site) -> None:
    backup_settings = {**site.settings["backup"], "encrypt": False}
    store = Store(replace(site, settings=Settings({**site.settings, "backup": backup_settings})))
    store.prepare()
    with store.making("a") as path:
        stored = store.store(path / "data", "a/data", iter([b"hello"]))
        backup = make("a", cloud=store.cloud, key=store.key_id, files=[stored], encrypted=False)
        store.publish(backup, path)
    assert backup.path is not None
    assert (backup.path / "data").read_bytes() == b"hello"
    store.check_files(store.read()[0]["a"])


def test_a_site_made_before_the_key_existed_is_valid_and_told_to_make_it(made: Path, site: Site) -> None:
    secret = secret_names(site_definitions(made))["backup_key"]
    assert secret.late
    older = replace(
        site, secrets={name: value for name, value in site.secrets.items() if name != "backup_key"}
    )
    with pytest.raises(ConfigError) as caught:
        Store(older)
    assert caught.value.ref == "backup-key-missing"
    assert not validate_site(made)[1]


# -- the second place ------------------------------------------------------------------------------


def test_backups_that_count_are_copied_once_and_read_back(store: Store, site: Site, tmp_path: Path) -> None:
    target = tmp_path / "second"
    copying = replace(
        site,
        settings=Settings({**site.settings, "backup": {**site.settings["backup"], "copy_to": str(target)}}),
    )
    backups = {"a": put(store, "a"), "b": put(store, "b", verified=None)}
    store.save_index(archive())
    lines: list[str] = []
    assert places.copy_all(copying, store, backups, lines.append) == ["a"]
    assert places.copy_all(copying, store, backups, lines.append) == []
    assert sorted(entry.name for entry in target.iterdir()) == ["a", "binlogs"]
    copied = Store(copying, target)
    copied.check_files(copied.read()[0]["a"])
    assert list(copied.archives()[0]) == ["L"]


def test_a_second_place_that_fails_says_that_the_backup_is_whole(
    store: Store, site: Site, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    copying = replace(
        site,
        settings=Settings({**site.settings, "backup": {**site.settings["backup"], "copy_to": str(blocked)}}),
    )
    with pytest.raises(ApplyFailed) as caught:
        places.copy_all(copying, store, {"a": put(store, "a")}, lambda text: None)
    assert caught.value.ref == "backup-copy-failed"
    assert "complete" in (caught.value.hint or "")
    store.check_files(store.read()[0]["a"])


def test_another_machine_is_reached_with_the_sites_key_only(site: Site) -> None:
    place = places.Place(site, "keeper@10.0.0.9:/srv/copies")
    command = place._prefix or []
    assert "keeper@10.0.0.9" in command and "IdentitiesOnly=yes" in command
    assert any("known_hosts" in word for word in command) and "StrictHostKeyChecking=yes" in command
    assert "sudo" not in " ".join(command)


def test_nodes_are_reached_as_the_inventory_says(site: Site) -> None:
    node = site.group("control")[0]
    command = remote.ssh_command(site, node, "echo 'x'")
    assert f"{site.path}/ssh/id_ed25519" in command
    assert f"UserKnownHostsFile={site.path}/known_hosts" in command
    assert "StrictHostKeyChecking=yes" in command and "BatchMode=yes" in command
    other = replace(node, vars={**node.vars, "ansible_user": "admin", "ansible_port": 2222})
    command = remote.ssh_command(site, other, "true")
    assert f"admin@{node.address}" in command and command[-1].startswith("sudo -n ") and "2222" in command
    with pytest.raises(ConfigError):
        remote.ssh_command(site, replace(node, vars={"ansible_user": "{{ x.y.z }}"}), "true")


# -- the node's part -------------------------------------------------------------------------------


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LIBRARY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


node = load("cloudctl_backup")
timers = load("cloudctl_schedule")


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Volumes as the engine keeps them: the server's, and one with a prepared directory."""
    for path in ("db/_data/mysql", "new/_data/base/mysql"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "db/_data/old").touch()
    for path in ("db/_data/ibdata1", "new/_data/base/ibdata1", "new/_data/base/galera.cache"):
        (tmp_path / path).touch()
    monkeypatch.setattr(node, "volume_path", lambda name: tmp_path / name / "_data")
    monkeypatch.setattr(node, "inspect", lambda name: {"running": False})
    return tmp_path


def swap(source: str = "new") -> Any:
    return node.swap({"container": "c", "volume": "db", "name": "R", "source": source})


def test_the_replaced_data_is_kept_and_the_restored_one_starts_the_cluster(volumes: Path) -> None:
    swap()
    assert (volumes / "db/replaced-R/old").exists()
    assert not (volumes / "db/_data/old").exists()
    assert "safe_to_bootstrap: 1" in (volumes / "db/_data/grastate.dat").read_text()
    assert not (volumes / "db/_data/galera.cache").exists()
    assert swap()["did"] == []
    assert (volumes / "db/replaced-R/old").exists()


def test_an_exchange_that_ended_half_way_goes_on(volumes: Path) -> None:
    (volumes / "db/_data").rename(volumes / "db/replaced-R")
    swap()
    assert (volumes / "db/_data/mysql").is_dir() and (volumes / "db/replaced-R/old").exists()


def test_servers_that_join_get_an_empty_directory(volumes: Path) -> None:
    swap("")
    assert list((volumes / "db/_data").iterdir()) == []
    assert (volumes / "db/replaced-R/old").exists()
    swap("")
    assert list((volumes / "db/_data").iterdir()) == []


def test_data_of_a_running_server_is_not_touched(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "inspect", lambda name: {"running": True})
    with pytest.raises(node.Failed, match="still runs"):
        swap()
    assert (volumes / "db/_data/old").exists()


def test_without_the_prepared_data_nothing_is_lost(volumes: Path) -> None:
    (volumes / "new/_data/base").rename(volumes / "elsewhere")
    with pytest.raises(node.Failed, match="gone"):
        swap()
    assert (volumes / "db/replaced-R/old").exists()


def test_only_what_was_replaced_is_forgotten(volumes: Path) -> None:
    swap()
    assert node.forget({"volume": "db", "name": ""}) == ["replaced-R"]
    assert (volumes / "db/_data/mysql").is_dir()


def test_binary_logs_are_listed_by_the_servers_own_index(tmp_path: Path) -> None:
    (tmp_path / "mysql-bin.index").write_text(
        "./mysql-bin.000002\n/var/lib/mysql/mysql-bin.000003\n./gone.000004\n"
    )
    for number, begins in ((1, 5), (2, 1000), (3, 2000)):
        (tmp_path / f"mysql-bin.{number:06d}").write_bytes(
            b"\xfebin" + begins.to_bytes(4, "little") + b"rest"
        )
    assert [(log["name"], log["begins"], log["size"]) for log in node.read_logs(tmp_path)] == [
        ("mysql-bin.000002", 1000, 12),
        ("mysql-bin.000003", 2000, 12),
    ]


def test_a_data_directory_that_was_copied_anew_is_another_one(tmp_path: Path) -> None:
    if not Path("/etc/machine-id").exists():
        pytest.skip("this machine has no id")
    (tmp_path / "ibdata1").touch()
    (tmp_path / "mysql").mkdir()
    before = node.lineage_of(tmp_path)
    (tmp_path / "ibdata1").write_text("changed")
    assert before and node.lineage_of(tmp_path) == before
    (tmp_path / "copy").touch()
    (tmp_path / "copy").rename(tmp_path / "ibdata1")
    assert node.lineage_of(tmp_path) != before
    assert node.lineage_of(tmp_path / "nothing") == ""


def test_caches_and_logs_do_not_count_as_data(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("galera.cache", "mysql-bin.000001", "ibtmp1", "a/t.ibd"):
        (tmp_path / name).write_bytes(os.urandom(8192))
    assert node.data_size(tmp_path) == 8192


# -- schedules -------------------------------------------------------------------------------------


UNIT = "cloudctl-north-db-backup"


def test_a_time_of_day() -> None:
    assert schedule.calendar("02:30") == "*-*-* 02:30:00"
    assert schedule.calendar("7:05") == "*-*-* 07:05:00"
    for wrong in ("24:00", "2:60", "0230", "02:30:00", "noon", "", "2:5"):
        with pytest.raises(UsageError):
            schedule.calendar(wrong)


def test_the_units_name_the_command_and_keep_how_it_ended(tmp_path: Path) -> None:
    service, timer = schedule.units(
        "db-backup", "backup", "north", "cloudctl-north-", ["/usr/bin/cloudctl", "--site", "/srv/a b%c"],
        "*-*-* 02:30:00", "root",
    )  # fmt: skip
    assert 'ExecStart=/usr/bin/cloudctl --site "/srv/a b%%c"' in service
    assert "OnCalendar=*-*-* 02:30:00" in timer and "Persistent=true" in timer
    assert "/var/lib/cloudctl-schedule/cloudctl-north-db-backup.json" in service
    post = next(line for line in service.splitlines() if line.startswith("ExecStopPost="))
    # As systemd reads it: what is doubled stands for itself.
    inner = re.fullmatch(r'ExecStopPost=/bin/sh -c "(.*)"', post)
    assert inner is not None
    script = inner.group(1).replace('\\"', '"').replace("$$", "$").replace("%%", "%").replace("\\\\n", "\\n")
    script = script.replace("/var/lib/cloudctl-schedule", str(tmp_path))
    assert f'ExecStartPre=/bin/sh -c "touch /var/lib/cloudctl-schedule/{UNIT}.begun"' in service
    (tmp_path / f"{UNIT}.begun").write_text("")
    environment = {"SERVICE_RESULT": "exit-code", "EXIT_STATUS": "6", "PATH": os.environ["PATH"]}
    assert os.spawnvpe(os.P_WAIT, "sh", ["sh", "-c", script], environment) == 0
    told = json.loads((tmp_path / "cloudctl-north-db-backup.json").read_text())
    assert (told["result"], told["status"]) == ("exit-code", "6") and told["ended"] > 0
    assert not (tmp_path / f"{UNIT}.begun").exists()


def test_a_failed_run_is_a_warning_of_the_status_until_one_succeeds() -> None:
    expected = Expected(containers={}, nodes={"deploy": ("deploy",)}, schedules="cloudctl-north-")

    def problems(result: str, unit: str = "cloudctl-north-db-backup") -> list[Any]:
        run = {"result": result, "status": "6", "ended": 1795244688}
        facts = {"deploy": {"schedules": {unit: run}}}
        status = summarise(facts, {}, {}, expected)
        return [problem for problem in status.problems if problem.ref == "scheduled-run-failed"]

    (problem,) = problems("exit-code")
    assert problem.warning and problem.where == "deploy"
    assert "db-backup failed at 2026-11-21T07:04:48+00:00 (exit-code, exit code 6)" in problem.message
    (problem,) = problems("interrupted")
    assert "began at 2026-11-21T07:04:48+00:00 and did not end" in problem.message
    assert problems("success") == []
    assert problems("exit-code", "cloudctl-south-db-backup") == []


def test_units_are_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(timers, "UNITS", tmp_path)
    monkeypatch.setattr(timers, "RESULTS", tmp_path)
    monkeypatch.setattr(timers, "systemctl", lambda *words, check=True: calls.append(words) or "")
    monkeypatch.setattr(
        timers, "properties", lambda unit, *names: {"ActiveState": "active", "UnitFileState": "enabled"}
    )
    assert timers.install("p-", "x", "[Service]\nExecStart=a b\n", "[Timer]\nOnCalendar=daily\n")
    assert ("restart", "p-x.timer") in calls
    calls.clear()
    assert not timers.install("p-", "x", "[Service]\nExecStart=a b\n", "[Timer]\nOnCalendar=daily\n")
    assert calls == []
    (tmp_path / "p-x.json").write_text('{"result": "timeout", "status": "", "ended": 5}')
    listed = timers.listed("p-")
    assert (listed["x"]["calendar"], listed["x"]["command"], listed["x"]["result"]) == (
        "daily",
        "a b",
        "timeout",
    )
    (tmp_path / "p-x.begun").write_text("")
    assert timers.listed("p-")["x"]["result"] == "interrupted"
    state = {"ActiveState": "activating"}
    monkeypatch.setattr(timers, "properties", lambda unit, *names: state)
    assert timers.listed("p-")["x"]["result"] == "timeout"
    assert timers.remove("p-", "x")
    assert list(tmp_path.iterdir()) == []
    assert not timers.remove("p-", "x")


def test_what_goes_with_a_backup_is_tried_in_full_and_told_when_it_failed(
    store: Store, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    values = {**site.settings["backup"], "dump": {"enabled": True, "directory": str(blocked)}}
    given = replace(site, settings=Settings({**site.settings, "backup": values}))
    server_facts = {"schemas": {}, "now": 0}
    told = {"data_size": 1, "server": server_facts}
    monkeypatch.setattr(take, "read_servers", lambda site: Servers(["ctl01"], {"ctl01": told}))
    monkeypatch.setattr(take, "pick_donor", lambda *_arguments: Server("ctl01"))
    monkeypatch.setattr(take, "_stream", lambda *_arguments: put(store, "a"))
    monkeypatch.setattr(take.prove, "verify", lambda *_arguments: None)
    done = []

    def fails(*_arguments: object) -> None:
        done.append("logs")
        raise ApplyFailed("logs-failed", "no logs")

    monkeypatch.setattr(take, "archive_logs", fails)
    monkeypatch.setattr(take.places, "copy_all", lambda *_arguments: done.append("copied"))
    with pytest.raises(MultiError) as caught:
        take.make(given, report=lambda text: None)
    assert [error.ref for error in caught.value.errors] == ["logs-failed", "dump-directory"]
    assert done == ["logs", "copied"]
    assert list(store.read()[0]) == ["a"]


class Dumped:
    """A remote dump of two databases."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def __enter__(self) -> Dumped:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def pieces(self) -> Iterator[bytes]:
        text = b"-- Current Database: `a`\n-- Current Database: `b`\n-- Dump completed on 1"
        yield gzip.compress(text)


def test_a_dump_lacks_only_what_is_still_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**site.settings["backup"], "dump": {"enabled": True, "directory": str(tmp_path / "dumps")}}
    given = replace(site, settings=Settings({**site.settings, "backup": values}))
    after = {"server": {"schemas": {"a": 1, "b": 1, "kept": 1}}}
    monkeypatch.setattr(take, "Remote", Dumped)
    monkeypatch.setattr(take, "read_servers", lambda site, nodes: Servers(nodes, {"ctl01": after}))
    made = take.write_dump(given, "ctl01", {"a": 1, "b": 1, "dropped": 1, "mysql": 9}, lambda text: None)
    assert re.fullmatch(r"openstack_db_backup\.\d{4}_\d\d_\d\d\.sql", made.name)
    with pytest.raises(VerifyFailed, match="lacks kept"):
        take.write_dump(given, "ctl01", {"a": 1, "kept": 1, "dropped": 1}, lambda text: None)
    # A server that does not answer any more proves nothing: all of it is missed.
    monkeypatch.setattr(take, "read_servers", lambda site, nodes: Servers(nodes))
    with pytest.raises(VerifyFailed, match="lacks dropped"):
        take.write_dump(given, "ctl01", {"a": 1, "dropped": 1}, lambda text: None)
    assert [path.name for path in (tmp_path / "dumps").iterdir()] == [made.name]
