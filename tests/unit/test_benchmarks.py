"""The benchmarks' own logic: what they count, and the sites that they make up."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudctl.site.load import load_site

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

fresh, measure, noop, scale = map(importlib.import_module, ("fresh", "measure", "noop", "scale"))


@pytest.mark.parametrize(
    ("words", "host"),
    [
        (["-V"], None),
        (["-o", "ControlPersist"], None),
        (["-C", "-o", "User=root", "-p", "22", "10.0.0.1", "/bin/sh -c 'echo 10.0.0.9'"], "10.0.0.1"),
        (["-tt", "-oPort=22", "root@10.0.0.2"], "10.0.0.2"),
    ],
)
def test_host_of(words: list[str], host: str | None) -> None:
    assert noop.host_of(words) == host


def test_counting_ssh_counts_both_ways(tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = server.accept()
        with peer:
            while peer.recv(65536):
                pass
            peer.sendall(b"y" * 1000)

    threading.Thread(target=answer, daemon=True).start()
    port = str(server.getsockname()[1])
    program = [sys.executable, str(BENCHMARKS / "wrappers" / "count.py"), str(tmp_path), "127.0.0.1", port]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b"x" * 200000)
    child.stdin.flush()
    while not any(path.read_text().split()[:1] == ["200000"] for path in tmp_path.glob("bytes.*")):
        assert child.poll() is None
    child.stdin.close()
    child.wait(10)
    (tmp_path / "call.a").write_text("ssh\0-o\0x=y\0" + "127.0.0.1\0true\0")
    (tmp_path / "call.b").write_text("ssh\0-V\0")
    found = noop.tally(tmp_path)
    assert found["127.0.0.1"]["sent"] == 200000
    assert (found["127.0.0.1"]["commands"], found["127.0.0.1"]["connections"]) == (1, 1)
    server.close()


def test_phases_of_a_run() -> None:
    def event(
        at: int, play: str, node: str, seconds: float, result: str = "runner_on_ok"
    ) -> dict[str, object]:
        return {
            "at": f"2026-01-01T00:00:{at:02d}+00:00", "play": play, "node": node,
            "seconds": seconds, "result": result,
        }  # fmt: skip

    events = [
        event(3, "Plan", "a", 1),
        event(10, "Phase", "a", 4),
        event(12, "Phase", "b", 7, "runner_on_failed"),
        event(13, "Plan", "a", 1),
    ]
    rows = fresh.phases(events, datetime(2026, 1, 1, tzinfo=UTC))
    assert [(row["play"], row["begin"], row["seconds"]) for row in rows] == [
        ("Plan", 2, 1), ("Phase", 5, 7), ("Plan", 12, 1),
    ]  # fmt: skip
    assert (rows[1]["slowest"], rows[1]["nodes"], rows[1]["failed"]) == ("b", 2, 1)


def test_growth_of_a_linear_cost_is_one() -> None:
    rows = [{"nodes": nodes, "cpu": 0.05 * nodes} for nodes in (10, 100, 1000)]
    assert [step["cpu_exponent"] for step in scale.growth(rows)] == [1.0, 1.0]


def test_made_site_is_valid(tmp_path: Path) -> None:
    scale.make_site(tmp_path, 300)
    site = load_site(tmp_path)
    assert len(site.nodes) == 300
    assert len(site.group("control")) == 3
    with pytest.raises(ValueError, match="at least 8"):
        scale.inventory(7)


def test_measure_counts_processes_that_outlive_the_command() -> None:
    burn = (
        "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    )
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {burn!r}], start_new_session=True)\n"
        "time.sleep(1.5)\nprint('over')"
    )
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import measure, os\n" + (
        f"run = measure.run([sys.executable, '-c', {code!r}], dict(os.environ))\n"
        "print(run.rc, run.stdout.strip(), run.cpu > 0.3, run.wall < 30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.split() == ["0", "over", "True", "True"], done.stderr


def test_table_is_in_columns() -> None:
    assert measure.table(("name", "n"), [("a", 1), ("bcd", 100)]) == "name    n\na       1\nbcd   100"
