"""What a backup says of itself. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudctl.backup import crypt
from cloudctl.errors import CheckFailed

FORMAT = 1
FULL, INCREMENTAL = "full", "incremental"
KINDS = (FULL, INCREMENTAL)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Position:
    """A place in one server's binary logs."""

    file: str
    offset: int


@dataclass(frozen=True)
class StoredFile:
    """One file of a backup.

    Attributes:
        name: inside the backup's directory.
        size: bytes on the disk.
        sha256: of the file as it lies on the disk.
        content_size: bytes before encryption.
    """

    name: str
    size: int
    sha256: str
    content_size: int


@dataclass
class Manifest:
    """One backup.

    Attributes:
        id: its name, which begins with the time (UTC) and sorts by it.
        kind: ``full`` or ``incremental``.
        base: the backup that an incremental one is based on.
        cloud: ``name`` of the cloud and ``id`` of the site; the id decides whose backup it is.
        started, finished: Unix times; writes up to ``started`` are in it, writes after ``finished`` are not.
        node: the database server it was taken from.
        lineage: identity of that server's data directory; logs and increments fit only the same one.
        galera: ``uuid`` and ``seqno``: the cluster's history and how far this backup goes in it.
        binlog: where in the server's binary logs later writes begin; None where it keeps none.
        lsn: the storage engine's ``from`` and ``to`` (an increment begins where its base ends).
        data_size: bytes of the data directory.
        schemas: number of tables by schema, as the server told them.
        release: OpenStack release of the site.
        image: the image whose programs can read it.
        tools: versions of the programs.
        encrypted: the files are sealed with the site's key.
        key: identity of that key.
        files: what belongs to it.
        verified: None until it was tried; then ``at`` (Unix time), ``node``, ``seconds`` and ``rows``
            ({schema: {tables, rows}}).
        failure: why a verification found it unusable; empty when none did.
        dump: the logical dump that was written with it, if one was.
        path: its directory; where it lies now, and not part of what is written.
    """

    id: str
    kind: str
    base: str | None
    cloud: dict[str, str]
    started: float
    finished: float
    node: str
    lineage: str
    galera: dict[str, Any]
    binlog: Position | None
    lsn: dict[str, int]
    data_size: int
    schemas: dict[str, int]
    release: str
    image: str
    tools: dict[str, str]
    encrypted: bool
    key: str
    files: list[StoredFile]
    verified: dict[str, Any] | None = None
    failure: str = ""
    dump: str | None = None
    path: Path | None = field(default=None, compare=False)

    @property
    def counts(self) -> bool:
        """True for a backup that was verified and never found unusable."""
        return self.verified is not None and not self.failure

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        data = asdict(self)
        data["path"] = str(self.path) if self.path else None
        data["size"] = self.size
        for name in ("started", "finished"):
            data[name] = iso(data[name])
        if data["verified"]:
            data["verified"] = {**data["verified"], "at": iso(data["verified"]["at"])}
        return data


def iso(moment: float) -> str:
    """Return a Unix time as ISO 8601, UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def make_id(moment: float, kind: str, taken: Sequence[str] = ()) -> str:
    """Return the id of a backup begun at a time (Unix), unlike those that are taken."""
    stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{stamp}-{kind}"
    number = 2
    while name in taken:
        name = f"{stamp}-{number}-{kind}"
        number += 1
    return name


def cloud_identity(name: str, secret: str) -> dict[str, str]:
    """Return what tells one site's backups from another's.

    Args:
        name: the cloud's name.
        secret: a secret that the site keeps for its life; it cannot be found from the identity.
    """
    return {"name": name, "id": hashlib.sha256(b"cloudctl-site:" + secret.encode()).hexdigest()[:20]}


def dump(manifest: Manifest, secret: str | None) -> str:
    """Return the manifest's text, closed by a code that tells a changed one."""
    data = asdict(manifest)
    del data["path"]
    document = {"format": FORMAT, "manifest": data}
    return json.dumps({**document, "seal": _seal(document, secret)}, indent=1) + "\n"


def parse(text: str, secret: str | None, *, cloud: Mapping[str, str] | None, where: str) -> Manifest:
    """Read a manifest.

    Args:
        text: the file's content.
        secret: the site's key, None where the site has none.
        cloud: the site's identity; None accepts every site's backup (for showing only).
        where: the file, for errors.

    Raises:
        CheckFailed: it cannot be read, was changed, is another cluster's or sealed with another key.
    """
    damaged = CheckFailed(
        "backup-damaged", "the backup's manifest is damaged", where=where,
        hint="take it from the second place (backup.copy_to), or use another backup",
    )  # fmt: skip
    try:
        document = json.loads(text)
        data = dict(document["manifest"])
        if document["format"] != FORMAT:
            raise CheckFailed(
                "backup-format", f"the backup has the unknown format {document['format']}", where=where,
                hint="it was made by a newer cloudctl: use that one",
            )  # fmt: skip
        if cloud is not None and data["cloud"]["id"] != cloud["id"]:
            raise CheckFailed(
                "backup-of-another-cluster",
                f"it was taken from another cluster: {data['cloud']['name']} ({data['cloud']['id']}), "
                f"not {cloud['name']} ({cloud['id']})",
                where=where,
                hint="it is never restored here: its accounts and services are not this cloud's",
            )
        key = secret if data["encrypted"] else None
        if data["encrypted"] and (key is None or crypt.key_id(key) != data["key"]):
            raise CheckFailed(
                "backup-key-differs",
                f"the backup is encrypted with another key ({data['key']}) than the site's backup_key",
                where=where,
                hint="put the key of that time into the site's secrets (cloudctl secrets shows where)",
            )
        if not hmac.compare_digest(
            str(document["seal"]), _seal({k: document[k] for k in ("format", "manifest")}, key)
        ):
            raise damaged
        known = {item.name for item in fields(Manifest)}
        data = {name: value for name, value in data.items() if name in known}
        data["files"] = [StoredFile(**file) for file in data["files"]]
        data["binlog"] = Position(**data["binlog"]) if data["binlog"] else None
        return Manifest(**data)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None


def _seal(document: Mapping[str, Any], secret: str | None) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return crypt.authenticate(secret, text) if secret is not None else hashlib.sha256(text).hexdigest()
