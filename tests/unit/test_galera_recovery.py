"""The recovery, played against members that behave as real ones do: killed at any point and run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, ConfigError, Unreachable, UsageError
from cloudctl.galera import recovery
from cloudctl.galera.members import NO_UUID, parse_grastate
from cloudctl.operations.call import Answers
from cloudctl.site.model import Site

OLD = "0ee3ee03-e575-11f1-b602-cffb54711728"
OTHER = "1ff4ff14-e575-11f1-b602-cffb54711728"


@dataclass
class Server:
    """One member: its data, its files, its container."""

    rows: list[str] = field(default_factory=list)
    uuid: str = OLD
    container: str = "exited"
    up: bool = True
    serving: str = ""
    grastate: str | None = None
    definition: str = "as deployed"
    copies: list[dict[str, Any]] = field(default_factory=list)
    free: int = 1 << 40
    broken: bool = False

    @property
    def seqno(self) -> int:
        return len(self.rows)

    def crash(self) -> None:
        self.container, self.serving = "exited", ""


def text(uuid: str, seqno: int, safe: bool = False) -> str:
    return f"uuid: {uuid}\nseqno: {seqno}\nsafe_to_bootstrap: {int(safe)}\n"


class Clock:
    """Time that passes only where somebody looks at it."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Killed(BaseException):
    """The command was killed."""


