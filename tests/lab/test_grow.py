"""Nodes come and go while a VM is pinged, an API is asked and a program writes; nothing else notices.

For a lab of topology full (a small one is enough for most). They make bare servers with ``lab add-node``, and
leave the lab as they found it. Default: a compute and a storage node come and go, refusals. ``--all`` of
scripts/lab-test adds (CLOUDCTL_TEST_ALL=1): four compute nodes at once, power cuts, a dead node.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest
from clients import ApiClient
from conftest import PREFIX, SITE, Result, lab_nodes, podman, read_containers, run_cloudctl, run_on
from deploynode import call, in_network, script_command
from ledger import Ledger
from test_osd import ceph

from cloudctl.lab.sitedir import INSTALLER_PASSWORD
from cloudctl.lab.topology import make_node

INVENTORY = SITE / "inventory" / "hosts.yml"
PASSWORD = {"CLOUDCTL_NODE_PASSWORD_FILE": str(SITE / ".cloudctl" / INSTALLER_PASSWORD)}
GAP = 3.0
"""Seconds that a VM may be silent while it moves."""
LONG = 1500.0
long = pytest.mark.skipif(
    not os.environ.get("CLOUDCTL_TEST_ALL"), reason="takes long: scripts/lab-test --all"
)


# -- servers and what is watched -----------------------------------------------------------------


def lab(*args: str) -> Result:
    result = run_cloudctl("lab", *args)
    assert result.rc == 0, str(result)
    return result


def node(*args: str, rc: int = 0, timeout: float = LONG) -> Result:
    """Run ``cloudctl node``."""
    result = run_cloudctl("node", *args, timeout=timeout, env=PASSWORD)
    assert result.rc == rc, str(result)
    return result


def members(role: str) -> list[str]:
    return [name for name, its in lab_nodes().items() if its == role]


def next_name(role: str) -> str:
    """Return the name that the next server of a role has: compute03, osd04."""
    stem = {"compute": "compute", "storage": "osd"}[role]
    return f"{stem}{max(int(name[-2:]) for name in members(role)) + 1:02d}"


def address(name: str) -> str:
    return make_node(name, "storage" if name.startswith("osd") else "compute").address


def enroll(name: str, role: str, **options: Any) -> Result:
    return node(
        "enroll", name, "--address", address(name), "--role", role, "--user", "installer", "--yes", **options
    )


def logins() -> dict[str, int]:
    """Return by node how many SSH logins came from the deploy node since it was switched on."""
    command = "journalctl -u ssh -b -o cat | grep -c 'Accepted publickey.* from 10.10.10.2 ' || true"
    on = [name for name, found in read_containers().items() if found]
    return {name: int(run_on(name, command)) for name in on}


@dataclass
class Pings:
    """Pings addresses five times a second while the block lasts.

    Attributes:
        gaps: by address, the longest time without an answer (seconds).
    """

    addresses: list[str]
    gaps: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Pings:
        self._began = time.time()
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        for to in self.addresses:
            # Into a file: ping would wait for a reader of its output after some minutes.
            said = tempfile.TemporaryFile()
            command = in_network(["ping", "-n", "-D", "-i", "0.2", to])
            self._running[to] = subprocess.Popen(command, stdout=said), said
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for to, (process, said) in self._running.items():
            process.terminate()
            process.wait(timeout=30)
            said.seek(0)
            out = said.read().decode()
            said.close()
            # Before the first and after the last answer counts, too.
            times = [float(at) for at in re.findall(r"^\[(\d+\.\d+)\] \d+ bytes", out, re.MULTILINE)]
            every = [self._began, *times, time.time()]
            self.gaps[to], began = max((b - a, a) for a, b in itertools.pairwise(every))
            print(
                f"{to}: at most {self.gaps[to]:.1f} s silent, from {time.strftime('%T', time.gmtime(began))}"
            )


@dataclass
class Guests:
    """A tenant with VMs and a volume; see grow_node.py."""

    name: str
    made: dict[str, Any]

    @property
    def addresses(self) -> list[str]:
        return list(self.made["servers"].values())

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = call("grow_node.py", "look", str(SITE), self.name)
        return found


@contextlib.contextmanager
def guests(name: str, host: str = "-", count: int = 1) -> Iterator[Guests]:
    """Start VMs (on a node); remove them afterwards."""
    try:
        yield Guests(name, call("grow_node.py", "make", str(SITE), name, host, str(count), timeout=LONG))
    finally:
        call("grow_node.py", "remove", str(SITE), name)


class Writer:
    """Writes to the volume of a VM and reads it back while the block lasts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writes = 0
        self.failures: list[Any] = []

    def __enter__(self) -> Writer:
        self._process = subprocess.Popen(
            script_command("grow_node.py", "write", str(SITE), self.name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        out, _ = self._process.communicate("stop\n", timeout=180)
        found = json.loads(out.splitlines()[-1])
        self.writes, self.failures = found["writes"], found["failures"]


@contextlib.contextmanager
def nobody_notices(tenant: Guests) -> Iterator[None]:
    """Fail when a ping, an API request, a row of the database or a write to a volume is lost."""
    with (
        Ledger(writers=2) as ledger,
        ApiClient("compute", "/flavors") as api,
        Writer(tenant.name) as writer,
        Pings(tenant.addresses) as pings,
    ):
        yield
    assert api.requests > 20
    assert api.failures == []
    assert writer.failures == []
    assert writer.writes > 3
    assert max(pings.gaps.values()) < 2.0, pings.gaps
    assert ledger.check() > 20
    ledger.drop()


@contextlib.contextmanager
def untouched(but: list[str], *, logins_at_most: int = 1) -> Iterator[None]:
    """Fail when a container of another node is another one, or was started again, or a node has more logins.

    The first controller works on Ceph, for all: its logins are not counted.
    """
    before, seen = read_containers(), logins()
    yield
    after, now = read_containers(), logins()
    for name in before:
        if name not in but:
            assert after[name] == before[name], name
            if name in seen and name != members("control")[0]:
                assert now[name] - seen[name] <= logins_at_most, f"{name}: {now[name] - seen[name]} logins"


def assert_deploy_changes_nothing() -> None:
    result = run_cloudctl("plan", "--output", "json")
    assert result.rc == 0, str(result)
    assert not result.json["changes"], result.out


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Take what a test added away again, whatever became of it; the inventory is as it was then."""
    inventory, known = INVENTORY.read_text(), (SITE / "known_hosts").read_text()
    had = set(lab_nodes())
    yield
    for name in sorted(set(lab_nodes()) - had):
        if name in INVENTORY.read_text():
            result = run_cloudctl("node", "remove", name, "--yes", timeout=LONG)
            if result.rc:
                run_cloudctl("lab", "power", "kill", name)
                run_cloudctl("node", "remove", name, "--dead", "--yes", timeout=LONG)
        lab("remove-node", name)
    assert INVENTORY.read_text() == inventory
    assert (SITE / "known_hosts").read_text() == known


@pytest.fixture
def tenant() -> Iterator[Guests]:
    """A VM with a volume, somewhere."""
    with guests("tenant") as made:
        yield made


# -- they come -----------------------------------------------------------------------------------


def added_lines(before: str) -> list[str]:
    """Return what the inventory has more; fail when a line is gone or another one."""
    old, new = before.splitlines(), INVENTORY.read_text().splitlines()
    assert [line for line in old if line not in new] == []
    return [line.strip() for line in new if line not in old]


def test_a_compute_and_a_storage_node_join_and_leave(tenant: Guests) -> None:
    compute, osd = next_name("compute"), next_name("storage")
    before = INVENTORY.read_text()
    lab("add-node", compute)
    lab("add-node", osd, "--data-disks", "2")
    with nobody_notices(tenant), untouched([compute, osd]):
        enroll(compute, "compute")
        enroll(osd, "storage")
        node("inspect", osd, "--accept")
        first = node("add", compute, "--yes", "--output", "json")
        print(f"compute ready in {first.json['seconds']} s: {first.json['steps']}")
    with nobody_notices(tenant), untouched([compute, osd]):
        second = node("add", osd, "--yes", "--output", "json")
        print(f"storage ready in {second.json['seconds']} s: {second.json['steps']}")
    assert sorted(line.split(":")[0] for line in added_lines(before)) == sorted([compute, osd])
    assert f"VM on {compute}" in first.json["steps"][2]["detail"]
    assert "data read from osd." in second.json["steps"][2]["detail"]
    assert_deploy_changes_nothing()
    tree = json.loads(ceph("osd tree --format json"))["nodes"]
    (host,) = (entry for entry in tree if entry["name"] == osd)
    assert len(host["children"]) == 2
    assert {row["name"]: row["state"] for row in node("list", "--output", "json").json["nodes"]}[
        osd
    ] == "member"
    leave_again(tenant, compute, osd)
    assert INVENTORY.read_text() == before
    assert_deploy_changes_nothing()


def leave_again(tenant: Guests, compute: str, osd: str) -> None:
    """Three VMs move away live; the data of the OSDs moves away."""
    with guests("movers", compute, 3) as movers:
        with Pings(movers.addresses) as pings, untouched([compute, osd]):
            node("remove", compute, "--yes")
        assert max(pings.gaps.values()) <= GAP, pings.gaps
        found = movers.look()
        assert compute not in found["hosts"].values()
        assert set(found["status"].values()) == {"ACTIVE"}
        assert found["sum"] == movers.made["sum"]
    hosts = {row["host"] for row in run_cloudctl("status", "--output", "json").json["compute"]}
    assert compute not in hosts
    with nobody_notices(tenant), untouched([compute, osd]):
        node("remove", osd, "--yes")
    assert json.loads(ceph("status --format json"))["health"]["status"] == "HEALTH_OK"
    assert osd not in ceph("osd tree")


@long
def test_four_computes_take_less_than_twice_the_time_of_one() -> None:
    number = int(next_name("compute")[-2:])
    names = [f"compute{number + n:02d}" for n in range(5)]
    for name in names:
        lab("add-node", name)
    listed = "".join(f"- {{name: {n}, address: {address(n)}, role: compute}}\n" for n in names)
    file = SITE / ".cloudctl" / "new.yml"
    file.write_text(listed)
    node("enroll", "--from", str(file), "--user", "installer", "--yes")
    file.unlink()
    one = node("add", names[0], "--yes", "--output", "json").json["seconds"]
    with untouched(names):
        four = node("add", *names[1:], "--yes", "--output", "json").json["seconds"]
    print(f"one: {one} s, four at once: {four} s")
    assert four < 2 * one


@long
@pytest.mark.parametrize("after", ["base settings", "what the others"])
def test_a_power_cut_in_the_middle_harms_nobody(tenant: Guests, after: str) -> None:
    name = next_name("compute")
    lab("add-node", name)
    enroll(name, "compute")
    # Both runs tell the others once, and status asks them in between.
    with nobody_notices(tenant), untouched([name], logins_at_most=3):
        running = subprocess.Popen(
            ["cloudctl", "--site", str(SITE), "node", "add", name, "--yes"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            if after in line:
                break
        time.sleep(5)
        lab("power", "kill", name)
        running.communicate(timeout=LONG)
        assert running.returncode != 0
        problems = run_cloudctl("status", "--output", "json").json["problems"]
        assert "node-add-unfinished" in {p["ref"] for p in problems if p["where"] == name}
        assert [p for p in problems if not p["warning"]] == []
        lab("power", "on", name)
        node("add", name, "--yes")
    assert "node-add-unfinished" not in run_cloudctl("status").out
    assert_deploy_changes_nothing()


def join_compute() -> str:
    """Add a compute node; return its name."""
    name = next_name("compute")
    lab("add-node", name)
    enroll(name, "compute")
    node("add", name, "--yes")
    return name


@long
def test_a_dead_compute_nodes_instances_are_evacuated() -> None:
    name = join_compute()
    with guests("dead", name, 2) as tenant:
        assert node("remove", name, "--dead", "--yes", rc=4).refs == ["node-alive"]
        lab("power", "kill", name)
        node("remove", name, "--dead", "--yes")
        found = tenant.look()
        assert name not in found["hosts"].values()
        assert set(found["status"].values()) == {"ACTIVE"}
        assert found["sum"] == tenant.made["sum"]


def act(tenant: Guests, server: str, action: str, status: str) -> str:
    """Let the API do something with a VM; return where it is when it has the status."""
    wanted = json.dumps({action: None})
    return str(call("grow_node.py", "act", str(SITE), tenant.name, server, wanted, status)["host"])


def resize(tenant: Guests, server: str) -> str:
    """Resize a VM without confirming that; return where it is."""
    return str(call("grow_node.py", "resize", str(SITE), tenant.name, server)["host"])


def set_service(host: str, **change: Any) -> None:
    """Change what the API holds of a compute node's service."""
    call("grow_node.py", "service", str(SITE), "service", host, json.dumps(change))


@long
def test_moves_that_nobody_has_confirmed() -> None:
    """A resize is refused; an administrator's cold move and a node that was called dead are no obstacle."""
    name = join_compute()
    with guests("unconfirmed", name, 4) as tenant:
        running, resized, stopped, moved = tenant.made["servers"]
        act(tenant, stopped, "os-stop", "SHUTOFF")
        act(tenant, moved, "os-stop", "SHUTOFF")
        assert act(tenant, moved, "migrate", "VERIFY_RESIZE") != name
        assert resize(tenant, resized) != name
        refused("remove", name, "--yes", ref="resize-unconfirmed")
        act(tenant, resized, "confirmResize", "ACTIVE")
        set_service(name, forced_down=True)
        node("remove", name, "--yes")
        found = tenant.look()
        assert name not in found["hosts"].values()
        assert found["status"] == {
            running: "ACTIVE", resized: "ACTIVE", stopped: "SHUTOFF", moved: "SHUTOFF",
        }  # fmt: skip
        assert found["sum"] == tenant.made["sum"]


@long
def test_a_dead_compute_nodes_paused_instance_and_its_resizes() -> None:
    name = join_compute()
    with guests("frozen", name, 4) as tenant:
        _, paused, suspended, resized = tenant.made["servers"]
        act(tenant, paused, "pause", "PAUSED")
        act(tenant, suspended, "suspend", "SUSPENDED")
        assert resize(tenant, resized) != name
        lab("power", "kill", name)
        node("remove", name, "--dead", "--yes")
        found = tenant.look()
        assert name not in found["hosts"].values()
        assert set(found["status"].values()) == {"ACTIVE"}
        assert found["sum"] == tenant.made["sum"]
    hosts = {row["host"] for row in run_cloudctl("status", "--output", "json").json["compute"]}
    assert name not in hosts


@long
def test_a_dead_compute_node_leaves_while_the_first_controller_is_off() -> None:
    first, *others = members("control")
    if len(others) < 2:
        pytest.skip("this lab has no majority without its first controller")
    name = join_compute()
    lab("power", "kill", name)
    lab("power", "kill", first)
    try:
        time.sleep(40)  # the others notice the loss
        wait_until(lambda: not api_problems())
        done = node("remove", name, "--dead", "--yes", "--output", "json").json
    finally:
        lab("power", "on", first)
        wait_until(lambda: run_cloudctl("status").rc == 0)
    (told,) = (step["detail"] for step in done["steps"] if step["name"] == "tell")
    assert told.endswith(f"a deploy does the rest: {first}")
    deployed = run_cloudctl("deploy", "--yes", timeout=LONG)
    assert deployed.rc == 0, str(deployed)
    assert_deploy_changes_nothing()


def api_problems() -> list[str]:
    """Return what keeps the APIs from answering just now, by the loss of a controller."""
    problems = run_cloudctl("status", "--output", "json").json["problems"]
    return [p["ref"] for p in problems if p["ref"] in ("api-silent", "vip-without-holder")]


def wait_until(done: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(3)


@long
def test_services_that_do_not_end_are_told_and_the_removal_goes_on() -> None:
    name = join_compute()
    compose = "/etc/cloudctl/compose.yml"
    run_on(name, f"cp -p {compose} /root; echo '[' >> {compose}")
    assert node("remove", name, "--yes", rc=6).refs == ["services-not-ended"]
    assert run_on(name, "docker ps -q"), "its containers still run"
    run_on(name, f"cp -p /root/compose.yml {compose}")
    node("remove", name, "--yes")
    assert not run_on(name, "docker ps -q")
    assert_deploy_changes_nothing()


def join_storage() -> str:
    """Add a storage node with two OSDs; return its name."""
    name = next_name("storage")
    lab("add-node", name, "--data-disks", "2")
    enroll(name, "storage")
    node("inspect", name, "--accept")
    node("add", name, "--yes")
    return name


def assert_forgotten_by_ceph(name: str) -> None:
    assert json.loads(ceph("status --format json"))["health"]["status"] == "HEALTH_OK"
    assert name not in ceph("osd tree")
    assert name not in {entry["hostname"] for entry in json.loads(ceph("orch host ls --format json"))}


@long
def test_a_dead_storage_nodes_data_is_made_complete_from_the_other_copies(tenant: Guests) -> None:
    name = join_storage()
    assert node("remove", name, "--dead", "--yes", rc=4).refs == ["node-alive"]
    lab("power", "kill", name)
    # The guest's own writes wait until Ceph has noticed: what it reads in the end is what it wrote.
    # The controllers are asked whether the node is really off, and told later.
    with untouched([name], logins_at_most=2):
        node("remove", name, "--dead", "--yes")
    assert_forgotten_by_ceph(name)
    assert tenant.look()["sum"] == tenant.made["sum"]
    assert_deploy_changes_nothing()


@long
def test_a_monitor_moves_away_before_its_node(tenant: Guests) -> None:
    name = join_storage()
    before = INVENTORY.read_text()
    first, second, third = members("control")
    listed = "".join(f"        {node}:\n" for node in (first, second, name))
    group = "    mons:\n      children:\n        control: {}\n"
    assert group in before
    INVENTORY.write_text(before.replace(group, f"    mons:\n      hosts:\n{listed}"))
    try:
        with nobody_notices(tenant):
            moved = run_cloudctl("deploy", "--yes", timeout=LONG)
            assert moved.rc == 0, str(moved)
        assert monitors() == {first, second, name}
        with nobody_notices(tenant):
            node("remove", name, "--yes")
        assert monitors() == {first, second, third}
        assert name not in INVENTORY.read_text() and f"{third}:\n" in INVENTORY.read_text()
        assert_forgotten_by_ceph(name)
        assert_deploy_changes_nothing()
    finally:
        if name not in INVENTORY.read_text():
            before = "".join(line for line in before.splitlines(keepends=True) if f" {name}:" not in line)
        INVENTORY.write_text(before)
    assert_deploy_changes_nothing()


def monitors() -> set[str]:
    """Return who is part of the monitors' quorum."""
    return set(json.loads(ceph("quorum_status --format json"))["quorum_names"])


# -- what is refused -----------------------------------------------------------------------------


@contextlib.contextmanager
def nothing_changes(name: str = "") -> Iterator[None]:
    """Fail when inventory, known_hosts, containers, or a server's own files are others afterwards."""

    def state() -> tuple[str, ...]:
        own = ""
        if name:
            own = run_on(
                name,
                "cat /etc/ssh/sshd_config.d/* /root/.ssh/authorized_keys /etc/hosts 2>/dev/null | md5sum;"
                " ip -br address; dpkg -l | wc -l; ls /dev/disk/by-id /etc/cloudctl 2>/dev/null; true",
            )
        return INVENTORY.read_text(), (SITE / "known_hosts").read_text(), own

    before, containers = state(), read_containers()
    yield
    assert state() == before
    assert read_containers() == containers


def refused(*args: str, ref: str, env: dict[str, str] | None = None) -> None:
    result = run_cloudctl("node", *args, env={**PASSWORD, **(env or {})}, timeout=LONG)
    assert result.rc in (2, 3, 4, 5), str(result)
    assert result.refs == [ref], str(result)


@pytest.fixture
def bare() -> str:
    name = next_name("compute")
    lab("add-node", name)
    return name


ENROLL = ("--role", "compute", "--user", "installer", "--yes")


def test_enrolling_what_is_somebody_elses(bare: str) -> None:
    taken = members("compute")[0]
    with nothing_changes(bare):
        refused("enroll", taken, "--address", address(bare), *ENROLL, ref="node-exists")
        refused("enroll", bare, "--address", address(taken), *ENROLL, ref="address-in-use")
        refused("enroll", bare, "--address", "10.10.10.250", *ENROLL, ref="address-in-use")
        refused("enroll", bare, "--address", "10.10.10.199", *ENROLL, ref="node-unreachable")
        # A second address of a known node.
        run_on(taken, "ip address add 10.10.10.198/24 dev eth0")
        try:
            refused("enroll", bare, "--address", "10.10.10.198", *ENROLL, ref="address-of-known-node")
        finally:
            run_on(taken, "ip address del 10.10.10.198/24 dev eth0")
        # Two machines with one address.
        run_on(taken, f"ip address add {address(bare)}/32 dev eth0")
        try:
            refused("enroll", bare, "--address", address(bare), *ENROLL, ref="address-duplicate")
        finally:
            run_on(taken, f"ip address del {address(bare)}/32 dev eth0")


def test_a_known_host_key_and_a_wrong_password(bare: str) -> None:
    taken = members("compute")[0]
    key = run_on(taken, "cat /etc/ssh/ssh_host_ed25519_key")
    own = run_on(bare, "cat /etc/ssh/ssh_host_ed25519_key")
    with nothing_changes(bare):
        wrong = SITE / ".cloudctl" / "wrong-password"
        wrong.write_text("nonsense\n")
        wrong.chmod(0o600)
        try:
            refused(
                "enroll", bare, "--address", address(bare), *ENROLL, ref="password-refused",
                env={"CLOUDCTL_NODE_PASSWORD_FILE": str(wrong)},
            )  # fmt: skip
        finally:
            wrong.unlink()
        assert int(run_on(bare, "journalctl -u ssh -b -o cat | grep -c 'Failed password' || true")) == 1
        refused(
            "enroll", bare, "--address", address(bare), "--user", "installer", "--fingerprint",
            "SHA256:" + "A" * 43, ref="fingerprint-differs",
        )  # fmt: skip
    write_key(bare, key)
    try:
        with nothing_changes(bare):
            refused("enroll", bare, "--address", address(bare), *ENROLL, ref="host-key-known")
    finally:
        write_key(bare, own)


def write_key(name: str, key: str) -> None:
    """Give a server another host key."""
    subprocess.run(
        [*podman(), "exec", "-i", PREFIX + name, "sh", "-c",
         "cat > /etc/ssh/ssh_host_ed25519_key; ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key > "
         "/etc/ssh/ssh_host_ed25519_key.pub; systemctl restart ssh"],
        input=key, text=True, check=True,
    )  # fmt: skip


@contextlib.contextmanager
def enrolled_storage(*options: str, **variables: list[str]) -> Iterator[str]:
    """A storage server in newnodes, with its disks named; it is forgotten again."""
    name = next_name("storage")
    lab("add-node", name, *options)
    enroll(name, "storage")
    node("inspect", name, "--accept")
    yield name


def test_a_small_mtu_and_unknown_nodes_are_refused() -> None:
    refused("add", "nosuch", "--yes", ref="node-unknown")
    refused("add", members("compute")[0], "--yes", ref="node-in-use")
    refused("remove", "nosuch", "--yes", ref="node-unknown")
    refused("remove", members("control")[0], "--yes", ref="controller-quorum")
    with enrolled_storage("--mtu-limit", "eth1=1500") as name, nothing_changes(name):
        refused("add", name, "--yes", ref="network-mtu")


_LVM = """
import zlib
label = bytearray(512)
label[:16] = b"LABELONE" + (1).to_bytes(8, "little")
label[20:24] = (32).to_bytes(4, "little")
label[24:32] = b"LVM2 001"
label[32:64] = b"0123456789abcdefghijklmnopqrstuv"
crc = zlib.crc32(bytes(label[20:]), 0xf597a6cf ^ 0xffffffff) ^ 0xffffffff
label[16:20] = crc.to_bytes(4, "little")
with open("{device}", "r+b") as disk:
    disk.seek(512)
    disk.write(label)
"""
# A bare server has no program that makes one: a DOS label with one partition.
_TABLE = """
label = bytearray(512)
place = (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
label[446:462] = bytes((0, 0, 2, 0, 0x83, 0, 0, 0)) + place
label[510:] = bytes((0x55, 0xaa))
with open("{device}", "r+b") as disk:
    disk.write(label)
"""
_OTHER = "printf 'bluestore block device\\n0f5e1a5c-9d1b-4a57-8a55-3a1f3f0f7a11\\n'"
SPOILERS = {
    "a partition table": "python3 - <<'END'" + _TABLE + "END",
    "LVM": "python3 - <<'END'" + _LVM + "END",
    "another cluster's OSD": _OTHER + " | dd of={device} conv=notrunc status=none",
    "a file system that is mounted": "mkdir -p /mnt/x && mount {device} /mnt/x",
}
MEND = "umount /mnt/x; wipefs -aq {device}; dd if=/dev/zero of={device} bs=1M count=4 status=none"


@pytest.mark.parametrize("what", list(SPOILERS))
def test_a_disk_that_is_not_empty_is_refused(what: str, tmp_path: Path) -> None:
    with enrolled_storage() as name:
        device = run_on(name, "readlink -f /dev/disk/by-id/lab-data1").strip()
        if "mounted" in what:
            image = tmp_path / "image"
            subprocess.run(["mkfs.ext4", "-q", str(image), "16M"], check=True)
            copy = [*podman(), "exec", "-i", PREFIX + name, "dd", f"of={device}", "bs=1M", "status=none"]
            subprocess.run(copy, input=image.read_bytes(), check=True)
        run_on(name, SPOILERS[what].replace("{device}", device))
        try:
            with nothing_changes(name):
                refused("add", name, "--yes", ref="osd-device-refused")
        finally:
            run_on(name, MEND.format(device=device), check=False)


def test_the_last_of_a_kind_and_too_few_copies_are_refused() -> None:
    copies = max(pool["size"] for pool in json.loads(ceph("osd pool ls detail --format json")))
    with nothing_changes():
        if len(members("compute")) == 1:
            refused("remove", members("compute")[0], "--yes", ref="last-compute")
        if len(members("storage")) > copies:
            pytest.skip(f"{len(members('storage'))} storage nodes are more than {copies} copies need")
        # As many nodes as copies: one less breaks the failure domain.
        result = run_cloudctl("node", "remove", members("storage")[0], "--yes", timeout=LONG)
        assert result.rc == 4, str(result)
        assert result.refs[0] in ("node-needed", "osd-failure-domain", "last-storage"), str(result)


# -- what the tests themselves rely on -----------------------------------------------------------


def test_the_tests_see_a_lost_ping() -> None:
    watch: Callable[[str], Pings] = lambda to: Pings([to])  # noqa: E731
    with watch("10.10.10.197") as nobody:
        time.sleep(3)
    assert nobody.gaps["10.10.10.197"] > 2.5
    with watch("10.10.10.2") as somebody:
        time.sleep(3)
    assert somebody.gaps["10.10.10.2"] < 2.0


def test_the_last_compute_node_that_takes_instances_is_refused() -> None:
    first, *others = members("compute")
    if not others:
        pytest.skip("a lab with one compute node")
    try:
        for other in others:
            set_service(other, status="disabled")
        with nothing_changes():
            refused("remove", first, "--yes", ref="no-other-compute")
    finally:
        for other in others:
            set_service(other, status="enabled")
