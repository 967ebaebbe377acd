"""What is wrong with a site, a node or the surroundings is told clearly, and nothing is changed by it.

Every case breaks one thing, most of them in a copy of the site, and asserts the one error that must come: its
reference, its exit code, the place it names; and that every container is still the same one.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NAME, Result, SiteCopy, run_on, start_cloudctl

from cloudctl.lab.topology import FIRST_MINOR, MINORS_PER_LAB, NETNS

USAGE, CONFIG, CHECK, UNREACHABLE, LOCKED = 2, 3, 4, 5, 8

Containers = Callable[[], dict[str, dict[str, tuple[str, str]]]]
Nodes = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def nothing_changes(containers: Containers) -> Iterator[None]:
    """Assert that every container is the same before and after."""
    before = containers()
    yield
    assert containers() == before


def expect(result: Result, rc: int, *refs: str, says: str = "", at: str = "") -> None:
    """Assert how a command failed: its exit code, exactly these errors, what they say and where."""
    assert result.rc == rc, str(result)
    assert result.refs == list(refs), str(result)
    for text in (says, at):
        assert text in result.err, str(result)
    assert "Traceback" not in result.out + result.err
    # An operator reads what is wrong, where, and how to go on.
    assert "   at: " in result.err


# The site's files: told by every command, before any node is asked.

# A deploy without --yes changes nothing where there is no terminal, even if it overlooked what is wrong.
COMMANDS = [("validate",), ("check",), ("plan",), ("deploy",)]


@pytest.fixture(params=COMMANDS, ids=lambda words: words[0])
def words(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the words of a command that reads the site."""
    found: tuple[str, ...] = request.param
    return found


def test_malformed_yaml(site_copy: SiteCopy, words: tuple[str, ...]) -> None:
    line = site_copy.append("settings.yml", "ceph: {pools: [\n")
    result = site_copy.cloudctl(*words)
    expect(result, CONFIG, "yaml-malformed")
    # YAML notices at the end of the text what was begun on that line.
    assert any(f"settings.yml:{number}" in result.err for number in (line, line + 1)), str(result)


def test_unknown_key(site_copy: SiteCopy, words: tuple[str, ...]) -> None:
    line = site_copy.append("settings.yml", "datpath: system\n")
    expect(
        site_copy.cloudctl(*words), CONFIG, "unknown-key", says="did you mean 'datapath'",
        at=f"settings.yml:{line}",
    )  # fmt: skip


def test_duplicate_address(site_copy: SiteCopy, words: tuple[str, ...], nodes: Nodes) -> None:
    controller, compute = nodes("control")[0], nodes("compute")[0]
    site_copy.host(compute, ansible_host="10.10.10.11")
    line = site_copy.line_of("inventory/hosts.yml", "10.10.10.11")
    expect(
        site_copy.cloudctl(*words), CONFIG, "duplicate-address",
        says=f"10.10.10.11 is the address of both {controller} and {compute}",
        at=f"inventory/hosts.yml:{line}",
    )  # fmt: skip


def test_missing_vault_password(site_copy: SiteCopy, words: tuple[str, ...]) -> None:
    (site_copy.path / ".vault-password").unlink()
    expect(site_copy.cloudctl(*words), CONFIG, "vault-password-missing", at=".vault-password")


def test_wrong_vault_password(site_copy: SiteCopy, words: tuple[str, ...]) -> None:
    (site_copy.path / ".vault-password").write_text("not the password\n")
    expect(site_copy.cloudctl(*words), CONFIG, "vault-password-wrong", at="secrets.yml:1")


# The virtual address. That it is another node's by the inventory is told without asking anybody.


