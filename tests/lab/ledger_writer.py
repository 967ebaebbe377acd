"""Runs in the deploy node: inserts rows through the load balancer and writes down every acknowledged one.

usage: ledger_writer.py SITE FILE RUN WRITERS PAUSE_SECONDS; it ends when its standard input says so.

A line ``WRITER NUMBER`` is in FILE, and on disk, only after the server said that the row is committed. A
number is used once: where the answer got lost the row may be there or not, and is not in FILE.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from cloudctl.site.load import load_site

SCHEMA = "cloudctl_ledger"
TIMEOUT = 15
PAYLOAD = "x" * 200


class Refused(Exception):
    """The server answered with an error."""


class Connection:
    """As much of the database's protocol as an insert needs: the deploy node has no client of its own."""

    def __init__(self, host: str, user: str, password: str) -> None:
        self._socket = socket.create_connection((host, 3306), timeout=5)
        self._socket.settimeout(TIMEOUT)
        greeting = self._read()
        if greeting[0] == 0xFF:
            raise Refused(greeting[3:].decode(errors="replace"))
        rest = greeting[greeting.index(b"\0", 1) + 1 :]
        scramble = rest[4:12] + rest[8 + 1 + 2 + 1 + 2 + 2 + 1 + 10 + 4 :][:12]
        # protocol 4.1, transactions, secure connection, plugin authentication
        answer = struct.pack("<IIB23x", 0x00082200 | 0x1, 1 << 24, 33) + user.encode() + b"\0"
        token = self._token(password, scramble)
        answer += bytes([len(token)]) + token + b"mysql_native_password\0"
        self._send(answer, 1)
        reply = self._read()
        if reply[0] == 0xFE:
            name, _zero, seed = reply[1:].partition(b"\0")
            assert name == b"mysql_native_password", name
            self._send(self._token(password, seed.rstrip(b"\0")), 3)
            reply = self._read()
        if reply[0] != 0:
            raise Refused(reply[3:].decode(errors="replace"))

    @staticmethod
    def _token(password: str, scramble: bytes) -> bytes:
        first = hashlib.sha1(password.encode()).digest()
        second = hashlib.sha1(scramble + hashlib.sha1(first).digest()).digest()
        return bytes(a ^ b for a, b in zip(first, second, strict=True))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return data

    def _read(self) -> bytes:
        head = self._exactly(4)
        return self._exactly(int.from_bytes(head[:3], "little"))

    def _send(self, data: bytes, sequence: int) -> None:
        self._socket.sendall(len(data).to_bytes(3, "little") + bytes([sequence]) + data)

    def run(self, statement: str) -> None:
        """Run a statement that returns no rows."""
        self._send(b"\x03" + statement.encode(), 0)
        reply = self._read()
        if reply[0] != 0:
            raise Refused(reply[3:].decode(errors="replace"))

    def close(self) -> None:
        self._socket.close()


class Writer(threading.Thread):
    """Inserts one row after the other."""

    def __init__(self, number: int, run: str, login: tuple[str, str, str], file: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.number, self.run_id, self.login, self.file, self.pause = number, run, login, file, pause
        self.stopping = False

    def run(self) -> None:
        connection, row = None, 0
        while not self.stopping:
            row += 1
            try:
                if connection is None:
                    connection = Connection(*self.login)
                connection.run(
                    f"INSERT INTO {SCHEMA}.entry VALUES ('{self.run_id}', {self.number}, {row}, '{PAYLOAD}')"
                )
            except (OSError, Refused, IndexError, ValueError):
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.2)
                continue
            # One write: lines of several writers are not mixed up.
            os.write(self.file, f"{self.number} {row}\n".encode())
            os.fsync(self.file)
            time.sleep(self.pause)


def main() -> None:
    site = load_site(Path(sys.argv[1]))
    file, run, writers, pause = sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    login = (str(site.get("vip.internal")), "root", site.secrets["mariadb_root_password"])
    first = Connection(*login)
    first.run(f"CREATE DATABASE IF NOT EXISTS {SCHEMA}")
    first.run(
        f"CREATE TABLE IF NOT EXISTS {SCHEMA}.entry "
        "(run CHAR(8), writer INT, number INT, payload VARCHAR(255), PRIMARY KEY (run, writer, number))"
    )
    first.close()
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    threads = [Writer(number, run, login, handle, pause) for number in range(writers)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.stopping = True
    for thread in threads:
        thread.join(TIMEOUT + 5)


if __name__ == "__main__":
    main()
