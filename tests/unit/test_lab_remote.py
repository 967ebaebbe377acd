"""The deploy node's end of a command that was started on the host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudctl.errors import CloudctlError
from cloudctl.lab import remote, supervise

SLEEPER = """
import signal, sys, time
try:
    print("started", flush=True)  # whoever reads it may send the signal at once
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    line = os.open(path, os.O_RDWR)
    yield path, line
    with contextlib.suppress(OSError):
        os.close(line)


def begin(path: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, supervise.__file__, str(path), "pipe", *command], stdout=subprocess.PIPE, text=True
    )


def test_exit_code_and_output_pass(fifo: tuple[Path, int]) -> None:
    process = begin(fifo[0], "sh", "-c", "echo out; exit 7")
    assert process.communicate(timeout=60)[0] == "out\n"
    assert process.returncode == 7


def test_death_by_signal_is_128_and_its_number(fifo: tuple[Path, int]) -> None:
    process = begin(fifo[0], "sh", "-c", "kill -9 $$")
    assert process.wait(timeout=60) == 137


def test_a_signal_is_passed_on(fifo: tuple[Path, int]) -> None:
    process = begin(fifo[0], sys.executable, "-c", SLEEPER)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.write(fifo[1], bytes([signal.SIGINT]))
    assert process.stdout.readline() == "interrupted\n"
    assert process.wait(timeout=60) == 130


def test_the_callers_death_interrupts_the_command(fifo: tuple[Path, int]) -> None:
    process = begin(fifo[0], sys.executable, "-c", SLEEPER)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.close(fifo[1])
    assert process.wait(timeout=60) == 130


def test_the_fifo_is_gone_once_both_ends_are_open(fifo: tuple[Path, int]) -> None:
    process = begin(fifo[0], sys.executable, "-c", SLEEPER)
    assert process.stdout is not None
    process.stdout.readline()
    assert not fifo[0].exists()
    os.write(fifo[1], bytes([signal.SIGKILL]))
    assert process.wait(timeout=60) == 137


def test_a_lab_site_is_known_by_its_marker(tmp_path: Path) -> None:
    assert not remote.is_lab_site(tmp_path)
    (tmp_path / remote.MARKER).write_text('{"deploy": "cloudctl-lab-no-such"}')
    assert remote.is_lab_site(tmp_path)


def test_an_absent_deploy_node_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / remote.MARKER).write_text('{"deploy": "cloudctl-lab-no-such"}')
    monkeypatch.setattr(remote, "podman", lambda: ("false",))
    with pytest.raises(CloudctlError) as caught:
        remote.reexec(["status"], tmp_path)
    assert caught.value.exit_code == 5


def test_who_typed_it_travels_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / remote.MARKER).write_text('{"deploy": "some-node"}')
    program = tmp_path / "podman"
    program.write_text('#!/bin/sh\n[ "$1" = exec ] || exec echo true\nprintf "%s\\n" "$@" >"$0.said"\n')
    program.chmod(0o700)
    monkeypatch.setattr(remote, "podman", lambda: (str(program),))
    monkeypatch.setenv("SUDO_USER", "kim")
    monkeypatch.delenv("CLOUDCTL_CALLER", raising=False)
    assert remote.reexec(["status"], tmp_path) == 0
    said = (tmp_path / "podman.said").read_text().splitlines()
    assert f"--env=CLOUDCTL_CALLER=kim@{socket.gethostname()}" in said


@pytest.mark.parametrize(("role", "expected"), [("deploy\n", True), ("control\n", False), (None, False)])
def test_inside_deploy_node(
    role: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "role"
    if role is not None:
        file.write_text(role)
    monkeypatch.setattr(remote, "_ROLE", file)
    assert remote.inside_deploy_node() is expected
