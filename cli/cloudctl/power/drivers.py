"""How servers are switched on: one driver for each kind of power control.

A driver is chosen by the setting ``power.driver``. Every one answers the same three questions, so that the
steps know none of them. Baseboard controllers (IPMI, Redfish) belong here: a class with these methods, a word
in the setting's enum, and variables of the nodes for address and account (``custom_bmc_address``; its
password as a secret of the site). None is shipped that was not tried on real hardware.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cloudctl.errors import ApplyFailed, ConfigError
from cloudctl.site.model import Site

ON, OFF, UNKNOWN = "on", "off", "unknown"


class PowerDriver(Protocol):
    """Power control of the site's nodes.

    Attributes:
        name: as in the setting ``power.driver``.
        switches: whether it can switch nodes on; where not, a person has to.
    """

    name: str
    switches: bool

    def states(self, nodes: Sequence[str]) -> dict[str, str]:
        """Return ``on``, ``off`` or ``unknown`` for every node."""
        ...

    def on(self, nodes: Sequence[str]) -> None:
        """Switch nodes on, all at once; harmless for one that is on. Does not wait until they have booted.

        Raises:
            ApplyFailed: a node could not be switched on.
        """
        ...

    def command(self, nodes: Sequence[str]) -> str:
        """Return what ``on`` does in words that an operator understands."""
        ...


class ByHand:
    """No power control: a person presses the buttons."""

    name = "none"
    switches = False

    def states(self, nodes: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(nodes, UNKNOWN)

    def on(self, nodes: Sequence[str]) -> None:
        return None

    def command(self, nodes: Sequence[str]) -> str:
        return f"switch on by hand: {' '.join(nodes)}"


class LabPower:
    """The lab's power control: a Unix socket that takes one line of JSON and answers with one.

    Args:
        path: of the socket.
    """

    name = "lab"
    switches = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def states(self, nodes: Sequence[str]) -> dict[str, str]:
        try:
            answer = self._ask("status", nodes)
        except ApplyFailed:
            return dict.fromkeys(nodes, UNKNOWN)
        return {node: str(answer["states"].get(node, UNKNOWN)) for node in nodes}

    def on(self, nodes: Sequence[str]) -> None:
        self._ask("on", nodes)

    def command(self, nodes: Sequence[str]) -> str:
        return f"cloudctl lab power on {' '.join(nodes)}"

    def _ask(self, action: str, nodes: Sequence[str]) -> Any:
        hint = "any `cloudctl` command on the lab's host starts it again"
        try:
            return ask_socket(self.path, {"action": action, "nodes": list(nodes)})
        except (OSError, ValueError) as error:
            raise ApplyFailed(
                "power-control-silent", f"the power control does not answer: {error}", where=str(self.path),
                hint=hint,
            ) from error  # fmt: skip


def ask_socket(path: Path, question: Any, *, timeout: float = 180) -> Any:
    """Send one line of JSON to a Unix socket and return its answer.

    Args:
        timeout: seconds; switching a node on takes a few.

    Raises:
        OSError: nothing listens there, or it does not answer in time.
        ValueError: the answer is no JSON.
        ApplyFailed: it was not possible; the text is the other side's.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("r", encoding="utf-8") as stream:
            line = stream.readline()
    if not line:
        raise OSError("it hung up without an answer")
    answer = json.loads(line)
    if answer.get("error"):
        raise ApplyFailed("power-control-failed", str(answer["error"]))
    return answer


def power_driver(site: Site) -> PowerDriver:
    """Return the driver that the site chose.

    Raises:
        ConfigError: the lab's driver without its socket.
    """
    if site.get("power.driver", "none") == "none":
        return ByHand()
    path = site.get("power.socket", None)
    if not path:
        raise ConfigError(
            "power-socket-missing", "power.driver is lab, but power.socket is not set", where="settings.yml",
            hint="`cloudctl lab create` writes it",
        )  # fmt: skip
    return LabPower(Path(path))
