"""The images of the lab's nodes: a bare Debian server, and the deploy node on top of it."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudctl.lab.host import apt_options, ca_bundle, debian_mirror, run
from cloudctl.lab.podman import limits, podman
from cloudctl.paths import data_root

SUITE = "trixie"
REPOSITORY = "localhost/cloudctl-lab"
Report = Callable[[str], None]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def read_list(path: Path) -> list[str]:
    """Return the file's lines without comments and blanks."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def digest(directory: Path, *more: str) -> str:
    """Return a short checksum of everything in a directory (names, modes, contents) and of ``more``."""
    total = hashlib.sha256("\0".join(more).encode())
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(directory)}\0{path.stat().st_mode & 0o111}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def node_image() -> str:
    """Return the node image's name; it changes when its definition does."""
    return f"{REPOSITORY}/node:{digest(data_root() / 'lab' / 'node', SUITE)}"


def deploy_image() -> str:
    """Return the deploy node image's name."""
    return f"{REPOSITORY}/deploy:{digest(data_root() / 'lab' / 'deploy', node_image())}"


def exists(image: str) -> bool:
    """Return whether podman's storage has the image."""
    return image.rpartition(":")[2] in run(
        [*podman(), "images", "--format", "{{.Tag}}", image.rpartition(":")[0]], check=False
    )


def ensure(report: Report) -> None:
    """Build the images that are missing."""
    if not exists(node_image()):
        report("building the node image (half a minute)")
        build_node(node_image())
    if not exists(deploy_image()):
        report("building the deploy node's image (a minute or two)")
        build_deploy(deploy_image())
        _remove_older(deploy_image())
        _remove_older(node_image())


def _remove_older(image: str) -> None:
    """Remove images that were built from earlier definitions and that no node uses."""
    repository, _, tag = image.rpartition(":")
    for older in run([*podman(), "images", "--format", "{{.Tag}}", repository]).split():
        if older != tag:
            run([*podman(), "rmi", f"{repository}:{older}"], check=False)


def build_node(image: str) -> None:
    """Build the bare server."""
    source = data_root() / "lab" / "node"
    quoted = shlex.quote(str(source / "files"))
    links = " ".join(shlex.quote(path) for path in read_list(source / "masked.txt"))
    hooks = [
        f"sync-in {quoted} /",
        'chown -R root:root "$1/init.sh" "$1/usr/local" "$1/etc/systemd"',
        'chmod 755 "$1/init.sh" "$1"/usr/local/sbin/*',
        # A server knows its archive from cloudctl, its keys and identity from whoever installed it.
        'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/apt/sources.list; : > "$1/etc/machine-id"',
        'mkdir -p "$1/etc/udev/rules.d" "$1/etc/sysctl.d" "$1/etc/cloudctl-lab" "$1/lab" "$1/root/.ssh"',
        f'for f in {links}; do ln -sfn /dev/null "$1$f"; done',
        'chroot "$1" systemctl enable systemd-networkd.service lab-disks.service ssh.service',
    ]
    with tempfile.TemporaryDirectory(prefix="cloudctl-lab-") as temporary:
        tar = Path(temporary, "node.tar")
        run(
            [
                *("nice", "mmdebstrap", "--quiet", "--variant=minbase"),
                *(f"--aptopt={option}" for option in apt_options()),
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                f"--include={','.join(read_list(source / 'packages.txt'))}",
                *(f"--customize-hook={hook}" for hook in hooks),
                SUITE,
                str(tar),
                f"deb [signed-by={_KEYRING}] {debian_mirror()} {SUITE} main",
            ]
        )
        run([*podman(), "import", "--change", "ENV=LANG=C.UTF-8", str(tar), image])


def build_deploy(image: str) -> None:
    """Build the deploy node on top of the node image."""
    source = data_root() / "lab" / "deploy"
    with outside_world() as options:
        run(
            [
                *("nice", *podman(), "build", "--network", "host", *limits(), *options),
                *("--build-arg", f"NODE={node_image()}", "-t", image),
                str(source),
            ]
        )


@contextmanager
def outside_world() -> Iterator[list[str]]:
    """Give the options that let a build container use this host's package sources.

    They are mounted for the build only: neither a mirror's name nor the host's CA stays in the image.
    """
    with tempfile.TemporaryDirectory(prefix="cloudctl-lab-") as temporary:
        sources = Path(temporary, "sources.list")
        sources.write_text(f"deb {debian_mirror()} {SUITE} main\n")
        conf = Path(temporary, "apt.conf")
        conf.write_text("\n".join(['APT::Sandbox::User "root";', *apt_options(), ""]))
        Path(temporary).chmod(0o755)
        options = [
            *("-v", f"{sources}:/etc/apt/sources.list.d/lab-build.list:ro"),
            *("-v", f"{conf}:/etc/apt/apt.conf.d/99lab-build:ro"),
        ]
        if bundle := ca_bundle():
            options += ["-v", f"{bundle}:/etc/ssl/certs/ca-certificates.crt:ro"]
        if Path("/etc/pip.conf").is_file():
            options += ["-v", "/etc/pip.conf:/etc/pip.conf:ro"]
        for name in ("PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "https_proxy", "http_proxy", "no_proxy"):
            if name in os.environ:
                options += ["--env", f"{name}={os.environ[name]}"]
        yield options


def remove() -> None:
    """Remove every lab image, older ones too."""
    listed = run(
        [*podman(), "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={REPOSITORY}/*"]
    )
    # Deploy images first, they are made from the others; never by force: that would remove containers.
    for name in sorted(listed.split()):
        run([*podman(), "rmi", name], check=False)
