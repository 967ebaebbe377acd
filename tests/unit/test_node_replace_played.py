"""`node replace` from the command line to the calls, played against a simulated cloud."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloudctl.commands import node as node_command
from cloudctl.engine.definitions import load_services
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, Unreachable
from cloudctl.lab import nodes as lab_nodes
from cloudctl.lab import sitedir
from cloudctl.lab.topology import topology
from cloudctl.node_replace import machine, world
from cloudctl.node_replace.journal import open_journal
from cloudctl.operations import containers, deploying
from cloudctl.operations.call import Answers
from cloudctl.runner import RunResult
from cloudctl.site.load import load_site
from cloudctl.site.secrets import generate
from cloudctl.status import collect as status_collect
from cloudctl.status import summary as status_summary

CONTROL = ("ctl01", "ctl02", "ctl03")


class Killed(BaseException):
    """The process is gone: nothing is tidied up."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sitedir, "SITE", path)
        patch.setattr(lab_nodes, "STATE", path)
        patch.setattr(sitedir, "public_key", lambda: "ssh-ed25519 AAAA test")
        patch.setattr(lab_nodes, "host_key", lambda node: f"ssh-ed25519 {node.name}")
        sitedir.write(topology("full").values(), lambda line: None)
        images = {container.image for service in load_services() for container in service.containers}
        reference = f"@sha256:{'0' * 64}"
        lock = {image: {"reference": f"10.10.10.2:5000/{image}{reference}"} for image in images | {"ceph"}}
        (path / "images.lock.json").write_text(json.dumps(lock))
        generate(path)
    return path


