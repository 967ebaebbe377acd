#!/usr/bin/python
"""Change a node's network so that a change which cuts it off takes itself back.

Runs on the node with the standard library alone. C(apply) saves the old files, arms a timer that puts them
back, writes the new ones and has them taken up a moment later, so that the answer still gets out. Only
C(confirm), over a connection that was opened after the change, stops the timer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time

from ansible.module_utils import cloudctl_net as net
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_network
short_description: Change a node's network, with a timer that takes the change back
description:
  - With O(action=apply) writes the files of the node's network backend and takes them up. The node puts the
    old ones back by itself after O(seconds) unless the change is confirmed; equal files are left alone.
  - With O(action=confirm) keeps the change. It must come over another SSH connection than the change did.
  - With O(action=status) tells how the last change ended.
options:
  action:
    description: What to do.
    type: str
    choices: [apply, confirm, status]
    required: true
  network:
    description: The node's network as rendered by cloudctl (O(action=apply)).
    type: dict
    default: {}
  seconds:
    description: Time until the change takes itself back.
    type: int
    default: 35
  token:
    description: The change that is confirmed or asked about, as O(action=apply) named it.
    type: str
    default: ""
  peers:
    description:
      - Addresses of which at least one must accept an SSH connection from this node (O(action=confirm)). Says
        for the node where cloudctl runs what a connection from there to itself can't say.
    type: list
    elements: str
    default: []
author: cloudctl
"""

EXAMPLES = r"""
- name: Change the network
  cloudctl_network:
    action: apply
    network: "{{ rendered }}"
"""

RETURN = r"""
token:
  description: Names the change that waits for its confirmation.
  returned: with action apply, when something was changed
  type: str
taken_over:
  description: Whether it is the change of an earlier run, made and not confirmed; its timer runs already.
  returned: with action apply, then
  type: bool
state:
  description: confirmed, undone (with reason and log), or pending.
  returned: with the actions confirm and status
  type: str
done:
  description: What was changed, one entry each.
  returned: with action apply
  type: list
  elements: dict
"""

PENDING = f"{net.STATE}/{net.PENDING}"
UNDONE = f"{net.STATE}/undone"
KEPT = f"{net.STATE}/replaced"
"""Others' configuration that was taken away, for the operator to look at."""

UNDO = "cloudctl-network-undo"
APPLY = "cloudctl-network-apply"
BOOT = "/etc/systemd/system/cloudctl-network-boot.service"
APPLY_AFTER = 1
"""Seconds between the module's answer and the change."""


