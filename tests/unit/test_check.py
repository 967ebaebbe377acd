"""What pre-checks find, from what a node tells."""

from __future__ import annotations

import copy
import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_support import lab_site

from cloudctl.checks import judge
from cloudctl.checks.collect import Checked
from cloudctl.checks.judge import Finding
from cloudctl.checks.registry import ask, manifest_url, missing
from cloudctl.checks.wanted import questions
from cloudctl.engine.render import Renderer
from cloudctl.errors import Unreachable
from cloudctl.site.load import load_site
from cloudctl.site.model import Interface, Node, Settings

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def load(name: str) -> Any:
    """Import a node-side module, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "playbooks" / "library" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


NODE = Node(
    "cmp01",
    ("compute",),
    "10.0.1.1",
    {
        "eth0": Interface("eth0", "management", "10.0.1.1"),
        "eth1": Interface("eth1", "tenant", "10.0.2.1", mac="52:54:00:00:00:01", mtu=9000),
    },
)
PORTS = {3306: "mariadb", 5000: "keystone"}


def link(name: str, mac: str, **extra: Any) -> dict[str, Any]:
    return {
        "name": name, "mac": mac, "mtu": 1500, "max_mtu": 9216, "up": True, "carrier": True, "addresses": [],
        **extra,
    }  # fmt: skip


def good() -> dict[str, Any]:
    """Return what a node tells with which everything is fine."""
    return copy.deepcopy(
        {
            "uid": 0,
            "os": {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"},
            "clock": {"sent": 1000.0, "started": 1000.6, "ended": 1001.0, "received": 1001.4},
            "disks": {"/": {"free": 50 * GIB, "total": 100 * GIB}},
            "links": [
                link("lo", "00:00:00:00:00:00"),
                link("eth0", "52:54:00:00:00:00", addresses=[{"address": "10.0.1.1", "prefix": 24}]),
                link("ens7", "52:54:00:00:00:01", up=False, carrier=False),
            ],
            "listening": [],
            "urls": {"registry": {"url": "http://r/v2/", "status": 200, "error": "", "date": None}},
            "engine": {"installed": True, "version": "26.1.5+dfsg1"},
            "modules": {"openvswitch": True},
            "kvm": "",
            "vips": {},
        }
    )


def refs(facts: dict[str, Any]) -> list[str]:
    return [finding.ref for finding in judge.judge_node(NODE, facts, PORTS)]


def test_good_node() -> None:
    assert refs(good()) == []


def test_everything_wrong_is_told_at_once() -> None:
    facts = good()
    facts["uid"] = 1000
    facts["os"] = {"id": "debian", "version": "12", "name": "Debian 12"}
    facts["clock"].update(started=1010.6, ended=1011.0)
    facts["disks"]["/"]["free"] = GIB
    facts["links"] = [link("lo", "0"), link("eth0", "52:54:00:00:00:00", max_mtu=1000, carrier=False)]
    facts["listening"] = [{"port": 3306, "pid": 7, "process": "mysqld", "container": "", "project": ""}]
    facts["urls"]["registry"].update(status=0, error="refused")
    facts["engine"]["version"] = "20.10.24"
    facts["modules"]["openvswitch"] = False
    facts["kvm"] = "/dev/kvm: No such file or directory"
    findings = list(judge.judge_node(NODE, facts, PORTS))
    assert [finding.ref for finding in findings] == [
        "become-failed", "os-unsupported", "clock-skew", "disk-nearly-full", "nic-mtu",
        "nic-no-link", "nic-missing", "port-in-use", "registry-silent", "engine-too-old",
        "kernel-module-missing", "kvm-unusable",
    ]  # fmt: skip
    assert all(finding.node == "cmp01" and finding.hint and not finding.warning for finding in findings)
    assert {finding.as_error().exit_code for finding in findings} == {4}


@pytest.mark.parametrize(
    ("skew", "warning"),
    [(0, None), (1.5, None), (-1.5, None), (3, True), (-3, True), (10, False), (-10, False)],
)
def test_clock(skew: float, warning: bool | None) -> None:
    facts = good()
    facts["clock"] = {"sent": 1000.0, "started": 1000.2 + skew, "ended": 1000.3 + skew, "received": 1000.5}
    found = list(judge.judge_clock("n", facts))
    assert [finding.warning for finding in found] == ([] if warning is None else [warning])
    if found:
        assert ("ahead of" in found[0].message) == (skew > 0)


@given(
    skew=st.floats(-1000, 1000), to=st.floats(0, 30), work=st.floats(0, 10), back=st.floats(0, 30),
    fraction=st.floats(0, 0.999),
)  # fmt: skip
def test_clock_bounds_always_hold_the_truth(
    skew: float, to: float, work: float, back: float, fraction: float
) -> None:
    """However slow the connection, a clock that is right is never called wrong."""
    started = 1000 + to + skew
    ended = started + work
    asked_at = 1000 + to + fraction * work
    facts = {
        "clock": {"sent": 1000.0, "started": started, "ended": ended, "received": 1000 + to + work + back},
        "urls": {"registry": {"date": float(int(asked_at)), "before": started, "after": ended}},
    }
    low, high = judge.clock_bounds(facts)
    assert low - 1e-6 <= skew <= high + 1e-6


def test_slow_connection_with_a_date_still_finds_the_skew() -> None:
    facts = good()
    facts["clock"] = {"sent": 1000.0, "started": 1020.0, "ended": 1021.0, "received": 1040.0}
    facts["urls"]["registry"].update(date=1010.0, before=1020.1, after=1020.3)
    (finding,) = judge.judge_clock("n", facts)
    assert "9.1 s ahead of" in finding.message and not finding.warning


def test_clock_without_any_bound_says_nothing() -> None:
    assert (
        list(judge.judge_clock("n", {"clock": {"sent": 0, "started": 5.0, "ended": 6.0}, "urls": {}})) == []
    )


@pytest.mark.parametrize(
    ("free", "total", "expected"),
    [(50, 100, None), (4, 30, False), (8, 100, True), (30, 1000, False), (4, 8, False)],
)
def test_disk(free: int, total: int, expected: bool | None) -> None:
    found = list(judge.judge_disks("n", {"/": {"free": free * GIB, "total": total * GIB}}))
    assert [finding.warning for finding in found] == ([] if expected is None else [expected])


def test_configured_port_with_too_small_an_mtu() -> None:
    facts = good()
    facts["links"][2] = link("eth1", "52:54:00:00:00:01", addresses=[{"address": "10.0.2.1", "prefix": 24}])
    (finding,) = judge.judge_node(NODE, facts, PORTS)
    assert (
        finding.ref == "nic-mtu-configured" and "eth1 (network tenant) has MTU 1500, 9000" in finding.message
    )
    pings = {
        "cmp01": [ping("cmp02", small=True)],
        "cmp02": [ping("cmp01", small=True)],
    }
    assert list(judge.judge_pings(pings, [finding])) == []


def ping(node: str, *, small: bool | None, full: bool = False, configured: bool = True) -> dict[str, Any]:
    return {
        "network": "tenant", "node": node, "mtu": 9000, "full": full, "small": small,
        "configured": configured, "interface": "eth1", "interface_mtu": 9000,
    }  # fmt: skip


def test_pings_count_only_between_configured_ends() -> None:
    bare = {"a": [ping("b", small=None, configured=False)], "b": [ping("a", small=False)]}
    assert list(judge.judge_pings(bare, [])) == []
    broken = {"a": [ping("b", small=True)], "b": [ping("a", small=True)]}
    assert [finding.ref for finding in judge.judge_pings(broken, [])] == ["network-mtu"]


def test_address_on_a_bridge_counts_as_configured() -> None:
    facts = good()
    facts["links"].append(link("br-data", "x", mtu=1500, addresses=[{"address": "10.0.2.1", "prefix": 24}]))
    assert refs(facts) == ["nic-mtu-configured"]


@pytest.mark.parametrize(
    "entry",
    [
        {"port": 3306, "pid": 1, "process": "mariadbd", "container": "mariadb", "project": "cloudctl"},
        {"port": 3306, "pid": 1, "process": "x", "container": "ceph-1-mon-a", "project": ""},
        {"port": 3306, "pid": 1, "process": "x", "container": "cloudctl-job-a-b", "project": ""},
        {"port": 22, "pid": 1, "process": "sshd", "container": "", "project": ""},
    ],
)
def test_our_own_listeners_are_fine(entry: dict[str, Any]) -> None:
    assert list(judge.judge_ports("n", [entry], PORTS)) == []


def test_foreign_container_is_named_once_with_all_its_ports() -> None:
    entries = [
        {"port": port, "pid": 9, "process": "mysqld", "container": "db", "project": "other"}
        for port in (5000, 3306)
    ]
    (finding,) = judge.judge_ports("n", entries, PORTS)
    assert finding.message == "container db (pid 9) listens on 3306 (mariadb), 5000 (keystone)"


def test_registry_that_wants_a_login_answers() -> None:
    urls = {
        "registry": {"url": "u", "status": 401, "error": ""},
        "repository": {"url": "u", "status": 503, "error": ""},
    }
    assert [finding.ref for finding in judge.judge_urls("n", urls)] == ["repository-silent"]


def vip_facts(mac: str, *, held: bool = False) -> dict[str, Any]:
    facts = good()
    facts["vips"] = {"10.0.1.250": mac}
    if held:
        facts["links"][1]["addresses"].append({"address": "10.0.1.250", "prefix": 32})
    return {"ctl01": facts, "ctl02": {**good(), "vips": {"10.0.1.250": mac}}}


def test_vip() -> None:
    vips = {"internal": "10.0.1.250"}
    assert list(judge.judge_vips(vips, vip_facts(""), [])) == []
    assert list(judge.judge_vips(vips, vip_facts("aa:aa:aa:aa:aa:aa", held=True), [])) == []
    # A controller that lost the address a moment ago is still in the others' tables.
    assert list(judge.judge_vips(vips, vip_facts("52:54:00:00:00:00"), [])) == []
    (finding,) = judge.judge_vips(vips, vip_facts("AA:aa:aa:aa:aa:aa"), [])
    assert finding.ref == "vip-in-use" and not finding.warning
    (finding,) = judge.judge_vips(vips, vip_facts("aa:aa:aa:aa:aa:aa"), ["ctl03"])
    assert finding.warning


def test_vip_on_a_node_that_is_no_controller() -> None:
    facts = vip_facts("aa:aa:aa:aa:aa:aa", held=True)
    assert list(judge.judge_vips({"internal": "10.0.1.250"}, facts, [], holders=["ctl01"])) == []
    (finding,) = judge.judge_vips({"internal": "10.0.1.250"}, facts, [], holders=["ctl02"])
    assert finding.ref == "vip-in-use" and finding.node == "ctl01"


def test_devices() -> None:
    devices = [
        {"path": "/dev/sdb", "state": "empty", "reason": ""},
        {"path": "/dev/sdc", "state": "ours", "reason": "OSD 1"},
        {"path": "/dev/sda", "state": "refused", "reason": "it is mounted (/)"},
    ]
    (finding,) = judge.judge_devices("osd01", devices)
    assert "/dev/sda" in finding.message and "mounted" in finding.message
    shared = {"path": "/dev/sdj", "state": "refused", "reason": "it is too small", "role": "journal"}
    (finding,) = judge.judge_devices("osd01", [shared])
    assert "wipe" not in finding.hint


def test_images() -> None:
    found = list(judge.judge_images({"a": "r/a@sha256:1", "b": ""}, ["a"], ""))
    assert [finding.ref for finding in found] == ["image-not-built", "image-missing"]
    assert found[1].hint == "cloudctl image build a"
    assert [finding.ref for finding in judge.judge_images({}, [], "refused")] == ["registry-silent"]


def test_same_finding_on_many_nodes_is_one_error() -> None:
    same = [Finding("registry-silent", "m", node, "h") for node in ("a", "b")]
    (merged,) = judge.merge([*same, same[0]])
    assert merged.node == "a, b"


def test_exit_code_is_5_only_when_nothing_else_is_wrong() -> None:
    silent = {"n": Unreachable("node-unreachable", "x", where="n")}
    assert Checked(silent=silent).errors[0].exit_code == 5
    assert Checked(findings=[Finding("a", "b", "c")], silent=silent).errors[0].exit_code == 4
    everywhere = {n: Unreachable("ssh-key-refused", "x", where=n, hint="h") for n in ("a", "b")}
    assert [(error.where, error.exit_code) for error in Checked(silent=everywhere).errors] == [("a, b", 5)]
    warned = Checked(findings=[Finding("a", "b", "c", warning=True)])
    assert warned.errors == [] and len(warned.warnings) == 1


def test_manifest_urls() -> None:
    assert manifest_url("h:5000/ns/a@sha256:b") == "http://h:5000/v2/ns/a/manifests/sha256:b"
    assert manifest_url("h:5000/ns/a:tag") == "http://h:5000/v2/ns/a/manifests/tag"
    assert manifest_url("h:5000/ns/a") == "http://h:5000/v2/ns/a/manifests/latest"


def test_missing_images() -> None:
    answers = {"http://h/v2/a/manifests/1": (200, ""), "http://h/v2/b/manifests/1": (404, "")}
    assert missing({"a": "h/a:1", "b": "h/b:1"}, asks=lambda url: answers[url]) == (["b"], "")
    assert missing({"a": "h/a:1"}, asks=lambda url: (0, "refused")) == ([], "refused")
    assert missing({}) == ([], "")


@pytest.fixture
def web() -> Iterator[str]:
    """Yield the URL of a server that knows /v2/ only."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/v2/" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_asking_a_registry(web: str) -> None:
    assert ask(f"{web}/v2/") == (200, "")
    assert ask(f"{web}/v2/a/manifests/1") == (404, "")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    status, error = ask(f"http://127.0.0.1:{port}/v2/")
    assert status == 0 and "refused" in error


