"""Backups of the databases: damage of each kind is noticed, a point in time between two writes is reached.

The tests build on each other: they share one series of backups, in a directory of their own.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SITE, SiteCopy, run_on, start_cloudctl

from cloudctl.lab.podman import podman
from cloudctl.lab.topology import PREFIX
from cloudctl.site import vault

HOME = "/var/backups/cloudctl-test"
SECOND = "/var/backups/cloudctl-test-second"
SMALL = "/var/backups/cloudctl-test-small"
DUMPS = "/var/backups/cloudctl-test-dumps"
SCHEMA = "cloudctl_test"
USER = "cloudctl_test_account"


def copy_site(name: str) -> SiteCopy:
    """Return a copy of the site with backups of its own."""
    path = SITE / ".cloudctl" / f"test-backup-{name}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(SITE, path, ignore=lambda folder, names: [".cloudctl"] if Path(folder) == SITE else [])
    connection = path / "inventory" / "group_vars" / "all.yml"
    connection.write_text(connection.read_text().replace(f"{SITE}/", f"{path}/"))
    copied = SiteCopy(path)
    assert copied.cloudctl("secrets", "generate").rc == 0
    copied.edit("settings.yml", lambda data: data.update(backup={
        "directory": HOME, "copy_to": SECOND, "dump": {"directory": DUMPS},
    }))  # fmt: skip
    return copied


@pytest.fixture(scope="module")
def site(lab: Path) -> Iterator[SiteCopy]:
    copied = copy_site("site")
    run_on("deploy", f"rm -rf {HOME}* ")
    try:
        yield copied
    finally:
        copied.cloudctl("schedule", "remove", "db-backup")
        copied.cloudctl("db", "forget-replaced", "--yes")
        sql(f"DROP DATABASE IF EXISTS {SCHEMA}; DROP USER IF EXISTS {USER}; DROP ROLE IF EXISTS {USER}_role")
        run_on("deploy", f"umount {SMALL} 2>/dev/null; rm -rf {HOME}*")
        shutil.rmtree(copied.path, ignore_errors=True)


def controllers() -> list[str]:
    nodes = json.loads((SITE / "lab.json").read_text())["nodes"]
    return [name for name, role in nodes.items() if role == "control"]


def sql(statement: str, node: str | None = None) -> list[list[str]]:
    """Run a statement on a database server; return its rows."""
    quoted = statement.replace("'", "'\\''")
    told = run_on(node or controllers()[0], f"docker exec -u mysql mariadb mariadb -NBe '{quoted}'")
    return [line.split("\t") for line in told.splitlines()]


def listed(site: SiteCopy) -> dict[str, dict[str, Any]]:
    data = site.cloudctl("db", "list", "--output", "json").json
    return {entry["id"]: entry for entry in data["backups"]}


def taken(site: SiteCopy, *options: str) -> dict[str, Any]:
    result = site.cloudctl("db", "backup", "--no-dump", "--output", "json", *options)
    assert result.rc == 0, result
    return dict(result.json)


@pytest.fixture(scope="module")
def full(site: SiteCopy) -> str:
    """A full backup with its dump, made by the printed runbook's script."""
    sql(
        f"CREATE DATABASE {SCHEMA};"
        f" CREATE TABLE {SCHEMA}.t (id INT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(40))"
    )
    sql(f"INSERT INTO {SCHEMA}.t (word) VALUES ('before')")
    told = run_on(
        "deploy",
        f"CLOUDCTL_SITE={site.path} sh /opt/cloudctl/scripts/41_openstack_db_backup.sh 2>&1",
        timeout=600,
    )
    assert "replaced by: cloudctl db backup" in told
    (name,) = listed(site)
    return name


@pytest.fixture(scope="module")
def increment(site: SiteCopy, full: str) -> str:
    sql(f"INSERT INTO {SCHEMA}.t (word) VALUES ('incremental')")
    backup = taken(site, "--incremental")
    assert (backup["kind"], backup["base"]) == ("incremental", full)
    assert backup["verified"]["rows"][SCHEMA] == {"tables": 1, "rows": 2}
    return str(backup["id"])


