"""Nodes that join: what the others have to do, what keeps a machine out, what a run that broke off leaves."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from site_support import lab_site

from cloudctl.engine.render import render_site
from cloudctl.errors import VerifyFailed
from cloudctl.node import journal
from cloudctl.node.check import adopted, judge_leftovers, judge_trial, trials
from cloudctl.node.inventory import joined
from cloudctl.node.join import Change, build, change_of
from cloudctl.node.others import Work, call_of, ceph_of, works
from cloudctl.node.prove import silent_agents
from cloudctl.operations.steps import BEGUN, DONE, execute
from cloudctl.osd.cluster import Cluster, Osd
from cloudctl.site.edit_inventory import add_host, remove_host
from cloudctl.site.load import load_site
from cloudctl.site.model import Node, Settings, Site

HOSTS = "inventory/hosts.yml"
NEW: dict[str, dict[str, Any]] = {
    "compute02": {"ansible_host": "10.10.10.22", "role": "compute"},
    "osd02": {"ansible_host": "10.10.10.212", "role": "storage", "devices": ["/dev/sdb"]},
}


def change(path: Path, *names: str) -> Change:
    """Return what it means that nodes of newnodes join."""
    file = path / HOSTS
    text = file.read_text()
    for name in names:
        text = add_host(text, "newnodes", name, NEW[name])
    file.write_text(text)
    before = load_site(path)
    file.write_text(joined(text, {name: NEW[name]["role"] for name in names}))
    after = load_site(path)
    file.write_text(text)
    return change_of(before, after, names)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def fresh(path: Path) -> Any:
    """Yield the site's directory; its inventory is put back afterwards."""
    text = (path / HOSTS).read_text()
    yield path
    (path / HOSTS).write_text(text)


# -- the others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NEW))
def test_no_container_of_another_node_is_made_anew(fresh: Path, name: str) -> None:
    found = change(fresh, name)
    assert set(found.others) == {"deploy", "ctl01", "compute01", "osd01"}
    assert {node: work.deferred for node, work in found.others.items() if work.deferred} == {}


def test_a_compute_node_means_hosts_a_filter_and_one_job(fresh: Path) -> None:
    others = change(fresh, "compute02").others
    assert {node: [file["path"] for file in work.files] for node, work in others.items()} == {
        "deploy": ["/etc/hosts"],
        "ctl01": ["/etc/hosts"],
        "compute01": ["/etc/hosts", "/etc/kolla/nova_libvirt/nova-libvirt-filter.sh"],
        "osd01": ["/etc/hosts"],
    }
    assert [work.as_dict()["jobs"] for work in others.values() if work.jobs] == [["nova/discover"]]
    assert {node: list(work.reload) for node, work in others.items() if work.reload} == {
        "compute01": ["nova_libvirt"]
    }
    assert all("10.10.10.22 compute02" in work.files[0]["content"] for work in others.values())


def test_a_storage_node_means_hosts_only(fresh: Path) -> None:
    others = change(fresh, "osd02").others
    assert all([file["path"] for file in work.files] == ["/etc/hosts"] for work in others.values())
    assert not any(work.jobs or work.reload for work in others.values())


def test_a_waiting_node_changes_nothing(fresh: Path) -> None:
    before = render_site(load_site(fresh))["nodes"]
    text = add_host((fresh / HOSTS).read_text(), "newnodes", "compute02", NEW["compute02"])
    (fresh / HOSTS).write_text(text)
    assert render_site(load_site(fresh))["nodes"] == before


def test_a_node_that_goes_is_forgotten_by_the_others(fresh: Path) -> None:
    file = fresh / HOSTS
    whole = add_host(file.read_text(), "compute", "compute02", NEW["compute02"])
    file.write_text(whole)
    before = load_site(fresh)
    file.write_text(remove_host(whole, "compute02"))
    found = change_of(before, load_site(fresh), ["compute02"])
    assert "compute02" not in found.others
    assert all("compute02" not in work.files[0]["content"] for work in found.others.values())
    assert [work.as_dict()["jobs"] for work in found.others.values() if work.jobs] == [["nova/discover"]]


def test_nodes_that_cannot_be_reached_are_left_out(fresh: Path) -> None:
    file = fresh / HOSTS
    text = file.read_text()
    before = load_site(fresh)
    file.write_text(add_host(text, "compute", "compute02", NEW["compute02"]))
    found = change_of(before, load_site(fresh), ["compute02"], without=["compute01"])
    assert "compute01" not in found.others


def spec(**parts: Any) -> dict[str, Any]:
    return {"schema": 1, "files": [], "containers": {}, "jobs": [], "apply": {}, **parts}


def container(image: str = "a", reload: str = "") -> dict[str, Any]:
    return {
        "service": "s", "phase": "control", "parts": {"image": image},
        "reload": {"files": {"f": reload}, "command": "true"} if reload else {},
    }  # fmt: skip


def file(path: str, content: str, container: str = "") -> dict[str, Any]:
    return {"path": path, "content": content, "container": container, "mode": "0600", "area": "config"}


