"""A controller dies for good, and a new machine comes in its place."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import ApiClient
from conftest import SITE, Result, kill_cloudctl, lab_nodes, run_cloudctl, start_cloudctl

Cloudctl = Callable[..., Result]
Containers = dict[str, dict[str, tuple[str, str]]]

LOGIN = ("--user", "installer", "--password-file", str(SITE / ".cloudctl" / "lab-password"))


def apis() -> dict[str, str]:
    """Return what is asked all the time, by service."""
    found = {"identity": "/projects", "network": "/networks"}
    if "compute" in lab_nodes().values():
        found |= {"compute": "/servers", "image": "/images"}
    return found


@pytest.fixture(autouse=True)
def three_controllers(nodes: Callable[[str], list[str]]) -> None:
    if len(nodes("control")) < 3:
        pytest.skip("this lab has no majority of controllers")


@pytest.fixture
def whole(cloudctl: Cloudctl) -> Iterator[None]:
    """A healthy cloud before, and a hint where it is not afterwards."""
    assert cloudctl("status").rc == 0, "the cloud must be healthy before the test"
    yield
    wait_healthy(cloudctl)


def wait_healthy(cloudctl: Cloudctl, seconds: float = 240) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while (status := cloudctl("status", "--output", "json")).rc:
        assert time.monotonic() < end, status.out + status.err
        time.sleep(3)
    found: dict[str, Any] = status.json
    return found


def fingerprint_of(node: str, lab_exec: Callable[..., str]) -> str:
    """Return what an operator reads on the machine's console."""
    return lab_exec(node, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]


def without(containers: Containers, node: str) -> Containers:
    return {name: found for name, found in containers.items() if name != node}


def settle(cloudctl: Cloudctl, victim: str) -> None:
    """Wait until the others have noticed the loss: what fails by it is not the replacement's doing."""
    end = time.monotonic() + 120
    time.sleep(40)
    while True:
        status = json.loads(cloudctl("status", "--output", "json").out)
        silent = [p for p in status["problems"] if p["ref"] in ("api-silent", "vip-without-holder")]
        if not silent:
            return
        assert time.monotonic() < end, silent
        time.sleep(3)


def test_a_controller_that_is_alive_is_not_replaced(
    cloudctl: Cloudctl, lab: Path, containers: Callable[[], Containers]
) -> None:
    known, before = (lab / "known_hosts").read_text(), containers()
    refused = cloudctl("node", "replace", "ctl02", *LOGIN, "--yes")
    assert (refused.rc, refused.refs) == (4, ["node-alive"]), str(refused)
    assert cloudctl("node", "replace", "ctl09", "--yes").refs == ["node-unknown"]
    assert cloudctl("node", "replace", "deploy", "--yes").refs == ["node-no-controller"]
    assert cloudctl("node", "replace", "ctl02", "--address", "10.10.10.99", "--yes").refs == [
        "address-differs"
    ]
    assert (lab / "known_hosts").read_text() == known
    assert containers() == before


def test_a_controller_whose_engine_is_off_is_no_fresh_machine(
    whole: None, cloudctl: Cloudctl, lab: Path, lab_exec: Callable[..., str]
) -> None:
    known = (lab / "known_hosts").read_text()
    lab_exec("ctl02", "systemctl stop docker.socket docker.service")
    try:
        refused = cloudctl("node", "replace", "ctl02", *LOGIN, "--yes")
    finally:
        lab_exec("ctl02", "systemctl start docker.socket docker.service")
    assert (refused.rc, refused.refs) == (4, ["node-unknown-state"]), str(refused)
    assert (lab / "known_hosts").read_text() == known


def test_without_a_majority_nothing_is_replaced(
    whole: None, cloudctl: Cloudctl, lab: Path, lab_exec: Callable[..., str]
) -> None:
    known = (lab / "known_hosts").read_text()
    assert cloudctl("lab", "power", "kill", "ctl02").rc == 0
    try:
        missing = cloudctl("node", "replace", "ctl02", *LOGIN, "--yes")
        assert (missing.rc, missing.refs) == (5, ["replacement-missing"]), str(missing)
        dry = cloudctl("node", "replace", "ctl02", "--dry-run")
        assert dry.rc == 0, str(dry)
        assert "forget_cluster_node rabbit@ctl02" in dry.out
        assert "logs of ctl02" in dry.out
        lab_exec("ctl03", "docker stop rabbitmq ovn_nb_db")
        refused = cloudctl("node", "replace", "ctl02", "--dry-run")
        assert (refused.rc, refused.refs) == (4, ["no-quorum", "no-quorum"]), str(refused)
        assert "RabbitMQ" in refused.err and "northbound" in refused.err
        assert "Galera" not in refused.err
    finally:
        lab_exec("ctl03", "docker start rabbitmq ovn_nb_db")
        cloudctl("lab", "power", "on", "ctl02")
    assert (lab / "known_hosts").read_text() == known


