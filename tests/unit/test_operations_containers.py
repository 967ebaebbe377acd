"""Containers in the order of the definitions; services stopped, started, restarted; the node module."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudctl.ceph import flags
from cloudctl.ceph.daemons import wrong
from cloudctl.commands.service import nodes_of
from cloudctl.engine.definitions import PHASES, load_services, order_services
from cloudctl.errors import ApplyFailed, CheckFailed, Unreachable, UsageError
from cloudctl.lab import nodes as lab_nodes
from cloudctl.lab import sitedir
from cloudctl.lab.topology import topology
from cloudctl.operations import clusters, containers, service
from cloudctl.operations.call import Answers
from cloudctl.operations.containers import Tier, by_node, phase_of, ranks, tiers
from cloudctl.site.load import load_site
from cloudctl.site.model import Site
from cloudctl.status.summary import Expected

LIBRARY = Path(__file__).resolve().parents[2] / "playbooks" / "library"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site of the full lab."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("site")
        patch.setattr(sitedir, "SITE", path)
        patch.setattr(lab_nodes, "STATE", path)
        patch.setattr(sitedir, "public_key", lambda: "ssh-ed25519 AAAA test")
        patch.setattr(lab_nodes, "host_key", lambda node: f"ssh-ed25519 {node.name}")
        sitedir.write(topology("full").values(), lambda line: None)
        return load_site(path, with_secrets=False)


@pytest.fixture(scope="module")
def order(site: Site) -> list[Tier]:
    return tiers(site)


def place(order: list[Tier], container: str) -> int:
    return next(
        number
        for number, tier in enumerate(order)
        if any(container in names for names in tier.containers.values())
    )


# -- the order ----------------------------------------------------------------------------------


def test_what_stops_first_starts_last(order: list[Tier]) -> None:
    # The documented sequence: compute nodes, API services, load balancer, message bus, database.
    down = ["nova_compute", "horizon", "nova_api", "neutron_server", "keystone", "keepalived", "haproxy"]
    down += ["rabbitmq", "mariadb", "ovn_nb_db", "openvswitch_vswitchd"]
    places = [place(order, name) for name in down]
    assert places == sorted(places, reverse=True) and len(set(places)) == len(places)


def test_agents_of_compute_nodes_start_after_all_that_controllers_run(order: list[Tier]) -> None:
    for name in ("nova_libvirt", "nova_ssh", "neutron_ovn_metadata_agent"):
        assert order[place(order, name)].phase == "compute"
    # The switch is needed by everything, on compute nodes too.
    assert "compute01" in order[place(order, "openvswitch_db")].containers


def test_every_container_is_in_one_tier(order: list[Tier], site: Site) -> None:
    seen = [(node, name) for tier in order for node, names in tier.containers.items() for name in names]
    assert len(seen) == len(set(seen)) > 60
    assert len({tier.name for tier in order}) == len(order)
    assert [PHASES.index(tier.phase) for tier in order] == sorted(PHASES.index(tier.phase) for tier in order)
    assert set(order[0].only(["compute01"]).containers) == {"compute01"}


def test_the_order_comes_from_the_definitions_alone(site: Site) -> None:
    known = load_services()
    assert ranks([s for s in known if s.phase == "identity"]) == {"keystone": 0}
    # Without what is named in `after`, a service does not wait for it.
    assert ranks([s for s in known if s.name == "keepalived"]) == {"keepalived": 0}
    chain = ranks(order_services([s for s in known if s.phase == "infrastructure"]))
    assert chain["mariadb"] < chain["rabbitmq"] < chain["haproxy"] < chain["keepalived"] < chain["toolbox"]
    for item in known:
        for container in item.containers:
            assert phase_of(item, container) in PHASES
    few = tiers(site, [s for s in known if s.name in ("mariadb", "haproxy")])
    assert [tier.services for tier in few] == [("mariadb",), ("haproxy",)]


def test_lists_for_each_node() -> None:
    groups = [{"a": ["x"], "b": ["y"]}, {"a": ["z"], "b": []}]
    assert by_node(groups) == {"a": [["x"], ["z"]], "b": [["y"]]}


# -- calls --------------------------------------------------------------------------------------


class Calls:
    """Stands for the node-side module."""

    def __init__(self, answers: dict[str, dict[str, Any]], failed: dict[str, Any] | None = None) -> None:
        self.answers = answers
        self.failed = failed or {}
        self.asked: list[dict[str, Any]] = []

    def __call__(self, site: Path, module: str, nodes: dict[str, Any], **options: Any) -> Answers:
        assert module == "cloudctl_containers"
        self.asked.append({node: dict(args) for node, args in nodes.items()})
        ok = {node: self.answers.get(node, {}) for node in nodes if node not in self.failed}
        return Answers(ok, {node: error for node, error in self.failed.items() if node in nodes})


def answer(names: list[str] = [], absent: list[str] = [], **states: str) -> dict[str, Any]:  # noqa: B006
    return {
        "changed_names": names,
        "absent": absent,
        "containers": {name: {"state": state, "health": ""} for name, state in states.items()},
    }


def test_stop_is_one_call_for_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls({"a": answer(["x"], x="exited"), "b": answer([], y="exited")})
    monkeypatch.setattr(containers, "call", calls)
    assert containers.stop(Path("/s"), {"a": ["x", "y"], "b": [["y"], ["z"]], "c": []}) == {
        "a": ["x"],
        "b": [],
    }
    assert len(calls.asked) == 1
    assert calls.asked[0]["a"]["groups"] == [["x", "y"]] and calls.asked[0]["b"]["groups"] == [["y"], ["z"]]
    assert "c" not in calls.asked[0]


def test_a_container_that_runs_after_its_stop_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "call", Calls({"a": answer(["x"], x="running", other="running")}))
    with pytest.raises(ApplyFailed, match=r"still there: x$"):
        containers.stop(Path("/s"), {"a": ["x"]})


def test_a_container_that_cannot_start_because_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "call", Calls({"a": answer([], ["x"])}))
    with pytest.raises(ApplyFailed) as caught:
        containers.start(Path("/s"), {"a": ["x"]})
    assert caught.value.ref == "container-missing" and caught.value.where == "a"


def test_a_silent_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "call", Calls({"a": answer()}, {"b": Unreachable("gone", "b is off")}))
    with pytest.raises(Unreachable):
        containers.read(Path("/s"), ["a", "b"])
    answers, failed = containers.look(Path("/s"), ["a", "b"]).ok, containers.look(Path("/s"), ["b"]).failed
    assert set(answers) == {"a"} and set(failed) == {"b"}


# -- a service ----------------------------------------------------------------------------------

CONTROLLERS = ("ctl01", "ctl02", "ctl03")


def facts_of(order: list[Tier], *, vip: str = "", away: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Return what nodes report when everything runs but what is named in ``away``."""
    facts: dict[str, Any] = {}
    for tier in order:
        for node, names in tier.containers.items():
            known = facts.setdefault(
                node, {"node": {}, "engine": {}, "addresses": [], "containers": [], "probes": {}}
            )
            for name in names:
                gone = name in (away or {}).get(node, [])
                state = (
                    {"state": "exited", "health": "", "status": ""}
                    if gone
                    else {"state": "running", "health": "healthy", "status": ""}
                )
                known["containers"].append({"name": name, **state})
    if vip:
        facts[vip]["addresses"] = [{"address": "10.10.10.250"}]
    return facts


