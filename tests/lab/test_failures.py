"""What fails in a machine room: a controller without power, a daemon restarted, a deploy killed half-way."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients import ApiClient
from conftest import start_cloudctl

Cloudctl = Callable[..., Any]


def wait_until(what: str, check: Callable[[], bool], seconds: float) -> float:
    """Wait for a state; return how long it took."""
    started = time.monotonic()
    while not check():
        assert time.monotonic() - started < seconds, f"{what}: not after {seconds} s"
        time.sleep(1)
    return time.monotonic() - started


def vip_holder(nodes: list[str], lab_exec: Callable[..., Any]) -> str:
    holders = [node for node in nodes if "10.10.10.250/" in lab_exec(node, "ip -4 addr show eth0")]
    assert len(holders) == 1, holders
    return holders[0]


def role_holder(role: str, cloudctl: Cloudctl, nodes: list[str], lab_exec: Callable[..., Any]) -> str:
    """Tell which controller has a role now: the virtual address (vip), or the lead of a database of OVN's."""
    if role == "vip":
        return vip_holder(nodes, lab_exec)
    status = json.loads(cloudctl("status", "--output", "json").out)
    return str(status["ovn"][role]["leader"])


# One after the other on the same lab: where a role goes is not chosen, so each loss asks anew who has it.
@pytest.mark.parametrize("role", ["vip", "ovn_northbound", "ovn_southbound"])
def test_the_api_survives_the_loss_of_the_controller_in_charge(
    role: str, cloudctl: Cloudctl, lab_exec: Callable[..., Any], nodes: Callable[[str], list[str]]
) -> None:
    victim = role_holder(role, cloudctl, nodes("control"), lab_exec)
    with ApiClient("compute", "/servers", timeout=5) as client:
        assert cloudctl("lab", "power", "kill", victim).rc == 0
        killed = time.time()
        time.sleep(35)
    try:
        late = [when - killed for when, _ in client.failures if when - killed > 30]
        assert not late, client.failures
        assert client.requests > 10
        verified = cloudctl("verify", "--output", "json", timeout=900)
        assert verified.rc == 0, verified.out + verified.err
    finally:
        assert cloudctl("lab", "power", "on", victim).rc == 0

    def whole() -> bool:
        status = cloudctl("status", "--output", "json")
        return status.rc == 0

    wait_until("the cloud is whole again without any command", whole, 240)


def test_a_guest_outlives_its_hypervisor_daemon(
    cloudctl: Cloudctl, lab_exec: Callable[..., Any], nodes: Callable[[str], list[str]]
) -> None:
    kept = json.loads(cloudctl("verify", "--keep", "--output", "json").out)["kept"]
    address = kept["address"]
    guests = "pgrep -x qemu-system-x86 || true"
    host = next(node for node in nodes("compute") if lab_exec(node, guests).strip())
    before = lab_exec(host, guests).split()
    lab_exec(host, "docker restart nova_libvirt")
    assert lab_exec(host, guests).split() == before
    lab_exec("deploy", f"ping -c 3 -W 2 {address}")

    # A compute node that is switched off and on starts its VMs again.
    assert cloudctl("lab", "power", "off", host).rc == 0
    assert cloudctl("lab", "power", "on", host).rc == 0
    answer = f"ping -c 1 -W 1 {address} >/dev/null && echo yes || true"
    wait_until("the VM answers again", lambda: "yes" in lab_exec("deploy", answer), 240)


def test_a_deploy_that_is_killed_goes_on(cloudctl: Cloudctl, lab: Path) -> None:
    override = lab / "overrides" / "keystone.conf"
    override.write_text("[DEFAULT]\nmax_param_size = 65\n")
    seed = int(os.environ.get("CLOUDCTL_TEST_SEED", time.time()))
    chance = random.Random(seed)
    try:
        for _ in range(2):
            process = start_cloudctl("deploy", "--yes")
            time.sleep(chance.uniform(8, 25))
            process.send_signal(signal.SIGKILL)
            process.wait()
            # The command inside the deploy node notices that its caller is gone, and gives up the lock.
            wait_until("the lock is free", lambda: cloudctl("plan").rc != 8, 60)
        result = cloudctl("deploy", "--yes")
        assert result.rc == 0, f"seed {seed}: {result.out}{result.err}"
    finally:
        override.unlink()
    assert cloudctl("deploy", "--yes").rc == 0
    assert "nothing to change" in cloudctl("plan").out
