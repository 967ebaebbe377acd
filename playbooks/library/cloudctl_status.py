#!/usr/bin/python
"""What runs on a node, read in one call: containers, probes inside containers, addresses, load.

Runs on the node with the standard library alone and changes nothing. It knows no service: what to ask
inside which container comes as data.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_status
short_description: Report what runs on a node
description:
  - Reads the containers from the engine's API, runs the given probes inside running containers, all at the
    same time, and reads addresses, load, memory and disks.
  - Changes nothing and never fails because of what it finds.
options:
  probes:
    description:
      - By name, C(container) (a shell pattern; the first running container that matches is asked), C(command)
        (a list of arguments, in which C({hostname}) is replaced) and optionally C(user).
      - A probe whose container does not run on this node is left out of the answer.
    type: dict
    default: {}
  timeout:
    description: Seconds that one probe may take.
    type: int
    default: 20
author: cloudctl
"""

EXAMPLES = r"""
- name: Read the state of the node
  cloudctl_status:
    probes:
      database: {container: mariadb, command: [mariadb, -NBe, "select 1"]}
"""

RETURN = r"""
ansible_facts:
  description: C(cloudctl_status) with C(containers), C(probes), C(addresses), C(node), C(engine) and
    C(schedules).
  returned: always
  type: dict
"""

SOCKET = "/run/docker.sock"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the container engine's socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(15)
        self.sock.connect(SOCKET)


def engine(path):
    """Return the engine's answer to a GET."""
    connection = UnixConnection("engine")
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def health_of(status):
    """Return healthy, unhealthy, starting or '' from the engine's text such as 'Up 3 hours (healthy)'."""
    match = re.search(r"\((?:health: )?(healthy|unhealthy|starting)\)", status)
    return match.group(1) if match else ""


def read_containers():
    """Return the containers, those that have ended too."""
    return [
        {
            "name": item["Names"][0].lstrip("/"),
            "state": item["State"],
            "health": health_of(item["Status"]),
            "status": item["Status"],
            "image": item["Image"],
        }
        for item in engine("/containers/json?all=1")
        if item.get("Names")
    ]


def run(argv, timeout):
    """Return ``{rc, stdout, stderr}`` of a command; a timeout is rc 124, a missing program 127."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return {"rc": 124, "stdout": "", "stderr": f"no answer within {timeout} s"}
    except OSError as error:
        return {"rc": 127, "stdout": "", "stderr": str(error)}
    return {"rc": done.returncode, "stdout": done.stdout[-200000:], "stderr": done.stderr[-2000:]}


def probe_command(probe, running, hostname):
    """Return the command line of a probe, None when no running container matches."""
    for name in running:
        if fnmatch.fnmatchcase(name, probe["container"]):
            user = ["--user", probe["user"]] if probe.get("user") else []
            return [
                "docker",
                "exec",
                *user,
                name,
                *(a.replace("{hostname}", hostname) for a in probe["command"]),
            ]
    return None


def read_probes(probes, containers, timeout):
    """Run the probes, all at the same time."""
    running = sorted(c["name"] for c in containers if c["state"] == "running")
    hostname = socket.gethostname().split(".")[0]
    commands = {name: probe_command(probe, running, hostname) for name, probe in probes.items()}
    commands = {name: command for name, command in commands.items() if command is not None}
    if not commands:
        return {}
    with ThreadPoolExecutor(max_workers=len(commands)) as pool:
        results = pool.map(lambda command: run(command, timeout), commands.values())
        return dict(zip(commands, results, strict=True))


def read_addresses():
    """Return every address with its interface: ``[{interface, address, prefix}]``."""
    answer = run(["ip", "-j", "address", "show"], 10)
    try:
        links = json.loads(answer["stdout"])
    except ValueError:
        return []
    return [
        {"interface": link.get("ifname", ""), "address": entry["local"], "prefix": entry.get("prefixlen")}
        for link in links
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet"
    ]


def read_node():
    """Return kernel, system, load, memory and disks of the node."""
    facts = {"kernel": platform.release(), "cpus": os.cpu_count(), "time": time.time()}
    try:
        with Path("/etc/os-release").open(encoding="utf-8") as stream:
            pairs = dict(line.rstrip("\n").split("=", 1) for line in stream if "=" in line)
        facts["system"] = pairs.get("PRETTY_NAME", "").strip('"')
        with Path("/proc/uptime").open(encoding="ascii") as stream:
            facts["uptime"] = float(stream.read().split()[0])
        with Path("/proc/meminfo").open(encoding="ascii") as stream:
            memory = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in stream)}
        facts["memory"] = {"total": memory["MemTotal"] * 1024, "available": memory["MemAvailable"] * 1024}
        facts["load"] = os.getloadavg()[0]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    facts["disks"] = {}
    for path in ("/", "/var/lib/docker", "/var/lib/ceph"):
        if Path(path).is_dir():
            usage = shutil.disk_usage(path)
            facts["disks"][path] = {"total": usage.total, "free": usage.free}
    return facts


def read_schedules():
    """Return by unit how the last run of each schedule ended, as its service wrote it down."""
    found = {}
    for path in sorted(Path("/var/lib/cloudctl-schedule").glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    for path in sorted(Path("/var/lib/cloudctl-schedule").glob("*.begun")):
        # Left by a run that goes on, or by one that ended with the node.
        try:
            began = path.stat().st_mtime
            argv = ["systemctl", "show", "--property=ActiveState", f"{path.stem}.service"]
            state = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        if state.strip() not in ("ActiveState=activating", "ActiveState=deactivating"):
            found[path.stem] = {"result": "interrupted", "status": "", "ended": began}
    return found


def read_all(probes, timeout):
    """Return everything that is known of this node."""
    facts = {"node": read_node(), "addresses": read_addresses(), "containers": [], "probes": {}, "engine": {}}
    try:
        version = engine("/version")
        facts["engine"] = {"version": version.get("Version", ""), "error": ""}
        facts["containers"] = read_containers()
    except (OSError, ValueError, http.client.HTTPException) as error:
        facts["engine"] = {"version": "", "error": str(error) or type(error).__name__}
    facts["schedules"] = read_schedules()
    facts["probes"] = read_probes(probes, facts["containers"], timeout)
    return facts


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "probes": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    facts = read_all(module.params["probes"], module.params["timeout"])
    module.exit_json(changed=False, ansible_facts={"cloudctl_status": facts})


if __name__ == "__main__":
    main()