def test_vip_is_a_nodes_address(site_copy: SiteCopy, words: tuple[str, ...], nodes: Nodes) -> None:
    site_copy.edit("settings.yml", lambda data: data["vip"].update(internal="10.10.10.21"))
    line = site_copy.line_of("settings.yml", "10.10.10.21")
    result = site_copy.cloudctl(*words)
    assert result.rc == CONFIG and result.refs[0] == "vip-in-use", str(result)
    assert f"vip.internal 10.10.10.21 is the address of {nodes('compute')[0]}" in result.err
    assert f"settings.yml:{line}" in result.err


FREE = "10.10.10.240"


@pytest.fixture
def other_vip(site_copy: SiteCopy) -> SiteCopy:
    """Return a site whose virtual address is a free one."""
    site_copy.edit("settings.yml", lambda data: data["vip"].update(internal=FREE))
    made = site_copy.cloudctl("secrets", "generate")  # a certificate for it
    assert made.rc == 0, str(made)
    return site_copy


def test_vip_of_a_foreign_machine(other_vip: SiteCopy) -> None:
    """The foreign machine is the switch of the management network."""
    switch = ["ip", "-n", NETNS, "address"]
    subprocess.run([*switch, "add", f"{FREE}/24", "dev", "br-management"], check=True)
    try:
        result = other_vip.cloudctl("check")
    finally:
        subprocess.run([*switch, "del", f"{FREE}/24", "dev", "br-management"], check=True)
    expect(result, CHECK, "vip-in-use", says=f"{FREE} is another machine's (MAC ")


def test_vip_on_a_storage_node(other_vip: SiteCopy, nodes: Nodes) -> None:
    node = nodes("storage")[0]
    run_on(node, f"ip address add {FREE}/24 dev eth0")
    try:
        result = other_vip.cloudctl("check")
    finally:
        run_on(node, f"ip address del {FREE}/24 dev eth0")
    expect(result, CHECK, "vip-in-use", says=FREE, at=node)


# The way to the nodes.

ASKING = [("check",), ("network", "check"), ("plan",), ("deploy",)]


