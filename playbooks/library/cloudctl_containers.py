#!/usr/bin/python
"""Stop, start and read what runs on a node: containers, Ceph's daemons, the node itself.

Runs on the node with the standard library alone. It knows no service: which containers, in which order, comes
as data. Every action looks at what is there first, so that it can be repeated at any time.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_containers
short_description: Stop, start and read containers, Ceph's daemons and the node
description:
  - A container that is stopped here stays stopped over a restart of the engine and of the node, one that is
    started comes back by itself - the engine keeps that for containers with the restart policy
    C(unless-stopped).
  - Ceph's daemons are systemd units made by cephadm. They stay enabled when they are stopped, so they start
    with the node.
options:
  action:
    description:
      - V(read) reports containers, Ceph's units and the engine and changes nothing.
      - V(stop), V(start) and V(restart) work on O(groups). V(exec) runs O(command) in one that runs.
      - V(ceph_stop) and V(ceph_start) work on Ceph's units of the types in O(kinds).
      - V(reach) tries to connect to O(targets) from the node.
      - V(aside) moves the directory O(path) of the volume O(volume) away while O(container) does not
        run, V(discard) removes what V(aside) left there.
      - V(poweroff) stops Ceph's units and the container engine, then switches the node off after the answer.
    type: str
    choices: [read, stop, start, restart, exec, reach, aside, discard, ceph_stop, ceph_start, poweroff]
    required: true
  groups:
    description:
      - Lists of containers. The lists are worked off in order, the containers of one list at the same time.
      - With V(stop) a container that does not exist is no error.
    type: list
    elements: list
    default: []
  timeout:
    description: Seconds to wait for the containers of one list to become healthy, or for a command.
    type: int
    default: 300
  container:
    description: For V(exec), a shell pattern; the first running container that matches is asked.
    type: str
    default: ""
  command:
    description: For V(exec), a list of arguments, in which C({hostname}) is replaced. No secrets.
    type: list
    elements: str
    default: []
  user:
    description: For V(exec), the account in the container.
    type: str
    default: ""
  holder:
    description:
      - For V(restart) on the node that has O(addresses), the container that holds them. New connections to
        O(ports) of them wait while those under way end, then the addresses go to another node, and the
        containers restart without them.
    type: str
    default: ""
  addresses:
    description: For V(restart) with O(holder).
    type: list
    elements: str
    default: []
  ports:
    description: For V(restart) with O(holder), those of requests that end soon.
    type: list
    elements: int
    default: []
  targets:
    description: For V(reach), addresses with a port, C(10.0.0.1:80).
    type: list
    elements: str
    default: []
  volume:
    description: For V(aside) and V(discard), a named volume.
    type: str
    default: ""
  path:
    description: For V(aside) and V(discard), a directory in it.
    type: str
    default: ""
  kinds:
    description: Types of Ceph's daemons, for example V(mon).
    type: list
    elements: str
    default: []
author: cloudctl
"""

EXAMPLES = r"""
- name: Stop a service, its API first
  cloudctl_containers:
    action: stop
    groups: [[web_api], [web_worker, web_scheduler]]
"""

RETURN = r"""
containers:
  description: By name, C(state), C(health), C(started), C(id), C(restarts), C(looping), C(policy).
  returned: always
  type: dict
engine:
  description: Whether the container engine runs.
  returned: always
  type: bool
installed:
  description: Whether there is a container engine, be it off.
  returned: with the action read
  type: bool
boot:
  description: The kernel's id of this start of the node.
  returned: always
  type: str
ceph:
  description: By unit, C(kind), C(id), C(active), C(enabled), C(fsid).
  returned: with the actions read, ceph_stop and ceph_start
  type: dict
changed_names:
  description: What was stopped or started.
  returned: with the actions that change something
  type: list
  elements: str
absent:
  description: Containers that do not exist.
  returned: with the actions stop and start
  type: list
  elements: str
unreached:
  description: The targets that did not answer, with the reason.
  returned: with the action reach
  type: dict
answer:
  description: C(rc), C(stdout), C(stderr), C(container) of the command.
  returned: with the action exec
  type: dict
"""