# -- the module on the node --


def test_module_asks_a_url_and_keeps_the_date(web: str) -> None:
    answer = load("cloudctl_check").ask(f"{web}/v2/")
    assert answer["status"] == 200 and abs(answer["date"] - time.time()) < 5
    assert answer["before"] <= answer["after"]


def test_module_finds_who_listens() -> None:
    module = load("cloudctl_check")
    code = "import socket,time;s=socket.create_server(('127.0.0.1',0));print(s.getsockname()[1],flush=True);"
    code += "time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        (entry,) = module.read_ports({port})
        assert (entry["port"], entry["pid"]) == (port, process.pid)
        assert module.read_ports({1}) == []
    finally:
        process.kill()
        process.wait()


def test_module_finds_the_container_of_a_process() -> None:
    module = load("cloudctl_check")
    identity = "ab" * 32
    assert module.container_of(f"0::/system.slice/docker-{identity}.scope\n") == identity
    assert module.container_of(f"0::/docker/{identity}\n") == identity
    assert module.container_of("0::/user.slice\n") == ""


def test_module_tells_each_filesystem_once(tmp_path: Path) -> None:
    disks = load("cloudctl_check").read_disks([str(tmp_path), str(tmp_path / "not" / "there")])
    assert list(disks) == [str(tmp_path)]


