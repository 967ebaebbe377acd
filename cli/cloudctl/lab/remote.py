"""A cloud command on a lab site runs inside the deploy node: only there are the cloud's networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cloudctl.errors import Unreachable
from cloudctl.lab.podman import podman
from cloudctl.runs.lock import caller

MARKER = "lab.json"
_ROLE = Path("/etc/cloudctl-lab/role")
_SUPERVISE = "/opt/cloudctl/cli/cloudctl/lab/supervise.py"
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ENVIRONMENT = ("TERM", "COLUMNS", "NO_COLOR", "PY_COLORS")


def is_lab_site(site_path: Path) -> bool:
    """Return whether the site directory is a lab's."""
    return (site_path / MARKER).is_file()


def inside_deploy_node() -> bool:
    """Return whether this process already runs in a lab's deploy node."""
    return _ROLE.is_file() and _ROLE.read_text().strip() == "deploy"


def reexec(argv: Sequence[str], site_path: Path | None = None) -> int:
    """Run ``cloudctl ARGV`` in the deploy node, with this process's terminal, signals and exit code.

    Args:
        argv: the arguments after the program's name.
        site_path: the lab's site directory (default: $CLOUDCTL_SITE, else the current directory).

    Returns:
        The inner command's exit code.

    Raises:
        Unreachable: the deploy node does not run.
    """
    site = (site_path or Path(os.environ.get("CLOUDCTL_SITE") or Path.cwd())).absolute()
    return run_in_deploy_node(["/usr/local/bin/cloudctl", *argv], site)


def run_in_deploy_node(command: Sequence[str], site: Path) -> int:
    """Run any command in the deploy node the way ``reexec`` does; return its exit code."""
    container = str(json.loads((site / MARKER).read_text())["deploy"])
    _check_running(container)
    state = site / ".cloudctl"
    state.mkdir(mode=0o700, exist_ok=True)
    fifo = state / f"caller-{os.getpid()}.fifo"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    # Held open as long as this process lives; see supervise.py for the other end.
    line = os.open(fifo, os.O_RDWR)
    try:
        return _run(list(command), container, site, fifo, line)
    finally:
        os.close(line)
        fifo.unlink(missing_ok=True)


def _run(inner: list[str], container: str, site: Path, fifo: Path, line: int) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    piped_input = not sys.stdin.isatty()
    environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("CLOUDCTL_")}
    environment["CLOUDCTL_SITE"] = str(site)
    # In the node everybody is root: the records there name the person who typed it here.
    environment["CLOUDCTL_CALLER"] = caller()
    command = [
        *(*podman(), "exec", "--workdir", str(site)),
        *(["-it"] if terminal else ["-i"] if piped_input else []),
        *(f"--env={name}={value}" for name, value in sorted(environment.items())),
        *(container, "/opt/venv/bin/python", "-I", _SUPERVISE, str(fifo), "tty" if terminal else "pipe"),
        *inner,
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.write(line, bytes([number]))

    # The handlers come first: a signal between the start and them would leave the inner process alone.
    previous = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        # On a terminal podman must stay in the foreground group; elsewhere signals go by the FIFO only.
        process = subprocess.Popen(
            command,
            stdin=None if terminal or piped_input else subprocess.DEVNULL,
            start_new_session=not terminal,
        )
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_running(container: str) -> None:
    result = subprocess.run(
        [*podman(), "inspect", "--format", "{{.State.Running}}", container], capture_output=True, text=True
    )
    if result.stdout.strip() != "true":
        raise Unreachable(
            "lab-deploy-node-off",
            "the lab's deploy node does not run",
            where=container,
            hint="cloudctl lab power on deploy (or: cloudctl lab create)",
        )
