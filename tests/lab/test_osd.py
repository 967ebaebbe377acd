"""Disks of the storage cluster come, are replaced and go; what must not happen is refused.

They want a lab whose storage servers have two data disks on one journal disk, and spare ones:
``cloudctl lab create --topology storage --data-disks 2 --spare-disks 2`` (all services but Ceph may be off).
They leave it as they found it, but for the name of one device in the inventory.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SITE, kill_cloudctl, lab_nodes, read_containers, run_cloudctl, run_on, start_cloudctl

from cloudctl.lab.host import run
from cloudctl.lab.nodes import STATE
from cloudctl.site.load import load_site

Cloudctl = Callable[..., Any]
INVENTORY = SITE / "inventory" / "hosts.yml"
POOL = "osdtest"
SPARE, SECOND = "/dev/disk/by-id/lab-spare1", "/dev/disk/by-id/lab-spare2"
LONG = 1200.0


def ceph(command: str, *, tool: str = "ceph", check: bool = True) -> str:
    """Run a command of Ceph's as the administrator, in the first monitor's container."""
    script = (
        "name=$(docker ps --format '{{.Names}}' | grep -E 'ceph-.*-mon[-.]') &&"
        " docker exec -i $name sh -c 'umask 077; cat > /tmp/admin' < /etc/ceph/ceph.client.admin.keyring &&"
        f" docker exec $name {tool} -n client.admin -k /tmp/admin {command}"
    )
    return run_on("ctl01", script, check=check, timeout=300)


def osds() -> dict[int, dict[str, Any]]:
    """Return what the cluster knows of its OSDs: host, device, journal, up, uuid."""
    known = {entry["id"]: entry for entry in json.loads(ceph("osd metadata --format json"))}
    return {
        entry["osd"]: {
            "uuid": entry["uuid"],
            "up": bool(entry["up"]),
            "host": known.get(entry["osd"], {}).get("hostname", ""),
            "device": known.get(entry["osd"], {}).get("bluestore_bdev_partition_path", ""),
            "journal": known.get(entry["osd"], {}).get("bluefs_db_partition_path", ""),
        }
        for entry in json.loads(ceph("osd dump --format json"))["osds"]
    }


def lasting_name(node: str, device: str) -> str:
    """Return the name below by-id of a node's device."""
    command = f"for l in /dev/disk/by-id/*; do [ $(readlink -f $l) = {device} ] && echo $l; done; true"
    return run_on(node, command).split()[0]


def assert_well(count: int) -> None:
    """Everything is active+clean, nothing complains, nothing is throttled any more, so many OSDs run."""
    status = json.loads(ceph("status --format json"))
    assert status["health"]["status"] == "HEALTH_OK", status["health"]
    states = {item["state_name"] for item in status["pgmap"]["pgs_by_state"]}
    assert all("active+clean" in state for state in states), states
    assert sum(item["up"] for item in osds().values()) == len(osds()) == count
    options = {entry["name"] for entry in json.loads(ceph("config dump --format json"))}
    assert "osd_mclock_profile" not in options


def assert_deploy_changes_nothing() -> None:
    before = read_containers()
    result = run_cloudctl("deploy", "--yes", "--output", "json")
    assert result.rc == 0, str(result)
    assert result.json["summary"] == "nothing to change"
    assert read_containers() == before


@pytest.fixture(scope="module", autouse=True)
def storage() -> None:
    if not {"ctl01", "osd01", "osd02", "osd03"} <= set(lab_nodes()):
        pytest.skip("needs a lab with three storage servers")
    if not run_on("osd01", f"test -e {SECOND} && echo yes", check=False).strip():
        pytest.skip("needs a lab with spare disks")


