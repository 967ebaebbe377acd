#!/usr/bin/python
"""Compare one node with its desired state, and bring parts of it there.

Runs on the node with the standard library alone. Reading, deciding and changing are separate
functions: ``observe`` never changes anything, and every change starts from the same comparison.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import grp
import http.client
import json
import os
import pwd
import socket
import subprocess
import threading
import time
import urllib.parse
import zlib
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils import cloudctl_net as net
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudctl_lock import LockHeld, node_lock

DOCUMENTATION = r"""
---
module: cloudctl_node
short_description: Compare a node with its desired state, or apply parts of it
description:
  - Takes the whole desired state of a node in one call - packages, files, units, containers, one-shot jobs.
  - With O(action=observe) reports every difference and changes nothing.
  - The other actions change what they name and report what they changed.
options:
  spec:
    description: The node's desired state as rendered by cloudctl - JSON, compressed with zlib, in base64.
    type: str
    required: true
  action:
    description:
      - V(observe) compares. V(files) installs packages and writes files.
      - V(containers) reconciles the containers in O(names). V(jobs) runs the one-shot containers in O(names).
      - V(section) reconciles the parts of cluster-wide state in O(names).
      - V(adapt) writes the files, lets the containers read them again, and runs the jobs that O(spec) holds;
        no container is stopped, started or made anew.
    type: str
    choices: [observe, files, containers, jobs, section, adapt]
    required: true
  names:
    description: The containers, jobs or sections to work on.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for containers to become healthy.
    type: int
    default: 300
author: cloudctl
"""

EXAMPLES = r"""
- name: Compare a node with its desired state
  cloudctl_node:
    spec: "{{ rendered }}"
    action: observe
"""

RETURN = r"""
observed:
  description: The differences, by kind.
  returned: with action observe
  type: dict
done:
  description: What was changed, one entry each.
  returned: with the other actions
  type: list
  elements: dict
"""

STATE = "/var/lib/cloudctl"
COMPOSE = "/etc/cloudctl/compose.yml"
PROJECT = "cloudctl"
CONFIG_ROOT = "/etc/kolla"
LABEL = "cloudctl.parts"
DOCKER_SOCKET = "/run/docker.sock"
JOB_LOGS = "/var/log/cloudctl/jobs"
MAX_DIFF_LINES = 200
MAX_RESTARTS = 8
"""With the engine's growing pauses that is about half a minute of failing at once."""


class NodeError(Exception):
    """Something on the node did not work; ``details`` helps to find out why."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


# -- small things ------------------------------------------------------------------------------


def run(argv: list[str], *, check: bool = True, timeout: int | None = None, stdin: str | None = None) -> str:
    """Run a command and return its standard output."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, input=stdin, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise NodeError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"{' '.join(argv[:4])} took longer than {timeout} s") from error
    if check and done.returncode != 0:
        raise NodeError(
            f"{' '.join(argv[:6])} failed ({done.returncode})", (done.stderr or done.stdout)[-4000:]
        )
    return done.stdout


def read_json(path: str) -> dict:
    """Read a state file; an absent or damaged one is empty (what it recorded is then done again)."""
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: dict) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n", 0o600, 0, 0)


def write_file(path: str, content: str, mode: int, uid: int, gid: int) -> None:
    """Write a file atomically, with its permissions from the start."""
    temporary = f"{path}.cloudctl-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(content)
        os.fchown(stream.fileno(), uid, gid)
        os.fchmod(stream.fileno(), mode)
    try:
        os.rename(temporary, path)
    except OSError:
        # A file that is a mount point (a container engine's /etc/hosts) can't be replaced, only rewritten.
        os.unlink(temporary)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.chmod(path, mode)


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(DOCKER_SOCKET)


def docker_api(path: str) -> object:
    """GET from the engine's API: one request where the command line would cost a process each."""
    connection = _UnixConnection("docker")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status == 404:
        return None
    if response.status >= 400:
        raise NodeError(
            f"container engine: {response.status} for {path}", body.decode(errors="replace")[:500]
        )
    return json.loads(body)


