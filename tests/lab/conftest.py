"""What the lab's tests share: the command as an operator types it, and looks at the nodes behind its back.

They need a deployed lab and leave it as they found it. CLOUDCTL_LAB names it (default: ``lab``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudctl.lab.podman import podman
from cloudctl.lab.topology import NAME, PREFIX, VARIABLE

SITE = Path(f"/var/lib/cloudctl-{NAME}/site")

# A site of another place, or a vault password of the person who runs the tests, would be used silently.
_OWN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("CLOUDCTL_SITE", "ANSIBLE_VAULT_PASSWORD_FILE")
}


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
        rc: exit code.
        out, err: what it printed.
        seconds: how long it took.
    """

    rc: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit code {self.rc} after {self.seconds:.1f} s\n{self.out}\n{self.err}"

    @property
    def refs(self) -> list[str]:
        """The references of the errors that were printed."""
        return re.findall(r"^error\[([a-z0-9-]+)\]", self.err, re.MULTILINE)

    @property
    def json(self) -> Any:
        """The document that ``--output json`` printed."""
        return json.loads(self.out)


def run_cloudctl(
    *args: str, site: Path = SITE, timeout: float = 600, env: Mapping[str, str] | None = None
) -> Result:
    """Run ``cloudctl`` against a site and wait for its end."""
    began = time.monotonic()
    done = subprocess.run(
        ["cloudctl", *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        env={**_OWN, "CLOUDCTL_SITE": str(site), **(env or {})},
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def start_cloudctl(*args: str, site: Path = SITE) -> subprocess.Popen[str]:
    """Start ``cloudctl`` and return at once."""
    return subprocess.Popen(
        ["cloudctl", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**_OWN, "CLOUDCTL_SITE": str(site)},
    )


def lock_is_free() -> bool:
    with (SITE / ".cloudctl" / "lock").open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def kill_cloudctl(process: subprocess.Popen[str]) -> None:
    """kill -9 the command, both where it was typed and where it works."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        holder = json.loads((SITE / ".cloudctl" / "lock").read_text())
        run_on("deploy", f"kill -9 {holder['pid']}", check=False)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while not lock_is_free():
        assert time.monotonic() < deadline, "the killed run still holds the lock"
        time.sleep(0.2)


def run_on(node: str, command: str, *, check: bool = True, timeout: float = 120) -> str:
    """Run a shell command on a node, not by SSH; return what it printed."""
    done = subprocess.run(
        [*podman(), "exec", PREFIX + node, "sh", "-c", command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    if check and done.returncode:
        raise AssertionError(f"{node}: {command!r} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def lab_nodes() -> dict[str, str]:
    """Return the lab's nodes with their roles."""
    nodes: dict[str, str] = json.loads((SITE / "lab.json").read_text())["nodes"]
    return nodes


def read_containers() -> dict[str, dict[str, tuple[str, str]]]:
    """Return by node and container its id and when it was started; the lasting ones only.

    A node that is off has none.
    """
    command = (
        "command -v docker >/dev/null || exit 0; docker ps --quiet --no-trunc | xargs --no-run-if-empty "
        "docker inspect --format '{{.Name}} {{.Id}} {{.State.StartedAt}} "
        '{{index .Config.Labels "com.docker.compose.project"}}\''
    )

    def read(node: str) -> dict[str, tuple[str, str]]:
        rows = (
            (line.split() for line in run_on(node, command).splitlines()) if PREFIX + node in running else ()
        )
        return {
            row[0].lstrip("/"): (row[1], row[2])
            for row in rows
            # cephadm starts containers of its own for a moment, to look at disks.
            if row[3:] == ["cloudctl"] or row[0].startswith("/ceph-")
        }

    names = [name for name, role in lab_nodes().items() if role != "deploy"]
    on = subprocess.run(
        [*podman(), "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    running = set(on.stdout.split())
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


@pytest.fixture(scope="session", autouse=True)
def lab() -> Path:
    """Return the lab's site; fail where no deployed lab is."""
    hint = f"make one first: {VARIABLE}={NAME} scripts/quickstart"
    if shutil.which("cloudctl") is None:
        pytest.fail("there is no cloudctl on PATH: scripts/bootstrap makes .venv/bin/cloudctl", pytrace=False)
    if not (SITE / "lab.json").exists():
        pytest.fail(f"there is no lab {NAME!r} ({SITE}); {hint}", pytrace=False)
    if not (SITE / "admin-openrc.sh").exists():
        pytest.fail(f"the lab {NAME!r} has no deployed cloud; {hint}", pytrace=False)
    listed = subprocess.run(
        [*podman(), "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=False
    ).stdout.split()
    if off := [name for name in lab_nodes() if PREFIX + name not in listed]:
        pytest.fail(
            f"nodes of the lab {NAME!r} are off: {', '.join(off)}; cloudctl lab power on", pytrace=False
        )
    return SITE


@pytest.fixture(scope="session")
def cloudctl() -> Callable[..., Result]:
    """Return ``cloudctl(*args, site=SITE, timeout=600, env=None) -> Result``."""
    return run_cloudctl


@pytest.fixture(scope="session")
def nodes() -> Callable[[str], list[str]]:
    """Return ``nodes(role)``: the names of the nodes of a role (deploy, control, compute, storage)."""

    def select(role: str) -> list[str]:
        return [name for name, its in lab_nodes().items() if its == role]

    return select


@pytest.fixture(scope="session")
def lab_exec() -> Callable[..., str]:
    """Return ``lab_exec(node, command, check=True) -> stdout``."""
    return run_on


@pytest.fixture(scope="session")
def containers() -> Callable[[], dict[str, dict[str, tuple[str, str]]]]:
    """Return ``containers() -> {node: {container: (id, started)}}``: equal means that nothing changed."""
    return read_containers


@dataclass(frozen=True)
class SiteCopy:
    """A copy of the lab's site to spoil; the nodes are the real ones."""

    path: Path

    def cloudctl(self, *args: str, timeout: float = 600, env: Mapping[str, str] | None = None) -> Result:
        """Run ``cloudctl`` against the copy."""
        return run_cloudctl(*args, site=self.path, timeout=timeout, env=env)

    def append(self, file: str, text: str) -> int:
        """Add text to the end of a file; return the number of its first line."""
        before = (self.path / file).read_text() if (self.path / file).exists() else ""
        (self.path / file).write_text(before + text)
        return before.count("\n") + 1

    def edit(self, file: str, change: Callable[[Any], None]) -> None:
        """Change a YAML file's content in place."""
        data = yaml.safe_load((self.path / file).read_text())
        change(data)
        (self.path / file).write_text(yaml.safe_dump(data, sort_keys=False))

    def line_of(self, file: str, text: str) -> int:
        """Return the number of the last line with a text."""
        lines = (self.path / file).read_text().splitlines()
        return max(number for number, line in enumerate(lines, start=1) if text in line)

    def host(self, node: str, **variables: Any) -> None:
        """Set a node's variables; None removes one."""

        def change(data: Any) -> None:
            groups = data["all"]["children"].values()
            (host,) = (g["hosts"][node] for g in groups if node in (g.get("hosts") or {}))
            host.update(variables)
            for name in [name for name, value in variables.items() if value is None]:
                del host[name]

        self.edit("inventory/hosts.yml", change)


@pytest.fixture
def site_copy(lab: Path, request: pytest.FixtureRequest) -> Iterator[SiteCopy]:
    """Yield a copy of the site that the deploy node sees at the same path."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    # Below the site: that directory is mounted in the deploy node.
    path = lab / ".cloudctl" / f"test-{name}-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(lab, path, ignore=lambda folder, names: [".cloudctl"] if Path(folder) == lab else [])
    connection = path / "inventory" / "group_vars" / "all.yml"
    connection.write_text(connection.read_text().replace(f"{lab}/", f"{path}/"))
    try:
        yield SiteCopy(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
