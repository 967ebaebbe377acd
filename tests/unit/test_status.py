"""Reading the clusters' answers and judging the cloud."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudctl.console import Console
from cloudctl.engine.definitions import load_service, load_services
from cloudctl.errors import ConfigError, Unreachable
from cloudctl.status.probes import (
    PARSERS,
    PROBES,
    clusters_of,
    known_clusters,
    parse,
    parse_erlang,
    parse_galera,
    parse_ovsdb,
    probes,
)
from cloudctl.status.summary import Expected, Status, summarise
from cloudctl.status.text import cluster_lines, show, size

ROOT = Path(__file__).resolve().parents[2]

GALERA = (
    "wsrep_cluster_size\t3\nwsrep_cluster_status\tPrimary\n"
    "wsrep_local_state_comment\tSynced\nwsrep_ready\tON\n"
)
RABBITMQ = {
    "disk_nodes": ["rabbit@ctl01", "rabbit@ctl02", "rabbit@ctl03"],
    "running_nodes": ["rabbit@ctl03", "rabbit@ctl01", "rabbit@ctl02"],
    "partitions": {},
    "alarms": [],
}
OVN = """ab12
Name: OVN_Southbound
Cluster ID: 7b5f (7b5f0a55-0000-0000-0000-000000000000)
Server ID: ab12 (ab12d1a5-0000-0000-0000-000000000000)
Address: tcp:10.10.10.11:6644
Status: cluster member
Role: {role}
Term: 2
Leader: {leader}
Vote: self

Connections: ->cd34 <-cd34
Servers:
    ab12 (ab12 at tcp:10.10.10.11:6644) (self)
    cd34 (cd34 at tcp:10.10.10.12:6644) last msg 100 ms ago
    ef56 (ef56 at tcp:10.10.10.13:6644) last msg 101 ms ago
