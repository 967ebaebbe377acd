"""Run records and the site lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudctl.errors import ApplyFailed, LockHeld, UsageError
from cloudctl.runs.lock import SiteLock, caller
from cloudctl.runs.record import RunRecord, find_run, list_runs, mask_arguments, read_run

CLI = str(Path(__file__).resolve().parents[2] / "cli")


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code that prints a line once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": CLI},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_lock_is_free_again_after_use(tmp_path: Path) -> None:
    with SiteLock(tmp_path, "deploy"):
        pass
    with SiteLock(tmp_path, "deploy"):
        pass
    assert (tmp_path / ".cloudctl").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".cloudctl" / "lock").stat().st_mode & 0o777 == 0o600


def test_second_run_is_told_who_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDCTL_CALLER", "kim@desk")
    with SiteLock(tmp_path, "deploy"), pytest.raises(LockHeld) as refused, SiteLock(tmp_path, "plan"):
        pass
    assert "kim@desk runs 'deploy'" in refused.value.message
    assert str(os.getpid()) in refused.value.message
    assert refused.value.exit_code == 8


def test_a_job_of_awx_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDCTL_CALLER", raising=False)
    monkeypatch.setenv("AWX_HOST", "https://awx.example")
    monkeypatch.setenv("JOB_ID", "42")
    assert caller().startswith("awx-job-42@")


def test_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    process = child(
        "import sys,time,pathlib,subprocess\n"
        "from cloudctl.runs.lock import SiteLock, caller\n"
        "SiteLock(pathlib.Path(sys.argv[1]), 'deploy').acquire()\n"
        "subprocess.Popen(['sleep', '3'])\n"  # a child left behind must not keep the lock
        "print('ready', flush=True); time.sleep(60)\n",
        tmp_path,
    )
    with pytest.raises(LockHeld):
        SiteLock(tmp_path, "plan").acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with SiteLock(tmp_path, "plan"):
        pass


def test_record_of_a_good_run(tmp_path: Path) -> None:
    with RunRecord(tmp_path, "deploy", ["deploy", "--yes"]) as record:
        record.event({"task": "write files", "node": "ctl01"})
        record.log("ctl01: 3 files written")
        record.changed([{"node": "ctl01", "what": "nova.conf", "action": "write"}])
        assert list_runs(tmp_path)[0].result == "running"
    run = find_run(tmp_path, "last")
    assert (run.verb, run.result, run.exit_code) == ("deploy", "ok", 0)
    assert run.command == "cloudctl deploy --yes"
    assert run.changed == [{"node": "ctl01", "what": "nova.conf", "action": "write"}]
    assert run.events()[0]["node"] == "ctl01"
    assert run.log_text() == "ctl01: 3 files written\n"
    assert run.seconds is not None and run.seconds >= 0
    for path in record.path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert record.path.stat().st_mode & 0o777 == 0o700


def test_record_of_a_failed_run_keeps_the_error(tmp_path: Path) -> None:
    with pytest.raises(ApplyFailed), RunRecord(tmp_path, "deploy", ["deploy"]):
        raise ApplyFailed("container-unhealthy", "nova_api is not healthy", where="ctl02")
    run = list_runs(tmp_path)[0]
    assert (run.result, run.exit_code) == ("failed", 6)
    assert run.message is not None and "container-unhealthy" in run.message and "ctl02" in run.message


def test_record_of_an_interrupted_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunRecord(tmp_path, "deploy", ["deploy"]):
        raise KeyboardInterrupt
    assert (list_runs(tmp_path)[0].result, list_runs(tmp_path)[0].exit_code) == ("interrupted", 130)


def test_killed_run_shows_as_interrupted(tmp_path: Path) -> None:
    process = child(
        "import sys,time,pathlib\n"
        "from cloudctl.runs.record import RunRecord\n"
        "record = RunRecord(pathlib.Path(sys.argv[1]), 'deploy', ['deploy'])\n"
        "record.event({'phase': 'identity'})\n"
        "print('ready', flush=True); time.sleep(60)\n",
        tmp_path,
    )
    assert list_runs(tmp_path)[0].result == "running"
    process.kill()
    process.wait()
    run = list_runs(tmp_path)[0]
    assert run.result == "interrupted"
    assert run.events()[0]["phase"] == "identity"


def test_nothing_secret_reaches_the_record(tmp_path: Path) -> None:
    canary = "c4n4ry-of-a-secret"

    def mask(text: str) -> str:
        return text.replace(canary, "***")

    with RunRecord(tmp_path, "deploy", ["deploy", "-e", f"x={canary}"], mask=mask) as record:
        record.event({"task": {"argument": [canary, {canary: Path(canary)}]}})
        record.log(f"said {canary}")
        record.changed([{"diff": canary}])
        record.finish("failed", 6, changed=[f"password {canary}"], message=canary)
    for path in record.path.iterdir():
        assert canary not in path.read_text()
    assert len(read_run(record.path).as_dict()["changed"]) == 2  # type: ignore[union-attr,arg-type]


def test_secret_options_are_hidden_on_the_command_line() -> None:
    assert mask_arguments(["user", "--password", "x", "--name", "y"]) == [
        "user", "--password", "********", "--name", "y",
    ]  # fmt: skip
    assert mask_arguments(["--os-token=x"]) == ["--os-token=********"]
    assert mask_arguments(["--password-prompt", "--yes"]) == ["--password-prompt", "--yes"]
    assert mask_arguments(["--vault-password-file", "f"]) == ["--vault-password-file", "f"]


def test_newest_run_first_and_broken_records_are_skipped(tmp_path: Path) -> None:
    for verb in ("check", "deploy"):
        with RunRecord(tmp_path, verb, [verb]):
            pass
        time.sleep(0.01)
    broken = tmp_path / ".cloudctl" / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert [run.verb for run in list_runs(tmp_path)] == ["deploy", "check"]


def test_finding_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        find_run(tmp_path, "last")
    ids = []
    for verb in ("check", "deploy"):
        with RunRecord(tmp_path, verb, [verb]) as record:
            ids.append(record.id)
    assert find_run(tmp_path, ids[0]).verb == "check"
    assert find_run(tmp_path, ids[1][:-2]).verb == "deploy"
    with pytest.raises(UsageError, match="2 runs begin"):
        find_run(tmp_path, "20")
    with pytest.raises(UsageError, match="no run"):
        find_run(tmp_path, "nothing")


def test_end_is_written_once(tmp_path: Path) -> None:
    with RunRecord(tmp_path, "deploy", ["deploy"]) as record:
        record.finish("failed", 6)
        record.event({"late": True})
    assert json.loads((record.path / "run.json").read_text())["exit_code"] == 6
