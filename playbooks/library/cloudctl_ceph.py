#!/usr/bin/python
"""Compare the Ceph cluster with its desired state and bring it there; check OSD devices.

Runs on a node with the standard library alone. Reading (``observe``), deciding (``decide_cluster``,
``compare``, ``judge_device``: pure) and changing (``Applier``) are separate. Every step can be repeated:
whatever a killed run left behind, the next one reads the state anew and does what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudctl_rados import options as rados_options

DOCUMENTATION = r"""
---
module: cloudctl_ceph
short_description: Compare the Ceph cluster with its desired state, apply it, or check OSD devices
description:
  - With O(mode=observe) reports what differs from O(desired) and changes nothing.
  - With O(mode=apply) bootstraps the cluster with cephadm where there is none, then adds hosts, daemons,
    OSDs, configuration, pools and client keys until nothing differs and the cluster is healthy.
  - With O(mode=devices), on a storage node, says of each device whether an OSD may use it. A device with
    partitions, a file system, LVM, another cluster's data, or one that is mounted is refused.
  - With O(mode=prepare), on a storage node, gives the devices of OSDs names that are the same on every node
    (links in C(/dev/cloudctl)), and a journal device that several OSDs share one partition for each.
  - With O(mode=wipe), on a storage node, erases devices and journals of the OSDs named in O(osds), and
    refuses any device that carries another one's label. Nothing else that holds data is ever wiped.
  - With O(mode=ask), on a monitor's node, carries out the commands in O(steps).
  - O(mode=observe) and O(mode=apply) run on the first monitor's node.
options:
  mode:
    description: What to do.
    type: str
    choices: [observe, apply, devices, prepare, wipe, ask]
    required: true
  desired:
    description:
      - The desired state as returned by C(cloudctl.ceph.build). It holds no secret.
      - With C(before), the uuids of OSDs, its OSDs are to be made beside those. Without, they are all that
        there are to be.
    type: dict
    default: {}
  secrets:
    description:
      - C(ssh_private_key), C(ssh_public_key) and C(client_keys) as returned by C(cloudctl.ceph.secrets).
      - Needed with O(mode=apply) only.
    type: dict
    default: {}
  devices:
    description:
      - With O(mode=observe) and O(mode=apply), the results of O(mode=devices) by node. OSDs are created only
        on devices that were checked and found empty.
    type: dict
    default: {}
  fsid:
    description: With O(mode=devices), the cluster's id; devices of its OSDs count as ours.
    type: str
    default: ""
  data:
    description: With O(mode=devices), O(mode=prepare) and O(mode=wipe), paths of the data devices.
    type: list
    elements: str
    default: []
  journals:
    description:
      - Paths of the journal devices, in the order of the data devices, or none. A device that is named more
        than once is shared, in partitions.
    type: list
    elements: str
    default: []
  journal_size:
    description: Size of a journal on a shared device in bytes; 0 for an equal part of the device.
    type: int
    default: 0
  journal_minimum:
    description: A journal smaller than this, in bytes, is refused.
    type: int
    default: 0
  only:
    description:
      - With O(mode=devices) and O(mode=prepare), those of the data devices that become OSDs now. The
        others are left alone, whatever is on them, and need not be there. Left out, all.
    type: list
    elements: str
    default: []
  leaving:
    description: With O(mode=devices), the uuids of OSDs whose journals will be free.
    type: list
    elements: str
    default: []
  osds:
    description:
      - With O(mode=wipe), the uuids of the OSDs whose devices are to be erased.
      - With O(mode=devices), those of OSDs known to be ours.
    type: list
    elements: str
    default: []
  steps:
    description:
      - With O(mode=ask), what to do, as C(to) (mon, mgr or rbd), C(cmd), and optionally C(in), C(timeout) and
        C(may_fail). The first that fails and may not ends the list.
    type: list
    elements: dict
    default: []
  node:
    description: With O(mode=ask), the node's name as Ceph knows it.
    type: str
    default: ""
  image:
    description:
      - With O(mode=devices), an image that the node starts to pull in the background, so that the
        orchestrator need not wait for it. Left out, nothing is pulled.
    type: str
    default: ""
  settle:
    description: With O(mode=apply), wait until the cluster is healthy.
    type: bool
    default: true
  timeout:
    description: Seconds without any progress after which O(mode=apply) gives up.
    type: int
    default: 600
author: cloudctl
"""

EXAMPLES = r"""
- name: What would change
  cloudctl_ceph:
    mode: observe
    desired: "{{ ceph_desired }}"

- name: May these devices become OSDs
  cloudctl_ceph:
    mode: devices
    fsid: "{{ ceph_desired.fsid }}"
    data: [/dev/sdb, /dev/sdc]
    journals: [/dev/nvme0n1p1, /dev/nvme0n1p2]
"""

RETURN = r"""
changes:
  description: What differs (observe) or was changed (apply).
  type: list
  elements: dict
  returned: observe, apply
  contains:
    kind: {description: "cluster, host, mon, mgr, osd, pool, client or config.", type: str}
    name: {description: Which one., type: str}
    action: {description: "create, update, refuse.", type: str}
    reason: {description: What was found and what is wanted., type: str}
cluster:
  description: "present, absent, interrupted (our own bootstrap did not finish) or unreachable."
  type: str
  returned: observe, apply
health:
  description: HEALTH_OK or what the cluster complains about; empty where there is no cluster.
  type: str
  returned: observe, apply
notes:
  description: Things worth knowing that are not changed by this module.
  type: list
  elements: str
  returned: observe, apply
seconds:
  description: How long each step took.
  type: dict
  returned: apply
devices:
  description:
    - "For each device path, size in bytes, state (empty, ours, refused) and reason; of a shared journal
      device its C(slots); of one that has two names the others (C(same_as))."
  type: list
  elements: dict
  returned: devices
done:
  description: What was changed on the node.
  type: list
  elements: dict
  returned: prepare, wipe
answers:
  description: For each step C(rc), C(out) and C(err).
  type: list
  elements: dict
  returned: ask
"""

STATE_DIR = "/var/lib/cloudctl"
PROGRESS = f"{STATE_DIR}/ceph-progress.log"
MARKER = f"{STATE_DIR}/ceph-bootstrap-in-progress"
LOCK = f"{STATE_DIR}/ceph.lock"
BOOTSTRAP_LOG = f"{STATE_DIR}/ceph-bootstrap.log"
TMP_PREFIX = "cloudctl-ceph-"
ETC = "/etc/ceph"
VAR = "/var/lib/ceph"
KEYRING = f"{ETC}/ceph.client.admin.keyring"

LINKS = "/dev/cloudctl"
"""Where the devices of OSDs that are being made have names that do not differ between nodes."""

SYSTEM_MOUNTS = {"/", "/boot", "/boot/efi", "/usr", "/var", "/var/lib", "/var/lib/docker"}
"""A disk on which one of these is mounted is the node's own."""

MIB = 1 << 20

DEVICE_CLASSES = ("hdd", "ssd", "nvme")
DEFAULT_RULE = "replicated_rule"

SPEC_PREFIX = "cloudctl-"
"""Names of our OSD specifications start so; they live only while OSDs are being created."""

HARMLESS = {
    "POOL_NO_REDUNDANCY", "MON_DISK_LOW", "RECENT_CRASH", "RECENT_MGR_MODULE_CRASH", "POOL_TOO_FEW_PGS",
    "POOL_TOO_MANY_PGS", "TELEMETRY_CHANGED", "DASHBOARD_DEBUG", "BLUESTORE_SLOW_OP_ALERT",
}  # fmt: skip
"""Health checks that a deployment does not wait for: time or the operator clears them."""

LABEL_MAGIC = b"bluestore block device\n"


class CephFailure(Exception):
    """The cluster could not be brought to its desired state; the message says why and how to go on."""


class Unanswered(CephFailure):
    """Ceph did not answer."""


# --- devices ------------------------------------------------------------------------------------------------


def parse_label(block):
    """Return the BlueStore label at the start of a device: {osd_uuid, ceph_fsid, description}, or None.

    Args:
        block: the first 4 KiB. A label that can't be decoded yields empty fields, never None: it is data.
    """
    if not block.startswith(LABEL_MAGIC):
        return None
    label = {"osd_uuid": "", "ceph_fsid": "", "description": ""}
    text = block[len(LABEL_MAGIC) : len(LABEL_MAGIC) + 36].decode("ascii", "replace")
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        label["osd_uuid"] = text
    try:
        # struct_v, compat, length; then uuid (16), size (8), time (8), description, {text: text}
        at = len(LABEL_MAGIC) + 37 + 6 + 16 + 8 + 8

        def read_text(at):
            (length,) = struct.unpack_from("<I", block, at)
            if at + 4 + length > len(block):
                raise ValueError("text leaves the block")
            return block[at + 4 : at + 4 + length].decode("utf-8", "replace"), at + 4 + length

        label["description"], at = read_text(at)
        (count,) = struct.unpack_from("<I", block, at)
        at += 4
        for _ in range(min(count, 64)):
            key, at = read_text(at)
            value, at = read_text(at)
            if key == "ceph_fsid":
                label["ceph_fsid"] = value
    except (struct.error, ValueError):
        pass
    return label


def judge_device(probe, fsid, our_osds=()):
    """Decide what a device is.

    Args:
        probe: as returned by ``probe_device``.
        fsid: our cluster's id.
        our_osds: uuids of OSDs known to be ours; a journal's label carries no cluster id, only its OSD's.

    Returns:
        ``(state, reason)``: empty, ours or refused.
    """
    if probe.get("error") and not probe.get("mounts"):
        return "refused", probe["error"]
    label = probe.get("label")
    if label is not None:
        if label["ceph_fsid"]:
            if label["ceph_fsid"] == fsid:
                return "ours", f"OSD {label['osd_uuid']} of this cluster"
            return "refused", f"it holds an OSD of another Ceph cluster ({label['ceph_fsid']})"
        if label["osd_uuid"] and label["osd_uuid"] in our_osds:
            return "ours", f"journal of OSD {label['osd_uuid']} of this cluster"
        return "refused", f"it holds data of an unknown Ceph OSD ({label['osd_uuid'] or 'unreadable label'})"
    if probe.get("read_only"):
        return "refused", "it is read-only"
    if probe.get("mounts"):
        where = ", ".join(probe["mounts"][:3])
        if SYSTEM_MOUNTS & set(probe["mounts"]):
            return "refused", f"it is the system disk, mounted ({where})"
        return "refused", f"it is mounted ({where})"
    if probe.get("swap"):
        return "refused", "it is used as swap"
    if probe.get("children"):
        return "refused", f"it has {', '.join(probe['children'][:4])} on it"
    kinds = probe.get("signatures") or []
    if kinds:
        return "refused", f"it holds {', '.join(describe_signature(kind) for kind in kinds)}"
    if probe.get("busy"):
        return "refused", "it is in use by another program or the kernel"
    if not probe.get("size"):
        return "refused", "it has no size"
    return "empty", ""