@dataclass
class Cloud:
    """A cloud with three controllers, one of them dead or replaced.

    Attributes:
        site: its directory.
        victim: the dead one.
        alive: a machine answers at its address.
        fresh: it is a new one.
        key: the new one's host key is pinned.
        bus, raft, mons: members, as the others know them.
        hosts: of Ceph's orchestrator.
        offline: it has noticed that the host is off.
        deployed: the new machine runs its containers.
        adopted: jobs written down on it.
        engine: of the machine at its address: on, off or none.
        tells: Ansible works there.
        ours: fingerprint that taking in was told of.
        kill: the call at which the process is killed.
        calls: what was done.
    """

    site: Path
    victim: str = "ctl02"
    alive: bool = True
    fresh: bool = True
    key: bool = False
    bus: set[str] = field(default_factory=lambda: set(CONTROL))
    raft: dict[str, set[str]] = field(
        default_factory=lambda: {"ovn_nb_db": set(CONTROL), "ovn_sb_db": set(CONTROL)}
    )
    chassis: list[str] = field(default_factory=lambda: ["ctl02", "old-identity"])
    mons: set[str] = field(default_factory=lambda: set(CONTROL))
    hosts: set[str] = field(default_factory=lambda: {*CONTROL, "osd01"})
    offline: bool = False
    deployed: bool = False
    adopted: list[str] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    engine: str = "on"
    tells: bool = True
    ours: str = ""
    kill: str = ""
    calls: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.kill:
            self.kill = ""
            raise Killed(call)

    # -- what the code calls -------------------------------------------------------------------

    def up(self) -> list[str]:
        return [node for node in CONTROL if node != self.victim or self.deployed]

    def call(self, site: Path, module: str, nodes: Mapping[str, Mapping[str, Any]], **_: Any) -> Answers:
        answers = Answers()
        for node, arguments in nodes.items():
            if node in self.down or (node == self.victim and not self.key):
                answers.failed[node] = Unreachable("node-unreachable", "no answer", where=node)
            else:
                answers.ok[node] = getattr(self, module)(node, arguments)
        return answers

    def cloudctl_status(self, node: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        up = self.up()
        bus = sorted(self.bus & set(up))
        raft = {
            name: "Role: follower\nStatus: cluster member\nLeader: abcd\nAddress: x\n\nServers:\n"
            + "".join(f"    ab12 (ab12 at tcp:10.10.10.1{m[-1]}:1)\n" for m in sorted(members))
            for name, members in self.raft.items()
        }
        quorum = sorted(self.mons & set(up))
        said = {
            "galera": f"wsrep_cluster_size\t{len(up)}\nwsrep_local_state_comment\tSynced\n"
            "wsrep_cluster_status\tPrimary\nwsrep_ready\tON\n",
            "rabbitmq": json.dumps(
                {
                    "disk_nodes": [f"rabbit@{m}" for m in sorted(self.bus)],
                    "running_nodes": [f"rabbit@{m}" for m in bus],
                }
            ),
            "ovn_northbound": raft["ovn_nb_db"],
            "ovn_southbound": raft["ovn_sb_db"],
            "ceph": json.dumps({"quorum_names": quorum, "monmap": {"num_mons": len(self.mons)}}),
        }
        assert set(arguments["probes"]) == set(said)
        probes = {
            name: {"rc": 0, "stdout": self.wrong.get(f"{node} {name}", text), "stderr": ""}
            for name, text in said.items()
            if node in up
        }
        return {"ansible_facts": {"cloudctl_status": {"probes": probes}}}

    def cloudctl_ceph(self, node: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert node != self.victim
        if arguments["mode"] == "apply":
            self.note("ceph join")
            desired = arguments["desired"]
            assert "secrets" not in arguments and desired["mons"][0]["name"] == node
            assert [host["name"] for host in desired["hosts"]] == [self.victim] and self.deployed
            assert not (desired["osds"] or desired["pools"] or desired["clients"] or desired["config"])
            self.hosts.add(self.victim)
            self.mons.add(self.victim)
            return {"changes": [{"kind": "host", "name": self.victim}, {"kind": "mon", "name": "mon"}]}
        assert arguments["mode"] == "ask" and arguments["node"] == node
        return {"answers": [self.ceph(step["cmd"], step.get("in", "")) for step in arguments["steps"]]}

    def ceph(self, command: Mapping[str, Any], text: str) -> dict[str, Any]:
        prefix = command["prefix"]
        out: Any = {}
        if prefix == "mon dump":
            out = {"mons": [{"name": name} for name in sorted(self.mons)]}
        elif prefix == "orch host ls":
            out = [
                {"hostname": name, "status": "Offline" if name == self.victim and self.offline else ""}
                for name in sorted(self.hosts)
            ]
        elif prefix == "orch ls":
            out = [{"service_type": kind, "placement": {"hosts": list(CONTROL)}} for kind in ("mon", "mgr")]
        elif prefix == "osd tree":
            out = {"nodes": [{"type": "host", "name": "osd01", "children": [0]}]}
        elif prefix == "cephadm check-host":
            self.note("ceph check")
            self.offline = True
            return {"rc": -22, "out": "", "err": "it does not answer"}
        elif prefix == "orch apply":
            self.note("ceph apply")
            assert self.victim not in text
        elif prefix == "orch host rm":
            self.note("ceph rm")
            if not command.get("offline"):
                return {"rc": -22, "out": "", "err": "it is online"}
            self.hosts.discard(self.victim)
            self.mons.discard(self.victim)
        else:
            raise AssertionError(prefix)
        return {"rc": 0, "out": json.dumps(out), "err": ""}

    def cloudctl_adopt(self, node: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.note("adopt")
        assert node == self.victim and not self.deployed
        self.adopted = [job["id"] for job in arguments["jobs"]]
        return {"adopted": self.adopted}

    def run_in(
        self, site: Any, nodes: Sequence[str], container: str, command: Sequence[str], **_: Any
    ) -> tuple[dict[str, Any], dict[str, CloudctlError]]:
        (node,) = nodes
        assert node != self.victim
        text = " ".join(command)
        out = ""
        if "cluster_status" in text:
            out = json.dumps({"disk_nodes": [f"rabbit@{m}" for m in sorted(self.bus)]})
        elif "forget_cluster_node" in text:
            self.note("forget bus")
            self.bus.discard(text.rpartition("@")[2])
        elif "cluster/status" in text:
            port = {"ovn_nb_db": 6643, "ovn_sb_db": 6644}[container]
            out = "".join(f" ab (ab at tcp:10.10.10.1{m[-1]}:{port})\n" for m in self.raft[container])
        elif "cluster/kick" in text:
            self.note(f"kick {container}")
            self.raft[container] -= {name for name in CONTROL if f"10.10.10.1{name[-1]}:" in text}
        elif "find Chassis" in text:
            out = "\n\n".join(self.chassis) + "\n"
        elif "chassis-del" in text:
            self.note("chassis")
            self.chassis.remove(command[-1])
        elif "rabbitmq-queues" in text:
            self.note(command[2])
            assert self.deployed
        else:
            raise AssertionError(text)
        return {node: {"rc": 0, "stdout": out, "stderr": ""}}, {}

    def look(self, site: Any, nodes: Sequence[str]) -> Answers:
        answers = Answers()
        for node in nodes:
            if node in self.down or (node == self.victim and not (self.alive and self.tells)):
                answers.failed[node] = Unreachable("node-unreachable", "no answer", where=node)
            else:
                runs = node != self.victim or self.deployed or not self.fresh
                engine = self.engine if node == self.victim else "on"
                states = {"mariadb": {"state": "running", "id": node, "started": "t0"}} if runs else {}
                answers.ok[node] = {
                    "engine": engine == "on", "installed": engine != "none",
                    "containers": states if engine == "on" else {},
                }  # fmt: skip
        return answers

    def read(self, site: Any, nodes: Sequence[str]) -> dict[str, Any]:
        return {node: answer["containers"] for node, answer in self.look(site, nodes).ok.items()}

    def find(self, site: Any, node: Any) -> machine.Found:
        assert node.name == self.victim
        if not self.alive:
            return machine.Found("silent", error=Unreachable("node-unreachable", "no answer"))
        return machine.Found("itself" if self.key or not self.fresh else "new", "SHA256:new")

    def take_in(self, site: Any, node: Any, request: Any, *, ours: str, **_: Any) -> str:
        self.ours = ours
        assert request.password == "secret" and request.user == "installer"
        self.note("take in")
        self.key = True
        return "SHA256:new"

    def run_playbook(self, site: Path, name: str, extra: Mapping[str, Any], **_: Any) -> RunResult:
        assert self.key
        if name == "plan":
            changes = {
                "packages": [],
                "files": [{}],
                "units": [],
                "containers": [],
                "jobs": [],
                "cluster": [],
            }
            plan: dict[str, Any] = {"nodes": {} if self.deployed else {self.victim: changes}, "ceph": []}
            (site / ".cloudctl" / "plan.json").write_text(json.dumps(plan))
            return RunResult()
        self.note("deploy")
        assert name == "deploy" and extra["cloudctl_nodes"] == [self.victim]
        # An empty member is taken in only when the others have forgotten the old one.
        assert self.victim not in self.bus
        assert all(self.victim not in members for members in self.raft.values())
        assert self.victim not in self.hosts
        self.deployed = True
        self.bus.add(self.victim)
        for members in self.raft.values():
            members.add(self.victim)
        return RunResult(changed=[{"kind": "container", "name": "x", "node": self.victim}])


@pytest.fixture
def cloud(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    site = tmp_path / "site"
    site.mkdir()
    for entry in made.iterdir():
        if entry.name != ".cloudctl":
            (site / entry.name).symlink_to(entry)
    (site / "pw").write_text("secret\n")
    (site / "pw").chmod(0o600)
    found = Cloud(site)
    for module, names in (
        (world, ("call", "run_playbook")),
        (deploying, ("run_playbook",)),
        (containers, ("run_in", "look", "read")),
        (machine, ("find", "take_in")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(found, name))
    monkeypatch.setattr(status_collect, "collect", lambda site: ({}, {}, {"errors": {}}))
    monkeypatch.setattr(status_summary, "summarise", lambda *arguments: status_summary.Status())
    monkeypatch.setattr(world.time, "sleep", lambda seconds: None)
    return found


def run(cloud: Cloud, *options: str, yes: bool = True) -> Result:
    arguments = ["replace", cloud.victim, "--user", "installer", "--password-file", str(cloud.site / "pw")]
    return CliRunner().invoke(
        node_command.command,
        [*arguments, *(["--yes"] if yes else []), "--output", "json", *options],
        obj=cloud.site,
    )


def error_of(result: Result) -> CloudctlError:
    assert isinstance(result.exception, CloudctlError), result.output
    return result.exception


def journal_of(cloud: Cloud) -> Path:
    return cloud.site / ".cloudctl" / "operations" / f"node-replace-{cloud.victim}.json"


WORK = [
    "take in", "kick ovn_nb_db", "kick ovn_sb_db", "forget bus", "ceph check", "ceph apply", "ceph rm",
    "chassis", "deploy", "ceph join", "grow", "rebalance",
]  # fmt: skip


def test_a_replacement_from_the_first_step_to_the_last(cloud: Cloud) -> None:
    result = run(cloud)
    assert result.exception is None, result.exception
    assert cloud.calls == WORK
    data = json.loads(result.stdout)
    assert data["touched"] == [] and data["left"] == []
    assert [step["result"] for step in data["steps"]] == ["done"] * len(data["steps"])
    assert cloud.chassis == ["ctl02"]
    assert cloud.adopted == []
    assert json.loads(journal_of(cloud).read_text())["finished"]
    assert "secret" not in journal_of(cloud).read_text()
    # It is alive now.
    assert error_of(run(cloud)).ref == "node-alive"


def test_the_first_controller_does_not_make_the_database_anew(cloud: Cloud) -> None:
    cloud.victim = "ctl01"
    cloud.chassis = ["ctl01"]
    result = run(cloud)
    assert result.exception is None, result.exception
    assert cloud.calls == [call for call in [*WORK[:7], "adopt", *WORK[8:]]]
    assert "cloudctl-job-mariadb-bootstrap" in cloud.adopted
    assert "cloudctl-job-keystone-db-sync" in cloud.adopted


@pytest.mark.parametrize("at", WORK)
def test_killed_anywhere_it_goes_on(cloud: Cloud, at: str) -> None:
    cloud.kill = at
    with pytest.raises(Killed):
        run(cloud, "--yes")
    before = list(cloud.calls)
    result = run(cloud)
    assert result.exception is None, result.exception
    assert json.loads(result.stdout)["continued"] is (at != "take in")
    # The steps of several calls begin with what is still to do, or with the first of them.
    begin = {"ceph apply": "ceph apply", "ceph rm": "ceph apply", "rebalance": "grow"}.get(at, at)
    assert cloud.calls[len(before) :] == WORK[WORK.index(begin) :]
    assert cloud.deployed and cloud.victim in cloud.mons and cloud.victim in cloud.hosts
    assert json.loads(journal_of(cloud).read_text())["finished"]


def test_yet_another_machine_begins_anew(cloud: Cloud) -> None:
    cloud.kill = "deploy"
    with pytest.raises(Killed):
        run(cloud)
    cloud.key = False  # another host key than the pinned one
    old = json.loads(journal_of(cloud).read_text())
    old["facts"]["fingerprint"] = "SHA256:first"
    journal_of(cloud).write_text(json.dumps(old))
    done = len(cloud.calls)
    result = run(cloud)
    assert result.exception is None, result.exception
    assert cloud.calls[done] == "take in"
    assert json.loads(result.stdout)["continued"] is False


def test_a_dry_run_changes_nothing(cloud: Cloud) -> None:
    result = run(cloud, "--dry-run", yes=False)
    assert result.exception is None, result.exception
    data = json.loads(result.stdout)
    assert cloud.calls == [] and not journal_of(cloud).exists()
    assert data["machine"] == "new" and data["dry_run"]
    assert any("mariadb" in line for line in data["lost"]["copied"])
    assert [step["name"] for step in data["steps"]][:2] == ["majority", "take-in"]
    cloud.alive = False
    assert json.loads(run(cloud, "--dry-run").stdout)["machine"] == "silent"
    text = CliRunner().invoke(node_command.command, ["replace", "ctl02", "--dry-run"], obj=cloud.site)
    assert "lost with it" in text.output and "ceph orch host rm ctl02" in text.output


def refused(cloud: Cloud, ref: str) -> CloudctlError:
    """Run it; it must be refused, with nothing changed and nothing left behind."""
    error = error_of(run(cloud))
    assert error.ref == ref
    assert cloud.calls == [] and not journal_of(cloud).exists()
    return error


def test_what_is_refused_changes_nothing(cloud: Cloud) -> None:
    cloud.alive = False
    assert isinstance(refused(cloud, "replacement-missing"), Unreachable)
    cloud.alive, cloud.fresh = True, False
    refused(cloud, "node-alive")
    cloud.fresh = True
    cloud.wrong["ctl01 galera"] = "wsrep_cluster_size\t1\nwsrep_cluster_status\tnon-Primary\n"
    assert refused(cloud, "no-quorum").message.startswith("Galera: without ctl02, 1 of 3")
    cloud.wrong = {"ctl03 rabbitmq": json.dumps({"running_nodes": ["rabbit@ctl02", "rabbit@ctl03"]})}
    assert "RabbitMQ" in refused(cloud, "node-alive").message
    cloud.wrong = {}
    cloud.down = {"compute01"}
    assert refused(cloud, "node-unreachable").where == "compute01"


def test_the_old_machine_is_no_fresh_one_because_it_does_not_tell(cloud: Cloud) -> None:
    cloud.fresh, cloud.engine = False, "off"
    assert "container engine does not run" in refused(cloud, "node-unknown-state").message
    cloud.engine, cloud.tells = "on", False
    assert "no answer" in refused(cloud, "node-unknown-state").message


def test_a_fresh_machine_with_the_old_host_key_is_taken_in(cloud: Cloud) -> None:
    cloud.key, cloud.engine = True, "none"  # pinned: a run was killed before it had written that down
    result = run(cloud)
    assert result.exception is None, result.exception
    assert cloud.calls == WORK


def test_a_machine_that_was_taken_in_before_is_known(cloud: Cloud) -> None:
    cloud.key = True
    journal = open_journal(cloud.site, cloud.victim)
    journal.begin()
    journal.keep(fingerprint="SHA256:new")
    assert run(cloud).exception is None
    assert cloud.ours == "SHA256:new"


def test_a_run_goes_on_whatever_became_of_the_engine(cloud: Cloud) -> None:
    cloud.kill = "deploy"
    with pytest.raises(Killed):
        run(cloud)
    cloud.engine = "off"
    assert run(cloud).exception is None


def test_nothing_is_done_without_a_yes(cloud: Cloud) -> None:
    assert error_of(run(cloud, yes=False)).ref == "confirmation-needed"
    assert cloud.calls == [] and not journal_of(cloud).exists()


def test_a_refused_machine_leaves_no_journal(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise CheckFailed("fingerprint-differs", "no")

    monkeypatch.setattr(machine, "take_in", refuse)
    assert error_of(run(cloud)).ref == "fingerprint-differs"
    assert not journal_of(cloud).exists()


def test_ceph_that_does_not_let_go_is_told(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100000, 50))
    monkeypatch.setattr(world.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(cloud, "ceph", lambda command, text: {"rc": -5, "out": "", "err": "no manager"})
    own = world.World(site := load_site(cloud.site), site.nodes["ctl02"], world.Renderer(site))
    with pytest.raises(ApplyFailed) as caught:
        own.ceph_forget()
    assert caught.value.ref == "ceph-host-not-removed" and "no manager" in caught.value.message
