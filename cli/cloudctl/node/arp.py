"""Who answers for an address on the local link: one machine, two, or one that has another address, too."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence

from cloudctl.errors import CheckFailed

_ETHERNET_ARP = 0x0806
_ROUNDS = 3
_PATIENCE = 0.4  # seconds after each round of questions

Answers = dict[str, set[str]]
"""By address, the MAC addresses that answered."""


def request(mac: bytes, own: str, wanted: str) -> bytes:
    """Return an Ethernet frame that asks who has an address. Pure."""
    header = b"\xff" * 6 + mac + struct.pack("!H", _ETHERNET_ARP)
    return (
        header
        + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        + (mac + ipaddress.IPv4Address(own).packed)
        + (b"\0" * 6 + ipaddress.IPv4Address(wanted).packed)
    )


def parse(frame: bytes) -> tuple[str, str] | None:
    """Return address and MAC of the machine that sent an ARP reply; None for any other frame. Pure."""
    if len(frame) < 42 or struct.unpack_from("!H", frame, 12)[0] != _ETHERNET_ARP:
        return None
    if struct.unpack_from("!H", frame, 20)[0] != 2:
        return None
    return str(ipaddress.IPv4Address(frame[28:32])), frame[22:28].hex(":")


def ask(addresses: Iterable[str], others: Iterable[str] = ()) -> Answers | None:
    """Ask for all addresses at the same time, each on its own link.

    Args:
        addresses: of new machines.
        others: of machines that could answer in their place; asked for on every link of an address.

    Returns:
        The answers; None where that is not possible: all addresses are behind a router, or this account may
        not send such packets.
    """
    links: dict[tuple[str, str], list[str]] = {}
    for address in dict.fromkeys(addresses):
        if (route := _route(address)) is not None:
            links.setdefault(route, []).append(address)
    if not links:
        return None
    others = list(others)
    found: Answers = {}
    for (device, own), wanted in links.items():
        answers = _ask_on(device, own, list(dict.fromkeys([*wanted, *others])))
        if answers is None:
            return None
        for address, macs in answers.items():
            found.setdefault(address, set()).update(macs)
    return found


def _ask_on(device: str, own: str, wanted: Sequence[str]) -> Answers | None:
    """Ask on one link; None where this account may not send such packets."""
    try:
        handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERNET_ARP))
    except OSError:
        return None
    found: Answers = {address: set() for address in wanted}
    with handle:
        handle.bind((device, _ETHERNET_ARP))
        mac = handle.getsockname()[4]
        for _round in range(_ROUNDS):
            for address in wanted:
                with contextlib.suppress(OSError):
                    handle.send(request(mac, own, address))
            end = time.monotonic() + _PATIENCE
            while (left := end - time.monotonic()) > 0:
                if not select.select([handle], [], [], left)[0]:
                    break
                answer = parse(handle.recv(256))
                if answer is not None and answer[0] in found:
                    found[answer[0]].add(answer[1])
    return found


def _route(address: str) -> tuple[str, str] | None:
    """Return interface and own address towards an address of the local link; None when it is elsewhere."""
    done = subprocess.run(
        ["ip", "-json", "route", "get", address], capture_output=True, text=True, check=False, timeout=10
    )
    try:
        (route,) = json.loads(done.stdout)
    except ValueError:
        return None
    if "gateway" in route or route.get("type") == "local" or "dev" not in route:
        return None
    return str(route["dev"]), str(route.get("prefsrc", "0.0.0.0"))


def judge(name: str, address: str, answers: Mapping[str, set[str]], known: Mapping[str, str]) -> None:
    """Refuse an address that is not one machine's, or that is a known machine's. Pure.

    Args:
        name: of the new node.
        address: its address.
        answers: as returned by ``ask``.
        known: by node, its address.

    Raises:
        CheckFailed: two machines answer, or a node of the inventory does.
    """
    macs = answers.get(address, set())
    if len(macs) > 1:
        raise CheckFailed(
            "address-duplicate",
            f"{len(macs)} machines answer for {address}: {', '.join(sorted(macs))}",
            where=name,
            hint="two machines have this address: give one of them another",
        )
    for other, its in known.items():
        if its != address and macs & answers.get(its, set()):
            raise CheckFailed(
                "address-of-known-node",
                f"{address} is answered by {other} ({its}, MAC {', '.join(sorted(macs))})",
                where=name,
                hint="give the address of the new machine",
            )