def test_a_backup_comes_from_a_reader_and_is_verified_copied_and_private(site: SiteCopy, full: str) -> None:
    backup = listed(site)[full]
    assert backup["verified"]["rows"][SCHEMA] == {"tables": 1, "rows": 1}
    assert re.fullmatch(r"[0-9a-f-]{36}", backup["galera"]["uuid"]) and backup["galera"]["seqno"] > 0
    clients = {
        node: int(
            sql("SELECT COUNT(*) FROM information_schema.processlist WHERE host LIKE '%:%'", node)[0][0]
        )
        for node in controllers()
    }
    assert backup["node"] != max(clients, key=lambda node: clients[node])
    day = datetime.now(UTC).strftime("%Y_%m_%d")
    dump = f"{DUMPS}/openstack_db_backup.{day}.sql"
    assert run_on("deploy", f"stat -c %a {dump} {DUMPS} {HOME}").split() == ["600", "700", "700"]
    assert run_on("deploy", f"tail -n 1 {dump}").startswith("-- Dump completed")
    assert SCHEMA in run_on("deploy", f"grep '^USE' {dump}")
    assert run_on("deploy", f"ls {SECOND}/{full}").split() == ["data.mbs.gz.sealed", "manifest.json"]
    # Nothing that could be read without the key lies on the disk.
    assert run_on("deploy", f"grep -rl before {HOME} {SECOND} || true").strip() == ""
    for node in controllers():
        assert run_on(node, "docker ps --all --quiet --filter label=cloudctl.backup").strip() == ""


def refused(site: SiteCopy, *arguments: str, rc: int = 4) -> str:
    result = site.cloudctl("db", *arguments)
    assert result.rc == rc, result
    return result.refs[0]


def test_every_damage_is_noticed_and_earlier_backups_are_intact(
    site: SiteCopy, full: str, increment: str
) -> None:
    data = f"{HOME}/{increment}/data.mbs.gz.sealed"
    for spoil in (
        # cut off; one bit flipped, whatever was there
        f"truncate -s -7 {data}",
        f"""python3 -c 'f = open("{data}", "r+b"); f.seek(3000); b = f.read(1)[0]; f.seek(3000);"""
        """ f.write(bytes([b ^ 1]))'""",
        f"rm {data}",
        f'sed -i \'s/"lsn"/"lsm"/\' {HOME}/{increment}/manifest.json',
        f'sed -i \'s/"seqno": [0-9]*/"seqno": 1/\' {HOME}/{increment}/manifest.json',
    ):
        run_on("deploy", spoil)
        assert (
            refused(site, "verify", increment, "--checksums", rc=4 if "manifest" in spoil else 7)
            == "backup-damaged"
        )
        assert refused(site, "restore", "--to", increment, "--dry-run") in (
            "backup-damaged", "backup-failed-verification",
        )  # fmt: skip
        # A restore that is free to choose takes the one before.
        choice = site.cloudctl("db", "restore", "--dry-run", "--output", "json")
        assert choice.rc == 0 and choice.json["backup"] == full, choice
        assert site.cloudctl("db", "verify", full, "--checksums").rc == 0
        run_on("deploy", f"rm -rf {HOME}/{increment} && cp -a {SECOND}/{increment} {HOME}/")
    assert listed(site)[increment]["verified"]


def test_an_increment_without_its_base_is_refused(site: SiteCopy, full: str, increment: str) -> None:
    run_on("deploy", f"mv {HOME}/{full} {HOME}-moved")
    try:
        assert refused(site, "restore", "--to", increment, "--dry-run") == "backup-chain-broken"
        assert refused(site, "verify", increment, rc=7) == "backup-chain-broken"
    finally:
        run_on("deploy", f"mv {HOME}-moved {HOME}/{full}")


def test_another_clusters_backup_is_refused(site: SiteCopy, full: str) -> None:
    other = copy_site("other")
    try:
        password = vault.password(other.path)
        secrets = vault.read_secrets(other.path / "secrets.yml", password)
        secrets["ceph_fsid"] = "00000000-1111-2222-3333-444444444444"
        (other.path / "secrets.yml").write_text(vault.encrypt(secrets, password))
        assert refused(other, "restore", "--to", full, "--dry-run") == "backup-of-another-cluster"
        told = other.cloudctl("db", "list", "--output", "json").json
        assert told["unreadable"][full]["ref"] == "backup-of-another-cluster" and not told["backups"]
    finally:
        shutil.rmtree(other.path, ignore_errors=True)


