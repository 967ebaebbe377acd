"""What the building machine provides: its tools, its package mirrors, its certificate authorities."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloudctl.errors import ApplyFailed, CheckFailed

# The machine's hard limits may be lower than podman's defaults, and raising one needs a capability that root
# does not have everywhere.
ULIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=30000:30000")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TOOLS = {"podman": "podman", "runc": "runc", "mmdebstrap": "mmdebstrap", "apt-get": "apt"}


def check_tools() -> None:
    """Check that the programs a build needs are there.

    Raises:
        CheckFailed: names all that are missing, and the command that installs them.
    """
    missing = [package for program, package in _TOOLS.items() if shutil.which(program) is None]
    if missing:
        raise CheckFailed(
            "image-tools-missing",
            f"building images needs programs that are not installed: {', '.join(missing)}",
            hint=f"apt-get install --yes --no-install-recommends {' '.join(missing)}",
        )


def podman(*arguments: str) -> list[str]:
    """Return a podman command line. runc, because crun refuses hybrid control groups."""
    return ["podman", "--runtime", "runc", *arguments]


def run(command: Sequence[str], *, log: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return its standard output.

    Args:
        command: the program and its arguments.
        log: file to which its output is appended (default: kept, for the error message).
        env: its environment (default: this process's).

    Raises:
        ApplyFailed: it failed; the message carries the end of its output.
    """
    if log is None:
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        output, tail = result.stdout, result.stderr or result.stdout
    else:
        with log.open("a", encoding="utf-8") as handle:
            handle.write(f"+ {' '.join(command)}\n")
            handle.flush()
            result = subprocess.run(command, stdout=handle, stderr=handle, text=True, check=False, env=env)
        output = tail = ""
        if result.returncode:
            tail = log.read_text(encoding="utf-8", errors="replace")
    if result.returncode:
        lines = "\n".join(tail.strip().splitlines()[-8:])
        raise ApplyFailed(
            "image-command-failed",
            f"{' '.join(command[:4])} … ended with status {result.returncode}:\n{lines}",
            where=str(log) if log else None,
            hint="the log says more" if log else None,
        )
    return output


def mirrors(targets: str) -> tuple[str, str | None]:
    """Find the machine's Debian mirrors.

    Args:
        targets: lines "origin|label|address", as `host_mirrors` asks ``apt-get indextargets`` for them.

    Returns:
        The address of the archive and of the security archive (None when the machine uses none).

    Raises:
        CheckFailed: no Debian archive among them.
    """
    archive: str | None = None
    security: str | None = None
    for line in targets.splitlines():
        origin, _, rest = line.partition("|")
        label, _, address = rest.partition("|")
        if origin != "Debian" or not address:
            continue
        if label == "Debian-Security":
            security = security or address.rstrip("/")
        elif label == "Debian":
            archive = archive or address.rstrip("/")
    if archive is None:
        raise CheckFailed(
            "image-no-mirror",
            "this machine's apt sources name no Debian archive to build images from",
            hint="put one into /etc/apt/sources.list.d/ and run `apt-get update`",
        )
    return archive, security


def host_mirrors() -> tuple[str, str | None]:
    """Return `mirrors` of this machine's own apt configuration."""
    template = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    return mirrors(run(["apt-get", "indextargets", "--format", template, "Created-By: Packages"]))


def sources(suite: str, components: Sequence[str], archive: str, security: str | None) -> list[str]:
    """Return the apt source lines of `suite`."""
    words = " ".join(components)
    lines = [f"deb [signed-by={KEYRING}] {archive} {name} {words}" for name in (suite, f"{suite}-updates")]
    if security:
        lines.append(f"deb [signed-by={KEYRING}] {security} {suite}-security {words}")
    return lines


def apt_proxies() -> list[str]:
    """Return the proxy settings of this machine's apt, as configuration lines."""
    return proxy_lines(run(["apt-config", "dump"]))


def proxy_lines(dump: str) -> list[str]:
    """Return the proxy settings in the output of ``apt-config dump``."""
    wanted = re.compile(r'^Acquire::\w+::(Proxy|Proxy::[\w.-]+) ".+";$')
    return [line for line in dump.splitlines() if wanted.match(line)]


def write_apt(directory: Path, lines: Sequence[str]) -> None:
    """Write apt's configuration for use inside builds, where `directory` is mounted read-only at /mnt.

    Nothing of it is left in an image: neither a mirror's name nor this machine's certificate authorities.
    """
    (directory / "sources.list.d").mkdir(parents=True, exist_ok=True)
    (directory / "sources.list.d" / "build.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = [
        'Dir::Etc::sourcelist "/dev/null";',
        'Dir::Etc::sourceparts "/mnt/sources.list.d";',
        'Dir::Cache::pkgcache "";',
        'Dir::Cache::srcpkgcache "";',
        'APT::Install-Recommends "false";',
        'APT::Sandbox::User "root";',
        'Acquire::Retries "3";',
        'Dpkg::Options:: "--force-unsafe-io";',
        'Dpkg::Options:: "--force-confold";',
        'Dpkg::Use-Pty "false";',
        *apt_proxies(),
    ]
    if CA_BUNDLE.exists():
        shutil.copyfile(CA_BUNDLE, directory / "ca.crt")
        settings.append('Acquire::https::CAInfo "/mnt/ca.crt";')
    (directory / "apt.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")


def bootstrap(packages: Sequence[str], suite: str, lines: Sequence[str], target: Path, log: Path) -> None:
    """Make a root file system of `suite` with `packages` as a tar file at `target`.

    The mirrors are used while it is made, and are not in it.
    """
    exclude = ["man/*", "doc/*", "info/*", "lintian/*", "locale/*", "gtk-doc/*"]
    options = [f"path-exclude=/usr/share/{path}" for path in exclude]
    options += ["path-include=/usr/share/doc/*/copyright", "path-include=/usr/share/locale/locale.alias"]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        config = Path(scratch) / "sources.list"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary = target.with_suffix(".partial.tar")
        run(
            [
                "mmdebstrap",
                "--variant=minbase",
                f"--include={','.join(packages)}",
                *(f"--dpkgopt={option}" for option in options),
                '--aptopt=Dir::Cache::pkgcache ""',
                '--aptopt=Dir::Cache::srcpkgcache ""',
                "--aptopt=Apt::Install-Recommends false",
                *(f"--aptopt={line.rstrip(';')}" for line in apt_proxies()),
                # neither mirrors nor this machine's name stay in the image
                "--customize-hook=rm -f $1/etc/apt/sources.list $1/etc/apt/sources.list.d/*",
                "--customize-hook=rm -f $1/etc/hostname $1/etc/resolv.conf",
                suite,
                str(temporary),
                str(config),
            ],
            log=log,
        )
        temporary.replace(target)
