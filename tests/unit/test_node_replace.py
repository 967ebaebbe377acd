"""A controller that died is replaced: what is refused, what is forgotten, what is written down."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudctl.engine.definitions import Service, load_service, load_services
from cloudctl.engine.render import Renderer
from cloudctl.errors import CheckFailed, CloudctlError, ConfigError, MultiError, UsageError
from cloudctl.lab import nodes as lab_nodes
from cloudctl.lab import sitedir
from cloudctl.lab.topology import topology
from cloudctl.node import enroll
from cloudctl.node_replace import ceph, decide, machine, world
from cloudctl.node_replace.decide import Cluster
from cloudctl.node_replace.journal import open_journal, replacing
from cloudctl.node_replace.members import Member, fill, leftovers, members
from cloudctl.node_replace.steps import Run, steps
from cloudctl.operations.steps import Journal, describe, execute
from cloudctl.site.load import load_site
from cloudctl.site.model import Interface, Node, Settings, Site
from cloudctl.status.probes import known_clusters
from cloudctl.status.summary import Expected, summarise

LIBRARY = Path(__file__).resolve().parents[2] / "playbooks" / "library"


def site_of(tmp: Path, name: str) -> Site:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sitedir, "SITE", tmp)
        patch.setattr(lab_nodes, "STATE", tmp)
        patch.setattr(sitedir, "public_key", lambda: "ssh-ed25519 AAAA test")
        patch.setattr(lab_nodes, "host_key", lambda node: f"ssh-ed25519 {node.name}")
        sitedir.write(topology(name).values(), lambda line: None)
        return load_site(tmp, with_secrets=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return site_of(tmp_path_factory.mktemp("full"), "full")


@pytest.fixture(scope="module")
def services(site: Site) -> list[Service]:
    return Renderer(site).services


def world_of(site: Site, name: str) -> world.World:
    return world.World(site, site.nodes[name], Renderer(site))


# -- definitions -------------------------------------------------------------------------------


def test_every_cluster_says_what_becomes_of_a_dead_member() -> None:
    known = {member.status: member for member in members(load_services())}
    assert set(known) == {cluster.name for cluster in known_clusters() if cluster.command}
    for member in known.values():
        volumes = [
            volume.partition(":")[0]
            for service in load_services()
            for container in service.containers
            if container.name == member.container
            for volume in container.volumes
            if isinstance(volume, str)
        ]
        assert member.volume in volumes


def test_commands_of_a_definition_name_the_node(site: Site) -> None:
    texts = [
        " ".join(fill(command, site.nodes["ctl02"], "x"))
        for member in members(load_services())
        for command in (member.forget, *member.complete)
        if command
    ]
    assert len(texts) == 5
    assert all("{" not in text for text in texts)
    assert sum("ctl02" in text or "10.10.10.12:" in text for text in texts) == 4
    (entry,) = leftovers(load_services())
    assert fill(entry.remove, site.nodes["ctl02"], "old-name")[-1] == "old-name"
    assert fill([entry.keep], site.nodes["ctl02"]) == ["ctl02"]


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("members", {"status": "nowhere"}),
        ("members", {"volume": "v"}),
        ("members", {"status": "s", "forget": ["a"]}),
        ("members", {"status": "s", "other": 1}),
        ("leftovers", {"title": "x", "container": "c", "list": ["a"], "keep": "b"}),
    ],
)
def test_a_malformed_definition_is_refused(tmp_path: Path, key: str, entry: dict[str, Any]) -> None:
    directory = tmp_path / "one"
    (directory / "templates").mkdir(parents=True)
    definition = {
        "name": "one",
        "phase": "control",
        "containers": {"c": {"image": "i", "group": "control"}},
        "status": [{"name": "s", "kind": "galera", "container": "c"}],
    }
    (directory / "service.yml").write_text(json.dumps(definition | {key: [entry]}))
    service = load_service(directory)
    with pytest.raises(ConfigError, match=key):
        (members if key == "members" else leftovers)([service])


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address", "ref"),
    [
        ("ctl09", None, "node-unknown"),
        ("compute01", None, "node-no-controller"),
        ("osd01", None, "node-no-controller"),
        ("ctl02", "10.10.10.99", "address-differs"),
    ],
)
def test_what_cannot_be_replaced(site: Site, name: str, address: str | None, ref: str) -> None:
    with pytest.raises(UsageError) as caught:
        decide.check_target(site, name, address)
    assert caught.value.ref == ref


def test_a_controller_can_be_replaced(site: Site) -> None:
    assert decide.check_target(site, "ctl02", None).address == "10.10.10.12"
    assert decide.check_target(site, "ctl01", "10.10.10.11").name == "ctl01"


def test_one_controller_of_one_is_no_replacement(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        decide.check_target(site_of(tmp_path, "small"), "ctl01", None)
    assert caught.value.ref == "node-no-majority"


def test_a_controller_with_osds_is_refused(site: Site) -> None:
    node = replace(site.nodes["ctl02"], vars={"devices": ["/dev/sdb"]})
    with pytest.raises(CheckFailed) as caught:
        decide.check_target(replace(site, nodes={**site.nodes, "ctl02": node}), "ctl02", None)
    assert caught.value.ref == "node-has-osds"


def test_a_machine_that_is_alive_or_not_fresh_is_refused() -> None:
    with pytest.raises(CheckFailed) as caught:
        decide.check_machine("ctl02", "10.10.10.12", decide.ITSELF, ["a", "b"], ["c"])
    assert caught.value.ref == "node-alive"
    with pytest.raises(CheckFailed) as caught:
        decide.check_machine("ctl02", "10.10.10.12", decide.ITSELF, [], ["c"])
    assert caught.value.ref == "node-not-fresh"
    decide.check_machine("ctl02", "10.10.10.12", decide.ITSELF, [], [])


def test_a_machine_with_the_old_host_key_must_tell_what_it_carries() -> None:
    for answer in ({"engine": True, "installed": True}, {"engine": False, "installed": False}):
        decide.check_told("ctl02", "10.10.10.12", answer, "")
    for silent, why in ((None, "no space left"), ({"engine": False, "installed": True}, "does not run")):
        with pytest.raises(CheckFailed, match=why) as caught:
            decide.check_told("ctl02", "10.10.10.12", silent, "no space left")
        assert caught.value.ref == "node-unknown-state"


DATABASE = {"size": 2, "state": "Synced", "primary": True, "ready": True}
BUS = {
    "members": ["rabbit@a", "rabbit@b", "rabbit@c"],
    "running": ["rabbit@a", "rabbit@c"],
    "partitions": [],
    "apart": {},
}
RAFT = {"role": "follower", "status": "cluster member", "leader": True, "servers": 3, "address": ""}
MONS = {"quorum": ["a", "c"], "mons": 3}
NODES = ("a", "b", "c")
WANTED = [
    Cluster(name, title, NODES)
    for name, title in (("db", "database"), ("bus", "bus"), ("raft", "raft"), ("mons", "mons"))
]
GOOD: dict[str, dict[str, dict[str, Any]]] = {
    "db": {"a": DATABASE, "c": DATABASE},
    "bus": {"a": BUS, "c": BUS},
    "raft": {"a": RAFT, "c": RAFT},
    "mons": {"a": MONS, "c": MONS},
}


def test_two_of_three_are_a_majority() -> None:
    lines = decide.check_quorum("b", WANTED, GOOD)
    assert lines == [f"{cluster.title}: a, c of 3" for cluster in WANTED]


@pytest.mark.parametrize(
    ("probe", "change"),
    [
        ("db", {"state": "Donor/Desynced"}),
        ("db", {"primary": False}),
        ("db", {"ready": False}),
        ("bus", {"running": ["rabbit@a"]}),
        ("bus", {"apart": {"c": ["a"]}, "partitions": ["c does not see a"]}),
        ("raft", {"leader": False}),
        ("raft", {"status": "joining cluster"}),
    ],
)
def test_a_cluster_without_majority_is_named(probe: str, change: dict[str, Any]) -> None:
    answers = {**GOOD, probe: {**GOOD[probe], "c": {**GOOD[probe]["c"], **change}}}
    with pytest.raises(CheckFailed) as caught:
        decide.check_quorum("b", WANTED, answers)
    title = next(cluster.title for cluster in WANTED if cluster.name == probe)
    assert caught.value.ref == "no-quorum"
    # A member of the bus that sees no majority stops working itself.
    count, bad = (0, "a, c") if probe == "bus" else (1, "c")
    assert caught.value.message.startswith(f"{title}: without b, {count} of 3")
    assert caught.value.where == bad


def test_every_cluster_without_majority_is_named_at_once() -> None:
    quorum = {"a": {"quorum": ["a"], "mons": 3}}
    with pytest.raises(MultiError) as caught:
        decide.check_quorum("b", WANTED, {**GOOD, "db": {}, "mons": quorum})
    assert [error.message.split(":")[0] for error in caught.value.errors] == ["database", "mons"]


@pytest.mark.parametrize(
    ("probe", "change", "title"),
    [
        ("bus", {"running": BUS["members"]}, "bus"),
        ("mons", {"quorum": list(NODES)}, "mons"),
        ("db", {"size": 3}, "database"),
    ],
)
def test_a_node_that_the_others_see_is_not_dead(probe: str, change: dict[str, Any], title: str) -> None:
    decide.check_gone("b", WANTED, GOOD)
    seen = {node: {**data, **change} for node, data in GOOD[probe].items()}
    with pytest.raises(CheckFailed) as caught:
        decide.check_gone("b", WANTED, {**GOOD, probe: seen})
    assert caught.value.ref == "node-alive"
    assert caught.value.message.endswith(f"in {title}")


def test_incomplete_clusters_are_named() -> None:
    assert decide.incomplete(WANTED, GOOD)[0] == "database: 2 of 3, not b"
    whole = {probe: {node: answers["a"] for node in NODES} for probe, answers in GOOD.items()}
    whole["bus"] = {node: {**BUS, "running": BUS["members"]} for node in NODES}
    whole["mons"] = {"a": {"quorum": list(NODES), "mons": 3}}
    assert decide.incomplete(WANTED, whole) == []


# -- what is lost ------------------------------------------------------------------------------


def test_what_only_the_dead_machine_had_is_named() -> None:
    bus = Member("bus", "the bus", "bus", volume="queues")
    lost = decide.lost("ctl02", {"queues": ["bus"], "images": ["api", "b"]}, [bus], mon=True)
    assert lost["copied"] == [
        "volume queues: the bus, copied from the other members",
        "the store of Ceph's monitor, copied from the other monitors",
    ]
    assert lost["gone"][0] == "volume images of api, b"
    assert any("logs of ctl02" in line for line in lost["gone"])
    assert len(decide.lost("ctl02", {}, [bus], mon=False)["copied"]) == 0


def test_every_volume_of_a_controller_is_named(site: Site) -> None:
    own = world_of(site, "ctl02")
    volumes = own.volumes()
    lost = decide.lost("ctl02", volumes, own.members, mon=own.mon)
    text = "\n".join(lost["gone"] + lost["copied"])
    assert "kolla_logs" in volumes
    assert all(f"volume {name}" in text for name in volumes)


# -- one-shot jobs -----------------------------------------------------------------------------


def job(name: str, **options: Any) -> dict[str, Any]:
    return {"id": name, "service": "s", "first": "ctl01", "everywhere": False, "once": False, **options}


def test_jobs_that_the_dead_node_had_done_are_not_done_again() -> None:
    jobs = [job("sync"), job("make", once=True), job("local", everywhere=True), job("other", first="ctl02")]
    assert decide.to_adopt(jobs, "ctl01", []) == (["sync", "make"], [])
    assert decide.to_adopt(jobs, "ctl01", ["s"]) == (["make"], ["sync"])
    assert decide.to_adopt(jobs, "ctl03", []) == ([], [])


def load_module(name: str) -> ModuleType:
    class NoModule:
        pass

    fake = ModuleType("ansible.module_utils.basic")
    fake.AnsibleModule = NoModule  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for part in ("ansible", "ansible.module_utils"):
            patch.setitem(sys.modules, part, ModuleType(part))
        patch.setitem(sys.modules, "ansible.module_utils.basic", fake)
        spec = importlib.util.spec_from_file_location(name, LIBRARY / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def test_adopted_jobs_are_recorded_as_the_engine_reads_them(tmp_path: Path) -> None:
    module = load_module("cloudctl_adopt")
    path = tmp_path / "state" / "jobs.json"
    before = {"kept": {"inputs": {"image": "a"}, "when": "then"}, "old": {"inputs": {"image": "x"}}}
    jobs = [{"id": name, "inputs": {"image": "a"}} for name in ("kept", "old", "new")]
    record, new = module.merge(before, jobs, "now")
    module.write(str(path), record)
    assert new == ["old", "new"]
    assert module.read(str(path)) == record
    assert record["kept"] == before["kept"]
    text = (LIBRARY / "cloudctl_node.py").read_text()
    assert f'STATE = "{Path(module.RECORD).parent}"' in text and "/jobs.json" in text
    assert path.stat().st_mode & 0o777 == 0o600


# -- afterwards --------------------------------------------------------------------------------


def test_what_a_plan_would_still_change_is_told_apart() -> None:
    changes = {"containers": [{"service": "s", "name": "c"}], "files": [{}, {}], "jobs": []}
    plan = {"nodes": {"ctl02": changes, "ctl03": changes}, "ceph": []}
    assert decide.left_in(plan, "ctl02") == (["3 changes on ctl02"], ["3 on ctl03"])
    assert decide.changed_services(plan, "ctl02") == {"s"}
    assert decide.changed_services({"nodes": {"ctl02": changes}}, "ctl02") == set()
    left = {"nodes": {}, "ceph": [{"kind": "host", "name": "ctl02", "reason": "is missing"}]}
    assert decide.left_in(left, "ctl02") == (["Ceph: host ctl02: is missing"], [])


def test_registrations_of_the_dead_node_beside_the_new_one_are_found() -> None:
    def row(name: str, host: str) -> dict[str, str]:
        return {"name": name, "host": host}

    api = {
        "compute": [row("sched", "ctl02"), row("sched", "ctl01"), row("cond", "ctl02")],
        "network": [row("gateway", "ctl02"), row("gateway", "ctl02"), row("gateway", "ctl01")],
        "volume": [row("vol", "ctl02@one"), row("vol", "ctl02@two")],
        "errors": {},
    }
    assert decide.duplicates(api, "ctl02") == ["gateway of ctl02: 2 times (network)"]
    assert decide.duplicates(api, "ctl01") == []


def test_containers_of_others_that_were_started_anew_are_found() -> None:
    before = {"ctl01": {"a": ["1", "t1"], "b": ["2", "t2"]}, "ctl03": {"a": ["3", "t3"]}}
    after = {"ctl01": {"a": ("1", "t1"), "b": ["2", "t9"]}, "ctl03": {}}
    assert decide.touched(before, after) == ["ctl01: b", "ctl03: a"]
    assert decide.touched(before, before) == []


# -- the machine -------------------------------------------------------------------------------


KNOWN = """# pinned
10.10.10.11,ctl01 ssh-ed25519 ONE
10.10.10.12,ctl02 ssh-ed25519 OLD
ctl02,alias ssh-rsa OLDER
[10.10.10.13]:2222 ssh-ed25519 THREE
"""


def test_the_new_key_comes_in_place_of_the_old_ones(site: Site) -> None:
    node = site.nodes["ctl02"]
    assert machine.own_keys(KNOWN, node) == {"OLD", "OLDER"}
    text = machine.repinned(KNOWN, node, "10.10.10.12,ctl02 ssh-ed25519 NEW")
    assert text.splitlines() == [
        "# pinned",
        "10.10.10.11,ctl01 ssh-ed25519 ONE",
        "10.10.10.12,ctl02 ssh-ed25519 NEW",
        "alias ssh-rsa OLDER",
        "[10.10.10.13]:2222 ssh-ed25519 THREE",
    ]
    assert machine.own_keys(text, node) == {"NEW"}
    assert machine.repinned(text, node, "10.10.10.12,ctl02 ssh-ed25519 NEW") == text
    assert machine.repinned("", node, "x") == "x\n"


def test_a_port_of_its_own_is_part_of_the_name(site: Site) -> None:
    node = replace(site.nodes["ctl03"], vars={"ansible_port": 2222})
    assert machine.own_keys(KNOWN, node) == {"THREE"}
    assert machine.request_of(node).port == 2222


class Shell:
    """Answers of a machine."""

    def __init__(self, name: str, macs: str) -> None:
        self.answers = {"hostname": name + "\n", "cat": macs}

    def run(self, command: str, **_options: Any) -> str:
        return self.answers[command.split()[0]]


def test_a_machine_with_another_name_or_unknown_ports_is_refused(site: Site) -> None:
    port = Interface("eth0", "management", mac="02:00:00:00:00:0c")
    node: Node = replace(site.nodes["ctl02"], interfaces={"eth0": port})
    machine._judge_identity(node, Shell("ctl02.example", "00:00:00:00:00:00\n02:00:00:00:00:0C\n"))  # type: ignore[arg-type]
    with pytest.raises(CheckFailed) as caught:
        machine._judge_identity(node, Shell("debian", "02:00:00:00:00:0c"))  # type: ignore[arg-type]
    assert caught.value.ref == "hostname-differs"
    with pytest.raises(CheckFailed) as caught:
        machine._judge_identity(node, Shell("ctl02", "02:00:00:00:00:99"))  # type: ignore[arg-type]
    assert caught.value.ref == "mac-differs"
    assert "02:00:00:00:00:99" in str(caught.value.hint)


class Login:
    """A machine's SSH server, and what the machine carries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, site: Site, carried: str = "") -> None:
        self.site, self.carried, self.key_works = site, carried, True
        self.done: list[str] = []
        request = machine.request_of(site.nodes["ctl02"])
        self.contact = enroll.Contact(request, None, "ssh-ed25519", "T0xE")
        monkeypatch.setattr(machine, "_reach", lambda request, say=None: self.contact)
        monkeypatch.setattr(machine.arp, "ask", lambda addresses, others: {})
        monkeypatch.setattr(machine, "_judge_identity", lambda node, session: None)
        monkeypatch.setattr(enroll, "deploy_side", lambda site: enroll.Deploy("root", Path("k"), "k"))
        monkeypatch.setattr(enroll, "log_in", self.log_in)
        monkeypatch.setattr(enroll, "examine", lambda *_: (self, enroll.Enrolled(self.contact)))
        monkeypatch.setattr(enroll, "convert", lambda *_: self.done.append("convert"))

    def log_in(self, *_: Any) -> Login:
        if not self.key_works:
            raise CheckFailed("deploy-key-refused", "no")
        return self

    def run(self, command: str, *, root: bool) -> str:
        assert root and "/var/lib/docker/volumes/*/" in command and "/etc/kolla" in command
        return self.carried

    def take_in(self, known: str, ours: str = "") -> str:
        (self.site.path / "known_hosts").write_text(known)
        return machine.take_in(
            self.site, self.site.nodes["ctl02"], self.contact.request, confirm=lambda contact: True,
            say=lambda line: None, ours=ours,
        )  # fmt: skip


