"""One plan for a deploy: what was shown is what is done, and what it says where that is not so any more."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import click
import pytest
from site_support import lab_site

from cloudctl.commands import deploy
from cloudctl.console import Console
from cloudctl.engine import plan, workspace
from cloudctl.engine.opening import Opening
from cloudctl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def make_plan(*containers: str) -> dict[str, Any]:
    changes = [{"name": name, "service": "web", "phase": "control", "action": "start", "reasons": [
        {"attribute": "state", "from": "exited", "to": "running"}]} for name in containers]  # fmt: skip
    nodes = {"ctl01": {"packages": [], "files": [{"path": "/etc/x", "action": "create", "area": "config"}],
                       "units": [], "containers": changes, "jobs": [], "cluster": []}}  # fmt: skip
    totals = {"nodes": 1, "packages": 0, "files": 1, "units": 0, "containers": len(containers), "jobs": 0,
              "cluster": 0, "ceph": 0}  # fmt: skip
    made = {"nodes": nodes if containers else {}, "ceph": [], "changes": bool(containers), "totals": totals}
    return made


class Run:
    """As much of an opening as ``agree`` uses; answers with the given plans, one after the other."""

    def __init__(self, *plans: dict[str, Any]) -> None:
        self.said = io.StringIO()
        self.console = Console("text", stdout=self.said, stderr=self.said)
        self.progress = self
        self.plans = list(plans)

    def line(self, text: str) -> None:
        self.console.progress(text)

    def read(self) -> dict[str, Any]:
        return self.plans.pop(0)


def agree(run: Run, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *answers: float) -> dict[str, Any]:
    """Ask, with the seconds after which each question is answered with yes."""
    clock, times = [0.0], list(answers)

    def confirm(*_arguments: Any, **_options: Any) -> bool:
        clock[0] += times.pop(0)
        return True

    monkeypatch.setattr(click, "confirm", confirm)
    monkeypatch.setattr(deploy.time, "monotonic", lambda: clock[0])
    agreed = deploy.agree(cast(Opening, run), made)
    assert not times, "fewer questions than expected"
    return agreed


def test_a_quick_answer_needs_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_plan("web")
    assert agree(Run(), made, monkeypatch, 5) is made


def test_after_a_late_answer_the_nodes_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(again := make_plan("web"))
    assert agree(run, make_plan("web"), monkeypatch, 600) is again
    assert "not fresh" in run.said.getvalue() and "has changed" not in run.said.getvalue()


def test_another_plan_by_then_is_shown_and_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(again := make_plan("web", "other"))
    assert agree(run, make_plan("web"), monkeypatch, 600, 5) is again
    shown = run.said.getvalue()
    assert "the cloud has changed since the plan was shown" in shown and "start container other" in shown


def test_nothing_left_to_do_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not agree(Run(make_plan()), make_plan("web"), monkeypatch, 600)["changes"]


def test_what_was_done_as_planned_is_no_surprise() -> None:
    done = [
        {"node": "ctl01", "kind": "file", "name": "/etc/x", "action": "create"},
        {"node": "ctl01", "kind": "container", "name": "web", "action": "start"},
        {"node": "ctl01", "kind": "database", "name": "web", "action": "create"},
    ]
    assert plan.surprises(make_plan("web"), done) == []


def test_what_was_done_otherwise_is_told() -> None:
    done = [
        {"node": "ctl01", "kind": "container", "name": "web", "action": "start"},
        {"node": "ctl02", "kind": "file", "name": "/etc/y", "action": "change"},
    ]
    first, second = plan.surprises(make_plan("web"), done)
    assert "ctl01" in first and "right already: file /etc/x" in first
    assert "ctl02" in second and "changed as well: file /etc/y" in second


# -- playbooks by themselves --------------------------------------------------------------------


def run_playbook(site: Path, name: str, *options: str, **environment: str) -> str:
    """Run a playbook with plain ansible-playbook against nodes that nobody reaches; return what it says."""
    done = subprocess.run(
        [
            *(shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),),
            *("-i", str(site / "inventory"), str(ROOT / "playbooks" / f"{name}.yml")),
            *("-e", "ansible_ssh_common_args='-o ProxyCommand=false'", *options),
        ],
        cwd=site,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCAL_TEMP": str(site / "tmp"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["plan", "deploy"])
def test_a_playbook_by_itself_leaves_no_rendered_secrets(name: str, tmp_path: Path) -> None:
    site = lab_site(tmp_path)
    said = run_playbook(site, name)
    assert "UNREACHABLE" in said and "no plan without" in said
    assert not workspace.workspace_path(site).exists()


def test_a_command_keeps_what_its_second_playbook_needs(tmp_path: Path) -> None:
    site = lab_site(tmp_path)
    run_playbook(site, "plan", CLOUDCTL_RUN="1")
    path = workspace.workspace_path(site)
    assert path.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.rglob("*"))


def test_a_planned_deploy_reads_nothing_and_needs_its_plan(tmp_path: Path) -> None:
    site = lab_site(tmp_path)
    said = run_playbook(site, "deploy", "-e", "cloudctl_planned=true")
    assert "no plan was made" in said and "UNREACHABLE" not in said


def test_a_plan_belongs_to_its_rendering(tmp_path: Path) -> None:
    work = workspace.Workspace(tmp_path / "rendered")
    work.path.mkdir()
    with pytest.raises(ConfigError):
        work.made_plan()
    work.write_plan(make_plan("web"))
    assert work.made_plan() == make_plan("web")


# -- a whole deploy, with nodes that are a file each --------------------------------------------

NODES = '''
import json, os, re, zlib, base64
from pathlib import Path
from ansible.plugins.connection import ConnectionBase
DOCUMENTATION = """
name: pretended
short_description: Nodes that are files
description: [Keeps what was done in a file.]
extends_documentation_fragment: [connection_pipelining]
author: cloudctl
"""
KEYS = "packages files units containers jobs markers sections unhealthy"
EMPTY = {key: [] for key in KEYS.split()}
FILE = {"path": "/etc/x", "action": "create", "area": "config", "container": ""}

class Connection(ConnectionBase):
    transport = "pretended"
    has_pipelining = True

    def _connect(self):
        return self

    def exec_command(self, cmd, in_data=None, sudoable=True):
        text = in_data.decode(errors="replace")
        module = re.findall(r"ansible_module=['\\"]([\\w.]+)", text)[0]
        action = (re.findall(r'"action": ?"(\\w+)"', text) or [""])[0]
        state = Path(os.environ["PRETENDED"]) / self._play_context.remote_addr
        answer = {"changed": False}
        if module == "cloudctl_ceph":
            answer.update(devices=[], changes=[], health="HEALTH_OK")
        elif action == "observe":
            answer["observed"] = EMPTY if state.exists() else {**EMPTY, "files": [FILE]}
        elif action == "files":
            state.touch()
            done = {"kind": "file", "name": "/etc/x", "action": "create", "diff": []}
            answer.update(changed=True, done=[done])
        with (state.parent / "calls").open("a") as calls:
            calls.write(f"{self._play_context.remote_addr} {module} {action}\\n")
        return 0, json.dumps(answer).encode() + b"\\n", b""

    def put_file(self, *arguments): raise AssertionError
    def fetch_file(self, *arguments): raise AssertionError
    def close(self): pass
'''


def test_a_deploy_reads_every_node_once(tmp_path: Path) -> None:
    site, plugins, state = lab_site(tmp_path / "site"), tmp_path / "plugins", tmp_path / "state"
    (site / "lab.json").unlink(missing_ok=True)
    for directory in (plugins, state):
        directory.mkdir()
    (plugins / "pretended.py").write_text(NODES)
    connection = site / "inventory" / "group_vars" / "all.yml"
    connection.write_text(connection.read_text() + "ansible_connection: pretended\nansible_become: false\n")
    environment = {
        **os.environ, "ANSIBLE_CONNECTION_PLUGINS": str(plugins), "ANSIBLE_PIPELINING": "1",
        "PRETENDED": str(state), "PYTHONPATH": str(ROOT / "cli"),
    }  # fmt: skip

    def deploy_it() -> tuple[list[str], dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "cloudctl", "--site", site, "deploy", "--yes", "--output", "json"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "not as planned" not in done.stderr
        calls = (state / "calls").read_text().splitlines()
        (state / "calls").unlink()
        return calls, json.loads(done.stdout)

    calls, said = deploy_it()
    nodes = {call.split()[0] for call in calls}
    assert len(nodes) == 4 and len(said["changed"]) == 4
    for node in nodes:
        assert calls.count(f"{node} cloudctl_node observe") == 1
        assert calls.count(f"{node} cloudctl_node files") == 1
    assert not workspace.workspace_path(site).exists() and (site / "admin-openrc.sh").exists()

    calls, said = deploy_it()
    assert not said["changed"] and said["summary"] == "nothing to change"
    assert not [call for call in calls if call.endswith("files")]