SOCKET = "/run/docker.sock"
ENGINE_UNITS = ["docker.socket", "docker.service"]
LONGEST_STOP = 900
"""Seconds after which a stop is given up; the engine kills a container earlier, at its own stop timeout."""
MAX_RESTARTS = 8
LOOP_RESTARTS = 3
"""Restarts by the engine after which a container that is not up counts as being in a loop."""
UNIT = re.compile(r"^ceph-(?P<fsid>[0-9a-f-]{36})@(?P<kind>[a-z-]+)\.(?P<id>.+)\.service$")


class NodeError(Exception):
    """Something on the node did not work; ``details`` helps to find out why."""

    def __init__(self, message, details=""):
        super().__init__(message)
        self.details = details


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the container engine's socket."""

    def __init__(self, timeout):
        super().__init__("engine", timeout=timeout)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def engine(method, path, timeout=60):
    """Return the engine's ``(status, answer)``."""
    connection = UnixConnection(timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NodeError(
            f"the container engine did not answer to {method} {path}: {str(error) or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    try:
        return response.status, json.loads(body) if body else None
    except ValueError:
        return response.status, {"message": body.decode(errors="replace")[:500]}


def run(argv, timeout=60):
    """Return ``(rc, stdout, stderr)`` of a command; a timeout is rc 124, a missing program 127."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, errors="replace",
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"no end within {timeout} s"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


# -- reading -----------------------------------------------------------------------------------


def engine_runs():
    """Whether the container engine runs. Its socket is not touched before: that would start it."""
    code, text, _ = run(["systemctl", "is-active", "docker.service"], 30)
    return text.strip() in ("active", "activating", "reloading") or (code == 127 and os.path.exists(SOCKET))


def engine_installed():
    """Whether there is a container engine: one that is off may hold whatever it ran."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return bool(shutil.which("dockerd", path=path)) or engine_runs()


def describe(item):
    """Return what is told of a container, from the engine's inspection of it. Pure."""
    state = item.get("State") or {}
    status = state.get("Status") or "unknown"
    health = (state.get("Health") or {}).get("Status") or ""
    restarts = int(item.get("RestartCount") or 0)
    return {
        "id": item.get("Id") or "",
        "state": status,
        "health": "" if health == "none" else health,
        "started": state.get("StartedAt") or "",
        "finished": state.get("FinishedAt") or "",
        "exit_code": state.get("ExitCode"),
        "restarts": restarts,
        "looping": status == "restarting"
        or (restarts >= LOOP_RESTARTS and health in ("starting", "unhealthy")),
        "policy": ((item.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name") or "",
    }


def inspect(name):
    """Return the engine's inspection of a container, None where there is no such container."""
    status, item = engine("GET", f"/containers/{urllib.parse.quote(name)}/json")
    if status == 404:
        return None
    if status >= 400:
        raise NodeError(f"the container engine can't tell of {name}: {(item or {}).get('message', status)}")
    return item


def read_containers():
    """Return every container by name; empty where the engine does not run."""
    if not engine_runs():
        return {}
    status, items = engine("GET", "/containers/json?all=1")
    if status >= 400:
        raise NodeError(f"the container engine lists no containers: {status}")
    names = [item["Names"][0].lstrip("/") for item in items if item.get("Names")]
    if not names:
        return {}
    with ThreadPoolExecutor(max_workers=min(8, len(names))) as pool:
        found = dict(zip(names, pool.map(inspect, names), strict=True))
    return {name: describe(item) for name, item in sorted(found.items()) if item is not None}


def boot_id():
    """Return the kernel's id of this start of the node."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            kernel = stream.read().strip()
        # A node that is a container shares its host's kernel: the start of its first process tells it apart.
        with open("/proc/1/stat", encoding="ascii") as stream:
            started = stream.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{kernel}-{started}"


def parse_units(names, shown):
    """Return Ceph's units from their names and the text of ``systemctl show``. Pure."""
    states = {}
    for block in shown.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in fields:
            states[fields["Id"]] = fields
    units = {}
    for name in sorted(names):
        match = UNIT.match(name)
        if match:
            state = states.get(name, {})
            units[name] = {
                "fsid": match["fsid"],
                "kind": match["kind"],
                "id": match["id"],
                "active": state.get("ActiveState", "unknown"),
                "enabled": state.get("UnitFileState", "") == "enabled",
            }
    return units


def read_ceph():
    """Return the units of Ceph's daemons: those that are enabled, and those that systemd knows."""
    names = {
        os.path.basename(path)
        for path in glob.glob("/etc/systemd/system/ceph-*.target.wants/ceph-*@*.service")
    }
    _, text, _ = run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "ceph-*@*.service"])
    names |= {line.split()[0] for line in text.splitlines() if line.split()}
    names = {name for name in names if UNIT.match(name)}
    if not names:
        return {}
    _, shown, _ = run(["systemctl", "show", "-p", "Id,ActiveState,UnitFileState", *sorted(names)])
    return parse_units(names, shown)


# -- stopping and starting ---------------------------------------------------------------------


def stop_one(name):
    """Stop a container as its own stop timeout says; return stopped, already or absent."""
    item = inspect(name)
    if item is None:
        return "absent"
    state = (item.get("State") or {}).get("Status")
    path = f"/containers/{urllib.parse.quote(name)}"
    if state == "paused":
        engine("POST", f"{path}/unpause")
    status, answer = engine("POST", f"{path}/stop", LONGEST_STOP)
    if status == 404:
        return "absent"
    if status >= 400:
        raise NodeError(f"{name} can't be stopped: {(answer or {}).get('message', status)}")
    return "already" if status == 304 else "stopped"


def start_one(name):
    """Start a container; return started, already or absent."""
    item = inspect(name)
    if item is None:
        return "absent"
    path = f"/containers/{urllib.parse.quote(name)}"
    if (item.get("State") or {}).get("Status") == "paused":
        engine("POST", f"{path}/unpause")
    status, answer = engine("POST", f"{path}/start", 300)
    if status == 404:
        return "absent"
    if status >= 400:
        raise NodeError(f"{name} can't be started: {(answer or {}).get('message', status)}")
    return "already" if status == 304 else "started"


def each(work, names):
    """Run ``work`` for all names at the same time; return the results by name, or raise all that failed."""
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        waiting = {name: pool.submit(work, name) for name in names}
        failed = [error for error in (future.exception() for future in waiting.values()) if error is not None]
    if failed:
        if not all(isinstance(error, NodeError) for error in failed):
            raise failed[0]
        raise NodeError("; ".join(str(error) for error in failed))
    return {name: future.result() for name, future in waiting.items()}


def stop(groups):
    """Stop the containers, list after list; return ``(stopped, absent)``."""
    if not engine_runs():
        return [], []
    stopped, absent = [], []
    for group in groups:
        results = each(stop_one, group)
        stopped += [name for name, result in results.items() if result == "stopped"]
        absent += [name for name, result in results.items() if result == "absent"]
    return stopped, absent


def start(groups, timeout):
    """Start the containers, list after list, each list when the one before is healthy."""
    if not engine_runs():
        start_engine()
    started, absent = [], []
    for group in groups:
        results = each(start_one, group)
        started += [name for name, result in results.items() if result == "started"]
        absent += [name for name, result in results.items() if result == "absent"]
        wait_healthy([name for name, result in results.items() if result != "absent"], timeout)
    return started, absent


def start_engine():
    """Start the container engine."""
    run(["systemctl", "reset-failed", *ENGINE_UNITS])
    code, _, error = run(["systemctl", "start", *ENGINE_UNITS], 300)
    if code != 0:
        raise NodeError("the container engine does not start", error[-2000:])


def verdict(item):
    """Return healthy, or a word on what is wrong with a container. Pure."""
    if item is None:
        return "missing"
    state = item["State"]
    if state.get("Restarting") or not state.get("Running"):
        return (
            f"{state.get('Status')} (exit code {state.get('ExitCode')}, restarts {item.get('RestartCount')})"
        )
    health = (state.get("Health") or {}).get("Status")
    return "healthy" if health in (None, "healthy", "none") else health


def wait_healthy(names, timeout):
    """Wait until every container is healthy (or runs, where it has no health check) twice in a row.

    One that the engine starts again and again is given up before the time is over.
    """
    begin = time.monotonic()
    restarts = {name: int((inspect(name) or {}).get("RestartCount") or 0) for name in names}
    calm = 0
    while True:
        found = {name: inspect(name) for name in names}
        pending = {name: state for name, item in found.items() if (state := verdict(item)) != "healthy"}
        calm = 0 if pending else calm + 1
        if calm >= 2:
            return
        looping = [
            name for name in pending
            if int((found[name] or {}).get("RestartCount") or 0) - restarts[name] >= MAX_RESTARTS
        ]  # fmt: skip
        if looping or time.monotonic() - begin > timeout:
            break
        time.sleep(0.5)
    waited = round(time.monotonic() - begin)
    listed = ", ".join(f"{name} ({state})" for name, state in pending.items())
    raise NodeError(f"not healthy after {waited} s: {listed}", "\n".join(reason(name) for name in pending))


def reason(name):
    """Return the last words of a container and of its health check."""
    _, out, error = run(["docker", "logs", "--tail", "15", name], 30)
    probes = (((inspect(name) or {}).get("State") or {}).get("Health") or {}).get("Log") or []
    probe = probes[-1].get("Output", "")[-300:] if probes else ""
    return f"--- {name}\n{probe}\n{(out + error)[-1500:]}"


# -- giving an address up -----------------------------------------------------------------------

TABLE = "cloudctl_hand_over"
HOLD = 15
"""Seconds after which the kernel lets connections in again by itself, should this program be killed."""
QUIET = 2.5
"""Seconds that requests under way get: who connects meanwhile tries again after one and after three."""


def busy(listed, ports):
    """Count the connections whose peer waits for an answer, from the text of C(ss -Htin). Pure.

    A request is under way as long as the last bytes came from the peer, or nothing was said yet.
    """
    found, local = 0, ""
    for line in listed.splitlines():
        if line and not line[0].isspace():
            fields = line.split()
            local = fields[2] if len(fields) > 3 else ""
            continue
        if local.rpartition(":")[2] not in ports:
            continue
        sent = re.search(r"\blastsnd:(\d+)", line)
        received = re.search(r"\blastrcv:(\d+)", line)
        since_sent, since_received = int(sent[1]) if sent else 0, int(received[1]) if received else 0
        if since_received <= since_sent or since_sent < 50:
            found += 1
    return found


def hold_connections(addresses, ports):
    """Let new connections to addresses wait: their first packets are dropped, and their senders try again.

    Args:
        addresses: of this node.
        ports: only these; empty: all.
    """
    which = f"tcp dport {{ {', '.join(map(str, ports))} }} " if ports else ""
    rules = f"""table ip {TABLE} {{}}
delete table ip {TABLE}
table ip {TABLE} {{
  set held {{ type ipv4_addr; flags timeout; elements = {{ {
        ", ".join(f"{address} timeout {HOLD}s" for address in addresses)
    } }} }}
  chain arriving {{
    type filter hook input priority -150;
    iifname != "lo" ip daddr @held {which}tcp flags & (syn | ack) == syn drop
  }}
}}
"""
    # Without it, too, the addresses go to another node: some clients have to ask again then.
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ["nft", "-f", "-"], input=rules, capture_output=True, text=True, timeout=30, check=False
        )


def hand_over(groups, holder, addresses, ports):
    """Stop containers on the node that has addresses, so that few notice; return stopped and absent ones."""
    hold_connections(addresses, ports)
    try:
        begin = time.monotonic()
        wanted = {str(port) for port in ports}
        while time.monotonic() - begin < QUIET:
            listed = "".join(run(["ss", "-Htin", "state", "established", "src", a], 10)[1] for a in addresses)
            if not busy(listed, wanted):
                break
            time.sleep(0.05)
        hold_connections(addresses, [])
        # Before the addresses go: who is connected is told so, those on this node, too.
        stopped, absent = stop(groups)
        if not any(holder in group for group in groups):
            more, gone = stop([[holder]])
            stopped, absent = stopped + more, absent + gone
    finally:
        run(["nft", "delete", "table", "ip", TABLE], 30)
    return stopped, absent


# -- commands in containers --------------------------------------------------------------------


def execute(pattern, command, user, timeout):
    """Run a command in the first running container whose name matches."""
    names = []
    if engine_runs():
        _, items = engine("GET", "/containers/json")
        names = sorted(item["Names"][0].lstrip("/") for item in items or [] if item.get("Names"))
    name = next((name for name in names if fnmatch.fnmatchcase(name, pattern)), None)
    if name is None:
        return {"rc": 125, "stdout": "", "stderr": f"no container {pattern} runs here", "container": ""}
    hostname = socket.gethostname().split(".")[0]
    account = ["--user", user] if user else []
    argv = ["docker", "exec", *account, name, *(part.replace("{hostname}", hostname) for part in command)]
    code, out, error = run(argv, timeout)
    return {"rc": code, "stdout": out[-200000:], "stderr": error[-4000:], "container": name}


# -- data of a stopped container, the way to other nodes ---------------------------------------

ASIDE = ".cloudctl-aside"


def volume_path(volume, path):
    """Return a directory of a named volume; refuse whatever leaves the volume."""
    if not volume or not path or "/" in volume or path.startswith("/") or ".." in path.split("/"):
        raise NodeError(f"{path!r} is no directory of a volume {volume!r}")
    status, item = engine("GET", f"/volumes/{urllib.parse.quote(volume)}")
    if status == 404:
        return None
    if status >= 400:
        raise NodeError(f"the container engine can't tell of the volume {volume}: {status}")
    return os.path.join(item["Mountpoint"], path)


def aside(container, volume, path):
    """Move a directory away; one that was moved before and is not discarded yet stays the copy."""
    item = inspect(container)
    if item is not None and (item.get("State") or {}).get("Status") in ("running", "restarting", "paused"):
        raise NodeError(f"{container} runs: its data is left alone")
    found = volume_path(volume, path)
    if found is None or not os.path.isdir(found):
        return []
    if os.path.exists(found + ASIDE):
        # Made by a start after the first move: not worth keeping.
        shutil.rmtree(found)
    else:
        os.rename(found, found + ASIDE)
    return [path]


def discard(volume, path):
    """Remove what was moved away."""
    found = volume_path(volume, path)
    if found is None or not os.path.exists(found + ASIDE):
        return []
    shutil.rmtree(found + ASIDE)
    return [path]


def reach(targets):
    """Return the targets to which no connection can be made, with the reason."""

    def try_one(target):
        host, _, port = target.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return ""
        except OSError as error:
            return str(error) or type(error).__name__

    return {target: why for target, why in each(try_one, targets).items() if why}


# -- Ceph's daemons, the node ------------------------------------------------------------------


def ceph_stop(kinds):
    """Stop the units of these kinds; they stay enabled. Return those that were stopped."""
    units = [
        name for name, unit in read_ceph().items() if unit["kind"] in kinds and unit["active"] != "inactive"
    ]
    if units:
        code, _, error = run(["systemctl", "stop", *units], LONGEST_STOP)
        if code != 0:
            raise NodeError(f"{' '.join(units)}: systemctl stop ended with {code}", error[-2000:])
        # One that was killed at its stop timeout counts as failed: it is stopped all the same.
        run(["systemctl", "reset-failed", *units])
    return units


def ceph_start(kinds, timeout):
    """Start the units of these kinds, wait until systemd calls them active; return those that were not."""
    units = [
        name for name, unit in read_ceph().items() if unit["kind"] in kinds and unit["active"] != "active"
    ]
    if units:
        if not engine_runs():
            start_engine()
        # Starts that failed too often (a node without its network) would be refused.
        run(["systemctl", "reset-failed", *units])
        code, _, error = run(["systemctl", "start", *units], timeout)
        if code != 0:
            raise NodeError(f"{' '.join(units)}: systemctl start ended with {code}", error[-2000:])
    return units


def poweroff():
    """Stop Ceph's daemons and the engine, then switch off when this call has been answered."""
    kinds = {unit["kind"] for unit in read_ceph().values()}
    stopped = ceph_stop(kinds) if kinds else []
    # Containers that still run are stopped by the engine and come back with the node.
    code, _, error = run(["systemctl", "stop", *ENGINE_UNITS], LONGEST_STOP)
    if code not in (0, 5):  # 5: there is no such unit
        raise NodeError("the container engine does not stop: not switched off", error[-2000:])
    os.sync()
    argv = ["systemd-run", "--quiet", "--collect", "--on-active=2s", "--timer-property=AccuracySec=100ms"]
    code, _, error = run([*argv, "systemctl", "poweroff"])
    if code != 0:
        raise NodeError("the node can't be switched off", error[-2000:])
    return [*stopped, "node"]


def act(params):
    """Do what was asked for; return the module's answer."""
    action = params["action"]
    answer = {"boot": boot_id()}
    done, absent = [], []
    if action == "stop":
        done, absent = stop(params["groups"])
    elif action == "start":
        done, absent = start(params["groups"], params["timeout"])
    elif action == "restart":
        groups = list(params["groups"])
        if params["holder"] and params["addresses"]:
            before = set(hand_over(groups[::-1], params["holder"], params["addresses"], params["ports"])[0])
            if not any(params["holder"] in group for group in groups):
                groups += [[params["holder"]]] if params["holder"] in before else []
        else:
            before = set(stop(groups[::-1])[0])
        done, absent = start(groups, params["timeout"])
        done = sorted(before | set(done))
    elif action == "reach":
        return {**answer, "changed": False, "unreached": reach(params["targets"])}
    elif action == "aside":
        done = aside(params["container"], params["volume"], params["path"])
    elif action == "discard":
        done = discard(params["volume"], params["path"])
    elif action == "exec":
        answer["answer"] = execute(params["container"], params["command"], params["user"], params["timeout"])
        return {**answer, "changed": False}
    elif action == "ceph_stop":
        done = ceph_stop(params["kinds"])
    elif action == "ceph_start":
        done = ceph_start(params["kinds"], params["timeout"])
    elif action == "poweroff":
        done = poweroff()
        return {**answer, "changed": True, "changed_names": done, "engine": False, "containers": {}}
    if action in ("read", "ceph_stop", "ceph_start"):
        answer["ceph"] = read_ceph()
    if action == "read":
        answer["installed"] = engine_installed()
    answer["engine"] = engine_runs()
    answer["containers"] = read_containers() if action in ("read", "stop", "start", "restart") else {}
    return {**answer, "changed": bool(done), "changed_names": done, "absent": absent}


def main():
    """Run the module."""
    choices = ["read", "stop", "start", "restart", "exec", "reach", "aside", "discard"]
    choices += ["ceph_stop", "ceph_start", "poweroff"]
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": choices},
            "groups": {"type": "list", "elements": "list", "default": []},
            "timeout": {"type": "int", "default": 300},
            "container": {"type": "str", "default": ""},
            "command": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": ""},
            "holder": {"type": "str", "default": ""},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "targets": {"type": "list", "elements": "str", "default": []},
            "volume": {"type": "str", "default": ""},
            "path": {"type": "str", "default": ""},
            "kinds": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=False,
    )
    try:
        with contextlib.suppress(BrokenPipeError):
            module.exit_json(**act(module.params))
    except NodeError as error:
        module.fail_json(msg=str(error), details=error.details)


if __name__ == "__main__":
    main()