@pytest.fixture
def own(site: Site, tmp_path: Path) -> Site:
    return replace(site, path=tmp_path)


@pytest.mark.parametrize("known", ["", "ctl02 ssh-ed25519 T0xE\n"], ids=["new key", "old key"])
@pytest.mark.parametrize("key_works", [True, False])
def test_a_machine_with_volumes_of_the_cloud_is_not_taken_in(
    own: Site, monkeypatch: pytest.MonkeyPatch, known: str, key_works: bool
) -> None:
    old = Login(monkeypatch, own, "/etc/kolla\n/var/lib/docker/volumes/mariadb/\n")
    old.key_works = key_works
    with pytest.raises(CheckFailed, match="/etc/kolla, /var/lib/docker/volumes/mariadb/") as caught:
        old.take_in(known)
    assert caught.value.ref == "node-not-fresh"
    assert old.done == [] and (own.path / "known_hosts").read_text() == known
    # One that an interrupted run has taken in carries what that run has brought.
    assert old.take_in(known, ours=old.contact.fingerprint) == old.contact.fingerprint
    fresh = Login(monkeypatch, own)
    assert fresh.take_in(known) == fresh.contact.fingerprint


def test_what_a_fresh_machine_does_not_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    patterns = tuple(f"{tmp_path}{pattern}" for pattern in machine.CARRIED)
    monkeypatch.setattr(machine, "CARRIED", patterns)
    monkeypatch.setattr(decide, "check_fresh", lambda name, address, carried: said.extend(carried))

    class Local:
        def run(self, command: str, *, root: bool) -> str:
            return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout

    # Docker that was only installed, and the directories of Ceph's packages.
    for path in ("var/lib/docker/volumes", "var/lib/ceph/crash", "var/lib/ceph/bootstrap-osd", "etc"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "var/lib/docker/volumes/metadata.db").touch()
    node = Node("ctl02", ("control",), "10.10.10.12")
    machine._judge_fresh(node, Local())  # type: ignore[arg-type]
    assert said == []
    paths = ["etc/kolla", "var/lib/docker/volumes/x", f"var/lib/ceph/{uuid.uuid4()}"]
    for path in paths:
        (tmp_path / path).mkdir()
    machine._judge_fresh(node, Local())  # type: ignore[arg-type]
    assert [path.removeprefix(f"{tmp_path}/").rstrip("/") for path in said] == paths


