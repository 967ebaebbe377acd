"""Files sealed with the site's key: encrypted and authenticated piece by piece, for streams of any size.

A sealed file is a line that names the format, a salt, a nonce's beginning and pieces of at most 1 MiB. Each
piece is AES-256-GCM under a nonce that counts the pieces and marks the last one: a changed byte, a piece that
is missing or moved, and an end that is cut off are all noticed while reading. The file's name is
authenticated too, so that one file cannot stand in for another.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"cloudctl sealed 1\n"
PIECE = 1 << 20
_SALT, _PREFIX, _TAG = 16, 7, 16


class SealBroken(ValueError):
    """A sealed file is not what was written, or the key is another one."""


@lru_cache(maxsize=256)
def derive(secret: str, salt: bytes) -> bytes:
    """Return the key of one file: slow on purpose, since an operator may have chosen the secret."""
    return hashlib.scrypt(secret.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32, maxmem=64 << 20)


def key_id(secret: str) -> str:
    """Return what identifies a secret without telling anything of it."""
    return hmac.digest(derive(secret, b"cloudctl-identity"), b"id", "sha256").hex()[:16]


def authenticate(secret: str, text: bytes) -> str:
    """Return the text's authentication code under the secret."""
    return hmac.digest(derive(secret, b"cloudctl-manifest"), text, "sha256").hex()


class Sink:
    """Writes a stream into a file, sealed where there is a secret, and counts what it writes.

    Args:
        stream: the open binary file.
        secret: the site's key; None writes the stream as it is.
        name: authenticated with the content.

    Attributes:
        size: bytes of the file.
        content_size: bytes that were given.
    """

    def __init__(self, stream: IO[bytes], secret: str | None, name: str) -> None:
        self._stream = stream
        self._name = name.encode()
        self._digest = hashlib.sha256()
        self._pending = bytearray()
        self._count = 0
        self._cipher: AESGCM | None = None
        self.size = 0
        self.content_size = 0
        if secret is not None:
            salt, self._prefix = os.urandom(_SALT), os.urandom(_PREFIX)
            self._cipher = AESGCM(derive(secret, salt))
            self._put(MAGIC + salt + self._prefix)

    @property
    def sha256(self) -> str:
        """Checksum of the file as it lies on the disk."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Add to the stream."""
        self.content_size += len(data)
        if self._cipher is None:
            self._put(data)
            return
        self._pending += data
        # One piece is kept back: only the end of the stream tells which one is the last.
        while len(self._pending) > PIECE:
            self._seal(bytes(self._pending[:PIECE]), last=False)
            del self._pending[:PIECE]

    def finish(self) -> None:
        """Write what is left, and bring everything to the disk."""
        if self._cipher is not None:
            self._seal(bytes(self._pending), last=True)
            self._pending.clear()
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _seal(self, piece: bytes, *, last: bool) -> None:
        assert self._cipher is not None
        sealed = self._cipher.encrypt(_nonce(self._prefix, self._count, last), piece, self._name)
        self._count += 1
        self._put(struct.pack(">I", len(sealed)) + sealed)

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.size += len(data)


def read_pieces(stream: IO[bytes], secret: str | None, name: str) -> Iterator[bytes]:
    """Yield a file's content.

    Raises:
        SealBroken: it is damaged, cut off, another file, or sealed with another key.
    """
    if secret is None:
        while data := stream.read(PIECE):
            yield data
        return
    head = stream.read(len(MAGIC) + _SALT + _PREFIX)
    if len(head) < len(MAGIC) + _SALT + _PREFIX or not head.startswith(MAGIC):
        raise SealBroken("it does not begin as a sealed file")
    salt, prefix = head[len(MAGIC) : len(MAGIC) + _SALT], head[-_PREFIX:]
    cipher = AESGCM(derive(secret, salt))
    count, last = 0, False
    length = stream.read(4)
    while length:
        if len(length) < 4:
            raise SealBroken("its end is missing")
        (size,) = struct.unpack(">I", length)
        if not _TAG <= size <= PIECE + _TAG:
            raise SealBroken("it is damaged")
        sealed = stream.read(size)
        if len(sealed) < size:
            raise SealBroken("its end is missing")
        length = stream.read(4)
        last = not length
        try:
            piece = cipher.decrypt(_nonce(prefix, count, last), sealed, name.encode())
        except InvalidTag:
            raise SealBroken("it is damaged or incomplete, or it was sealed with another key") from None
        count += 1
        yield piece
    if not last:
        raise SealBroken("its end is missing")


def _nonce(prefix: bytes, count: int, last: bool) -> bytes:
    return prefix + struct.pack(">I?", count, last)
