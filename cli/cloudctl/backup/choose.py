"""Which server a backup comes from, which backups and logs make a state, which may be removed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cloudctl.backup.manifest import INCREMENTAL, Manifest, Position, iso
from cloudctl.errors import CheckFailed, UsageError


@dataclass(frozen=True)
class Server:
    """A database server as it was found.

    Attributes:
        node: its node.
        state: Galera's word (Synced, Donor/Desynced …); empty when it does not answer.
        primary: it is part of the majority.
        clients: connections from other machines.
        lineage: identity of its data directory.
    """

    node: str
    state: str = ""
    primary: bool = False
    clients: int = 0
    lineage: str = ""

    @property
    def usable(self) -> bool:
        return self.state == "Synced" and self.primary


def find_writer(servers: Sequence[Server]) -> Server | None:
    """Return the server that the load balancer sends clients to.

    The balancer has one server in use and the others in reserve, in the order of the inventory: most
    connections tell it, and where nobody is connected the first one that works.
    """
    usable = [server for server in servers if server.usable]
    return max(usable, key=lambda server: server.clients) if usable else None


def choose_donor(servers: Sequence[Server], preferred: str | None = None) -> Server:
    """Return the server to take a backup from: Synced, and not the writer unless it is the only one.

    Args:
        servers: in the order of the inventory.
        preferred: lineage that earlier backups came from: increments and logs go on there.

    Raises:
        CheckFailed: none is fit.
    """
    writer = find_writer(servers)
    if writer is None:
        states = ", ".join(f"{server.node}: {server.state or 'no answer'}" for server in servers)
        raise CheckFailed(
            "no-synced-server", f"no database server is Synced with a majority ({states or 'none is known'})",
            hint="cloudctl status shows the cluster; cloudctl galera recover brings it back after an outage",
        )  # fmt: skip
    others = [server for server in servers if server.usable and server.node != writer.node]
    if not others:
        if len(servers) > 1:
            # The others would follow later; until then a backup costs the only server that serves.
            raise CheckFailed(
                "only-the-writer-is-synced",
                f"only the writer, {writer.node}, is Synced: a backup would slow down all that is written",
                hint="bring the other database servers back (cloudctl status), or give --from-writer",
            )
        return writer
    return next((server for server in others if server.lineage == preferred and preferred), others[-1])


def chain_of(manifests: Mapping[str, Manifest], wanted: str) -> list[Manifest]:
    """Return the backups that make up one, the full one first.

    Raises:
        UsageError: there is no such backup.
        CheckFailed: one that it is based on is missing or does not fit.
    """
    if wanted not in manifests:
        known = ", ".join(sorted(manifests)[-5:]) or "none"
        raise UsageError("backup-unknown", f"there is no backup '{wanted}'", hint=f"the latest: {known}")
    chain = [manifests[wanted]]
    while chain[0].kind == INCREMENTAL:
        above, base = chain[0], chain[0].base
        if base is None or base not in manifests:
            raise _broken(wanted, f"{above.id} is based on {base}, which is not there")
        below = manifests[base]
        if below in chain or below.lineage != above.lineage or below.lsn["to"] != above.lsn["from"]:
            raise _broken(wanted, f"{above.id} does not go on where {base} ends")
        chain.insert(0, below)
    return chain


def _broken(wanted: str, why: str) -> CheckFailed:
    return CheckFailed(
        "backup-chain-broken", f"the backup {wanted} cannot be used: {why}", where=wanted,
        hint="put the missing backup back (backup.copy_to has a copy), or choose an earlier one",
    )  # fmt: skip


def find_base(manifests: Mapping[str, Manifest], server: Server, longest: int) -> tuple[Manifest | None, str]:
    """Return the newest backup that an increment from this server can be based on, else None and why.

    Args:
        manifests: all readable backups.
        server: what gives the increment.
        longest: increments that may follow a full backup: an endless chain could never be pruned.
    """
    why = "there is no verified backup yet"
    for name in sorted(manifests, reverse=True):
        manifest = manifests[name]
        if not manifest.counts:
            continue
        if manifest.lineage != server.lineage:
            why = f"the last backup is of another data directory than {server.node} has now"
            if manifest.node != server.node:
                why = f"the last backup came from {manifest.node}, which cannot give one now"
            continue
        try:
            chain = chain_of(manifests, name)
            if len(chain) > longest:
                return None, f"{chain[0].id} has {len(chain) - 1} increments already"
            if all(part.counts for part in chain):
                return manifest, ""
            why = f"{name} is based on one that failed its verification"
        except CheckFailed as error:
            why = error.message
    return None, why


@dataclass(frozen=True)
class ArchivedLog:
    """A binary log in the archive.

    Attributes:
        name: as the server named it (mysql-bin.000003).
        size: its bytes.
        begins: Unix time at which the server began it.
        file, stored_size, sha256, content_size: how it lies in the archive.
    """

    name: str
    size: int
    begins: float
    file: str
    stored_size: int
    sha256: str
    content_size: int


@dataclass
class LogArchive:
    """The binary logs that are kept of one data directory.

    Attributes:
        node, lineage: where they come from.
        until: Unix time up to which they are complete.
        logs: in their order.
    """

    node: str
    lineage: str
    until: float = 0.0
    logs: list[ArchivedLog] = field(default_factory=list)


def number_of(name: str) -> int:
    """Return a binary log's number.

    Raises:
        ValueError: it has none.
    """
    match = re.search(r"\.(\d+)$", name)
    if match is None:
        raise ValueError(f"{name} is no binary log's name")
    return int(match.group(1))


def logs_for(manifest: Manifest, archive: LogArchive | None, at: float) -> list[ArchivedLog]:
    """Return the logs that lead from a backup to a time, in order.

    Raises:
        CheckFailed: they do not reach it, or one between is missing.
    """
    if manifest.binlog is None or archive is None:
        raise _no_logs(manifest, "no binary logs of its server are archived")
    if archive.until < at:
        raise _no_logs(manifest, f"the archived binary logs of {archive.node} end at {iso(archive.until)}")
    first = number_of(manifest.binlog.file)
    wanted = sorted(
        (log for log in archive.logs if number_of(log.name) >= first), key=lambda log: number_of(log.name)
    )
    # What begins after the time holds nothing of it.
    wanted = [log for log in wanted if log.begins < at or number_of(log.name) == first]
    for expected, log in enumerate(wanted, start=first):
        if number_of(log.name) != expected:
            raise _no_logs(manifest, f"binary log {expected} of {archive.node} is missing in the archive")
    if not wanted or number_of(wanted[0].name) != first or wanted[0].size < manifest.binlog.offset:
        raise _no_logs(manifest, f"binary log {manifest.binlog.file} of {archive.node} is not in the archive")
    return wanted


def _no_logs(manifest: Manifest, why: str) -> CheckFailed:
    return CheckFailed(
        "point-in-time-unreachable", f"the time cannot be reached from {manifest.id}: {why}",
        where=manifest.id,
        hint="choose a time within what cloudctl db list shows, or another backup with --to",
    )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What is restored: the chain, then the logs from its end up to ``at`` (None: the backup as it is)."""

    chain: list[Manifest]
    logs: list[ArchivedLog]
    at: float | None
    start: Position | None
    warnings: tuple[str, ...] = ()

    @property
    def backup(self) -> Manifest:
        return self.chain[-1]


