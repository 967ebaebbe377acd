"""The parts of verify that need no cloud: steps and their undoing, the console's protocol, the disk."""

from __future__ import annotations

import base64
import hashlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudctl.errors import VerifyFailed
from cloudctl.verify import guest
from cloudctl.verify.console import parse_frame, try_console, websocket_target
from cloudctl.verify.image import image_format, prepared
from cloudctl.verify.steps import Step, StepFailed, run_steps, wait_until
from cloudctl.verify.tenant import (
    ALL_STEPS,
    PREFIX,
    STEPS,
    Volume,
    World,
    build_errors,
    delete_servers,
    leftover_names,
    plausible_id,
)

Trace = list[str]


def make(name: str, *, fails: BaseException | None = None, stays: bool = False) -> Step[Trace]:
    """Return a step that writes down what happens to it."""

    class Made(Step[Trace]):
        look = "the log"

        def run(self, world: Trace) -> str:
            world.append(f"run {name}")
            if fails:
                raise fails
            return f"did {name}"

        def undo(self, world: Trace) -> None:
            world.append(f"undo {name}")
            if stays:
                raise RuntimeError("does not go away")

    Made.name = name
    return Made()


def test_steps_run_in_order_and_are_undone_in_reverse() -> None:
    trace: Trace = []
    report = run_steps([make("a"), make("b")], trace)
    assert trace == ["run a", "run b", "undo b", "undo a"]
    assert report.healthy
    assert [outcome.name for outcome in report.outcomes] == ["a", "b", "clean up"]


def test_failed_step_is_undone_too_and_later_ones_are_not_run() -> None:
    trace: Trace = []
    report = run_steps([make("a"), make("b", fails=StepFailed("no answer")), make("c")], trace)
    assert trace == ["run a", "run b", "undo b", "undo a"]
    assert isinstance(report.error, VerifyFailed) and report.error.exit_code == 7
    assert report.error.message == "b: no answer"
    assert (report.error.where, report.error.hint) == ("b", "the log")


def test_interrupt_undoes_everything_even_when_asked_to_keep() -> None:
    trace: Trace = []
    with pytest.raises(KeyboardInterrupt):
        run_steps([make("a"), make("b", fails=KeyboardInterrupt())], trace, keep=True)
    assert trace == ["run a", "run b", "undo b", "undo a"]


def test_keep_undoes_nothing() -> None:
    trace: Trace = []
    assert run_steps([make("a")], trace, keep=True).healthy
    assert trace == ["run a"]


def test_what_stays_behind_is_reported_and_does_not_stop_the_clean_up() -> None:
    trace: Trace = []
    report = run_steps([make("a"), make("b", stays=True)], trace)
    assert trace[-2:] == ["undo b", "undo a"]
    assert not report.healthy and report.error is not None
    assert report.error.ref == "verify-cleanup-failed"
    assert report.leftovers == ["b: RuntimeError: does not go away"]


def test_first_failure_counts_when_the_clean_up_fails_too() -> None:
    report = run_steps([make("a", stays=True), make("b", fails=StepFailed("x"))], [])
    assert report.error is not None and report.error.ref == "verify-failed"
    assert report.leftovers


def test_timings_come_from_the_clock() -> None:
    ticks = iter([0.0, 2.5, 3.0, 3.0])
    report = run_steps([make("a")], [], clock=lambda: next(ticks))
    assert [outcome.seconds for outcome in report.outcomes] == [2.5, 0.0]
    assert report.as_dict()["seconds"] == 2.5


def test_waiting_is_bounded_and_says_what_was_seen() -> None:
    with pytest.raises(StepFailed, match=r"the thing did not happen within 0 s \(it is red\)"):
        wait_until(lambda: False, 0.05, "the thing", interval=0.01, why=lambda: "it is red")
    seen = iter([0, 0, 1])
    assert wait_until(lambda: next(seen), 5, "the thing", interval=0.001) < 5