def describe_signature(kind):
    """Return words for a signature's type as libblkid names it."""
    if kind in ("dos", "gpt", "atari", "mac", "sun", "sgi", "bsd", "PMBR"):
        return f"a partition table ({kind})"
    if kind == "LVM2_member":
        return "an LVM physical volume"
    if kind == "ceph_bluestore":
        return "data of a Ceph OSD"
    return f"a file system or the like ({kind})"


def in_use(mountinfo, numbers):
    """Return the mount points in the text of /proc/self/mountinfo of devices given as {'8:1', …}."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] in numbers and fields[4] not in found:
            found.append(fields[4])
    return found


def probe_device(path, run=None):
    """Read everything about a device that ``judge_device`` needs. Changes nothing.

    Args:
        path: as the operator wrote it; links are followed.
        run: runs a command and returns ``(rc, stdout)``; for tests.
    """
    run = run or quiet
    real = os.path.realpath(path)
    probe = {"path": path, "size": 0, "label": None, "mounts": [], "children": [], "signatures": []}
    try:
        mode = os.stat(real)
    except OSError:
        return {**probe, "error": "there is no such device"}
    if not stat.S_ISBLK(mode.st_mode):
        return {**probe, "error": "it is not a block device"}
    probe["real"] = real
    number = f"{os.major(mode.st_rdev)}:{os.minor(mode.st_rdev)}"
    sysfs = os.path.realpath(f"/sys/dev/block/{number}")
    numbers = {number: os.path.basename(sysfs)}
    probe["whole"] = not os.path.exists(f"{sysfs}/partition")
    probe["name"] = "" if probe["whole"] else partition_name(sysfs)
    patterns = ("*/dev", "holders/*/dev", "*/holders/*/dev", "holders/*/holders/*/dev")
    for entry in [path for pattern in patterns for path in sorted(glob.glob(f"{sysfs}/{pattern}"))]:
        with contextlib.suppress(OSError), open(entry, encoding="ascii") as file:
            name = os.path.basename(os.path.dirname(entry))
            if os.path.exists(f"/sys/class/block/{name}"):
                numbers[file.read().strip()] = name
                probe["children"].append(name)
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        probe["mounts"] = in_use(file.read(), numbers)
    try:
        fd = os.open(real, os.O_RDONLY)
        try:
            probe["size"] = os.lseek(fd, 0, os.SEEK_END)
            os.lseek(fd, 0, os.SEEK_SET)
            block = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError as error:
        return {**probe, "error": f"it can't be read ({error.strerror})"}
    probe["label"] = parse_label(block)
    probe["partitions"] = read_partitions(real, sysfs) if probe["whole"] and probe["label"] is None else []
    with contextlib.suppress(OSError), open(f"{sysfs}/ro", encoding="ascii") as file:
        probe["read_only"] = file.read().strip() == "1"
    with contextlib.suppress(OSError), open("/proc/swaps", encoding="utf-8") as file:
        probe["swap"] = any(
            os.path.basename(line.split()[0]) in numbers.values() for line in file.read().splitlines()[1:]
        )
    if probe["label"] is None:
        # wipefs lists every signature, even those that hide each other; blkid knows a few more kinds.
        rc, out = run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", real])
        if rc != 0:
            return {**probe, "error": "its content can't be determined (wipefs failed)"}
        kinds = out.split()
        rc, out = run(["blkid", "--probe", "--output", "export", real])
        if rc == 8:
            kinds.append("ambivalent")
        kinds += re.findall(r"^(?:PT)?TYPE=(.+)$", out, re.MULTILINE)
        probe["signatures"] = sorted(set(kinds))
        try:
            os.close(os.open(real, os.O_RDONLY | os.O_EXCL))
        except OSError:
            probe["busy"] = True
    return probe


def parse_gpt(header, entries):
    """Return the partitions of a GUID partition table: [{number, name, first, last}], in sectors.

    Args:
        header: the sector behind the first one.
        entries: what lies from the table's first entry on, ``entry_count * entry_size`` bytes.
    """
    if header[:8] != b"EFI PART":
        return []
    count, size = struct.unpack_from("<II", header, 80)
    found = []
    for index in range(min(count, 256)):
        entry = entries[index * size : (index + 1) * size]
        if len(entry) < 128 or entry[:16] == bytes(16):
            continue
        first, last = struct.unpack_from("<QQ", entry, 32)
        name = entry[56:128].decode("utf-16-le", "replace").partition("\0")[0]
        found.append({"number": index + 1, "name": name, "first": first, "last": last})
    return found


def read_partitions(real, sysfs):
    """Return a disk's partitions with path, size in bytes, name and label; [] without a table."""
    with contextlib.suppress(OSError, ValueError, struct.error):
        with open(f"{sysfs}/queue/logical_block_size", encoding="ascii") as file:
            sector = int(file.read())
        with open(real, "rb") as disk:
            disk.seek(sector)
            header = disk.read(sector)
            if header[:8] != b"EFI PART":
                return []
            disk.seek(struct.unpack_from("<Q", header, 72)[0] * sector)
            entries = disk.read(128 * 256)
        found = []
        for part in parse_gpt(header, entries):
            path = partition_path(real, part["number"])
            # From the disk, not the partition: its node may not be there yet.
            with open(real, "rb", buffering=0) as disk:
                os.posix_fadvise(disk.fileno(), part["first"] * sector, 4096, os.POSIX_FADV_DONTNEED)
                disk.seek(part["first"] * sector)
                label = parse_label(disk.read(4096))
            found.append(
                {
                    "number": part["number"], "name": part["name"], "path": path, "label": label,
                    "start": part["first"] * sector, "size": (part["last"] - part["first"] + 1) * sector,
                }
            )  # fmt: skip
        return found
    return []


def partition_name(sysfs):
    """Return a partition's name in its disk's table; the kernel does not know that of one added later."""
    disk = os.path.dirname(sysfs)
    with contextlib.suppress(OSError, ValueError), open(f"{sysfs}/partition", encoding="ascii") as file:
        number = int(file.read())
        parts = read_partitions(f"/dev/{os.path.basename(disk)}", disk)
        return next((part["name"] for part in parts if part["number"] == number), "")
    return ""


def partition_path(real, number):
    """Return the path of a disk's partition: /dev/sdb1, /dev/nvme0n1p1."""
    return f"{real}{'p' if real[-1].isdigit() else ''}{number}"


def slot_name(fsid, number=""):
    """Return the name of a partition that holds a journal, or how all begin: it says whose it is."""
    return f"cloudctl-{fsid[:8]}-{number}"


def our_slots(probe, fsid):
    """Return the journal partitions of a device that this cluster divided; None of any other."""
    parts = probe.get("partitions") or []
    if parts and all(part["name"].startswith(slot_name(fsid)) for part in parts):
        return parts
    return None