def expected_of(order: list[Tier]) -> Expected:
    found: dict[str, list[dict[str, str]]] = {}
    for tier in order:
        for node, names in tier.containers.items():
            found.setdefault(node, []).extend({"name": name, "service": ""} for name in names)
    return Expected(containers=found, nodes={node: () for node in found})


def make(
    action: str, name: str, order: list[Tier], *, nodes: tuple[str, ...] = (), **more: Any
) -> service.Work:
    known = load_services()
    chosen = service.choose(name, known, order, nodes)
    first = more.pop("first", None)
    facts = facts_of(order, **more)
    return service.plan(
        action,
        chosen,
        facts,
        expected_of(order),
        known,
        controllers=CONTROLLERS,
        vips=["10.10.10.250"],
        first=first,
    )


def where(work: service.Work) -> list[list[str]]:
    return [list(batch.containers) for batch in work.batches]


def test_a_name_is_a_service_or_a_container(order: list[Tier]) -> None:
    known = load_services()
    assert {c for t in service.choose("mariadb", known, order, []) for c in t.containers["ctl01"]} == {
        "mariadb", "mariadb_clustercheck",
    }  # fmt: skip
    assert service.choose("nova_api", known, order, ["ctl02"])[0].containers == {"ctl02": ["nova_api"]}
    with pytest.raises(UsageError) as caught:
        service.choose("nova_apo", known, order, [])
    assert caught.value.hint == "did you mean 'nova_api'?"
    with pytest.raises(UsageError) as caught:
        service.choose("nova_api", known, order, ["compute01"])
    assert caught.value.ref == "service-not-there" and "ctl01" in (caught.value.hint or "")