def choose_restore(
    manifests: Mapping[str, Manifest],
    archives: Mapping[str, LogArchive],
    *,
    to: str | None,
    at: float | None,
    now: float,
    unverified: bool = False,
) -> Choice:
    """Return what a restore uses.

    Args:
        manifests: all readable backups of this cloud.
        archives: by lineage.
        to: a backup's id; None chooses the newest one that counts (and ends before ``at``).
        at: the time to restore to, Unix; writes of that second and later ones are left out.
        now: refuses a time in the future.
        unverified: accept backups that were not verified; one that failed its verification is never used.

    Raises:
        UsageError: there is no such backup, or the time is in the future.
        CheckFailed: nothing fits: the message says what is missing.
    """
    if at is not None and at > now:
        raise UsageError("time-in-the-future", f"{iso(at)} is in the future", hint="give a time in the past")
    if to is not None:
        chain = usable_chain(manifests, to, unverified=unverified)
        if at is None:
            return Choice(chain, [], None, None)
        if at < chain[-1].finished:
            raise CheckFailed(
                "backup-newer-than-time",
                f"{to} ends at {iso(chain[-1].finished)}, after {iso(at)}", where=to,
                hint="leave out --to: the right backup is chosen by the time",
            )  # fmt: skip
        return Choice(chain, logs_for(chain[-1], archives.get(chain[-1].lineage), at), at, chain[-1].binlog)
    reasons: list[CheckFailed | UsageError] = []
    for name in sorted(manifests, key=lambda name: manifests[name].finished, reverse=True):
        manifest = manifests[name]
        if at is not None and manifest.finished > at:
            continue
        if not manifest.counts:
            continue
        try:
            chain = usable_chain(manifests, name, unverified=False)
            logs = logs_for(manifest, archives.get(manifest.lineage), at) if at is not None else []
            warnings = tuple(f"not used: {reason.message}" for reason in reasons)
            return Choice(chain, logs, at, manifest.binlog if at is not None else None, warnings)
        except CheckFailed as error:
            reasons.append(error)
    if reasons:
        raise reasons[0]
    if at is not None and any(manifest.counts for manifest in manifests.values()):
        first = min(manifest.finished for manifest in manifests.values() if manifest.counts)
        raise CheckFailed(
            "point-in-time-unreachable", f"the first verified backup ends at {iso(first)}, after {iso(at)}",
            hint="a backup only helps for times after it",
        )  # fmt: skip
    raise CheckFailed(
        "no-verified-backup", "there is no verified backup", hint="cloudctl db list shows what there is"
    )