"""
CEPH = {
    "health": {"status": "HEALTH_OK", "checks": {}},
    "quorum_names": ["ctl01", "ctl02", "ctl03"],
    "monmap": {"num_mons": 3},
    "mgrmap": {"available": True},
    "osdmap": {"num_osds": 3, "num_up_osds": 3, "num_in_osds": 3},
    "pgmap": {
        "pgs_by_state": [{"state_name": "active+clean", "count": 97}],
        "bytes_used": 1 << 30,
        "bytes_total": 1 << 34,
    },
}
CONTROL = ["ctl01", "ctl02", "ctl03"]
CONTAINERS = ["mariadb", "rabbitmq", "ovn_nb_db", "ovn_sb_db", "api"]


def answer(text: str) -> dict[str, Any]:
    return {"rc": 0, "stdout": text, "stderr": ""}


def good() -> tuple[dict[str, Any], dict[str, Any], Expected]:
    """Return the facts, API answers and wishes of a healthy cloud."""
    facts: dict[str, Any] = {}
    for number, name in enumerate(CONTROL, 11):
        role, leader = ("leader", "self") if name == "ctl02" else ("follower", "cd34")
        addresses = [{"interface": "eth0", "address": f"10.10.10.{number}", "prefix": 24}]
        if name == "ctl01":
            addresses.append({"interface": "eth0", "address": "10.10.10.250", "prefix": 32})
        facts[name] = {
            "node": {"kernel": "6.12", "uptime": 100.0, "disks": {"/": {"total": 100, "free": 50}}},
            "engine": {"version": "26.1.5", "error": ""},
            "addresses": addresses,
            "containers": [
                {"name": c, "state": "running", "health": "healthy", "status": "Up (healthy)"}
                for c in CONTAINERS
            ],
            "probes": {
                "galera": answer(GALERA),
                "rabbitmq": answer(json.dumps(RABBITMQ)),
                "ovn_northbound": answer(OVN.format(role=role, leader=leader)),
                "ovn_southbound": answer(OVN.format(role=role, leader=leader)),
                "ceph": answer(json.dumps(CEPH)),
                "ceph_version": answer("ceph version 18.2.7 (abc) reef (stable)"),
            },
        }
    api = {
        "compute": [{"name": "nova-compute", "host": "cmp01", "up": True, "enabled": True}],
        "hypervisors": [{"name": "cmp01", "up": True, "enabled": True}],
        "network": [],
        "volume": [],
        "errors": {},
    }
    wanted = [{"name": c, "service": "api" if c == "api" else c} for c in CONTAINERS]
    expected = Expected(
        containers={name: wanted for name in CONTROL},
        nodes={name: ("control", "mons") for name in CONTROL},
        mons=3,
        osds=3,
        vips={"internal": "10.10.10.250"},
        release="2025.1",
    )
    return facts, api, expected


def refs(status: Status) -> list[str]:
    return [problem.ref for problem in status.problems]


def test_healthy_cloud() -> None:
    facts, api, expected = good()
    status = summarise(facts, {}, api, expected)
    assert status.problems == [] and status.healthy
    assert cluster_lines(status.sections) == [
        "Galera          3/3 Synced",
        "RabbitMQ        3/3 running",
        "OVN northbound  3/3 members, leader ctl02",
        "OVN southbound  3/3 members, leader ctl02",
        "VIP internal    10.10.10.250 on ctl01",
        "Ceph            HEALTH_OK, mons 3/3 in quorum, OSDs 3/3 up, 1.0 GiB of 16.0 GiB used",
        "Versions        OpenStack 2025.1; Ceph 18.2.7; engine 26.1.5; kernel 6.12",
    ]
    assert status.sections["services"]["mariadb"] == {"wanted": 3, "running": 3, "healthy": 3}
    json.dumps(status.as_dict())


def test_text_ends_with_the_judgement() -> None:
    facts, api, expected = good()
    facts["ctl02"]["containers"][4]["health"] = "unhealthy"
    out = io.StringIO()
    show(Console(stdout=out), summarise(facts, {}, api, expected))
    assert "problem[container-unhealthy]: api runs but its health check fails" in out.getvalue()
    assert out.getvalue().rstrip().endswith("The cloud is not healthy: 1 problem.")


def test_unreachable_node_is_one_problem_with_its_consequences_for_the_clusters() -> None:
    facts, api, expected = good()
    del facts["ctl03"]
    for known in facts.values():
        known["probes"]["galera"] = answer(GALERA.replace("\t3", "\t2"))
        known["probes"]["rabbitmq"] = answer(
            json.dumps({**RABBITMQ, "running_nodes": ["rabbit@ctl01", "rabbit@ctl02"]})
        )
        known["probes"]["ceph"] = answer(json.dumps({**CEPH, "quorum_names": ["ctl01", "ctl02"]}))
    silent = {
        "ctl03": Unreachable(
            "node-unreachable", "the node does not answer", where="ctl03", hint="check its power"
        )
    }
    status = summarise(facts, silent, api, expected)
    assert refs(status) == [
        "node-unreachable", "galera-incomplete", "rabbitmq-incomplete", "ovn-incomplete", "ovn-incomplete",
        "ceph-mons-missing",
    ]  # fmt: skip
    assert not status.healthy
    unknown = [row for row in status.sections["containers"] if row["state"] == "unknown"]
    assert len(unknown) == len(CONTAINERS)


def test_nothing_answers_at_all() -> None:
    _facts, _api, expected = good()
    status = summarise({}, {}, {"errors": {"identity": "no route"}}, expected)
    assert (
        "api-silent" in refs(status)
        and "ceph-silent" in refs(status)
        and "vip-without-holder" in refs(status)
    )
    show(Console(stdout=io.StringIO()), status)


@pytest.mark.parametrize(
    ("state", "health", "ref"),
    [
        ("exited", "", "container-stopped"),
        ("restarting", "", "container-stopped"),
        ("running", "unhealthy", "container-unhealthy"),
        ("running", "starting", "container-starting"),
    ],
)
def test_container_that_is_not_well(state: str, health: str, ref: str) -> None:
    facts, api, expected = good()
    facts["ctl02"]["containers"][4].update(state=state, health=health)
    status = summarise(facts, {}, api, expected)
    assert refs(status) == [ref]
    assert status.problems[0].where == "ctl02" and status.problems[0].hint


def test_absent_container_and_one_without_health_check() -> None:
    facts, api, expected = good()
    facts["ctl01"]["containers"][4]["health"] = ""
    del facts["ctl02"]["containers"][4]
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["container-absent"]
    assert status.sections["services"]["api"] == {"wanted": 3, "running": 2, "healthy": 2}


def test_engine_down_is_told_once() -> None:
    facts, api, expected = good()
    facts["ctl02"].update(containers=[], engine={"version": "", "error": "refused"}, probes={})
    assert refs(summarise(facts, {}, api, expected)).count("engine-down") == 1
    assert "container-absent" not in refs(summarise(facts, {}, api, expected))


def test_vip_held_twice() -> None:
    facts, api, expected = good()
    facts["ctl03"]["addresses"].append({"interface": "eth0", "address": "10.10.10.250", "prefix": 32})
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["vip-held-twice"]
    assert "ctl01, ctl03" in status.problems[0].message


def test_galera_states() -> None:
    facts, api, expected = good()
    facts["ctl01"]["probes"]["galera"] = answer(GALERA.replace("Synced", "Donor/Desynced"))
    facts["ctl02"]["probes"]["galera"] = answer(
        GALERA.replace("Primary", "non-Primary").replace("\t3", "\t1")
    )
    facts["ctl03"]["probes"]["galera"] = {"rc": 1, "stdout": "", "stderr": "x\nERROR 2002: can't connect"}
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["state-unreadable", "galera-not-synced", "galera-no-majority"]
    assert "ERROR 2002" in status.problems[0].message


def test_rabbitmq_partition_and_alarm_are_told_once() -> None:
    facts, api, expected = good()
    bad = {
        **RABBITMQ,
        "partitions": {"rabbit@ctl01": ["rabbit@ctl02"]},
        "alarms": [{"node": "rabbit@ctl01", "type": "resource_limit", "resource": "disk"}],
    }
    for known in facts.values():
        known["probes"]["rabbitmq"] = answer(json.dumps(bad))
    assert refs(summarise(facts, {}, api, expected)) == ["rabbitmq-partition", "rabbitmq-alarm"]


def test_ceph_warning_that_matters_and_one_that_does_not() -> None:
    facts, api, expected = good()
    checks = {
        "OSD_DOWN": {"severity": "HEALTH_WARN", "summary": {"message": "1 osds down"}, "muted": False},
        "OSDMAP_FLAGS": {
            "severity": "HEALTH_WARN",
            "summary": {"message": "noout flag(s) set"},
            "muted": False,
        },
        "MUTED": {"severity": "HEALTH_WARN", "summary": {"message": "x"}, "muted": True},
    }
    bad = {**CEPH, "health": {"status": "HEALTH_WARN", "checks": checks}}
    bad["osdmap"] = {"num_osds": 3, "num_up_osds": 2, "num_in_osds": 3}
    for known in facts.values():
        known["probes"]["ceph"] = answer(json.dumps(bad))
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["ceph-osds-down", "ceph-osd-down", "ceph-osdmap-flags"]
    assert [problem.warning for problem in status.problems] == [False, False, True]


def test_warning_alone_is_healthy() -> None:
    facts, api, expected = good()
    api["compute"][0]["enabled"] = False
    api["compute"][0]["up"] = False
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["service-disabled"] and status.healthy


def test_services_that_do_not_report() -> None:
    facts, api, expected = good()
    api["compute"][0]["up"] = False
    api["errors"] = {"network": "503", "volume": "503"}
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["service-down", "api-silent", "api-silent"]


def test_cloud_without_ceph_and_without_clusters() -> None:
    status = summarise(
        {"n": {"node": {}}}, {}, {"errors": {}}, Expected(containers={}, nodes={"n": ("control",)})
    )
    assert status.healthy
    show(Console(stdout=io.StringIO()), status)


def test_parsers() -> None:
    kinds = {cluster.kind for cluster in known_clusters()} - {"vip"}
    assert set(PARSERS) == kinds | {"ceph", "ceph_version"}
    assert parse_galera("") == {"size": 0, "state": "", "primary": False, "ready": False}
    assert parse_ovsdb(OVN.format(role="candidate", leader="unknown"))["leader"] is False
    assert parse_ovsdb(OVN.format(role="leader", leader="self"))["servers"] == 3
    assert parse_erlang("{}")["running"] == []
    assert parse("rabbitmq", answer("not json"))[0] is None
    assert parse("ceph", {"rc": 124, "stdout": "", "stderr": "no answer within 20 s"}) == (
        None,
        "no answer within 20 s",
    )


def test_ceph_is_asked_through_any_monitor() -> None:
    # The configuration in a monitor's container may name a single one: the one without power.
    command = probes(["10.10.30.11", "10.10.30.12"])["ceph"]["command"]
    assert command[command.index("-m") + 1] == "10.10.30.11,10.10.30.12" and command[-3:] == [
        "status", "--format", "json",
    ]  # fmt: skip
    assert probes([]) == PROBES and "-m" not in PROBES["ceph"]["command"]


def test_sizes() -> None:
    assert [size(n) for n in (12, 4096, 3 << 20, 1 << 50)] == ["12 B", "4 KiB", "3.0 MiB", "1024.0 TiB"]


def load(name: str) -> Any:
    """Import a node-side module, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "playbooks" / "library" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_module_reads_health_from_the_engines_text() -> None:
    module = load("cloudctl_status")
    assert module.health_of("Up 3 hours (healthy)") == "healthy"
    assert module.health_of("Up 2 seconds (health: starting)") == "starting"
    assert module.health_of("Up 2 seconds (unhealthy)") == "unhealthy"
    assert module.health_of("Exited (0) 2 hours ago") == ""


