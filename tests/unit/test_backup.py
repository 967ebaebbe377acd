"""Backups: sealed files, manifests, which backups and logs make a state, what may be removed."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudctl.backup import crypt, manifest, server
from cloudctl.backup.choose import (
    ArchivedLog,
    Choice,
    LogArchive,
    Server,
    chain_of,
    choose_donor,
    choose_prune,
    choose_restore,
    find_base,
    find_writer,
    logs_for,
    parse_time,
    prune_logs,
    spans,
    usable_chain,
)
from cloudctl.backup.manifest import Manifest, Position, StoredFile
from cloudctl.backup.nodes import Servers
from cloudctl.backup.prove import choose_node, missing_from
from cloudctl.backup.restore import _target as restore_target
from cloudctl.backup.restore import differences
from cloudctl.backup.take import databases_in, gunzip, unchanged_schemas
from cloudctl.errors import ApplyFailed, CheckFailed, Unreachable, UsageError

SECRET = "a secret of the site"
CLOUD = manifest.cloud_identity("north", "30381ae9-b3b4-45bf-85ec-d8959317abc0")


# -- sealed files ----------------------------------------------------------------------------------


def seal(content: bytes, secret: str | None = SECRET, name: str = "b/data") -> bytes:
    stream = _Synced()
    sink = crypt.Sink(stream, secret, name)
    for start in range(0, len(content), 300_000):
        sink.write(content[start : start + 300_000])
    sink.finish()
    assert sink.content_size == len(content)
    assert sink.size == len(stream.getvalue())
    return stream.getvalue()


class _Synced(io.BytesIO):
    """Memory that may be brought to the disk."""

    def fileno(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def unseal(sealed: bytes, secret: str | None = SECRET, name: str = "b/data") -> bytes:
    return b"".join(crypt.read_pieces(io.BytesIO(sealed), secret, name))


@pytest.mark.parametrize("size", [0, 1, crypt.PIECE - 1, crypt.PIECE, crypt.PIECE + 1, 3 * crypt.PIECE])
def test_what_was_sealed_is_read_again(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed = seal(content)
    assert unseal(sealed) == content
    assert content[:64] not in sealed or size < 64
    assert unseal(seal(content, None), None) == content


SEALED = seal(b"x" * (2 * crypt.PIECE + 5))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SEALED) - 1), st.integers(0, 7))
def test_every_flipped_bit_is_noticed(place: int, bit: int) -> None:
    spoilt = bytearray(SEALED)
    spoilt[place] ^= 1 << bit
    with pytest.raises(crypt.SealBroken):
        unseal(bytes(spoilt))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SEALED) - 1))
def test_every_cut_is_noticed(length: int) -> None:
    with pytest.raises(crypt.SealBroken):
        unseal(SEALED[:length])


def test_pieces_cannot_be_left_out_moved_or_added() -> None:
    head = len(crypt.MAGIC) + 23
    whole = 4 + crypt.PIECE + 16
    first, second, last = (
        SEALED[head : head + whole],
        SEALED[head + whole : head + 2 * whole],
        SEALED[head + 2 * whole :],
    )
    start = SEALED[:head]
    assert unseal(start + first + second + last)
    for wrong in (first + second, first + last, second + first + last, first + second + last + last, b""):
        with pytest.raises(crypt.SealBroken):
            unseal(start + wrong)


def test_another_key_and_another_name_are_refused() -> None:
    for secret, name in (("another", "b/data"), (SECRET, "c/data")):
        with pytest.raises(crypt.SealBroken):
            unseal(SEALED, secret, name)


def test_the_same_content_is_never_sealed_alike() -> None:
    assert seal(b"x") != seal(b"x")


# -- manifests -------------------------------------------------------------------------------------


def make(name: str, base: str | None = None, *, at: float = 1000.0, **changes: Any) -> Manifest:
    """Return a verified backup that ends at a time; an increment where a base is given."""
    made = Manifest(
        id=name,
        kind="incremental" if base else "full",
        base=base,
        cloud=CLOUD,
        started=at - 10,
        finished=at,
        node="ctl03",
        lineage="L",
        galera={"uuid": "u", "seqno": 7},
        binlog=Position("mysql-bin.000002", 400),
        lsn={"from": 0, "to": int(at)},
        data_size=1000,
        schemas={"keystone": 3},
        release="2025.1",
        image="registry/mariadb-server@sha256:0",
        tools={"server": "11"},
        encrypted=True,
        key=crypt.key_id(SECRET),
        files=[StoredFile("data", 10, "0" * 64, 9)],
        verified={"at": at, "node": "ctl03", "seconds": 1.0, "rows": {"keystone": {"tables": 3, "rows": 8}}},
    )
    return replace(made, **changes)


def by_id(*backups: Manifest) -> dict[str, Manifest]:
    return {backup.id: backup for backup in backups}


def test_a_manifest_is_read_as_it_was_written() -> None:
    backup = make("20261121T023000Z-full")
    text = manifest.dump(backup, SECRET)
    assert manifest.parse(text, SECRET, cloud=CLOUD, where="m") == backup
    plain = replace(backup, encrypted=False, key="")
    assert manifest.parse(manifest.dump(plain, None), SECRET, cloud=CLOUD, where="m") == plain


def refused(text: str, secret: str | None = SECRET, cloud: dict[str, str] = CLOUD) -> str:
    with pytest.raises(CheckFailed) as caught:
        manifest.parse(text, secret, cloud=cloud, where="m")
    return caught.value.ref


def test_another_clusters_backup_is_refused_by_its_name() -> None:
    text = manifest.dump(make("a"), SECRET)
    other = manifest.cloud_identity("north", "another secret")
    assert refused(text, cloud=other) == "backup-of-another-cluster"
    # Even with another key and a manifest that was made to look like ours.
    assert refused(text, "another key", other) == "backup-of-another-cluster"
    forged = text.replace(CLOUD["id"], other["id"])
    assert refused(forged, cloud=other) == "backup-damaged"


def test_a_backup_of_another_key_is_refused_as_such() -> None:
    text = manifest.dump(make("a"), SECRET)
    assert refused(text, "a new key") == "backup-key-differs"
    assert refused(text, None) == "backup-key-differs"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_changed_character_of_a_manifest_is_noticed(data: st.DataObject) -> None:
    text = manifest.dump(make("a"), SECRET)
    place = data.draw(st.integers(0, len(text) - 2))
    new = data.draw(st.sampled_from("0aZ{"))
    spoilt = text[:place] + new + text[place + 1 :]
    if spoilt == text or (text[place].isspace() and new.isspace()):
        return
    assert refused(spoilt) in (
        "backup-damaged",
        "backup-of-another-cluster",
        "backup-key-differs",
        "backup-format",
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1, "manifest": null}', "\x00"])
def test_what_is_no_manifest_is_damaged(text: str) -> None:
    assert refused(text) == "backup-damaged"


def test_ids_sort_by_time_and_differ() -> None:
    first = manifest.make_id(0.0, "full")
    assert first == "19700101T000000Z-full"
    assert manifest.make_id(0.0, "full", [first]) == "19700101T000000Z-2-full"
    assert first < manifest.make_id(1.0, "incremental")


# -- which server ----------------------------------------------------------------------------------


def servers(*rows: tuple[str, str, int]) -> list[Server]:
    return [Server(node, state, state == "Synced", clients, f"L{node}") for node, state, clients in rows]


def test_a_backup_never_comes_from_the_writer_while_another_is_synced() -> None:
    found = servers(("ctl01", "Synced", 0), ("ctl02", "Synced", 30), ("ctl03", "Synced", 1))
    writer = find_writer(found)
    assert writer and writer.node == "ctl02"
    assert choose_donor(found).node == "ctl03"
    assert choose_donor(found, "Lctl01").node == "ctl01"
    assert choose_donor(found, "Lctl02").node == "ctl03"


def test_without_clients_the_first_of_the_inventory_is_the_writer() -> None:
    found = servers(("ctl01", "", 0), ("ctl02", "Synced", 0), ("ctl03", "Synced", 0))
    assert choose_donor(found).node == "ctl03"


def test_a_server_that_is_not_synced_gives_no_backup() -> None:
    found = servers(("ctl01", "Synced", 9), ("ctl02", "Synced", 0), ("ctl03", "Donor/Desynced", 0))
    assert choose_donor(found, "Lctl03").node == "ctl02"
    assert choose_donor([*found[:2], replace(found[2], state="Synced", primary=False)]).node == "ctl02"


def test_only_the_writer_is_refused_in_a_cluster_and_used_where_it_is_alone() -> None:
    found = servers(("ctl01", "Synced", 9), ("ctl02", "", 0), ("ctl03", "Joined", 0))
    with pytest.raises(CheckFailed, match="ctl01") as caught:
        choose_donor(found)
    assert caught.value.ref == "only-the-writer-is-synced"
    assert choose_donor(servers(("ctl01", "Synced", 9))).node == "ctl01"


def test_no_synced_server_is_told_with_all_states() -> None:
    with pytest.raises(CheckFailed, match=r"ctl01: no answer, ctl02: Joined") as caught:
        choose_donor(servers(("ctl01", "", 0), ("ctl02", "Joined", 0)))
    assert caught.value.ref == "no-synced-server"


# -- chains ----------------------------------------------------------------------------------------


def chain3() -> dict[str, Manifest]:
    return by_id(
        make("1", at=1000),
        make("2", "1", at=2000, lsn={"from": 1000, "to": 2000}),
        make("3", "2", at=3000, lsn={"from": 2000, "to": 3000}, binlog=Position("mysql-bin.000004", 385)),
    )


def test_a_chain_begins_with_the_full_backup() -> None:
    assert [part.id for part in chain_of(chain3(), "3")] == ["1", "2", "3"]
    assert [part.id for part in chain_of(chain3(), "1")] == ["1"]


def test_a_chain_without_its_base_is_broken() -> None:
    for missing in ("1", "2"):
        known = chain3()
        del known[missing]
        with pytest.raises(CheckFailed, match=f"based on {missing}") as caught:
            chain_of(known, "3")
        assert caught.value.ref == "backup-chain-broken"


@pytest.mark.parametrize("change", [{"lineage": "other"}, {"lsn": {"from": 0, "to": 999}}])
def test_increments_of_another_data_directory_do_not_fit(change: dict[str, Any]) -> None:
    known = chain3()
    known["1"] = replace(known["1"], **change)
    with pytest.raises(CheckFailed, match="does not go on where"):
        chain_of(known, "3")


def test_an_unknown_backup_is_a_mistake_of_the_command_line() -> None:
    with pytest.raises(UsageError):
        chain_of(chain3(), "4")


def test_an_increment_is_based_on_the_newest_that_counts() -> None:
    donor = Server("ctl03", "Synced", True, 0, "L")
    known = chain3()
    base, _ = find_base(known, donor, 9)
    assert base is known["3"]
    known["3"] = replace(known["3"], failure="broken")
    base, _ = find_base(known, donor, 9)
    assert base is known["2"]
    known["1"] = replace(known["1"], verified=None)
    base, why = find_base(known, donor, 9)
    assert base is None and "failed its verification" in why
    base, why = find_base(chain3(), replace(donor, lineage="M"), 9)
    assert base is None and "another data directory" in why
    base, why = find_base(chain3(), replace(donor, node="ctl02", lineage="M"), 9)
    assert base is None and "came from ctl03" in why
    assert find_base({}, donor, 9)[0] is None


def test_increments_end_so_that_old_ones_can_be_pruned() -> None:
    donor = Server("ctl03", "Synced", True, lineage="L")
    known = chain3()
    assert find_base(known, donor, 3)[0] is known["3"]
    base, why = find_base(known, donor, 2)
    assert base is None and why == "1 has 2 increments already"


def test_backups_that_were_not_verified_need_a_flag_and_failed_ones_are_never_used() -> None:
    known = chain3()
    known["2"] = replace(known["2"], verified=None)
    with pytest.raises(CheckFailed) as caught:
        usable_chain(known, "3", unverified=False)
    assert caught.value.ref == "backup-not-verified"
    assert len(usable_chain(known, "3", unverified=True)) == 3
    known["2"] = replace(known["2"], failure="bad")
    with pytest.raises(CheckFailed) as caught:
        usable_chain(known, "3", unverified=True)
    assert caught.value.ref == "backup-failed-verification"


# -- a point in time -------------------------------------------------------------------------------


def archive(*numbers: int, until: float = 9000.0, size: int = 5000) -> LogArchive:
    logs = [
        ArchivedLog(f"mysql-bin.{n:06d}", size, n * 1000.0, f"mysql-bin.{n:06d}.gz", 10, "0" * 64, 9)
        for n in numbers
    ]
    return LogArchive("ctl03", "L", until, logs)


def numbers(logs: list[ArchivedLog]) -> list[int]:
    return [int(log.name[-6:]) for log in logs]


def test_logs_go_from_the_backups_position_to_the_time() -> None:
    backup = make("a", at=2500)
    assert numbers(logs_for(backup, archive(1, 2, 3, 4, 5), 4500)) == [2, 3, 4]
    assert numbers(logs_for(backup, archive(2, 3, 4, 5), 2600)) == [2]
    # A log that begins in the very second holds nothing that is earlier.
    assert numbers(logs_for(backup, archive(2, 3, 4, 5), 4000)) == [2, 3]


@pytest.mark.parametrize(
    ("known", "at"),
    [
        (archive(2, 4), 4500),
        (archive(3, 4), 4500),
        (archive(until=9000), 4500),
        (archive(2, 3, 4, until=4400), 4500),
        (archive(2, 3, size=399), 2600),
        (None, 2600),
    ],
)
def test_a_time_that_the_logs_do_not_reach_is_refused(known: LogArchive | None, at: float) -> None:
    with pytest.raises(CheckFailed) as caught:
        logs_for(make("a", at=2500), known, at)
    assert caught.value.ref == "point-in-time-unreachable"


def test_a_backup_without_binary_logs_reaches_no_time() -> None:
    with pytest.raises(CheckFailed):
        logs_for(make("a", binlog=None), archive(2), 2600)


def restore(known: dict[str, Manifest], logs: LogArchive | None, **options: Any) -> Any:
    given_options: dict[str, Any] = {"to": None, "at": None, "now": 10_000.0, **options}
    return choose_restore(known, {"L": logs} if logs else {}, **given_options)


def test_without_anything_said_the_newest_verified_backup_is_restored() -> None:
    known = chain3()
    assert restore(known, None).backup.id == "3"
    known["3"] = replace(known["3"], verified=None)
    choice = restore(known, None)
    assert choice.backup.id == "2" and choice.logs == [] and choice.at is None


def test_a_time_chooses_the_last_backup_before_it() -> None:
    choice = restore(chain3(), archive(2, 3, 4, 5), at=2500)
    assert choice.backup.id == "2"
    assert (choice.start, numbers(choice.logs)) == (Position("mysql-bin.000002", 400), [2])
    choice = restore(chain3(), archive(2, 3, 4, 5), at=4500)
    assert choice.backup.id == "3" and numbers(choice.logs) == [4]


def test_a_time_falls_back_to_an_earlier_backup_whose_logs_reach_it() -> None:
    known = chain3()
    known["9"] = make("9", at=4000, lineage="M")
    choice = restore(known, archive(2, 3, 4, 5), at=4500)
    assert choice.backup.id == "3"
    assert "9" in choice.warnings[0]


def test_times_that_cannot_be_reached() -> None:
    for options, ref in (
        ({"at": 500.0}, "point-in-time-unreachable"),
        ({"at": 9500.0}, "point-in-time-unreachable"),
        ({"at": 10_001.0}, "time-in-the-future"),
        ({"to": "3", "at": 2500.0}, "backup-newer-than-time"),
    ):
        with pytest.raises((CheckFailed, UsageError)) as caught:
            restore(chain3(), archive(2, 3, 4, 5), **options)
        assert caught.value.ref == ref, options
    with pytest.raises(CheckFailed) as caught:
        restore({}, None)
    assert caught.value.ref == "no-verified-backup"


def test_a_backup_and_a_time_after_it() -> None:
    choice = restore(chain3(), archive(2, 3, 4, 5), to="1", at=4500)
    assert choice.backup.id == "1" and numbers(choice.logs) == [2, 3, 4]


def test_the_times_that_can_be_restored() -> None:
    known = chain3()
    assert spans(known, {"L": archive(2, 3, 4, until=5000)}) == [(1000.0, 5000.0)]
    # A log is missing between: only the last backup reaches the end.
    assert spans(known, {"L": archive(2, 4, until=5000)}) == [(3000.0, 5000.0)]
    assert spans(known, {}) == []


def test_times_are_read_with_and_without_an_offset() -> None:
    assert parse_time("1970-01-01T01:00:05+01:00") == 5.0
    assert parse_time("1970-01-01 00:00:05Z") == 5.0
    assert parse_time("2026-11-21T03:00:05") - parse_time("2026-11-21 03:00") == 5.0
    with pytest.raises(UsageError):
        parse_time("yesterday")


# -- what may be removed ---------------------------------------------------------------------------


def test_pruning_never_breaks_a_chain() -> None:
    known = chain3() | by_id(make("4", at=4000), make("5", "4", at=5000, lsn={"from": 4000, "to": 5000}))
    assert choose_prune(known, 1) == ["3", "2", "1"]
    assert choose_prune(known, 3) == []
    assert choose_prune(known, 2) == ["3", "2", "1"]


def test_pruning_removes_only_what_is_older_than_a_verified_one() -> None:
    known = by_id(make("1"), make("2"), make("3", verified=None), make("4", failure="bad"))
    assert choose_prune(known, 1) == ["1"]
    assert choose_prune(by_id(make("1", verified=None), make("2", failure="x")), 1) == []
    # Failed ones go with time, and do not count.
    known = by_id(make("1"), make("2", failure="bad"), make("3"), make("4"))
    assert choose_prune(known, 2) == ["2", "1"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.integers(1, 5))
def test_what_stays_is_always_whole(shape: list[tuple[bool, bool]], keep: int) -> None:
    known: dict[str, Manifest] = {}
    for number, (increment, counts) in enumerate(shape):
        name = f"{number:02d}"
        base = f"{number - 1:02d}" if increment and number else None
        before = known[base].lsn["to"] if base else 0
        known[name] = make(
            name, base, at=1000.0 + number, lsn={"from": before, "to": 1000 + number},
            verified={"rows": {}} if counts else None,
        )  # fmt: skip
    left = {name: backup for name, backup in known.items() if name not in choose_prune(known, keep)}
    for name in left:
        chain_of(left, name)
    good = [name for name in sorted(known, reverse=True) if known[name].counts]
    assert set(good[:keep]) <= set(left)


def test_logs_stay_as_long_as_a_kept_backup_needs_them() -> None:
    kept = [
        make("3", binlog=Position("mysql-bin.000003", 4)),
        make("4", binlog=Position("mysql-bin.000005", 4)),
    ]
    other = replace(archive(7), lineage="gone")
    assert prune_logs([archive(1, 2, 3, 4, 5), other], kept) == {
        "L": ["mysql-bin.000001", "mysql-bin.000002"],
        "gone": ["mysql-bin.000007"],
    }


# -- what programs tell ----------------------------------------------------------------------------

NOTES = """some log
=== cloudctl ===
tool_name = mariadb-backup
tool_version = 11.8.6-MariaDB
server_version = 11.8.6-MariaDB-log
binlog_pos = filename 'mysql-bin.000002', position '385', GTID of the last change '0-11-7'
innodb_from_lsn = 0
backup_type = full-backuped
from_lsn = 0
to_lsn = 55224
last_lsn = 55224
"""


def test_the_notes_of_the_backup_program_are_read() -> None:
    notes = server.parse_notes(NOTES)
    assert notes["binlog"] == Position("mysql-bin.000002", 385)
    assert notes["lsn"] == {"from": 0, "to": 55224}
    assert notes["tools"]["backup"] == "11.8.6-MariaDB"
    with pytest.raises(ValueError, match="no positions"):
        server.parse_notes("error: disk full")
    assert server.parse_notes(NOTES.replace("binlog_pos", "x"))["binlog"] is None


def test_no_command_carries_a_secret_or_a_position_that_was_not_given() -> None:
    assert "--incremental-lsn" not in server.backup_command("a")
    assert "--incremental-lsn=77" in server.backup_command("a", since=77)
    assert "password" not in server.backup_command("a") + server.dump_command()


def test_logs_are_replayed_in_their_order_up_to_the_time() -> None:
    command = server.replay_command("/work", ["/work/1", "/work/2"], 385, "2026-11-21 03:00:05")
    assert "--start-position=385 --stop-datetime='2026-11-21 03:00:05' /work/1 /work/2; } |" in command
    # Statements about accounts fail on a server that has not read them.
    assert command.startswith("{ echo 'FLUSH PRIVILEGES;'; ")


def test_what_the_server_had_must_be_in_the_backup() -> None:
    backup = make("a", schemas={"keystone": 3, "nova": -1})
    assert missing_from(backup, {"keystone": {"tables": 3}, "nova": {"tables": 9}}) == ""
    assert "nova is missing" in missing_from(backup, {"keystone": {"tables": 3}})
    assert "2 of 3 tables" in missing_from(backup, {"keystone": {"tables": 2}, "nova": {"tables": 9}})


def test_schemas_that_come_and_go_meanwhile_are_not_demanded() -> None:
    assert unchanged_schemas({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 1}) == {"a": 1, "b": -1}


def test_a_compressed_stream_that_ends_early_is_noticed() -> None:
    packed = gzip.compress(b"x" * 100_000)
    assert b"".join(gunzip([packed[:50], packed[50:]])) == b"x" * 100_000
    for spoilt in (packed[:-3], packed[:20] + b"\xff\xff" + packed[22:], b""):
        with pytest.raises(ApplyFailed):
            list(gunzip([spoilt]))


def test_databases_of_a_dump_are_found() -> None:
    assert databases_in(b"-- Current Database: `nova_api`\nx\n-- Current Database: `cut") == {"nova_api"}


def test_a_manifest_shows_no_more_than_it_has_to(tmp_path: Path) -> None:
    shown = json.dumps(replace(make("a"), path=tmp_path).as_dict())
    assert SECRET not in shown and "30381ae9" not in shown


def test_members_may_have_more_than_was_prepared_and_never_less() -> None:
    one = {"tables": 2, "rows": 5}
    prepared = {"nova": one, "mysql": {"tables": 9, "rows": 99}}
    assert differences(prepared, {"a": {"nova": one, "mysql": {"tables": 9, "rows": 98}}}) == ([], [])
    assert differences(prepared, {"a": {"nova": {"tables": 2, "rows": 6}}, "b": {"nova": one}}) == (
        [], ["nova"],
    )  # fmt: skip
    for less in ({"tables": 2, "rows": 4}, {"tables": 1, "rows": 9}):
        missing, more = differences(prepared, {"a": {"nova": one}, "b": {"nova": less}})
        assert len(missing) == 1 and missing[0].startswith("b: nova has") and not more
    assert len(differences({"x": {"tables": 0, "rows": 0}}, {"a": {}})[0]) == 1


def servers_with(free: dict[str, int]) -> Servers:
    """Return Synced servers by the free bytes of their nodes; the first one is the writer."""
    found: dict[str, dict[str, Any]] = {}
    for node, room in free.items():
        told = {"state": "Synced", "primary": True, "clients": 0 if found else 9}
        found[node] = {"container": {"image": "i"}, "free": room, "lineage": "L", "server": told}
    return Servers(list(free), found)


def test_a_backup_is_tried_where_there_is_room_and_not_on_the_writers_node() -> None:
    free = {"ctl01": 900, "ctl02": 500, "ctl03": 700}
    assert choose_node(servers_with(free), 400, prefer="ctl02") == "ctl02"
    assert choose_node(servers_with(free), 600, prefer="ctl02") == "ctl03"
    # The writer's rather than none.
    assert choose_node(servers_with(free), 800, prefer="ctl02") == "ctl01"
    with pytest.raises(CheckFailed, match="no node has room") as caught:
        choose_node(servers_with(free), 901)
    assert caught.value.ref == "no-room-for-verification"
    with pytest.raises(Unreachable):
        choose_node(Servers(["ctl01"]), 1)


def test_a_restore_is_refused_where_a_node_cannot_hold_the_data_twice() -> None:
    full = make("1", data_size=1 << 30)
    choice = Choice([full], [], None, None)
    room = {"ctl01": 2 << 30, "ctl02": 2 << 30, "ctl03": 2 << 30}
    assert restore_target(servers_with(room), choice) == full.node
    with pytest.raises(CheckFailed) as caught:
        restore_target(servers_with({**room, "ctl02": 1 << 29}), choice)
    assert (caught.value.ref, caught.value.where) == ("disk-full", "ctl02")