# The first controller is special to jobs, registrations and Ceph; the second one carries a manager of Ceph.
@pytest.mark.parametrize("victim", ["ctl02", "ctl01"])
def test_a_dead_controller_is_replaced(
    victim: str,
    whole: None,
    cloudctl: Cloudctl,
    lab: Path,
    lab_exec: Callable[..., str],
    containers: Callable[[], Containers],
    nodes: Callable[[str], list[str]],
) -> None:
    inventory = (lab / "inventory" / "hosts.yml").read_text()
    assert cloudctl("lab", "power", "kill", victim).rc == 0
    settle(cloudctl, victim)
    assert cloudctl("lab", "remake", victim).rc == 0
    before = without(_without_dead(containers, victim), victim)
    wrong = cloudctl("node", "replace", victim, *LOGIN, "--fingerprint", "SHA256:wrong", "--yes")
    assert wrong.refs == ["fingerprint-differs"], str(wrong)
    # Another host key does not make old disks new.
    lab_exec(victim, "mkdir -p /var/lib/docker/volumes/mariadb")
    right = ("--fingerprint", fingerprint_of(victim, lab_exec))
    old = cloudctl("node", "replace", victim, *LOGIN, *right, "--yes")
    lab_exec(victim, "rm -r /var/lib/docker/volumes")
    assert old.refs == ["node-not-fresh"], str(old)
    chance = random.Random(int(os.environ.get("CLOUDCTL_TEST_SEED", "7")))
    arguments = (
        "node",
        "replace",
        victim,
        *LOGIN,
        *right,
        "--yes",
    )
    with ExitStack() as stack:
        clients = [stack.enter_context(ApiClient(name, path)) for name, path in apis().items()]
        for _ in range(2):
            process = start_cloudctl(*arguments, "--output", "json")
            time.sleep(chance.uniform(15, 60))
            kill_cloudctl(process)
        done = run_cloudctl(*arguments, "--output", "json", timeout=1800)
    assert done.rc == 0, str(done)
    assert {client.service: client.failures for client in clients} == {name: [] for name in apis()}
    assert all(client.requests > 50 for client in clients)
    assert done.json["touched"] == []
    assert without(containers(), victim) == before
    status = wait_healthy(cloudctl)
    count = len(nodes("control"))
    assert [member["size"] for member in status["galera"]["members"].values()] == [count] * count
    assert [len(member["running"]) for member in status["rabbitmq"]["members"].values()] == [count] * count
    for database in ("ovn_northbound", "ovn_southbound"):
        members = status["ovn"][database]["members"]
        assert [member["servers"] for member in members.values()] == [count] * count
    if status["ceph"]:
        assert len(status["ceph"]["quorum"]) == status["ceph"]["mons_wanted"]
    keys = "sha256sum /etc/kolla/keystone/keystone-fernet-key-* | cut -d' ' -f1"
    assert len({lab_exec(node, keys) for node in nodes("control")}) == 1
    bus = "docker exec -u rabbitmq rabbitmq rabbitmqctl -q"
    for vhost in lab_exec("ctl03", f"{bus} list_vhosts --no-table-headers").split():
        listed = lab_exec(
            "ctl03",
            f"{bus} list_queues -p {vhost} type online --formatter json",
        )
        assert not [
            queue
            for queue in json.loads(listed)
            if queue["type"] == "quorum" and len(queue["online"]) < count
        ]
    again = cloudctl("deploy", "--yes")
    assert again.rc == 0 and "Nothing to change" in again.out, str(again)
    assert (lab / "inventory" / "hosts.yml").read_text() == inventory
    pinned = [
        line for line in (lab / "known_hosts").read_text().splitlines() if re.search(rf"\b{victim}\b", line)
    ]
    assert len(pinned) == 1
    assert cloudctl("node", "replace", victim, *LOGIN, "--yes").refs == ["node-alive"]


def _without_dead(containers: Callable[[], Containers], victim: str) -> Containers:
    """Read the containers; the new machine has no engine yet, and so none."""
    found = containers()
    assert not found[victim]
    return found