def test_module_asks_the_first_running_container_that_matches() -> None:
    module = load("cloudctl_status")
    probe = {
        "container": "ceph-*-mon[-.]*",
        "command": ["ceph", "-k", "/ceph-{hostname}/keyring"],
        "user": "ceph",
    }
    running = ["ceph-1234-mgr-ctl01-x", "ceph-1234-mon-ctl01"]
    assert module.probe_command(probe, running, "ctl01") == [
        "docker", "exec", "--user", "ceph", "ceph-1234-mon-ctl01", "ceph", "-k", "/ceph-ctl01/keyring",
    ]  # fmt: skip
    assert module.probe_command(probe, ["mariadb"], "ctl01") is None


def test_module_survives_a_node_without_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load("cloudctl_status")
    monkeypatch.setattr(module, "SOCKET", str(tmp_path / "none.sock"))
    facts = module.read_all(PROBES, 1)
    assert facts["engine"]["error"] and facts["containers"] == [] and facts["probes"] == {}
    assert facts["node"]["cpus"] == os.cpu_count()


def test_module_bounds_commands() -> None:
    module = load("cloudctl_status")
    assert module.run(["sleep", "5"], 0.1)["rc"] == 124
    assert module.run(["/no/such/program"], 1)["rc"] == 127
    assert module.run(["echo", "hi"], 5) == {"rc": 0, "stdout": "hi\n", "stderr": ""}