def test_every_step_says_where_to_look() -> None:
    for step in ALL_STEPS:
        assert step.name and step.look, type(step).__name__
    assert len({step.name for step in ALL_STEPS}) == len(ALL_STEPS)


def test_leftovers_are_found_by_name_wherever_they_are() -> None:
    def things(*names: str | None) -> Any:
        return lambda **query: [SimpleNamespace(name=name) for name in names]

    admin = SimpleNamespace(
        identity=SimpleNamespace(projects=things("admin", f"{PREFIX}1"), users=things(f"{PREFIX}2", "admin")),
        compute=SimpleNamespace(flavors=things("m1.tiny")),
        image=SimpleNamespace(images=things(None, f"{PREFIX}1")),
    )
    assert leftover_names(admin) == [f"{PREFIX}1", f"{PREFIX}2"]


class FakeCollection:
    """An API that holds named things and forgets deleted ones."""

    def __init__(self, log: Trace) -> None:
        self.log = log
        self.things: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("delete_"):

            def delete(thing: Any, **options: Any) -> None:
                self.log.append(name)
                for held in self.things.values():
                    held[:] = [other for other in held if other is not thing and other.id != thing]

            return delete
        return lambda **query: list(self.things.get(name, []))


def test_undo_of_a_killed_run_removes_everything_in_an_order_that_works() -> None:
    log: Trace = []
    admin = SimpleNamespace(
        **{api: FakeCollection(log) for api in ("identity", "compute", "network", "image", "block_storage")}
    )

    ids = iter("abcdefghijklmnopqrst")

    def thing() -> SimpleNamespace:
        return SimpleNamespace(id=next(ids), name=f"{PREFIX}x", device_owner="", status="available")

    admin.identity.things = {"projects": [thing()], "users": [thing()]}
    admin.compute.things = {"flavors": [thing()], "servers": [thing()]}
    admin.image.things = {"images": [thing()]}
    admin.block_storage.things = {"volumes": [thing()]}
    admin.network.things = {kind: [thing()] for kind in ("networks", "routers", "security_groups", "ips")}
    world = World(site=None, admin=admin, name=f"{PREFIX}x")  # type: ignore[arg-type]
    for step in reversed(STEPS):
        step.undo(world)
    order = [entry.removeprefix("delete_") for entry in log]
    assert order == [
        "ip", "server", "volume", "keypair", "security_group", "router", "network", "image", "flavor",
        "user", "project",
    ]  # fmt: skip
    log.clear()
    for step in reversed(STEPS):
        step.undo(World(site=None, admin=admin, name=f"{PREFIX}x"))  # type: ignore[arg-type]
    assert log == []


def test_a_vm_whose_deletion_failed_is_deleted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SimpleNamespace(id="one", name=f"{PREFIX}x", status="ACTIVE", task_state=None)
    other = SimpleNamespace(id="two", name=f"{PREFIX}xy", status="ACTIVE", task_state=None)
    now, asked = [0.0], []

    def delete(given: Any, **options: Any) -> None:
        asked.append((now[0], given.id))
        given.status, given.task_state = ("ERROR", None) if len(asked) == 1 else ("ACTIVE", "deleting")

    def servers(**query: Any) -> list[Any]:
        return [other] if now[0] > 30 else [server, other]

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    delete_servers(SimpleNamespace(delete_server=delete, servers=servers), server.name)
    assert asked == [(0.0, "one"), (11.0, "one")]
    monkeypatch.setattr(delete_servers.__module__ + ".CHANGE_TIMEOUT", 5)
    now[0] = 0.0
    with pytest.raises(StepFailed, match="one: ACTIVE"):
        delete_servers(SimpleNamespace(delete_server=delete, servers=servers), server.name)


def test_guest_may_know_itself_by_either_id() -> None:
    assert plausible_id("uuid", "uuid")
    assert plausible_id("i-0000002a", "uuid")
    assert not plausible_id("none", "uuid") and not plausible_id("", "uuid")