@pytest.fixture(scope="module")
def data(storage: None) -> Iterator[Callable[[], str]]:
    """Objects in a pool of three copies; yields what reads all of them and tells their checksum."""
    ceph(f"osd pool create {POOL} 16")
    ceph(f"osd pool application enable {POOL} rados")
    _write()

    def checksum() -> str:
        return _in_mon(
            "for i in $(seq 1 48); do"
            f" rados -n client.admin -k /tmp/admin -p {POOL} get object$i - ; done | md5sum"
        )

    yield checksum
    ceph("config set mon mon_allow_pool_delete true")
    ceph(f"osd pool rm {POOL} {POOL} --yes-i-really-really-mean-it")
    ceph("config rm mon mon_allow_pool_delete")


def _in_mon(script: str) -> str:
    """Run a shell script in the first monitor's container, where ``ceph`` has put the administrator's key."""
    ceph("health")
    name = run_on("ctl01", "docker ps --format '{{.Names}}' | grep -E 'ceph-.*-mon[-.]'").strip()
    return run_on("ctl01", f"docker exec -i {name} sh <<'END'\n{script}\nEND", timeout=600)


def _write() -> None:
    _in_mon(
        "head -c 4M /dev/urandom > /tmp/object; for i in $(seq 1 48); do echo $i >> /tmp/object;"
        f" rados -n client.admin -k /tmp/admin -p {POOL} put object$i /tmp/object; done; rm /tmp/object"
    )


# -- the deploy --------------------------------------------------------------------------------


def test_two_data_devices_share_one_journal_device() -> None:
    found = osds()
    for node in ("osd01", "osd02", "osd03"):
        own = [item for item in found.values() if item["host"] == node]
        assert len(own) == 2 and all(item["up"] for item in own)
        journals = {item["journal"] for item in own}
        disk = run_on(node, "readlink -f /dev/disk/by-id/lab-journal1").strip()
        assert journals == {f"{disk}p1", f"{disk}p2"}, journals
        assert len({item["device"] for item in own}) == 2


# -- refusals: nothing changes -----------------------------------------------------------------


@contextlib.contextmanager
def nothing_changes() -> Iterator[None]:
    before = INVENTORY.read_text(), read_containers(), osds(), ceph("osd crush dump")
    yield
    assert (INVENTORY.read_text(), read_containers(), osds(), ceph("osd crush dump")) == before


LVM = """
import struct, sys, zlib
# What pvcreate writes, without a device mapper to run it: a label in the second sector, with its checksum.
label = bytearray(512)
label[0:16] = b"LABELONE" + struct.pack("<Q", 1)
label[20:64] = struct.pack("<I", 32) + b"LVM2 001" + b"abcdefghijklmnopqrstuvwxyz012345"
crc = zlib.crc32(bytes(label[20:]), 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
label[16:20] = struct.pack("<I", crc)
with open(sys.argv[1], "r+b") as disk:
    disk.seek(512)
    disk.write(label)
"""
FOREIGN = """
import struct, sys
text = lambda value: struct.pack("<I", len(value)) + value
head = b"bluestore block device\\n" + b"11111111-2222-4333-8444-555555555555" + b"\\n"
with open(sys.argv[1], "r+b") as disk:
    disk.write(
        head + struct.pack("<BBI", 2, 1, 0) + bytes(32) + text(b"main") + struct.pack("<I", 1)
        + text(b"ceph_fsid") + text(b"99999999-2222-4333-8444-555555555555")
    )
"""
HALF = """
import struct, sys
head = b"bluestore block device\\nUUID\\n"
with open(sys.argv[1], "r+b") as disk:
    disk.write(head + struct.pack("<BBI", 2, 1, 0) + bytes(32) + struct.pack("<I", 4) + b"main" + bytes(4))
"""
TABLE = "sgdisk --new=1:0:+64M {disk} >/dev/null; partx --delete {disk}; true"
MOUNT = "mkdir -p /mnt/spoiled; mount {disk} /mnt/spoiled"
SPOILED = {
    "a partition table": (TABLE, "partition table"),
    "LVM": (f"python3 - {{disk}} <<'END'{LVM}END", "LVM"),
    "another cluster's OSD": (f"python3 - {{disk}} <<'END'{FOREIGN}END", "another Ceph cluster"),
    "a file system": ("true", "ext4"),
    "a mount": (MOUNT, "mounted (/mnt/spoiled)"),
    "swap": ("mkswap -q {disk}", "swap"),
}
CLEAN = (
    "umount /mnt/spoiled 2>/dev/null; wipefs --all --quiet {disk}; partx --delete {disk} 2>/dev/null;"
    " dd if=/dev/zero of={disk} bs=1M count=4 conv=fsync status=none"
)