@pytest.fixture(params=ASKING, ids=lambda words: words[0])
def asking(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the words of a command that asks the nodes."""
    found: tuple[str, ...] = request.param
    return found


def test_unreachable_node(site_copy: SiteCopy, asking: tuple[str, ...]) -> None:
    def add(data: Any) -> None:
        data["all"]["children"]["compute"]["hosts"]["compute99"] = {"ansible_host": "10.10.10.99"}

    site_copy.edit("inventory/hosts.yml", add)
    expect(site_copy.cloudctl(*asking), UNREACHABLE, "node-unreachable", at="compute99")


def test_wrong_ssh_key(site_copy: SiteCopy, asking: tuple[str, ...], nodes: Nodes) -> None:
    key = site_copy.path / "ssh" / "id_ed25519"
    key.unlink()
    key.with_suffix(".pub").unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    # All nodes refuse it: one error that names them.
    result = site_copy.cloudctl(*asking)
    expect(result, UNREACHABLE, "ssh-key-refused")
    for node in (*nodes("control"), *nodes("compute"), *nodes("storage")):
        assert node in result.err


def test_changed_host_key(site_copy: SiteCopy, asking: tuple[str, ...], nodes: Nodes) -> None:
    node, other = nodes("storage")[0], nodes("control")[0]
    known = site_copy.path / "known_hosts"
    foreign = run_on(other, "cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    lines = []
    for line in known.read_text().splitlines():
        names, kind, key = line.split()[:3]
        lines.append(f"{names} {kind} {foreign if node in names.split(',') else key}")
    known.write_text("\n".join(lines) + "\n")
    assert known.read_text().count(foreign) == 2
    expect(site_copy.cloudctl(*asking), UNREACHABLE, "host-key-changed", at=node)


# The nodes.


@pytest.fixture
def small_mtu(nodes: Nodes) -> Iterator[str]:
    """Yield a storage node whose port on the replication network has MTU 1500."""
    node = nodes("storage")[0]
    run_on(node, "ip link set eth2 mtu 1500")
    try:
        yield node
    finally:
        run_on(node, "ip link set eth2 mtu 9000")


def test_small_mtu_on_one_link(cloudctl: Callable[..., Result], small_mtu: str, nodes: Nodes) -> None:
    others = [node for node in nodes("storage") if node != small_mtu]
    if not others:
        pytest.fail("needs a lab with two storage nodes (topology full)", pytrace=False)
    result = cloudctl("network", "check")
    expect(result, CHECK, "network-mtu", says="eth2 has MTU 1500, 9000 is wanted", at=small_mtu)
    for other in others:
        for pair in (f"{small_mtu} -> {other}", f"{other} -> {small_mtu}"):
            assert f"failed replication: {pair}: packets of 9000 bytes do not pass" in result.out, str(result)
    expect(cloudctl("check"), CHECK, "nic-mtu-configured", says="MTU 1500, 9000 is wanted", at=small_mtu)


def test_clock_off_by_ten_seconds(site_copy: SiteCopy, nodes: Nodes) -> None:
    """The lab's nodes share the host's one kernel clock, so one node's Python is given another time.

    Everything else of the check is real: it sees the node's answers ten seconds ahead.
    """
    node, place = nodes("storage")[0], "/run/cloudctl-test"
    files = {
        "sitecustomize.py": "import time\nreal = time.time\ntime.time = lambda: real() + 10\n",
        "python3": f'#!/bin/sh\nPYTHONPATH={place} exec /usr/bin/python3 "$@"\n',
    }
    run_on(node, f"mkdir -p {place}")
    for name, text in files.items():
        run_on(node, f"printf %s {shlex.quote(text)} >{place}/{name} && chmod +x {place}/{name}")
    try:
        site_copy.host(node, ansible_python_interpreter=f"{place}/python3")
        result = site_copy.cloudctl("check")
    finally:
        run_on(node, f"rm -r {place}")
    expect(result, CHECK, "clock-skew", says="s ahead of the deploy node's", at=node)


def test_disk_nearly_full(cloudctl: Callable[..., Result]) -> None:
    """The deploy node runs no container, so that its engine's directory can be covered by a small disk."""
    run_on("deploy", "mount -t tmpfs -o size=64m cloudctl-test /var/lib/docker")
    try:
        run_on("deploy", "head -c 62M /dev/zero >/var/lib/docker/filler")
        result = cloudctl("check")
    finally:
        run_on("deploy", "umount /var/lib/docker")
    expect(result, CHECK, "disk-nearly-full", says="of /var/lib/docker's filesystem is free", at="deploy")


# Images.


def test_registry_down(cloudctl: Callable[..., Result], nodes: Nodes) -> None:
    planned = cloudctl("plan", "--output", "json")
    if planned.rc or planned.json["changes"]:
        pytest.fail(f"the lab is not as its site describes it: deploy first\n{planned.err}", pytrace=False)
    run_on("deploy", "systemctl stop lab-registry")
    try:
        checked = cloudctl("check")
        deployed = cloudctl("deploy", "--yes")
    finally:
        run_on("deploy", "systemctl start lab-registry")
    expect(checked, CHECK, "registry-silent", says="image registry at http://10.10.10.2:5000")
    for node in (*nodes("control"), *nodes("compute"), *nodes("storage")):
        assert node in checked.err
    assert deployed.rc == 0, str(deployed)
    assert "Nothing to change" in deployed.out


def test_image_missing(site_copy: SiteCopy) -> None:
    lock = site_copy.path / "images.lock.json"
    images = json.loads(lock.read_text())
    repository = images["keystone"]["reference"].partition("@")[0]
    images["keystone"]["reference"] = f"{repository}@sha256:{'0' * 64}"
    lock.write_text(json.dumps(images))
    result = site_copy.cloudctl("check")
    assert result.rc == CHECK and result.refs == ["image-missing"], str(result)
    assert "the registry does not have keystone" in result.err
    assert "cloudctl image build keystone" in result.err


# OSD devices.


@pytest.fixture
def spare_disk(nodes: Nodes) -> Iterator[tuple[str, str]]:
    """Yield a storage node and a disk of it that has a file system and is no OSD's."""
    node, device = nodes("storage")[0], f"/dev/loop{FIRST_MINOR + MINORS_PER_LAB - 1}"
    image = Path(f"/var/lib/cloudctl-{NAME}/nodes/{node}/disks/test.img")
    with image.open("wb") as stream:
        stream.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    minor = device.removeprefix("/dev/loop")
    run_on(node, f"mknod {device} b 7 {minor} && losetup {device} /lab/disks/test.img")
    try:
        yield node, device
    finally:
        run_on(
            node,
            f"umount {device}; rmdir /run/cloudctl-test; losetup --detach {device}; rm -f {device}",
            check=False,
        )
        image.unlink()


def use_device(site: SiteCopy, node: str, device: str) -> None:
    """Name one more device of a node in its inventory."""
    found: list[str] = []

    def read(data: Any) -> None:
        found.extend(data["all"]["children"]["storage"]["hosts"][node]["devices"])

    site.edit("inventory/hosts.yml", read)
    # There is no journal for it: those of the OSDs that are there need not be looked at.
    site.host(node, devices=[*found, device], journal_devices=None)


def test_osd_disk_not_empty(site_copy: SiteCopy, spare_disk: tuple[str, str]) -> None:
    node, device = spare_disk
    use_device(site_copy, node, device)
    expect(
        site_copy.cloudctl("check"), CHECK, "osd-device-refused",
        says=f"{device} cannot be used for an OSD: it holds a file system", at=node,
    )  # fmt: skip
    expect(site_copy.cloudctl("deploy"), CHECK, "osd-device-refused", says=device, at=node)


def test_osd_disk_mounted(site_copy: SiteCopy, spare_disk: tuple[str, str]) -> None:
    node, device = spare_disk
    run_on(node, f"mkdir -p /run/cloudctl-test && mount {device} /run/cloudctl-test")
    use_device(site_copy, node, device)
    says = f"{device} cannot be used for an OSD: it is mounted (/run/cloudctl-test)"
    expect(site_copy.cloudctl("check"), CHECK, "osd-device-refused", says=says, at=node)


def test_osd_disk_is_the_system_disk(site_copy: SiteCopy, nodes: Nodes) -> None:
    """The node's system is on a disk of the machine, to which the node gets a device file."""
    node, device = nodes("storage")[0], "/dev/cloudctl-test"
    number = run_on(node, "findmnt --noheadings --output MAJ:MIN --mountpoint /var/lib/docker").strip()
    run_on(node, f"mknod --mode=0400 {device} b {number.replace(':', ' ')}")
    try:
        use_device(site_copy, node, device)
        result = site_copy.cloudctl("check")
    finally:
        run_on(node, f"rm {device}")
    expect(
        result,
        CHECK,
        "osd-device-refused",
        says=f"{device} cannot be used for an OSD: it is the system disk",
        at=node,
    )


# Two runs at once.


def test_two_runs_at_once(site_copy: SiteCopy) -> None:
    first = start_cloudctl("plan", site=site_copy.path)
    try:
        deadline = time.monotonic() + 60
        lock = site_copy.path / ".cloudctl" / "lock"
        while not (lock.exists() and lock.read_text()):
            assert first.poll() is None and time.monotonic() < deadline, "the first run has not begun"
            time.sleep(0.05)
        holder = json.loads(lock.read_text())
        second = site_copy.cloudctl("deploy")
    finally:
        first.communicate(timeout=300)
    expect(
        second, LOCKED, "lock-held",
        says=f"{holder['who']} runs 'plan' since {holder['since']} (pid {holder['pid']} on {holder['host']})",
        at="lock",
    )  # fmt: skip
    assert first.returncode == 0