def test_evidence_is_taken_before_the_clean_up_and_may_fail() -> None:
    trace: Trace = []

    def diagnose() -> list[str]:
        trace.append("diagnose")
        return ["kernel panic"]

    report = run_steps([make("a", fails=StepFailed("x"))], trace, diagnose=diagnose)
    assert trace == ["run a", "diagnose", "undo a"]
    assert report.evidence == ["kernel panic"]

    def broken() -> list[str]:
        raise RuntimeError

    assert run_steps([make("a", fails=StepFailed("x"))], [], diagnose=broken).error is not None


def test_reasons_of_each_compute_node_are_told() -> None:
    events = [
        {"result": "Error", "host": "cmp01", "traceback": "Traceback\n  x\nlibvirt.libvirtError: no kvm\n"},
        {"result": "Error", "host": "cmp02", "details": "no kvm", "traceback": None},
        {
            "result": "Success",
            "host": "cmp03",
            "traceback": None,
            "event": "compute__do_build_and_run_instance",
        },
    ]
    compute = SimpleNamespace(
        server_actions=lambda server: [SimpleNamespace(request_id="r")],
        get_server_action=lambda request, server: SimpleNamespace(events=events),
    )
    world = World(site=None, admin=SimpleNamespace(compute=compute))  # type: ignore[arg-type]
    server = SimpleNamespace(id="1", fault={"message": "Exhausted all hosts"})
    assert build_errors(world, server) == (
        "Exhausted all hosts; cmp01: libvirt.libvirtError: no kvm; cmp02: no kvm; "
        "tried on cmp03: the reason is in nova-compute.log there"
    )
    assert build_errors(World(site=None, admin=None), server) == "Exhausted all hosts"  # type: ignore[arg-type]


def test_new_disk() -> None:
    assert guest.new_disk(["vda"], ["vda", "vdb"]) == "/dev/vdb"
    with pytest.raises(StepFailed, match="found none"):
        guest.new_disk(["vda"], ["vda"])
    with pytest.raises(StepFailed, match="vdb, vdc"):
        guest.new_disk(["vda"], ["vda", "vdb", "vdc"])


def test_disk_script_is_valid_shell() -> None:
    subprocess.run(["sh", "-n", "-c", guest.disk_script("/dev/vdb", "token")], check=True)


def test_keypair_is_a_usable_one() -> None:
    import io

    import paramiko

    private, public = guest.make_keypair()
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(private))
    assert public == f"ssh-ed25519 {key.get_base64()}"


def test_image_format(tmp_path: Path) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"\0" * 512)
    assert image_format(raw) == "raw"
    qcow2 = tmp_path / "a.qcow2"
    qcow2.write_bytes(b"QFI\xfb" + b"\0" * 100)
    assert image_format(qcow2) == "qcow2"
    with pytest.raises(StepFailed, match="no guest image at"):
        image_format(tmp_path / "none")
    with prepared(raw) as (path, kind):
        assert (path, kind) == (raw, "raw")


def test_qcow2_is_uploaded_as_it_is_without_a_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"QFI\xfb")
    with prepared(image) as (path, kind):
        assert (path, kind) == (image, "qcow2")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://h:6080/vnc_lite.html?path=%3Ftoken%3Da-b", "/?token=a-b"),
        ("https://h:6080/vnc_auto.html?path=?token=a-b", "/?token=a-b"),
        ("https://h:6080/vnc_auto.html?token=a-b", "/websockify?token=a-b"),
    ],
)
def test_websocket_target(url: str, target: str) -> None:
    assert websocket_target(url) == target


def test_console_url_without_token() -> None:
    with pytest.raises(StepFailed, match="no token"):
        websocket_target("https://h:6080/vnc_auto.html")


def test_frames() -> None:
    assert parse_frame(b"") is None
    assert parse_frame(b"\x82\x03ab") is None
    assert parse_frame(b"\x82\x03abc\x81") == (2, b"abc")
    assert parse_frame(b"\x82\x7e\x00\x80" + b"x" * 128) == (2, b"x" * 128)


