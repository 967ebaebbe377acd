"""Every playbook by plain ansible-playbook, without the command around it, from the deploy node."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from conftest import Result
from deploynode import NODE, SITE
from playbook_runs import RUNS, Run

from cloudctl.lab.podman import podman

CASES = [
    # A deploy that has nothing to do comes first: the others find the cloud as it should be.
    pytest.param(name, run, id=f"{name}{number or ''}")
    for name in ("deploy", *(name for name in RUNS if name != "deploy"))
    for number, run in enumerate(RUNS[name])
]


def play(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook as the how-to page says, in the deploy node."""
    return subprocess.run(
        [
            # another directory than the checkout's: roles, modules and plugins are found beside the playbooks
            *(*podman(), "exec", "--workdir", "/tmp", "--env", "ANSIBLE_NOCOLOR=1"),
            *("--env", "SUDO_USER=kim", "--env", "ANSIBLE_LOCAL_TEMP=/tmp/test-playbooks"),
            *(NODE, "/opt/venv/bin/ansible-playbook", "-i", f"{SITE}/inventory"),
            *(f"/opt/cloudctl/playbooks/{name}.yml", *options),
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.mark.parametrize(("name", "run"), CASES)
def test_playbook(name: str, run: Run, cloudctl: Callable[..., Result]) -> None:
    if run.needs == "backup" and not cloudctl("db", "list", "--output", "json").json:
        assert cloudctl("db", "backup").rc == 0
    done = play(name, *run.options)
    said = done.stdout + done.stderr
    assert done.returncode == run.rc, said
    assert "failed=0" in said if run.rc == 0 else "failed=1" in said
    assert not [text for text in run.says if text not in said], said
    assert not (SITE / ".cloudctl" / "rendered").exists(), "the rendered secrets are left"
    if name == "deploy":
        assert "changed=0" in said and "changed=1" not in said


def test_the_record_names_who_started_the_playbook(cloudctl: Callable[..., Result]) -> None:
    assert play("service-stop", "-e", "service=memcached", "-e", "dry_run=true").returncode == 0
    (run, *_) = cloudctl("runs", "list", "--output", "json").json
    assert run["who"].startswith("kim@")