def test_all_containers_of_a_group_stop_tier_by_tier_on_all_its_nodes(order: list[Tier], site: Site) -> None:
    controllers = nodes_of(site, ["control"])
    assert tuple(controllers) == CONTROLLERS
    work = make("stop", "all", order, nodes=CONTROLLERS)
    everything = {c for tier in order for node in CONTROLLERS for c in tier.containers.get(node, [])}
    assert set(work.names) == everything and set(work.nodes()) == set(CONTROLLERS) and work.serious
    # At the same time on all of them, but for the database.
    assert {len(nodes) for nodes in where(work)} == {1, 3}
    with pytest.raises(UsageError) as caught:
        nodes_of(site, ["controll"])
    assert caught.value.ref == "group-unknown" and "control" in (caught.value.hint or "")


def test_a_restart_takes_one_controller_at_a_time_and_the_address_last(order: list[Tier]) -> None:
    work = make("restart", "haproxy", order, vip="ctl01")
    assert where(work) == [["ctl02"], ["ctl03"], ["ctl01"]] and not work.serious
    work = make("restart", "nova", order)
    # The controllers first, then the compute nodes, one after the other: there are fewer than twenty.
    assert where(work)[:3] == [["ctl01"], ["ctl02"], ["ctl03"]]
    assert where(work)[3:] == [["compute01"], ["compute02"]]


def test_the_holder_of_an_address_gives_it_up_before_its_load_balancer_restarts(order: list[Tier]) -> None:
    work = make("restart", "haproxy", order, vip="ctl01")
    first, second, last = (batch.hand_over for batch in work.batches)
    assert not first and not second
    assert (last["holder"], last["addresses"]) == ("keepalived", ["10.10.10.250"])
    assert 5000 in last["ports"] and 3306 not in last["ports"], "what lasts long is not waited for"
    assert "give up 10.10.10.250" in work.batches[-1].commands()
    assert make("restart", "keepalived", order, vip="ctl01").batches[-1].hand_over
    assert not make("restart", "keystone", order, vip="ctl01").batches[-1].hand_over
    # Nobody could take it.
    away = {node: ["keepalived"] for node in ("ctl02", "ctl03")}
    assert not make("restart", "haproxy", order, vip="ctl01", away=away).batches[-1].hand_over


def test_large_numbers_of_compute_nodes_restart_in_tenths() -> None:
    nodes = {f"compute{number:02}": ["nova_compute"] for number in range(25)}
    tier = Tier("compute-1", "compute", ("nova",), nodes)
    work = service.plan(
        "restart", [tier], facts_of([tier]), expected_of([tier]), load_services(), controllers=CONTROLLERS
    )
    assert [len(nodes) for nodes in where(work)] == [2] * 12 + [1]


def test_what_is_broken_restarts_first(order: list[Tier]) -> None:
    work = make("restart", "rabbitmq", order, away={"ctl03": ["rabbitmq"]})
    assert where(work)[0] == ["ctl03"]