def test_a_disk_that_becomes_full_leaves_earlier_backups_intact(site: SiteCopy, full: str) -> None:
    size = int(run_on("deploy", f"du -sb {HOME}/{full}").split()[0])
    run_on("deploy", f"mkdir -p {SMALL} && mount -t tmpfs -o size={3 * size + (2 << 20)} none {SMALL}")
    run_on("deploy", f"cp -a {HOME}/{full} {SMALL}/")
    # More than fits, and more than the last backup lets expect.
    sql(f"CREATE TABLE {SCHEMA}.big (id INT PRIMARY KEY, noise BLOB)")
    rows = (3 * size + (2 << 20)) // 1000
    sql(f"INSERT INTO {SCHEMA}.big SELECT seq, RANDOM_BYTES(1024) FROM mysql.seq_1_to_{rows}")
    settings = yaml.safe_load((site.path / "settings.yml").read_text())["backup"]
    try:
        site.edit(
            "settings.yml", lambda data: data.update(backup={**settings, "directory": SMALL, "copy_to": None})
        )
        assert refused(site, "backup", "--no-dump", rc=6) == "disk-full"
        assert run_on("deploy", f"ls -A {SMALL}").split() == [full]
        assert site.cloudctl("db", "verify", full, "--checksums").rc == 0
        run_on("deploy", f"head -c {2 * size} /dev/zero >{SMALL}/.filler")
        # With hardly any room it does not even begin.
        assert refused(site, "backup", "--no-dump") == "disk-full"
    finally:
        site.edit("settings.yml", lambda data: data.update(backup=settings))
        run_on("deploy", f"umount {SMALL}")
        sql(f"DROP TABLE {SCHEMA}.big")