def usable_chain(manifests: Mapping[str, Manifest], wanted: str, *, unverified: bool) -> list[Manifest]:
    """Return a backup's chain where all of it may be used.

    Raises:
        UsageError, CheckFailed: see ``chain_of``; or a part was not verified or failed its verification.
    """
    chain = chain_of(manifests, wanted)
    for part in chain:
        if part.failure:
            raise CheckFailed(
                "backup-failed-verification", f"{part.id} failed its verification: {part.failure}",
                where=part.id,
                hint="choose another one: cloudctl db list",
            )  # fmt: skip
        if part.verified is None and not unverified:
            raise CheckFailed(
                "backup-not-verified", f"{part.id} was never verified", where=part.id,
                hint=f"cloudctl db verify {part.id}, or give --accept-unverified",
            )  # fmt: skip
    return chain


def spans(manifests: Mapping[str, Manifest], archives: Mapping[str, LogArchive]) -> list[tuple[float, float]]:
    """Return the times (Unix, first and last) to each of which the databases can be restored, in order."""
    found: list[tuple[float, float]] = []
    for manifest in sorted(manifests.values(), key=lambda manifest: manifest.finished):
        archive = archives.get(manifest.lineage)
        if not manifest.counts or archive is None or archive.until < manifest.finished:
            continue
        try:
            usable_chain(manifests, manifest.id, unverified=False)
            logs_for(manifest, archive, archive.until)
        except CheckFailed:
            continue
        if found and manifest.finished <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], archive.until))
        else:
            found.append((manifest.finished, archive.until))
    return found


def choose_prune(manifests: Mapping[str, Manifest], keep: int) -> list[str]:
    """Return the backups that may go, the newest first: none that is needed by one that stays.

    The ``keep`` newest backups that count stay, with all that they are based on. Others stay while they are
    newer than the newest of those: they may still be verified, or looked at.
    """
    order = sorted(manifests, reverse=True)
    kept = [name for name in order if manifests[name].counts][:keep]
    if not kept:
        return []
    needed = {name for name in order if name >= kept[0]} | set(kept)
    for name in list(needed):
        below = manifests[name].base
        while below is not None and below in manifests:
            needed.add(below)
            below = manifests[below].base
    return [name for name in order if name not in needed]


def prune_logs(archives: Iterable[LogArchive], kept: Iterable[Manifest]) -> dict[str, list[str]]:
    """Return by lineage the archived logs that no kept backup can need any more."""
    first: dict[str, int] = {}
    for manifest in kept:
        if manifest.binlog is not None:
            number = number_of(manifest.binlog.file)
            first[manifest.lineage] = min(number, first.get(manifest.lineage, number))
    return {
        archive.lineage: [
            log.name
            for log in archive.logs
            if archive.lineage not in first or number_of(log.name) < first[archive.lineage]
        ]
        for archive in archives
    }


def parse_time(text: str) -> float:
    """Return the Unix time of what an operator typed: ``2026-11-21T03:00:05``, with a space, with an offset.

    Without an offset it is the local time of the machine that cloudctl runs on.

    Raises:
        UsageError: it is no time.
    """
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(
            "time-malformed", f"{text!r} is no time",
            hint="write it as 2026-11-21T03:00:05, with an offset where it is not local: …+00:00",
        ) from None  # fmt: skip
    return moment.timestamp()
