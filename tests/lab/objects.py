"""A ledger of objects in Ceph: every write that was acknowledged, and whether it is still there.

with ObjectLedger() as ledger:      # writes until the block ends or its container does
    ledger.wait_for(50)
    ...the outage, the recovery...
ledger.check()
ledger.drop()
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import threading
import time
from types import TracebackType

from conftest import PREFIX, lab_nodes, podman, run_on

CONTAINER, POOL, CLIENT = "cinder_volume", "volumes", "cinder"
PROGRAM = f"""
import sys, time, rados
action, run = sys.argv[1:]
cluster = rados.Rados(name="client.{CLIENT}", conffile="/etc/ceph/ceph.conf")
cluster.connect()
pool = cluster.open_ioctx("{POOL}")
content = lambda n: f"{{run}}.{{n}}.".encode() * 500
if action == "write":
    number = 0
    while True:
        number += 1
        pool.write_full(f"{{run}}.{{number}}", content(number))
        print(number, flush=True)
        time.sleep(0.05)
for entry in list(pool.list_objects()):
    name, _dot, number = entry.key.rpartition(".")
    if name == run:
        if action == "remove":
            pool.remove_object(entry.key)
        elif pool.read(entry.key, 1 << 20) == content(int(number)):
            print(number)
"""


class ObjectLedger:
    """A writer on one controller, and what was acknowledged to it."""

    def __init__(self) -> None:
        self.run = f"ledger-{secrets.token_hex(4)}"
        self.node = next(name for name, role in lab_nodes().items() if role == "control")
        self.acknowledged: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ObjectLedger:
        self._process = subprocess.Popen(
            [
                *(*podman(), "exec", PREFIX + self.node),
                *("docker", "exec", CONTAINER, "python3", "-c", PROGRAM, "write", self.run),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # A line that was cut off by the power acknowledges nothing.
            if line.endswith("\n") and line.strip().isdigit():
                self.acknowledged.append(int(line))

    def wait_for(self, count: int, timeout: float = 60) -> None:
        """Wait until so many writes are acknowledged."""
        began = time.monotonic()
        while len(self.acknowledged) < count:
            assert time.monotonic() - began < timeout, f"{len(self.acknowledged)} objects in {timeout} s"
            time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            with contextlib.suppress(AssertionError):
                run_on(self.node, f"docker exec {CONTAINER} pkill -f {self.run}", check=False)
            self._process.kill()
            self._process.wait()
            time.sleep(0.5)

    def _run(self, action: str) -> str:
        program = PROGRAM.replace("'", "'\\''")
        return run_on(
            self.node, f"docker exec {CONTAINER} python3 -c '{program}' {action} {self.run}", timeout=300
        )

    def check(self) -> int:
        """Fail unless every acknowledged object is there with its content; return how many."""
        there = {int(line) for line in self._run("read").split()}
        lost = sorted(set(self.acknowledged) - there)
        assert not lost, f"{len(lost)} acknowledged objects are lost, the first: {lost[:5]}"
        return len(self.acknowledged)

    def drop(self) -> None:
        """Remove the objects."""
        self._run("remove")
