"""How the lab's tests reach the cloud: only the lab's deploy node has a route to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudctl.lab.podman import podman
from cloudctl.lab.topology import NAME, PREFIX

REPOSITORY = Path(__file__).resolve().parents[2]
OUTPUT = REPOSITORY / "test-output"
"""What a person looks at after a run: screenshots, results, logs; never under version control."""
SITE = Path(f"/var/lib/cloudctl-{NAME}/site")
NODE = f"{PREFIX}deploy"
_CODE = "/opt/cloudctl"


def script_command(script: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of this directory's programs in the deploy node.

    They run in its virtual environment, with this checkout's ``cloudctl`` (which the lab mounts).
    """
    python = [*podman(), "exec", "-i", "--env", f"PYTHONPATH={_CODE}/cli", NODE, "/opt/venv/bin/python"]
    return [*python, f"{_CODE}/tests/lab/{script}", *arguments]


def call(script: str, *arguments: str, timeout: float = 600) -> Any:
    """Run one of this directory's programs in the deploy node; returns its last line, read as JSON.

    Args:
        timeout: seconds.

    Raises:
        AssertionError: it failed; the message is what it printed.
    """
    done = subprocess.run(
        script_command(script, *arguments), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{script} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def in_network(command: Sequence[str]) -> list[str]:
    """Return a command line that runs a program of this host with the deploy node's network."""
    process = subprocess.run(
        [*podman(), "inspect", "--format", "{{.State.Pid}}", NODE], capture_output=True, text=True, check=True
    )
    return ["nsenter", "--target", process.stdout.strip(), "--net", *command]
