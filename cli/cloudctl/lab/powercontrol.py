"""The lab's power control: what a baseboard controller is to a server.

Cloud commands of a lab run inside its deploy node, where nobody can switch a node on: only this host can. So
a small process of the lab listens here on a Unix socket in the site's state directory (which the deploy node
sees at the same path) and works the power buttons of this lab's nodes. Whatever command finds it missing
starts it; it ends with the lab.

usage: python -m cloudctl.lab.powercontrol (the lab's name is in CLOUDCTL_LAB)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudctl.errors import CloudctlError, LockHeld
from cloudctl.lab.remote import MARKER
from cloudctl.lab.topology import PREFIX, VARIABLE

SOCKET = "lab-power.sock"
LOCK = "lab-power.lock"
ACTIONS = ("on", "off", "kill", "status", "version", "end")
_BUSY_PATIENCE = 60.0  # seconds that another lab command may take
_LOOK = 2.0  # seconds between looks whether the lab is still there


def socket_path(site: Path) -> Path:
    """Return where the socket of the lab with this site is."""
    return site / ".cloudctl" / SOCKET


def version() -> str:
    """Return a checksum of the lab's code: a process that runs older code is replaced."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def lab_of(site: Path) -> str | None:
    """Return the name of the lab that a site belongs to, None where it is no lab's.

    A copy of a lab's site belongs to that lab, too.
    """
    try:
        record = json.loads((site / MARKER).read_text())
        container = str(record["deploy"])
    except (OSError, ValueError, KeyError):
        return None
    return container.removeprefix("cloudctl-").removesuffix("-deploy")


def ensure(name: str) -> None:
    """Start the power control of a lab where it does not run; never fails, as nothing else depends on it."""
    site = Path(f"/var/lib/cloudctl-{name}/site")
    if not (site / MARKER).is_file() or os.geteuid() != 0:
        return
    with contextlib.suppress(Exception):
        running = _running_version(site)
        if running == version():
            return
        if running is not None:
            end(site)
        (site / ".cloudctl").mkdir(mode=0o700, exist_ok=True)
        package = Path(__file__).resolve().parents[2]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OS_")},
            VARIABLE: name,
            "PYTHONPATH": str(package),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        subprocess.Popen(
            [sys.executable, "-m", "cloudctl.lab.powercontrol"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
        deadline = time.monotonic() + 10
        while _running_version(site) is None and time.monotonic() < deadline:
            time.sleep(0.05)


def end(site: Path) -> None:
    """End the lab's power control, and wait until it is gone."""
    from cloudctl.power.drivers import ask_socket

    with contextlib.suppress(Exception):
        ask_socket(socket_path(site), {"action": "end"}, timeout=5)
    deadline = time.monotonic() + 10
    lock = site / ".cloudctl" / LOCK
    while lock.exists() and time.monotonic() < deadline:
        with lock.open("r") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05)


def _running_version(site: Path) -> str | None:
    from cloudctl.power.drivers import ask_socket

    try:
        return str(ask_socket(socket_path(site), {"action": "version"}, timeout=5)["version"])
    except (OSError, ValueError, KeyError, CloudctlError):
        return None


def parse(line: str, known: Sequence[str]) -> tuple[str, list[str]]:
    """Read a question. Pure.

    Args:
        known: names of the lab's nodes.

    Returns:
        Action and nodes.

    Raises:
        ValueError: it is not understood, or names a node that is not this lab's; the text says so.
    """
    question = json.loads(line)
    if not isinstance(question, Mapping) or question.get("action") not in ACTIONS:
        raise ValueError(f"one of these actions is needed: {', '.join(ACTIONS)}")
    names = [str(name) for name in question.get("nodes") or []]
    if strangers := [name for name in names if name not in known]:
        raise ValueError(f"no node of this lab: {', '.join(strangers)}")
    return str(question["action"]), names


class PowerControl:
    """The listening side.

    Args:
        site: the lab's site directory.
    """

    def __init__(self, site: Path) -> None:
        self.site = site
        self.path = socket_path(site)
        self.version = version()
        self._ended = threading.Event()

    def serve(self) -> None:
        """Answer until the lab is gone, the socket is another's, or somebody says so."""
        with (self.path.parent / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            # It gets its name when it listens: who sees it can ask.
            new = self.path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(new))
                new.chmod(0o600)
                inode = new.stat().st_ino
                listener.listen(16)
                new.rename(self.path)
                listener.settimeout(_LOOK)
                while not self._ended.is_set() and self._is_ours(inode):
                    try:
                        connection, _address = listener.accept()
                    except TimeoutError:
                        continue
                    threading.Thread(target=self._answer, args=(connection,), daemon=True).start()
            if self._is_ours(inode):
                self.path.unlink(missing_ok=True)

    def _is_ours(self, inode: int) -> bool:
        try:
            return (self.site / MARKER).exists() and self.path.stat().st_ino == inode
        except OSError:
            return False

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(30)
            with connection.makefile("r", encoding="utf-8") as stream:
                line = stream.readline()
            connection.sendall(json.dumps(self.act(line)).encode() + b"\n")

    def act(self, line: str) -> dict[str, Any]:
        """Do what a line asks for; an error is part of the answer."""
        from cloudctl.lab import manager, sitedir

        try:
            action, names = parse(line, list(sitedir.recorded_nodes()))
            if action == "version":
                return {"version": self.version}
            if action == "end":
                self._ended.set()
                return {"ended": True}
            if action != "status":
                self._press(manager, action, names)
            states = {row.removeprefix(PREFIX): state for row, state in _containers().items()}
            return {"states": {name: "on" if states.get(name) == "running" else "off" for name in names}}
        except (CloudctlError, ValueError, OSError) as error:
            return {"error": " ".join(str(error).split())}

    def _press(self, manager: Any, action: str, names: list[str]) -> None:
        deadline = time.monotonic() + _BUSY_PATIENCE
        while True:
            try:
                manager.power(action, names, wait=False)
                return
            except LockHeld:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _containers() -> dict[str, str]:
    from cloudctl.lab import nodes

    return nodes.all_containers()


def main() -> None:
    """Serve the lab that CLOUDCTL_LAB names."""
    from cloudctl.lab import sitedir

    PowerControl(sitedir.SITE).serve()


if __name__ == "__main__":
    main()
