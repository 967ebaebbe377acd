"""Where backups lie on the deploy node: a directory for each, complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from cloudctl.backup import crypt, manifest
from cloudctl.backup.choose import ArchivedLog, LogArchive
from cloudctl.backup.manifest import MANIFEST, Manifest, StoredFile
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, ConfigError
from cloudctl.runs.record import write_atomically
from cloudctl.site.model import Site

KEY = "backup_key"
LOGS = "binlogs"
INDEX = "index.json"
_NEW, _OLD = ".new-", ".old-"


class Store:
    """A site's backups.

    Args:
        site: whose.
        directory: where; None takes the site's setting ``backup.directory``.

    Raises:
        ConfigError: the site encrypts its backups and has no key yet.
    """

    def __init__(self, site: Site, directory: Path | None = None) -> None:
        self.directory = directory or Path(site.get("backup.directory"))
        self.cloud = manifest.cloud_identity(site.name, site.secrets["ceph_fsid"])
        # Old backups stay readable where encryption was switched off later.
        self.secret = site.secrets.get(KEY)
        self.encrypts = bool(site.get("backup.encrypt"))
        if self.encrypts and not self.secret:
            raise ConfigError(
                "backup-key-missing", f"the site has no {KEY}, with which backups are encrypted",
                where="secrets.yml",
                hint="cloudctl secrets generate makes it; keep a copy of the vault's password elsewhere",
            )  # fmt: skip

    @property
    def key(self) -> str | None:
        """The secret that new files are sealed with; None where they are not."""
        return self.secret if self.encrypts else None

    @property
    def key_id(self) -> str:
        return crypt.key_id(self.key) if self.key else ""

    def prepare(self) -> None:
        """Make the directory, and remove what interrupted runs left.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            for path in self.directory.iterdir():
                if path.name.startswith((_NEW, _OLD)):
                    shutil.rmtree(path)
        except OSError as error:
            raise ConfigError(
                "backup-directory", f"the directory of backups cannot be used: {error.strerror}",
                where=str(self.directory), hint="the setting backup.directory names it",
            ) from None  # fmt: skip

    # -- reading --------------------------------------------------------------------------------

    def read(self) -> tuple[dict[str, Manifest], dict[str, CloudctlError]]:
        """Return the readable backups by id, and by id why another one is not readable."""
        found: dict[str, Manifest] = {}
        unreadable: dict[str, CloudctlError] = {}
        if not self.directory.is_dir():
            return found, unreadable
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith(".") or path.name == LOGS or not path.is_dir():
                continue
            try:
                found[path.name] = self.read_one(path)
            except CloudctlError as error:
                unreadable[path.name] = error
        return found, unreadable

    def read_one(self, path: Path) -> Manifest:
        """Return the backup in a directory.

        Raises:
            CheckFailed: there is no manifest, or it is not this cloud's, or damaged.
        """
        file = path / MANIFEST
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckFailed(
                "backup-damaged", f"the backup's manifest cannot be read: {error}", where=str(file),
                hint="take it from the second place (backup.copy_to), or use another backup",
            ) from None  # fmt: skip
        known = manifest.parse(text, self.secret, cloud=self.cloud, where=str(file))
        if known.id != path.name:
            raise CheckFailed(
                "backup-damaged", f"the directory holds the backup {known.id}", where=str(path),
                hint="give the directory its own name back",
            )  # fmt: skip
        known.path = path
        return known

    def check_files(self, backup: Manifest) -> None:
        """Compare every file with its checksum.

        Raises:
            CheckFailed: one is missing, was cut off or changed; naming it.
        """
        assert backup.path is not None
        for file in backup.files:
            path = backup.path / file.name
            try:
                size, checksum = checksum_of(path)
            except OSError as error:
                raise damaged(path, f"{error.strerror}") from None
            if size != file.size:
                raise damaged(path, f"it has {size} of {file.size} bytes")
            if checksum != file.sha256:
                raise damaged(path, "its checksum differs")

    @contextmanager
    def reading(self, path: Path, name: str, encrypted: bool) -> Iterator[Iterator[bytes]]:
        """Open a stored file; yields the pieces of its content.

        Raises:
            CheckFailed: it is damaged.
        """
        try:
            with path.open("rb") as stream:
                yield crypt.read_pieces(stream, self.secret if encrypted else None, name)
        except crypt.SealBroken as error:
            raise damaged(path, str(error)) from None
        except FileNotFoundError:
            raise damaged(path, "it is not there") from None

    # -- writing --------------------------------------------------------------------------------

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yield a new backup's directory, which has no name that counts yet; removed when an error ends it.

        Raises:
            ApplyFailed: the disk is full.
        """
        path = self.directory / f"{_NEW}{name}"
        try:
            path.mkdir(mode=0o700)
            yield path
        except BaseException as error:
            shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(self.directory) from None
            raise

    def publish(self, backup: Manifest, path: Path) -> None:
        """Give a complete backup its name."""
        final = self.directory / backup.id
        backup.path = path
        self.save(backup)
        path.rename(final)
        sync(self.directory)
        backup.path = final

    def save(self, backup: Manifest) -> None:
        """Write a backup's manifest."""
        assert backup.path is not None
        write_atomically(
            backup.path / MANIFEST, manifest.dump(backup, self.secret if backup.encrypted else None)
        )

    def store(self, path: Path, name: str, pieces: Iterator[bytes]) -> StoredFile:
        """Write a stream into a file of this store."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            sink = crypt.Sink(stream, self.key, name)
            for piece in pieces:
                sink.write(piece)
            sink.finish()
        return StoredFile(path.name, sink.size, sink.sha256, sink.content_size)

    def remove(self, name: str) -> None:
        """Remove a backup: at once by name, then its files."""
        gone = self.directory / f"{_OLD}{name}"
        (self.directory / name).rename(gone)
        shutil.rmtree(gone)

    # -- binary logs ----------------------------------------------------------------------------

    def archives(self) -> tuple[dict[str, LogArchive], list[CloudctlError]]:
        """Return the archived binary logs by the lineage of their server's data directory.

        Lists of logs that cannot be used are returned as errors: what is next to them still can.
        """
        found: dict[str, LogArchive] = {}
        damaged_ones: list[CloudctlError] = []
        for file in sorted((self.directory / LOGS).glob(f"*/{INDEX}")):
            try:
                archive = self._read_index(file)
            except CheckFailed as error:
                damaged_ones.append(error)
            else:
                found[archive.lineage] = archive
        return found, damaged_ones

    def log_directory(self, archive: LogArchive) -> Path:
        """Return where a server's logs are kept."""
        slug = hashlib.sha256(archive.lineage.encode()).hexdigest()[:12]
        return self.directory / LOGS / f"{archive.node}-{slug}"

    def save_index(self, archive: LogArchive) -> None:
        """Write down which logs are there."""
        path = self.log_directory(archive)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = {"cloud": self.cloud, "encrypted": self.encrypts, "archive": asdict(archive)}
        text = json.dumps(data, sort_keys=True)
        seal = (
            crypt.authenticate(self.key, text.encode())
            if self.key
            else hashlib.sha256(text.encode()).hexdigest()
        )
        write_atomically(path / INDEX, json.dumps({**data, "seal": seal}, indent=1) + "\n")

    def _read_index(self, file: Path) -> LogArchive:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            seal = data.pop("seal")
            text = json.dumps(data, sort_keys=True).encode()
            if data["cloud"]["id"] != self.cloud["id"]:
                raise ValueError
            key = self.secret if data["encrypted"] else None
            expected = crypt.authenticate(key, text) if key else hashlib.sha256(text).hexdigest()
            if not hmac.compare_digest(seal, expected):
                raise ValueError
            entries = data["archive"]
            logs = [ArchivedLog(**log) for log in entries["logs"]]
            return LogArchive(entries["node"], entries["lineage"], float(entries["until"]), logs)
        except (OSError, ValueError, KeyError, TypeError):
            raise damaged(file, "the list of archived binary logs cannot be used") from None

    def check_log(self, archive: LogArchive, log: ArchivedLog) -> None:
        """Compare an archived log with its checksum.

        Raises:
            CheckFailed: it is not what was written.
        """
        path = self.log_directory(archive) / log.file
        try:
            found = checksum_of(path)
        except OSError as error:
            raise damaged(path, f"{error.strerror}") from None
        if found != (log.stored_size, log.sha256):
            raise damaged(path, "its checksum differs")