def job(name: str = "j", inputs: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "id": name, "name": name, "service": "s", "container": "c", "first": "n", "everywhere": False,
        "once": False, "inputs": {"i": inputs}, **more,
    }  # fmt: skip


def test_a_container_that_would_have_to_be_made_anew_keeps_its_files() -> None:
    before = {"n": spec(containers={"c": container("a")}, files=[file("/f", "1", "c"), file("/g", "1")])}
    after = {"n": spec(containers={"c": container("b")}, files=[file("/f", "2", "c"), file("/g", "2")])}
    work = works(before, after)["n"]
    assert work.deferred == ["c"]
    assert [entry["path"] for entry in work.files] == ["/g"]


def test_jobs_run_once_on_the_node_that_runs_them() -> None:
    for changed, wanted in (
        (job(inputs="2"), ["j"]),
        (job(inputs="1"), []),
        (job(inputs="2", first="m"), []),
        (job(inputs="2", first="m", everywhere=True), ["j"]),
        (job(inputs="2", once=True), []),
    ):
        found = works({"n": spec(jobs=[job()])}, {"n": spec(jobs=[changed])})
        assert [entry["id"] for work in found.values() for entry in work.jobs] == wanted


def test_the_call_holds_only_what_changes() -> None:
    state = {**container(reload="2"), "compose": {"environment": {"X": "y"}}}
    work = Work(files=[file("/f", "1")], reload={"c": {k: v for k, v in state.items() if k != "compose"}})
    call = call_of(
        "n", work, spec(files=[file("/f", "1"), file("/other", "secret")], containers={"c": state})
    )
    assert call["module"] == "cloudctl_node"
    assert call["arguments"]["action"] == "adapt"
    sent = json.loads(zlib.decompress(base64.b64decode(call["arguments"]["spec"])))
    assert [entry["path"] for entry in sent["files"]] == ["/f"]
    assert sent["managed"] == sent["packages"] == sent["units"] == sent["images"] == sent["sections"] == []
    assert list(sent["containers"]) == ["c"]


def test_ceph_hears_of_the_new_node_only(fresh: Path) -> None:
    found = change(fresh, "osd02")
    assert found.ceph is not None
    part = ceph_of(found.ceph, ["osd02"])
    assert [host["name"] for host in part["hosts"]] == ["osd02"]
    assert [(osd["host"], osd["data"]) for osd in part["osds"]] == [("osd02", "/dev/sdb")]
    assert (part["config"], part["clients"], part["pools"]) == ({}, [], [])
    assert part["mons"] == found.ceph["mons"]


# -- what keeps a machine out --------------------------------------------------------------------


def after_of(path: Path, name: str) -> Site:
    (path / HOSTS).write_text(add_host((path / HOSTS).read_text(), NEW[name]["role"], name, NEW[name]))
    return load_site(path)


def test_all_networks_are_tried_with_nodes_that_are_there(fresh: Path) -> None:
    asked = trials(after_of(fresh, "osd02"), ["osd02"])["osd02"]
    assert {port["network"]: port["mtu"] for port in asked["ports"]} == {
        "management": 1500, "storage": 9000, "replication": 9000,
    }  # fmt: skip
    assert {peer["node"] for peer in asked["peers"]} == {"deploy", "ctl01", "compute01", "osd01"}
    assert {peer["mtu"] for peer in asked["peers"] if peer["network"] == "storage"} == {9000}


def peer(node: str, full: bool, small: bool, network: str = "storage") -> dict[str, Any]:
    port = {"interface": "eth1", "interface_mtu": 9000}
    return {"node": node, "network": network, "mtu": 9000, "full": full, "small": small, **port}


def refs(*peers: dict[str, Any], **more: Any) -> list[tuple[str, bool]]:
    found = judge_trial("n", {"peers": list(peers), "taken": [], "faults": [], **more})
    return [(finding.ref, finding.warning) for finding in found]


def test_how_networks_answer() -> None:
    good, small, silent = (True, True), (False, True), (False, False)
    assert refs(peer("a", *good), peer("b", *good)) == []
    assert refs(peer("a", *small), peer("b", *small)) == [("network-mtu", False)]
    assert refs(peer("a", *good), peer("b", *small)) == [("network-mtu", False)]
    assert refs(peer("a", *silent), peer("b", *silent)) == [("network-cut", False)]
    # One that is down is not the new machine's fault.
    assert refs(peer("a", *good), peer("b", *silent)) == [("peer-silent", True)]
    assert refs(taken=[{"network": "storage", "address": "1", "mac": "2"}]) == [("address-duplicate", False)]
    assert refs(faults=[{"network": "storage", "interface": "e", "why": "x"}]) == [("port-unusable", False)]


def test_a_machine_whose_own_mtu_is_too_small_is_told_so() -> None:
    peers = [{**peer("a", False, True), "interface_mtu": 1500}]
    (found,) = judge_trial("n", {"peers": peers, "taken": [], "faults": []})
    assert (found.ref, found.message) == ("network-mtu", "network storage: eth1 has MTU 1500, 9000 is wanted")
    assert "ip link set dev eth1 mtu 9000" in str(found.hint) and "switch" not in str(found.hint)