def plan_slots(size, slots, wanted, journal_size, minimum):
    """Decide where the journals that are still missing on a shared device go. Pure.

    Args:
        size: of the device, bytes.
        slots: its partitions; those without a label are free.
        wanted: how many journals more it is to hold.
        journal_size: bytes, 0 for equal parts.
        minimum: bytes.

    Returns:
        ``(free, new, problem)``: partitions to use, ``(start, size)`` in bytes of those to make, and why it
        can't be.
    """
    free = [slot for slot in slots if not slot["label"] and slot["size"] >= minimum][:wanted]
    more = wanted - len(free)
    if more <= 0:
        return free, [], ""
    rooms = gaps(size, slots)
    limits = [max(slot["size"] for slot in slots)] if slots else []
    limits += [journal_size // MIB * MIB] if journal_size else []
    part = largest_part([room for _start, room in rooms], more, min(limits, default=size))
    least = max(minimum, journal_size // MIB * MIB)
    if part < max(least, MIB):
        left = " + ".join(str(room // MIB) for _start, room in rooms) or "0"
        has = f"{left} MiB are free on it" if slots else f"it has {size // MIB} MiB"
        return (
            [],
            [],
            (
                f"it is too small: {has}, {more} journal{'s' if more > 1 else ''} of at least "
                f"{max(least, MIB) // MIB} MiB needed"
            ),
        )
    places = [(start + n * part, part) for start, room in rooms for n in range(room // part)]
    return free, places[:more], ""


def gaps(size, slots):
    """Return ``(start, size)`` in bytes of the room between and behind a device's partitions. Pure."""
    found, at = [], MIB  # partitions begin at multiples of 1 MiB, and the table takes one at either end
    taken = sorted((slot["start"], slot["start"] + slot["size"]) for slot in slots)
    for start, end in [*taken, (size - MIB, size)]:
        room = (start - at) // MIB * MIB
        if room > 0:
            found.append((at, room))
        at = max(at, -(-end // MIB) * MIB)
    return found


def largest_part(rooms, count, most):
    """Return the largest size, whole MiB up to ``most``, of which so many fit into rooms; 0 if none. Pure."""
    sizes = {min(room // n, most) // MIB * MIB for room in rooms for n in range(1, count + 1)}
    fitting = (part for part in sizes if part and sum(room // part for room in rooms) >= count)
    return max(fitting, default=0)


def same_devices(probes):
    """Return by path the other paths that lead to the same device, where there are any. Pure.

    Args:
        probes: ``(path, probe)`` of each device.
    """
    paths = {}
    for path, found in probes:
        if found.get("real"):
            paths.setdefault(found["real"], {})[path] = None
    return {one: [p for p in same if p != one] for same in paths.values() if len(same) > 1 for one in same}


def check_devices(
    data,
    journals,
    fsid,
    probe=probe_device,
    journal_size=0,
    journal_minimum=0,
    our_osds=(),
    only=(),
    leaving=(),
):
    """Return ``[{path, size, state, reason, role, osd_uuid}]`` for a node's data and journal devices.

    Args:
        data: paths of the data devices.
        journals: paths of their journal devices, in the same order, or none.
        our_osds: uuids of OSDs known to be ours, beside those on the data devices.
        only: the data devices that become OSDs now: a journal device needs room for theirs alone; none: all.
        leaving: uuids of OSDs whose journals will be free.
    """
    paths = list(dict.fromkeys(journals))
    probes = [(path, "data", probe(path)) for path in data] + [
        (path, "journal", probe(path)) for path in paths
    ]
    ours = {*our_osds} | {
        p["label"]["osd_uuid"]
        for _path, _role, p in probes
        if p.get("label") and p["label"]["ceph_fsid"] and p["label"]["ceph_fsid"] == fsid
    }
    by_path = {path: found for path, role, found in probes if role == "data"}
    same = same_devices((path, found) for path, _role, found in probes)
    results = []
    for path, role, found in probes:
        label = found.get("label") or {}
        item = {
            "path": path,
            "size": found.get("size", 0),
            "role": role,
            "osd_uuid": label.get("osd_uuid", ""),
        }
        if role == "journal":
            owners = [one for one, its in zip(data, journals, strict=False) if its == path]
            uuids = [
                (by_path[one].get("label") or {}).get("osd_uuid", "")
                for one in owners
                if not only or one in only
            ]
            state, reason = judge_journal(
                freed(found, leaving), fsid, ours, uuids,
                journal_size=journal_size, minimum=journal_minimum, owners=len(owners),
            )  # fmt: skip
            slots = our_slots(found, fsid)
            if slots is not None:
                item["slots"] = [
                    {
                        "path": slot["path"], "size": slot["size"],
                        "osd_uuid": (slot["label"] or {}).get("osd_uuid", ""),
                    }
                    for slot in slots
                ]  # fmt: skip
        else:
            state, reason = judge_device(found, fsid, ours)
            if state == "empty" and found.get("name", "").startswith(slot_name(fsid)):
                state, reason = "refused", "it is a part of a journal device of this cluster"
        if path in same and state != "refused":
            item["same_as"] = same[path]
            state, reason = "refused", f"it is the same device as {', '.join(same[path])}"
        results.append({**item, "state": state, "reason": reason})
    return results


def freed(probe, uuids):
    """Return a journal device as it will be when some OSDs' journals on it are erased. Pure."""

    def left(label):
        return None if label and label["osd_uuid"] in uuids else label

    parts = [{**part, "label": left(part["label"])} for part in probe.get("partitions") or ()]
    return {**probe, "label": left(probe.get("label")), "partitions": parts}


def journals_wanted(owners, lacking, slots):
    """Return for how many journals a shared device must have room. Pure.

    One that is to be made takes no more than its part of what the inventory shares between all of them.

    Args:
        owners: how many OSDs have their journal on it, as the inventory says.
        lacking: how many of those that are made now have none on it yet.
        slots: its partitions.
    """
    return max(lacking, owners - sum(1 for slot in slots if slot["label"]))


def is_shared(probe, fsid, owners, journal_size):
    """Return whether a journal device is, or is to be, divided into partitions. Pure.

    Args:
        owners: how many OSDs have their journal on it.
    """
    if not probe.get("whole", True):
        return False
    return our_slots(probe, fsid) is not None or owners > 1 or journal_size > 0


def judge_journal(probe, fsid, ours, uuids, journal_size=0, minimum=0, owners=0):
    """Decide what a journal device is; see ``judge_device``. Pure.

    Args:
        ours: uuids of this cluster's OSDs.
        uuids: of the OSDs that have their journal on it ("" for one that is not made yet).
        owners: how many OSDs there are to be on it, where others come later.
    """
    owners = max(owners, len(uuids))
    lacking = sum(1 for uuid in uuids if uuid not in ours)
    slots = our_slots(probe, fsid)
    if probe.get("error"):
        return judge_device(probe, fsid)
    if slots is not None:
        held = {(slot["label"] or {}).get("osd_uuid", "") for slot in slots}
        lacking = sum(1 for uuid in uuids if not uuid or uuid not in held)
        wanted = journals_wanted(owners, lacking, slots) if lacking else 0
        _free, _new, problem = plan_slots(probe["size"], slots, wanted, journal_size, minimum)
        return ("refused", problem) if problem else ("ours", f"journals of {len(held - {''})} OSDs")
    state, reason = judge_device(probe, fsid, ours)
    if state == "ours" and lacking:
        return "refused", f"all of it is the {reason}: another OSD can't share it"
    if state != "empty":
        return state, reason
    if owners > 1 and not probe.get("whole", True):
        return "refused", "it is a partition, which several OSDs can't share: name the whole device"
    if is_shared(probe, fsid, owners, journal_size):
        _free, _new, problem = plan_slots(probe["size"], [], max(1, owners), journal_size, minimum)
    else:
        too_small = uuids and probe["size"] < minimum
        problem = (
            f"it is too small: {probe['size'] // MIB} MiB, at least {minimum // MIB} MiB needed"
            if too_small
            else ""
        )
    return ("refused", problem) if problem else ("empty", "")


# --- preparing and erasing devices --------------------------------------------------------------------------


def assign_slots(data, journals, probes, fsid, journal_size=0, minimum=0, only=()):
    """Decide which journal each data device gets. Pure.

    Args:
        data, journals: the node's lists.
        probes: by path, as returned by ``probe_device``.
        only: the data devices that get one now; none: all.

    Returns:
        ``(places, new)``: by data device the path of its journal, or ``(journal device, number)`` of a
        partition that has to be made; and by journal device ``(start, size)`` of those partitions by number.

    Raises:
        CephFailure: a device has no room.
    """
    places, new = {}, {}
    for path in dict.fromkeys(journals):
        probe = probes[path]
        sharing = [one for one, its in zip(data, journals, strict=False) if its == path]
        owners = [one for one in sharing if not only or one in only]
        if not owners:
            continue
        if not is_shared(probe, fsid, len(sharing), journal_size) or probe.get("label"):
            places.update(dict.fromkeys(owners, probe["real"]))
            continue
        slots = our_slots(probe, fsid) or []
        held = {slot["label"]["osd_uuid"]: slot["path"] for slot in slots if slot["label"]}
        lacking = []
        for one in owners:
            uuid = (probes[one].get("label") or {}).get("osd_uuid", "")
            if uuid in held:
                places[one] = held[uuid]
            else:
                lacking.append(one)
        wanted = journals_wanted(len(sharing), len(lacking), slots) if lacking else 0
        free, made, problem = plan_slots(probe["size"], slots, wanted, journal_size, minimum)
        if problem:
            raise CephFailure(f"{path}: {problem}")
        free = free[: len(lacking)]
        made = made[: len(lacking) - len(free)]
        taken = {slot["number"] for slot in slots}
        numbers = [number for number in range(1, 129) if number not in taken][: len(made)]
        new[path] = dict(zip(numbers, made, strict=True))
        places.update(
            zip(lacking, [*(slot["path"] for slot in free), *((path, n) for n in numbers)], strict=True)
        )
    return places, new


def prepare_devices(data, journals, fsid, journal_size=0, minimum=0, probe=probe_device, run=None, only=()):
    """Give the devices their links, and shared journal devices their partitions.

    What an OSD already uses is left as it is. A device that may not be used is not touched either: whoever
    creates the OSD refuses it.

    Args:
        only: the data devices that become OSDs now; none: all.

    Returns:
        What was made, [{kind, action, name}].

    Raises:
        CephFailure: a device can't be used.
    """
    run = run or quiet
    probes = {path: probe(path) for path in dict.fromkeys([*data, *journals])}
    made = list(only or data)
    used = {*made, *(its for one, its in zip(data, journals, strict=False) if one in made)}
    problems = [
        f"{path}: {found['error']}" for path, found in probes.items() if path in used and found.get("error")
    ]
    for item in check_devices(data, journals, fsid, probes.get, journal_size, minimum, only=only):
        label = probes[item["path"]].get("label")
        unusable = item["role"] == "journal" and item["state"] == "refused" and not label
        if item["path"] in used and (unusable or item.get("same_as")):
            problems.append(f"{item['path']}: {item['reason']}")
    if problems:
        raise CephFailure(f"{'; '.join(problems)}. Nothing was changed")
    places, new = assign_slots(data, journals, probes, fsid, journal_size, minimum, only)
    done = []
    for path, parts in new.items():
        real = probes[path]["real"]
        if parts:
            make_partitions(real, parts, fsid, run)
        done += [
            {"kind": "partition", "action": "create", "name": partition_path(real, number)}
            for number in parts
        ]
    os.makedirs(LINKS, mode=0o755, exist_ok=True)
    for number, path in enumerate(data, start=1):
        if path not in made:
            continue
        targets = {"data": probes[path]["real"]}
        if path in places:
            place = places[path]
            targets["journal"] = (
                partition_path(probes[place[0]]["real"], place[1]) if isinstance(place, tuple) else place
            )
        for kind, target in targets.items():
            link(f"{LINKS}/{kind}-{number}", target)
    return done


def link(path, target):
    """Let a link point to a device."""
    with contextlib.suppress(OSError):
        if os.readlink(path) == target:
            return
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)


def make_partitions(real, parts, fsid, run):
    """Make partitions beside those that are there, and see to it that each has its node in /dev.

    Args:
        parts: ``(start, size)`` by number, bytes.

    Raises:
        CephFailure: the tool or the kernel refuses.
    """
    command = ["sgdisk"]
    for number, (start, size) in parts.items():
        command += [
            f"--new={number}:{start // MIB}M:+{size // MIB}M",
            f"--change-name={number}:{slot_name(fsid, number)}",
        ]
    rc, out = run([*command, real])
    for number in parts:
        # The kernel does not read the whole table anew while other partitions of the device are in use.
        run(["partx", "--add", "--nr", str(number), real])
    run(["udevadm", "settle", "--timeout=10"])
    for number in parts:
        if not os.path.exists(f"/sys/class/block/{os.path.basename(partition_path(real, number))}/dev"):
            raise CephFailure(
                f"{real}: no partition {number} came of {' '.join(command)} ({rc}: {out.strip()[-200:]})"
            )
    for entry in glob.glob(f"/sys/class/block/{os.path.basename(real)}/*/partition"):
        ensure_node(os.path.dirname(entry))


def ensure_node(sysfs):
    """Make a partition's node in /dev where nobody else does: without devtmpfs, as in a container."""
    path = f"/dev/{os.path.basename(sysfs)}"
    with open(f"{sysfs}/dev", encoding="ascii") as file:
        number = os.makedev(*map(int, file.read().split(":")))
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_rdev == number:
            return
        os.unlink(path)  # of an earlier reading of the table
    os.mknod(path, stat.S_IFBLK | 0o660, number)
    shutil.chown(path, 0, "disk")


def find_remains(data, journals, fsid, osds, probe=probe_device):
    """Return the paths that hold data of some OSDs, or why one may not be erased. Pure but for ``probe``.

    Journals come first: as long as a device has its label, whose it is can be told.

    Args:
        data: devices that were named to be erased: each must be one of those OSDs, or empty.
        journals: journal devices, which are searched for the OSDs' journals.
        osds: uuids.

    Raises:
        CephFailure: a named device holds something else.
    """
    found, problems = [], []
    for path in data:
        probed = probe(path)
        label = probed.get("label")
        if probed.get("error"):
            problems.append(f"{path}: {probed['error']}")
        elif label and label["osd_uuid"] in osds:
            found.append(probed["real"])
        elif label or judge_device(probed, fsid)[0] != "empty":
            why = f"it holds OSD {label['osd_uuid']}" if label else judge_device(probed, fsid)[1]
            problems.append(f"{path} is not a device of the OSDs that are to go: {why}")
    if problems:
        raise CephFailure(f"{'; '.join(problems)}. Nothing was erased")
    own = []
    for path in dict.fromkeys(journals):
        probed = probe(path)
        label = probed.get("label")
        if label and label["osd_uuid"] in osds:
            own.append(probed["real"])
        own += [
            part["path"]
            for part in our_slots(probed, fsid) or ()
            if part["label"] and part["label"]["osd_uuid"] in osds
        ]
    return own + found


def erase(path, osds):
    """Erase a device's labels, after one more look that it is one of those OSDs and that nobody uses it.

    Raises:
        CephFailure: it is in use, or it is another one.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        raise CephFailure(f"{path} can't be erased: {error.strerror}") from None
    try:
        label = parse_label(os.read(fd, 4096))
        if not label or label["osd_uuid"] not in osds:
            raise CephFailure(f"{path} is not a device of the OSDs that are to go. It was not erased")
        size = os.lseek(fd, 0, os.SEEK_END)
        # Newer releases keep copies of the label further behind.
        for start in (0, *(count << 30 for count in (1, 10, 100, 1000))):
            if start < size:
                os.pwrite(fd, bytes(min(10 * MIB if start == 0 else 4096, size - start)), start)
        os.pwrite(fd, bytes(min(MIB, size)), max(0, size - MIB))
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what is there, what is wanted: pure --------------------------------------------------------------------


def decide_cluster(fsid, local):
    """Decide from a node's files whether the cluster exists.

    Args:
        fsid: the wanted cluster's id.
        local: ``conf_fsid`` (in /etc/ceph/ceph.conf or None), ``data`` (/var/lib/ceph/<fsid> exists),
            ``osd_data`` (an OSD's directory is in it), ``marker`` (fsid of a bootstrap that did not finish),
            ``others`` (addresses of other monitors that answer).

    Returns:
        ``(state, reason)``: present, absent, interrupted, foreign or lost.
    """
    conf, marker = local.get("conf_fsid"), local.get("marker")
    if conf and conf != fsid:
        return "foreign", f"{ETC}/ceph.conf belongs to another cluster ({conf})"
    if marker and marker != fsid:
        return "foreign", f"{MARKER} names another cluster ({marker})"
    if marker:
        if local.get("others"):
            return (
                "lost",
                f"a bootstrap did not finish here, but {', '.join(local['others'])} answers as a monitor",
            )
        if local.get("osd_data"):
            return "lost", "a bootstrap did not finish here, but this node has OSDs"
        return "interrupted", "an earlier bootstrap did not finish"
    if conf and local.get("data"):
        return "present", ""
    if local.get("others"):
        return "lost", f"this node has no monitor, but {', '.join(local['others'])} answers as one"
    if local.get("data"):
        return "lost", f"{VAR}/{fsid} exists, but {ETC}/ceph.conf does not"
    if conf:
        return "lost", f"{ETC}/ceph.conf names the cluster, but {VAR}/{fsid} does not exist"
    return "absent", "there is no cluster"


_SIZE = re.compile(r"([0-9]+)([KMGTP])(i?B?)", re.IGNORECASE)


def normal(value):
    """Return an option's value in the form in which the monitors keep it, as far as that can be told."""
    text = str(value).strip()
    if text.lower() in ("true", "yes"):
        return "true"
    if text.lower() in ("false", "no"):
        return "false"
    match = _SIZE.fullmatch(text)
    if match:
        return str(int(match[1]) << (10 * ("KMGTP".index(match[2].upper()) + 1)))
    try:
        number = float(text)
        return str(int(number)) if number == int(number) else repr(number)
    except (ValueError, OverflowError):
        return text


def change(kind, name, action, reason):
    """Return one entry of the list of changes."""
    return {"kind": kind, "name": name, "action": action, "reason": reason}


def missing_osds(desired, state, checks=None):
    """Return the wanted OSDs that do not run on their device yet: [{host, data, journal}].

    A device's kernel name may differ from when its OSD was made (/dev/sdb, /dev/sdc swapped at boot), so a
    node that has as many OSDs as it should lacks none; where devices were checked, the OSD's id on the device
    tells which one it is. OSDs of ``before`` do not count: the wanted ones are made beside them.
    """
    before = set(desired.get("before") or ())
    known = {osd["uuid"] for osd in state["osds"]}
    running = {
        (host, item["path"])
        for host, items in (checks or {}).items()
        for item in items
        if item["state"] == "ours" and item["osd_uuid"] in known
    }
    wanted, missing = {}, []
    for osd in desired["osds"]:
        wanted.setdefault(osd["host"], []).append(osd)
    for host, osds in wanted.items():
        there = [osd for osd in state["osds"] if osd["host"] == host and osd["uuid"] not in before]
        used = {osd["device"] for osd in there}
        lacking = [osd for osd in osds if osd["data"] not in used and (host, osd["data"]) not in running]
        missing += lacking[: max(0, len(osds) - len(there))]
    return missing


def compare(desired, state, checks=None):
    """Return what has to change, in the order in which it is done.

    Args:
        desired: as built by ``cloudctl.ceph.build``.
        state: as returned by ``read_cluster``.
        checks: results of the device checks by node, where they were made.
    """
    return (
        _compare_config(desired, state)
        + _compare_clients(desired, state)
        + _compare_hosts(desired, state)
        + _compare_daemons(desired, state)
        + _compare_osds(desired, state, checks)
        + _compare_pools(desired, state)
    )


def _compare_config(desired, state):
    changes = []
    for section, options in desired["config"].items():
        for option, value in options.items():
            found = state["config"].get(section, {}).get(option)
            if found is None:
                changes.append(
                    change("config", f"{section}/{option}", "create", f"is not set, wanted {value}")
                )
            elif normal(found) != normal(value):
                changes.append(
                    change("config", f"{section}/{option}", "update", f"is {found}, wanted {value}")
                )
    return changes


def _compare_clients(desired, state):
    changes = []
    for client in desired["clients"]:
        name, found = client["name"], state["clients"].get(client["name"])
        if found is None:
            changes.append(change("client", name, "create", "does not exist"))
            continue
        reasons = []
        if found["caps"] != client["caps"]:
            reasons.append(f"capabilities are {_caps(found['caps'])}, wanted {_caps(client['caps'])}")
        if client.get("key_digest") and found["key_digest"] != client["key_digest"]:
            reasons.append("the key differs")
        if reasons:
            changes.append(change("client", name, "update", "; ".join(reasons)))
    return changes


def _caps(caps):
    return ", ".join(f"{daemon} '{cap}'" for daemon, cap in sorted(caps.items())) or "none"


def _compare_hosts(desired, state):
    changes = []
    for host in desired["hosts"]:
        found = state["hosts"].get(host["name"])
        if found is None:
            changes.append(change("host", host["name"], "create", "is not part of the cluster"))
            continue
        labels = sorted(set(host["labels"]) - set(found["labels"]))
        if found["addr"] != host["address"]:
            changes.append(
                change(
                    "host", host["name"], "update", f"address is {found['addr']}, wanted {host['address']}"
                )
            )
        elif labels:
            changes.append(change("host", host["name"], "update", f"lacks the label {', '.join(labels)}"))
    return changes


def _compare_daemons(desired, state):
    changes = []
    for kind, wanted in (("mon", [mon["name"] for mon in desired["mons"]]), ("mgr", desired["mgrs"])):
        placed = state["placement"].get(kind)
        if placed is None or sorted(placed) != sorted(wanted):
            found = "everywhere" if placed is None else ", ".join(sorted(placed)) or "nowhere"
            changes.append(
                change(kind, kind, "update", f"placed on {found}, wanted on {', '.join(sorted(wanted))}")
            )
    return changes


def _compare_osds(desired, state, checks):
    changes = [
        change("osd", f"{osd['host']}:{osd['data']}", "create", "no OSD runs on this device")
        for osd in missing_osds(desired, state, checks)
    ]
    if not changes:
        changes += [
            change("osd", name, "update", "specification of an interrupted deployment, no longer needed")
            for name in state["osd_specs"]
        ]
    return changes


def _compare_pools(desired, state):
    changes = []
    for pool in desired["pools"]:
        found = state["pools"].get(pool["name"])
        if found is None:
            changes.append(change("pool", pool["name"], "create", "does not exist"))
            continue
        reasons = [
            f"{key} is {found[key]}, wanted {pool[key]}"
            for key in ("size", "min_size")
            if found[key] != pool[key]
        ]
        if pool["application"] not in found["applications"]:
            reasons.append(f"is not marked for {pool['application']}")
        rule = wanted_rule(pool, found["rule"])
        if rule != found["rule"]:
            reasons.append(f"is placed by the rule {found['rule']}, wanted {rule}")
        if reasons:
            changes.append(change("pool", pool["name"], "update", "; ".join(reasons)))
    return [_refused_class(entry, desired, state) for entry in changes]


def wanted_rule(pool, found):
    """Return the name of the CRUSH rule that a pool is to have.

    Rules of ours are called as their device class. An operator's own rule stays where no class is wanted.
    """
    if pool.get("device_class"):
        return pool["device_class"]
    return DEFAULT_RULE if found in DEVICE_CLASSES else found


def _refused_class(entry, desired, state):
    """Refuse a pool whose class is on fewer hosts than it has copies, unless OSDs are still to be made."""
    pool = next(pool for pool in desired["pools"] if pool["name"] == entry["name"])
    hosts = state["classes"].get(pool.get("device_class"), [])
    if not pool.get("device_class") or len(hosts) >= pool["size"] or missing_osds(desired, state):
        return entry
    on = f"{', '.join(hosts)} only" if hosts else "no node"
    name, size = pool["device_class"], pool["size"]
    why = f"its {size} copies need as many nodes with OSDs of class {name}: there is one on {on}"
    return {**entry, "action": "refuse", "reason": why}


def refusals(changes, devices):
    """Turn the creation of OSDs on devices that may not be used into refusals.

    Args:
        changes: from ``compare``.
        devices: results of the device checks by node. A node without results is left as it is.

    Returns:
        The changes, with ``refuse`` in place of ``create`` for such OSDs.
    """
    result = []
    for entry in changes:
        if entry["kind"] == "osd" and entry["action"] == "create":
            host, _colon, path = entry["name"].partition(":")
            if host in devices:
                found = {item["path"]: item for item in devices[host]}.get(path)
                if found is None:
                    entry = {**entry, "action": "refuse", "reason": "the device was not checked"}
                elif found["state"] == "refused":
                    entry = {**entry, "action": "refuse", "reason": found["reason"]}
        result.append(entry)
    return result


def adopt_unstarted(checks, new_osds, uuids=None):
    """Return the device checks as the monitors' list of OSDs makes them look.

    A power cut while an OSD is being formatted leaves a label without the cluster's id, which the check on
    the node can only refuse. The monitors know better: they list the OSD's id as new, never started. And a
    device whose OSD they do not list at all is no OSD of theirs any more, whatever its label says.

    Args:
        uuids: of all OSDs that the monitors list; None where that is not known.
    """
    fresh = {osd["uuid"] for osd in new_osds if osd["uuid"]}

    def judged(item):
        uuid = item["osd_uuid"]
        if item["state"] == "refused" and uuid in fresh:
            return {**item, "state": "ours", "reason": f"OSD {uuid}, never started"}
        if item["state"] == "ours" and uuid and uuids is not None and uuid not in uuids:
            reason = f"it holds OSD {uuid}, which this cluster does not have any more: erase it first"
            return {**item, "state": "refused", "reason": reason}
        return item

    return {host: [judged(item) for item in items] for host, items in checks.items()}


def osd_specs(missing, checks):
    """Return cephadm's specifications for the missing OSDs, hosts with the same devices together.

    Args:
        missing: from ``missing_osds``.
        checks: results of the device checks by node.

    Returns:
        ``(specs, refused)``; refused holds a line for each OSD whose devices were not checked or may not be
        used. cephadm formats whatever a path names, file system or not: only this check stands before it.
    """
    usable, refused = {}, []
    for osd in missing:
        host = osd["host"]
        found = {item["path"]: item for item in checks.get(host, ())}
        problems = []
        for path in filter(None, (osd["data"], osd["journal"])):
            item = found.get(path)
            if item is None:
                problems.append(f"{host}: {path} was not checked")
            elif item["state"] == "refused":
                problems.append(f"{host}: {path} is refused: {item['reason']}")
            elif not item.get("prepared"):
                # Its link may be an older one, and lead anywhere.
                problems.append(f"{host}: {path} was not prepared in this run")
        if problems:
            refused += problems
        else:
            usable.setdefault(host, []).append(osd)
    groups = {}
    for host, osds in usable.items():
        # One specification has one class, and journals for all its OSDs or for none.
        for kind in sorted({(not osd["journal"], osd.get("device_class") or "") for osd in osds}):
            numbers = tuple(
                osd["slot"] for osd in osds if (not osd["journal"], osd.get("device_class") or "") == kind
            )
            groups.setdefault((numbers, *kind), []).append(host)
    specs = []
    for (numbers, plain, device_class), hosts in groups.items():
        # Links that are the same on every node: the orchestrator makes the OSDs of one specification on
        # all its hosts at the same time.
        spec = {"method": "raw", "data_devices": {"paths": [f"{LINKS}/data-{number}" for number in numbers]}}
        if not plain:
            spec["db_devices"] = {"paths": [f"{LINKS}/journal-{number}" for number in numbers]}
        if device_class:
            spec["crush_device_class"] = device_class
        suffix = "-plain" if plain else ""
        specs.append(
            {
                "service_type": "osd",
                "service_id": f"{SPEC_PREFIX}{hosts[0]}{suffix}{'-' if device_class else ''}{device_class}",
                "placement": {"hosts": hosts},
                "spec": spec,
            }
        )
    return specs, refused


def initial_config(desired):
    """Return the configuration file that bootstrap starts with; the monitors keep it from then on."""
    lines = []
    for section, options in desired["config"].items():
        if "/" not in section:  # masks are for the monitors' database only
            lines += [f"[{section}]"] + [f"{option} = {value}" for option, value in options.items()]
    return "\n".join(lines) + "\n"


def complaints(status):
    """Return the health checks that a deployment waits for: {name: message}."""
    checks = (status.get("health") or {}).get("checks") or {}
    return {
        name: check.get("summary", {}).get("message", "")
        for name, check in sorted(checks.items())
        if name not in HARMLESS and not check.get("muted")
    }


def absent_daemons(desired, status):
    """Return what a cluster's status (``ceph status``) lacks in daemons, one line each."""
    waiting = []
    quorum = set(status.get("quorum_names") or ())
    absent = [mon["name"] for mon in desired["mons"] if mon["name"] not in quorum]
    if absent:
        waiting.append(f"monitors not in the quorum: {', '.join(absent)}")
    managers = status.get("mgrmap") or {}
    running = int(bool(managers.get("available"))) + int(managers.get("num_standbys") or 0)
    if running < len(desired["mgrs"]):
        waiting.append(f"managers running: {running} of {len(desired['mgrs'])}")
    osdmap = status.get("osdmap") or {}
    up = int(osdmap.get("num_up_osds") or 0)
    if up < len(desired["osds"]):
        waiting.append(f"OSDs up: {up} of {len(desired['osds'])}")
    return waiting


def unfinished(desired, status, changes, before=()):
    """Return what is to be waited for, one line each; empty when all is well.

    Args:
        desired: the wanted cluster.
        status: answer of ``ceph status``.
        changes: what was changed; a cluster with a node down must not hold up a new option or client.
        before: names of health checks that complained already before the first change.
    """
    waiting = []
    if {entry["kind"] for entry in changes} & {"cluster", "host", "mon", "mgr", "osd"}:
        waiting += absent_daemons(desired, status)
    found = complaints(status)
    return waiting + [f"{name}: {found[name]}" for name in found if name not in before]


def health_text(status):
    """Return a cluster's health as one line."""
    health = status.get("health") or {}
    checks = [
        f"{name}: {c.get('summary', {}).get('message', '')}"
        for name, c in (health.get("checks") or {}).items()
    ]
    return "; ".join([health.get("status", "unknown"), *checks])


def has_devices(service):
    """Return whether an OSD service, as exported by the orchestrator, still claims devices."""
    return bool((service.get("spec") or {}).get("data_devices") or service.get("data_devices"))


def class_hosts(tree):
    """Return by device class the hosts that have an OSD of it, from ``osd tree``."""
    classes, found = {}, {}
    for node in tree.get("nodes") or ():
        if node.get("type") == "osd":
            classes[node["id"]] = node.get("device_class", "")
    for node in tree.get("nodes") or ():
        if node.get("type") == "host":
            for child in node.get("children") or ():
                if classes.get(child):
                    found.setdefault(classes[child], set()).add(node["name"])
    return {name: sorted(hosts) for name, hosts in found.items()}


def parse_state(answers, clients):
    """Return the cluster's state from the monitors' and the orchestrator's answers (all decoded JSON)."""
    dump, metadata, config, mgrs, status, hosts, services = (
        answers[key]
        for key in ("osd dump", "osd metadata", "config dump", "mgr metadata", "status", "hosts", "services")
    )
    rules = {rule["rule_id"]: rule["rule_name"] for rule in answers.get("rules") or ()}
    sections = {}
    for entry in config:
        section = "/".join(filter(None, (entry["section"], entry.get("mask"))))
        sections.setdefault(section, {})[entry["name"]] = entry["value"]
    placement, specs = {}, []
    for service in services:
        kind = service.get("service_type")
        if kind in ("mon", "mgr"):
            found = (service.get("placement") or {}).get("hosts")
            placement[kind] = (
                [h if isinstance(h, str) else h.get("hostname", "") for h in found] if found else None
            )
        elif kind == "osd" and service.get("service_id", "").startswith(SPEC_PREFIX) and has_devices(service):
            # A service without a specification is listed too, as long as its daemons run.
            specs.append(f"osd.{service['service_id']}")
    where = {entry["id"]: entry for entry in metadata if entry.get("hostname")}
    uuids = {osd["osd"]: osd["uuid"] for osd in dump["osds"]}
    return {
        "config": sections,
        "clients": clients,
        "hosts": {h["hostname"]: {"addr": h.get("addr", ""), "labels": h.get("labels") or []} for h in hosts},
        "placement": placement,
        "osd_specs": specs,
        "osds": [
            {
                "id": number,
                "uuid": uuids.get(number, ""),
                "host": entry["hostname"],
                "device": entry.get("bluestore_bdev_partition_path")
                or f"/dev/{entry.get('bluestore_bdev_dev_node', '')}",
                "journal": entry.get("bluefs_db_partition_path", ""),
            }
            for number, entry in where.items()
        ],
        "uuids": sorted(filter(None, uuids.values())),
        # Made by `osd new` but never started: what an interrupted creation leaves.
        "new_osds": [
            {"id": osd["osd"], "uuid": osd["uuid"]}
            for osd in dump["osds"]
            if "new" in osd.get("state", ()) and not osd.get("up") and osd["osd"] not in where
        ],
        "pools": {
            pool["pool_name"]: {
                "size": pool["size"],
                "min_size": pool["min_size"],
                "applications": sorted(pool.get("application_metadata") or {}),
                "rule": rules.get(pool.get("crush_rule"), ""),
            }
            for pool in dump["pools"]
        },
        "rules": sorted(rules.values()),
        "classes": class_hosts(answers.get("tree") or {}),
        "managers": [entry.get("hostname", "") for entry in mgrs],
        "status": status,
    }


# --- talking to Ceph ----------------------------------------------------------------------------------------

AGENT = r"""
import json, sys
request = json.load(sys.stdin)
try:
    import rados
    cluster = rados.Rados(conffile="/etc/ceph/ceph.conf", rados_id="admin",
                          conf={"key": request["key"], "keyring": "/dev/null", **request["options"]})
    cluster.connect()
except Exception as error:
    json.dump({"error": str(error)}, sys.stdout)
    sys.exit(0)
answers = []
for step in request["steps"]:
    try:
        if step["to"] == "rbd":
            import rbd
            with cluster.open_ioctx(step["cmd"]["pool"]) as pool:
                rbd.RBD().pool_init(pool, True)
            rc, out, err = 0, "", ""
        else:
            call = cluster.mgr_command if step["to"] == "mgr" else cluster.mon_command
            rc, out, err = call(json.dumps(step["cmd"]), step.get("in", "").encode(), timeout=step["timeout"])
            out = out.decode("utf-8", "replace")
    except Exception as error:
        rc, out, err = -5, "", str(error) or type(error).__name__
    answers.append({"rc": rc, "out": out, "err": err})
    if rc and not step.get("may_fail"):
        break
json.dump({"answers": answers}, sys.stdout)
sys.stdout.flush()
import os
os._exit(0)  # the library's own threads may hang when a manager has gone away
"""
"""Runs in a Ceph container: connects once, carries out a list of commands, answers in JSON.

The key and the commands come by standard input, so that neither shows in a process list.
"""


def quiet(command, timeout=60):
    """Run a command; return ``(rc, stdout)``; rc 127 when it does not exist, 124 when it takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def step(prefix, to="mon", inbuf="", timeout=30, may_fail=False, **arguments):
    """Return one command for the agent."""
    return {
        "to": to,
        "cmd": {"prefix": prefix, "format": "json", **arguments},
        "in": inbuf,
        "timeout": timeout,
        "may_fail": may_fail,
    }


class Ceph:
    """Carries out monitor and manager commands through a container on this node.

    Args:
        fsid: the cluster's id.
        node: this node's name.
        image: used where this node's monitor does not run.
    """

    def __init__(self, fsid, node, image):
        self.fsid = fsid
        self.container = f"ceph-{fsid}-mon-{node}".replace(".", "-")
        self.image = image

    def call(self, steps, connect_timeout=10):
        """Carry out steps in one process.

        Returns:
            One ``{rc, out, err}`` a step; fewer when one failed that may not.

        Raises:
            Unanswered: no monitor answered.
        """
        limit = connect_timeout + sum(item["timeout"] for item in steps) + 15
        request = json.dumps({"key": admin_key(), "options": rados_options(connect_timeout), "steps": steps})
        tool = "/usr/bin/python3"
        commands = [
            ["docker", "exec", "-i", self.container, tool, "-c", AGENT],
            ["docker", "run", "--rm", "-i", "--network", "host", "--entrypoint", tool,
             "-v", f"{ETC}:{ETC}:ro", self.image, "-c", AGENT],
        ]  # fmt: skip
        problem = ""
        for command in commands:
            try:
                done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=limit)
            except subprocess.TimeoutExpired:
                problem = f"no answer within {limit} s"
                continue
            except FileNotFoundError:
                raise Unanswered("docker is not installed on this node") from None
            try:
                answer = json.loads(done.stdout)
            except ValueError:
                problem = (done.stderr.strip().splitlines() or ["no answer"])[-1]
                continue
            if "answers" in answer:
                return answer["answers"]
            problem = answer.get("error", "no answer")
        raise Unanswered(f"Ceph does not answer: {problem}")

    def do(self, steps, what):
        """Carry out steps that must all succeed.

        Raises:
            CephFailure: with what was tried and Ceph's reason.
        """
        answers = self.call(steps)
        for asked, answer in zip(steps, answers, strict=False):
            if answer["rc"] and not asked["may_fail"]:
                reason = (answer["err"] or answer["out"]).strip() or f"error {answer['rc']}"
                raise CephFailure(f"{what}: {reason}")
        return answers


def admin_key():
    """Return the administrator's key from this node's keyring.

    Raises:
        Unanswered: there is none.
    """
    try:
        with open(KEYRING, encoding="utf-8") as file:
            match = re.search(r"^\s*key\s*=\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        match = None
    if not match:
        raise Unanswered(f"this node has no key for Ceph ({KEYRING})")
    return match[1]


def read_cluster(ceph, desired):
    """Read the whole state in one process; see ``parse_state``.

    Raises:
        Unanswered: monitors or orchestrator do not answer.
    """
    questions = {
        "osd dump": step("osd dump"),
        "osd metadata": step("osd metadata"),
        "config dump": step("config dump"),
        "mgr metadata": step("mgr metadata"),
        "status": step("status"),
        "rules": step("osd crush rule dump"),
        "tree": step("osd tree"),
        "hosts": step("orch host ls", to="mgr", timeout=20),
        "services": step("orch ls", to="mgr", timeout=20, export=True),
    }
    for item in questions.values():
        item["may_fail"] = True
    names = [client["name"] for client in desired["clients"]]
    keys = [step("auth get", entity=f"client.{name}", may_fail=True) for name in names]
    answers = ceph.call([*keys, *questions.values()])
    clients = {}
    for name, answer in zip(names, answers, strict=False):
        if answer["rc"] == 0:
            for entry in json.loads(answer["out"]):
                clients[name] = {
                    "caps": entry["caps"],
                    "key_digest": key_digest(desired["fsid"], entry["key"]),
                }
    decoded = {}
    for question, answer in zip(questions, answers[len(names) :], strict=False):
        if answer["rc"]:
            raise Unanswered(
                f"Ceph does not answer '{questions[question]['cmd']['prefix']}': {answer['err'].strip()}"
            )
        try:
            decoded[question] = json.loads(answer["out"])
        except ValueError:
            decoded[question] = []  # "No services reported" and the like
    return parse_state(decoded, clients)


def key_digest(fsid, key):
    """Return what ``cloudctl.ceph`` makes of a key, to compare keys without telling them."""
    return hashlib.sha256(f"{fsid}:{key}".encode()).hexdigest()[:32]


def read_local(desired):
    """Read what this node's files say about the cluster; see ``decide_cluster``."""
    fsid = desired["fsid"]
    conf_fsid = marker = None
    with contextlib.suppress(OSError), open(f"{ETC}/ceph.conf", encoding="utf-8") as file:
        match = re.search(r"^\s*fsid\s*=\s*(\S+)", file.read(), re.MULTILINE)
        conf_fsid = match[1] if match else None
    with contextlib.suppress(OSError), open(MARKER, encoding="utf-8") as file:
        marker = file.read().strip() or None
    return {
        "conf_fsid": conf_fsid,
        "marker": marker,
        "data": os.path.isdir(f"{VAR}/{fsid}"),
        "osd_data": bool(glob.glob(f"{VAR}/{fsid}/osd.*")),
        "others": [],
    }


def other_monitors(desired, me):
    """Return which of the other monitors' addresses answer."""
    found = []
    for mon in desired["mons"]:
        if mon["name"] != me:
            with contextlib.suppress(OSError), socket.create_connection((mon["address"], 3300), timeout=1):
                found.append(mon["address"])
    return found


def find_cluster(desired):
    """Return ``(state, reason)`` of ``decide_cluster`` for this node."""
    local = read_local(desired)
    state, reason = decide_cluster(desired["fsid"], local)
    if state in ("absent", "interrupted"):
        local["others"] = other_monitors(desired, desired["mons"][0]["name"])
        state, reason = decide_cluster(desired["fsid"], local)
    return state, reason


# --- observe ------------------------------------------------------------------------------------------------


def everything(desired, reason):
    """Return the changes that a new cluster means."""
    return (
        [change("cluster", "ceph", "create", reason)]
        + [change("host", host["name"], "create", "new cluster") for host in desired["hosts"]]
        + [change("mon", mon["name"], "create", "new cluster") for mon in desired["mons"]]
        + [change("mgr", name, "create", "new cluster") for name in desired["mgrs"]]
        + [change("osd", f"{osd['host']}:{osd['data']}", "create", "new cluster") for osd in desired["osds"]]
        + [change("client", client["name"], "create", "new cluster") for client in desired["clients"]]
        + [change("pool", pool["name"], "create", "new cluster") for pool in desired["pools"]]
    )


def observe(desired, devices):
    """Return what differs, without changing anything."""
    state, reason = find_cluster(desired)
    result = {"cluster": state, "health": "", "notes": [], "changes": []}
    if state in ("absent", "interrupted"):
        result["changes"] = refusals(everything(desired, reason), devices)
        return result
    if state != "present":
        result["changes"] = [change("cluster", "ceph", "refuse", reason)]
        return result
    try:
        found = read_cluster(Ceph(desired["fsid"], desired["mons"][0]["name"], desired["image"]), desired)
    except Unanswered as error:
        result.update(cluster="unreachable", changes=[change("cluster", "ceph", "update", str(error))])
        return result
    devices = adopt_unstarted(devices, found["new_osds"], found["uuids"])
    result["changes"] = refusals(compare(desired, found, devices), devices)
    result["health"] = health_text(found["status"])
    result["notes"] = notes(desired, found)
    return result


def notes(desired, state):
    """Return what deserves a word but is another command's business."""
    found = []
    image = state["config"].get("global", {}).get("container_image", "")
    if desired["image"] and image and image != desired["image"]:
        found.append(
            f"Ceph runs {image}, the site names {desired['image']}: an upgrade is a command of its own"
        )
    extra = sorted(set(state["hosts"]) - {host["name"] for host in desired["hosts"]})
    if extra:
        found.append(f"in the cluster but not in the inventory: {', '.join(extra)}")
    return found


# --- apply --------------------------------------------------------------------------------------------------


class Applier:
    """Brings the cluster to its desired state.

    Args:
        desired, secrets, devices: as in the module's options.
        timeout: seconds without progress before giving up.
        settle: wait for the cluster's health.
    """

    POLL = 3  # seconds between two looks at the cluster
    STALL = 45  # seconds without a new OSD before the orchestrator is helped along

    def __init__(self, desired, secrets, devices, timeout, settle=True):
        self.settle = settle
        self.desired, self.secrets, self.devices, self.timeout = desired, secrets, devices, timeout
        self.node = desired["mons"][0]["name"]
        self.ceph = Ceph(desired["fsid"], self.node, desired["image"])
        self.started = self.stepped = time.monotonic()
        self.seconds = {}
        self.done = []
        self.before = set()

    def say(self, text):
        """Write a line of progress."""
        with contextlib.suppress(OSError), open(PROGRESS, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

    def lap(self, name):
        """Record how long a step took, in seconds."""
        now = time.monotonic()
        self.seconds[name] = round(now - self.stepped, 1)
        self.stepped = now

    def run(self):
        """Do everything that is missing; return the module's result."""
        state, reason = find_cluster(self.desired)
        if state in ("foreign", "lost"):
            raise CephFailure(f"{reason}. Nothing was changed")
        if state in ("absent", "interrupted"):
            self.refuse_old_data()
            self.refuse_devices(self.desired["osds"])
            self.bootstrap(state)
            self.done.append(change("cluster", "ceph", "create", reason))
            self.lap("bootstrap")
        found = self.wait_for_answers()
        if not self.done:
            self.before = set(complaints(found["status"]))
        self.devices = adopt_unstarted(self.devices, found["new_osds"], found["uuids"])
        self.refuse_devices(missing_osds(self.desired, found, self.devices))
        self.apply_config(found)
        self.apply_clients(found)
        self.lap("config and keys")
        self.apply_hosts(found)
        self.lap("hosts")
        self.apply_daemons(found)
        self.apply_osds(found)
        self.lap("osds")
        self.apply_pools(found)
        if self.done and self.settle:
            self.wait_for_health()
            self.lap("health")
        found = self.wait_for_answers()
        self.say("done" if self.done else "nothing to do")
        return {
            "changed": bool(self.done),
            "changes": self.done,
            "cluster": "present",
            "health": health_text(found["status"]),
            "notes": notes(self.desired, found),
            "seconds": {**self.seconds, "total": round(time.monotonic() - self.started, 1)},
        }

    def wait_for_answers(self):
        """Return the cluster's state as soon as monitors and orchestrator answer."""
        deadline = time.monotonic() + min(self.timeout, 180)
        while True:
            try:
                return read_cluster(self.ceph, self.desired)
            except Unanswered as error:
                if time.monotonic() > deadline:
                    raise
                self.say(f"waiting: {error}")
                time.sleep(self.POLL)

    # - bootstrap -

    def refuse_old_data(self):
        """Refuse to make a cluster whose OSDs already exist: its monitors were lost, not never made."""
        old = [
            f"{host}:{i['path']}"
            for host, items in self.devices.items()
            for i in items
            if i["state"] == "ours"
        ]
        if old:
            raise CephFailure(
                f"this cluster's OSDs exist ({', '.join(old[:4])}), but no monitor does: restore a monitor's "
                "data, a new cluster could not read them. Nothing was changed"
            )

    def refuse_devices(self, missing):
        """Refuse to start when an OSD could not be made on its devices."""
        _specs, refused = osd_specs(missing, self.devices)
        if refused:
            raise CephFailure(f"{'; '.join(refused)}. Nothing was changed")

    def bootstrap(self, state):
        """Make the cluster's first monitor and manager."""
        desired, fsid = self.desired, self.desired["fsid"]
        if socket.gethostname() != self.node:
            raise CephFailure(
                f"this node is called {socket.gethostname()}, the inventory calls it {self.node}"
            )
        if state == "interrupted":
            self.clean_up_bootstrap()
        write(MARKER, fsid + "\n", 0o600)
        self.say(f"bootstrap of cluster {fsid} with {desired['image']}")
        # In /run: memory, gone with a power loss.
        temporary = tempfile.mkdtemp(prefix=TMP_PREFIX, dir="/run")
        try:
            paths = {
                "config": (f"{temporary}/initial.conf", initial_config(desired)),
                "ssh-private-key": (f"{temporary}/key", self.secrets["ssh_private_key"]),
                "ssh-public-key": (f"{temporary}/key.pub", self.secrets["ssh_public_key"]),
            }
            for path, content in paths.values():
                write(path, content, 0o600)
            command = [
                "cephadm", "--image", desired["image"], "--docker", "bootstrap", "--fsid", fsid,
                "--mon-ip", desired["mons"][0]["address"], "--ssh-user", "root",
                "--skip-monitoring-stack", "--skip-dashboard", "--skip-firewalld", "--skip-prepare-host",
            ]  # fmt: skip
            if desired["cluster_network"]:
                command += ["--cluster-network", desired["cluster_network"]]
            for option, (path, _content) in paths.items():
                command += [f"--{option}", path]
            # The shell removes the marker, so that a bootstrap that succeeds after its module was killed
            # counts. It inherits the lock: the next run waits for it.
            with open(BOOTSTRAP_LOG, "w", encoding="utf-8", opener=private) as log:
                done = subprocess.run(
                    ["/bin/sh", "-c", '"$@" && rm -f "$MARKER"', "sh", *command],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, "MARKER": MARKER}, pass_fds=[LOCK_FD] if LOCK_FD is not None else [],
                )  # fmt: skip
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # Its log names keys that cephadm makes; nobody but root needs to read it.
        with contextlib.suppress(OSError):
            os.chmod("/var/log/ceph/cephadm.log", 0o600)
        if done.returncode:
            raise CephFailure(
                f"cephadm could not make the cluster: {last_error(BOOTSTRAP_LOG)} (all in {BOOTSTRAP_LOG})"
            )
        self.say("first monitor and manager run")

    def clean_up_bootstrap(self):
        """Remove what our own interrupted bootstrap left. It never comes to this once an OSD may exist."""
        fsid = self.desired["fsid"]
        with contextlib.suppress(Unanswered):
            (answer,) = self.ceph.call([step("osd dump")])
            if answer["rc"] == 0 and json.loads(answer["out"])["max_osd"] > 0:
                raise CephFailure(
                    f"a bootstrap did not finish, but the cluster has OSDs: look at it, remove {MARKER}"
                )
        self.say("an earlier bootstrap did not finish: removing what it left, there were no OSDs yet")
        done = subprocess.run(
            ["cephadm", "--docker", "rm-cluster", "--force", "--fsid", fsid],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["unknown"])[-1]
            raise CephFailure(f"the rest of an interrupted bootstrap could not be removed: {reason}")
        for path in (f"{ETC}/ceph.conf", KEYRING, f"{ETC}/ceph.pub"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # - what the monitors keep -

    def record(self, changes):
        """Remember what was done."""
        for entry in changes:
            self.say(f"{entry['kind']} {entry['name']}: {entry['reason']}")
        self.done += changes

    def apply_config(self, found):
        """Set the options that differ."""
        changes = _compare_config(self.desired, found)
        steps = []
        for entry in changes:
            # An option may hold slashes (mgr/cephadm/…), and so may a section (osd/class:ssd).
            section = next(s for s in self.desired["config"] if entry["name"].startswith(f"{s}/"))
            for candidate in self.desired["config"]:
                if entry["name"].startswith(f"{candidate}/") and len(candidate) > len(section):
                    section = candidate
            option = entry["name"][len(section) + 1 :]
            value = self.desired["config"][section][option]
            steps.append(step("config set", who=section, name=option, value=value))
        if steps:
            self.ceph.do(steps, "setting options")
        self.record(changes)

    def apply_clients(self, found):
        """Give every client its key and capabilities."""
        keys = self.secrets.get("client_keys", {})
        changes = _compare_clients(self.desired, found)
        names = {entry["name"] for entry in changes}
        steps = []
        for client in self.desired["clients"]:
            if client["name"] in names:
                caps = "".join(f'\tcaps {daemon} = "{cap}"\n' for daemon, cap in client["caps"].items())
                keyring = f"[client.{client['name']}]\n\tkey = {keys[client['name']]}\n{caps}"
                steps.append(step("auth import", inbuf=keyring))
        if steps:
            self.ceph.do(steps, "importing client keys")
        self.record(changes)

    def apply_hosts(self, found):
        """Add the nodes, each checked by the orchestrator over SSH."""
        for entry in _compare_hosts(self.desired, found):
            host = next(host for host in self.desired["hosts"] if host["name"] == entry["name"])
            labels = sorted(set(host["labels"]) | set(found["hosts"].get(host["name"], {}).get("labels", ())))
            spec = {
                "service_type": "host",
                "hostname": host["name"],
                "addr": host["address"],
                "labels": labels,
            }
            self.orchestrate([spec], f"adding {host['name']} to Ceph")
            self.record([entry])

    def orchestrate(self, specs, what):
        """Hand specifications to the orchestrator, again while it is not ready (a manager just started)."""
        text = "\n---\n".join(json.dumps(spec) for spec in specs)
        for attempt in range(4):
            (answer,) = self.ceph.call([step("orch apply", to="mgr", inbuf=text, timeout=120)])
            if answer["rc"] == 0:
                return
            reason = (answer["err"] or answer["out"]).strip()
            self.say(f"{what}: {reason.splitlines()[0] if reason else 'no answer'}")
            if attempt < 3:
                time.sleep(5)
        raise CephFailure(f"{what}: {reason or 'the orchestrator does not answer'}")

    def apply_daemons(self, found):
        """Place monitors and managers."""
        changes = _compare_daemons(self.desired, found)
        if not changes:
            return
        placed = {"mon": [mon["name"] for mon in self.desired["mons"]], "mgr": self.desired["mgrs"]}
        specs = [
            {"service_type": entry["kind"], "placement": {"hosts": placed[entry["kind"]]}}
            for entry in changes
        ]
        self.orchestrate(specs, "placing monitors and managers")
        self.record(changes)

    # - OSDs -

    def apply_osds(self, found):
        """Create missing OSDs on devices that were checked, wait for them, and take the specifications back.

        A specification that stayed would let the orchestrator format whatever appears under a device's name
        later, without our check; OSDs run on without one.
        """
        missing = missing_osds(self.desired, found, self.devices)
        if not missing and not found["osd_specs"]:
            return
        specs, _refused = osd_specs(missing, self.devices)
        if missing:
            changes = [entry for entry in _compare_osds(self.desired, found, self.devices)]
            self.orchestrate(specs, "creating OSDs")
            for entry in changes:
                self.say(f"{entry['kind']} {entry['name']}: being created")
            found = self.wait_for_osds(specs)
            self.record(changes)
        leftovers = sorted(found["osd_specs"])
        self.release(leftovers)
        if not missing:
            self.record(
                [change("osd", name, "update", "specification no longer needed") for name in leftovers]
            )

    def release_finished(self, specs, missing):
        """Take back the specifications whose OSDs all run; return the others."""
        hosts = {osd["host"] for osd in missing}
        finished = [spec for spec in specs if not hosts & set(spec["placement"]["hosts"])]
        self.release([f"osd.{spec['service_id']}" for spec in finished])
        return [spec for spec in specs if spec not in finished]

    def release(self, names):
        """Take OSD specifications back."""
        steps = [step("orch rm", to="mgr", service_name=name, force=True, may_fail=True) for name in names]
        if steps:
            self.ceph.call(steps)

    def wait_for_osds(self, specs):
        """Return the state once no OSD is missing; help where the orchestrator stopped half-way."""
        left, moved, helps = None, time.monotonic(), 0
        while True:
            time.sleep(self.POLL)
            try:
                found = read_cluster(self.ceph, self.desired)
            except Unanswered as error:
                self.say(f"waiting: {error}")
                if time.monotonic() - moved > self.timeout:
                    raise
                continue
            missing = missing_osds(self.desired, found, self.devices)
            if not missing:
                return found
            if left is None or len(missing) < left:
                left, moved, helps = len(missing), time.monotonic(), 0
                self.say(f"OSDs: {len(self.desired['osds']) - left} of {len(self.desired['osds'])}")
                # The orchestrator would go through finished ones again and again, a quarter of a minute each.
                specs = self.release_finished(specs, missing)
            stalled = time.monotonic() - moved
            if stalled > self.timeout:
                raise CephFailure(
                    f"{left} OSDs were not created within {self.timeout} s: "
                    + ", ".join(f"{osd['host']}:{osd['data']}" for osd in missing)
                    + f". {self.orchestrator_events(specs)}"
                )
            if stalled > self.STALL * (helps + 1):
                helps += 1
                self.help(found, missing, specs, helps)

    def help(self, found, missing, specs, times):
        """Go on where a manager's or node's failure interrupted the creation of an OSD."""
        hosts = sorted({osd["host"] for osd in missing})
        self.say(f"no new OSD for {self.STALL * times} s: {', '.join(hosts)}")
        if times > 1:
            self.discard_unstarted(found, missing)
        self.ceph.call(
            [
                step("cephadm osd activate", to="mgr", host=hosts, timeout=180, may_fail=True),
                step("orch device ls", to="mgr", hostname=hosts, refresh=True, may_fail=True),
            ]
        )
        self.orchestrate(specs, "creating OSDs")

    def discard_unstarted(self, found, missing):
        """Erase devices of OSDs that were half made and never started: they never held anyone's data.

        Only a device whose label carries the id of an OSD that the monitors list as never started counts, and
        `osd purge-new` itself refuses any other.
        """
        fresh = {osd["uuid"]: osd["id"] for osd in found["new_osds"]}
        for osd in missing:
            items = {item["path"]: item for item in self.devices.get(osd["host"], ())}
            data = items.get(osd["data"], {})
            if data.get("state") == "ours" and data.get("osd_uuid") in fresh:
                number = fresh[data["osd_uuid"]]
                self.say(f"osd.{number} on {osd['host']} was never started: making it anew")
                paths = [
                    p for p in (osd["data"], osd["journal"]) if p and items[p]["osd_uuid"] == data["osd_uuid"]
                ]
                slots = [
                    slot["path"]
                    for slot in items.get(osd["journal"], {}).get("slots") or ()
                    if slot["osd_uuid"] == data["osd_uuid"]
                ]
                zap = [
                    step(
                        "orch device zap", to="mgr", hostname=osd["host"], path=path, force=True, timeout=120
                    )
                    for path in [*paths, *slots]
                ]
                purge = step("osd purge-new", id=number, yes_i_really_mean_it=True)
                self.ceph.do([*zap, purge], f"removing the half-made osd.{number}")
                for path in paths:
                    items[path].update(state="empty", reason="", osd_uuid="")
                if slots:  # zapping a partition removes it, and only the node itself can make it again
                    raise CephFailure(
                        f"the half-made osd.{number} was removed with its journal. Run the same again"
                    )

    def orchestrator_events(self, specs):
        """Return the orchestrator's own words on specifications that it could not carry out."""
        try:
            (answer,) = self.ceph.call([step("orch ls", to="mgr", may_fail=True)])
            names = {f"osd.{spec['service_id']}" for spec in specs}
            events = [
                event
                for service in json.loads(answer["out"])
                if service.get("service_name") in names
                for event in service.get("events") or ()
                if "ERROR" in event
            ]
        except (CephFailure, ValueError):
            return ""
        return " ".join(event.strip()[:600] for event in events[-2:])

    # - pools and health -

    def apply_pools(self, found):
        """Create pools and set what differs."""
        if any(pool.get("device_class") for pool in self.desired["pools"]):
            found = self.wait_for_answers()  # OSDs that were made just now count
        changes = _compare_pools(self.desired, found)
        names = {entry["name"]: entry["action"] for entry in changes}
        refused = [
            f"pool {entry['name']}: {entry['reason']}" for entry in changes if entry["action"] == "refuse"
        ]
        if refused:
            raise CephFailure("; ".join(refused))
        classes = {
            p["device_class"] for p in self.desired["pools"] if p["name"] in names and p.get("device_class")
        }
        steps = [
            step(
                "osd crush rule create-replicated", name=name, root="default", type="host", **{"class": name}
            )
            for name in sorted(classes - set(found["rules"]))
        ]
        for pool in self.desired["pools"]:
            name = pool["name"]
            if name not in names:
                continue
            sure = {"yes_i_really_mean_it": True} if pool["size"] == 1 else {}
            default = self.desired["config"].get("global", {})
            if names[name] == "create":
                arguments = {"pg_num": pool["pg_num"], "pool_type": "replicated", "size": pool["size"]}
                if pool.get("device_class"):
                    arguments["rule"] = pool["device_class"]
                steps.append(step("osd pool create", pool=name, timeout=60, **arguments, **sure))
            else:
                steps.append(step("osd pool set", pool=name, var="size", val=str(pool["size"]), **sure))
            rule = wanted_rule(pool, found["pools"].get(name, {}).get("rule", ""))
            if names[name] != "create" and rule != found["pools"][name]["rule"]:
                steps.append(step("osd pool set", pool=name, var="crush_rule", val=rule))
            if names[name] != "create" or default.get("osd_pool_default_min_size") != str(pool["min_size"]):
                steps.append(step("osd pool set", pool=name, var="min_size", val=str(pool["min_size"])))
            application = {"app": pool["application"], "yes_i_really_mean_it": True}
            steps.append(step("osd pool application enable", pool=name, **application))
        if steps:
            self.ceph.do(steps, "creating pools")
        self.record(changes)

    def wait_for_health(self):
        """Return when quorum, managers, OSDs and health are as they should be.

        Raises:
            CephFailure: with what is still missing after ``timeout`` seconds without any change.
        """
        before, moved = None, time.monotonic()
        while True:
            try:
                (answer,) = self.ceph.call([step("status")])
                waiting = unfinished(self.desired, json.loads(answer["out"]), self.done, self.before)
            except (Unanswered, ValueError) as error:
                waiting = [str(error)]
            if not waiting:
                return
            if waiting != before:
                before, moved = waiting, time.monotonic()
                self.say(f"waiting: {'; '.join(waiting)}")
            if time.monotonic() - moved > self.timeout:
                raise CephFailure(f"the cluster is not healthy after {self.timeout} s: {'; '.join(waiting)}")
            time.sleep(self.POLL)


def pull_in_background(image):
    """Start pulling an image and do not wait; whoever needs it pulls it too, and then finds it there."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.Popen(
            ["docker", "pull", "--quiet", image],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def private(path, flags):
    """Open a file that only its owner may read."""
    return os.open(path, flags, 0o600)


def write(path, content, mode):
    """Write a whole file so that it is there after a power loss, or not at all."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def last_error(path):
    """Return the most telling line at the end of cephadm's output."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read().splitlines()[-80:] if line.strip()]
    except OSError:
        return "no output"
    errors = [line for line in lines if re.match(r"(ERROR|Error|RuntimeError|\w+Error):?", line)]
    return (errors or lines or ["no output"])[-1][:500]


LOCK_FD = None


def lock(timeout, say):
    """Wait until no other run works on Ceph on this node; the lock is held until the process ends.

    Raises:
        CephFailure: another run still works after ``timeout`` seconds.
    """
    global LOCK_FD
    os.makedirs(STATE_DIR, mode=0o700, exist_ok=True)
    LOCK_FD = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    deadline, told = time.monotonic() + timeout, False
    while True:
        try:
            fcntl.flock(LOCK_FD, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise CephFailure(
                    "an earlier run still works on Ceph on this node; try again later"
                ) from None
            if not told:
                say("waiting for an earlier run that still works on Ceph")
                told = True
            time.sleep(1)


def apply(desired, secrets, devices, timeout, settle=True):
    """Take the lock and bring the cluster to its desired state."""
    applier = Applier(desired, secrets, devices, timeout, settle)
    lock(timeout, applier.say)
    applier.started = applier.stepped = time.monotonic()
    with contextlib.suppress(OSError), open(PROGRESS, "w", encoding="utf-8"):
        pass
    for left in glob.glob(f"/run/{TMP_PREFIX}*"):  # a killed run's keys
        shutil.rmtree(left, ignore_errors=True)
    try:
        return applier.run()
    except CephFailure as error:
        applier.say(f"failed: {error}")
        raise


MODES = ("observe", "apply", "devices", "prepare", "wipe", "ask")


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": list(MODES), "required": True},
            "desired": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "devices": {"type": "dict", "default": {}},
            "fsid": {"type": "str", "default": ""},
            "data": {"type": "list", "elements": "str", "default": []},
            "journals": {"type": "list", "elements": "str", "default": []},
            "journal_size": {"type": "int", "default": 0},
            "journal_minimum": {"type": "int", "default": 0},
            "only": {"type": "list", "elements": "str", "default": []},
            "leaving": {"type": "list", "elements": "str", "default": []},
            "osds": {"type": "list", "elements": "str", "default": []},
            "steps": {"type": "list", "elements": "dict", "default": []},
            "node": {"type": "str", "default": ""},
            "image": {"type": "str", "default": ""},
            "settle": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        if options["mode"] == "devices":
            checked = check_devices(
                options["data"], options["journals"], options["fsid"], probe_device,
                options["journal_size"], options["journal_minimum"], options["osds"], options["only"],
                options["leaving"],
            )  # fmt: skip
            if options["image"] and not module.check_mode:
                pull_in_background(options["image"])
            module.exit_json(changed=False, devices=checked)
        elif options["mode"] == "prepare":
            if module.check_mode:
                module.exit_json(changed=False, done=[])
            done = prepare_devices(
                options["data"], options["journals"], options["fsid"],
                options["journal_size"], options["journal_minimum"], only=options["only"],
            )  # fmt: skip
            module.exit_json(changed=bool(done), done=done)
        elif options["mode"] == "wipe":
            paths = find_remains(options["data"], options["journals"], options["fsid"], options["osds"])
            if not module.check_mode:
                for path in paths:
                    erase(path, options["osds"])
            done = [{"kind": "device", "action": "erase", "name": path} for path in paths]
            module.exit_json(changed=bool(paths), done=done)
        elif options["mode"] == "ask":
            steps = [{"timeout": 60, "in": "", "to": "mon", **item} for item in options["steps"]]
            answers = Ceph(options["fsid"], options["node"], options["image"]).call(steps)
            module.exit_json(changed=False, answers=answers)
        elif options["mode"] == "observe" or module.check_mode:
            found = observe(options["desired"], options["devices"])
            module.exit_json(changed=bool(found["changes"]) and module.check_mode, **found)
        else:
            result = apply(
                options["desired"],
                options["secrets"],
                options["devices"],
                options["timeout"],
                options["settle"],
            )
            module.exit_json(**result)
    except CephFailure as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
