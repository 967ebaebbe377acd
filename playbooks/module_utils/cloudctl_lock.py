"""One change of a node at a time, whichever module makes it.

Runs on the node with the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator


class LockHeld(Exception):
    """Another call did not let go of the lock in time."""


@contextlib.contextmanager
def node_lock(directory: str, seconds: float = 900) -> Iterator[None]:
    """Hold the node's lock; a call whose caller was killed may still be at work here.

    Args:
        directory: where the lock file is; made where it is missing.
        seconds: how long to wait for another call.

    Raises:
        LockHeld: it took longer.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/lock"
    with open(path, "w", encoding="utf-8") as handle:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise LockHeld(f"an earlier call still holds {path} after {seconds:.0f} s") from None
                time.sleep(0.5)
        yield
