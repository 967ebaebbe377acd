"""One change of a node at a time, over all modules that change it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ansible.module_utils.cloudctl_lock import LockHeld, node_lock

ROOT = Path(__file__).resolve().parents[2]


def test_the_directory_is_made_for_nobody_else(tmp_path: Path) -> None:
    with node_lock(str(tmp_path / "state")):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_what_another_process_holds_is_waited_for_and_named(tmp_path: Path) -> None:
    program = """
        import fcntl, sys, time
        handle = open(sys.argv[1], "w")
        fcntl.flock(handle, fcntl.LOCK_EX)
        print("held", flush=True)
        time.sleep(60)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(LockHeld, match=f"{tmp_path}/lock"), node_lock(str(tmp_path), 0.1):
            pass
        other.kill()  # its lock ends with it
    with node_lock(str(tmp_path), 0.1):
        pass