def checksum_of(path: Path) -> tuple[int, str]:
    """Return a file's size and SHA-256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def damaged(path: Path, why: str) -> CheckFailed:
    """Return the error for a file that is not what was written."""
    return CheckFailed(
        "backup-damaged", f"a file of the backup is damaged: {why}", where=str(path),
        hint="take the backup from the second place (backup.copy_to), or use another one: cloudctl db list",
    )  # fmt: skip


def disk_full(directory: Path) -> ApplyFailed:
    """Return the error for a disk without room."""
    return ApplyFailed(
        "disk-full", "the disk is full: nothing of this backup was kept, earlier ones are as they were",
        where=str(directory),
        hint="make room (cloudctl db prune --keep N), or give backup.directory another disk",
    )  # fmt: skip


def check_room(directory: Path, needed: int) -> None:
    """Refuse to begin where the disk has no room.

    Args:
        needed: bytes.

    Raises:
        CheckFailed: less is free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckFailed(
            "disk-full", f"about {mebibytes(needed)} are needed and {mebibytes(free)} are free",
            where=str(directory),
            hint="make room (cloudctl db prune --keep N), or give backup.directory another disk",
        )  # fmt: skip


def mebibytes(size: float) -> str:
    """Return a size for people."""
    return f"{size / (1 << 20):.1f} MiB" if size < 1 << 30 else f"{size / (1 << 30):.1f} GiB"


def sync(directory: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path) -> IO[bytes]:
    """Open a new file that only its owner may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
