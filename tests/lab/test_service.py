"""One service stopped, started, restarted under its clients; the printed runbook's scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bus import Bus
from clients import ApiClient
from conftest import SITE, Result, read_containers, run_cloudctl, run_on
from ledger import Ledger, controllers

USERS = "/users"


def service(*args: str) -> Result:
    return run_cloudctl("service", *args, "--output", "json", timeout=900)


def starts(container: str) -> dict[str, str]:
    """Return when a container was started, by node."""
    return {node: its[container][1] for node, its in read_containers().items() if container in its}


def ids(found: dict[str, dict[str, tuple[str, str]]]) -> dict[str, dict[str, str]]:
    return {node: {name: entry[0] for name, entry in its.items()} for node, its in found.items()}


@pytest.fixture(autouse=True)
def everything_runs() -> Iterator[None]:
    """A cloud that is whole before, and the same containers after a test, running."""
    before = read_containers()
    yield
    after = read_containers()
    assert ids(after) == ids(before)


# -- restart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["haproxy", "mariadb", "rabbitmq", "keystone"])
def test_a_restart_goes_from_controller_to_controller_and_no_client_notices(name: str) -> None:
    nodes = controllers()
    before = starts(name)
    assert sorted(before) == nodes
    with ApiClient("identity", USERS, timeout=10) as client:
        done = service("restart", name, "--yes")
    assert done.rc == 0, str(done)
    assert client.failures == [] and client.requests > 10
    after = starts(name)
    assert all(after[node] > before[node] for node in nodes), "every copy was restarted"
    steps = [step["nodes"] for step in done.json["steps"] if step["action"] == "restart"]
    assert all(len(step) == 1 for step in steps) and sorted({node for (node,) in steps}) == nodes
    assert done.json["warnings"] == []


def test_writes_and_messages_go_on_while_database_and_message_bus_restart() -> None:
    with Ledger() as ledger:
        ledger.wait_for(50)
        assert service("restart", "mariadb", "--yes").rc == 0
        ledger.wait_for(50)
    ledger.check()
    ledger.drop()
    with Bus() as bus:
        bus.wait_for(20)
        assert service("restart", "rabbitmq", "--yes").rc == 0
        bus.wait_for(20)
    bus.check()
    bus.drop()


def test_a_restart_that_takes_the_majority_is_refused() -> None:
    first, _second, third = controllers()
    assert service("stop", "rabbitmq", "--node", third, "--yes").rc == 0
    try:
        before = starts("rabbitmq")
        done = service("restart", "rabbitmq", "--node", first, "--yes")
        assert (done.rc, done.refs) == (4, ["majority-at-risk"]), str(done)
        assert starts("rabbitmq") == before
    finally:
        assert service("start", "rabbitmq", "--yes").rc == 0
    assert run_cloudctl("status").rc == 0


# -- stop and start -----------------------------------------------------------------------------


def test_a_stop_tells_what_it_costs_stays_over_a_restart_of_the_engine_and_is_taken_back() -> None:
    first, second, third = controllers()
    shown = service("stop", "keystone", "--dry-run")
    assert shown.rc == 0 and shown.json["serious"], str(shown)
    assert any("all 3 copies" in text for text in shown.json["losses"])
    one = service("stop", "keystone", "--node", third, "--dry-run").json
    assert not one["serious"] and any(f"2 of 3 copies are left, on {first}" in text for text in one["losses"])
    bus = service("stop", "rabbitmq", "--node", second, "--node", third, "--dry-run").json
    assert bus["serious"] and any("no majority" in text for text in bus["losses"])

    before = starts("keystone")
    asked = run_cloudctl("service", "stop", "keystone")
    assert (asked.rc, asked.refs) == (2, ["confirmation-needed"]), str(asked)
    assert "What it costs:" in asked.out and starts("keystone") == before

    with ApiClient("identity", USERS, timeout=10) as client:
        done = service("stop", "keystone", "--node", third, "--yes")
        assert done.rc == 0, str(done)
    assert client.failures == []
    assert sorted(starts("keystone")) == [first, second]
    try:
        run_on(third, "systemctl restart docker")
        assert sorted(starts("keystone")) == [first, second], "what was stopped stays stopped"
        again = service("stop", "keystone", "--node", third, "--yes")
        assert again.rc == 0 and again.json.get("changed", []) == []
    finally:
        done = service("start", "keystone", "--yes")
    assert done.rc == 0, str(done)
    assert {entry["node"] for entry in done.json["changed"]} == {third}
    assert starts("keystone")[first] == before[first], "what ran was left alone"


def test_the_database_starts_with_the_member_that_stopped_last() -> None:
    with Ledger() as ledger:
        ledger.wait_for(50)
    stopped = service("stop", "mariadb", "--yes")
    assert stopped.rc == 0, str(stopped)
    members = [step["nodes"] for step in stopped.json["steps"]]
    try:
        last = next(node for (node,) in reversed([step for step in members if len(step) == 1]))
        safe = run_on(last, "cat /var/lib/docker/volumes/mariadb/_data/grastate.dat")
        assert "safe_to_bootstrap: 1" in safe
    finally:
        started = service("start", "mariadb", "--yes")
    assert started.rc == 0, str(started)
    assert started.json["steps"][0]["nodes"] == [last]
    ledger.check()
    ledger.drop()


def test_a_name_that_is_not_there_is_refused_and_the_nearest_one_is_named() -> None:
    for action in ("stop", "start", "restart"):
        done = run_cloudctl("service", action, "keystoen", "--yes")
        assert (done.rc, done.refs) == (2, ["service-unknown"]), str(done)
        assert "keystone" in done.err
    done = run_cloudctl("service", "stop", "keystone", "--node", "ctl09", "--yes")
    assert (done.rc, done.refs) == (2, ["node-unknown"]), str(done)


# -- the printed runbook ------------------------------------------------------------------------


def script(name: str, *options: str) -> str:
    """Type what the runbook says, on the deploy node."""
    line = f"cd /opt/cloudctl/scripts && CLOUDCTL_SITE={SITE} sh {name} {' '.join(options)} 2>&1"
    return run_on("deploy", line, timeout=900)


def test_the_runbooks_scripts_stop_and_start_the_containers_of_all_controllers() -> None:
    nodes = controllers()
    before = read_containers()
    told = script("stop_docker_container.sh", "--dry-run")
    assert "cloudctl cluster down" in told and read_containers() == before
    with Ledger() as ledger:
        ledger.wait_for(50)
    told = script("stop_docker_container.sh")
    assert told.startswith(
        "stop_docker_container.sh is replaced by: cloudctl service stop all --group control"
    )
    try:
        left = {node: its for node, its in read_containers().items() if node in nodes}
        ceph = {node: [name for name in its if not name.startswith("ceph-")] for node, its in left.items()}
        assert not any(ceph.values()), ceph
    finally:
        told = script("start_docker_container.sh")
    assert told.startswith("start_docker_container.sh is replaced by: cloudctl service start all")
    status = run_cloudctl("status")
    assert status.rc == 0, str(status)
    ledger.check()
    ledger.drop()
    plan = run_cloudctl("plan")
    assert plan.rc == 0 and "nothing to change" in plan.out, str(plan)
