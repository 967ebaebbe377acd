"""A ledger outside of the database: every row whose commit was acknowledged, and whether it is still there.

with Ledger() as ledger:        # writes until the block ends, whatever happens to the servers
    ledger.wait_for(200)
    ...the outage, the recovery...
ledger.check()                  # every acknowledged row is on every server, and the servers are equal
ledger.drop()
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType

from conftest import SITE, lab_nodes, run_on
from deploynode import script_command

SCHEMA = "cloudctl_ledger"
CLIENT = "docker exec -i mariadb mariadb --no-auto-rehash -NB"


def controllers() -> list[str]:
    """Return the names of the controllers."""
    return [name for name, role in lab_nodes().items() if role == "control"]


def sql(node: str, statement: str, *, timeout: float = 120) -> str:
    """Run a statement on a node's own server; return what it printed."""
    return run_on(node, f'{CLIENT} -e "{statement}"', timeout=timeout)


class Ledger:
    """Writers that insert rows through the load balancer, and the file of what was acknowledged.

    Args:
        writers: how many insert at the same time.
        pause: seconds between two inserts of a writer.
    """

    def __init__(self, writers: int = 4, pause: float = 0.02) -> None:
        self.run = secrets.token_hex(4)
        self.file = SITE / ".cloudctl" / f"ledger-{self.run}.txt"
        self._writers, self._pause = writers, pause
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin to write."""
        if self.file.exists():
            raise RuntimeError("a ledger is written once: make another one")
        self._process = subprocess.Popen(
            script_command(
                "ledger_writer.py", str(SITE), str(self.file), self.run, str(self._writers), str(self._pause)
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready", "the database takes no rows to begin with"

    def stop(self) -> None:
        """End writing; harmless where the deploy node has gone meanwhile."""
        if self._process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.communicate("stop\n", timeout=60)
            self._process.kill()
            self._process = None

    def __enter__(self) -> Ledger:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def acknowledged(self) -> set[tuple[int, int]]:
        """Return the rows (writer, number) whose commit was acknowledged so far."""
        if not self.file.exists():
            return set()
        lines = self.file.read_text().split("\n")[:-1]
        return {(int(writer), int(number)) for writer, number in (line.split() for line in lines)}

    def wait_for(self, more: int, timeout: float = 120) -> int:
        """Wait until so many more rows are acknowledged; return how many there are."""
        begin, began = len(self.acknowledged()), time.monotonic()
        while (count := len(self.acknowledged())) < begin + more:
            assert time.monotonic() - began < timeout, f"{count - begin} of {more} rows in {timeout} s"
            time.sleep(0.2)
        return count

    def rows(self, node: str) -> set[tuple[int, int]]:
        """Return the rows that a node's server has."""
        text = sql(node, f"SELECT writer, number FROM {SCHEMA}.entry WHERE run = '{self.run}'")
        return {(int(writer), int(number)) for writer, number in (line.split() for line in text.splitlines())}

    def missing(self, nodes: Sequence[str] | None = None) -> dict[str, list[tuple[int, int]]]:
        """Return by node the acknowledged rows that its server does not have."""
        wanted = self.acknowledged()
        found = {node: sorted(wanted - self.rows(node)) for node in nodes or controllers()}
        return {node: rows for node, rows in found.items() if rows}

    def check(self, nodes: Sequence[str] | None = None, timeout: float = 30) -> int:
        """Fail unless every server has every acknowledged row, and all have the same; return how many."""
        nodes = list(nodes or controllers())
        began = time.monotonic()
        # What one server has committed the others apply a moment later.
        while (lost := self.missing(nodes)) and time.monotonic() - began < timeout:
            time.sleep(1)
        assert not lost, {node: (len(rows), rows[:5]) for node, rows in lost.items()}
        while len(sums := {self.checksum(node) for node in nodes}) > 1 and time.monotonic() - began < timeout:
            time.sleep(1)
        assert len(sums) == 1, f"the servers differ: {sums}"
        return len(self.acknowledged())

    def checksum(self, node: str) -> str:
        """Return the checksum of the ledger's table on a node's server."""
        return sql(node, f"CHECKSUM TABLE {SCHEMA}.entry").strip()

    def drop(self) -> None:
        """Remove the schema (of all ledgers) and the file."""
        for node in controllers():
            with contextlib.suppress(AssertionError):
                sql(node, f"DROP DATABASE IF EXISTS {SCHEMA}")
                break
        self.file.unlink(missing_ok=True)
