"""Nodes as containers: making them, their power button, whether they are up."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from cloudctl.errors import ApplyFailed, Unreachable
from cloudctl.lab import network
from cloudctl.lab.host import run
from cloudctl.lab.podman import limits, podman
from cloudctl.lab.topology import NAME, PREFIX, LabNode

STATE = Path(f"/var/lib/cloudctl-{NAME}")
"""Everything of the lab that is not in podman's storage."""

LABEL = "cloudctl.lab"
INSTALLER = "installer"
"""User of a bare or remade node."""
BOOT_TIMEOUT = 60.0
STOP_TIMEOUT = 90
RETRY_PAUSE = 5.0


def directory(node: LabNode) -> Path:
    """Return the node's directory on the host."""
    return STATE / "nodes" / node.name


def containers() -> dict[str, str]:
    """Return node name -> podman's state of every container of this lab."""
    return {
        name.removeprefix(PREFIX): state
        for name, state in all_containers().items()
        if name.startswith(PREFIX)
    }


def all_containers() -> dict[str, str]:
    """Return container name -> podman's state of every node of every lab of this machine."""
    output = run([*podman(), "ps", "-a", "--filter", f"label={LABEL}", "--format", "json"])
    return {row["Names"][0]: str(row["State"]) for row in json.loads(output or "[]")}


def host_key(node: LabNode) -> str:
    """Return the node's public host key, made when it is first asked for."""
    key = directory(node) / "ssh_host_ed25519_key"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", node.name, "-f", key])
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def is_complete(node: LabNode) -> bool:
    """Return whether the making of the node was finished."""
    return (directory(node) / "complete").exists()


def create(
    node: LabNode, image: str, authorized_key: str, mounts: Sequence[str], *, password: str = ""
) -> None:
    """Make the node, switched off.

    Args:
        authorized_key: of the operator; a bare or remade node does not get it.
        mounts: podman volume arguments, for the deploy node.
        password: of such a node's user.
    """
    place = directory(node)
    docker, disks = place / "docker", place / "disks"
    docker.mkdir(parents=True, exist_ok=True)
    disks.mkdir(exist_ok=True)
    for disk in node.disks:
        file = disks / f"{disk.name}.img"
        if not file.exists():
            with file.open("wb") as handle:
                handle.truncate(disk.size)
    modules = Path("/lib/modules")
    run(
        [
            *(*podman(), "create", "--name", node.container, "--hostname", node.name),
            *("--label", f"{LABEL}={node.role}"),
            *("--privileged", "--cgroupns=private", "--systemd=always", "--pids-limit=-1"),
            # NICs come from the lab's own switches; files that a server owns are not podman's mounts.
            *("--network", "none", "--no-hosts"),
            *limits(),
            *("-v", f"{docker}:/var/lib/docker", "-v", f"{disks}:/lab/disks"),
            *(("-v", "/lib/modules:/lib/modules:ro") if modules.is_dir() else ()),
            *(word for mount in mounts for word in ("-v", mount)),
            *(image, "/init.sh"),
        ]
    )
    root = Path(run([*podman(), "mount", node.container]).strip())
    try:
        _install(node, root, authorized_key)
        if node.unknown:
            _add_installer(root, password)
    finally:
        run([*podman(), "umount", node.container], check=False)
    (place / "complete").touch()


