#!/usr/bin/python
"""What a machine has: network ports and disks.

Runs on the node with the standard library alone and leaves it as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_inspect
short_description: Report a machine's network ports and disks
description:
  - Reads every physical network port with its MAC, speed and link, and every disk with a stable path, size,
    kind, what is on it and whether the system uses it.
  - Changes nothing. With O(raise_ports), ports that are down are up for some seconds.
options:
  raise_ports:
    description:
      - Set ports that are down up until they have a link, for five seconds at most, and down again; a port
        that is down does not tell whether a cable is in it.
    type: bool
    default: false
author: cloudctl
"""

EXAMPLES = r"""
- name: What the machine has
  cloudctl_inspect:
    raise_ports: true
"""

RETURN = r"""
machine:
  description: >-
    C(ports), each with C(name), C(mac), C(speed) (Mbit/s, null when unknown), C(link), C(mtu), C(driver) and
    C(addresses); C(disks), each with C(path) (stable), C(name), C(size) (bytes), C(rotational), C(model),
    C(content) (words, empty when there is none) and C(system).
  returned: always
  type: dict
"""

VIRTUAL = re.compile(r"(lo|br-.*|ovs-.*|docker.*|veth.*|tap.*|virbr.*|genev.*|vxlan.*)")
DISKS = re.compile(r"(sd[a-z]+|vd[a-z]+|xvd[a-z]+|hd[a-z]+|nvme\d+n\d+|loop\d+)")
CARRIER = 5.0  # seconds that a port may take until it has a link
PREFERRED = ("wwn-", "nvme-eui.", "nvme-uuid.", "scsi-3", "ata-", "scsi-", "nvme-", "virtio-", "lab-")


def run(argv):
    """Return a command's output, an empty text when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def read(path):
    """Return a file's text, stripped; an empty text when it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_links(root):
    """Return by name what ``ip`` tells of the physical network ports (and what looks like them)."""
    links = {link.get("ifname"): link for link in json.loads(run(["ip", "-json", "address"]) or "[]")}
    # A port of a virtual machine or a container has no device; what bridges and tunnels make is none.
    return {
        name: link
        for name, link in links.items()
        if not VIRTUAL.fullmatch(name)
        and not Path(f"{root}/{name}/bridge").exists()
        and link.get("link_type") == "ether"
    }


@contextlib.contextmanager
def raised(names, root):
    """Have ports up, all of them with a link or after some seconds; they are down again afterwards."""
    try:
        for name in names:
            run(["ip", "link", "set", "dev", name, "up"])
        end = time.monotonic() + CARRIER
        while any(read(f"{root}/{name}/carrier") != "1" for name in names) and time.monotonic() < end:
            time.sleep(0.1)
        yield
    finally:
        for name in names:
            run(["ip", "link", "set", "dev", name, "down"])


def ports(raise_ports=False, root="/sys/class/net"):
    """Return the physical network ports, in the kernel's order."""
    links = read_links(root)
    down = [name for name, link in links.items() if raise_ports and "UP" not in link.get("flags", [])]
    if down:
        with raised(down, root):
            return describe(read_links(root), root)
    return describe(links, root)


def describe(links, root):
    """Return what is told of ports."""
    found = []
    for name, link in links.items():
        place = f"{root}/{name}"
        speed = read(f"{place}/speed")
        flags = link.get("flags", [])
        found.append(
            {
                "name": name,
                "mac": link.get("address", ""),
                "speed": int(speed) if speed.isdigit() else None,
                # A port that is down does not tell whether a cable is in it.
                "link": "LOWER_UP" in flags if "UP" in flags else None,
                "mtu": link.get("mtu", 0),
                "driver": os.path.basename(os.path.realpath(f"{place}/device/driver"))
                if Path(f"{place}/device/driver").exists()
                else "",
                "addresses": [e["local"] for e in link.get("addr_info", []) if e.get("family") == "inet"],
            }
        )
    return sorted(found, key=lambda port: int(read(f"{root}/{port['name']}/ifindex") or 0))


def stable_path(device, folder="/dev/disk"):
    """Return the name of a disk that stays the same when disks are added or swapped."""
    real = os.path.realpath(device)
    for kind in ("by-id", "by-path"):
        directory = Path(folder, kind)
        names = sorted(directory.iterdir()) if directory.is_dir() else []
        links = [link.name for link in names if os.path.realpath(link) == real]
        for prefix in (*PREFERRED, ""):
            for name in links:
                if name.startswith(prefix):
                    return f"{directory}/{name}"
    return device


def users(numbers, mountinfo):
    """Return mount points of devices, given as {'8:1', …}."""
    rows = (line.split() for line in mountinfo.splitlines())
    return sorted({row[4] for row in rows if len(row) > 4 and row[2] in numbers})


def disks(root="/sys/block"):
    """Return the disks that this machine has; what it has no device of is another's (containers see all)."""
    mountinfo = read("/proc/self/mountinfo")
    swaps = [line.split()[0] for line in read("/proc/swaps").splitlines()[1:]]
    found = []
    for place in sorted(Path(root).iterdir(), key=lambda item: (len(item.name), item.name)):
        device = f"/dev/{place.name}"
        try:
            is_block = stat.S_ISBLK(os.stat(device).st_mode)
        except OSError:
            continue
        size = int(read(place / "size") or 0) * 512
        if not DISKS.fullmatch(place.name) or not is_block or not size:
            continue
        parts = [entry.parent.name for entry in place.glob("*/partition")]
        holders = [
            entry.name for part in (place, *(place / p for p in parts)) for entry in part.glob("holders/*")
        ]
        numbers = {read(place / "dev"), *(read(place / part / "dev") for part in parts)}
        mounts = users(numbers, mountinfo)
        swap = any(name in swaps for name in (device, *(f"/dev/{part}" for part in parts)))
        kinds = sorted(set(run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device]).split()))
        content = [f"{len(parts)} partitions"] if parts else []
        content += [f"used by {', '.join(holders)}"] if holders else []
        content += kinds + (["swap"] if swap else []) + [f"mounted at {mount}" for mount in mounts[:3]]
        found.append(
            {
                "name": device,
                "path": stable_path(device),
                "size": size,
                "rotational": read(place / "queue" / "rotational") == "1",
                "model": read(place / "device" / "model"),
                "content": ", ".join(content),
                "system": bool(mounts) or swap,
            }
        )
    return found


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"raise_ports": {"type": "bool", "default": False}}, supports_check_mode=True
    )
    raise_ports = module.params["raise_ports"] and not module.check_mode
    module.exit_json(changed=False, machine={"ports": ports(raise_ports), "disks": disks()})


if __name__ == "__main__":
    main()
