#!/usr/bin/python
"""What a node is like before anything is done to it, read in one call.

Runs on the node with the standard library alone and changes nothing. It only reads; whether what it finds
is good enough is decided by cloudctl, for all nodes together.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_check
short_description: Report what a node is like, for pre-checks
description:
  - Reads the operating system, clock, disks, network ports, listening processes, container engine, kernel
    modules and virtualisation, and asks the given URLs and addresses, all at the same time.
  - Changes nothing and never fails because of what it finds.
options:
  sent:
    description: The time at which the controller sent this module, in seconds since 1970.
    type: float
    default: 0
  ports:
    description: TCP ports of which the listening process is wanted.
    type: list
    elements: int
    default: []
  urls:
    description: URLs to ask, by name.
    type: dict
    default: {}
  vips:
    description: Addresses of which is asked whether a machine on the same link has them.
    type: list
    elements: str
    default: []
  modules:
    description: Kernel modules of which is asked whether they can be used.
    type: list
    elements: str
    default: []
  kvm:
    description: Whether to try KVM.
    type: bool
    default: false
  paths:
    description: Directories of which the free space is wanted.
    type: list
    elements: str
    default: [/, /var/lib/docker]
author: cloudctl
"""

EXAMPLES = r"""
- name: Read what the node is like
  cloudctl_check:
    sent: "{{ now().timestamp() }}"
    ports: [3306, 5000]
    urls: {registry: "http://10.10.10.2:5000/v2/"}
"""

RETURN = r"""
ansible_facts:
  description: C(cloudctl_check) with what was read.
  returned: always
  type: dict
"""

SOCKET = "/run/docker.sock"
TIMEOUT = 5  # seconds for one question
KVM_GET_API_VERSION, KVM_CREATE_VM = 0xAE00, 0xAE01


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the container engine's socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(SOCKET)


def engine(path):
    """Return the engine's answer to a GET, None when there is no engine."""
    connection = UnixConnection("engine")
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def run(argv, timeout=TIMEOUT):
    """Return ``(rc, stdout)``; a missing program or a timeout is rc -1."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return -1, ""
    return done.returncode, done.stdout


def read_json(argv):
    """Return a command's JSON output, an empty list when there is none."""
    try:
        return json.loads(run(argv)[1] or "[]")
    except ValueError:
        return []


def read_os():
    """Return id, version and name of the operating system."""
    pairs = {}
    try:
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            key, equals, value = line.partition("=")
            if equals:
                pairs[key] = value.strip("\"'")
    except OSError:
        pass
    return {
        "id": pairs.get("ID", ""),
        "version": pairs.get("VERSION_ID", ""),
        "name": pairs.get("PRETTY_NAME", ""),
        "kernel": platform.release(),
    }


def read_disks(paths):
    """Return free and total bytes by directory; directories of one filesystem are told once."""
    disks, seen = {}, set()
    for path in paths:
        # What does not exist yet will be made on its parent's filesystem.
        existing = Path(path)
        while not existing.exists():
            existing = existing.parent
        device = existing.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(existing)
        # What is reserved for root counts as used: services do not run as root.
        disks[path] = {"free": usage.free, "total": usage.total}
    return disks


def read_links():
    """Return the network ports: name, mac, mtu, max_mtu, up, carrier, addresses."""
    addresses = {
        link.get("ifname"): [
            {"address": entry["local"], "prefix": entry.get("prefixlen")}
            for entry in link.get("addr_info", [])
            if entry.get("family") == "inet"
        ]
        for link in read_json(["ip", "-j", "address", "show"])
    }
    return [
        {
            "name": link.get("ifname", ""),
            "mac": link.get("address", ""),
            "mtu": link.get("mtu", 0),
            "max_mtu": link.get("max_mtu", 0),
            "up": "UP" in link.get("flags", []),
            "carrier": "LOWER_UP" in link.get("flags", []),
            "addresses": addresses.get(link.get("ifname"), []),
        }
        for link in read_json(["ip", "-d", "-j", "link", "show"])
    ]


def parse_listening(text):
    """Return ``{inode: port}`` of the listening sockets in the text of /proc/net/tcp."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            found[fields[9]] = int(fields[1].rsplit(":", 1)[1], 16)
    return found


def owners(inodes):
    """Return ``{inode: pid}`` for socket inodes."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                target = os.readlink(descriptor)
                if target.startswith("socket:[") and target[8:-1] in inodes:
                    found.setdefault(target[8:-1], int(process.name))
        except OSError:
            continue
    return found


def container_of(cgroup):
    """Return the container id in the text of /proc/PID/cgroup, or ''."""
    match = re.search(r"(?:docker|libpod|containerd)[-/]([0-9a-f]{64})", cgroup)
    return match.group(1) if match else ""