def test_a_restart_that_takes_the_majority_is_refused(order: list[Tier]) -> None:
    work = make("restart", "mariadb", order, nodes=("ctl02",), away={"ctl03": ["mariadb"]})
    assert work.serious and "majority" in work.losses[0]
    # The one that is down may be restarted, whatever the others do.
    assert not make("restart", "mariadb", order, nodes=("ctl03",), away={"ctl03": ["mariadb"]}).serious
    # And where there is no majority any more there is none to lose.
    away = {"ctl01": ["mariadb"], "ctl03": ["mariadb"]}
    assert not make("restart", "mariadb", order, nodes=("ctl02",), away=away).serious


NAMES = [f"rabbit@{node}" for node in CONTROLLERS]


@pytest.mark.parametrize(
    "told",
    [
        # What one member noted while it was alone, and all tell.
        {node: {"running_nodes": NAMES, "partitions": {NAMES[2]: NAMES[:2]}} for node in CONTROLLERS},
        # Two parts that went on by themselves; each notes the other.
        {
            "ctl01": {"running_nodes": NAMES[:2], "partitions": {n: NAMES[2:] for n in NAMES[:2]}},
            "ctl02": {"running_nodes": NAMES[:2], "partitions": {n: NAMES[2:] for n in NAMES[:2]}},
            "ctl03": {"running_nodes": NAMES[2:], "partitions": {NAMES[2]: NAMES[:2]}},
        },
        # Nothing noted yet.
        {
            "ctl01": {"running_nodes": NAMES[:2]},
            "ctl02": {"running_nodes": NAMES[:2]},
            "ctl03": {"running_nodes": NAMES[2:]},
        },
        # It does not tell.
        {"ctl01": {"running_nodes": NAMES}, "ctl02": {"running_nodes": NAMES}},
    ],
)
def test_a_member_that_runs_outside_its_cluster_counts_as_lost(
    order: list[Tier], told: dict[str, dict[str, Any]]
) -> None:
    facts = facts_of(order)
    for node in CONTROLLERS:
        text = json.dumps({"disk_nodes": NAMES, **told[node]}) if node in told else ""
        facts[node]["probes"]["rabbitmq"] = {"rc": 0 if text else 1, "stdout": text, "stderr": ""}

    def restart(nodes: tuple[str, ...]) -> service.Work:
        chosen = service.choose("rabbitmq", load_services(), order, nodes)
        return service.plan(
            "restart", chosen, facts, expected_of(order), load_services(), controllers=CONTROLLERS
        )

    work = restart(())
    assert where(work)[0] == ["ctl03"] and work.serious
    assert "because ctl03 does not work in the message bus now" in work.losses[0]
    assert restart(("ctl01",)).serious
    # Its own restart is what mends it.
    assert not restart(("ctl03",)).serious


def test_the_database_stops_one_member_at_a_time_and_starts_the_last_one_first(order: list[Tier]) -> None:
    stop = make("stop", "mariadb", order)
    assert where(stop) == [["ctl03"], ["ctl02"], ["ctl01"]]
    away = {node: ["mariadb", "mariadb_clustercheck"] for node in CONTROLLERS}
    start = make("start", "mariadb", order, away=away, first="ctl02")
    assert where(start) == [["ctl02"], ["ctl01"], ["ctl03"]]


def test_other_clusters_start_together(order: list[Tier]) -> None:
    # A member of the message bus waits for the one that stopped last: one at a time would wait for ever.
    work = make("start", "rabbitmq", order, away={node: ["rabbitmq"] for node in CONTROLLERS})
    assert where(work) == [list(CONTROLLERS)]


def test_a_stop_tells_what_is_lost(order: list[Tier]) -> None:
    everything = make("stop", "rabbitmq", order)
    assert everything.serious and "no member is left" in everything.losses[0]
    assert "cinder, neutron, nova" in everything.losses[0]
    two = make("stop", "rabbitmq", order, nodes=("ctl01", "ctl02"))
    assert two.serious and "no majority" in two.losses[0]
    one = make("stop", "rabbitmq", order, nodes=("ctl01",))
    assert not one.serious and "2 of 3 members; no other may fail" in one.losses[0]
    api = make("stop", "keystone", order)
    assert api.serious and "keystone answers no more" in api.losses[0]
    agent = make("stop", "nova_libvirt", order, nodes=("compute01",))
    assert agent.serious and "nothing else does its work" in agent.losses[0]
    copy = make("stop", "cinder_backup", order, nodes=("ctl01",))
    assert not copy.serious and "2 of 3 copies are left" in copy.losses[0]
    rest = make(
        "stop",
        "cinder_backup",
        order,
        nodes=("ctl01",),
        away={"ctl02": ["cinder_backup"], "ctl03": ["cinder_backup"]},
    )
    assert rest.serious


