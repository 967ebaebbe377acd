"""Run a command in the deploy node for a process on the host; end it when that process asks or is gone.

usage: supervise.py FIFO tty|pipe COMMAND...

The host's end holds the FIFO open for writing: a byte is the number of a signal to pass on, end of file
means that the host's process is gone (killed with -9, too). Runs as a plain file, standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds between SIGINT, SIGTERM and SIGKILL once the host's process is gone."""


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command and exit with its code."""
    fifo, mode, *command = sys.argv[1:]
    own_group = mode == "pipe"
    # On a terminal Ctrl-C reaches the whole foreground group: the command answers it, this process waits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Opened without waiting: when the caller is gone already, the first read says so.
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    # Both ends are open: nothing stays behind even when the caller is killed.
    Path(fifo).unlink()
    child = subprocess.Popen(command, start_new_session=own_group, preexec_fn=_default_interrupt)

    def send(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if own_group else os.kill)(child.pid, number)

    def listen() -> None:
        while data := os.read(reader, 16):
            for number in data:
                send(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            send(number)
            time.sleep(PATIENCE)

    threading.Thread(target=listen, daemon=True).start()
    code = child.wait()
    sys.stdout.flush()
    os._exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