def test_a_killed_backup_leaves_nothing_that_counts(site: SiteCopy, increment: str) -> None:
    before = listed(site)
    process = start_cloudctl("db", "backup", "--no-dump", site=site.path)
    journal = site.path / ".cloudctl" / "backup.lock"
    started = time.monotonic()
    while not (new := run_on("deploy", f"ls -d {HOME}/.new-* 2>/dev/null || true").strip()):
        assert process.poll() is None and time.monotonic() - started < 120, "it never began to write"
        time.sleep(0.1)
    run_on("deploy", f"kill -KILL {json.loads(journal.read_text())['pid']}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert new
    assert listed(site) == before
    for node in controllers():
        wait_until("nothing of it runs on", lambda node=node: not run_on(
            node, "docker exec mariadb pgrep -f -- --stream=mbstream || true"
        ).strip(), 60)  # fmt: skip


def wait_until(what: str, check: Callable[[], bool], seconds: float) -> None:
    """Wait for a state."""
    started = time.monotonic()
    while not check():
        assert time.monotonic() - started < seconds, f"{what}: not after {seconds} s"
        time.sleep(1)


def synced() -> bool:
    told = [sql("SHOW STATUS LIKE 'wsrep_local_state_comment'", node) for node in controllers()]
    return all(rows and rows[0][1] == "Synced" for rows in told)


def test_with_a_node_down_the_backup_comes_from_another_one(site: SiteCopy, increment: str) -> None:
    donor = listed(site)[increment]["node"]
    engine = [*podman(), "pause", PREFIX + donor]
    subprocess.run(engine, check=True, capture_output=True)
    try:
        others = [node for node in controllers() if node != donor]
        wait_until("the others go on", lambda: sql(
            "SHOW STATUS LIKE 'wsrep_cluster_size'", others[0]
        )[0][1] == "2", 60)  # fmt: skip
        backup = taken(site, "--incremental")
        assert backup["node"] in others and backup["kind"] == "full" and backup["verified"]
    finally:
        subprocess.run([*podman(), "unpause", PREFIX + donor], check=True, capture_output=True)
    wait_until("the cluster is whole", lambda: _safely(synced), 240)


def _safely(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except AssertionError:
        return False


def test_the_runbooks_name_of_the_cloud_is_needed_for_a_restore(site: SiteCopy, full: str) -> None:
    assert refused(site, "restore", "--to", full, rc=2) == "confirmation-needed"
    assert (
        refused(site, "restore", "--to", full, "--replace-databases", "elsewhere", rc=2)
        == "confirmation-differs"
    )


def test_a_restore_to_a_time_between_two_writes(site: SiteCopy, increment: str) -> None:
    name = yaml.safe_load((site.path / "settings.yml").read_text())["cloud"]["name"]
    # A server without its accounts refuses such statements.
    sql(
        f"CREATE USER {USER}; CREATE ROLE {USER}_role; GRANT {USER}_role TO {USER};"
        f" GRANT SELECT ON {SCHEMA}.* TO {USER}"
    )
    sql(f"INSERT INTO {SCHEMA}.t (word) VALUES ('first')", controllers()[1])
    time.sleep(2.1)
    moment = run_on("deploy", "date -u +%Y-%m-%dT%H:%M:%SZ").strip()
    time.sleep(1.1)
    sql(f"INSERT INTO {SCHEMA}.t (word) VALUES ('second')")
    arguments = ("db", "restore", "--at", moment, "--replace-databases", name)

    # Killed when the data is exchanged; the same command goes on.
    process = start_cloudctl(*arguments, site=site.path)
    journal = site.path / ".cloudctl" / "operations" / "db-restore.json"

    def bootstrapping() -> bool:
        assert process.poll() is None, process.communicate()
        return journal.exists() and '"bootstrap"' in journal.read_text()

    wait_until("the data is exchanged", bootstrapping, 300)
    pid = json.loads((site.path / ".cloudctl" / "lock").read_text())["pid"]
    run_on("deploy", f"kill -KILL {pid}")
    process.kill()
    process.wait()
    assert refused(site, "restore", "--to", "x", "--replace-databases", name) == "restore-unfinished"
    result = site.cloudctl(*arguments, "--output", "json", timeout=900)
    assert result.rc == 0, result
    steps = {step["name"]: step["result"] for step in result.json["steps"]}
    assert (steps["prepare"], steps["swap"], steps["services"]) == ("already done", "already done", "done")

    for node in controllers():
        words = [row[0] for row in sql(f"SELECT word FROM {SCHEMA}.t ORDER BY id", node)]
        assert words == ["before", "incremental", "first"], node
        assert len(sql(f"SHOW GRANTS FOR {USER}", node)) == 3, node
    assert synced()
    # What was there is kept until it is told to go.
    for node in controllers():
        assert run_on(node, "ls -d /var/lib/docker/volumes/mariadb/replaced-*").strip()
    assert site.cloudctl("openstack", "--", "token", "issue").rc == 0
    assert "nothing to change" in site.cloudctl("plan").out
    assert site.cloudctl("db", "forget-replaced", "--yes").rc == 0
    for node in controllers():
        assert not run_on(
            node, "ls -d /var/lib/docker/volumes/mariadb/replaced-* 2>/dev/null || true"
        ).strip()


def test_a_restore_where_no_server_has_data_any_more(site: SiteCopy) -> None:
    name = yaml.safe_load((site.path / "settings.yml").read_text())["cloud"]["name"]
    backup = taken(site)
    words = sql(f"SELECT word FROM {SCHEMA}.t ORDER BY id")
    for node in controllers():
        run_on(node, "docker kill mariadb; find /var/lib/docker/volumes/mariadb/_data -mindepth 1 -delete")
    assert refused(site, "backup", "--no-dump") == "no-synced-server"
    assert site.cloudctl("galera", "recover", "--yes").refs == ["galera-no-data"]
    result = site.cloudctl("db", "restore", "--replace-databases", name, "--output", "json", timeout=900)
    assert result.rc == 0 and result.json["backup"] == backup["id"], result
    for node in controllers():
        assert sql(f"SELECT word FROM {SCHEMA}.t ORDER BY id", node) == words
    assert synced()
    assert site.cloudctl("db", "forget-replaced", "--yes").rc == 0


def test_pruning_keeps_whole_chains(site: SiteCopy, full: str, increment: str) -> None:
    assert site.cloudctl("db", "prune", "--keep", "1").rc == 2
    before = listed(site)
    plans = [
        site.cloudctl("db", "prune", "--keep", str(len(before) - less), "--dry-run", "--output", "json").json
        for less in (0, 1, 2)
    ]
    assert [plan["backups"] for plan in plans[:2]] == [[], []], "what an increment builds on stays"
    assert set(plans[2]["backups"]) == {full, increment}
    assert listed(site) == before
    result = site.cloudctl("db", "prune", "--keep", "1", "--yes", "--output", "json")
    assert {full, increment} <= set(result.json["backups"]), result
    left = listed(site)
    assert len(left) == 1
    assert run_on("deploy", f"ls {SECOND}").split() == [*left, "binlogs"]


def test_a_schedule_and_a_failed_run_in_the_status(site: SiteCopy) -> None:
    assert site.cloudctl("schedule", "db-backup", "--daily", "02:30").rc == 0
    (entry,) = site.cloudctl("schedule", "list", "--output", "json").json["schedules"].values()
    assert entry["active"] and "T02:30:00" in entry["next"]
    settings = yaml.safe_load((site.path / "settings.yml").read_text())["backup"]
    site.edit("settings.yml", lambda data: data.update(backup={**settings, "directory": "/proc/nothing"}))
    try:
        run_on("deploy", f"systemctl start {entry['unit']} || true", timeout=300)
        told = site.cloudctl("status", "--output", "json").json
        (problem,) = [problem for problem in told["problems"] if problem["ref"] == "scheduled-run-failed"]
        assert "db-backup" in problem["message"] and problem["where"] == "deploy"
    finally:
        site.edit("settings.yml", lambda data: data.update(backup=settings))
    assert site.cloudctl("schedule", "remove", "db-backup").rc == 0
    assert site.cloudctl("schedule", "list", "--output", "json").json == {"schedules": {}}
    told = site.cloudctl("status", "--output", "json").json
    assert not [problem for problem in told["problems"] if problem["ref"] == "scheduled-run-failed"]
