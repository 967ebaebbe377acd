"""The lab host: running programs, what must be installed, where Debian packages come from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloudctl.errors import ApplyFailed, CheckFailed

CACHE = Path("/var/cache/cloudctl")
"""What is expensive to make and safe to lose: images, packages."""

PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "netavark": "netavark",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "losetup": "mount",
    "ssh-keygen": "openssh-client",
    "gpg": "gpg",
    "apt-ftparchive": "apt-utils",
}
"""Program -> Debian package that brings it."""

_OUTSIDE_PATH = (Path("/usr/sbin"), Path("/sbin"), Path("/usr/lib/podman"))


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program and return its standard output.

    Args:
        argv: the program and its arguments; no shell.
        stdin: text for its standard input.
        check: raise when it fails.
        env: variables on top of this process's.
        cwd: directory to run in.

    Raises:
        ApplyFailed: it failed and ``check`` is set; carries the end of its standard error.
    """
    # A session of its own: Ctrl-C is for cloudctl, which finishes or undoes its step, not for podman.
    result = subprocess.run(
        [os.fspath(word) for word in argv],
        input="" if stdin is None else stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **env} if env else None,
        cwd=cwd,
        start_new_session=True,
    )
    if check and result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-8:])
        command = " ".join(os.fspath(word) for word in argv[:4])
        raise ApplyFailed("lab-command-failed", f"{command} … ended with {result.returncode}: {tail}")
    return result.stdout


def missing_packages() -> list[str]:
    """Return the Debian packages that the lab needs and the host lacks."""
    found = {
        program
        for program in PROGRAMS
        if shutil.which(program) or any((directory / program).exists() for directory in _OUTSIDE_PATH)
    }
    return sorted({package for program, package in PROGRAMS.items() if program not in found})


def check_host() -> None:
    """Check that this machine can hold a lab.

    Raises:
        CheckFailed: not root, or packages are missing; names the command that installs them.
    """
    if os.geteuid() != 0:
        raise CheckFailed("lab-needs-root", "the lab makes network namespaces and containers: run it as root")
    if missing := missing_packages():
        raise CheckFailed(
            "lab-host-packages",
            f"this machine lacks {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def ensure_host_packages() -> list[str]:
    """Install what the lab needs; return what was installed."""
    missing = missing_packages()
    if missing:
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], env=env)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env)
    return missing


def debian_mirror(etc_apt: Path = Path("/etc/apt")) -> str:
    """Return the URL of the Debian archive that this host itself uses.

    Raises:
        CheckFailed: the host's apt sources name none.
    """
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    for file in files:
        if file.is_file() and (url := find_mirror(file.read_text(errors="replace"))):
            return url
    raise CheckFailed(
        "lab-no-mirror",
        "no Debian archive in this machine's apt sources",
        where=str(etc_apt / "sources.list"),
    )


def find_mirror(text: str) -> str | None:
    """Return the first archive URL (not security's) in a ``.list`` or ``.sources`` file's text."""
    candidates = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+\s+main\b", text, re.M)
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.+)$", stanza, re.M))
        if "deb" in fields.get("Types", "").split() and "main" in fields.get("Components", "").split():
            candidates += fields.get("URIs", "").split()
    for url in candidates:
        if re.fullmatch(r"(https?|file|copy)://\S*/debian/?", url):
            return str(url).rstrip("/")
    return None


def apt_options(etc_apt: Path = Path("/etc/apt")) -> list[str]:
    """Return the host's own ``Acquire`` options on dates and proxies.

    A frozen mirror needs them: its Release files are old.
    """
    options = []
    for file in sorted((etc_apt / "apt.conf.d").glob("*")):
        for line in file.read_text(errors="replace").splitlines():
            if re.match(r'^Acquire::(Check-Valid-Until|Check-Date|https?::Proxy)\s+"[^"]*";$', line.strip()):
                options.append(line.strip())
    return options


def ca_bundle() -> Path | None:
    """Return the host's CA bundle, for image builds behind a mirror with its own CA."""
    bundle = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    return bundle if bundle.is_file() else None