# -- Ceph --------------------------------------------------------------------------------------


def answers(
    mons: list[str], hosts: list[str], osds: dict[str, list[int]] | None = None, off: str = "ctl02"
) -> list[dict[str, Any]]:
    def out(value: object) -> dict[str, Any]:
        return {"rc": 0, "out": json.dumps(value), "err": ""}

    placed = [
        {"service_type": kind, "placement": {"hosts": ["ctl01", "ctl02", "ctl03"]}} for kind in ("mon", "mgr")
    ]
    tree = [{"type": "host", "name": name, "children": ids} for name, ids in (osds or {}).items()]
    return [
        out({"mons": [{"name": name} for name in mons]}),
        out([{"hostname": name, "status": "Offline" if name == off else ""} for name in hosts]),
        out([*placed, {"service_type": "crash", "placement": {"host_pattern": "*"}}]),
        out({"nodes": tree}),
    ]


def test_a_dead_monitor_leaves_ceph_with_its_host() -> None:
    every = ["ctl01", "ctl02", "ctl03"]
    todo, words = ceph.leaving("ctl02", answers(every, every))
    assert [entry["cmd"]["prefix"] for entry in todo] == ["orch apply", "orch host rm"]
    specs = [json.loads(part) for part in todo[0]["in"].split("\n---\n")]
    assert [spec["placement"] for spec in specs] == [{"hosts": ["ctl01", "ctl03"]}] * 2
    assert todo[1]["cmd"] | {"hostname": "ctl02", "offline": True, "force": True} == todo[1]["cmd"]
    assert words == ["mon and mgr placed elsewhere", "host ctl02 removed"]
    todo, words = ceph.leaving("ctl02", answers(every, every, off=""), patient=True)
    assert [entry["cmd"] for entry in todo] == [
        {"prefix": "cephadm check-host", "format": "json", "host": "ctl02"}
    ]
    assert todo[0]["may_fail"] and words == []
    todo, _words = ceph.leaving("ctl02", answers(every, every, off=""))
    assert "offline" not in todo[1]["cmd"]
    todo, _words = ceph.leaving("ctl02", answers(every, ["ctl01", "ctl03"]))
    assert [(entry["cmd"]["prefix"], entry["cmd"]["name"]) for entry in todo] == [("mon remove", "ctl02")]
    assert ceph.leaving("ctl02", answers(["ctl01", "ctl03"], ["ctl01", "ctl03"])) == ([], [])