def engine_running() -> bool:
    """Whether the container engine answers (it may be installed, but stopped)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        probe.connect(DOCKER_SOCKET)
        return True
    return False


# -- reading -----------------------------------------------------------------------------------


def read_containers() -> dict[str, dict]:
    """Return our containers by name: state, status text, parts of their definition."""
    filters = urllib.parse.quote(json.dumps({"label": [f"com.docker.compose.project={PROJECT}"]}))
    found = {}
    for item in docker_api(f"/containers/json?all=1&filters={filters}") or []:
        labels = item.get("Labels") or {}
        try:
            parts = json.loads(labels.get(LABEL, "{}"))
        except ValueError:
            parts = {}
        found[item["Names"][0].lstrip("/")] = {
            "id": item["Id"],
            "state": item["State"],
            "status": item["Status"],
            "parts": parts,
        }
    return found


def compare_files(wanted: list[dict], managed: list[str]) -> list[dict]:
    """Return the files that differ: create, change (with a diff) or remove."""
    changes = []
    for entry in wanted:
        path = entry["path"]
        try:
            status = os.stat(path)
            with open(path, encoding="utf-8", errors="replace") as handle:
                current = handle.read()
        except OSError:
            changes.append(
                {"path": path, "action": "create", "area": entry["area"], "container": entry["container"]}
            )
            continue
        mode = int(entry["mode"], 8)
        if current != entry["content"]:
            lines = list(
                difflib.unified_diff(
                    current.splitlines(), entry["content"].splitlines(), "current", "wanted", n=1, lineterm=""
                )
            )
            changes.append(
                {
                    "path": path,
                    "action": "change",
                    "area": entry["area"],
                    "container": entry["container"],
                    "diff": lines[2 : 2 + MAX_DIFF_LINES],
                }
            )
        elif status.st_mode & 0o7777 != mode or status.st_uid != 0:
            changes.append(
                {
                    "path": path,
                    "action": "change",
                    "area": entry["area"],
                    "container": entry["container"],
                    "diff": [
                        f"-mode {status.st_mode & 0o7777:04o} uid {status.st_uid}",
                        f"+mode {mode:04o} uid 0",
                    ],
                }
            )
    known = {entry["path"] for entry in wanted}
    for root in managed:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                if path not in known:
                    changes.append({"path": path, "action": "remove", "area": "config", "container": ""})
    return changes


def compare_packages(wanted: list[str]) -> list[str]:
    """Return the packages that are not installed."""
    if not wanted:
        return []
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.split()[1:2] == ["ii"]}
    return [name for name in wanted if name not in installed]


def compare_units(wanted: list[dict]) -> list[dict]:
    """Return the units that are not in the wanted state."""
    if not wanted:
        return []
    names = [entry["name"] for entry in wanted]
    text = run(["systemctl", "show", "-p", "Id,ActiveState,UnitFileState", *names], check=False)
    states = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")
    ]
    changes = []
    for entry, state in zip(wanted, states, strict=False):
        active, enabled = state.get("ActiveState"), state.get("UnitFileState")
        if entry.get("state") == "started" and active != "active":
            changes.append({"name": entry["name"], "action": "start", "from": active or "unknown"})
        if entry.get("enabled") and enabled not in ("enabled", "static", "generated", "indirect"):
            changes.append({"name": entry["name"], "action": "enable", "from": enabled or "absent"})
    return changes


def compare_containers(wanted: dict[str, dict], found: dict[str, dict], reloaded: dict) -> list[dict]:
    """Return what has to happen to each container, and why: attribute, from, to."""
    changes = []
    for name, state in wanted.items():
        base = {"name": name, "service": state["service"], "phase": state["phase"]}
        current = found.get(name)
        if current is None:
            changes.append(
                {
                    **base,
                    "action": "create",
                    "reasons": [{"attribute": "container", "from": None, "to": "running"}],
                }
            )
            continue
        reasons = [
            {"attribute": key, "from": current["parts"].get(key), "to": state["parts"].get(key)}
            for key in sorted({*current["parts"], *state["parts"]})
            if current["parts"].get(key) != state["parts"].get(key)
        ]
        if reasons:
            changes.append({**base, "action": "recreate", "reasons": reasons})
        elif current["state"] not in ("running", "restarting"):
            reason = {"attribute": "state", "from": current["state"], "to": "running"}
            changes.append({**base, "action": "start", "reasons": [reason]})
        else:
            wanted_files = (state.get("reload") or {}).get("files") or {}
            done = reloaded.get(name) or {}
            stale = [
                {"attribute": f"file:{key}", "from": done.get(key), "to": value}
                for key, value in sorted(wanted_files.items())
                if done.get(key) != value
            ]
            if stale:
                changes.append({**base, "action": "reload", "reasons": stale})
    for name, current in found.items():
        if name not in wanted:
            reason = {"attribute": "container", "from": current["state"], "to": None}
            changes.append(
                {"name": name, "service": "", "phase": "", "action": "remove", "reasons": [reason]}
            )
    return changes


def compare_jobs(wanted: list[dict], markers: dict) -> list[dict]:
    """Return the one-shot jobs whose inputs are not those of their last success here."""
    changes = []
    for job in wanted:
        done = (markers.get(job["id"]) or {}).get("inputs")
        if done == job["inputs"]:
            continue
        reasons = [
            {"attribute": key, "from": (done or {}).get(key), "to": value}
            for key, value in job["inputs"].items()
            if (done or {}).get(key) != value
        ]
        keys = ("id", "name", "service", "phase", "at", "first", "once", "everywhere")
        changes.append({**{key: job[key] for key in keys}, "ran": done is not None, "reasons": reasons})
    return changes


def check_sections(spec: dict, found: dict[str, dict]) -> list[dict]:
    """Return what cluster-wide state lacks, or that it can't be read yet.

    The desired state goes in by standard input: the copy in the container is that of the last deploy.
    """
    sections = spec["sections"]
    contents = {entry["path"]: entry["content"] for entry in spec["files"]}

    def check(section: dict) -> list[dict]:
        base = {"section": section["name"], "service": section["service"], "after": section["after"]}
        if found.get(section["container"], {}).get("state") != "running":
            return [
                {
                    **base,
                    "kind": section["name"],
                    "name": "all",
                    "action": "create",
                    "reason": "not running yet",
                }
            ]
        try:
            wanted = contents[f"{CONFIG_ROOT}/{section['container']}/{section['input']}"]
            argv = ["docker", "exec", "--interactive", section["container"], *section["check"].split()]
            text = run(argv, timeout=60, stdin=wanted)
            return [{**base, **change} for change in json.loads(text.strip().splitlines()[-1])["changes"]]
        except (NodeError, ValueError, KeyError, IndexError) as error:
            reason = f"could not be read: {error} {getattr(error, 'details', '')[-300:]}"
            return [{**base, "kind": section["name"], "name": "all", "action": "check", "reason": reason}]

    if not sections:
        return []
    with ThreadPoolExecutor(len(sections)) as pool:
        return [change for changes in pool.map(check, sections) for change in changes]


def observe(spec: dict) -> dict:
    """Compare everything; change nothing."""
    found = read_containers() if engine_running() else {}
    network = net.public(net.compare(spec["network"])) if "network" in spec else {}
    markers = read_json(f"{STATE}/jobs.json")
    return {
        "packages": compare_packages(spec["packages"]),
        "files": compare_files(spec["files"], spec["managed"]),
        "units": compare_units(spec["units"]),
        "network": network,
        "containers": compare_containers(spec["containers"], found, read_json(f"{STATE}/reload.json")),
        "jobs": compare_jobs(spec["jobs"], markers),
        "markers": sorted(markers),
        "sections": check_sections(spec, found),
        "unhealthy": sorted(name for name, item in found.items() if "unhealthy" in item["status"]),
    }


# -- changing ----------------------------------------------------------------------------------


def apply_files(spec: dict, names: list[str]) -> list[dict]:
    """Install packages, write files, run what the changed files ask for, start units.

    With other names than ``all`` only these files are written.
    """
    done: list[dict] = []
    everything = names == ["all"]
    changes = {
        change["path"]: change
        for change in compare_files(spec["files"], spec["managed"])
        if everything or change["path"] in names
    }
    missing = compare_packages(spec["packages"]) if everything else []
    owner = pwd.getpwnam("root").pw_uid, grp.getgrnam("root").gr_gid

    def write(entry: dict) -> None:
        os.makedirs(os.path.dirname(entry["path"]), mode=0o755, exist_ok=True)
        write_file(entry["path"], entry["content"], int(entry["mode"], 8), *owner)
        change = changes[entry["path"]]
        done.append(
            {
                "kind": "file",
                "name": entry["path"],
                "action": change["action"],
                "diff": change.get("diff", []),
            }
        )

    pending = [entry for entry in spec["files"] if entry["path"] in changes]
    for directory in ("/etc/cloudctl", *spec["managed"]):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    for entry in pending:
        write(entry)
    for change in changes.values():
        if change["action"] == "remove":
            os.unlink(change["path"])
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(change["path"]))
            done.append({"kind": "file", "name": change["path"], "action": "remove", "diff": []})
    os.sync()
    if missing:
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"]
        run(["dpkg", "--configure", "-a", "--force-confold"], check=False, timeout=600)
        run([*apt, "update"], timeout=300)
        run([*apt, "install", "--yes", "--no-install-recommends", *missing], timeout=1200)
        done += [{"kind": "package", "name": name, "action": "install"} for name in missing]
    actions = dict.fromkeys(name for entry in pending for name in entry["apply"])
    for name in actions:
        run(spec["apply"][name]["argv"], timeout=120)
        done.append({"kind": "apply", "name": name, "action": "run"})
    for change in compare_units(spec["units"]) if everything else []:
        run(["systemctl", change["action"], change["name"]], timeout=120)
        done.append({"kind": "unit", "name": change["name"], "action": change["action"]})
    if spec["images"] and engine_running():
        start_pull(spec["images"])
    return done


def start_pull(images: list[str]) -> None:
    """Fetch the images in the background, so that they are there when their phase comes."""
    present = {name for item in docker_api("/images/json") or [] for name in item.get("RepoDigests") or []}
    wanted = [image for image in images if image not in present]
    if wanted:
        script = 'for image in "$@"; do docker pull --quiet "$image" || true; done'
        subprocess.run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                "--unit",
                "cloudctl-pull",
                "sh",
                "-c",
                script,
                "pull",
                *wanted,
            ],
            check=False,
            capture_output=True,
        )


def apply_containers(spec: dict, names: list[str], timeout: int) -> list[dict]:
    """Bring the named containers to their definition and wait until they are healthy."""
    found = read_containers()
    reloaded = read_json(f"{STATE}/reload.json")
    changes = [
        change
        for change in compare_containers(spec["containers"], found, reloaded)
        if change["name"] in names
    ]
    up = [change["name"] for change in changes if change["action"] in ("create", "recreate", "start")]
    for change in changes:
        if change["action"] == "remove":
            run(["docker", "stop", change["name"]], check=False, timeout=300)
            run(["docker", "rm", "--force", change["name"]], timeout=120)
        elif change["action"] == "reload":
            reload_container(spec, change["name"])
    if up:
        run(
            ["docker", "compose", "--file", COMPOSE, "up", "--detach", "--no-deps", "--quiet-pull", *up],
            timeout=1200,
        )
    for change in changes:
        if change["action"] == "remove":
            reloaded.pop(change["name"], None)
        else:
            reloaded[change["name"]] = (spec["containers"][change["name"]].get("reload") or {}).get(
                "files"
            ) or {}
    if changes:
        write_json(f"{STATE}/reload.json", reloaded)
    wait_healthy([name for name in names if name in spec["containers"]], timeout)
    return [{"kind": "container", **change} for change in changes]


def container_health(name: str) -> str:
    """Return healthy, starting, or a word on what is wrong."""
    item = docker_api(f"/containers/{urllib.parse.quote(name)}/json")
    if item is None:
        return "missing"
    state = item["State"]
    if state.get("Restarting") or not state.get("Running"):
        return (
            f"{state.get('Status')} (exit code {state.get('ExitCode')}, restarts {item.get('RestartCount')})"
        )
    health = (state.get("Health") or {}).get("Status")
    return "healthy" if health in (None, "healthy") else health


def container_restarts(name: str) -> int:
    """Return how often the engine has started the container again."""
    return int((docker_api(f"/containers/{urllib.parse.quote(name)}/json") or {}).get("RestartCount") or 0)


def wait_healthy(names: list[str], timeout: int) -> None:
    """Wait until every container is healthy twice in a row.

    A container may restart a few times meanwhile (a Galera member waits for its first one); one that
    keeps on doing so is given up before the time is over.
    """
    end = time.monotonic() + timeout
    restarts = {name: container_restarts(name) for name in names}
    pending = dict.fromkeys(names, "unknown")
    calm = 0
    while True:
        pending = {name: state for name in names if (state := container_health(name)) != "healthy"}
        calm = 0 if pending else calm + 1
        if calm >= 2:
            return
        looping = [name for name in pending if container_restarts(name) - restarts[name] >= MAX_RESTARTS]
        if looping or time.monotonic() > end:
            break
        time.sleep(0.5)
    waited = round(time.monotonic() - end + timeout)
    details = []
    for name, state in pending.items():
        logs = subprocess.run(
            ["docker", "logs", "--tail", "15", name], capture_output=True, text=True, check=False
        )
        item = docker_api(f"/containers/{name}/json") or {}
        probes = ((item.get("State") or {}).get("Health") or {}).get("Log") or []
        probe = probes[-1]["Output"][-300:] if probes else ""
        details.append(f"--- {name}: {state}\n{probe}\n{(logs.stdout + logs.stderr)[-1500:]}")
    listed = ", ".join(f"{name} ({state})" for name, state in pending.items())
    raise NodeError(f"not healthy after {waited} s: {listed}", "\n".join(details))


def job_argv(job: dict, service: dict) -> list[str]:
    """Return the command line of a one-shot container, like the container it borrows from."""
    argv = ["docker", "run", "--rm", "--name", job["id"], "--network", "host", "--label", "cloudctl.job"]
    argv += (
        ["--user", job["user"]]
        if job["user"]
        else (["--user", service["user"]] if service.get("user") else [])
    )
    for volume in service.get("volumes") or []:
        argv += ["--volume", volume]
    for key, value in {**service.get("environment", {}), **job["environment"]}.items():
        argv += ["--env", f"{key}={value}"]
    if service.get("privileged"):
        argv.append("--privileged")
    for key, option in (("pid", "--pid"), ("ipc", "--ipc"), ("cgroup", "--cgroupns")):
        if service.get(key):
            argv += [option, service[key]]
    argv.append(service["image"])
    if job["command"]:
        # As at every start of such a container: configuration first, then the command as the image's user.
        prepare = 'sudo kolla_set_configs >/dev/null && exec "$@"'
        argv += ["bash", "-c", prepare, "job", *job["command"].split()]
    return argv


def run_job(job: dict, service: dict) -> None:
    """Run one job; one that an interrupted deploy left running is waited for first."""
    left = docker_api(f"/containers/{job['id']}/json")
    if left is not None:
        if left["State"].get("Running"):
            run(["docker", "wait", job["id"]], check=False, timeout=job["timeout"])
        run(["docker", "rm", "--force", job["id"]], check=False)
    os.makedirs(JOB_LOGS, mode=0o700, exist_ok=True)
    log = f"{JOB_LOGS}/{job['id'].removeprefix('cloudctl-job-')}.log"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        try:
            done = subprocess.run(
                job_argv(job, service), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                timeout=job["timeout"], check=False,
            )  # fmt: skip
            code = done.returncode
        except subprocess.TimeoutExpired:
            run(["docker", "rm", "--force", job["id"]], check=False)
            code = -1
    if code != 0:
        with open(log, encoding="utf-8", errors="replace") as handle_in:
            tail = handle_in.read()[-2500:]
        what = f"took longer than {job['timeout']} s" if code == -1 else f"exit code {code}"
        raise NodeError(f"job {job['service']}/{job['name']} failed: {what}; log: {log}", tail)


def apply_jobs(spec: dict, names: list[str]) -> list[dict]:
    """Run the named jobs, those that don't need each other at the same time."""
    with open(COMPOSE, encoding="utf-8") as handle:
        services = json.loads(handle.read().replace("$$", "$"))["services"]
    jobs = {job["id"]: job for job in spec["jobs"] if job["id"] in names}
    ended: dict[str, threading.Event] = {key: threading.Event() for key in jobs}
    failed: list[NodeError] = []
    guard = threading.Lock()

    def work(job: dict) -> dict | None:
        try:
            for need in job["needs"]:
                if need in ended:
                    ended[need].wait()
            if failed:
                return None
            started = time.monotonic()
            run_job(job, services[job["container"]])
            with guard:
                markers = read_json(f"{STATE}/jobs.json")
                markers[job["id"]] = {
                    "inputs": job["inputs"],
                    "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
                write_json(f"{STATE}/jobs.json", markers)
            seconds = round(time.monotonic() - started, 1)
            return {
                "kind": "job",
                "name": f"{job['service']}/{job['name']}",
                "action": "run",
                "seconds": seconds,
            }
        except NodeError as error:
            failed.append(error)
            return None
        finally:
            ended[job["id"]].set()

    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        done = [item for item in pool.map(work, jobs.values()) if item is not None]
    if failed:
        raise failed[0]
    return done


def apply_sections(spec: dict, names: list[str]) -> list[dict]:
    """Reconcile the named parts of cluster-wide state, one process each.

    A name may end with ``:`` and the services, separated by commas, that it is limited to.
    """
    done = []
    wanted = dict(name.partition(":")[::2] for name in names)
    for section in spec["sections"]:
        if section["name"] in wanted:
            argv = ["docker", "exec", section["container"], *section["apply"].split()]
            if wanted[section["name"]]:
                argv += ["--services", wanted[section["name"]]]
            text = run(argv, timeout=300)
            try:
                changes = json.loads(text.strip().splitlines()[-1])["changes"]
            except (ValueError, KeyError, IndexError) as error:
                raise NodeError(f"section {section['name']}: unreadable answer", text[-500:]) from error
            done += [{"section": section["name"], **change} for change in changes]
    return done


def adapt(spec: dict) -> list[dict]:
    """Make known here what changed elsewhere: files, what reads them again, jobs. Nothing is restarted.

    A container that is not as it should be for other reasons is left to a deploy.
    """
    done = apply_files(spec, [entry["path"] for entry in spec["files"]])
    # Not every node has a container engine, or ever had a job.
    present = read_containers() if spec["containers"] else {}
    found = {name: item for name, item in present.items() if name in spec["containers"]}
    reloaded = read_json(f"{STATE}/reload.json")
    for change in compare_containers(spec["containers"], found, reloaded):
        name = change["name"]
        if change["action"] != "reload":
            done.append({"kind": "container", "name": name, "action": "left to a deploy"})
            continue
        reload_container(spec, name)
        reloaded[name] = spec["containers"][name]["reload"]["files"]
        write_json(f"{STATE}/reload.json", reloaded)
        done.append({"kind": "container", **change})
    due = compare_jobs(spec["jobs"], read_json(f"{STATE}/jobs.json"))
    return done + (apply_jobs(spec, [job["id"] for job in due]) if due else [])


def reload_container(spec: dict, name: str) -> None:
    """Let a running container read its files again."""
    run(["docker", "exec", "--user", "0", name, "kolla_set_configs"], timeout=60)
    command = spec["containers"][name]["reload"]["command"]
    run(["docker", "exec", "--user", "0", name, "sh", "-c", command], timeout=60)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "spec": {"type": "str", "required": True, "no_log": True},
            "action": {
                "type": "str",
                "required": True,
                "choices": ["observe", "files", "containers", "jobs", "section", "adapt"],
            },
            "names": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    spec = json.loads(zlib.decompress(base64.b64decode(module.params["spec"])))
    action, names, timeout = (module.params[key] for key in ("action", "names", "timeout"))
    try:
        if action == "observe" or module.check_mode:
            module.exit_json(changed=False, observed=observe(spec))
        with node_lock(STATE):
            done = {
                "files": lambda: apply_files(spec, names),
                "containers": lambda: apply_containers(spec, names, timeout),
                "jobs": lambda: apply_jobs(spec, names),
                "section": lambda: apply_sections(spec, names),
                "adapt": lambda: adapt(spec),
            }[action]()
        module.exit_json(changed=bool(done), done=done)
    except NodeError as error:
        module.fail_json(msg=str(error), details=error.details)
    except LockHeld as error:
        module.fail_json(msg=str(error))
    except net.NetworkError as error:
        module.fail_json(msg=str(error), network_error={"ref": error.ref, "hint": error.hint})


if __name__ == "__main__":
    main()