def _install(node: LabNode, root: Path, authorized_key: str) -> None:
    """Do what the person who installed the server did: name, keys, management address."""

    def write(path: str, text: str, mode: int = 0o644) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    public = host_key(node)
    private = directory(node) / "ssh_host_ed25519_key"
    write("etc/ssh/ssh_host_ed25519_key", private.read_text(), 0o600)
    write("etc/ssh/ssh_host_ed25519_key.pub", public + "\n")
    if not node.unknown:
        write("root/.ssh/authorized_keys", authorized_key + "\n", 0o600)
    (root / "root/.ssh").chmod(0o700)
    write("etc/hostname", node.name + "\n")
    write("etc/hosts", f"127.0.0.1 localhost\n{node.address} {node.name}\n::1 localhost ip6-localhost\n")
    disks = [{"name": disk.name, "minor": disk.minor} for disk in node.disks]
    write("etc/cloudctl-lab/disks.json", json.dumps(disks) + "\n")
    write("etc/cloudctl-lab/nics", "".join(f"{nic}\n" for nic in node.nics))
    write("etc/cloudctl-lab/role", node.role + "\n")
    for nic, address in node.configured().items():
        write(
            # Sorts late: a file that cloudctl's own network role writes for the NIC wins.
            f"etc/systemd/network/80-installer-{nic}.network",
            f"[Match]\nName={nic}\n\n[Network]\nAddress={address}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        )


def _add_installer(root: Path, password: str) -> None:
    """Make the user that an installer makes: it logs in with a password, and sudo asks for it."""
    run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/sh", "--groups", "sudo", INSTALLER])
    # By standard input: arguments are everybody's to read.
    run(["chroot", root, "chpasswd"], stdin=f"{INSTALLER}:{password}\n")


def pid(node: LabNode) -> int:
    """Return the host's process id of the node's first process; 0 when it is off."""
    output = run([*podman(), "inspect", "--format", "{{.State.Pid}}", node.container], check=False)
    return int(output.strip() or 0)


def start(node: LabNode) -> None:
    """Switch the node on, or plug in what a running one lacks; does not wait until it has booted."""
    if process := pid(node):
        network.plug_in(node, process)
        return
    network.unplug(node)
    run([*podman(), "start", node.container])
    network.plug_in(node, pid(node))


def wait(node: LabNode, timeout: float = BOOT_TIMEOUT) -> None:
    """Wait until the node has its address and answers ssh.

    Raises:
        Unreachable: it did not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    process = pid(node)
    while not is_up(node, process):
        if time.monotonic() > deadline or not process:
            raise Unreachable(
                "lab-node-not-up",
                f"{node.name} has not booted in {timeout:.0f} s" if process else f"{node.name} is off",
                where=node.name,
                hint=f"podman logs {node.container}; cloudctl lab exec {node.name} -- systemctl --failed",
            )
        time.sleep(0.1)


def is_up(node: LabNode, process: int) -> bool:
    """Return whether the node has its address and sshd listens, read from the host's view of its network."""
    place = Path(f"/proc/{process}/net")
    try:
        addresses = (place / "fib_trie").read_text()
        sockets = (place / "tcp").read_text() + (place / "tcp6").read_text()
    except OSError:
        return False
    listening = any(
        fields[1].endswith(":0016") and fields[3] == "0A"
        for fields in (line.split() for line in sockets.splitlines())
        if len(fields) > 3
    )
    return listening and f"|-- {node.address}\n" in addresses


def stop(node: LabNode) -> None:
    """Shut the node down cleanly (systemd stops its services), and wait for it."""
    run([*podman(), "stop", "-t", str(STOP_TIMEOUT), node.container])
    network.unplug(node)


def kill(node: LabNode) -> None:
    """Cut the node's power: its NICs fall silent, then every process is gone."""
    network.unplug(node)
    run([*podman(), "kill", "--signal", "KILL", node.container], check=False)
    deadline = time.monotonic() + 30
    while pid(node):
        if time.monotonic() > deadline:
            raise ApplyFailed("lab-node-lives", f"{node.name} survived its power cut", where=node.name)
        time.sleep(0.1)


def remove(name: str) -> None:
    """Remove the node's container, running or not."""
    # One that was just starting, with all others of a lab, may need longer to die than podman waits.
    for last in (False, False, True):
        try:
            run([*podman(), "rm", "-f", "-t", "0", "--ignore", PREFIX + name])
            return
        except ApplyFailed:
            if last:
                raise
            time.sleep(RETRY_PAUSE)


def detach_disks(name: str = "*") -> list[str]:
    """Detach every loop device whose file belongs to the lab (or to one node), and remove the device.

    Matched by device and inode: the path that the kernel reports is the node's, not the host's.

    Returns:
        The devices.
    """
    ours = set()
    for image in STATE.glob(f"nodes/{name}/disks/*.img"):
        status = image.stat()
        ours.add((f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}", status.st_ino))
    output = run(["losetup", "--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"])
    detached = []
    for row in json.loads(output or "{}").get("loopdevices", []):
        if (str(row["back-maj:min"]).strip(), int(row["back-ino"])) in ours:
            # The kernel keeps partitions of a loop device that it did not find by itself.
            run(["partx", "--delete", row["name"]], check=False)
            run(["losetup", "--detach", row["name"]])
            _forget_loop_device(int(Path(row["name"]).name.removeprefix("loop")))
            detached.append(row["name"])
    return detached


def loop_minors_in_use() -> set[int]:
    """Return the minors of all attached loop devices of this machine."""
    listed = run(["losetup", "--list", "--noheadings", "--output", "NAME"], check=False)
    names = (Path(line.strip()).name.removeprefix("loop") for line in listed.splitlines())
    return {int(name) for name in names if name.isdigit()}


def _forget_loop_device(minor: int) -> None:
    import fcntl

    loop_ctl_remove = 0x4C81
    try:
        with Path("/dev/loop-control").open("rb") as control:
            fcntl.ioctl(control, loop_ctl_remove, minor)
    except OSError:
        pass  # still being released: an unused device costs nothing


def remove_state() -> None:
    """Delete the lab's files."""
    if STATE.exists():
        shutil.rmtree(STATE)
