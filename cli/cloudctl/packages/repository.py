"""The package repository of a cloud's nodes: a flat apt archive with every package they will ever install."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from cloudctl.lab import images
from cloudctl.lab.host import CACHE, run
from cloudctl.lab.podman import limits, podman
from cloudctl.paths import data_root

REPOSITORY = CACHE / "repository"
CURRENT = REPOSITORY / "current"
KEY_HOME = CACHE / "repository-key"
KEYRING = "cloudctl-archive-keyring.gpg"
"""Name of the public key inside the repository."""

_IDENTITY = "cloudctl package repository"


def wanted_packages() -> list[str]:
    """Return the names in ``packages.yml``."""
    data = yaml.safe_load((Path(__file__).parent / "packages.yml").read_text())
    return [str(name) for name in data["packages"]]


def version() -> str:
    """Return the name of the repository that fits the package list and what a bare node has already."""
    present = images.read_list(data_root() / "lab" / "node" / "packages.txt")
    return hashlib.sha256("\n".join([images.SUITE, *present, "", *wanted_packages()]).encode()).hexdigest()[
        :12
    ]


def ensure(report: Callable[[str], None]) -> Path:
    """Build the repository unless the one for this package list exists; make it the served one.

    Returns:
        Its directory.
    """
    place = REPOSITORY / version()
    if not (place / "Release").exists():
        report("building the package repository (a minute)")
        _build(place)
    elif not _is_signed(place):
        report("signing the package repository")
        _sign(place)
    REPOSITORY.mkdir(parents=True, exist_ok=True)
    link = REPOSITORY / ".current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(CURRENT)
    for older in REPOSITORY.iterdir():
        if older not in (CURRENT, place):
            shutil.rmtree(older)
    return place


def _build(place: Path) -> None:
    """Download the packages and what they need beyond a bare node; index and sign them."""
    work = place.with_name(f".{place.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    (work / "partial").mkdir(parents=True)
    with images.outside_world() as options:
        run(
            [
                *("nice", *podman(), "run", "--rm", "--network", "host", *limits(), *options),
                *("-v", f"{work}:/var/cache/apt/archives", images.node_image(), "sh", "-ec"),
                'apt-get update -qq; apt-get install -y -qq --no-install-recommends --download-only "$@"',
                *("sh", *wanted_packages()),
            ]
        )
    shutil.rmtree(work / "partial", ignore_errors=True)
    (work / "lock").unlink(missing_ok=True)
    # apt writes an epoch's colon as %3a in file names, which an HTTP server would decode.
    for file in work.glob("*%3a*"):
        file.rename(file.with_name(file.name.replace("%3a", "-")))
    (work / "Packages").write_text(run(["apt-ftparchive", "packages", "."], cwd=work))
    release = ("Origin=cloudctl", "Label=cloudctl", f"Suite={images.SUITE}", "Architectures=amd64")
    options = [word for item in release for word in ("-o", f"APT::FTPArchive::Release::{item}")]
    (work / "Release").write_text(run(["apt-ftparchive", *options, "release", "."], cwd=work))
    _sign(work)
    shutil.rmtree(place, ignore_errors=True)
    work.rename(place)


def public_key() -> str:
    """Return the public key that signs the repository, in ASCII armor; nothing where none was made yet."""
    return run([*_gpg(), "--armor", "--export", _IDENTITY]) if KEY_HOME.is_dir() else ""


def _is_signed(directory: Path) -> bool:
    """Whether the repository carries a signature of the present key: another one may have made it."""
    if not KEY_HOME.is_dir():
        return False
    done = subprocess.run(
        [*_gpg(), "--verify", str(directory / "InRelease")], capture_output=True, check=False
    )
    return done.returncode == 0


def _gpg() -> list[str]:
    return ["gpg", "--batch", "--quiet", "--homedir", str(KEY_HOME), "--pinentry-mode", "loopback"]


def _sign(directory: Path) -> None:
    KEY_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    gpg = _gpg()
    if _IDENTITY not in run([*gpg, "--list-secret-keys"]):
        run([*gpg, "--passphrase", "", "--quick-generate-key", _IDENTITY, "rsa3072", "sign", "never"])
    run([*gpg, "--yes", "--output", str(directory / "InRelease"), "--clearsign", str(directory / "Release")])
    run([*gpg, "--yes", "--output", str(directory / KEYRING), "--export", _IDENTITY])
    run(["gpgconf", "--homedir", str(KEY_HOME), "--kill", "all"], check=False)
