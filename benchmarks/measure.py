"""Runs a command and measures it: time, CPU of its whole process tree, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
_PR_SET_CHILD_SUBREAPER = 36

# The programs beside this one import cloudctl after it, from the checkout that they measure.
sys.path.insert(0, str(CHECKOUT / "cli"))


@dataclass(frozen=True)
class Measured:
    """What one run of a command took.

    Attributes:
        wall: seconds from start to end of the command itself.
        user: CPU seconds in user mode of every process it started, those that outlived it included.
        system: CPU seconds in the kernel of the same processes.
        process_mib: largest resident set of a single process, in MiB.
        tree_mib: largest sum of proportional set sizes of all processes at once, in MiB; 0 when not sampled.
        rc: the command's exit code.
        stdout: what it wrote.
        stderr: what it wrote there.
    """

    wall: float
    user: float
    system: float
    process_mib: float
    tree_mib: float
    rc: int
    stdout: str
    stderr: str

    @property
    def cpu(self) -> float:
        """CPU seconds altogether."""
        return self.user + self.system

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for JSON, without the texts."""
        found = {key: value for key, value in asdict(self).items() if key not in ("stdout", "stderr")}
        return {key: round(value, 3) for key, value in found.items()}


def command_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which ``python -m cloudctl`` of this checkout runs."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT / "cli"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def run(
    argv: Sequence[str], environment: Mapping[str, str], *, sample: float | None = None, timeout: float = 1800
) -> Measured:
    """Run a command to its end.

    Args:
        argv: the command.
        environment: its whole environment.
        sample: seconds between two looks at the memory of all its processes; None takes none.
        timeout: seconds after which it is ended.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    # Processes that outlive their parent (SSH's kept connections) come to us: their CPU counts too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    child = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0.0]
    over = threading.Event()
    watcher = None
    if sample is not None:
        watcher = threading.Thread(target=_watch, args=(child.pid, sample, peak, over), daemon=True)
        watcher.start()
    try:
        # Not communicate(): a connection that is kept holds the pipe open beyond the command's end.
        readers = [_Reader(child.stdout), _Reader(child.stderr)]
        rc = child.wait(timeout)
        wall = time.monotonic() - started
    finally:
        over.set()
        if child.poll() is None:
            child.terminate()
            child.wait()
    _end_orphans()
    texts = [reader.text() for reader in readers]
    if watcher is not None:
        watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(
        wall=wall,
        user=after.ru_utime - before.ru_utime,
        system=after.ru_stime - before.ru_stime,
        process_mib=after.ru_maxrss / 1024,
        tree_mib=peak[0],
        rc=rc,
        stdout=texts[0],
        stderr=texts[1],
    )


class _Reader:
    """Reads a pipe in a thread."""

    def __init__(self, stream: Any) -> None:
        self._parts: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self._parts.append(line)

    def text(self) -> str:
        """Return what came, once the other end is closed."""
        self._thread.join(5)
        return "".join(self._parts)


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = (entry / "stat").read_text(errors="replace")
                found[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    return found


def _tree(root: int) -> set[int]:
    """Return a process and all below it."""
    parents = _parents()
    tree = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        grown = bool(more)
        tree |= more
    return tree


def _watch(root: int, interval: float, peak: list[float], over: threading.Event) -> None:
    while not over.wait(interval):
        total = 0
        for pid in _tree(root):
            with contextlib.suppress(OSError, ValueError, IndexError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        peak[0] = max(peak[0], total / 1024)


def _end_orphans() -> None:
    """End and reap the processes that the command left behind (they are our children now)."""
    for _ in range(20):  # one that ends may leave children of its own
        orphans = [pid for pid, parent in _parents().items() if parent == os.getpid()]
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
        if not orphans:
            return


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, least and most."""
    found = list(values)
    return {
        "median": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as text in columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
