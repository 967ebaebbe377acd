"""The message bus after what it does not mend by itself: members together again, confirmed messages kept."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bus import Bus, ctl
from conftest import (
    SITE,
    Result,
    kill_cloudctl,
    lab_nodes,
    read_containers,
    run_cloudctl,
    run_on,
    start_cloudctl,
)
from ledger import controllers

VOLUME = "/var/lib/docker/volumes/rabbitmq/_data"
PORTS = "4369,25672"


def reset(*options: str) -> Result:
    """Run the reset; wait for an earlier one that was killed to be gone."""
    deadline = time.monotonic() + 120
    while True:
        done = run_cloudctl("rabbitmq", "reset", "--yes", "--output", "json", *options, timeout=900)
        if done.rc != 8 or time.monotonic() > deadline:
            return done
        time.sleep(1)


def members(node: str) -> list[str]:
    """Return the members that run, as one of them sees it; empty where it does not serve."""
    asked = "docker exec --user rabbitmq rabbitmq rabbitmqctl --quiet cluster_status --formatter json"
    said = run_on(node, f"{asked} 2>/dev/null", check=False)
    running = json.loads(said)["running_nodes"] if said.startswith("{") else []
    return sorted(name.partition("@")[2] for name in running)


def wait_until(what: str, check: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s"
        time.sleep(2)


def started() -> dict[str, str]:
    return {node: its["rabbitmq"][1] for node, its in read_containers().items() if "rabbitmq" in its}


def ids() -> dict[str, str]:
    return {node: its["rabbitmq"][0] for node, its in read_containers().items() if "rabbitmq" in its}


def spoil(node: str) -> None:
    """Leave a member data that it can't start with."""
    run_on(node, f"docker kill rabbitmq; find {VOLUME}/mnesia/rabbit@{node} -maxdepth 1 -type f"
           " -exec dd if=/dev/urandom of={} bs=4k count=2 status=none \\;")  # fmt: skip
    run_on(node, "docker start rabbitmq")


@pytest.fixture
def cut() -> Iterator[Callable[[str, str], None]]:
    """Yield a function that cuts two members off from each other; called without a second one, mends all."""
    nodes = controllers()
    address = {n: run_on(n, "ip -4 -o addr show eth0").split()[3].partition("/")[0] for n in nodes}
    rules: list[tuple[str, str]] = []

    def apart(one: str, other: str = "") -> None:
        if not other:
            while rules:
                node, rule = rules.pop()
                run_on(node, f"iptables -D {rule}", check=False)
            return
        for chain, side in (("INPUT", "-s"), ("OUTPUT", "-d")):
            for port in ("--sports", "--dports"):
                rule = f"{chain} {side} {address[other]} -p tcp -m multiport {port} {PORTS} -j DROP"
                run_on(one, f"iptables -I {rule}")
                rules.append((one, rule))

    yield apart
    apart("")


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    """The same containers before and after a test, the bus whole, nothing left behind."""
    nodes, before = controllers(), ids()
    yield
    with contextlib.suppress(AssertionError):
        wait_until("whole", lambda: all(members(node) == nodes for node in nodes), 60)
    assert all(members(node) == nodes for node in nodes)
    assert ids() == before
    left = [node for node in nodes if "aside" in run_on(node, f"ls -A {VOLUME}")]
    assert not left, "the old data are removed at the end"


def check_whole(done: Result, **decision: Any) -> None:
    assert done.rc == 0, str(done)
    for key, value in decision.items():
        assert done.json["decision"][key] == value, str(done)
    nodes = controllers()
    assert all(members(node) == nodes for node in nodes)


def replicas(bus: Bus) -> int:
    said = ctl(bus.nodes[0], "list_queues", "-p", bus.name, "online", "--formatter", "json")
    return said.count("rabbit@")


# -- refused ------------------------------------------------------------------------------------


def test_a_healthy_bus_is_left_alone() -> None:
    before = started()
    done = reset()
    assert (done.rc, done.refs) == (4, ["rabbitmq-healthy"]), str(done)
    done = reset("--all", "--lose-messages")
    assert (done.rc, done.refs) == (4, ["rabbitmq-healthy"]), str(done)
    assert reset("--all").refs == ["lose-messages-needed"]
    assert started() == before