def test_nothing_to_do_is_nothing(order: list[Tier]) -> None:
    away = {node: ["keystone"] for node in CONTROLLERS}
    assert make("stop", "keystone", order, away=away).batches == []
    assert make("start", "keystone", order).batches == []
    assert where(make("start", "keystone", order, away={"ctl02": ["keystone"]})) == [["ctl02"]]


def test_services_stop_in_the_reverse_of_their_start(order: list[Tier]) -> None:
    stop = make("stop", "nova", order)
    assert "compute01" in stop.batches[0].containers and "ctl01" in stop.batches[-1].containers
    start = make("start", "nova", order, away={"compute01": ["nova_compute"], "ctl01": ["nova_api"]})
    assert where(start) == [["ctl01"], ["compute01"]]
    assert start.batches[0].commands() == ["docker start nova_api"]


def test_containers_that_were_never_made_are_told(order: list[Tier]) -> None:
    work = make("start", "keystone", order, away={"ctl02": ["keystone"]})
    assert service.missing(work, {"ctl02": {"containers": []}}) == [("ctl02", "keystone")]
    assert service.missing(work, facts_of(order)) == []


def test_the_end_is_judged(order: list[Tier]) -> None:
    work = make("stop", "keystone", order, nodes=("ctl01",))
    assert service.judge(work, {"ctl01": {"keystone": {"state": "running", "health": "healthy"}}})
    assert not service.judge(work, {"ctl01": {"keystone": {"state": "exited", "health": ""}}})
    work = make("restart", "keystone", order, nodes=("ctl01",))
    assert not service.judge(work, {"ctl01": {"keystone": {"state": "running", "health": "healthy"}}})
    for state, health in (("running", "unhealthy"), ("restarting", ""), ("exited", "")):
        assert service.judge(work, {"ctl01": {"keystone": {"state": state, "health": health}}})
    assert service.judge(work, {"ctl01": {}})


@pytest.mark.parametrize(("last", "fine"), [(["ctl02"], True), ([], False), (["ctl01", "ctl03"], False)])
def test_a_stopped_database_starts_with_its_last_member_or_not_at_all(
    order: list[Tier], site: Site, monkeypatch: pytest.MonkeyPatch, last: list[str], fine: bool
) -> None:
    class Member:
        def __init__(self, safe: bool) -> None:
            self.safe_to_bootstrap = safe

    galera = ModuleType("cloudctl.galera")
    galera.read_members = lambda site: {node: Member(node in last) for node in CONTROLLERS}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cloudctl.galera", galera)
    chosen = service.choose("mariadb", load_services(), order, [])
    facts = facts_of(order, away={node: ["mariadb"] for node in CONTROLLERS})
    expected = expected_of(order)
    if fine:
        assert service.first_member(site, chosen, facts, expected) == "ctl02"
        with pytest.raises(CheckFailed) as caught:
            part = service.choose("mariadb", load_services(), order, ["ctl01"])
            service.first_member(site, part, facts, expected)
        assert caught.value.where == "ctl02"
    else:
        with pytest.raises(CheckFailed) as caught:
            service.first_member(site, chosen, facts, expected)
        assert caught.value.ref == "galera-not-clean" and "galera recover" in (caught.value.hint or "")
    assert service.first_member(site, chosen, facts_of(order), expected) is None


# -- clusters -----------------------------------------------------------------------------------


