"""Streams between the deploy node and a node: SSH with the site's key and pinned host keys."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import subprocess
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Environment, TemplateError

from cloudctl.errors import ApplyFailed, CloudctlError, ConfigError
from cloudctl.runner import explain_unreachable
from cloudctl.site.model import Node, Site

IDLE = 900.0
"""Seconds without a byte after which a stream is given up."""

_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "LogLevel=ERROR",
)


def ssh_command(site: Site, node: Node, command: str) -> list[str]:
    """Return the command line that runs a shell command on a node as root, the way the inventory says.

    Raises:
        ConfigError: a variable of the inventory is a template that needs more than its place.
    """

    def value(name: str) -> str | None:
        given = node.vars.get(name)
        return None if given is None else _expand(str(given), site, node)

    words = ["ssh", *(word for option in _OPTIONS for word in ("-o", option))]
    for name in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        words += shlex.split(value(name) or "")
    if key := value("ansible_ssh_private_key_file"):
        words += ["-i", key, "-o", "IdentitiesOnly=yes"]
    if port := value("ansible_port"):
        words += ["-p", port]
    user = value("ansible_user")
    words.append(f"{user}@{node.address}" if user else node.address)
    become = user not in (None, "root")
    return [*words, "--", ("sudo -n " if become else "") + f"bash -c {shlex.quote(command)}"]


def _expand(text: str, site: Site, node: Node) -> str:
    if "{{" not in text and "{%" not in text:
        return text
    environment = Environment(autoescape=False)
    environment.filters["dirname"] = os.path.dirname
    variables: dict[str, Any] = {**node.vars, "inventory_hostname": node.name, "ansible_host": node.address}
    try:
        template = environment.from_string(text)
        return template.render({**variables, "inventory_dir": str(site.path / "inventory")}).strip()
    except TemplateError as error:
        raise ConfigError(
            "connection-template", f"how to reach {node.name} cannot be worked out from {text!r}: {error}",
            where=node.name, hint="write it without variables of Ansible's own, other than inventory_dir",
        ) from None  # fmt: skip


class Remote:
    """A command on a node whose output is read, or whose input is written, as a stream.

    Its input stays open as long as this process wants its work: what runs there ends itself when it closes.
    """

    def __init__(self, site: Site, node: str, command: str, *, what: str) -> None:
        self.node = node
        self.what = what
        self._process = subprocess.Popen(
            ssh_command(site, site.nodes[node], command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._errors = bytearray()
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def errors(self) -> str:
        """What the command wrote to its standard error so far."""
        return self._errors.decode(errors="replace")

    def pieces(self) -> Iterator[bytes]:
        """Yield what the command prints until it ends, then look at how it ended.

        Raises:
            CloudctlError: see ``finish``.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                if not waiting.select(IDLE):
                    self._process.kill()
                    raise ApplyFailed(
                        "stream-stalled", f"{self.what}: nothing came for {IDLE / 60:.0f} minutes",
                        where=self.node,
                        hint="look at the node's load and at the log of its database, then run it again",
                    )  # fmt: skip
                data = os.read(self._process.stdout.fileno(), 1 << 18)
                if not data:
                    break
                yield data
        self.finish()

    def feed(self, pieces: Iterable[bytes]) -> str:
        """Write a stream to the command, close it, and return what the command printed.

        Raises:
            CloudctlError: see ``finish``.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                self._process.stdin.write(piece)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        text = self._process.stdout.read().decode(errors="replace")
        self.finish()
        return text

    def finish(self) -> None:
        """Wait for the command's end.

        Raises:
            Unreachable: the connection failed.
            ApplyFailed: the command did.
        """
        code = self._process.wait()
        self._reader.join(timeout=10)
        if code == 0:
            return
        raise self._failure(code)

    def _failure(self, code: int) -> CloudctlError:
        lines = [line for line in self.errors.strip().splitlines() if line.strip()]
        last = lines[-1] if lines else f"it ended with {code}"
        if code == 255:  # what ssh itself ends with
            return explain_unreachable(self.node, last)
        return ApplyFailed(
            "remote-failed", f"{self.what} failed: {' | '.join(lines[-4:]) or last}", where=self.node,
            hint="mend the cause and run the same command again",
        )  # fmt: skip

    def close(self) -> None:
        """End the command, however far it is."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while data := self._process.stderr.read1(65536):  # type: ignore[attr-defined]
                self._errors += data
