#!/usr/bin/python
"""One member of a database cluster on this node: read where its data stands, stop it, copy it, start it.

Runs on the node with the standard library alone and decides nothing: what is done to which member is decided
where all members are known. Reading disturbs no server that runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudctl_lock import LockHeld, node_lock

DOCUMENTATION = r"""
---
module: cloudctl_galera
short_description: Read or change one member of a Galera cluster
description:
  - With O(action=read) reports the container, what the server says, grastate.dat, the position that the
    storage engine itself recovers (in a one-shot container of the same image, only while no server uses the
    data), free space and the copies of the data that earlier recoveries made. Logs are never looked at for a
    position.
  - The other actions change the member and report what they did. Each may be repeated.
options:
  action:
    description:
      - V(read) reads. V(stop) stops the container; it then stays stopped when the node starts again. A server
        that is a synced part of its cluster is not stopped.
      - V(copy) copies the data directory of a stopped member. V(forget) removes copies.
      - V(start) writes grastate.dat when O(grastate) is given, starts the container, and waits like V(wait).
      - V(wait) waits until the server is a synced part of its cluster, or has begun to fail.
    type: str
    choices: [read, stop, copy, forget, start, wait]
    required: true
  container:
    description: The container's name.
    type: str
    required: true
  image:
    description: Its image, for a node on which the container is missing.
    type: str
    required: true
  volumes:
    description: Its volumes, as the one-shot container gets them.
    type: list
    elements: str
    required: true
  data:
    description: The volume with the data directory.
    type: str
    required: true
  status_command:
    description: Prints the server's wsrep status variables, run in the container.
    type: list
    elements: str
    required: true
  position_command:
    description: Prints the position that the storage engine recovers, run in the one-shot container.
    type: list
    elements: str
    required: true
  probe:
    description: Whether V(read) may run the one-shot container.
    type: bool
    default: true
  grastate:
    description: What V(start) writes to grastate.dat - C(uuid), C(seqno), C(safe). The saved view goes, too.
    type: dict
  label:
    description: Name of the copy that V(copy) makes.
    type: str
    default: ""
  names:
    description: Copies that V(forget) removes.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that V(wait) and V(start) wait, and that V(stop) leaves to the server to end.
    type: int
    default: 60
author: cloudctl
"""

EXAMPLES = r"""
- name: Read where the member's data stands
  cloudctl_galera:
    action: read
    container: database
    image: registry/database:1
    volumes: ["data:/var/lib/mysql"]
    data: data
    status_command: [client, -NBe, "show global status like 'wsrep_%'"]
    position_command: [server, --wsrep-recover]
"""

RETURN = r"""
member:
  description: What is known of the member after the action.
  returned: always
  type: dict
copy:
  description: Path, bytes, and whether it was there already; or C(refused) with the space that is missing.
  returned: with action copy
  type: dict
"""

STATE = "/var/lib/cloudctl"
COPIES = f"{STATE}/galera"
COMPOSE = "/etc/cloudctl/compose.yml"
ONE_SHOT = "cloudctl-galera-position"
POSITION = re.compile(r"Recovered position: *([0-9a-f-]{36}):(-?\d+)")
ARGUMENT = re.compile(r"--wsrep[-_]start[-_]position=([0-9a-f-]{36}):(-?\d+)")
# A new start finds them again, or is better off without them; they are as big as the data may be.
NOT_COPIED = re.compile(r"galera\.cache|gcache\.page\..*|ibtmp\d+|mariadb\.pid")
GRASTATE = """# GALERA saved state
version: 2.1
uuid:    {uuid}
seqno:   {seqno}
safe_to_bootstrap: {safe}
"""
LOGS = "/var/log/kolla"
ERROR = re.compile(r"\[ERROR\]|(?i:cannot|denied|no space)")
RESERVE = 1 << 30
"""Bytes that a copy leaves free on its file system."""


class MemberError(Exception):
    """Something did not work; ``details`` helps to find out why."""

    def __init__(self, message, details=""):
        super().__init__(message)
        self.details = details


def run(argv, timeout=60, check=True):
    """Return ``(rc, stdout, stderr)``; a timeout is rc 124, a missing program 127."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        result = (124, "", f"no end within {timeout} s")
    except OSError as error:
        result = (127, "", str(error))
    else:
        result = (done.returncode, done.stdout, done.stderr)
    if check and result[0] != 0:
        raise MemberError(
            f"{' '.join(argv[:4])} failed ({result[0]})", (result[2] or result[1]).strip()[-2000:]
        )
    return result