def read_ports(wanted):
    """Return who listens on the wanted ports: ``[{port, pid, process, container}]``."""
    sockets = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            listening = parse_listening(Path(path).read_text(encoding="ascii"))
        except OSError:
            continue
        sockets.update({inode: port for inode, port in listening.items() if port in wanted})
    if not sockets:
        return []
    pids = owners(set(sockets))
    names = {}
    for item in engine("/containers/json") or []:
        project = (item.get("Labels") or {}).get("com.docker.compose.project", "")
        names[item["Id"]] = {"name": item["Names"][0].lstrip("/"), "project": project}
    found = {}
    for inode, port in sockets.items():
        pid = pids.get(inode, 0)
        try:
            process = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            container = container_of(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"))
        except OSError:
            process, container = "", ""
        known = names.get(container) or {"name": container[:12], "project": ""}
        found[(port, pid)] = {
            "port": port,
            "pid": pid,
            "process": process,
            "container": known["name"],
            "project": known["project"],
        }
    return [found[key] for key in sorted(found)]


def ask(url):
    """Return ``{status, error, date, before, after}`` of a HEAD request; times are this node's."""
    answer = {"url": url, "status": 0, "error": "", "date": None, "before": time.time()}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as response:
            answer["status"], headers = response.status, response.headers
    except urllib.error.HTTPError as error:
        answer["status"], headers = error.code, error.headers
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer["error"], headers = str(getattr(error, "reason", error)), {}
    answer["after"] = time.time()
    date = headers.get("Date")
    if date:
        with contextlib.suppress(TypeError, ValueError):
            answer["date"] = email.utils.parsedate_to_datetime(date).timestamp()
    return answer


def read_vip(address):
    """Return the MAC of the machine on the same link that has an address, '' when none has it."""
    run(["ping", "-n", "-c", "2", "-i", "0.3", "-W", "1", address])
    for entry in read_json(["ip", "-j", "neighbour", "show", "to", address]):
        if entry.get("lladdr") and "FAILED" not in entry.get("state", []):
            return entry["lladdr"]
    return ""


def read_module(name):
    """Tell whether a kernel module is loaded, built in, or can be loaded."""
    if Path(f"/sys/module/{name}").is_dir():
        return True
    return run(["modprobe", "--dry-run", "--quiet", name])[0] == 0


def try_kvm():
    """Return '' when a VM can be made with KVM, else why not; the VM ends with its descriptor."""
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        if fcntl.ioctl(device, KVM_GET_API_VERSION, 0) != 12:
            return "the kernel's KVM interface has an unknown version"
        os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError as error:
        return f"no VM can be made with /dev/kvm: {error.strerror}"
    finally:
        os.close(device)
    return ""


def read_engine():
    """Return ``{installed, version}`` of the container engine."""
    answer = engine("/version")
    if answer:
        return {"installed": True, "running": True, "version": answer.get("Version", "")}
    rc, text = run(["docker", "--version"])
    match = re.search(r"version ([0-9.]+)", text)
    return {"installed": rc == 0, "running": False, "version": match.group(1) if match else ""}


def read_all(params):
    """Return everything that was asked for."""
    started = time.time()
    with ThreadPoolExecutor(max_workers=8 + len(params["urls"]) + len(params["vips"])) as pool:
        urls = {name: pool.submit(ask, url) for name, url in params["urls"].items()}
        vips = {address: pool.submit(read_vip, address) for address in params["vips"]}
        found = {
            "os": pool.submit(read_os),
            "disks": pool.submit(read_disks, params["paths"]),
            "links": pool.submit(read_links),
            "listening": pool.submit(read_ports, set(params["ports"])),
            "engine": pool.submit(read_engine),
        }
        facts = {name: future.result() for name, future in found.items()}
        facts["modules"] = {name: read_module(name) for name in params["modules"]}
        facts["kvm"] = try_kvm() if params["kvm"] else None
        facts["urls"] = {name: future.result() for name, future in urls.items()}
        facts["vips"] = {address: future.result() for address, future in vips.items()}
    facts["uid"] = os.geteuid()
    facts["clock"] = {"sent": params["sent"], "started": started, "ended": time.time()}
    return facts


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "sent": {"type": "float", "default": 0},
            "ports": {"type": "list", "elements": "int", "default": []},
            "urls": {"type": "dict", "default": {}},
            "vips": {"type": "list", "elements": "str", "default": []},
            "modules": {"type": "list", "elements": "str", "default": []},
            "kvm": {"type": "bool", "default": False},
            "paths": {"type": "list", "elements": "str", "default": ["/", "/var/lib/docker"]},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, ansible_facts={"cloudctl_check": read_all(module.params)})


if __name__ == "__main__":
    main()
