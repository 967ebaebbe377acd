"""The database cluster after outages: no acknowledged write is lost, and what is not safe is refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Result, read_containers, run_cloudctl, run_on, start_cloudctl
from ledger import Ledger, controllers

DATA = "/var/lib/docker/volumes/mariadb/_data"
GRASTATE = f"{DATA}/grastate.dat"


def on_all(nodes: list[str], command: str) -> None:
    """Run a command on nodes at the same time."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: run_on(node, command), nodes))


def recover(*options: str) -> Result:
    """Run the recovery; wait for an earlier one that was killed to be gone."""
    deadline = time.monotonic() + 120
    while True:
        done = run_cloudctl("galera", "recover", "--yes", "--output", "json", *options, timeout=900)
        if done.rc != 8 or time.monotonic() > deadline:
            return done
        time.sleep(1)


def servers(nodes: list[str]) -> dict[str, str]:
    """Return the state of the servers' containers, and when they were started."""
    shown = "docker inspect --format '{{.State.Status}} {{.State.StartedAt}}' mariadb"
    return {node: run_on(node, shown) for node in nodes}


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Yield the controllers; afterwards the containers are the same ones, and no copy is left."""
    names = controllers()
    before = {
        node: {name: entry[0] for name, entry in its.items()} for node, its in read_containers().items()
    }
    try:
        yield names
        after = {
            node: {name: entry[0] for name, entry in its.items()} for node, its in read_containers().items()
        }
        assert {node: its.get("mariadb") for node, its in after.items()} == {
            node: its.get("mariadb") for node, its in before.items()
        }
    finally:
        run_cloudctl("galera", "copies", "--remove-all", "--yes")


@pytest.fixture
def cut_off() -> Iterator[Callable[[str], None]]:
    """Yield a function that cuts a node off from the deploy node."""
    routes: list[str] = []

    def cut(node: str) -> None:
        address = run_on(node, "ip -4 -o addr show eth0 | awk '{print $4}'").split("/")[0].split()[0]
        run_on("deploy", f"ip route add blackhole {address}/32")
        routes.append(address)

    yield cut
    for address in routes:
        run_on("deploy", f"ip route del blackhole {address}/32", check=False)


def test_a_healthy_cluster_is_refused(nodes: list[str]) -> None:
    before = servers(nodes)
    done = recover()
    assert (done.rc, done.refs) == (4, ["galera-healthy"]), str(done)
    assert servers(nodes) == before


def test_all_killed_state_files_lost_and_the_recovery_killed_half_way(nodes: list[str]) -> None:
    first, second, third = nodes
    with Ledger() as ledger:
        ledger.wait_for(100)
        on_all(nodes, "docker kill mariadb")
        # None is readable any more; one server is started again and again, one waits for the others.
        run_on(first, f"rm {GRASTATE}")
        run_on(second, f"printf 'seqno: not a number' >{GRASTATE}")
        run_on(third, f"truncate --size 0 {GRASTATE}")
        on_all([second, third], "docker start mariadb")
        killed = start_cloudctl("galera", "recover", "--yes")
        assert killed.stdout is not None
        seen = []
        for line in killed.stdout:
            seen.append(line)
            if line.rstrip().endswith(": starts the cluster"):
                break
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert seen[-1].rstrip().endswith(": starts the cluster"), "".join(seen)
        chosen = seen[-1].split()[-4].rstrip(":")
        # and the node that was chosen loses its power as well
        assert run_cloudctl("lab", "power", "kill", chosen).rc == 0
        away = recover()
        assert (away.rc, away.refs) == (5, ["galera-member-unreachable"]), str(away)
        assert run_cloudctl("lab", "power", "on", chosen).rc == 0
        done = recover()
        # What was begun on the node may have been enough for the others to be all that is missing.
        assert done.rc == 0, str(done)
        assert done.json["size"] == len(nodes)
        ledger.wait_for(50)
    ledger.check()
    ledger.drop()


def test_an_older_member_does_not_win_and_what_is_unsafe_is_refused(
    nodes: list[str], cut_off: Callable[[str], None]
) -> None:
    first, second, third = nodes
    with Ledger() as ledger:
        ledger.wait_for(50)
        run_on(first, "docker stop mariadb")
        ledger.wait_for(100)
    # Two that are killed while nothing is written are tied.
    on_all([second, third], "docker kill mariadb")
    uuid = run_on(first, f"sed -n 's/^uuid: *//p' {GRASTATE}").strip()
    # The older member's file promises more than its data have.
    run_on(
        first,
        f"sed -i 's/^safe_to_bootstrap:.*/safe_to_bootstrap: 1/; s/^seqno:.*/seqno: 99999999/' {GRASTATE}",
    )
    before = servers(nodes)

    shown = run_cloudctl("galera", "recover", "--dry-run", "--output", "json")
    assert shown.rc == 0, str(shown)
    assert shown.json["chosen"] == second and "have the same data" in shown.json["reason"], str(shown)

    other = uuid[:-4] + ("0000" if uuid[-4:] != "0000" else "1111")
    run_on(third, f"cp -p {GRASTATE} {GRASTATE}.kept && sed -i 's/{uuid}/{other}/' {GRASTATE}")
    done = recover()
    assert (done.rc, done.refs) == (4, ["galera-uuids-differ"]), str(done)
    run_on(third, f"mv {GRASTATE}.kept {GRASTATE}")

    cut_off(third)
    done = recover()
    assert (done.rc, done.refs) == (5, ["galera-member-unreachable"]), str(done)
    run_on("deploy", "ip route flush type blackhole")
    assert servers(nodes) == before, "a refusal stops and starts nothing"

    done = recover()
    assert done.rc == 0, str(done)
    assert (done.json["chosen"], done.json["uuid"], done.json["size"]) == (second, uuid, len(nodes))
    assert done.json["copy"].startswith(f"{second}:/")
    ledger.check()
    ledger.drop()


def test_a_member_given_up_for_lost_takes_the_others_data_when_it_comes_back(
    nodes: list[str], cut_off: Callable[[str], None]
) -> None:
    first, second, third = nodes
    with Ledger() as ledger:
        ledger.wait_for(50)
        run_on(third, "docker stop mariadb")
        ledger.wait_for(50)
    on_all([first, second], "docker kill mariadb")
    uuid = run_on(first, f"sed -n 's/^uuid: *//p' {GRASTATE}").strip()
    cut_off(third)
    done = recover("--accept-missing", third, "--no-copy")
    assert done.rc == 0, str(done)
    assert (done.json["size"], done.json["left_out"]) == (2, [third])
    assert done.json["uuid"] != uuid, "what the missing member has is no part of this history"
    ledger.check([first, second])
    run_on("deploy", "ip route flush type blackhole")
    done = recover()
    assert (done.rc, done.json["joined"], done.json["bootstrapped"]) == (0, [third], False), str(done)
    ledger.check()
    ledger.drop()


def test_the_only_member_with_usable_data_is_copied_first_or_a_flag_is_asked_for(nodes: list[str]) -> None:
    first, second, third = nodes
    copies = "/var/lib/cloudctl/galera"
    with Ledger() as ledger:
        ledger.wait_for(50)
        on_all(nodes, "docker kill mariadb")
    # One lost its disk, one was receiving all data when the power went.
    run_on(second, f"find {DATA} -mindepth 1 -delete")
    run_on(third, f"cp -p {DATA}/grastate.dat {DATA}/sst_in_progress")
    before = servers(nodes)
    run_on(first, f"mkdir -p {copies} && mount -t tmpfs -o size=8m tmpfs {copies}")
    try:
        done = recover()
    finally:
        run_on(first, f"umount {copies}")
    assert (done.rc, done.refs) == (4, ["galera-no-space"]) and "--no-copy" in done.err, str(done)
    assert servers(nodes) == before, "a refusal starts nothing"
    done = recover()
    assert (done.rc, done.json["chosen"], done.json["size"]) == (0, first, len(nodes)), str(done)
    assert done.json["copy"].startswith(f"{first}:{copies}/")
    ledger.check()
    ledger.drop()


def test_nothing_is_left_to_deploy() -> None:
    plan = run_cloudctl("plan")
    assert plan.rc == 0 and "nothing to change" in plan.out, str(plan)


def test_what_is_not_there_is_said(cloudctl: Callable[..., Any]) -> None:
    done = cloudctl("galera", "recover", "--accept-missing", "nobody")
    assert (done.rc, done.refs) == (2, ["galera-member-unknown"]), str(done)
    assert cloudctl("galera", "copies", "--remove", "nobody:nothing").refs == ["galera-copy-unknown"]
    assert cloudctl("galera", "status", "--output", "json").json["decision"] == "healthy"