def test_a_disk_of_a_removed_osd_is_refused_on_a_new_machine() -> None:
    devices = [
        {"path": "/dev/sdb", "state": "ours", "reason": "OSD x of this cluster"},
        {"path": "/dev/sdc", "state": "empty", "reason": ""},
    ]
    (found,) = judge_leftovers("osd02", devices)
    assert (found.ref, found.node, found.warning) == ("osd-device-refused", "osd02", False)
    assert "/dev/sdb" in found.message


def test_a_disk_whose_osd_was_half_made_by_an_earlier_run_is_no_foreign_one() -> None:
    devices = [
        {"path": f"/dev/{uuid}", "state": "refused", "reason": "unknown", "osd_uuid": uuid}
        for uuid in ("half", "whole", "foreign", "")
    ]
    known = [Osd(0, uuid="half", started=False), Osd(1, uuid="whole")]
    found = adopted(devices, Cluster({item.id: item for item in known}))
    assert [item["state"] for item in found] == ["ours", "refused", "refused", "refused"]


# -- what a run that broke off leaves ------------------------------------------------------------


def site_of(path: Path, **groups: str) -> Site:
    """A site of nodes in a group each."""
    nodes = {name: Node(name, (group,), f"10.10.10.{n}") for n, (name, group) in enumerate(groups.items())}
    return Site(path, "cloud", {}, nodes, Settings({}))


def test_an_unfinished_run_is_told_until_it_ended(tmp_path: Path) -> None:
    site = site_of(tmp_path, compute02="newnodes", osd02="newnodes")
    state = journal.begin(tmp_path, journal.ADD, {"compute02": "compute", "osd02": "storage"})
    state.mark("prepare", BEGUN)
    assert journal.joining(site) == {"compute02": "compute", "osd02": "storage"}
    # One of them alone: the other stays unfinished.
    state = journal.begin(tmp_path, journal.ADD, {"osd02": "storage"})
    assert state.state("prepare") is None
    journal.end(state)
    assert journal.joining(site) == {"compute02": "compute"}
    state = journal.begin(tmp_path, journal.ADD, {"compute02": "compute"})
    journal.end(state)
    assert journal.joining(site) == {}


def test_only_nodes_that_wait_are_told_as_joining(tmp_path: Path) -> None:
    journal.begin(tmp_path, journal.ADD, {"compute02": "compute", "osd02": "storage", "osd03": "storage"})
    # One was killed away from when it had come, one was taken out by hand.
    site = site_of(tmp_path, compute02="compute", osd03="newnodes")
    assert journal.joining(site) == {"osd03": "storage"}
    assert journal.arrived(site) == {"compute02": "compute"}
    assert journal.arrived(site_of(tmp_path, compute02="storage")) == {}


def test_the_same_nodes_again_go_on(tmp_path: Path) -> None:
    journal.begin(tmp_path, journal.ADD, {"compute02": "compute"}).mark("prepare", DONE)
    assert journal.begin(tmp_path, journal.ADD, {"compute02": "compute"}).state("prepare") == DONE


def test_what_was_done_is_looked_at_again_when_it_goes_on(tmp_path: Path) -> None:
    done: list[str] = []
    broken = {"prove"}

    def doing(key: str) -> Any:
        def do(*_arguments: Any) -> str:
            done.append(key)
            if key in broken:
                raise VerifyFailed("node-not-proven", "no VM boots")
            return ""

        return do

    joining: Any = SimpleNamespace(
        names=["compute02"], change=SimpleNamespace(others={"ctl01": Work(files=[{"path": "/etc/hosts"}])}),
        **{key: doing(key) for key in ("prepare", "register", "prove", "settle")},
    )  # fmt: skip
    computes = SimpleNamespace(start=lambda: None)
    nodes = {"compute02": "compute"}
    with pytest.raises(VerifyFailed):
        execute(build(joining, computes), journal.begin(tmp_path, journal.ADD, nodes))
    assert done == ["prepare", "register", "prove"]
    # Meanwhile a deploy may have taken back what the others were told.
    done.clear()
    broken.clear()
    state = journal.begin(tmp_path, journal.ADD, nodes)
    assert {outcome.result for outcome in execute(build(joining, computes), state)} == {"done"}
    assert done == ["prepare", "register", "prove", "settle"]


def test_where_nothing_was_begun_nothing_is_left(tmp_path: Path) -> None:
    journal.give_up(journal.begin(tmp_path, journal.ADD, {"compute02": "compute"}))
    assert journal.joining(site_of(tmp_path, compute02="newnodes")) == {}


def test_a_node_whose_agents_count_as_dead_takes_no_ports_yet() -> None:
    def agents(**alive: list[bool]) -> list[Any]:
        return [
            SimpleNamespace(agent_type=kind, is_alive=up) for kind, states in alive.items() for up in states
        ]

    assert silent_agents([]) == "it has no network agent"
    assert silent_agents(agents(controller=[True], metadata=[False])) == "metadata does not report"
    # What a machine of the same name left behind is not waited for.
    assert silent_agents(agents(controller=[False, True], metadata=[True])) == ""