@pytest.mark.parametrize("kind", SPOILED)
def test_a_disk_with_something_on_it_is_refused(cloudctl: Cloudctl, kind: str) -> None:
    spoil, word = SPOILED[kind]
    disk = run_on("osd01", f"readlink -f {SPARE}").strip()
    if kind in ("a file system", "a mount"):  # the node has no mkfs: the lab's host has
        run(["mkfs.ext4", "-q", "-F", str(STATE / "nodes/osd01/disks/spare1.img")])
        run_on("osd01", f"blockdev --flushbufs {disk}")
    run_on("osd01", spoil.replace("{disk}", disk))
    content = run_on("osd01", f"head -c 1M {disk} | md5sum")
    try:
        with nothing_changes():
            result = cloudctl("osd", "add", "osd01", SPARE, "--journal", SECOND, "--yes")
        assert (result.rc, result.refs) == (4, ["osd-device-refused"]), str(result)
        assert word in result.err, str(result)
        assert run_on("osd01", f"head -c 1M {disk} | md5sum") == content
    finally:
        run_on("osd01", CLEAN.replace("{disk}", disk))


def test_other_devices_that_are_refused(cloudctl: Cloudctl) -> None:
    """The system disk, devices that are OSDs or journals, that are not there; a journal that is too small."""
    own = next(item for item in osds().values() if item["host"] == "osd01")
    small, size = "/dev/disk/by-id/lab-spare2", 100
    disk = run_on("osd01", f"readlink -f {small}").strip()
    # The file system that carries the server itself; a real one is found in the same way, by what is mounted.
    number = run_on("osd01", "stat -c '%Hd %Ld' /var/lib/docker").strip()
    run_on("osd01", f"rm -f /dev/vda; mknod /dev/vda b {number}")
    cases: list[tuple[list[str], str, str]] = [
        (["osd01", "/dev/vda", "--journal", SECOND], "osd-device-refused", "system disk"),
        (
            ["osd01", lasting_name("osd01", own["device"]), "--journal", SECOND],
            "osd-device-refused",
            "the same device as",
        ),
        (["osd01", "/dev/disk/by-id/lab-journal1", "--journal", SECOND], "osd-device-refused", "on it"),
        (["osd01", "/dev/nothing", "--journal", SECOND], "osd-device-refused", "no such device"),
        (["osd01", SPARE], "osd-device-refused", "too small"),  # both journals take all of the shared one
        (["osd09", SPARE], "node-unknown", "osd09"),
        (["ctl01", SPARE], "node-unknown", "ctl01"),
    ]
    try:
        with nothing_changes():
            for arguments, ref, word in cases:
                result = cloudctl("osd", "add", *arguments, "--yes")
                assert result.refs == [ref], (arguments, str(result))
                assert word in result.err, (arguments, str(result))
            run_on(
                "osd01", f"sgdisk --new=1:0:+{size}M {disk} >/dev/null; partx --add {disk} 2>/dev/null; true"
            )
            part = run_on("osd01", f"cat /sys/class/block/$(basename {disk})p1/dev").strip().replace(":", " ")
            run_on("osd01", f"rm -f {disk}p1; mknod {disk}p1 b {part}")
            result = cloudctl("osd", "add", "osd01", SPARE, "--journal", f"{disk}p1", "--yes")
            assert result.refs == ["osd-device-refused"] and f"too small: {size} MiB" in result.err, str(
                result
            )
    finally:
        run_on("osd01", f"rm -f /dev/vda {disk}p1; sgdisk --zap-all {disk} >/dev/null; partx --delete {disk}"
               " 2>/dev/null; true")  # fmt: skip


