#!/usr/bin/python
"""Try the networks of a machine that is not configured yet, and leave it as it was.

Runs on the node with the standard library alone. A port without its address gets it for as long as the pings
take; whatever happens, it is taken away again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_trial
short_description: Try a new machine's networks before they are configured
description:
  - Gives each port that has no address yet its address and MTU, asks whether somebody else has the address,
    pings the peers at full size, and takes all of it back.
  - A port that has its address already is tried as it is.
  - Never fails because of what it finds.
options:
  ports:
    description: The ports, each with C(interface), C(mac), C(network), C(address), C(prefix) and C(mtu).
    type: list
    elements: dict
    required: true
  peers:
    description: What to ping, each with C(network), C(node), C(source), C(address) and C(mtu).
    type: list
    elements: dict
    required: true
author: cloudctl
"""

EXAMPLES = r"""
- name: Try the storage network
  cloudctl_trial:
    ports:
      - {interface: eth2, mac: "", network: storage, address: 10.10.30.23, prefix: 24, mtu: 9000}
    peers:
      - {network: storage, node: osd01, source: 10.10.30.23, address: 10.10.30.211, mtu: 9000}
"""

RETURN = r"""
trial:
  description: >-
    C(peers), each with C(full) and C(small) - whether it answered a packet of that size - and the port's
    C(interface) and C(interface_mtu), C(taken) - the addresses that another machine has, with its MAC -,
    C(faults) - ports that could not be tried, and why.
  returned: always
  type: dict
"""

HEADERS = 28  # bytes of an IPv4 and an ICMP header
WORKERS = 32
CARRIER = 5.0  # seconds that a port may take until it has a link
ARP = 0x0806


def run(argv):
    """Run a command; return ``(ok, what it said)``."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout if done.returncode == 0 else done.stderr).strip()


def read_links():
    """Return the node's ports as ``ip`` tells them, with their addresses."""
    ok, text = run(["ip", "-json", "address", "show"])
    return json.loads(text or "[]") if ok else []


def find_link(port, links):
    """Return the link of a port, by its MAC where one is given, else by its name; None when there is none."""
    for link in links:
        if port["mac"]:
            if link.get("address", "").lower() == port["mac"].lower():
                return link
        elif link.get("ifname") == port["interface"]:
            return link
    return None


def addresses(links):
    """Return the IPv4 addresses that the node has."""
    return {e["local"] for link in links for e in link.get("addr_info", []) if e.get("family") == "inet"}


def ping(source, address, size):
    """Tell whether an address answers packets with ``size`` bytes of payload, not fragmented."""
    # The first may be lost while the address is being resolved.
    command = ["ping", "-n", "-q", "-M", "do", "-s", str(size), "-c", "2", "-i", "0.2", "-W", "1"]
    return run([*command, "-I", source, address])[0]


def ports_of(links):
    """Return by IPv4 address the port that has it, and its MTU."""
    return {
        entry["local"]: {"interface": link["ifname"], "interface_mtu": int(link.get("mtu", 0))}
        for link in links
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet"
    }


def try_peer(peer):
    """Return the peer with whether full and small packets pass."""
    full = ping(peer["source"], peer["address"], int(peer["mtu"]) - HEADERS)
    return {**peer, "full": full, "small": full or ping(peer["source"], peer["address"], 56)}


def who_has(device, address):
    """Return the MAC of another machine that has an address, an empty string when nobody answers."""
    try:
        handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP))
    except OSError:
        return ""
    with handle:
        handle.bind((device, ARP))
        mac = handle.getsockname()[4]
        probe = b"\xff" * 6 + mac + struct.pack("!H", ARP) + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        probe += mac + b"\0" * 4 + b"\0" * 6 + ipaddress.IPv4Address(address).packed
        for _round in range(3):
            with contextlib.suppress(OSError):
                handle.send(probe)
            end = time.monotonic() + 0.3
            while (left := end - time.monotonic()) > 0 and select.select([handle], [], [], left)[0]:
                frame = handle.recv(256)
                answers = len(frame) >= 42 and struct.unpack_from("!H", frame, 20)[0] == 2
                if answers and frame[28:32] == ipaddress.IPv4Address(address).packed:
                    return frame[22:28].hex(":")
    return ""


def wait_for_carrier(device):
    """Tell whether a port has a link within some seconds."""
    end = time.monotonic() + CARRIER
    while True:
        with contextlib.suppress(OSError):
            if Path(f"/sys/class/net/{device}/carrier").read_text(encoding="ascii").strip() == "1":
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


class Trial:
    """Ports that are made ready for a moment."""

    def __init__(self, ports):
        self.ports = ports
        self.undo = []
        self.taken = []
        self.faults = []

    def __enter__(self):
        links = read_links()
        present = addresses(links)
        with ThreadPoolExecutor(max_workers=max(1, len(self.ports))) as pool:
            list(pool.map(lambda port: self.prepare(port, links, present), self.ports))
        return self

    def __exit__(self, *_error):
        for command in reversed(self.undo):
            run(command)

    def prepare(self, port, links, present):
        """Give a port what it lacks."""
        if port["address"] in present:
            return
        link = find_link(port, links)
        if link is None:
            self.fault(port, "there is no such port")
            return
        device = link["ifname"]
        if "UP" not in link.get("flags", []):
            self.undo.append(["ip", "link", "set", "dev", device, "down"])
        if int(link.get("mtu", 0)) != int(port["mtu"]):
            self.undo.append(["ip", "link", "set", "dev", device, "mtu", str(link.get("mtu", 1500))])
            ok, said = run(["ip", "link", "set", "dev", device, "mtu", str(port["mtu"])])
            if not ok:
                self.fault(port, f"{device} does not take an MTU of {port['mtu']}: {said}")
                return
        run(["ip", "link", "set", "dev", device, "up"])
        if not wait_for_carrier(device):
            self.fault(port, f"{device} has no link")
            return
        other = who_has(device, port["address"])
        if other:
            self.taken.append({"network": port["network"], "address": port["address"], "mac": other})
            return
        address = f"{port['address']}/{port['prefix']}"
        self.undo.append(["ip", "address", "del", address, "dev", device])
        ok, said = run(["ip", "address", "add", address, "dev", device])
        if not ok:
            self.fault(port, f"{device} does not take the address: {said}")

    def fault(self, port, text):
        """Note why a port cannot be tried."""
        self.faults.append({"network": port["network"], "interface": port["interface"], "why": text})


def trial(ports, peers):
    """Return what was found; the node is as it was."""
    with Trial(ports) as made:
        spoiled = {entry["network"] for entry in made.faults + made.taken}
        tried = [peer for peer in peers if peer["network"] not in spoiled]
        with ThreadPoolExecutor(max_workers=min(WORKERS, len(tried) or 1)) as pool:
            results = list(pool.map(try_peer, tried))
        # A port that had its address already was tried with the MTU that it has.
        found = ports_of(read_links())
    none = {"interface": "", "interface_mtu": 0}
    results = [{**peer, **found.get(peer["source"], none)} for peer in results]
    return {"peers": results, "taken": made.taken, "faults": made.faults}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "dict", "required": True},
            "peers": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, trial=trial(module.params["ports"], module.params["peers"]))


if __name__ == "__main__":
    main()