def test_a_member_that_is_off_is_not_waited_for(order: list[Tier]) -> None:
    facts = facts_of(order, away={"ctl03": ["mariadb"]})
    whole = expected_of(order)
    part = clusters.present(["mariadb"], facts, whole)
    assert part.nodes_of("mariadb") == ["ctl01", "ctl02"] and part.nodes_of("rabbitmq") == []
    text = "wsrep_cluster_size\t2\nwsrep_cluster_status\tPrimary\n"
    text += "wsrep_local_state_comment\tSynced\nwsrep_ready\tON\n"
    for node in ("ctl01", "ctl02"):
        facts[node]["probes"] = {"galera": {"rc": 0, "stdout": text, "stderr": ""}}
    assert clusters.problems(["mariadb"], facts, part) == []
    assert [problem.ref for problem in clusters.problems(["mariadb"], facts, whole)] == ["galera-incomplete"]
    assert clusters.problems(["keystone"], facts, whole) == []


def test_who_uses_a_cluster() -> None:
    known = load_services()
    assert "nova" in clusters.users(clusters.BY_CONTAINER["rabbitmq"], known)
    assert clusters.users(clusters.BY_CONTAINER["ovn_nb_db"], known) == []


# -- Ceph ---------------------------------------------------------------------------------------


def test_flags_are_known_and_named_in_sets() -> None:
    assert flags.expand(["maintenance", "noscrub", "noout"]) == [*flags.MAINTENANCE, "noscrub"]
    with pytest.raises(UsageError) as caught:
        flags.expand(["noOut"])
    assert caught.value.hint == "did you mean 'noout'?"
    with pytest.raises(UsageError) as caught:
        flags.expand(["xyzzy"])
    assert "maintenance" in (caught.value.hint or "")


def test_flags_are_read_as_they_are_set() -> None:
    text = json.dumps({"flags": "pauserd,pausewr,noout,sortbitwise,recovery_deletes"})
    assert flags.parse_flags(text) == ["noout", "pause"]
    assert flags.parse_flags("{}") == []


class Mons:
    """Stands for the monitors' containers: a cluster with flags."""

    def __init__(self, present: list[str], *, deaf: bool = False) -> None:
        self.present = present
        self.deaf = deaf
        self.asked: list[tuple[list[str], list[str]]] = []

    def __call__(self, site: Any, nodes: list[str], container: str, command: list[str], **more: Any) -> Any:
        self.asked.append((list(nodes), list(command)))
        if command[0] == "bash":
            verb, names = command[4], command[5].split()
            if not self.deaf:
                self.present = (
                    [*self.present, *names] if verb == "set" else [f for f in self.present if f not in names]
                )
            return {nodes[0]: {"rc": 0, "stdout": "", "stderr": ""}}, {}
        text = json.dumps({"flags": ",".join(self.present)})
        found = {node: {"rc": 0, "stdout": text, "stderr": ""} for node in nodes}
        # The first monitor has no quorum.
        if len(nodes) > 1:
            found[nodes[0]] = {"rc": 1, "stdout": "", "stderr": "timed out"}
        return found, {}


def test_flags_are_changed_through_a_monitor_that_answers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    mons = Mons(["noscrub", "noout"])
    monkeypatch.setattr(flags, "run_in", mons)
    assert flags.set_flags(site, flags.MAINTENANCE) == [f for f in flags.MAINTENANCE if f != "noout"]
    (nodes, command) = mons.asked[1]
    assert nodes == ["ctl02"] and command[4:6] == ["set", "norecover norebalance nobackfill nodown pause"]
    assert flags.unset_flags(site, ["noout", "noin"]) == ["noout"]
    assert "noscrub" in flags.read_flags(site)
    before = len(mons.asked)
    assert flags.set_flags(site, ["pause"]) == [] and len(mons.asked) == before + 1


def test_a_flag_that_does_not_show_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "run_in", Mons([], deaf=True))
    with pytest.raises(ApplyFailed) as caught:
        flags.set_flags(site, ["noout"])
    assert caught.value.ref == "flag-not-confirmed"