class Cluster:
    """Members that answer the module's actions."""

    def __init__(self, **servers: Server) -> None:
        self.servers = servers
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.kill_at: int | None = None
        self.kill_before = False
        self.made = 0
        for server in servers.values():
            server.grastate = text(server.uuid, -1) if server.grastate is None else server.grastate

    def call(self, site: Path, module: str, wanted: Mapping[str, Any], *, changing: bool = False) -> Answers:
        answers = Answers()
        action = next(iter(wanted.values()))["action"]
        self.calls.append((action, tuple(wanted)))
        last = self.kill_at is not None and len(self.calls) >= self.kill_at
        if last and self.kill_before:
            raise Killed
        for node, given_arguments in wanted.items():
            server = self.servers[node]
            if not server.up:
                answers.failed[node] = Unreachable("node-unreachable", "no answer", where=node)
                continue
            try:
                answers.ok[node] = getattr(self, f"do_{action}")(server, given_arguments)
            except CloudctlError as error:
                answers.failed[node] = error
        if last:
            raise Killed
        return answers

    def primary(self) -> list[Server]:
        return [server for server in self.servers.values() if server.up and server.serving]

    def do_read(self, server: Server, given_arguments: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "container": server.container,
            "running_for": 10**6 if server.container == "running" else None,
            "data": bool(server.uuid),
            "grastate": server.grastate,
            "copies": list(server.copies),
            "size": 1000,
        }
        if server.serving:
            found["status"] = {
                "local_state_uuid": server.uuid,
                "last_committed": str(server.seqno),
                "cluster_status": "Primary",
                "ready": "ON",
                "local_state_comment": "Synced",
                "cluster_size": str(len(self.primary())),
            }
        elif server.container == "running":
            found["argument"] = {"uuid": server.uuid, "seqno": server.seqno}
        elif given_arguments.get("probe", True) and not server.broken:
            found["recovered"] = {"uuid": server.uuid, "seqno": server.seqno}
        return {"member": found}

    do_wait = do_read

    def do_stop(self, server: Server, given_arguments: Mapping[str, Any]) -> dict[str, Any]:
        if server.serving:
            return {"serves": True}
        server.crash()
        return {"serves": False}

    def do_copy(self, server: Server, given_arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert server.container != "running"
        if server.free < 1000:
            return {"copy": {"refused": True, "path": "/copies", "needed": 1000, "free": server.free}}
        name = given_arguments["label"]
        made = name not in [copy["name"] for copy in server.copies]
        if made:
            server.copies.append({"name": name, "path": f"/copies/{name}", "bytes": 1000})
        return {"copy": {"path": f"/copies/{name}", "bytes": 1000, "made": made}}

    def do_start(self, server: Server, given_arguments: Mapping[str, Any]) -> dict[str, Any]:
        if server.broken:
            raise ApplyFailed("apply-failed", "does not start")
        wanted = given_arguments.get("grastate")
        if wanted:
            assert server.container != "running"
            server.grastate = text(wanted["uuid"], wanted["seqno"], wanted["safe"])
        if server.container == "running":
            return self.do_read(server, {})
        server.container = "running"
        state = parse_grastate(server.grastate)
        others = self.primary()
        if others:
            source = others[0]
            if state.uuid == server.uuid == source.uuid:
                assert source.rows[: server.seqno] == server.rows, "an incremental copy onto other data"
            server.rows, server.uuid = list(source.rows), source.uuid
        elif state.safe:
            if state.uuid != server.uuid:
                self.made += 1
                server.uuid = f"{self.made:08x}-0000-0000-0000-000000000001"
        else:
            return self.do_read(server, {})
        server.serving, server.grastate = server.uuid, text(server.uuid, -1, safe=not others)
        return self.do_read(server, {})


def play(monkeypatch: pytest.MonkeyPatch, path: Path, cluster: Cluster) -> Callable[..., recovery.Recovery]:
    path.mkdir(exist_ok=True)
    names = list(cluster.servers)
    site = SimpleNamespace(
        path=path,
        nodes={name: SimpleNamespace(name=name, groups=("control",)) for name in names},
        images={},
        get=lambda key, default=None: "debian" if key == "image_set" else default,
    )
    monkeypatch.setattr(recovery, "call", cluster.call)
    clock = Clock()
    monkeypatch.setattr(recovery, "time", clock)

    def run(*missing: str, **more: Any) -> recovery.Recovery:
        given_site: Any = site
        return recovery.recover(given_site, accept_missing=missing, **more)

    return run


ROWS = [f"row {i}" for i in range(20)]


def three(a: int = 10, b: int = 10, c: int = 10) -> Cluster:
    return Cluster(n1=Server(ROWS[:a]), n2=Server(ROWS[:b]), n3=Server(ROWS[:c]))


def check_whole(cluster: Cluster, rows: int) -> None:
    for server in cluster.servers.values():
        assert server.serving and server.rows == ROWS[:rows]
        assert server.definition == "as deployed"
    assert len({server.uuid for server in cluster.servers.values()}) == 1


def test_all_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = three(8, 12, 11)
    lines: list[str] = []
    done = play(monkeypatch, tmp_path, cluster)(report=lines.append)
    check_whole(cluster, 12)
    assert (done.chosen, done.size, done.uuid, done.position) == ("n2", 3, OLD, 12)
    assert done.copy == f"n2:/copies/n2-{OLD[:8]}-12" and done.bootstrapped
    started = [nodes for action, nodes in cluster.calls if action == "start"]
    assert started == [("n2",), ("n1",), ("n3",)], "one at a time"
    assert any("n2 starts the cluster" in line for line in lines)


def test_servers_that_run_without_a_cluster_are_stopped_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = three(8, 12, 11)
    for server in cluster.servers.values():
        server.container = "running"
    play(monkeypatch, tmp_path, cluster)()
    check_whole(cluster, 12)


def test_a_healthy_cluster_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = three()
    run = play(monkeypatch, tmp_path, cluster)
    run()
    cluster.calls.clear()
    with pytest.raises(CheckFailed, match="needs no recovery"):
        run()
    assert {action for action, _ in cluster.calls} == {"read"}


def refusal(run: Callable[..., Any], cluster: Cluster, *missing: str, **more: Any) -> str:
    with pytest.raises(CloudctlError) as caught:
        run(*missing, **more)
    assert {action for action, _ in cluster.calls} <= {"read"}, "nothing is stopped"
    return caught.value.ref


def test_refusals_stop_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = three()
    run = play(monkeypatch, tmp_path, cluster)
    cluster.servers["n1"].container = "running"
    cluster.servers["n3"].uuid = OTHER
    cluster.servers["n3"].grastate = text(OTHER, -1)
    assert refusal(run, cluster) == "galera-uuids-differ"
    cluster.servers["n3"].up = False
    assert refusal(run, cluster) == "galera-member-unreachable"
    cluster.servers["n3"] = Server(ROWS, broken=True, grastate="garbage")
    assert refusal(run, cluster) == "galera-position-unknown"
    assert refusal(run, cluster, "nonsense") == "galera-member-unknown"
    with pytest.raises(UsageError):
        run("n1", "n2", "n3")
    assert cluster.servers["n1"].container == "running"


def test_what_was_stopped_runs_again_when_the_data_at_rest_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = three()
    run = play(monkeypatch, tmp_path, cluster)
    cluster.servers["n1"].container = "running"
    cluster.servers["n2"].free = cluster.servers["n1"].free = cluster.servers["n3"].free = 10
    with pytest.raises(CheckFailed) as caught:
        run()
    assert caught.value.ref == "galera-no-space" and "--no-copy" in str(caught.value.hint)
    assert cluster.servers["n1"].container == "running"
    assert cluster.servers["n2"].container == "exited"
    assert run(copy=False).copy is None
    check_whole(cluster, 10)


def test_a_missing_member_does_not_come_back_into_a_history_that_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = three(10, 10, 13)
    cluster.servers["n3"].up = False
    run = play(monkeypatch, tmp_path, cluster)
    done = run("n3")
    assert (done.size, done.left_out) == (2, ("n3",)) and done.uuid != OLD
    for name in ("n1", "n2"):
        cluster.servers[name].rows += ["new 1", "new 2", "new 3", "new 4", "new 5"]
    cluster.servers["n3"].up = True
    # its position is behind the cluster's, and its rows are not the cluster's
    done = run()
    assert (done.size, done.joined, done.bootstrapped) == (3, ("n3",), False)
    assert cluster.servers["n3"].rows == cluster.servers["n1"].rows


def test_what_was_given_up_twice_is_still_the_older_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = three()
    cluster.servers["n3"].up = False
    run = play(monkeypatch, tmp_path, cluster)
    for _ in range(2):
        # The first member starts under a new identity; before the second joins it, everything ends.
        cluster.calls.clear()
        cluster.kill_at, cluster.kill_before = 5, True
        with pytest.raises(Killed):
            run("n3")
        cluster.servers["n1"].crash()
    cluster.kill_at = None
    assert cluster.servers["n2"].uuid == OLD
    run("n3")
    assert cluster.servers["n2"].uuid == cluster.servers["n1"].uuid != OLD
    cluster.servers["n3"].up = True
    assert run().joined == ("n3",)


def test_images_of_others_are_not_started_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site: Any = SimpleNamespace(get=lambda key, default=None: "kolla")
    given_site: Site = site
    with pytest.raises(ConfigError):
        recovery._require_own_image(given_site)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_killed_at_any_call_and_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, 15), min_size=3, max_size=3), label="positions")
    cluster = three(*positions)
    for server in cluster.servers.values():
        server.container = data.draw(st.sampled_from(["exited", "running", "restarting"]))
        server.grastate = data.draw(st.sampled_from([None, "garbage", text(OLD, -1), text(NO_UUID, -1)]))
    away = data.draw(st.sampled_from([(), ("n3",)]), label="accepted")
    if away:
        cluster.servers["n3"].up = False
    (tmp_path / "x").mkdir(exist_ok=True)
    for old in (tmp_path / "x").rglob("*.json"):
        old.unlink()
    run = play(monkeypatch, tmp_path / "x", cluster)
    for _ in range(data.draw(st.integers(0, 4), label="kills")):
        cluster.calls.clear()
        cluster.kill_at = data.draw(st.integers(1, 14), label="at call")
        cluster.kill_before = data.draw(st.booleans(), label="before it is done")
        try:
            run(*away)
        except Killed:
            pass
        except CheckFailed as error:
            assert error.ref == "galera-healthy"
        crash = data.draw(st.sampled_from(["", "n1", "n2", "all"]), label="then crashes")
        for name, server in cluster.servers.items():
            if crash in (name, "all"):
                server.crash()
    cluster.kill_at = None
    try:
        run(*away)
    except CheckFailed as error:
        assert error.ref == "galera-healthy"
    wanted = [server for server in cluster.servers.values() if server.up]
    best = max(seqno for seqno, server in zip(positions, cluster.servers.values(), strict=True) if server.up)
    for server in wanted:
        assert server.serving and server.rows == ROWS[:best]
    assert len({server.uuid for server in wanted}) == 1
    with pytest.raises(CheckFailed, match="needs no recovery"):
        run(*away)
