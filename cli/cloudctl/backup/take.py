"""A backup is taken: streamed from one server to the deploy node, tried, and copied to the second place."""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cloudctl import __version__
from cloudctl.backup import Report, places, prove, server
from cloudctl.backup.choose import (
    ArchivedLog,
    LogArchive,
    Server,
    chain_of,
    choose_donor,
    choose_prune,
    find_base,
    find_writer,
    number_of,
    prune_logs,
)
from cloudctl.backup.manifest import FULL, INCREMENTAL, Manifest, Position, make_id
from cloudctl.backup.nodes import Servers, read_servers
from cloudctl.backup.remote import Remote
from cloudctl.backup.store import INDEX, LOGS, Store, check_room, mebibytes, open_private, sync
from cloudctl.errors import (
    ApplyFailed,
    CheckFailed,
    CloudctlError,
    ConfigError,
    MultiError,
    Unreachable,
    UsageError,
    VerifyFailed,
)
from cloudctl.runs.lock import SiteLock
from cloudctl.site.model import Site

LOCK = "backup.lock"
DUMP = "openstack_db_backup"


def make(
    site: Site,
    *,
    kind: str = FULL,
    report: Report,
    verify: bool = True,
    dump: bool | None = None,
    from_writer: bool = False,
) -> Manifest:
    """Take a backup, verify it, archive binary logs, and copy it to the second place.

    Args:
        site: whose databases.
        kind: ``full`` or ``incremental``; the latter becomes a full one where there is nothing to base it on.
        report: told what is being done.
        verify: try the backup; one that was not tried does not count.
        dump: write the logical dump too; None: as the site's settings say, with full backups.
        from_writer: accept the writer where no other server is Synced.

    Returns:
        The backup; its ``path`` tells where it lies.

    Raises:
        LockHeld: another backup or restore is in progress.
        CheckFailed: no server is fit, or there is no room; nothing was done.
        ApplyFailed, Unreachable: it failed; nothing of it is kept, unless the message says so.
        VerifyFailed: it was taken and does not work; it does not count.
    """
    store = Store(site)
    with SiteLock(site.path, "db backup", name=LOCK):
        store.prepare()
        manifests, _unreadable = store.read()
        servers = read_servers(site)
        donor = pick_donor(servers, manifests, from_writer)
        base: Manifest | None = None
        if kind == INCREMENTAL:
            base, why = find_base(manifests, donor, int(site.get("backup.increments")))
            if base is None:
                report(f"a full backup instead of an incremental one: {why}")
                kind = FULL
        before = servers.found[donor.node]["server"]
        check_room(store.directory, _estimate(servers.found[donor.node]["data_size"], manifests, kind))
        name = make_id(time.time(), kind, [*manifests, *_unreadable])
        writer = find_writer(servers.judged())
        report(
            f"{donor.node}: taking {name}"
            + (f" (the writer is {writer.node})" if writer and writer != donor else "")
        )
        backup = _stream(site, store, name, kind, base, donor, servers, before)
        report(f"{name}: {mebibytes(backup.size)} stored in {store.directory}")
        manifests[name] = backup
        if verify:
            prove.verify(site, store, manifests, backup, servers, report)
        # The backup is complete: whatever of the rest fails, the other parts of it are still done.
        problems: list[CloudctlError] = []
        with _collected(problems):
            archive_logs(site, store, manifests, report)
        if site.get("backup.dump.enabled") and kind == FULL if dump is None else dump:
            with _collected(problems):
                path = write_dump(site, donor.node, before["schemas"], report)
                backup.dump = str(path)
                store.save(backup)
        with _collected(problems):
            places.copy_all(site, store, manifests, report)
        if problems:
            report(f"{name} is complete, but not all that belongs to it")
            raise problems[0] if len(problems) == 1 else MultiError(problems)
        return backup


@contextmanager
def _collected(problems: list[CloudctlError]) -> Iterator[None]:
    try:
        yield
    except CloudctlError as error:
        problems.append(error)


def pick_donor(servers: Servers, manifests: Mapping[str, Manifest], from_writer: bool) -> Server:
    """Return the server to take a backup from, where earlier backups came from if it is fit."""
    judged = servers.judged()
    last = next(
        (manifests[name].lineage for name in sorted(manifests, reverse=True) if manifests[name].counts), None
    )
    try:
        return choose_donor(judged, last)
    except CheckFailed as error:
        writer = find_writer(judged)
        if from_writer and writer is not None:
            return writer
        if writer is None and servers.failed and not servers.found:
            raise next(iter(servers.failed.values())) from None
        raise error from None