class Failed(Exception):
    """What went wrong, with the error's reference and details."""

    def __init__(self, ref: str, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.ref = ref
        self.hint = hint
        self.details = details


def run(argv: list[str], *, check: bool = True, timeout: int = 60) -> str:
    """Run a command and return its standard output."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed("network-apply-failed", f"{argv[0]}: {error}") from error
    if check and done.returncode != 0:
        shown = (done.stderr or done.stdout)[-2000:]
        raise Failed(
            "network-apply-failed", f"{' '.join(argv[:5])} failed ({done.returncode})", details=shown
        )
    return done.stdout


def connection() -> str:
    """Return what tells this SSH connection from any other: its server process; empty where there is none."""
    chain = []
    pid = os.getppid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
                text = handle.read()
        except OSError:
            break
        fields = text[text.rindex(")") + 2 :].split()
        if text[text.index("(") + 1 :].startswith("sshd"):
            chain.append(f"{pid}/{fields[19]}")  # with its start: process ids come again
        pid = int(fields[1])
    # The topmost is the listener, unless systemd listens and starts one server for each connection.
    return chain[-2] if len(chain) > 1 else "".join(chain)


# -- apply -------------------------------------------------------------------------------------


def wait_for_earlier(seconds: int) -> None:
    """Wait until a change whose deploy was killed is taken back or kept."""
    end = time.monotonic() + seconds + 30
    while os.path.isdir(PENDING) or run(
        ["systemctl", "is-active", f"{UNDO}.service"], check=False
    ).strip() in (
        "active",
        "activating",
        "deactivating",
    ):
        if time.monotonic() > end:
            raise Failed(
                "network-change-pending",
                "an earlier change of this node's network neither was confirmed nor took itself back",
                f"look at {PENDING} on the node; `sh {PENDING}/undo hand` there takes it back",
            )
        time.sleep(1)


def pending_token() -> str:
    """Return what names the change that waits for its confirmation, empty where there is none."""
    try:
        info = json.loads(net.read_text(f"{PENDING}/info.json") or "{}")
    except ValueError:
        return ""
    return str(info.get("token") or "")


def install(packages: list[str]) -> None:
    """Install a backend without its daemon starting: it would look for networks of its own."""
    hold = "NetworkManager.service" if "network-manager" in packages else ""
    if hold:
        run(["systemctl", "mask", "--quiet", hold])
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"]
    try:
        run(["dpkg", "--configure", "-a", "--force-confold"], check=False, timeout=600)
        run([*apt, "update"], timeout=300)
        run([*apt, "install", "--yes", "--no-install-recommends", *packages], timeout=1200)
    except Failed as error:
        raise Failed(
            "network-backend-missing",
            f"{', '.join(packages)} could not be installed: {error}",
            "the package must be in the deploy node's repository",
            error.details,
        ) from error
    finally:
        if hold:
            run(["systemctl", "unmask", "--quiet", hold], check=False)


def write(path: str, content: str, mode: int) -> None:
    """Write a file atomically, with its permissions from the start."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.cloudctl-new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
    os.rename(temporary, path)


def apply(network: dict, seconds: int) -> dict:
    """Change the network; return what was changed and the token to confirm it."""
    found = net.compare(network)
    token = pending_token() if found["pending"] else ""
    if token and not net.is_change({**found, "pending": False}):
        # A deploy was killed before it could confirm exactly this.
        backend = {"kind": "network", "name": found["backend"], "action": "confirm", "from": found["from"]}
        return {"changed": True, "token": token, "taken_over": True, "saved": 0, "done": [backend]}
    wait_for_earlier(seconds)
    found = net.compare(network)
    if not net.is_change(found):
        return {"changed": False, "done": []}
    if found["packages"]:
        install(found["packages"])
        # What came with the package may be in the way, and its daemon is there now.
        packages, found = found["packages"], net.compare(network)
    else:
        packages = []
    token = f"{int(time.time())}-{os.getpid()}"
    saved = arm(network, found, token, seconds)
    for path, text in found["texts"].items():
        if path not in found["ours"]:
            keep_foreign(path)
        if text is None:
            os.unlink(path)
        else:
            mode = found["modes"].get(path)
            write(path, text, mode if mode is not None else os.stat(path).st_mode & 0o7777)
    os.sync()
    transient(APPLY, APPLY_AFTER, "0.1s", ["/bin/sh", f"{PENDING}/apply"])
    backend = {"kind": "network", "name": found["backend"], "action": "apply", "from": found["from"]}
    done = [{"kind": "package", "name": name, "action": "install"} for name in packages]
    done += [
        {"kind": "file", "name": change["path"], "action": change["action"], "diff": change["diff"]}
        for change in found["files"]
    ]
    done += [{"kind": "port", "name": new, "action": "rename", "from": old} for old, new in found["renames"]]
    return {"changed": True, "token": token, "saved": len(saved), "done": [*done, backend]}


def arm(network: dict, found: dict, token: str, seconds: int) -> list[dict]:
    """Save the old files, and have them put back by a timer, or by the next boot."""
    shutil.rmtree(UNDONE, ignore_errors=True)
    new = f"{net.STATE}/new"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(f"{new}/files", mode=0o700)
    saved = []
    for number, path in enumerate(found["texts"]):
        copy = None
        if os.path.exists(path):
            copy = f"files/{number}"
            shutil.copy2(path, f"{new}/{copy}")
        saved.append({"path": path, "copy": copy})
    before = {path: text for path in found["texts"] if (text := net.read_text(path)) is not None}
    after = {path: text for path, text in found["texts"].items() if text is not None}
    links = found["links"]
    names = {old: name for old, name in found["renames"]}
    later = [{**link, "name": names.get(link["name"], link["name"])} for link in links]
    # What is wanted stays, also where only a file of others that says the same goes.
    kept = frozenset(
        port[key] for port in network["ports"] for key in ("address", "gateway") if port.get(key)
    )
    forward = [
        *net.rename_lines(found["renames"]),
        # What names the ports at a boot has nothing left to do when the daemon starts.
        "touch /run/cloudctl-ports-named",
        *net.daemon_lines(found["daemons"]),
        *net.moved(before, network["ports"], later),
        *net.reload_lines(found["backend"], changed_ports(network, found)),
        *net.leftovers(before, after, later, kept),
    ]
    called = {name: old for old, name in found["renames"]}
    ports = [{**port, "name": called.get(port["name"], port["name"])} for port in network["ports"]]
    reload = net.back_lines(before, [port["name"] for port in ports], found["units"], net.read_profiles())
    back = net.undo_lines(before, after, ports, links, net.read_routes(), reload)
    daemons = net.daemons_back(found["daemons"], found["units"])
    write(f"{new}/apply", net.apply_script(forward), 0o700)
    write(f"{new}/undo", net.undo_script(saved, daemons, found["renames"], back), 0o700)
    info = {
        "token": token,
        "connection": connection(),
        "backend": found["backend"],
        "files": found["wanted"],
        "ports": network["ports"],
    }
    write(f"{new}/info.json", json.dumps(info), 0o600)
    write(BOOT, net.BOOT_UNIT, 0o644)
    run(["systemctl", "enable", "--quiet", os.path.basename(BOOT)])
    os.sync()
    os.rename(new, PENDING)
    run(["systemctl", "stop", f"{UNDO}.timer", f"{APPLY}.timer"], check=False)
    try:
        transient(UNDO, seconds, "1s", ["/bin/sh", f"{PENDING}/undo", "timer"])
    except Failed:
        shutil.rmtree(PENDING, ignore_errors=True)
        raise
    return saved


def changed_ports(network: dict, found: dict) -> list[str]:
    """Return the ports whose files change: all of them where the backend does, or has one file for all."""
    names = [port["name"] for port in network["ports"]]
    whole = found["backend"] != found["from"] or found["backend"] == "netplan"
    # What others wrote may have configured any of them.
    whole = whole or not found["texts"].keys() <= {*found["ours"], *found["wanted"]}
    if whole or found["renames"] or found["daemons"]:
        return names
    return [name for name in names if any(f"-{name}" in os.path.basename(path) for path in found["texts"])]


def keep_foreign(path: str) -> None:
    """Keep a copy of what others wrote: their file goes, their work doesn't."""
    text = net.read_text(path)
    if text is not None and not text.startswith("# Written by cloudctl"):
        target = f"{KEPT}{path}"
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            shutil.copy2(path, target)


def transient(unit: str, seconds: int, accuracy: str, argv: list[str]) -> None:
    """Have systemd run a command after a time, whatever happens to this process and its connection."""
    run(["systemctl", "reset-failed", f"{unit}.service", f"{unit}.timer"], check=False)
    run(
        [
            *("systemd-run", "--quiet", "--collect", "--unit", unit, f"--on-active={seconds}"),
            *(f"--timer-property=AccuracySec={accuracy}", "--property=KillMode=process", *argv),
        ]
    )


# -- confirm -----------------------------------------------------------------------------------


def status(token: str) -> dict:
    """Return how a change ended, or that it did not yet."""
    for place, state in ((PENDING, "pending"), (UNDONE, "undone")):
        try:
            info = json.loads(net.read_text(f"{place}/info.json") or "{}")
        except ValueError:
            info = {}
        if info.get("token") == token:
            found = {"state": state}
            if state == "undone":
                found["reason"] = (net.read_text(f"{place}/reason") or "").strip()
                found["log"] = (net.read_text(f"{place}/log") or "")[-1500:]
                found["ended"] = os.path.exists(f"{place}/reason")
            return found
    return {"state": "confirmed" if net.read_record().get("token") == token else "unknown"}


def confirm(token: str, peers: list[str]) -> dict:
    """Keep the change, when this is a new connection and the network is as wanted."""
    found = status(token)
    if found["state"] != "pending":
        return found
    info = json.loads(net.read_text(f"{PENDING}/info.json") or "{}")
    ended = taken_up()
    if ended is None:
        return {"state": "pending", "why": "the change is being taken up"}
    # A connection that was opened before may be cut already, without either end knowing.
    mine = connection()
    if mine and (mine == info["connection"] or connected_at(mine) <= ended):
        return {"state": "pending", "why": "this connection is older than the change"}
    missing = missing_addresses(info["ports"], 10)
    if missing or (peers and not any(reaches(peer) for peer in peers)):
        why = (
            f"not there after the change: {', '.join(missing)}" if missing else "no other node can be reached"
        )
        run(["/bin/sh", f"{PENDING}/undo", "refused"], check=False)
        return {**status(token), "why": why}
    kept = f"{net.STATE}/kept"
    shutil.rmtree(kept, ignore_errors=True)
    try:
        os.rename(PENDING, kept)
    except FileNotFoundError:
        return status(token)
    write(
        net.RECORD,
        json.dumps({"backend": info["backend"], "files": info["files"], "token": token}) + "\n",
        0o600,
    )
    run(["systemctl", "stop", f"{UNDO}.timer"], check=False)
    run(["systemctl", "disable", "--quiet", os.path.basename(BOOT)], check=False)
    shutil.rmtree(kept, ignore_errors=True)
    return {"state": "confirmed"}


def taken_up() -> float | None:
    """Return when (in seconds since the boot) the new files were taken up, None while that is not done."""
    code, _space, when = (net.read_text(f"{PENDING}/result") or "").strip().partition(" ")
    return float(when) if code == "0" and when else None


def connected_at(name: str) -> float:
    """Return when (in seconds since the boot) the server process of a connection began."""
    return int(name.partition("/")[2]) / os.sysconf("SC_CLK_TCK")


def missing_addresses(ports: list[dict], seconds: int) -> list[str]:
    """Return the addresses that are not on their port, where the port is there and has a link."""
    end = time.monotonic() + seconds
    while True:
        present = {link["name"]: link["addresses"] for link in net.read_links()}
        missing = [
            f"{port['address']} on {port['name']}"
            for port in ports
            if port["address"]
            and not port["virtual"]
            and has_link(port["name"])
            and port["address"] not in present.get(port["name"], [])
        ]
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(0.3)


def has_link(port: str) -> bool:
    """Whether a port is there, up, and has a cable."""
    return (net.read_text(f"/sys/class/net/{port}/carrier") or "").strip() == "1"


def reaches(address: str) -> bool:
    """Whether another node's SSH server takes a connection."""
    with contextlib.suppress(OSError), socket.create_connection((address, 22), timeout=3):
        return True
    return False


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["apply", "confirm", "status"]},
            "network": {"type": "dict", "default": {}},
            "seconds": {"type": "int", "default": 35},
            "token": {"type": "str", "default": "", "no_log": False},
            "peers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=False,
    )
    given = module.params
    try:
        if given["action"] == "apply":
            os.makedirs(net.STATE, mode=0o700, exist_ok=True)
            module.exit_json(**apply(given["network"], given["seconds"]))
        elif given["action"] == "confirm":
            module.exit_json(changed=False, **confirm(given["token"], given["peers"]))
        else:
            module.exit_json(changed=False, **status(given["token"]))
    except (Failed, net.NetworkError) as error:
        details = getattr(error, "details", "")
        module.fail_json(
            msg=str(error), details=details, network_error={"ref": error.ref, "hint": error.hint}
        )


if __name__ == "__main__":
    main()
