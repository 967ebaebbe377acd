"""The names of the printed runbook: they run the commands that replace them, and say so."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from cloudctl.main import cli

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "41_openstack_db_backup.sh": ["db", "backup", "--dump"],
    "stop_docker_container.sh": ["service", "stop", "all", "--group", "control", "--yes"],
    "start_docker_container.sh": ["service", "start", "all", "--group", "control", "--yes"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_of_the_runbook_runs_its_command_and_names_it(script: str, tmp_path: Path) -> None:
    fake = tmp_path / "cloudctl"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    fake.chmod(0o755)
    # As the runbook types it, from the scripts' directory and by sh.
    done = subprocess.run(
        ["sh", script, "--output", "json"], cwd=ROOT / "scripts", capture_output=True, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [*SCRIPTS[script], "--output", "json"]
    assert done.returncode == 7, "how the command ends is how the script ends"
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"{script} is replaced by: cloudctl ")
    assert set(shlex.split(first.partition("cloudctl ")[2])) == set(SCRIPTS[script]) - {"--yes"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_the_runbooks_scripts_exist(script: str) -> None:
    command: click.Command = cli
    words = list(SCRIPTS[script])
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    command.make_context("x", words)


def test_the_runbooks_scripts_are_programs_that_are_checked() -> None:
    checked = (ROOT / "scripts" / "test").read_text()
    for script in SCRIPTS:
        assert os.access(ROOT / "scripts" / script, os.X_OK)
        assert script in checked or "scripts/*.sh" in checked