def test_removals_that_are_refused(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    """Below three copies; near full; an unknown OSD; a device to erase that is another's."""
    found = osds()
    on = {node: sorted(n for n, item in found.items() if item["host"] == node) for node in ("osd01", "osd02")}
    preview = cloudctl("osd", "remove", str(on["osd01"][0]), "--dry-run", "--output", "json")
    assert preview.rc == 0, str(preview)
    # Between how full the node's other OSD is and what it would be.
    ahead = preview.json["forecast"]
    fullest = max(ahead["full"], key=lambda number: ahead["full"][number])
    assert ahead["full"][fullest] > ahead["before"][fullest] + 0.005
    ratio = (ahead["full"][fullest] + max(ahead["before"].values())) / 2
    other = lasting_name("osd01", found[on["osd01"][1]]["device"])
    with nothing_changes():
        result = cloudctl("osd", "remove", *map(str, on["osd02"]), "--yes")
        assert "osd-failure-domain" in result.refs and result.rc == 4, str(result)
        assert "3 copies" in result.err
        result = cloudctl("osd", "remove", "99", "--yes")
        assert (result.rc, result.refs) == (2, ["osd-unknown"]), str(result)
        result = cloudctl("osd", "remove", str(on["osd01"][0]), "--zap", other, "--yes")
        assert (result.rc, result.refs) == (4, ["osd-zap-other"]), str(result)
        result = cloudctl(
            "osd", "remove", str(on["osd01"][0]), "--zap", found[on["osd01"][0]]["device"], "--yes"
        )
        assert (result.rc, result.refs) == (2, ["osd-zap-name"]), str(result)
        ceph(f"osd set-nearfull-ratio {ratio:.4f}")
        try:
            result = cloudctl("osd", "remove", str(on["osd01"][0]), "--yes")
            assert (result.rc, result.refs) == (4, ["osd-near-full"]), str(result)
        finally:
            ceph("osd set-nearfull-ratio 0.85")


def test_an_inventory_that_would_not_be_in_force_is_refused(site_copy: Any) -> None:
    """What host_vars say of the devices wins over the lines that are changed."""
    variables = load_site(site_copy.path, with_secrets=False).nodes["osd01"].vars
    said = {key: variables[key] for key in ("devices", "journal_devices") if key in variables}
    overruling = site_copy.path / "inventory" / "host_vars" / "osd01.yml"
    overruling.parent.mkdir(exist_ok=True)
    overruling.write_text(json.dumps(said) + "\n")
    text = (site_copy.path / "inventory" / "hosts.yml").read_text()
    own = next(number for number, item in osds().items() if item["host"] == "osd01")
    with nothing_changes():
        for arguments in (["remove", str(own)], ["add", "osd01", SPARE, "--journal", SECOND]):
            result = site_copy.cloudctl("osd", *arguments, "--yes")
            assert result.refs == ["osd-inventory-overruled"], str(result)
            assert "inventory/host_vars/osd01.yml" in result.err, str(result)
    assert (site_copy.path / "inventory" / "hosts.yml").read_text() == text


def test_a_device_under_two_names_is_refused(cloudctl: Cloudctl) -> None:
    """A disk as its own journal; a part of a journal device as a disk."""
    disk = run_on("osd01", f"readlink -f {SPARE}").strip()
    own = next(item for item in osds().values() if item["host"] == "osd01")
    with nothing_changes():
        result = cloudctl("osd", "add", "osd01", SPARE, "--journal", disk, "--yes")
        assert set(result.refs) == {"osd-device-refused"}, str(result)
        assert "the same device as" in result.err and "wipefs" not in result.err, str(result)
        result = cloudctl("osd", "add", "osd01", own["journal"], "--journal", SECOND, "--yes")
        assert result.refs == ["osd-device-refused"], str(result)


def test_a_pool_of_a_class_that_too_few_nodes_have(site_copy: Any) -> None:
    pools = {"extra": [{"name": "fast", "device_class": "nvme"}]}
    site_copy.edit("settings.yml", lambda settings: settings["ceph"].setdefault("pools", {}).update(pools))
    with nothing_changes():
        result = site_copy.cloudctl("deploy", "--yes")
        assert (result.rc, result.refs) == (4, ["ceph-pool-class"]), str(result)
        pools["extra"][0]["device_class"] = "hdd"
        site_copy.edit("settings.yml", lambda settings: settings["ceph"]["pools"].update(pools))
        result = site_copy.cloudctl("plan")
        assert result.rc == 0 and "fast" in result.out, str(result)


# -- a disk goes, another fails, a disk comes --------------------------------------------------


def fail(node: str, number: int, device: str) -> None:
    """Let a disk fail: its OSD ends, and the file behind the loop device is gone."""
    unit = run_on(node, f"systemctl list-units --plain --no-legend 'ceph-*@osd.{number}.service'").split()[0]
    run_on(node, f"systemctl stop {unit}")
    disk = next(
        d
        for d in (STATE / "nodes" / node / "disks").glob("*.img")
        if lasting_name(node, device).endswith(d.stem)
    )
    run(["losetup", "--detach", device])
    disk.unlink()
    ceph(f"osd down {number}")


def put_in(node: str) -> None:
    """Put new disks where files are gone."""
    names = {disk["name"] for disk in json.loads(run_on(node, "cat /etc/cloudctl-lab/disks.json"))}
    for name in names:
        path = STATE / "nodes" / node / "disks" / f"{name}.img"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(8 * 2**30)
    run_on(node, "/usr/local/sbin/lab-disks")


def elsewhere(text: str, node: str) -> list[str]:
    """Return the inventory's lines without those of one node."""
    kept, inside = [], -1
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip().startswith(f"{node}:"):
            inside = depth
        elif depth <= inside and line.strip() and not line.strip().startswith("- "):
            inside = -1
        if inside < 0:
            kept.append(line)
    return kept


def homes() -> dict[str, list[int]]:
    """Return by node the ids of its OSDs."""
    found: dict[str, list[int]] = {}
    for number, item in osds().items():
        found.setdefault(item["host"], []).append(number)
    return found


def test_a_disk_goes(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    """Its data moves away, it is erased by name, its journal's place is free."""
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    gone = min(begin)
    node, device = begin[gone]["host"], lasting_name(begin[gone]["host"], begin[gone]["device"])
    result = cloudctl("osd", "remove", str(gone), "--zap", device, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert sorted(osds()) == sorted(set(begin) - {gone})
    assert_well(len(begin) - 1)
    assert data() == whole
    assert run_on(node, f"wipefs {device}").strip() == ""
    assert INVENTORY.read_text() != text
    assert elsewhere(INVENTORY.read_text(), node) == elsewhere(text, node)
    assert_deploy_changes_nothing()


def test_a_failed_disk_is_replaced(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    """The file is gone; the new OSD gets the id although a lower one is free, and the journal's part."""
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    node = max((node for node, ids in homes().items() if len(ids) == 2), key=lambda one: max(homes()[one]))
    victim = max(homes()[node])
    fail(node, victim, begin[victim]["device"])
    refused = cloudctl("osd", "replace", str(victim), "--yes")
    assert refused.refs == ["osd-device-refused"], str(refused)  # there is nothing in its place yet
    put_in(node)
    result = cloudctl("osd", "replace", str(victim), "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    after = osds()
    assert sorted(after) == sorted(begin)
    assert after[victim]["uuid"] != begin[victim]["uuid"]
    assert (after[victim]["host"], after[victim]["journal"]) == (node, begin[victim]["journal"])
    assert_well(len(begin))
    assert data() == whole
    assert INVENTORY.read_text() == text
    assert_deploy_changes_nothing()


def test_room_on_a_journal_device() -> None:
    """The part that the first disk left goes altogether: the next test's OSD gets one in the same room."""
    node = min(homes(), key=lambda one: len(homes()[one]))
    disk = run_on(node, "readlink -f /dev/disk/by-id/lab-journal1").strip()
    free = {f"{disk}p1", f"{disk}p2"} - {item["journal"] for item in osds().values() if item["host"] == node}
    assert len(free) == 1, free
    number = free.pop()[-1]
    run_on(node, f"sgdisk --delete={number} {disk} >/dev/null; partx --delete --nr {number} {disk}; true")
    assert f"{disk.removeprefix('/dev/')}p{number}" not in run_on(node, "cat /proc/partitions").split()


def test_a_disk_comes(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    """Killed in the middle, and given again; the journal device's room is used."""
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    node = min(homes(), key=lambda one: len(homes()[one]))
    used = {item["device"] for item in begin.values() if item["host"] == node}
    device = next(
        f"/dev/disk/by-id/lab-data{n}"
        for n in (1, 2)
        if run_on(node, f"readlink -f /dev/disk/by-id/lab-data{n}").strip() not in used
    )
    process = start_cloudctl("osd", "add", node, device, "--yes")
    journal = SITE / ".cloudctl" / "operations" / "osd-add.json"
    deadline = time.monotonic() + 300
    while state_of(journal, "create") != "begun":
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    time.sleep(1)
    kill_cloudctl(process)
    result = cloudctl("osd", "add", node, device, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    after = osds()
    assert len(after) == len(begin) + 1
    journals = {item["journal"] for item in after.values() if item["host"] == node}
    disk = run_on(node, "readlink -f /dev/disk/by-id/lab-journal1").strip()
    assert journals == {f"{disk}p1", f"{disk}p2"}
    assert_well(len(after))
    assert data() == whole
    assert device in INVENTORY.read_text()
    assert elsewhere(INVENTORY.read_text(), node) == elsewhere(text, node)
    assert_deploy_changes_nothing()
    result = cloudctl("osd", "add", node, device, "--yes")
    assert result.rc == 0 and "Nothing to do" in result.out, str(result)


def test_both_disks_of_a_node_are_replaced(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    """One after the other, while the other one's is new too; each gets its id and its journal's part."""
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    node = max(homes(), key=lambda one: len(homes()[one]))
    names = {number: lasting_name(node, begin[number]["device"]) for number in sorted(homes()[node])}
    for number in names:
        fail(node, number, begin[number]["device"])
    ceph(f"osd out {max(names)}")  # its data need not be waited for when the first one is there
    put_in(node)
    time.sleep(10)
    for number, device in names.items():
        result = cloudctl("osd", "replace", str(number), device, "--yes", timeout=LONG)
        assert result.rc == 0, str(result)
    after = osds()
    assert sorted(after) == sorted(begin)
    for number in names:
        assert after[number]["uuid"] != begin[number]["uuid"]
        assert after[number]["journal"] == begin[number]["journal"]
    assert_well(len(begin))
    assert data() == whole
    assert elsewhere(INVENTORY.read_text(), node) == elsewhere(text, node)
    assert_deploy_changes_nothing()


def start_until(step: str, *arguments: str) -> None:
    """Start ``osd ARGUMENTS`` and kill it when a step has begun."""
    process = start_cloudctl("osd", *arguments, "--yes")
    journal = SITE / ".cloudctl" / "operations" / f"osd-{arguments[0]}.json"
    deadline = time.monotonic() + 300
    while state_of(journal, step) is None:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    kill_cloudctl(process)


def test_another_device_is_named_in_the_middle(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    victim = max(homes()["osd01"])
    own = lasting_name("osd01", begin[victim]["device"])
    start_until("forget", "replace", str(victim), SPARE, "--degraded")
    result = cloudctl("osd", "replace", str(victim), SECOND, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert SECOND in INVENTORY.read_text() and SPARE not in INVENTORY.read_text()
    assert osds()[victim]["uuid"] != begin[victim]["uuid"]
    assert_well(len(begin))
    assert data() == whole
    run_on("osd01", CLEAN.replace("{disk}", own))
    result = cloudctl("osd", "replace", str(victim), own, "--degraded", "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    run_on("osd01", CLEAN.replace("{disk}", SECOND))
    assert_well(len(begin))
    assert elsewhere(INVENTORY.read_text(), "osd01") == elsewhere(text, "osd01")


def test_a_removal_is_given_up(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    text, begin = INVENTORY.read_text(), osds()

    def weights() -> dict[int, float]:
        found = json.loads(ceph("osd tree --format json"))["nodes"]
        return {item["id"]: item["crush_weight"] for item in found if item["type"] == "osd"}

    victim, before = max(begin), weights()
    start_until("drain", "remove", str(victim))
    refused = cloudctl("osd", "remove", str(min(begin)), "--yes")
    assert (refused.rc, refused.refs) == (2, ["osd-unfinished"]), str(refused)
    result = cloudctl("osd", "remove", str(victim), "--abandon", "--yes")
    assert result.rc == 0, str(result)
    assert weights() == pytest.approx(before, rel=0.01)
    deadline = time.monotonic() + 300
    while len(json.loads(ceph("status --format json"))["pgmap"]["pgs_by_state"]) > 1:
        assert time.monotonic() < deadline
        time.sleep(3)
    assert_well(len(begin))
    assert INVENTORY.read_text() == text


def test_a_removal_that_is_killed_while_it_erases(cloudctl: Cloudctl, data: Callable[[], str]) -> None:
    whole, text, begin = data(), INVENTORY.read_text(), osds()
    victim = max(homes()["osd03"])
    device = lasting_name("osd03", begin[victim]["device"])
    removal = ("remove", str(victim), "--zap", device)
    start_until("erase", *removal)
    result = cloudctl("osd", *removal, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert victim not in osds()
    result = cloudctl("osd", "add", "osd03", device, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert osds()[victim]["journal"] == begin[victim]["journal"]
    assert_well(len(begin))
    assert data() == whole
    assert elsewhere(INVENTORY.read_text(), "osd03") == elsewhere(text, "osd03")


def test_a_disk_that_was_half_made_becomes_an_osd(cloudctl: Cloudctl) -> None:
    """What a power cut leaves: an id that never started, and a label that names no cluster."""
    text, begin = INVENTORY.read_text(), osds()
    uuid = "11111111-2222-4333-8444-666666666666"
    ceph(f"osd new {uuid}")
    run_on("osd01", f"python3 - $(readlink -f {SPARE}) <<'END'{HALF.replace('UUID', uuid)}END")
    result = cloudctl("osd", "add", "osd01", SPARE, "--journal", SECOND, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert uuid not in {item["uuid"] for item in osds().values()}
    assert_well(len(begin) + 1)
    (new,) = set(osds()) - set(begin)
    result = cloudctl("osd", "remove", str(new), "--zap", SPARE, "--yes", timeout=LONG)
    assert result.rc == 0, str(result)
    assert osds().keys() == begin.keys()
    assert_well(len(begin))
    INVENTORY.write_text(text)


def test_the_class_of_an_osd_that_runs(cloudctl: Cloudctl) -> None:
    text, begin = INVENTORY.read_text(), osds()
    number = min(homes()["osd01"])
    kernel = begin[number]["device"]
    # As the inventory calls it: a device that comes under another name is refused.
    own = yaml.safe_load(text)["all"]["children"]["storage"]["hosts"]["osd01"]["devices"]
    (device,) = (name for name in (lasting_name("osd01", kernel), kernel) if name in own)
    try:
        for kind in ("ssd", "hdd"):
            result = cloudctl("osd", "add", "osd01", device, "--class", kind, "--yes", timeout=LONG)
            assert result.rc == 0, str(result)
            assert ceph(f"osd crush get-device-class osd.{number}").strip() == kind
            assert f"{device}: {kind}" in INVENTORY.read_text()
    finally:
        INVENTORY.write_text(text)
    assert_well(len(begin))


def state_of(journal: Path, key: str) -> str | None:
    """Return where a step of an unfinished operation stands."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(journal.read_text())
        return None if found["finished"] else str(found["steps"][key]["state"])
    return None