def test_a_host_with_osds_does_not_leave() -> None:
    every = ["ctl01", "ctl02"]
    with pytest.raises(CheckFailed) as caught:
        ceph.leaving("ctl02", answers(every, every, {"ctl02": [3], "osd01": [0]}))
    assert caught.value.ref == "node-has-osds"
    ceph.leaving("ctl01", answers(every, every, {"ctl02": [3], "ctl01": []}))


def test_only_the_nodes_own_part_of_ceph_is_worked_on() -> None:
    full = {
        "fsid": "f", "image": "i", "mons": [{"name": "ctl01"}, {"name": "ctl02"}, {"name": "ctl03"}],
        "mgrs": ["ctl01", "ctl02"], "hosts": [{"name": "ctl01"}, {"name": "ctl02"}],
        "osds": [1], "pools": [1], "clients": [{"key_digest": "x"}], "config": {"global": {}},
        "later": {"a": 1},
    }  # fmt: skip
    found = ceph.trimmed(full, "ctl01", "ctl02")
    assert found["mons"][0]["name"] == "ctl02"
    assert len(found["mons"]) == 3
    assert found["hosts"] == [{"name": "ctl01"}]
    assert found["osds"] == found["pools"] == found["clients"] == []
    assert found["config"] == found["later"] == {}
    assert found["mgrs"] == ["ctl01", "ctl02"]