def _estimate(data_size: int, manifests: Mapping[str, Manifest], kind: str) -> int:
    """Return the bytes that a new backup will take at most: pure."""
    earlier = [manifest.size for manifest in manifests.values() if manifest.kind == kind and manifest.counts]
    if earlier:
        return int(1.5 * max(earlier[-3:])) + (1 << 20)
    return data_size // 2 if kind == FULL else data_size // 10


def _stream(
    site: Site,
    store: Store,
    name: str,
    kind: str,
    base: Manifest | None,
    donor: Server,
    servers: Servers,
    before: Mapping[str, Any],
) -> Manifest:
    file_name = "data.mbs.gz" + (prove.SEALED if store.key else "")
    command = server.backup_command(name, since=base.lsn["to"] if base else None)
    with store.making(name) as path:
        with Remote(site, donor.node, command, what="the copy of the database") as remote:
            stored = store.store(path / file_name, f"{name}/{file_name}", remote.pieces())
            notes_text = remote.errors
        try:
            notes = server.parse_notes(notes_text)
        except ValueError as error:
            raise ApplyFailed(
                "backup-failed", f"the copy of the database is not complete: {error}", where=donor.node,
                hint="run it again; see the log of the database on that node",
            ) from None  # fmt: skip
        after_all = read_servers(site, nodes=[donor.node])
        told = after_all.found.get(donor.node) or {}
        after = told.get("server")
        if not after:
            raise after_all.failed.get(donor.node) or Unreachable(
                "database-gone", "the server stopped answering while it was copied", where=donor.node,
                hint="cloudctl status, then run it again",
            )  # fmt: skip
        if told["lineage"] != donor.lineage:
            raise ApplyFailed(
                "data-directory-replaced", "the server's data was replaced while it was copied",
                where=donor.node,
                hint="run it again",
            )  # fmt: skip
        found = servers.found[donor.node]
        backup = Manifest(
            id=name,
            kind=kind,
            base=base.id if base else None,
            cloud=store.cloud,
            started=before["now"],
            finished=after["now"],
            node=donor.node,
            lineage=donor.lineage,
            galera={"uuid": after["uuid"], "seqno": before["seqno"]},
            binlog=notes["binlog"],
            lsn=notes["lsn"],
            data_size=found["data_size"],
            schemas=unchanged_schemas(before["schemas"], after["schemas"]),
            release=str(site.get("release")),
            image=found["container"]["image"],
            tools={**notes["tools"], "server": before["version"], "cloudctl": __version__},
            encrypted=store.key is not None,
            key=store.key_id,
            files=[stored],
        )
        if base is not None and backup.lsn["from"] != base.lsn["to"]:
            raise ApplyFailed(
                "backup-failed", "the increment does not begin where its base ends", where=donor.node,
                hint="take a full backup",
            )  # fmt: skip
        store.publish(backup, path)
    return backup


