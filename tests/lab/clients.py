"""An API client in a loop, as a user's program would be, beside what a test does to the cloud."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from conftest import PREFIX, SITE, podman

LOOP = Path(__file__).with_name("api_loop.py")


@dataclass
class ApiClient:
    """Asks one API over and over while the ``with`` block lasts.

    Attributes:
        service: attribute of the SDK's connection (compute, network …).
        path: what to ask for below the service's endpoint.
        timeout: seconds to wait for one answer.
        requests: how many were made.
        failures: when (seconds since the epoch) and how the failed ones ended.
    """

    service: str
    path: str
    timeout: float = 30
    requests: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> ApiClient:
        program = SITE / ".cloudctl" / "api_loop.py"
        program.write_text(LOOP.read_text())
        self._process = subprocess.Popen(
            [
                *(*podman(), "exec", "-i", "--env", "PYTHONPATH=/opt/cloudctl/cli", f"{PREFIX}deploy"),
                *("/opt/venv/bin/python", str(program)),
                *(str(SITE), self.service, self.path, str(self.timeout)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._take(self._process.stdout.readline())
        assert self.requests == 1 and not self.failures, "the API does not answer before the test begins"
        # Read as it comes: the program would wait for a reader of its output after some minutes, and not ask.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._take(line)

    def _take(self, line: str) -> None:
        if line.strip():
            entry = json.loads(line)
            self.requests += 1
            if entry["outcome"] != "ok":
                self.failures.append((entry["at"], entry["outcome"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.close()
        self._process.wait(timeout=self.timeout + 30)
        self._reader.join(timeout=30)
