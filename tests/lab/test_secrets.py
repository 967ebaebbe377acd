"""No secret of the site is where somebody could read it who may not.

Every secret is random and unique, and so its own canary: each is looked for in run records, logs, temporary
files, process lists, what the container engine shows, and files that anybody may read. Secrets are never put
on a command line here either; the programs that search get them on their standard input.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Result, SiteCopy, lab_nodes

from cloudctl.lab.podman import podman
from cloudctl.lab.topology import PREFIX
from cloudctl.site import vault
from cloudctl.site.load import SECRETS
from cloudctl.site.names import secret_names
from cloudctl.site.schema import site_definitions
from cloudctl.site.secrets import make, make_ssh_key

Canaries = dict[str, list[str]]

PUBLIC = ("ca_certificate", "tls_certificate", "_public_key")


def forms(value: str, common: set[str]) -> list[str]:
    """Return the forms in which a secret may be written: as it is, line by line, in a URL, in base64."""
    lines = [
        line for line in value.strip().splitlines() if not line.startswith("-----") and line not in common
    ]
    if len(lines) > 1 or "\n" in value.strip():
        return [line for line in lines if len(line) >= 40]
    (line,) = lines
    # In the middle of other text in base64, the first and last characters depend on what is beside it.
    encoded = base64.b64encode(line.encode()).decode().rstrip("=")[:-1]
    return sorted({line, quote(line, safe=""), encoded} if len(line) > 8 else {line})


@pytest.fixture(scope="session")
def canaries(lab: Path) -> Canaries:
    """Return every secret's forms by its name."""
    kinds = {name: secret.kind for name, secret in secret_names(site_definitions(lab)).items()}
    values = {
        name: value
        for name, value in vault.open_secrets(lab / SECRETS).items()
        # An identity is no secret: containers and directories are named after the Ceph cluster's.
        if not name.endswith(PUBLIC) and kinds.get(name) != "uuid"
    }
    values["vault password"] = (lab / vault.PASSWORD_FILE).read_text()
    values["site's SSH key"] = (lab / "ssh" / "id_ed25519").read_text()
    common = set(make_ssh_key().splitlines())  # the header that all such keys have
    found = {name: forms(value, common) for name, value in values.items()}
    assert len(found) > 20 and all(found.values())
    return found


# Runs on a node. Everything is searched by grep first, which takes all secrets at once; what it finds is then
# looked at for their names. Output: [[place, [names]]].
SEARCH = r"""
import json, os, subprocess, sys
task = json.load(sys.stdin)
canaries, commands = task["canaries"], task["commands"]
patterns = "\n".join(form for known in canaries.values() for form in known) + "\n"
found = []
env = {**os.environ, "LC_ALL": "C"}
def names(text):
    return sorted(name for name, known in canaries.items() if any(form.encode() in text for form in known))
def look(path):
    try:
        with open(path, "rb") as stream:
            said = names(stream.read())
    except OSError:
        return
    if said:
        found.append([path, said])
def grep(arguments, paths=b""):
    command = ["grep", "--files-with-matches", "--null", "--text", "--fixed-strings", "--file=-", *arguments]
    done = subprocess.run(command, input=patterns.encode(), capture_output=True, env=env)
    for path in filter(None, done.stdout.decode(errors="replace").split("\0")):
        look(path)
roots = [path for path in task["all"] if os.path.exists(path)]
if roots:
    grep(["--recursive", "--devices=skip", *["--exclude-dir=" + name for name in task["but"]], "--", *roots])
readable = [path for path in task["readable"] if os.path.exists(path)]
if readable:
    command = ["find", *readable, "-xdev", "-type", "f", "-perm", "-o=r", "-size", "-4M", "-print0"]
    paths = subprocess.run(command, capture_output=True).stdout.split(b"\0")[:-1]
    for start in range(0, len(paths), 500):
        grep(["--", *paths[start : start + 500]])
for command in commands:
    said = names(subprocess.run(command, shell=True, capture_output=True).stdout)
    if said:
        found.append([command, said])
json.dump({"found": found}, sys.stdout)
"""


