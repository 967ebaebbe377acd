#!/usr/bin/python
"""Ping a node's peers at full size, all at the same time.

Runs on the node with the standard library alone and changes nothing.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_ping
short_description: Ping peers with don't-fragment at full MTU
description:
  - Pings each peer from the given source address with a packet of exactly the network's MTU that must not be
    fragmented.
  - Where that fails, pings once more with a small packet, to tell a wrong MTU from a link that is cut.
  - Changes nothing and never fails because of what it finds.
options:
  peers:
    description: What to ping, each with C(network), C(node), C(source), C(address) and C(mtu).
    type: list
    elements: dict
    required: true
author: cloudctl
"""

EXAMPLES = r"""
- name: Ping the peers
  cloudctl_ping:
    peers:
      - {network: tenant, node: cmp02, source: 10.10.20.21, address: 10.10.20.22, mtu: 9000}
"""

RETURN = r"""
ansible_facts:
  description: >-
    C(cloudctl_ping), a list of the peers, each with C(full) and C(small) - whether it answered, C(small) is
    null when not tried - and C(configured) - whether this node has the source address -, C(interface) and
    C(interface_mtu).
  returned: always
  type: dict
"""

HEADERS = 28  # bytes of an IPv4 and an ICMP header
WORKERS = 32


def ping(source, address, size, count):
    """Tell whether an address answers a packet with ``size`` bytes of payload, not fragmented."""
    command = ["ping", "-n", "-q", "-M", "do", "-s", str(size), "-c", str(count), "-i", "0.2", "-W", "1"]
    command += ["-I", source, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def read_addresses():
    """Return ``{address: (interface, mtu)}`` of this node."""
    try:
        done = subprocess.run(
            ["ip", "-j", "address", "show"], capture_output=True, text=True, timeout=10, check=False
        )
        links = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return {
        entry["local"]: (link.get("ifname", ""), link.get("mtu", 0))
        for link in links
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet"
    }


def try_peer(peer, addresses):
    """Return the peer with what was found out about it."""
    interface, mtu = addresses.get(peer["source"], ("", 0))
    found = {**peer, "configured": bool(interface), "interface": interface, "interface_mtu": mtu}
    if not interface:
        return {**found, "full": False, "small": None}
    size = int(peer["mtu"]) - HEADERS
    # The first packet may be lost while the address is being resolved.
    full = ping(peer["source"], peer["address"], size, 2)
    return {**found, "full": full, "small": None if full else ping(peer["source"], peer["address"], 56, 2)}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"peers": {"type": "list", "elements": "dict", "required": True}},
        supports_check_mode=True,
    )
    peers = module.params["peers"]
    addresses = read_addresses()
    with ThreadPoolExecutor(max_workers=min(WORKERS, len(peers) or 1)) as pool:
        results = list(pool.map(lambda peer: try_peer(peer, addresses), peers))
    module.exit_json(changed=False, ansible_facts={"cloudctl_ping": results})


if __name__ == "__main__":
    main()
