"""The node-side Ceph module: devices, decisions and differences."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.cloudctl_rados import options as rados_options
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudctl import ceph as desired_state

LIBRARY = Path(__file__).resolve().parents[2] / "playbooks" / "library"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cloudctl_ceph", LIBRARY / "cloudctl_ceph.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cloudctl_ceph"] = module
    spec.loader.exec_module(module)
    return module


ceph = load()

FSID = "30381ae9-b3b4-45bf-85ec-d8959317abc0"
OSD = "f811d5b8-3150-4616-b7da-da759542bc38"
# The first 4 KiB of a data device and of its journal, as Ceph 18.2.7 wrote them.
DATA_LABEL = zlib.decompress(
    base64.b64decode(
        "eNrtkj2P0zAYx3vH+7EcHEJCLEFi6A0psROn9kk3tAMScCAqGBCL8cvja5Q0KUmaU2/iI8DAB2GCgY3PwNLvgcSI3WuRmFn9"
        "k5I89t9+Hvv/RBYLaNqqhkAWlcoDDV2mYM9QhDSRNIwRicIkRWkoh1qEWgwJIwmWKqZ7uzt8t9f7fevnN/Ty8d2vq9Xi8/g7"
        "7VnsdO/Dr16++lE9uGzjmcjKffvds480M76u1VyzIxyxISL49j8Cn0PNc1hesrMI04OtuGzhQlsvc4mTiKXXN3KTnYMrQAll"
        "LE4Iw1edYi9omh2X6YZ9KZhPuWky/dAO4iimSAALZSyTMCHShJSACjVlhMVoKKSK7m03dVA3WVXysymUXNUgWtAnGzHYiAGi"
        "AzwYBv1URsAojQgGRRNlsE4ESYxhUkpFYIgjmWIk9GFQA5ig37RCFnDojr9JzUV7f+0PTkOEQoxeR+goTo+ieJAkLCX4rVuc"
        "d1wKlUOpnZm1M0/LK2vHTzN1Z3u8qtFBVxWLGQSdTeiMmOWm4boqwZm8hHUz7DJne9+Go8n4EZuM6yc1vHg2HY3ePO+ELCks"
        "RfzKVPHJHJ8/bSfHx/sX25o5KC6MycqsXd50ZYtqoVVbhCVyx7F30su/wcE6eL/IauCuZg0FiAbcX4Ooa9rZtBKzzDUt+vLu"
        "46eex+PxeDwej8fj8Xj+lz/tO7jZ"
    )
)
JOURNAL_LABEL = zlib.decompress(
    base64.b64decode(
        "eNpLyilNLS7JL0pVSMrJT85WSEkty0xO5UqzMDRMMU2y0DU2NDXQNTEzNNNNMk9J1E1JNDe1NDUxSko2tuBiYjRkYGD4IXh1"
        "h2GAm9j2W7dKpzrtsQAKNTCAiK8M2f2qHYqcQHYS0Ja0YoWUJJDE7ZZJOxhGwSgYBaNgFIyCUTAKRsEoGAWjYBSMglFAPwAA"
        "C90j4Q=="
    )
)
EMPTY: dict[str, Any] = {"size": 8 << 30, "label": None, "mounts": [], "children": [], "signatures": []}


# --- devices ---


def test_label_of_a_data_device() -> None:
    label = ceph.parse_label(DATA_LABEL)
    assert label == {"osd_uuid": OSD, "ceph_fsid": FSID, "description": "main"}


def test_label_of_a_journal_names_no_cluster() -> None:
    label = ceph.parse_label(JOURNAL_LABEL)
    assert label == {"osd_uuid": OSD, "ceph_fsid": "", "description": "bluefs db"}


@given(st.binary(max_size=4096))
def test_any_content_can_be_read(content: bytes) -> None:
    assert ceph.parse_label(content) is None or content.startswith(ceph.LABEL_MAGIC)
    label = ceph.parse_label(ceph.LABEL_MAGIC + content)
    state, _reason = ceph.judge_device({**EMPTY, "label": label}, FSID)
    assert state == "refused" or FSID.encode() in content


@given(st.integers(0, 4095), st.binary(min_size=1, max_size=64))
def test_a_damaged_label_is_never_an_empty_device(at: int, noise: bytes) -> None:
    block = bytearray(DATA_LABEL)
    at = max(at, len(ceph.LABEL_MAGIC))
    block[at : at + len(noise)] = noise
    state, _reason = ceph.judge_device({**EMPTY, "label": ceph.parse_label(bytes(block))}, FSID)
    assert state in ("ours", "refused")


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"error": "there is no such device"}, "no such device"),
        ({"read_only": True}, "read-only"),
        ({"mounts": ["/", "/home"]}, "mounted (/, /home)"),
        ({"mounts": ["/var/lib/docker"]}, "the system disk"),
        ({"mounts": ["/"], "error": "it can't be read"}, "the system disk"),
        ({"swap": True}, "swap"),
        ({"children": ["sdb1", "sdb2"]}, "sdb1, sdb2"),
        ({"signatures": ["gpt", "PMBR"]}, "partition table (gpt)"),
        ({"signatures": ["ext4"]}, "ext4"),
        ({"signatures": ["LVM2_member"]}, "LVM physical volume"),
        ({"busy": True}, "in use"),
        ({"size": 0}, "no size"),
    ],
)
def test_refused_devices(found: dict[str, Any], word: str) -> None:
    state, reason = ceph.judge_device({**EMPTY, **found}, FSID)
    assert state == "refused"
    assert word in reason


def test_an_empty_device() -> None:
    assert ceph.judge_device(EMPTY, FSID) == ("empty", "")


def test_an_osd_of_ours_is_accepted_although_it_is_busy() -> None:
    probe = {**EMPTY, "label": ceph.parse_label(DATA_LABEL), "busy": True}
    assert ceph.judge_device(probe, FSID)[0] == "ours"


def test_an_osd_of_another_cluster_is_refused() -> None:
    state, reason = ceph.judge_device({**EMPTY, "label": ceph.parse_label(DATA_LABEL)}, "0" * 36)
    assert state == "refused"
    assert FSID in reason


def test_a_journal_is_ours_through_the_osd_on_the_same_node() -> None:
    labels = {"/dev/a": DATA_LABEL, "/dev/b": JOURNAL_LABEL}

    def probe(path: str) -> dict[str, Any]:
        return {**EMPTY, "path": path, "label": ceph.parse_label(labels[path])}

    both = ceph.check_devices(["/dev/a"], ["/dev/b"], FSID, probe)
    assert [(d["path"], d["role"], d["state"]) for d in both] == [
        ("/dev/a", "data", "ours"),
        ("/dev/b", "journal", "ours"),
    ]
    assert ceph.check_devices([], ["/dev/b"], FSID, probe)[0]["state"] == "refused"
    assert ceph.check_devices(["/dev/a"], ["/dev/b"], "other", probe)[1]["state"] == "refused"


@pytest.mark.parametrize(
    ("data", "journals", "refused"),
    [
        (["/dev/a", "/dev/by-id/a"], [], {"/dev/a": "/dev/by-id/a", "/dev/by-id/a": "/dev/a"}),
        (["/dev/a"], ["/dev/by-id/a"], {"/dev/a": "/dev/by-id/a", "/dev/by-id/a": "/dev/a"}),
        (["/dev/a", "/dev/b"], ["/dev/c", "/dev/by-id/c"],
         {"/dev/c": "/dev/by-id/c", "/dev/by-id/c": "/dev/c"}),
        (["/dev/a", "/dev/b"], ["/dev/c", "/dev/c"], {}),
        (["/dev/a", "/dev/none", "/dev/nothing"], [], {}),
    ],
)  # fmt: skip
def test_a_device_under_two_names_is_one_device(
    data: list[str], journals: list[str], refused: dict[str, str], tmp_path: Path
) -> None:
    def probe(path: str) -> dict[str, Any]:
        if path.startswith("/dev/no"):
            return {**EMPTY, "error": "there is no such device"}
        return {**EMPTY, "path": path, "real": path.replace("/by-id", "")}

    found = {item["path"]: item for item in ceph.check_devices(data, journals, FSID, probe)}
    assert {path: item["same_as"] for path, item in found.items() if "same_as" in item} == {
        path: [other] for path, other in refused.items()
    }
    for path, other in refused.items():
        assert (found[path]["state"], found[path]["reason"]) == (
            "refused",
            f"it is the same device as {other}",
        )
    if refused:
        with pytest.raises(ceph.CephFailure, match="the same device as"):
            ceph.prepare_devices(data, journals, FSID, probe=probe)


def test_what_is_there_already_is_refused_under_its_second_name() -> None:
    label = ceph.parse_label(DATA_LABEL)
    found = ceph.check_devices(
        ["/dev/a", "/dev/by-id/a"], [], FSID, lambda path: {**EMPTY, "label": label, "real": "/dev/a"}
    )
    assert [(item["state"], item["osd_uuid"]) for item in found] == [("refused", OSD)] * 2


def test_a_part_of_a_journal_device_becomes_no_osd() -> None:
    def state(name: str, fsid: str = FSID) -> str:
        (found,) = ceph.check_devices(["/dev/x1"], [], fsid, lambda _path: {**EMPTY, "name": name})
        return str(found["state"])

    assert state(ceph.slot_name(FSID, 3)) == "refused"
    assert state("") == state("data") == state(ceph.slot_name(FSID, 3), "0" * 36) == "empty"


def test_a_partition_knows_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs = tmp_path / "sdx" / "sdx2"
    sysfs.mkdir(parents=True)
    (sysfs / "partition").write_text("2\n")
    asked: list[Any] = []
    parts = [{"number": 1, "name": "one"}, {"number": 2, "name": "two"}]
    monkeypatch.setattr(ceph, "read_partitions", lambda *where: asked.append(where) or parts)
    assert ceph.partition_name(str(sysfs)) == "two"
    assert asked == [("/dev/sdx", str(tmp_path / "sdx"))]
    assert ceph.partition_name(str(tmp_path)) == ""


def test_a_device_that_does_not_exist(tmp_path: Path) -> None:
    assert ceph.probe_device(str(tmp_path / "sdx"))["error"] == "there is no such device"
    assert ceph.probe_device(str(tmp_path))["error"] == "it is not a block device"


def test_mounts_are_found_by_number() -> None:
    mountinfo = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:5 / /proc rw - proc proc rw\n"
        "24 22 8:2 /sub /srv/x rw shared:1 - xfs /dev/sda2 rw\n"
    )
    assert ceph.in_use(mountinfo, {"8:0": "sda", "8:1": "sda1", "8:2": "sda2"}) == ["/", "/srv/x"]
    assert ceph.in_use(mountinfo, {"8:16": "sdb"}) == []


# --- journals that share a device ---

GIB = 1 << 30
MIB = 1 << 20
NOBODY = {"osd_uuid": "", "ceph_fsid": "", "description": ""}


def slot(number: int, start: int, size: int, uuid: str = "", fsid: str = FSID) -> dict[str, Any]:
    label = {**NOBODY, "osd_uuid": uuid} if uuid else None
    name = ceph.slot_name(fsid, number)
    return {
        "number": number, "name": name, "path": f"/dev/x{number}", "label": label, "start": start,
        "size": size,
    }  # fmt: skip


def journal(size: int, *slots: dict[str, Any], **more: Any) -> dict[str, Any]:
    parts = {"children": [f"x{s['number']}" for s in slots], "signatures": ["gpt"]} if slots else {}
    return {
        **EMPTY,
        "size": size,
        "whole": True,
        "real": "/dev/x",
        "partitions": list(slots),
        **parts,
        **more,
    }


def test_a_partition_table_is_read() -> None:
    entry = (
        bytes(range(16)) * 2
        + struct.pack("<QQQ", 2048, 4095, 0)
        + "cloudctl-30381ae9-1".encode("utf-16-le").ljust(72, b"\0")
    )
    header = b"EFI PART".ljust(80, b"\0") + struct.pack("<II", 3, 128)
    assert ceph.parse_gpt(header, bytes(128) + entry + bytes(128)) == [
        {"number": 2, "name": "cloudctl-30381ae9-1", "first": 2048, "last": 4095}
    ]
    assert ceph.parse_gpt(b"nothing".ljust(92, b"\0"), entry) == []


@pytest.mark.parametrize(
    ("real", "path"),
    [("/dev/sdb", "/dev/sdb3"), ("/dev/nvme0n1", "/dev/nvme0n1p3"), ("/dev/loop7", "/dev/loop7p3")],
)
def test_names_of_partitions(real: str, path: str) -> None:
    assert ceph.partition_path(real, 3) == path


def test_two_journals_share_an_empty_device_equally() -> None:
    free, new, problem = ceph.plan_slots(2 * GIB, [], 2, 0, 512 * MIB)
    assert (free, new, problem) == ([], [(MIB, 1023 * MIB), (1024 * MIB, 1023 * MIB)], "")


def test_a_journal_that_was_given_up_is_used_again() -> None:
    slots = [slot(1, MIB, 900 * MIB, "u1"), slot(2, 901 * MIB, 900 * MIB)]
    assert ceph.plan_slots(2 * GIB, slots, 1, 0, 512 * MIB) == ([slots[1]], [], "")


def test_the_room_of_a_journal_whose_partition_is_gone_is_used_again() -> None:
    slots = [slot(n, MIB + (n - 1) * 900 * MIB, 900 * MIB, f"u{n}") for n in (1, 3, 4)]
    size = 3602 * MIB
    assert ceph.plan_slots(size, slots, 1, 0, 512 * MIB) == ([], [(901 * MIB, 900 * MIB)], "")
    assert ceph.plan_slots(size, slots[1:], 2, 0, 512 * MIB)[1] == [
        (MIB, 900 * MIB), (901 * MIB, 900 * MIB)
    ]  # fmt: skip
    # behind them and between them; smaller ones where the rooms are too few
    roomy = size + 500 * MIB
    assert ceph.plan_slots(roomy, slots, 2, 0, 256 * MIB)[1] == [
        (901 * MIB, 500 * MIB), (3601 * MIB, 500 * MIB)
    ]  # fmt: skip
    free, new, problem = ceph.plan_slots(roomy, slots, 2, 0, 512 * MIB)
    assert (free, new) == ([], [])
    assert "900 + 500 MiB are free on it, 2 journals of at least 512 MiB" in problem
    full = [*slots, slot(2, 901 * MIB, 900 * MIB, "u2")]
    assert "0 MiB are free on it" in ceph.plan_slots(size, full, 1, 0, 512 * MIB)[2]


def test_a_partition_is_made_where_its_room_is(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(ceph.os.path, "exists", lambda _path: True)
    monkeypatch.setattr(ceph.glob, "glob", lambda _pattern: [])
    ceph.make_partitions(
        "/dev/sdx", {2: (901 * MIB, 900 * MIB)}, FSID, lambda command: commands.append(command) or (0, "")
    )
    name = ceph.slot_name(FSID, 2)
    assert commands[0] == ["sgdisk", "--new=2:901M:+900M", f"--change-name=2:{name}", "/dev/sdx"]


@pytest.mark.parametrize(
    ("size", "wanted", "journal_size", "minimum", "word"),
    [
        (GIB, 2, 0, 512 * MIB, "it has 1024 MiB, 2 journals of at least 512 MiB"),
        (GIB, 1, 2 * GIB, 512 * MIB, "1 journal of at least 2048 MiB"),
        (100, 1, 0, 0, "too small"),
    ],
)
def test_a_journal_device_that_is_too_small(
    size: int, wanted: int, journal_size: int, minimum: int, word: str
) -> None:
    free, new, problem = ceph.plan_slots(size, [], wanted, journal_size, minimum)
    assert (free, new) == ([], [])
    assert word in problem


@settings(deadline=None)
@given(
    st.integers(0, 64), st.integers(1, 8), st.sampled_from([0, GIB, 3 * GIB]), st.sampled_from([MIB, GIB]),
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["used", "free", "gap"])), max_size=4),
)  # fmt: skip
def test_journals_never_leave_their_device(
    gib: int, wanted: int, journal_size: int, minimum: int, present: list[tuple[int, str]]
) -> None:
    slots, end = [], MIB
    for number, (size, kind) in enumerate(present, start=1):
        if kind != "gap":
            slots.append(slot(number, end, size * GIB, "u" if kind == "used" else ""))
        end += size * GIB
    size = end + gib * GIB + MIB
    free, new, problem = ceph.plan_slots(size, slots, wanted, journal_size, minimum)
    if problem:
        assert (free, new) == ([], [])
        return
    assert len(free) + len(new) == wanted
    assert not any(item["label"] for item in free)
    assert all(part >= max(minimum, journal_size) for _start, part in new)
    held = [(item["start"], item["size"]) for item in slots]
    at = MIB
    for start, part in sorted([*held, *new]):  # none begins before the one before it has ended
        assert start >= at and start % MIB == 0
        at = start + part
    assert at + MIB <= size


def test_a_shared_journal_device_is_ours_by_its_partitions() -> None:
    used = journal(2 * GIB, slot(1, MIB, 900 * MIB, OSD), slot(2, 901 * MIB, 900 * MIB, "u2"))
    judge = ceph.judge_journal
    assert judge(used, FSID, {OSD}, [OSD, "u2"])[0] == "ours"
    assert judge(used, "0" * 36, {OSD}, [OSD, "u2"])[0] == "refused"  # another cluster's
    state, reason = judge(used, FSID, {OSD}, [OSD, "u2", ""], minimum=512 * MIB)
    assert (state, "too small" in reason) == ("refused", True)
    foreign = journal(2 * GIB, slot(1, MIB, GIB), {**slot(2, GIB, GIB), "name": "Linux"})
    assert judge(foreign, FSID, set(), [""])[0] == "refused"


def test_a_journal_that_is_all_of_its_device_is_not_shared() -> None:
    whole = journal(2 * GIB, label={**NOBODY, "osd_uuid": OSD})
    assert ceph.judge_journal(whole, FSID, {OSD}, [OSD])[0] == "ours"
    state, reason = ceph.judge_journal(whole, FSID, {OSD}, [OSD, ""])
    assert (state, "can't share" in reason) == ("refused", True)


def test_a_partition_is_not_divided() -> None:
    part = journal(8 * GIB, whole=False)
    assert ceph.judge_journal(part, FSID, set(), [""])[0] == "empty"
    assert ceph.judge_journal(part, FSID, set(), ["", ""])[0] == "refused"


def test_a_small_journal_of_its_own_is_refused() -> None:
    assert "too small" in ceph.judge_journal(journal(100 * MIB), FSID, set(), [""], minimum=512 * MIB)[1]


def test_each_osd_gets_a_journal_of_its_own() -> None:
    probes = {
        "/dev/a": {**EMPTY, "label": {**NOBODY, "osd_uuid": "u1", "ceph_fsid": FSID}},
        "/dev/b": EMPTY,
        "/dev/c": EMPTY,
        "/dev/x": journal(4 * GIB, slot(1, MIB, GIB, "u1"), slot(3, 2 * GIB, GIB)),
    }
    places, new = ceph.assign_slots(
        ["/dev/a", "/dev/b", "/dev/c"], ["/dev/x"] * 3, probes, FSID, 0, 512 * MIB
    )
    assert places == {"/dev/a": "/dev/x1", "/dev/b": "/dev/x3", "/dev/c": ("/dev/x", 2)}
    assert new["/dev/x"] == {2: (GIB + MIB, GIB - MIB)}


def test_one_osd_gets_no_more_than_its_part_of_a_journal_device() -> None:
    probes = {"/dev/a": EMPTY, "/dev/b": {"error": "there is no such device"}, "/dev/x": journal(4 * GIB)}
    both = ["/dev/a", "/dev/b"]
    places, new = ceph.assign_slots(both, ["/dev/x"] * 2, probes, FSID, 0, 512 * MIB, ["/dev/a"])
    assert places == {"/dev/a": ("/dev/x", 1)}
    assert new == {"/dev/x": {1: (MIB, 2047 * MIB)}}
    # the other one comes later, to what is left
    probes["/dev/x"] = journal(4 * GIB, slot(1, MIB, 2047 * MIB, "u1"))
    probes["/dev/a"] = {**EMPTY, "label": {**NOBODY, "osd_uuid": "u1", "ceph_fsid": FSID}}
    probes["/dev/b"] = EMPTY
    _places, new = ceph.assign_slots(both, ["/dev/x"] * 2, probes, FSID, 0, 512 * MIB, ["/dev/b"])
    assert new == {"/dev/x": {2: (2048 * MIB, 2047 * MIB)}}


def test_a_journal_device_needs_room_for_those_that_are_made() -> None:
    full = journal(3 * GIB, slot(1, MIB, GIB, "gone"), slot(2, GIB + MIB, 2 * GIB - 2 * MIB, "dead"))
    probes = {"/dev/a": EMPTY, "/dev/b": EMPTY, "/dev/x": full}
    arguments: Any = (["/dev/a", "/dev/b"], ["/dev/x"] * 2, FSID, probes.get, 0, 512 * MIB, ["gone", "dead"])

    def state(**more: Any) -> str:
        return next(
            str(item["state"]) for item in ceph.check_devices(*arguments, **more) if item["role"] == "journal"
        )

    assert state() == state(only=["/dev/a"]) == state(leaving=["gone"]) == "refused"
    assert state(only=["/dev/a"], leaving=["gone"]) == "ours"


def test_a_device_that_is_not_made_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[str] = []
    monkeypatch.setattr(ceph, "link", lambda path, _target: links.append(path))
    monkeypatch.setattr(ceph.os, "makedirs", lambda *_a, **_m: None)
    probes = {"/dev/a": {"error": "there is no such device"}, "/dev/b": {**EMPTY, "real": "/dev/sdb"}}
    with pytest.raises(ceph.CephFailure, match="no such device"):
        ceph.prepare_devices(list(probes), [], FSID, probe=probes.get)
    assert ceph.prepare_devices(list(probes), [], FSID, probe=probes.get, only=["/dev/b"]) == []
    assert links == ["/dev/cloudctl/data-2"]


def test_only_devices_of_the_named_osds_are_erased() -> None:
    probes = {
        "/dev/a": {**EMPTY, "real": "/dev/a", "label": {**NOBODY, "osd_uuid": "u1", "ceph_fsid": FSID}},
        "/dev/b": {**EMPTY, "real": "/dev/b", "signatures": ["ext4"]},
        "/dev/c": {**EMPTY, "real": "/dev/c"},
        "/dev/x": journal(4 * GIB, slot(1, MIB, GIB, "u1"), slot(2, 2 * GIB, GIB, "u2")),
    }
    find = ceph.find_remains
    assert find(["/dev/a", "/dev/c"], ["/dev/x", "/dev/x"], FSID, ["u1"], probes.get) == ["/dev/x1", "/dev/a"]
    for path, osds in (("/dev/a", ["u2"]), ("/dev/b", ["u1"])):
        with pytest.raises(ceph.CephFailure, match="Nothing was erased"):
            find([path], ["/dev/x"], FSID, osds, probes.get)


def test_a_device_that_changed_meanwhile_is_not_erased(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(DATA_LABEL.ljust(20 * MIB, b"x"))
    with pytest.raises(ceph.CephFailure):
        ceph.erase(str(device), ["another"])
    assert device.read_bytes()[: len(DATA_LABEL)] == DATA_LABEL
    ceph.erase(str(device), [OSD])
    assert not any(device.read_bytes()[: 10 * MIB])


def test_a_device_that_was_not_prepared_becomes_no_osd() -> None:
    stale = [check("/dev/sdc", "empty", prepared=False), check("/dev/sdb1", "empty")]
    specs, refused = ceph.osd_specs(DESIRED["osds"][:1], {"osd01": stale})
    assert (specs, refused) == ([], ["osd01: /dev/sdc was not prepared in this run"])


def test_classes_are_specifications_of_their_own() -> None:
    osds = [
        {"host": host, "data": f"/dev/{slot}", "journal": None, "slot": slot, "device_class": name}
        for host in ("osd01", "osd02")
        for slot, name in ((1, ""), (2, "ssd"), (3, ""))
    ]
    checks = {host: [check(f"/dev/{slot}", "empty") for slot in (1, 2, 3)] for host in ("osd01", "osd02")}
    specs, refused = ceph.osd_specs(osds, checks)
    assert refused == []
    assert {spec["service_id"]: spec["spec"].get("crush_device_class") for spec in specs} == {
        "cloudctl-osd01-plain": None,
        "cloudctl-osd01-plain-ssd": "ssd",
    }
    assert all(spec["placement"]["hosts"] == ["osd01", "osd02"] for spec in specs)


# --- is there a cluster ---

NOTHING = {"conf_fsid": None, "marker": None, "data": False, "osd_data": False, "others": []}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, "absent"),
        ({"conf_fsid": FSID, "data": True}, "present"),
        ({"conf_fsid": FSID, "data": True, "marker": FSID}, "interrupted"),
        ({"marker": FSID}, "interrupted"),
        ({"marker": FSID, "data": True}, "interrupted"),
        ({"marker": FSID, "data": True, "osd_data": True}, "lost"),
        ({"marker": FSID, "data": True, "others": ["10.10.30.12"]}, "lost"),
        ({"marker": "other"}, "foreign"),
        ({"conf_fsid": "other", "data": True}, "foreign"),
        ({"others": ["10.10.30.12"]}, "lost"),
        ({"data": True}, "lost"),
        ({"conf_fsid": FSID}, "lost"),
    ],
)
def test_is_there_a_cluster(found: dict[str, Any], state: str) -> None:
    assert ceph.decide_cluster(FSID, {**NOTHING, **found})[0] == state


@given(
    st.fixed_dictionaries(
        {
            "conf_fsid": st.sampled_from([None, FSID, "other"]),
            "marker": st.sampled_from([None, FSID, "other"]),
            "data": st.booleans(),
            "osd_data": st.booleans(),
            "others": st.sampled_from([[], ["10.10.30.12"]]),
        }
    )
)
def test_only_our_own_unfinished_bootstrap_may_be_removed(local: dict[str, Any]) -> None:
    state, _reason = ceph.decide_cluster(FSID, local)
    if state == "interrupted":
        assert local["marker"] == FSID
        assert not local["osd_data"]
        assert not local["others"]
        assert local["conf_fsid"] in (None, FSID)
    if state == "absent":
        assert local == {**NOTHING, "osd_data": local["osd_data"]}


# --- differences ---


def key_of(client: str) -> str:
    return f"AQB{client}=="


DESIRED: dict[str, Any] = {
    "fsid": FSID,
    "image": "registry/ceph@sha256:1",
    "mons": [{"name": f"ctl0{i}", "address": f"10.10.30.1{i}"} for i in (1, 2, 3)],
    "mgrs": ["ctl01", "ctl02"],
    "public_network": "10.10.30.0/24",
    "cluster_network": "10.10.40.0/24",
    "hosts": [{"name": "ctl01", "address": "10.10.10.11", "labels": ["_admin"]}]
    + [{"name": f"osd0{i}", "address": f"10.10.10.21{i}", "labels": []} for i in (1, 2)],
    "osds": [
        {"host": f"osd0{i}", "data": "/dev/sdc", "journal": "/dev/sdb1", "slot": 1, "device_class": ""}
        for i in (1, 2)
    ],
    "config": {"osd": {"osd_memory_target": "1G"}, "osd/class:ssd": {"osd_max_backfills": "2"}},
    "pools": [{"name": "images", "application": "rbd", "size": 3, "min_size": 2, "pg_num": 32}],
    "clients": [
        {
            "name": "glance",
            "caps": {"mon": "profile rbd"},
            "key_digest": desired_state.desired.key_digest(FSID, key_of("glance")),
        }
    ],
}


def answers() -> dict[str, Any]:
    """What a cluster answers that is as DESIRED says."""
    return {
        "osd dump": {
            "osds": [
                {"osd": 0, "uuid": "u0", "up": 1, "state": ["exists", "up"]},
                {"osd": 1, "uuid": "u1", "up": 1, "state": ["exists", "up"]},
            ],
            "pools": [
                {"pool_name": "images", "size": 3, "min_size": 2, "application_metadata": {"rbd": {}}},
                {"pool_name": ".mgr", "size": 3, "min_size": 2, "application_metadata": {"mgr": {}}},
            ],
        },
        "osd metadata": [
            {
                "id": i,
                "hostname": f"osd0{i + 1}",
                "bluestore_bdev_partition_path": "/dev/sdc",
                "bluefs_db_partition_path": "/dev/sdb1",
            }
            for i in (0, 1)
        ],
        "config dump": [
            {"section": "osd", "name": "osd_memory_target", "value": "1073741824", "mask": ""},
            {"section": "osd", "name": "osd_max_backfills", "value": "2", "mask": "class:ssd"},
            {"section": "global", "name": "container_image", "value": "registry/ceph@sha256:1", "mask": ""},
        ],
        "mgr metadata": [{"hostname": "ctl01"}, {"hostname": "ctl02"}],
        "status": {
            "health": {"status": "HEALTH_OK", "checks": {}},
            "quorum_names": ["ctl01", "ctl02", "ctl03"],
            "mgrmap": {"available": True, "num_standbys": 1},
            "osdmap": {"num_osds": 2, "num_up_osds": 2},
        },
        "hosts": [
            {"hostname": h["name"], "addr": h["address"], "labels": h["labels"]} for h in DESIRED["hosts"]
        ],
        "services": [
            {"service_type": "crash", "placement": {"host_pattern": "*"}},
            {"service_type": "mon", "placement": {"hosts": ["ctl01", "ctl02", "ctl03"]}},
            {"service_type": "mgr", "placement": {"hosts": ["ctl01", "ctl02"]}},
            # What is listed for daemons whose specification was taken back.
            {
                "service_type": "osd",
                "service_id": "cloudctl-osd01",
                "unmanaged": True,
                "spec": {"objectstore": "x"},
            },
        ],
    }


def clients() -> dict[str, Any]:
    digest = ceph.key_digest(FSID, key_of("glance"))
    return {"glance": {"caps": {"mon": "profile rbd"}, "key_digest": digest}}


def changes(
    found: dict[str, Any], known: dict[str, Any] | None = None, **wanted: Any
) -> list[tuple[str, str, str]]:
    state = ceph.parse_state(found, clients() if known is None else known)
    return [(c["kind"], c["name"], c["action"]) for c in ceph.compare({**DESIRED, **wanted}, state)]


def test_nothing_differs() -> None:
    assert changes(answers()) == []


def classes(*hosts: str) -> dict[str, Any]:
    """Answers of a cluster whose OSDs of these hosts are ssd, the others hdd."""
    found = answers()
    found["rules"] = [{"rule_id": 0, "rule_name": "replicated_rule"}, {"rule_id": 1, "rule_name": "ssd"}]
    for pool in found["osd dump"]["pools"]:
        pool["crush_rule"] = 0
    found["tree"] = {
        "nodes": [{"type": "host", "name": f"osd0{i}", "children": [i]} for i in (1, 2, 3)]
        + [
            {"type": "osd", "id": i, "device_class": "ssd" if f"osd0{i}" in hosts else "hdd"}
            for i in (1, 2, 3)
        ]
    }
    return found


def test_a_pool_moves_to_its_class() -> None:
    wanted = [{**DESIRED["pools"][0], "device_class": "ssd"}]
    found = classes("osd01", "osd02", "osd03")
    assert changes(found, pools=wanted) == [("pool", "images", "update")]
    found["osd dump"]["pools"][0]["crush_rule"] = 1
    assert changes(found, pools=wanted) == []
    assert changes(found) == [("pool", "images", "update")]  # back to all classes


def test_a_class_on_too_few_nodes_is_refused() -> None:
    wanted = [{**DESIRED["pools"][0], "device_class": "ssd"}]
    assert changes(classes("osd01", "osd02"), pools=wanted) == [("pool", "images", "refuse")]


def test_an_operators_own_rule_stays() -> None:
    found = classes()
    found["rules"].append({"rule_id": 7, "rule_name": "racks"})
    found["osd dump"]["pools"][0]["crush_rule"] = 7
    assert changes(found) == []


def test_each_difference_is_named() -> None:
    found = answers()
    found["config dump"] = found["config dump"][2:]
    assert changes(found) == [
        ("config", "osd/osd_memory_target", "create"),
        ("config", "osd/class:ssd/osd_max_backfills", "create"),
    ]
    found = answers()
    found["config dump"][0]["value"] = "5"
    assert changes(found) == [("config", "osd/osd_memory_target", "update")]
    found = answers()
    found["hosts"][1]["addr"] = "10.10.30.211"
    found["hosts"][0]["labels"] = []
    del found["hosts"][2]
    assert changes(found) == [
        ("host", "ctl01", "update"),
        ("host", "osd01", "update"),
        ("host", "osd02", "create"),
    ]
    found = answers()
    found["services"][1]["placement"] = {"count": 5}
    found["services"][2]["placement"] = {"hosts": ["ctl01"]}
    assert changes(found) == [("mon", "mon", "update"), ("mgr", "mgr", "update")]
    found = answers()
    found["osd dump"]["pools"][0]["size"] = 2
    assert changes(found) == [("pool", "images", "update")]
    found["osd dump"]["pools"] = []
    assert changes(found) == [("pool", "images", "create")]
    assert changes(answers(), {}) == [("client", "glance", "create")]


def test_a_new_key_is_imported_and_never_shown() -> None:
    known = clients()
    known["glance"]["key_digest"] = ceph.key_digest(FSID, "AQBold==")
    state = ceph.parse_state(answers(), known)
    (entry,) = ceph.compare(DESIRED, state)
    assert (entry["kind"], entry["name"], entry["action"]) == ("client", "glance", "update")
    assert entry["reason"] == "the key differs"


def test_an_osd_that_never_started_is_missing() -> None:
    found = answers()
    found["osd metadata"][1] = {"id": 1}
    found["osd dump"]["osds"][1].update(up=0, state=["exists", "new"])
    assert changes(found) == [("osd", "osd02:/dev/sdc", "create")]
    assert ceph.parse_state(found, {})["new_osds"] == [{"id": 1, "uuid": "u1"}]


def test_an_osd_that_is_down_is_not_missing() -> None:
    found = answers()
    found["osd dump"]["osds"][1].update(up=0, state=["exists"])
    assert changes(found) == []


def test_kernel_names_may_change() -> None:
    found = answers()
    found["osd metadata"][0]["bluestore_bdev_partition_path"] = "/dev/sdf"
    assert changes(found) == []


def test_the_right_one_of_two_devices_is_missing_after_kernel_names_changed() -> None:
    wanted = [{"host": "osd01", "data": f"/dev/sd{x}", "journal": None} for x in "cd"]
    found = answers()
    found["osd metadata"] = [found["osd metadata"][0]]
    found["osd metadata"][0]["bluestore_bdev_partition_path"] = "/dev/sdz"
    state = ceph.parse_state(found, clients())
    checks = {"osd01": [check("/dev/sdc", "ours", osd_uuid="u0"), check("/dev/sdd", "empty")]}
    assert ceph.missing_osds({"osds": wanted}, state, checks) == [wanted[1]]


def test_osds_are_made_beside_those_that_were_there() -> None:
    """Whatever else is on the node, and whatever its devices were called."""
    wanted = {"host": "osd01", "data": "/dev/sdc", "journal": None}
    state = ceph.parse_state(answers(), clients())
    checks = {"osd01": [check("/dev/sdc", "empty")]}
    asked = {"osds": [wanted], "before": ["u0", "u1"]}
    assert ceph.missing_osds({"osds": [wanted]}, state, checks) == []
    assert ceph.missing_osds(asked, state, checks) == [wanted]
    state["osds"].append({"id": 2, "uuid": "new", "host": "osd01", "device": "/dev/sdd"})
    assert ceph.missing_osds(asked, state, checks) == []


def test_a_specification_left_by_a_killed_run_is_taken_back() -> None:
    found = answers()
    found["services"][3]["spec"]["data_devices"] = {"paths": ["/dev/sdc"]}
    assert changes(found) == [("osd", "osd.cloudctl-osd01", "update")]
    found["services"][3]["service_id"] = "the-operators-own"
    assert changes(found) == []


def check(
    path: str, state: str, reason: str = "", osd_uuid: str = "", prepared: bool = True
) -> dict[str, Any]:
    return {"path": path, "state": state, "reason": reason, "osd_uuid": osd_uuid, "prepared": prepared}


BOTH = [check("/dev/sdc", "empty"), check("/dev/sdb1", "empty")]


def test_hosts_with_the_same_devices_share_a_specification() -> None:
    specs, refused = ceph.osd_specs(DESIRED["osds"], {"osd01": BOTH, "osd02": BOTH})
    assert refused == []
    assert specs == [
        {
            "service_type": "osd",
            "service_id": "cloudctl-osd01",
            "placement": {"hosts": ["osd01", "osd02"]},
            "spec": {
                "method": "raw",
                "data_devices": {"paths": ["/dev/cloudctl/data-1"]},
                "db_devices": {"paths": ["/dev/cloudctl/journal-1"]},
            },
        }
    ]


def test_no_osd_on_an_unchecked_or_refused_device() -> None:
    _specs, refused = ceph.osd_specs(DESIRED["osds"], {"osd01": BOTH})
    assert refused == ["osd02: /dev/sdc was not checked", "osd02: /dev/sdb1 was not checked"]
    bad = [check("/dev/sdc", "refused", "it holds a ext4 signature"), check("/dev/sdb1", "empty")]
    specs, refused = ceph.osd_specs(DESIRED["osds"], {"osd01": BOTH, "osd02": bad})
    assert refused == ["osd02: /dev/sdc is refused: it holds a ext4 signature"]
    assert [spec["placement"]["hosts"] for spec in specs] == [["osd01"]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]), st.sampled_from(["empty", "ours", "refused"]), st.booleans()
        ),
        max_size=12,
    )
)
def test_specifications_name_checked_devices_only(devices: list[tuple[str, str, bool]]) -> None:
    missing, checks = [], {}
    for number, (host, state, checked) in enumerate(devices):
        missing.append(
            {"host": host, "data": f"/dev/{number}", "journal": None, "slot": number, "device_class": ""}
        )
        if checked:
            checks.setdefault(host, []).append(check(f"/dev/{number}", state))
    specs, refused = ceph.osd_specs(missing, checks)
    named = {
        (h, p) for s in specs for h in s["placement"]["hosts"] for p in s["spec"]["data_devices"]["paths"]
    }
    allowed = {
        (h, f"/dev/cloudctl/data-{n}")
        for n, (h, state, checked) in enumerate(devices)
        if checked and state != "refused"
    }
    assert named == allowed
    assert len(refused) == len(devices) - len(allowed)


def test_a_half_made_osd_of_ours_is_not_foreign() -> None:
    foreign = check("/dev/sdd", "refused", "data of an unknown OSD", osd_uuid="u2")
    checks = {"osd01": [check("/dev/sdc", "refused", "data of an unknown OSD", osd_uuid="u1"), foreign]}
    adopted = ceph.adopt_unstarted(checks, [{"id": 1, "uuid": "u1"}])
    assert [item["state"] for item in adopted["osd01"]] == ["ours", "refused"]
    assert checks["osd01"][0]["state"] == "refused"
    assert (
        ceph.adopt_unstarted({"osd01": [check("/dev/sdc", "refused", "mounted")]}, [{"id": 1, "uuid": ""}])[
            "osd01"
        ][0]["state"]
        == "refused"
    )


def test_a_device_of_a_removed_osd_is_not_used_again() -> None:
    checks = {"osd01": [check("/dev/sdc", "ours", osd_uuid="u1"), check("/dev/sdd", "ours", osd_uuid="gone")]}
    adopted = ceph.adopt_unstarted(checks, [], ["u1"])
    assert [item["state"] for item in adopted["osd01"]] == ["ours", "refused"]
    assert "erase it first" in adopted["osd01"][1]["reason"]


def test_only_an_osd_that_never_started_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def do(_self: Any, steps: list[dict[str, Any]], _what: str) -> None:
        asked.extend((s["cmd"]["prefix"], s["cmd"].get("path", s["cmd"].get("id"))) for s in steps)

    monkeypatch.setattr(ceph.Ceph, "do", do)
    monkeypatch.setattr(ceph.Applier, "say", lambda _self, _text: None)
    checks = {
        "osd01": [check("/dev/sdc", "ours", osd_uuid="new"), check("/dev/sdb1", "empty")],
        "osd02": [check("/dev/sdc", "ours", osd_uuid="ran"), check("/dev/sdb1", "ours", osd_uuid="ran")],
    }
    applier = ceph.Applier(DESIRED, {}, checks, 60)
    applier.discard_unstarted({"new_osds": [{"id": 7, "uuid": "new"}]}, DESIRED["osds"])
    assert asked == [("orch device zap", "/dev/sdc"), ("osd purge-new", 7)]
    assert applier.devices["osd01"][0]["state"] == "empty"


def test_refusals_show_in_the_plan() -> None:
    found = answers()
    found["osd metadata"] = []
    state = ceph.parse_state(found, clients())
    plan = ceph.compare(DESIRED, state)
    bad = [check("/dev/sdc", "refused", "it is mounted (/)")]
    shown = ceph.refusals(plan, {"osd01": bad})
    assert [(c["name"], c["action"], c["reason"]) for c in shown] == [
        ("osd01:/dev/sdc", "refuse", "it is mounted (/)"),
        ("osd02:/dev/sdc", "create", "no OSD runs on this device"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("4G", "4294967296"), ("true", "True"), ("0.10", "0.1"), ("5", "5.0"), ("1Ki", "1024"), ("no", "false")],
)
def test_values_that_mean_the_same(one: str, other: str) -> None:
    assert ceph.normal(one) == ceph.normal(other)


@given(st.text(max_size=20))
def test_normal_values_stay(value: str) -> None:
    assert ceph.normal(ceph.normal(value)) == ceph.normal(value)


STRUCTURE = [{"kind": "osd"}]
OPTION = [{"kind": "config"}]


def test_what_a_cluster_still_lacks() -> None:
    status = answers()["status"]
    assert ceph.unfinished(DESIRED, status, STRUCTURE) == []
    status = copy.deepcopy(status)
    status["quorum_names"] = ["ctl01"]
    status["mgrmap"] = {"available": True, "num_standbys": 0}
    status["osdmap"]["num_up_osds"] = 1
    status["health"]["checks"] = {
        "PG_DEGRADED": {"summary": {"message": "degraded"}},
        "POOL_NO_REDUNDANCY": {"summary": {"message": "as wanted"}},
    }
    assert ceph.unfinished(DESIRED, status, STRUCTURE) == [
        "monitors not in the quorum: ctl02, ctl03",
        "managers running: 1 of 2",
        "OSDs up: 1 of 2",
        "PG_DEGRADED: degraded",
    ]
    assert ceph.unfinished(DESIRED, status, OPTION) == ["PG_DEGRADED: degraded"]
    assert ceph.unfinished(DESIRED, status, OPTION, {"PG_DEGRADED"}) == []


@pytest.mark.parametrize("state", ["absent", "interrupted"])
def test_a_refused_device_stops_everything_before_the_bootstrap(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(ceph, "find_cluster", lambda _desired: (state, "x"))
    monkeypatch.setattr(ceph.Applier, "bootstrap", lambda *_: pytest.fail("bootstrapped"))
    checks = {"osd01": BOTH, "osd02": [check("/dev/sdc", "refused", "it is mounted (/)"), BOTH[1]]}
    with pytest.raises(ceph.CephFailure, match=r"osd02: /dev/sdc .*mounted.*Nothing was changed"):
        ceph.Applier(DESIRED, {}, checks, 60).run()


def test_where_all_is_there_nothing_is_done_and_nothing_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceph, "find_cluster", lambda _desired: ("present", ""))
    state = {"new_osds": [], "uuids": {"u0", "u1"}, **ceph.parse_state(answers(), clients())}
    monkeypatch.setattr(ceph.Applier, "wait_for_answers", lambda _self: state)
    monkeypatch.setattr(ceph.Applier, "say", lambda _self, _text: None)
    for name in ("orchestrate", "wait_for_osds", "wait_for_health"):
        monkeypatch.setattr(ceph.Applier, name, lambda *_: pytest.fail("something was done"))
    checks = {"osd01": [check("/dev/sdc", "ours", osd_uuid="u0"), check("/dev/sdb1", "ours", osd_uuid="u0")]}
    part = {
        "hosts": DESIRED["hosts"][1:2],
        "osds": DESIRED["osds"][:1],
        "config": {},
        "clients": [],
        "pools": [],
    }
    found = ceph.Applier({**DESIRED, **part}, {}, checks, 60, settle=False).run()
    assert (found["changed"], found["changes"]) == (False, [])


def test_no_new_cluster_where_osds_of_it_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceph, "find_cluster", lambda _desired: ("absent", "x"))
    monkeypatch.setattr(ceph.Applier, "bootstrap", lambda *_: pytest.fail("bootstrapped"))
    checks = {"osd01": BOTH, "osd02": [check("/dev/sdc", "ours", osd_uuid="u1"), BOTH[1]]}
    with pytest.raises(ceph.CephFailure, match=r"osd02:/dev/sdc.*Nothing was changed"):
        ceph.Applier(DESIRED, {}, checks, 60).run()


def test_initial_configuration_leaves_masks_to_the_monitors() -> None:
    assert ceph.initial_config(DESIRED) == "[osd]\nosd_memory_target = 1G\n"


def test_a_new_cluster_lists_everything() -> None:
    kinds = [c["kind"] for c in ceph.everything(DESIRED, "there is no cluster")]
    assert {k: kinds.count(k) for k in kinds} == {
        "cluster": 1, "host": 3, "mon": 3, "mgr": 2, "osd": 2, "client": 1, "pool": 1,
    }  # fmt: skip


# --- talking to Ceph ---


def test_neither_key_nor_commands_are_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        seen.append((command, options["input"]))
        return SimpleNamespace(stdout=json.dumps({"answers": [{"rc": 0, "out": "", "err": ""}]}), stderr="")

    monkeypatch.setattr(ceph.subprocess, "run", run)
    monkeypatch.setattr(ceph, "admin_key", lambda: "AQBadmin==")
    step = ceph.step("auth import", inbuf="[client.glance]\n\tkey = AQBglance==\n")
    ceph.Ceph(FSID, "ctl01.example", "image").call([step])
    ((command, sent),) = seen
    assert command[:4] == ["docker", "exec", "-i", f"ceph-{FSID}-mon-ctl01-example"]
    assert "AQB" not in " ".join(command)
    assert "AQBglance" in sent and "AQBadmin" in sent


def test_without_a_local_monitor_the_image_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> SimpleNamespace:
        commands.append(command)
        out = "" if command[1] == "exec" else json.dumps({"error": "timed out"})
        return SimpleNamespace(stdout=out, stderr="Error: No such container")

    monkeypatch.setattr(ceph.subprocess, "run", run)
    monkeypatch.setattr(ceph, "admin_key", lambda: "AQBadmin==")
    with pytest.raises(ceph.Unanswered, match="timed out"):
        ceph.Ceph(FSID, "ctl01", "image").call([ceph.step("status")])
    assert [command[1] for command in commands] == ["exec", "run"]


def test_ceph_s_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ceph.Ceph, "call", lambda _self, _steps: [{"rc": -22, "out": "", "err": "pool size too large"}]
    )
    with pytest.raises(ceph.CephFailure, match="creating pools: pool size too large"):
        ceph.Ceph(FSID, "ctl01", "image").do([ceph.step("x")], "creating pools")


def test_files_are_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    ceph.write(str(path), "text", 0o600)
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_agent_is_python(tmp_path: Path) -> None:
    compile(ceph.AGENT, "agent", "exec")


def test_the_agent_asks_the_monitors_that_the_node_knows_now(tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    assert rados_options(10, str(conf)) == {"client_mount_timeout": "10"}
    monitors = "[v2:10.10.30.12:3300/0,v1:10.10.30.12:6789/0] [v2:10.10.30.13:3300/0,v1:10.10.30.13:6789/0]"
    conf.write_text(f"# minimal\n[global]\n\tfsid = {FSID}\n\tmon_host = {monitors} \n[mon.ctl02]\n")
    assert rados_options(10, str(conf)) == {"client_mount_timeout": "10", "mon_host": monitors}
    for agent in (ceph.AGENT, (LIBRARY / "cloudctl_osdtrial.py").read_text()):
        # What is given here wins over the file in the container, which is read first.
        assert re.search(r'conffile=.*\n? *conf=\{.*\*\*(request|asked)\["options"\]\}', agent)


def test_option_documentation_matches_the_arguments() -> None:
    import yaml

    documented = yaml.safe_load(ceph.DOCUMENTATION)["options"]
    yaml.safe_load(ceph.EXAMPLES)
    yaml.safe_load(ceph.RETURN)
    assert set(documented) == {
        "mode", "desired", "secrets", "devices", "fsid", "data", "journals", "image", "timeout",
        "journal_size", "journal_minimum", "osds", "steps", "node", "settle", "only", "leaving",
    }  # fmt: skip


def test_label_layout_is_what_the_decoder_expects() -> None:
    def text(value: str) -> bytes:
        return struct.pack("<I", len(value)) + value.encode()

    body = (
        b"\0" * 16
        + b"\0" * 8
        + b"\0" * 8
        + text("main")
        + struct.pack("<I", 1)
        + text("ceph_fsid")
        + text("x")
    )
    block = ceph.LABEL_MAGIC + OSD.encode() + b"\n" + struct.pack("<BBI", 2, 1, len(body)) + body
    assert ceph.parse_label(block) == {"osd_uuid": OSD, "ceph_fsid": "x", "description": "main"}