def test_without_a_quorum_there_is_nobody_to_ask(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(site: Any, nodes: list[str], *args: Any, **more: Any) -> Any:
        off = {nodes[0]: Unreachable("node-unreachable", "off")}
        return {node: {"rc": 125, "stdout": "", "stderr": "no container"} for node in nodes[1:]}, off

    monkeypatch.setattr(flags, "run_in", silent)
    with pytest.raises(Unreachable) as caught:
        flags.read_flags(site)
    assert caught.value.ref == "ceph-no-quorum" and "ctl01: off" in caught.value.message


def test_a_refused_command_is_no_lost_quorum(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = {"rc": 22, "stdout": "", "stderr": "Error EINVAL: invalid command"}
    monkeypatch.setattr(flags, "run_in", lambda site, nodes, *a, **k: ({node: reply for node in nodes}, {}))
    with pytest.raises(ApplyFailed, match="EINVAL"):
        flags.mon_command(site, ["osd", "set", "x"])


def test_daemons_are_judged_by_kind() -> None:
    units = {
        "a": {"kind": "osd", "active": "failed"},
        "b": {"kind": "osd", "active": "active"},
        "c": {"kind": "mon", "active": "active"},
    }
    assert set(wrong(units, "osd", running=True)) == {"a"}
    assert set(wrong(units, "osd", running=False)) == {"b"}


# -- the node-side module -----------------------------------------------------------------------


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cloudctl_containers", LIBRARY / "cloudctl_containers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cloudctl_containers"] = module
    spec.loader.exec_module(module)
    return module


module = load()


class Engine:
    """A container engine: what it is told is remembered, and changes what it tells."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.log: list[str] = []
        self.health: dict[str, str] = {}

    def __call__(self, method: str, path: str, timeout: int = 60) -> tuple[int, Any]:
        if path.startswith("/containers/json"):
            return 200, [{"Names": [f"/{name}"]} for name in self.states]
        _, _, name, verb = path.split("/")
        if name not in self.states:
            return 404, {"message": "No such container"}
        if verb == "json":
            state = self.states[name]
            inner = {
                "Status": state, "Running": state in ("running", "restarting"),
                "Restarting": state == "restarting", "ExitCode": 0, "StartedAt": "t",
            }  # fmt: skip
            if name in self.health:
                inner["Health"] = {"Status": self.health[name]}
            return 200, {
                "Id": name, "State": inner, "RestartCount": 0,
                "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}},
            }  # fmt: skip
        self.log.append(f"{verb} {name}")
        wanted = "exited" if verb == "stop" else "running"
        if self.states[name] == wanted:
            return 304, None
        self.states[name] = wanted
        return 204, None


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine(a="running", b="restarting", c="exited", d="paused")
    monkeypatch.setattr(module, "engine", fake)
    monkeypatch.setattr(module, "engine_runs", lambda: True)
    return fake


def test_module_stops_list_after_list(engine: Engine) -> None:
    stopped, absent = module.stop([["c", "b"], ["a", "nowhere"]])
    assert stopped == ["b", "a"] and absent == ["nowhere"]
    assert engine.log.index("stop b") < engine.log.index("stop a")
    assert module.stop([["a", "b"]]) == ([], [])


def test_module_unpauses_what_it_stops(engine: Engine) -> None:
    assert module.stop([["d"]])[0] == ["d"] and engine.log == ["unpause d", "stop d"]


def test_module_starts_and_waits(engine: Engine) -> None:
    assert module.start([["c", "a", "nowhere"]], 5) == (["c"], ["nowhere"])
    engine.health["a"] = "starting"
    with pytest.raises(module.NodeError, match=r"not healthy after 0 s: a .starting."):
        module.start([["a"]], 0)


def test_module_tells_an_engine_that_is_off_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", lambda argv, timeout=60: (3, "inactive\n", ""))
    monkeypatch.setattr(module, "read_ceph", dict)
    for found, installed in ((None, False), ("/usr/sbin/dockerd", True)):
        monkeypatch.setattr(module.shutil, "which", lambda name, path, found=found: found)
        answer = module.act({"action": "read"})
        assert (answer["engine"], answer["installed"], answer["containers"]) == (False, installed, {})


def test_module_gives_addresses_up_between_requests(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    busy = iter([1, 1, 0])
    monkeypatch.setattr(module, "run", lambda argv, timeout=60: (ran.append(argv[0]), (0, "", ""))[1])
    monkeypatch.setattr(module, "hold_connections", lambda addresses, ports: ran.append(f"hold {ports}"))
    monkeypatch.setattr(module, "busy", lambda listed, ports: next(busy))
    assert module.hand_over([["b"]], "a", ["10.0.0.1"], [80]) == (["b", "a"], [])
    assert ran == ["hold [80]", "ss", "ss", "ss", "hold []", "nft"]
    assert engine.log == ["stop b", "stop a"], "the address goes last"
    engine.log.clear()
    busy = iter([0])
    module.hand_over([["a"]], "a", ["10.0.0.1"], [])
    assert engine.log == ["stop a"]


def test_module_knows_requests_under_way() -> None:
    line = "0      0      10.0.0.1:{port} 10.0.0.9:40000\n\t cubic {times} cwnd:10\n"
    asked = line.format(port=443, times="lastsnd:900 lastrcv:20")
    answered = line.format(port=443, times="lastsnd:300 lastrcv:320")
    sending = line.format(port=443, times="lastrcv:20")
    other = line.format(port=3306, times="lastsnd:900 lastrcv:20")
    assert module.busy(asked + answered + sending + other, {"443"}) == 2
    assert module.busy(answered + other, {"443"}) == 0


def test_module_reads(engine: Engine) -> None:
    engine.health["a"] = "healthy"
    found = module.read_containers()
    assert found["a"]["state"] == "running" and found["a"]["health"] == "healthy"
    assert found["b"]["looping"] and not found["a"]["looping"]
    assert found["a"]["policy"] == "unless-stopped" and found["a"]["started"] == "t"


def test_module_does_not_wake_an_engine_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Connecting to its socket would start it.
    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("the socket was touched")

    monkeypatch.setattr(module, "engine", refuse)
    monkeypatch.setattr(module, "run", lambda argv, timeout=60: (3, "inactive\n", ""))
    assert module.read_containers() == {} and module.stop([["a"]]) == ([], [])


def test_module_knows_cephs_units() -> None:
    fsid = "e62195a7-998f-4575-b805-d9caaa297a86"
    names = [f"ceph-{fsid}@osd.0.service", f"ceph-{fsid}@mgr.ctl01.xyz.service", "ceph-foo.service"]
    shown = (
        f"Id={names[0]}\nActiveState=inactive\nUnitFileState=enabled\n\n"
        f"Id={names[1]}\nActiveState=active\nUnitFileState=disabled\n"
    )
    units = module.parse_units(names, shown)
    assert set(units) == set(names[:2])
    assert units[names[0]] == {"fsid": fsid, "kind": "osd", "id": "0", "active": "inactive", "enabled": True}
    assert units[names[1]]["id"] == "ctl01.xyz" and not units[names[1]]["enabled"]


def test_module_moves_data_away_once(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "volume_path", lambda volume, path: str(tmp_path / path))
    data = tmp_path / "data"
    data.mkdir()
    (data / "old").write_text("old")
    with pytest.raises(module.NodeError, match="runs"):
        module.aside("a", "v", "data")
    assert module.aside("c", "v", "data") == ["data"] and not data.exists()
    data.mkdir()
    (data / "new").write_text("new")
    # Repeated after a start in between: the first copy is the one with the data.
    assert module.aside("c", "v", "data") == ["data"]
    assert (tmp_path / "data.cloudctl-aside" / "old").exists() and not data.exists()
    assert module.discard("v", "data") == ["data"] and module.discard("v", "data") == []


@pytest.mark.parametrize(
    ("volume", "path"), [("", "x"), ("v", ""), ("v", "/etc"), ("v", "../x"), ("../v", "x")]
)
def test_module_leaves_no_volume(volume: str, path: str) -> None:
    with pytest.raises(module.NodeError):
        module.volume_path(volume, path)


def test_module_reaches() -> None:
    assert list(module.reach(["127.0.0.1:1"])) == ["127.0.0.1:1"]