# -- the steps ---------------------------------------------------------------------------------


class Fake(world.World):
    """A world in which every call is written down; one of them may fail."""

    def prepare(self, failing: str = "") -> list[str]:
        self.calls: list[str] = []
        self.failing = failing
        return self.calls

    def _note(self, what: str) -> str:
        self.calls.append(what)
        if what == self.failing:
            raise CheckFailed("broken", what)
        return what

    def forget(self, member: Member) -> str:
        return self._note(f"forget {member.status}")

    def complete(self, member: Member) -> str:
        return self._note(f"complete {member.status}")

    def clear(self, entry: Any) -> str:
        return self._note("clear")

    def ceph_forget(self) -> str:
        return self._note("forget ceph")

    def ceph_join(self) -> str:
        return self._note("join ceph")


def run_steps(own: Fake, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudctl.node_replace import steps as module

    def note(what: str) -> Any:
        return lambda *arguments, **options: own._note(what)

    for name in ("_majority", "_take_in", "_adopt", "_deploy", "_settled", "_untouched"):
        monkeypatch.setattr(module, name, note(name.strip("_")))
    for name in ("await_whole", "await_healthy"):
        monkeypatch.setattr(own, name, note(name))
    execute(steps(own, Run(lambda: None, lambda contact: True)), journal)  # type: ignore[arg-type,return-value]


ORDER = [
    "majority", "take_in", "forget ovn_northbound", "forget ovn_southbound", "forget rabbitmq", "forget ceph",
    "clear", "adopt", "deploy", "join ceph", "await_whole", "complete rabbitmq", "await_healthy", "settled",
    "untouched",
]  # fmt: skip


def test_the_order_of_the_steps(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Fake(site, site.nodes["ctl02"], Renderer(site))
    calls = own.prepare()
    journal = Journal(tmp_path, "x")
    journal.begin()
    run_steps(own, journal, monkeypatch)
    assert calls == ORDER


@pytest.mark.parametrize("failing", ORDER)
def test_an_interrupted_replacement_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    own = Fake(site, site.nodes["ctl02"], Renderer(site))
    own.prepare(failing)
    journal = Journal(tmp_path, "x")
    journal.begin()
    with pytest.raises(CloudctlError):
        run_steps(own, journal, monkeypatch)
    calls = own.prepare()
    again = Journal(tmp_path, "x")
    assert again.open
    run_steps(own, again, monkeypatch)
    checks = {"majority", "await_whole", "await_healthy", "settled", "untouched"}
    at = ORDER.index(failing)
    assert calls == [step for number, step in enumerate(ORDER) if number >= at or step in checks]


def test_without_ceph_there_are_no_steps_for_it(tmp_path: Path) -> None:
    site = site_of(tmp_path, "molecule")
    own = world_of(site, "ctl01")
    text = "\n".join(describe(steps(own, Run(lambda: None, lambda contact: True))))  # type: ignore[arg-type,return-value]
    assert not own.mon
    assert "ceph" not in text.lower()
    assert "forget_cluster_node rabbit@ctl01" in text
    assert "tcp:10.10.10.11:6643" in text


def test_a_service_that_is_off_has_no_cluster(site: Site) -> None:
    class Without(Settings):
        def get(self, path: str, default: Any = None) -> Any:
            return False if path == "services.ovn.enabled" else super().get(path, default)

    own = world_of(replace(site, settings=Without(dict(site.settings))), "ctl02")
    assert [cluster.name for cluster in own.clusters] == ["galera", "rabbitmq", "ceph"]
    assert own.leftovers == []


def test_status_tells_of_a_replacement_that_did_not_end(tmp_path: Path) -> None:
    assert replacing(tmp_path) == []
    journal = open_journal(tmp_path, "ctl02")
    journal.begin()
    ended = open_journal(tmp_path, "ctl03")
    ended.begin()
    ended.finish()
    assert replacing(tmp_path) == ["ctl02"]
    status = summarise({}, {}, {}, Expected({}, {}, replacing=replacing(tmp_path)))
    (problem,) = [problem for problem in status.problems if problem.ref == "node-replace-unfinished"]
    assert (problem.where, problem.warning) == ("ctl02", True)
    assert "node replace ctl02" in problem.hint