def test_module_reads_everything() -> None:
    module = load("cloudctl_check")
    facts = module.read_all(
        {
            "urls": {},
            "vips": [],
            "ports": [],
            "modules": ["no_such_module"],
            "kvm": False,
            "paths": ["/"],
            "sent": 1.0,
        }
    )
    assert (
        facts["uid"] == os.geteuid() and facts["os"]["id"] and facts["modules"] == {"no_such_module": False}
    )
    assert facts["clock"]["started"] <= facts["clock"]["ended"]


def test_module_says_why_kvm_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("cloudctl_check")

    def refuse(path: str, flags: int) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(module.os, "open", refuse)
    assert module.try_kvm() == "/dev/kvm: No such file or directory"


def test_what_a_node_is_asked_follows_from_the_services(tmp_path: Path) -> None:
    renderer = Renderer(load_site(lab_site(tmp_path)))
    found = questions(renderer)
    control, compute = found["ctl01"], found["compute01"]
    assert {3306, 4567, 5672, 11211, 6641, 6644, 5000, 4569} <= set(control["ports"])
    assert not {3306, 5000} & set(compute["ports"])
    # the lab's datapath is in userspace
    assert control["modules"] == compute["modules"] == []
    settings = Settings({**renderer.site.settings, "datapath": "system"})
    found = questions(Renderer(replace(renderer.site, settings=settings)))
    assert found["ctl01"]["modules"] == found["compute01"]["modules"] == ["openvswitch"]
    assert found["osd01"]["modules"] == []
