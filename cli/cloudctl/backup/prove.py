"""A backup is tried: unpacked, prepared and started in a throw-away container, and every row is counted."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cloudctl.backup import Report, server
from cloudctl.backup.choose import find_writer
from cloudctl.backup.manifest import Manifest, Position
from cloudctl.backup.nodes import Servers, one
from cloudctl.backup.remote import Remote
from cloudctl.backup.store import Store, mebibytes
from cloudctl.errors import CheckFailed, CloudctlError, Unreachable, VerifyFailed
from cloudctl.site.model import Site

WORK = "/work"
_ROOM = 256 << 20
_NO_SPACE = ("No space left", "Disk full", "Errcode: 28", "errno: 28")


def needed_room(chain: Sequence[Manifest]) -> int:
    """Return the bytes that unpacking and preparing a chain takes on a node: pure."""
    return int(1.2 * chain[0].data_size + sum(2 * part.files[0].content_size for part in chain[1:])) + _ROOM


def choose_node(servers: Servers, needed: int, prefer: str = "") -> str:
    """Return where to try a backup: a server's node that is not the writer's and has room.

    Raises:
        CheckFailed: none has room.
        Unreachable: none answers.
    """
    writer = find_writer(servers.judged())
    usable = [node for node in servers.order if (servers.found.get(node) or {}).get("container")]
    if not usable:
        raise Unreachable(
            "no-node-for-verification", "no node with the database's image answers",
            where=", ".join(servers.order), hint="bring one back (cloudctl status), then cloudctl db verify",
        )  # fmt: skip
    room = [node for node in usable if servers.found[node]["free"] >= needed]
    if not room:
        most = max(servers.found[node]["free"] for node in usable)
        raise CheckFailed(
            "no-room-for-verification",
            f"no node has room to try it: {mebibytes(needed)} are needed, at most {mebibytes(most)} are free",
            where=", ".join(usable), hint="make room there, then cloudctl db verify",
        )  # fmt: skip
    quiet = [node for node in room if writer is None or node != writer.node] or room
    return prefer if prefer in quiet else quiet[-1]


def unpack(
    site: Site, store: Store, chain: Sequence[Manifest], node: str, name: str, report: Report
) -> list[str]:
    """Stream a chain into the throw-away container; return the names of its directories there."""
    parts = []
    for number, part in enumerate(chain):
        assert part.path is not None
        place = f"part{number}" if number else "base"
        parts.append(place)
        for file in part.files:
            report(f"{node}: unpacking {part.id}")
            script = f"set -o pipefail; mkdir {WORK}/{place} && gzip -dc | mbstream -x -C {WORK}/{place}"
            with (
                store.reading(part.path / file.name, f"{part.id}/{file.name}", part.encrypted) as pieces,
                Remote(site, node, _exec(name, script), what="unpacking the backup") as remote,
            ):
                remote.feed(pieces)
    return parts


def _exec(name: str, script: str) -> str:
    return f"docker exec -i -u {server.USER} {shlex.quote(name)} bash -c {shlex.quote(script)}"


def send_logs(site: Site, store: Store, archive: Any, logs: Sequence[Any], node: str, name: str) -> list[str]:
    """Stream binary logs into the throw-away container; return their paths there."""
    paths = []
    for log in logs:
        path = store.log_directory(archive) / log.file
        encrypted = log.file.endswith(SEALED)
        target = f"{WORK}/{log.name}"
        script = f"set -o pipefail; gzip -dc >{target} && stat -c %s {target}"
        with (
            store.reading(path, f"{store.log_directory(archive).name}/{log.file}", encrypted) as pieces,
            Remote(site, node, _exec(name, script), what="unpacking a binary log") as remote,
        ):
            size = remote.feed(pieces).strip()
        if size != str(log.size):
            raise CheckFailed(
                "backup-damaged", f"the archived binary log has {size} of {log.size} bytes", where=str(path),
                hint="choose an earlier time, before that log begins",
            )  # fmt: skip
        paths.append(target)
    return paths


SEALED = ".sealed"


def verify(
    site: Site,
    store: Store,
    manifests: Mapping[str, Manifest],
    wanted: Manifest,
    servers: Servers,
    report: Report,
) -> Manifest:
    """Try a backup with all that it is based on, and write down the result.

    Raises:
        VerifyFailed: it does not work; it will not be used.
        CloudctlError: it could not be tried; nothing is said about it.
    """
    from cloudctl.backup.choose import chain_of

    chain = chain_of(manifests, wanted.id)
    started = time.time()
    name = f"cloudctl_backup_{wanted.id}"
    try:
        for part in chain:
            store.check_files(part)
    except CheckFailed as error:
        raise _unusable(store, wanted, error) from None
    node = choose_node(servers, needed_room(chain), prefer=wanted.node)
    report(f"{node}: trying {wanted.id} in a throw-away container")
    image = servers.found[node]["container"]["image"]
    try:
        one(site, "open", node, name=name, image=image)
        try:
            parts = unpack(site, store, chain, node, name, report)
            report(f"{node}: preparing, starting, counting rows")
            proof = one(site, "prove", node, name=name, parts=parts)["proof"]
        except Unreachable:
            raise
        except CloudctlError as error:
            if any(text in error.message for text in _NO_SPACE):
                raise CheckFailed(
                    "no-room-for-verification", "the node's disk became full while the backup was tried",
                    where=node,
                    hint="make room there, then cloudctl db verify",
                ) from None  # fmt: skip
            raise _unusable(store, wanted, error) from None
    finally:
        with contextlib.suppress(CloudctlError):
            one(site, "close", node, name=name)
    if problem := missing_from(wanted, proof["rows"]):
        raise _unusable(store, wanted, CheckFailed("backup-incomplete", problem))
    if proof["galera"]:
        wanted.galera = proof["galera"]
    if proof["binlog"]:
        wanted.binlog = Position(**proof["binlog"])
    wanted.verified = {
        "at": time.time(),
        "node": node,
        "seconds": round(time.time() - started, 1),
        "rows": proof["rows"],
    }
    wanted.failure = ""
    store.save(wanted)
    rows = sum(entry["rows"] for entry in proof["rows"].values())
    report(f"{wanted.id} is verified: {len(proof['rows'])} schemas, {rows} rows")
    return wanted


def missing_from(wanted: Manifest, rows: Mapping[str, Mapping[str, int]]) -> str:
    """Return what the server had and the backup lacks; empty when nothing. Pure."""
    for schema, tables in wanted.schemas.items():
        if schema not in rows:
            return f"the schema {schema} is missing"
        if tables >= 0 and rows[schema]["tables"] != tables:
            return f"the schema {schema} has {rows[schema]['tables']} of {tables} tables"
    return ""


def _unusable(store: Store, wanted: Manifest, error: CloudctlError) -> VerifyFailed:
    wanted.failure = error.message
    with contextlib.suppress(OSError):
        store.save(wanted)
    return VerifyFailed(
        "backup-verification-failed", f"{wanted.id} cannot be used: {error.message}",
        where=error.where or wanted.id,
        hint="take another one: cloudctl db backup; earlier ones are as they were (cloudctl db list)",
    )  # fmt: skip