def test_a_member_that_the_network_still_keeps_apart_is_left_alone_and_comes_back_by_itself(
    cut: Callable[..., None],
) -> None:
    first, second, third = nodes = controllers()
    with Bus() as bus:
        bus.wait_for(20)
        cut(third, first)
        cut(third, second)
        wait_until("the minority pauses", lambda: not members(third))
        wait_until("the majority goes on", lambda: members(first) == [first, second])
        before = started()
        done = reset()
        assert (done.rc, done.refs) == (4, ["rabbitmq-cut-off"]), str(done)
        assert third in done.err and started() == before
        bus.wait_for(20)
        cut("")
        wait_until("it comes back", lambda: all(members(node) == nodes for node in nodes))
    bus.check()
    bus.drop()


# -- mended -------------------------------------------------------------------------------------


def test_a_partition_that_did_not_heal_ends_with_the_minority_reset(cut: Callable[..., None]) -> None:
    first, second, third = nodes = controllers()
    with Bus() as bus:
        bus.wait_for(20)
        for node in nodes:
            # A minority that goes on by itself: nothing heals that.
            ctl(node, "eval", "'application:set_env(rabbit, cluster_partition_handling, ignore).'")
        try:
            cut(third, first)
            cut(third, second)
            wait_until("apart", lambda: members(third) == [third] and members(first) == [first, second])
            bus.wait_for(20)
            cut("")
            time.sleep(40)
            assert members(first) == [first, second] and members(third) == [third], "it healed by itself"
            shown = run_cloudctl("rabbitmq", "reset", "--dry-run", "--output", "json")
            assert shown.rc == 0 and shown.json["decision"]["reset"] == [third], str(shown)
            assert members(third) == [third], "a dry run changes nothing"
            before = started()
            for more in ((), ("--node", first)):
                refused = run_cloudctl("service", "restart", "rabbitmq", *more, "--yes")
                assert (refused.rc, refused.refs) == (4, ["majority-at-risk"]), str(refused)
                assert f"{third} does not work in the message bus" in refused.err
            assert started() == before
            check_whole(reset(), kind="reset", keep=[first, second], reset=[third])
        finally:
            for node in nodes:
                ctl(
                    node, "eval", "'application:set_env(rabbit, cluster_partition_handling, pause_minority).'"
                )
        after = started()
        assert [node for node in nodes if after[node] != before[node]] == [third]
        bus.wait_for(20)
        assert replicas(bus) == len(nodes)
    bus.check()
    bus.drop()


def test_broken_data_a_reset_killed_half_way_and_run_again() -> None:
    first, second, third = nodes = controllers()
    with Bus() as bus:
        bus.wait_for(20)
        spoil(second)
        wait_until("it is gone", lambda: members(first) == [first, third])
        for last in (f"The others forget {second}: done", f"Move the data of {second} away: done"):
            killed = start_cloudctl("rabbitmq", "reset", "--yes")
            assert killed.stdout is not None
            seen = []
            for line in killed.stdout:
                seen.append(line)
                if last in line:
                    break
            kill_cloudctl(killed)
            assert last in seen[-1], "".join(seen)
        assert any(line.rstrip().endswith(f"Stop the member on {second}: already done") for line in seen)
        # What the killed run had begun on the node may have been enough: then the rest is done.
        done = reset()
        check_whole(done)
        assert done.json["decision"]["kind"] in ("reset", "complete"), str(done)
        bus.wait_for(20)
        assert replicas(bus) == len(nodes)
    bus.check()
    bus.drop()


def test_all_down_and_one_of_them_broken() -> None:
    first, _second, third = nodes = controllers()
    with Bus() as bus:
        bus.wait_for(20)
        for node in nodes:
            run_on(node, "docker kill rabbitmq")
        run_on(third, f"find {VOLUME}/mnesia -type f -exec truncate --size 7 {{}} \\;")
        check_whole(reset(), kind="restart", reset=[])
        bus.wait_for(20)
        assert replicas(bus) == len(nodes)
    bus.check()
    bus.drop()
    assert (
        not (SITE / ".cloudctl" / "operations" / "rabbitmq-reset.json").read_text().count('"finished": null')
    )
    assert first in lab_nodes()


def test_made_anew_the_accounts_are_there_and_the_messages_are_not() -> None:
    nodes = controllers()
    users = ctl(nodes[0], "list_users", "--formatter", "json")
    with Bus() as bus:
        bus.wait_for(20)
    check_whole(reset("--all", "--lose-messages", "--force"), kind="rebuild")
    assert bus.name not in ctl(nodes[0], "list_vhosts")
    assert ctl(nodes[0], "list_users", "--formatter", "json") == users
    plan = run_cloudctl("plan")
    assert plan.rc == 0 and "nothing to change" in plan.out, str(plan)