def unchanged_schemas(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Return what a backup must contain: the schemas that were there before and after it.

    The number is -1 where it changed meanwhile. Pure.
    """
    return {name: tables if after[name] == tables else -1 for name, tables in before.items() if name in after}


# -- binary logs ------------------------------------------------------------------------------------


def archive_logs(site: Site, store: Store, manifests: Mapping[str, Manifest], report: Report) -> None:
    """Fetch the closed binary logs of the servers that backups came from, as far as they are there.

    A server that does not answer is reported and left: its logs are fetched the next time.
    """
    first: dict[str, int] = {}
    nodes: dict[str, str] = {}
    for manifest in manifests.values():
        if manifest.binlog is not None and not manifest.failure:
            number = number_of(manifest.binlog.file)
            first[manifest.lineage] = min(number, first.get(manifest.lineage, number))
            nodes[manifest.lineage] = manifest.node
    wanted = sorted(set(nodes.values()) & set(read_order(site)))
    if not wanted:
        return
    servers = read_servers(site, action="rotate", nodes=wanted)
    for node, error in servers.failed.items():
        report(f"{node}: its binary logs were not fetched: {error.message}")
    archives, damaged = store.archives()
    for damage in damaged:
        report(f"{damage.message} ({damage.where}); {damage.hint}")
    for node, found in servers.found.items():
        lineage = found["lineage"]
        if lineage not in first:
            continue
        archive = archives.get(lineage) or LogArchive(node, lineage)
        if lineage not in archives:
            # A list that cannot be used makes room for a new one of what the server still has.
            _set_aside(store.log_directory(archive) / INDEX)
        count = _fetch_logs(site, store, archive, found, first[lineage])
        if count:
            report(f"{node}: {count} binary log{'s' * (count != 1)} archived")


def _set_aside(index: Path) -> None:
    if index.exists():
        index.rename(index.with_name(f"earlier-{int(time.time())}-{INDEX}"))


def read_order(site: Site) -> list[str]:
    """Return the nodes of the database servers."""
    from cloudctl.backup.nodes import server_nodes

    return server_nodes(site)


def _fetch_logs(site: Site, store: Store, archive: LogArchive, found: Mapping[str, Any], first: int) -> int:
    known = {log.name: log for log in archive.logs}
    if any(log["name"] in known and known[log["name"]].begins != log["begins"] for log in found["logs"]):
        # The server began to count anew: what is there belongs to an earlier count and is kept apart.
        _set_aside(store.log_directory(archive) / INDEX)
        archive.logs.clear()
        known = {}
    directory = store.log_directory(archive)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    count = 0
    for log in found["closed"]:
        if log["name"] in known or number_of(log["name"]) < first:
            continue
        file = f"{log['name']}-{log['begins']}.gz" + (prove.SEALED if store.key else "")
        partial = directory / f".new-{file}"
        try:
            with Remote(site, archive.node, server.log_command(log["path"]), what="a binary log") as remote:
                stored = store.store(partial, f"{directory.name}/{file}", remote.pieces())
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ApplyFailed(
                    "disk-full", "the disk is full: the backup is complete, its binary logs are not archived",
                    where=str(directory), hint="make room: cloudctl db prune --keep N",
                ) from None  # fmt: skip
            raise
        except CloudctlError:
            partial.unlink(missing_ok=True)
            raise
        partial.rename(directory / file)
        sync(directory)
        archive.logs.append(
            ArchivedLog(
                log["name"], log["size"], log["begins"], file, stored.size, stored.sha256, stored.content_size
            )
        )
        archive.logs.sort(key=lambda entry: number_of(entry.name))
        store.save_index(archive)
        count += 1
    archive.until = max(archive.until, float(found["until"]))
    store.save_index(archive)
    return count


# -- verifying again, pruning ----------------------------------------------------------------------


def verify_again(
    site: Site, wanted: str | None, *, everything: bool, checksums: bool, report: Report
) -> list[tuple[str, CloudctlError | None]]:
    """Verify backups that are there.

    Args:
        wanted: a backup's id; None is the newest one.
        everything: all of them, the newest first.
        checksums: only compare checksums.

    Returns:
        Each one's id, and what is wrong with it.

    Raises:
        UsageError: there is no such backup.
        CloudctlError: it could not be tried.
    """
    store = Store(site)
    with SiteLock(site.path, "db verify", name=LOCK):
        manifests, unreadable = store.read()
        known = sorted({*manifests, *unreadable}, reverse=True)
        if wanted is not None and wanted not in known:
            raise UsageError(
                "backup-unknown", f"there is no backup '{wanted}'",
                hint=f"the latest: {', '.join(known[:5]) or 'none'}",
            )  # fmt: skip
        if not known:
            raise CheckFailed(
                "no-backup",
                "there is no backup",
                where=str(store.directory),
                hint="cloudctl db backup makes one",
            )
        names = known if everything else [wanted or known[0]]
        servers = None if checksums else read_servers(site)
        results: list[tuple[str, CloudctlError | None]] = []
        for name in names:
            if name in unreadable:
                results.append((name, unreadable[name]))
                continue
            try:
                for part in chain_of(manifests, name):
                    store.check_files(part)
                if servers is not None:
                    prove.verify(site, store, manifests, manifests[name], servers, report)
            except (CheckFailed, VerifyFailed) as error:
                if error.ref.startswith("no-room"):
                    raise
                if error.ref == "backup-damaged":
                    manifests[name].failure = error.message
                    store.save(manifests[name])
                results.append(
                    (name, VerifyFailed(error.ref, error.message, where=error.where, hint=error.hint))
                )
            else:
                results.append((name, None))
        return results


def prune(site: Site, keep: int, *, report: Report, dry_run: bool = False) -> dict[str, list[str]]:
    """Remove what is not needed any more: backups, archived binary logs, logical dumps.

    Args:
        keep: verified backups, and dumps, that stay.

    Returns:
        ``backups``, ``logs`` and ``dumps`` that were (or would be) removed.
    """
    store = Store(site)
    with SiteLock(site.path, "db prune", name=LOCK):
        manifests, unreadable = store.read()
        gone = choose_prune(manifests, keep)
        kept = {name: manifest for name, manifest in manifests.items() if name not in gone}
        archives, _damaged = store.archives()
        # What cannot be read may still need logs.
        for error in unreadable.values() if any(archive.logs for archive in archives.values()) else ():
            report(f"binary logs stay as long as this cannot be read: {error.message} ({error.where})")
        logs = prune_logs(archives.values(), kept.values()) if kept and not unreadable else {}
        directory = Path(site.get("backup.dump.directory"))
        dumps = sorted(directory.glob(f"{DUMP}.*.sql"), reverse=True)[keep:] if directory.is_dir() else []
        result = {
            "backups": gone,
            "logs": [
                f"{archives[lineage].node}: {name}" for lineage, names in logs.items() for name in names
            ],
            "dumps": [str(path) for path in dumps],
        }
        if dry_run:
            return result
        target = site.get("backup.copy_to")
        place = places.Place(site, target) if target else None
        # The newest first: an increment never stays without its base.
        for name in gone:
            store.remove(name)
            report(f"removed {name}")
            if place is not None:
                place.remove(name)
        for lineage, names in logs.items():
            archive = archives[lineage]
            files = [log.file for log in archive.logs if log.name in names]
            archive.logs = [log for log in archive.logs if log.name not in names]
            folder = store.log_directory(archive)
            if archive.logs:
                store.save_index(archive)
            for file in files:
                (folder / file).unlink(missing_ok=True)
                if place is not None:
                    place.remove(f"{LOGS}/{folder.name}/{file}")
            if not archive.logs:
                shutil.rmtree(folder)
                if place is not None:
                    place.remove(f"{LOGS}/{folder.name}")
        for path in dumps:
            path.unlink(missing_ok=True)
        return result


# -- the logical dump -------------------------------------------------------------------------------


def write_dump(site: Site, node: str, schemas: Mapping[str, int], report: Report) -> Path:
    """Write the logical dump of all databases in the documented form; one of the same day is replaced.

    Returns:
        Its path.

    Raises:
        ApplyFailed, VerifyFailed: it is not complete; the earlier one is as it was.
    """
    directory = Path(site.get("backup.dump.directory"))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for left in directory.glob(f".{DUMP}.*.partial"):  # by a run that was killed
            left.unlink()
    except OSError as error:
        raise ConfigError(
            "dump-directory", f"the directory of dumps cannot be used: {error.strerror}",
            where=str(directory),
            hint="the backup itself is complete; the setting backup.dump.directory names the directory",
        ) from None  # fmt: skip
    final = directory / f"{DUMP}.{datetime.now().strftime('%Y_%m_%d')}.sql"
    partial = directory / f".{final.name}.partial"
    report(f"{node}: writing the logical dump {final}")
    found: set[str] = set()
    tail = b""
    try:
        with (
            Remote(site, node, server.dump_command(), what="the logical dump") as remote,
            open_private(partial) as stream,
        ):
            for piece in gunzip(remote.pieces()):
                stream.write(piece)
                # A name may lie across two pieces.
                found |= databases_in(tail + piece)
                tail = (tail + piece)[-4096:]
            stream.flush()
            os.fsync(stream.fileno())
        missing = sorted(set(schemas) - {"sys", "mysql"} - found)
        if missing:
            # What was dropped meanwhile is in no dump.
            told = read_servers(site, nodes=[node]).found.get(node, {}).get("server") or {}
            missing = [name for name in missing if name in told.get("schemas", schemas)]
        if b"-- Dump completed" not in tail or missing:
            raise VerifyFailed(
                "dump-incomplete",
                f"the logical dump lacks {', '.join(missing)}" if missing else "the logical dump ends early",
                where=str(final), hint="run it again",
            )  # fmt: skip
        partial.rename(final)
        sync(directory)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ApplyFailed(
                "disk-full", "the disk is full: the backup is complete, its logical dump is not written",
                where=str(directory), hint="make room there, or give backup.dump.directory another disk",
            ) from None  # fmt: skip
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return final


def gunzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what a gzip stream holds.

    Raises:
        ApplyFailed: it is damaged or ends early.
    """
    unpacker = zlib.decompressobj(31)
    try:
        for piece in pieces:
            yield unpacker.decompress(piece)
    except zlib.error as error:
        raise ApplyFailed("stream-damaged", f"the stream is damaged: {error}") from None
    if not unpacker.eof:
        raise ApplyFailed("stream-damaged", "the stream ends early", hint="run it again")


def databases_in(text: bytes) -> set[str]:
    """Return the databases whose part of a dump begins in this text: pure.

    >>> sorted(databases_in(b"-- Current Database: `a`\\n-- Current Database: `b"))
    ['a']
    """
    mark = b"-- Current Database: `"
    return {rest.partition(b"`")[0].decode(errors="replace") for rest in text.split(mark)[1:] if b"`" in rest}


def position_text(position: Position | None) -> str:
    """Return a binary log's position for people."""
    return f"{position.file}:{position.offset}" if position else "-"