def search(
    node: str,
    canaries: Canaries,
    *,
    all_files: tuple[str, ...] = (),
    readable: tuple[str, ...] = (),
    commands: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
) -> list[str]:
    """Look for secrets on a node.

    Args:
        all_files: files and directories of which nobody's text may hold one.
        readable: directories of which no file that anybody may read may hold one.
        commands: shell commands whose output may not.
        but: names of directories that are left out of ``all_files``.

    Returns:
        A line for each place where one was found, with the secrets' names.
    """
    task = {
        "canaries": canaries, "all": all_files, "readable": readable, "commands": commands, "but": but
    }  # fmt: skip
    done = subprocess.run(
        [*podman(), "exec", "-i", PREFIX + node, "nice", "python3", "-I", "-c", SEARCH],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{node}: {done.stderr}"
    return [f"{node}: {place}: {', '.join(names)}" for place, names in json.loads(done.stdout)["found"]]


def search_everywhere(canaries: Canaries, **where: Any) -> list[str]:
    """Look for secrets on all nodes; see ``search``."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(lambda node: search(node, canaries, **where), lab_nodes())
    return [line for lines in found for line in lines]


def test_the_search_finds_what_is_there(canaries: Canaries) -> None:
    """Every password is in the file that is there to hold it: the search itself works."""
    found = search("ctl01", canaries, all_files=("/etc/kolla",), commands=("cat /etc/kolla/*/*.conf",))
    assert any("/etc/kolla/keystone/keystone.conf" in line for line in found)
    assert any("cat /etc/kolla" in line and "keystone_database_password" in line for line in found)
    assert search("ctl01", canaries, readable=("/etc/kolla",)) == []


def test_run_records_and_state(canaries: Canaries, lab: Path) -> None:
    copies = tuple(path.name for path in (lab / ".cloudctl").glob("test-*"))
    assert search("deploy", canaries, all_files=(f"{lab}/.cloudctl",), but=copies) == []
    assert search("deploy", canaries, readable=(str(lab),)) == []


def test_logs_and_temporary_files(canaries: Canaries) -> None:
    places = (
        *("/tmp", "/var/tmp", "/dev/shm", "/var/log", "/root/.ansible", "/root/.bash_history"),
        *("/var/lib/docker/volumes/kolla_logs", "/var/lib/docker/containers"),
    )
    found = search_everywhere(canaries, all_files=places, commands=("journalctl --no-pager --output=cat",))
    assert found == []


def test_what_the_container_engine_shows(canaries: Canaries) -> None:
    commands = (
        "docker ps --all --quiet | xargs --no-run-if-empty docker inspect",
        "docker volume ls --quiet | xargs --no-run-if-empty docker volume inspect",
        "docker ps --all --no-trunc",
        "docker image ls --quiet | sort -u | xargs --no-run-if-empty docker image inspect",
    )
    assert search_everywhere(canaries, commands=commands) == []


def test_files_that_anybody_may_read(canaries: Canaries) -> None:
    places = (
        *("/etc", "/home", "/opt", "/root", "/run", "/srv", "/usr/local", "/var/backups", "/var/cache"),
        *("/var/lib/cloudctl", "/var/lib/ceph", "/var/log", "/var/spool", "/var/tmp", "/tmp"),
    )
    assert search_everywhere(canaries, readable=places) == []


# Process lists. All nodes' processes are the host's too, so that one look sees them all.


class ProcessList:
    """Collects every command line that any process has, until it is told to stop."""

    LOOKS = 3
    """Times that a process is looked at: it may become another program soon after it began."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProcessList:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        known: dict[str, int] = {}
        while not self._stop.wait(0.03):
            present = {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}
            for pid in present:
                if known.get(pid, 0) < self.LOOKS:
                    known[pid] = known.get(pid, 0) + 1
                    try:
                        self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                    except OSError:
                        continue
            known = {pid: count for pid, count in known.items() if pid in present}
            self.looks += 1


def exposed(canaries: Canaries, lines: set[bytes]) -> list[str]:
    """Return the command lines with a secret, by the program's and the secrets' names."""
    found = []
    for line in lines:
        names = [name for name, known in canaries.items() if any(form.encode() in line for form in known)]
        if names:
            found.append(f"{line.split(bytes(1))[:2]!r}: {', '.join(names)}")
    return found


def test_process_lists(canaries: Canaries, cloudctl: Callable[..., Result]) -> None:
    with ProcessList() as processes:
        began = time.monotonic()
        for words in (("plan",), ("check",), ("status",), ("openstack", "--", "endpoint", "list")):
            result = cloudctl(*words)
            assert result.out + result.err
        # Health checks start programs too, the slowest every half a minute.
        time.sleep(max(0.0, 45 - (time.monotonic() - began)))
    assert processes.looks > 100
    assert any(b"playbooks/plan.yml" in line or b"plan.yml" in line for line in processes.seen)
    assert exposed(canaries, processes.seen) == []


# What a changed secret shows.


@pytest.fixture
def other_secrets(site_copy: SiteCopy) -> Iterator[tuple[SiteCopy, Mapping[str, str]]]:
    """Yield a site with other passwords and keys than the cloud has, and these."""
    kinds = {name: secret.kind for name, secret in secret_names(site_definitions(site_copy.path)).items()}
    file = site_copy.path / SECRETS
    password = vault.password(site_copy.path)
    values = vault.read_secrets(file, password)
    fresh = {
        name: make(kinds[name])
        for name in values
        if kinds.get(name) in ("password", "fernet", "erlang-cookie", "vrrp", "ceph-key")
    }
    file.write_text(vault.encrypt({**values, **fresh}, password))
    yield site_copy, fresh


def test_plan_of_changed_secrets_shows_neither_old_nor_new(
    canaries: Canaries, other_secrets: tuple[SiteCopy, Mapping[str, str]]
) -> None:
    site, fresh = other_secrets
    new = {f"new {name}": forms(value, set()) for name, value in fresh.items()}
    with ProcessList() as processes:
        result = site.cloudctl("plan")
    structured = site.cloudctl("plan", "--output", "json")
    assert "keystone.conf" in result.out, str(result.rc)
    both = {**canaries, **new}
    for text in (result.out, result.err, structured.out, structured.err):
        shown = [name for name, known in both.items() if any(form in text for form in known)]
        assert shown == []
    assert search("deploy", both, all_files=(f"{site.path}/.cloudctl",)) == []
    assert exposed(both, processes.seen) == []