# -- which clusters there are, is said by the services ------------------------------------------


def test_a_clustered_service_of_a_site_is_asked_and_judged(tmp_path: Path) -> None:
    # Its definition is all there is of it: no other file is touched.
    service = tmp_path / "services" / "search"
    service.mkdir(parents=True)
    (service / "service.yml").write_text(
        "name: search\n"
        "phase: infrastructure\n"
        "containers: {search_db: {image: x, group: control, ports: [9300]}}\n"
        "status:\n"
        "  - {name: search_db, kind: ovsdb, title: Search, container: search_db,\n"
        "     command: [ask, it], user: s}\n"
    )
    clusters = clusters_of(load_services(tmp_path))
    assert probes([], clusters)["search_db"] == {
        "container": "search_db", "command": ["ask", "it"], "user": "s",
    }  # fmt: skip
    facts, api, expected = good()
    wanted = [*expected.containers["ctl01"], {"name": "search_db", "service": "search"}]
    expected = replace(expected, containers=dict.fromkeys(CONTROL, wanted), clusters=clusters)
    for known in facts.values():
        known["containers"].append({**known["containers"][0], "name": "search_db"})
    facts["ctl01"]["probes"]["search_db"] = answer(OVN.format(role="leader", leader="self"))
    status = summarise(facts, {}, api, expected)
    assert refs(status) == ["search-incomplete"]
    assert "Search          1/3 members, leader ctl01" in cluster_lines(status.sections)


@pytest.mark.parametrize(
    "entry", ["{name: a, kind: other, container: c}", "{name: a, kind: galera, container: z}", "{name: a}"]
)
def test_a_wrong_entry_is_refused(entry: str, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "service.yml").write_text(
        f"name: search\nphase: control\ncontainers: {{c: {{image: x, group: control}}}}\nstatus: [{entry}]\n"
    )
    with pytest.raises(ConfigError):
        load_service(tmp_path / "search")


def test_only_apis_that_services_register_are_asked() -> None:
    from cloudctl.engine.definitions import load_services
    from cloudctl.status.collect import _API_TYPES, registered_types

    every = [service.raw for service in load_services()]
    assert set(_API_TYPES.values()) <= registered_types(every)
    without = [raw for raw in every if raw["name"] not in ("nova", "cinder")]
    assert not registered_types(without) & {"compute", "block-storage"}
    assert "network" in registered_types(without)