@pytest.fixture
def console_server() -> Iterator[Any]:
    """Yield a function that starts a console proxy with a given behaviour and returns its URL."""
    listeners: list[socket.socket] = []

    def start(banner: bytes = b"RFB 003.008\n", *, page: int = 200, upgrade: bool = True) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _peer = listener.accept()
                except OSError:
                    return
                with connection:
                    request = connection.recv(65536).decode()
                    if "Upgrade: websocket" not in request:
                        connection.sendall(f"HTTP/1.1 {page} X\r\n\r\nhello".encode())
                        continue
                    if not upgrade:
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                        continue
                    key = request.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
                    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
                    answer = base64.b64encode(digest).decode()
                    connection.sendall(
                        f"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: {answer}\r\n\r\n".encode()
                    )
                    # In two frames, as a proxy may cut it.
                    for part in (banner[:4], banner[4:]):
                        connection.sendall(bytes([0x82, len(part)]) + part)
                    connection.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        return f"http://127.0.0.1:{port}/vnc_lite.html?path=%3Ftoken%3Dabc"

    yield start
    for listener in listeners:
        listener.close()


def test_console_answers(console_server: Any) -> None:
    assert try_console(console_server(), None, timeout=5) == "RFB 003.008"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"page": 404}, "page answers 404"),
        ({"upgrade": False}, "refuses the websocket: HTTP/1.1 403"),
        ({"banner": b"SSH-2.0-xxxx\n"}, "does not speak VNC"),
    ],
)
def test_console_that_does_not_work(console_server: Any, behaviour: dict[str, Any], message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        try_console(console_server(**behaviour), None, timeout=5)


def test_console_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StepFailed, match="no connection to the console"):
        try_console(f"http://127.0.0.1:{port}/?token=a", None, timeout=2)


class FakeStorage:
    """Block storage whose volumes end as told, one after the other: (status, host)."""

    def __init__(self, ends: list[tuple[str, str | None]]) -> None:
        self.ends = ends
        self.made = 0
        self.there: list[SimpleNamespace] = []

    def backend_pools(self) -> list[str]:
        return ["ceph@rbd#rbd"]

    def create_volume(self, name: str, size: int) -> SimpleNamespace:
        status, host = self.ends[self.made]
        self.made += 1
        self.there = [SimpleNamespace(id=f"v{self.made}", name=name, status=status, host=host, size=size)]
        return self.there[0]

    def get_volume(self, number: str) -> SimpleNamespace:
        return next(volume for volume in self.there if volume.id == number)

    def volumes(self, **_query: Any) -> list[SimpleNamespace]:
        return list(self.there)

    def delete_volume(self, _volume: Any, **_options: Any) -> None:
        self.there = []


def volume_world(ends: list[tuple[str, str | None]]) -> tuple[Any, FakeStorage]:
    storage = FakeStorage(ends)
    api = SimpleNamespace(block_storage=storage)
    return SimpleNamespace(tenant=api, admin=api, name="cloudctl-verify-x", volume=None), storage


def test_a_volume_that_no_scheduler_could_place_yet_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudctl.verify.tenant.PLACEMENT_PAUSE", 0)
    world, storage = volume_world([("error", None), ("error", None), ("available", "ceph@rbd#rbd")])
    assert Volume().run(world) == "1 GiB on ceph@rbd#rbd"
    assert storage.made == 3
    assert [volume.id for volume in storage.there] == ["v3"]


def test_a_volume_that_failed_where_it_was_placed_is_not_made_again() -> None:
    world, storage = volume_world([("error", "ceph@rbd#rbd"), ("available", "ceph@rbd#rbd")])
    with pytest.raises(StepFailed, match=r"state 'error'$"):
        Volume().run(world)
    assert storage.made == 1


def test_a_volume_that_is_never_placed_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudctl.verify.tenant.PLACEMENT_TIMEOUT", -1)
    world, storage = volume_world([("error", None), ("available", "ceph@rbd#rbd")])
    with pytest.raises(StepFailed, match="no volume service was found"):
        Volume().run(world)
    assert storage.made == 1
