"""One run at a time changes a site.

The lock is ``flock`` on ``SITE/.cloudctl/lock``: the kernel releases it when its holder ends, however
it ends, so that no stale lock ever has to be removed by hand. The file's content only tells who holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from cloudctl.errors import LockHeld


@dataclass(frozen=True)
class Holder:
    """Who holds the lock."""

    who: str
    verb: str
    pid: int
    host: str
    since: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        return f"{self.who} runs '{self.verb}' since {self.since} (pid {self.pid} on {self.host})"


def state_directory(site_path: Path) -> Path:
    """Return the site's state directory (made with mode 0700 when missing)."""
    path = site_path / ".cloudctl"
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path


def caller() -> str:
    """Return ``user@host`` of the person behind this process.

    ``CLOUDCTL_CALLER`` says it when the command was handed on from another machine (as the lab and the
    playbooks do), ``SUDO_USER`` when it runs under sudo. A job of AWX is told by its number.
    """
    handed_on = os.environ.get("CLOUDCTL_CALLER")
    if handed_on:
        return handed_on
    if os.environ.get("AWX_HOST") and os.environ.get("JOB_ID"):
        return f"awx-job-{os.environ['JOB_ID']}@{socket.gethostname()}"
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid without an account
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class SiteLock:
    """The lock of one site, as a context manager.

    Args:
        site_path: the site's directory.
        verb: the command that wants it, for the message that another one gets.
        name: file of the lock; other names are other locks.

    Raises:
        LockHeld: (on entering) another run holds it.
    """

    def __init__(self, site_path: Path, verb: str, *, name: str = "lock") -> None:
        self.path = state_directory(site_path) / name
        self.verb = verb
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise ``LockHeld``; never waits."""
        # Not inherited by children: a program left behind by a killed run would otherwise keep the lock.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = read_holder(self.path)
            raise LockHeld(
                "lock-held",
                f"another run is in progress: {holder}" if holder else "another run is in progress",
                where=str(self.path),
                hint="wait until it ends ('cloudctl runs list' shows it); nothing was changed by this one",
            ) from None
        holder = Holder(
            who=caller(),
            verb=self.verb,
            pid=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        # Written in place: replacing the file would leave later runs locking another inode.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode() + b"\n", 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; harmless when not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> SiteLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_holder(path: Path) -> Holder | None:
    """Return what the lock file says, or None when it is empty or being written."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(path.read_text()))
    return None
