"""The whole cloud off and on: in order, killed in the middle, by a power cut, with nodes that stay away.

Default: one shutdown and start with kills on the way, one power cut, refusals that stop nothing. ``--all`` of
scripts/lab-test adds (CLOUDCTL_TEST_ALL=1): a kill in each step, absent nodes, every command of the printed
runbook.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    PREFIX,
    SITE,
    kill_cloudctl,
    lab_nodes,
    lock_is_free,
    podman,
    read_containers,
    run_cloudctl,
    run_on,
    start_cloudctl,
)
from deploynode import OUTPUT, call
from ledger import Ledger
from objects import ObjectLedger

ROOT = Path(__file__).resolve().parents[2]
STATE = SITE / ".cloudctl" / "operations"
SIX = {"noout", "norecover", "norebalance", "nobackfill", "nodown", "pause"}
long = pytest.mark.skipif(
    not os.environ.get("CLOUDCTL_TEST_ALL"), reason="takes long: scripts/lab-test --all"
)

Cloudctl = Callable[..., Any]


def nodes_of(role: str) -> list[str]:
    return [name for name, its in lab_nodes().items() if its == role]


def ceph(command: str) -> str:
    """Run a ceph command on the first controller whose monitor runs."""
    script = (
        "name=$(docker ps --format '{{.Names}}' | grep -E 'ceph-.*-mon[-.]') && docker exec $name"
        f" ceph -n mon. -k /var/lib/ceph/mon/ceph-$(hostname -s)/keyring {command}"
    )
    return run_on(nodes_of("control")[0], script)


def flags() -> set[str]:
    """Return the flags of the OSD map that an operator can set."""
    found = set(json.loads(ceph("osd dump --format json"))["flags"].split(","))
    named = {"pause" if flag in ("pauserd", "pausewr") else flag for flag in found}
    return named & {*SIX, "noscrub", "nodeep-scrub"}


def journal(name: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((STATE / f"cluster-{name}.json").read_text()))
    return {}


def run_with_kills(name: str, *args: str, at: Callable[[str], bool], timeout: float = 1500) -> list[str]:
    """Run ``cloudctl cluster NAME``; kill it in each step that ``at`` names, go on. Return those steps."""
    killed: list[str] = []
    deadline = time.monotonic() + timeout
    while True:
        process = start_cloudctl("cluster", name, *args)
        victim = None
        while process.poll() is None and victim is None:
            assert time.monotonic() < deadline, f"cluster {name} takes longer than {timeout} s"
            for key, entry in journal(name).get("steps", {}).items():
                if entry["state"] == "begun" and key not in killed and at(key) and not lock_is_free():
                    victim = key
            time.sleep(0.05)
        if victim is None:
            out, err = process.communicate()
            assert process.returncode == 0, f"cluster {name} ended with {process.returncode}\n{out}\n{err}"
            return killed
        time.sleep(0.4)  # into the step, not at its door
        kill_cloudctl(process)
        killed.append(victim)


def kill_at(step: str) -> None:
    """Begin a shutdown, and kill it in a step."""
    process = start_cloudctl("cluster", "down", "--yes")
    deadline = time.monotonic() + 600
    while (
        journal("down").get("steps", {}).get(step, {}).get("state") != "begun" or journal("down")["finished"]
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    kill_cloudctl(process)


def check_runs(name: str, killed: list[str], every_time: str) -> None:
    """Each step was done once; a killed one was begun once more."""
    for key, entry in journal(name)["steps"].items():
        assert entry["state"] == "done", (key, entry)
        if key != every_time:
            assert entry["runs"] <= 1 + killed.count(key), (key, entry)


def report(what: str, **values: Any) -> None:
    """Keep numbers for a person to read."""
    OUTPUT.mkdir(exist_ok=True)
    file = OUTPUT / "power.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {what: values}, indent=1) + "\n")


def seconds_of(name: str) -> dict[str, float]:
    return {key: entry["seconds"] for key, entry in journal(name)["steps"].items()}


def deploy_changes_nothing() -> None:
    before = read_containers()
    result = run_cloudctl("deploy", "--yes", "--output", "json")
    assert result.rc == 0, str(result)
    assert result.json["summary"] == "nothing to change"
    assert read_containers() == before


@pytest.fixture(scope="module")
def tenant() -> Iterator[dict[str, Any]]:
    """Two VMs that run, one that is stopped, a volume full of known data."""
    call("power_node.py", "remove", str(SITE))
    made = call("power_node.py", "make", str(SITE), timeout=900)
    yield made
    left = call("power_node.py", "remove", str(SITE), timeout=900)
    assert left == {"failed": []}


def check_tenant(tenant: dict[str, Any]) -> None:
    """The same VMs run, the stopped one is stopped, the data is what it was."""
    now = call("power_node.py", "look", str(SITE), timeout=300)
    assert now["servers"] == tenant["servers"]
    assert [now["power"][key] == 1 for key in tenant["servers"]] == [
        status == "ACTIVE" for status in tenant["servers"].values()
    ]
    assert now["sum"] == tenant["sum"]


# -- refused: nothing is stopped ------------------------------------------------------------------


@contextlib.contextmanager
def nothing_happens() -> Iterator[None]:
    before, set_before = read_containers(), flags()
    yield
    assert read_containers() == before
    assert flags() == set_before
    assert not journal("down").get("steps") or journal("down").get("finished")


def test_refused_while_another_run_is_in_progress(cloudctl: Cloudctl) -> None:
    with nothing_happens():
        other = start_cloudctl("plan")
        deadline = time.monotonic() + 30
        while lock_is_free() and time.monotonic() < deadline:
            time.sleep(0.05)
        result = cloudctl("cluster", "down", "--yes")
        other.communicate()
    assert result.rc == 8, str(result)


def test_refused_when_the_backup_fails(cloudctl: Cloudctl, site_copy: Any) -> None:
    site_copy.edit(
        "settings.yml", lambda data: data.setdefault("backup", {}).update(directory="/proc/no-backups-here")
    )
    with nothing_happens():
        result = site_copy.cloudctl("cluster", "down", "--yes")
        assert result.rc not in (0, 1), str(result)
        assert "backup" in result.err
        forced = site_copy.cloudctl("cluster", "down", "--yes", "--force", "nothing overrides the backup")
        assert forced.rc not in (0, 1), str(forced)


def test_refused_while_placement_groups_are_degraded(cloudctl: Cloudctl) -> None:
    victim = nodes_of("storage")[-1]
    run_on(victim, "systemctl stop 'ceph-*@osd.*'")
    try:
        deadline = time.monotonic() + 90
        while "degraded" not in ceph("pg stat") and time.monotonic() < deadline:
            time.sleep(1)
        before = read_containers()
        result = cloudctl("cluster", "down", "--yes")
        assert result.rc == 4, str(result)
        assert "ceph-pgs-not-clean" in result.refs
        assert read_containers() == before and not flags() & SIX
    finally:
        run_on(
            victim,
            "systemctl list-units --all --plain --no-legend 'ceph-*@osd.*' | cut -d' ' -f1"
            " | xargs systemctl start",
        )
    deadline = time.monotonic() + 180
    while cloudctl("status").rc != 0 and time.monotonic() < deadline:
        time.sleep(3)


def test_refused_while_a_node_does_not_answer(cloudctl: Cloudctl) -> None:
    victim = nodes_of("compute")[-1]
    with nothing_happens():
        run_on(victim, "systemctl stop ssh.socket ssh.service 2>/dev/null || systemctl stop ssh.service")
        try:
            result = cloudctl("cluster", "down", "--yes")
        finally:
            run_on(victim, "systemctl start ssh.service")
    assert result.rc == 5, str(result)
    assert victim in result.err


def test_usage_is_checked_before_anything_else(cloudctl: Cloudctl) -> None:
    assert cloudctl("cluster", "down", "--force", " ", "--yes").refs == ["force-without-reason"]
    assert cloudctl("cluster", "down", "--abort", "--yes").refs == ["nothing-to-abort"]
    assert cloudctl("cluster", "down").refs == ["confirmation-needed"]
    assert cloudctl("cluster", "up", "--accept-missing", "osd99").refs == ["node-unknown"]


def test_a_dry_run_shows_every_step_and_changes_nothing(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    with nothing_happens():
        shown = cloudctl("cluster", "down", "--power-off", "--dry-run")
        back = cloudctl("cluster", "up", "--dry-run")
    assert shown.rc == 0 and back.rc == 0, f"{shown}\n{back}"
    for text in (*SIX, *tenant["name"].split(), "systemctl poweroff", "docker stop", "cloudctl db backup"):
        assert text in shown.out, text
    # a stopped VM is not stopped again
    stopped = next(key for key, status in tenant["servers"].items() if status == "SHUTOFF")
    assert stopped not in shown.out
    assert "deploy" not in " ".join(re.findall(r"\[.*\]", shown.out))
    assert "galera recover" in back.out and "cloudctl verify" in back.out


# -- in order -------------------------------------------------------------------------------------


def test_down_and_up_with_kills_on_the_way(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    ceph("osd set noscrub")
    try:
        with ObjectLedger() as objects, Ledger() as ledger:
            objects.wait_for(50)
            ledger.wait_for(200)
            killed = run_with_kills(
                "down", "--power-off", "--yes", at=lambda key: key in ("guests", "stop-database", "flags")
            )
        check_runs("down", killed, "check")
        assert len(killed) == 3
        states = json.loads(cloudctl("lab", "status", "--output", "json").out)["nodes"]
        assert {row["name"] for row in states if row["state"] == "running"} == {"deploy"}
        refused = cloudctl("deploy", "--yes")
        assert refused.rc == 4 and refused.refs == ["cloud-is-down"], str(refused)

        killed = run_with_kills("up", at=lambda key: key in ("nodes", "start-database", "instances"))
        check_runs("up", killed, "nodes")
        assert flags() == {"noscrub"}
        check_tenant(tenant)
        report(
            "killed",
            database=ledger.check(),
            objects=objects.check(),
            down=seconds_of("down"),
            up=seconds_of("up"),
        )
        ledger.drop()
        objects.drop()
        deploy_changes_nothing()
    finally:
        ceph("osd unset noscrub")


def test_a_shutdown_is_taken_back(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    kill_at("stop-api")
    result = cloudctl("cluster", "down", "--abort", "--yes", timeout=900)
    assert result.rc == 0, str(result)
    assert not flags() & SIX
    check_tenant(tenant)
    assert cloudctl("cluster", "down", "--abort", "--yes").refs == ["nothing-to-abort"]
    deploy_changes_nothing()


# -- a power cut ----------------------------------------------------------------------------------


def test_after_a_power_cut_nothing_acknowledged_is_missing(
    cloudctl: Cloudctl, tenant: dict[str, Any]
) -> None:
    with ObjectLedger() as objects, Ledger() as ledger:
        objects.wait_for(50)
        ledger.wait_for(200)
        assert cloudctl("lab", "power", "kill", *lab_nodes()).rc == 0
    assert cloudctl("lab", "power", "on", "deploy").rc == 0
    began = time.monotonic()
    result = cloudctl("cluster", "up", timeout=1500)
    assert result.rc == 0, str(result)
    check_tenant(tenant)
    report(
        "power cut", database=ledger.check(), objects=objects.check(),
        seconds=round(time.monotonic() - began), up=seconds_of("up"),
    )  # fmt: skip
    ledger.drop()
    objects.drop()
    deploy_changes_nothing()


# -- on request -----------------------------------------------------------------------------------


@long
def test_killed_in_each_step_and_a_storage_node_that_comes_late(
    cloudctl: Cloudctl, tenant: dict[str, Any]
) -> None:
    ceph("osd set noscrub")
    try:
        with ObjectLedger() as objects, Ledger() as ledger:
            objects.wait_for(50)
            ledger.wait_for(200)
            killed = run_with_kills("down", "--power-off", "--yes", at=lambda key: True, timeout=3000)
        check_runs("down", killed, "check")
        assert len(killed) >= len(journal("down")["steps"]) - 2, killed
        victim = nodes_of("storage")[-1]
        broken(victim)
        try:
            result = cloudctl("cluster", "up", "--wait", "25", timeout=900)
        finally:
            mended(victim)
        assert result.rc == 4 and "storage-node-absent" in result.refs, str(result)
        assert f"--accept-missing {victim}" in result.err and "flags" not in journal("up")["steps"]
        first = len(journal("up")["steps"])
        killed = run_with_kills("up", at=lambda key: True, timeout=3000)
        assert len(killed) >= len(journal("up")["steps"]) - 2 - first, killed
        check_runs("up", killed, "nodes")
        assert flags() == {"noscrub"}
        check_tenant(tenant)
        report("killed in each step", database=ledger.check(), objects=objects.check())
        ledger.drop()
        objects.drop()
        deploy_changes_nothing()
    finally:
        ceph("osd unset noscrub")


@long
def test_a_storage_node_that_does_not_come_back(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    victim = nodes_of("storage")[-1]
    result = cloudctl("cluster", "down", "--power-off", "--yes", timeout=1500)
    assert result.rc == 0, str(result)
    broken(victim)
    try:
        result = cloudctl("cluster", "up", "--wait", "25", timeout=900)
        assert result.rc == 4, str(result)
        assert "storage-node-absent" in result.refs and f"--accept-missing {victim}" in result.err
        assert "flags" not in journal("up")["steps"]
        run_cloudctl(
            "lab", "power", "on", *nodes_of("control"), *[n for n in nodes_of("storage") if n != victim]
        )
        result = cloudctl("cluster", "up", "--accept-missing", victim, timeout=1500)
        assert result.rc == 0, str(result)
        assert not flags() & SIX
    finally:
        mended(victim)
    wait_for_status(cloudctl)
    check_tenant(tenant)


@long
def test_a_controller_that_does_not_come_back(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    victim = nodes_of("control")[-1]
    result = cloudctl("cluster", "down", "--power-off", "--yes", timeout=1500)
    assert result.rc == 0, str(result)
    broken(victim)
    try:
        result = cloudctl("cluster", "up", "--wait", "25", timeout=1500)
        assert result.rc == 0, str(result)
        assert f"without the controller {victim}" in result.out
        check_tenant(tenant)
    finally:
        mended(victim)
    # What joins later: its containers were stopped in order, so they are started by the next run.
    result = cloudctl("cluster", "up", timeout=1500)
    assert result.rc == 0, str(result)
    wait_for_status(cloudctl)


def broken(node: str) -> None:
    """Make a node one that can't be switched on: its container has another name meanwhile."""
    subprocess.run([*podman(), "rename", PREFIX + node, f"{PREFIX}{node}broken"], check=True)