# -- reading -----------------------------------------------------------------------------------


def parse_status(text):
    """Return the wsrep variables that a client printed, without their prefix."""
    rows = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {name[len("wsrep_") :]: value for name, value in rows if name.startswith("wsrep_")}


def parse_time(text):
    """Return the seconds since the epoch of the engine's time (2026-01-01T10:00:00.1234Z), None if unset."""
    match = re.match(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)", text or "")
    if not match or int(match.group(1)) < 1971:
        return None
    import calendar

    return calendar.timegm(tuple(int(part) for part in match.groups()))


class Member:
    """The member on this node."""

    def __init__(self, params):
        self.p = params
        self.name = params["container"]

    def inspect(self):
        """Return the engine's word on the container, None where there is none."""
        code, out, error = run(["docker", "inspect", "--type", "container", self.name], check=False)
        if code == 0:
            return json.loads(out)[0]
        if "No such" in error:
            return None
        raise MemberError("the container engine does not answer", error.strip()[-500:])

    def directory(self):
        """Return the path of the data directory, None where the volume is missing."""
        code, out, _error = run(
            ["docker", "volume", "inspect", "--format", "{{.Mountpoint}}", self.p["data"]], check=False
        )
        return out.strip() if code == 0 else None

    def status(self):
        """Return the server's wsrep variables, empty where it does not answer."""
        # the limit is inside as well: a client that is cut off here would stay in the container
        command = ["docker", "exec", self.name, "timeout", "-k", "2", "10", *self.p["status_command"]]
        code, out, _error = run(command, timeout=20, check=False)
        return parse_status(out) if code == 0 else {}

    def read(self, probe):
        """Return what is known of the member."""
        item = self.inspect()
        state = (item or {}).get("State") or {}
        found = {
            "container": state.get("Status", "missing") if item else "missing",
            "restarts": int((item or {}).get("RestartCount") or 0),
            "running_for": None,
            "status": {},
            "argument": None,
            "grastate": None,
            "recovered": None,
            "recover_error": "",
            "data": False,
            "transfer": False,
            "view": False,
            "size": 0,
            "free": {},
            "copies": read_copies(),
        }
        if found["container"] == "running":
            began = parse_time(state.get("StartedAt"))
            found["running_for"] = max(0, round(time.time() - began)) if began else None
            found["status"] = self.status()
            if not found["status"]:
                found["argument"] = self.argument()
        directory = self.directory()
        if directory is None or not os.path.isdir(directory):
            return found
        with (
            contextlib.suppress(OSError),
            open(os.path.join(directory, "grastate.dat"), "rb") as stream,
        ):
            found["grastate"] = stream.read(4096).decode("utf-8", "replace")
        found["data"] = os.path.isdir(os.path.join(directory, "mysql"))
        found["transfer"] = os.path.exists(os.path.join(directory, "sst_in_progress"))
        found["view"] = os.path.exists(os.path.join(directory, "gvwstate.dat"))
        found["size"] = size_of(directory)
        found["free"] = {"path": COPIES, "bytes": free_bytes(COPIES)}
        if probe and found["container"] != "running" and found["data"] and not found["transfer"]:
            found.update(self.recover(item))
        return found

    def argument(self):
        """Return the position that the running server was told, while it does not answer yet.

        It is the process's own argument: what it read from its data when it started.
        """
        code, out, _error = run(["docker", "top", self.name, "-eo", "args"], check=False)
        match = ARGUMENT.search(out) if code == 0 else None
        return {"uuid": match.group(1), "seqno": int(match.group(2))} if match else None

    def recover(self, item):
        """Let the storage engine tell its position, in a one-shot container."""
        image = (item or {}).get("Image") or self.p["image"]
        prepare = 'sudo kolla_set_configs >/dev/null 2>&1; exec "$@"'
        argv = ["docker", "run", "--rm", "--name", ONE_SHOT, "--network", "host"]
        argv += ["--env", "KOLLA_CONFIG_STRATEGY=COPY_ALWAYS", "--env", f"KOLLA_SERVICE_NAME={self.name}"]
        argv += ["--volume", f"/etc/kolla/{self.name}/:/var/lib/kolla/config_files/:ro"]
        for volume in self.p["volumes"]:
            argv += ["--volume", volume]
        argv += [image, "bash", "-c", prepare, "position", *self.p["position_command"]]
        error = ""
        for attempt in range(4):
            with node_lock(STATE):
                # left behind by a call that was killed
                run(["docker", "rm", "--force", ONE_SHOT], check=False)
                code, out, err = run(argv, timeout=1800, check=False)
            match = POSITION.search(err + out)
            if match:
                return {"recovered": {"uuid": match.group(1), "seqno": int(match.group(2))}}
            error = f"exit code {code}: {(err + out).strip()[-1500:]}"
            # A container that the engine starts again and again may have had the data just then.
            if self.container_state() != "restarting" and attempt:
                break
            time.sleep(2)
        return {"recovered": None, "recover_error": error}

    def container_state(self):
        item = self.inspect()
        return item["State"]["Status"] if item else "missing"

    # -- changing ------------------------------------------------------------------------------

    def serves(self):
        """Whether the server is a part of its cluster that takes queries."""
        if self.container_state() != "running":
            return False
        status = self.status()
        return status.get("cluster_status") == "Primary" and status.get("ready") == "ON"

    def stop(self):
        """Stop the container; one that the engine starts again and again, too."""
        if self.container_state() in ("missing", "exited", "created"):
            # an exited one may be about to be started again: after this it is not
            run(["docker", "stop", self.name], check=False)
            return False
        run(["docker", "stop", "--time", str(self.p["timeout"]), self.name], timeout=self.p["timeout"] + 120)
        return True

    def require_stopped(self):
        if self.container_state() in ("running", "restarting", "paused"):
            raise MemberError(f"{self.name} runs: its data is left alone")

    def copy(self):
        """Copy the data directory; a copy of the same name that is whole is kept."""
        self.require_stopped()
        directory = self.directory()
        if not directory:
            raise MemberError("there is no data directory to copy")
        target = os.path.join(COPIES, self.p["label"])
        if os.path.isdir(target):
            return {"path": target, "bytes": size_of(target), "made": False}
        needed, free = size_of(directory), free_bytes(COPIES)
        os.makedirs(COPIES, mode=0o700, exist_ok=True)
        partial = f"{target}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if free < needed + RESERVE:
            return {"refused": True, "path": COPIES, "needed": needed + RESERVE, "free": free}
        os.mkdir(partial, 0o700)
        names = [
            os.path.join(directory, name)
            for name in sorted(os.listdir(directory))
            if not NOT_COPIED.fullmatch(name)
        ]
        try:
            run(["cp", "--archive", "--reflink=auto", "--sparse=auto", *names, partial], timeout=6 * 3600)
            run(["sync", "-f", partial], timeout=3600)
        except MemberError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        os.rename(partial, target)
        return {"path": target, "bytes": size_of(target), "made": True}

    def write_grastate(self, wanted):
        """Replace grastate.dat; remove the view that the member saved: it must not form one of its own."""
        self.require_stopped()
        directory = self.directory()
        if not directory:
            raise MemberError("there is no data directory")
        owner = os.stat(directory)
        temporary = os.path.join(directory, ".grastate.cloudctl")
        text = GRASTATE.format(uuid=wanted["uuid"], seqno=wanted["seqno"], safe=int(bool(wanted["safe"])))
        with open(temporary, "w", encoding="utf-8") as stream:
            os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(stream.fileno(), 0o660)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, os.path.join(directory, "grastate.dat"))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, "gvwstate.dat"))
        handle = os.open(directory, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    def start(self):
        """Start the container as it is defined."""
        if self.p["grastate"]:
            self.write_grastate(self.p["grastate"])
        state = self.container_state()
        if state == "running":
            return False
        if state == "missing":
            run(
                ["docker", "compose", "--file", COMPOSE, "up", "--detach", "--no-deps", self.name],
                timeout=900,
            )
        else:
            run(["docker", "start", self.name], timeout=120)
        return True

    def wait(self):
        """Wait for a synced server; return early where the container has begun to fail."""
        end = time.monotonic() + self.p["timeout"]
        before = int((self.inspect() or {}).get("RestartCount") or 0)
        while True:
            found = self.read(False)
            status = found["status"]
            if status.get("cluster_status") == "Primary" and status.get("local_state_comment") == "Synced":
                break
            if found["restarts"] - before >= 3 or found["container"] in ("exited", "missing", "dead"):
                break
            if time.monotonic() > end:
                break
            time.sleep(0.5)
        return found

    def tail(self):
        """Return the errors of the server's log, and the end of the container's output, for people."""
        _code, out, error = run(["docker", "logs", "--tail", "15", self.name], check=False)
        return "\n".join([*self.log_errors(), (out + error).strip()[-1500:]])

    def log_errors(self):
        """Return the last errors of the log that the server writes itself."""
        name = next((v.partition(":")[0] for v in self.p["volumes"] if v.split(":")[1] == LOGS), "")
        inspect = ["docker", "volume", "inspect", "--format", "{{.Mountpoint}}", name]
        _code, out, _error = run(inspect, check=False) if name else (1, "", "")
        if not out.strip():
            return []
        path = os.path.join(out.strip(), self.name, f"{self.name}.log")
        _code, out, _error = run(["tail", "--lines", "300", path], check=False)
        return [line[:300] for line in out.splitlines() if ERROR.search(line)][-6:]


def size_of(directory):
    """Return the bytes that the files of a data directory take on disk, without what is not copied."""
    total = 0
    for root, _directories, names in os.walk(directory):
        for name in names:
            if root == directory and NOT_COPIED.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def free_bytes(path):
    """Return the bytes free on the file system that a path is, or would be, on."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return shutil.disk_usage(path).free


def read_copies():
    """Return the copies of earlier recoveries, the oldest first; those that were cut short as well."""
    copies = []
    with contextlib.suppress(OSError):
        for name in os.listdir(COPIES):
            path = os.path.join(COPIES, name)
            if os.path.isdir(path):
                copies.append(
                    {
                        "name": name,
                        "path": path,
                        "bytes": size_of(path),
                        "whole": not name.endswith(".partial"),
                        "made": int(os.stat(path).st_ctime),
                    }
                )
    return sorted(copies, key=lambda copy: copy["made"])


def forget(names):
    """Remove copies by name."""
    done = []
    for name in names:
        path = os.path.join(COPIES, os.path.basename(name))
        if os.path.basename(name) == name and os.path.isdir(path):
            shutil.rmtree(path)
            done.append(name)
    return done


def act(params):
    """Do what is asked for; return the answer."""
    member = Member(params)
    action = params["action"]
    if action == "read":
        return {"changed": False, "member": member.read(params["probe"])}
    if action == "wait":
        found = member.wait()
        return {"changed": False, "member": found, "tail": member.tail() if not found["status"] else ""}
    if action == "start":
        with node_lock(STATE):
            started = member.start()
        found = member.wait()
        return {"changed": started, "member": found}
    with node_lock(STATE):
        if action == "stop":
            if member.serves():
                return {"changed": False, "serves": True}
            return {"changed": member.stop(), "serves": False}
        if action == "copy":
            copy = member.copy()
            return {"changed": bool(copy.get("made")), "copy": copy}
        if action == "forget":
            done = forget(params["names"])
            return {"changed": bool(done), "removed": done}
    raise MemberError(f"no action {action!r}")


def main():
    """Run the module."""
    text, strings = {"type": "str", "required": True}, {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "action": {**text, "choices": ["read", "stop", "copy", "forget", "start", "wait"]},
            "container": text,
            "image": text,
            "volumes": strings,
            "data": text,
            "status_command": strings,
            "position_command": strings,
            "probe": {"type": "bool", "default": True},
            "grastate": {"type": "dict"},
            "label": {"type": "str", "default": ""},
            "names": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=False,
    )
    try:
        module.exit_json(**act(module.params))
    except MemberError as error:
        module.fail_json(msg=str(error), details=error.details)
    except LockHeld as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