def mended(node: str) -> None:
    """Take ``broken`` back, and switch the node on."""
    subprocess.run([*podman(), "rename", f"{PREFIX}{node}broken", PREFIX + node], check=True)
    assert run_cloudctl("lab", "power", "on", node).rc == 0


def wait_for_status(cloudctl: Cloudctl, seconds: float = 420) -> None:
    deadline = time.monotonic() + seconds
    while (result := cloudctl("status")).rc != 0:
        assert time.monotonic() < deadline, str(result)
        time.sleep(5)


# -- the printed runbook --------------------------------------------------------------------------

PAGE = ROOT / "docs/how-to/power-inspection.md"


def runbook_commands(fence: str = "sh") -> list[str]:
    """Return the commands of the printed runbook, in its order: of its course, or its boxes (sh if-not)."""
    blocks = re.findall(rf"^```{fence}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def type_on_deploy(command: str, timeout: float = 1500) -> tuple[int, str]:
    """Type a command as the page says: on the deploy node, in the site's directory."""
    run_cloudctl("cluster", "status")  # the lab's power control runs
    done = subprocess.run(
        [*podman(), "exec", "--workdir", str(SITE), PREFIX + "deploy", "sh", "-lc", command],
        capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, f"{command}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_the_printed_runbook_has_commands() -> None:
    assert any(command.startswith("cloudctl cluster down") for command in runbook_commands())
    # Each box's command is tried in its own situation by one of these tests.
    assert set(runbook_commands("sh if-not")) == {*LOOKS, FORCED, ABORT, WITHOUT}


LOOKS = {
    "cloudctl galera status": 0,
    "cloudctl rabbitmq reset --dry-run": 4,  # it refuses a healthy one, as the page says
    "cloudctl cluster status": 0,
    "cloudctl status": 0,
    "cloudctl network check": 0,
    "cloudctl ceph flags show": 0,
    "cloudctl runs list": 0,
}
"""What the boxes only look at, and how it ends on a healthy cloud."""
ABORT = "cloudctl cluster down --abort --yes"
FORCED = "cloudctl cluster down --power-off --yes --force 'the batteries run empty'"
WITHOUT = "cloudctl cluster up --accept-missing osd03"


@long
def test_every_command_of_the_printed_runbook(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    began = time.monotonic()
    for command in runbook_commands():
        code, text = type_on_deploy(command)
        assert code == 0, text
    report("runbook", seconds=round(time.monotonic() - began), down=seconds_of("down"), up=seconds_of("up"))
    check_tenant(tenant)
    for command, wanted in LOOKS.items():
        code, text = type_on_deploy(command)
        assert code == wanted, text
    deploy_changes_nothing()


@long
def test_the_boxes_of_the_printed_runbook(cloudctl: Cloudctl, tenant: dict[str, Any]) -> None:
    """Called off in the middle; then down by force with an OSD off, and up without its node."""
    kill_at("stop-api")
    code, text = type_on_deploy(ABORT)
    assert code == 0, text
    check_tenant(tenant)
    victim = "osd03"
    run_on(victim, "systemctl stop 'ceph-*@osd.*'")
    deadline = time.monotonic() + 90
    while "degraded" not in ceph("pg stat") and time.monotonic() < deadline:
        time.sleep(1)
    code, text = type_on_deploy(FORCED)
    assert code == 0 and "the batteries run empty" in text and "not clean" in text, text
    broken(victim)
    try:
        code, text = type_on_deploy(WITHOUT + " --wait 25")
        assert code == 0 and f"without the storage node {victim}" in text, text
    finally:
        mended(victim)
    wait_for_status(cloudctl)
    check_tenant(tenant)
    deploy_changes_nothing()
