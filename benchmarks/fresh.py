#!/usr/bin/env python3
"""Where the time of a deploy goes: seconds for each play, from the record of a run.

Reads the last recorded deploy that changed anything (or the one named), or runs ``cloudctl deploy --yes``
first when told to. For each play: when it began, how long it took, its slowest node; and which part of the
time no task ran at all.

    python benchmarks/fresh.py --site DIR [--run ID | --deploy] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import measure

from cloudctl.runs.record import Run, find_run, list_runs

AIM = 40 * 60
"""Seconds at most for everything from nothing on 4 cores: images, lab, deploy, verify."""


def choose(site: Path, wanted: str | None) -> Run:
    """Return the run to look at.

    Raises:
        SystemExit: no deploy that changed anything is recorded.
    """
    if wanted:
        return find_run(site, wanted)
    for run in list_runs(site):
        if run.verb == "deploy" and run.changed and run.ended:
            return run
    raise SystemExit(f"{site}: no deploy that changed anything is recorded")


def phases(events: Sequence[Mapping[str, Any]], started: datetime) -> list[dict[str, Any]]:
    """Return the plays in their order.

    Args:
        events: the run's events: when each task of each node ended, and how long it took.
        started: when the run began.

    Returns:
        For each play: ``play``, ``begin`` and ``seconds`` (from its first task's begin to its last task's
        end), ``nodes``, ``slowest`` (node) and ``slowest_seconds``, ``failed``. A play that comes again
        (the plan is made once before the question and once after it) comes again here.
    """
    found: list[dict[str, Any]] = []
    for event in events:
        if "play" not in event or event.get("seconds") is None:
            continue
        end = (datetime.fromisoformat(str(event["at"])) - started).total_seconds()
        seconds = float(event["seconds"])
        if not found or found[-1]["play"] != event["play"]:
            found.append(
                {"play": event["play"], "begin": end - seconds, "end": end, "by_node": {}, "failed": 0}
            )
        play = found[-1]
        play["begin"] = min(play["begin"], end - seconds)
        play["end"] = max(play["end"], end)
        play["by_node"][event["node"]] = play["by_node"].get(event["node"], 0.0) + seconds
        play["failed"] += event["result"] != "runner_on_ok"
    rows = []
    for play in found:
        slowest = max(play["by_node"], key=play["by_node"].__getitem__)
        rows.append(
            {
                "play": play["play"],
                "begin": round(play["begin"], 1),
                "seconds": round(play["end"] - play["begin"], 1),
                "nodes": len(play["by_node"]),
                "slowest": slowest,
                "slowest_seconds": round(play["by_node"][slowest], 1),
                "failed": play["failed"],
            }
        )
    return rows


def report(run: Run) -> dict[str, Any]:
    """Return the numbers of one run."""
    rows = phases(run.events(), datetime.fromisoformat(run.started))
    total = run.seconds or 0.0
    return {
        "run": run.id,
        "result": run.result,
        "seconds": total,
        "changed": len(run.changed),
        "plays": rows,
        "in_tasks": round(_covered([(row["begin"], row["begin"] + row["seconds"]) for row in rows]), 1),
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    total, reached = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write JSON when asked; 1 when the run took longer than the aim for all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, default=os.environ.get("CLOUDCTL_SITE", "."))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", help="id of a recorded run, its beginning, or `last`")
    which.add_argument(
        "--deploy", action="store_true", help="run cloudctl deploy --yes first: changes the cloud"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args(argv)
    site = Path(arguments.site).absolute()
    if arguments.deploy:
        command = [sys.executable, "-m", "cloudctl", "--site", str(site), "deploy", "--yes"]
        subprocess.run(command, env=measure.command_environment(), check=True)
    found = report(choose(site, "last" if arguments.deploy else arguments.run))
    print(f"{found['run']}: {found['result']}, {found['seconds']:.1f} s, {found['changed']} changes\n")
    keys = ("play", "begin", "seconds", "nodes", "slowest", "slowest_seconds")
    header = ("play", "begin s", "seconds", "nodes", "slowest node", "its seconds")
    print(measure.table(header, [[row[key] for key in keys] for row in found["plays"]]))
    around = found["seconds"] - found["in_tasks"]
    print(f"\nin plays {found['in_tasks']:.1f} s, between and around them {around:.1f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(found["seconds"] > AIM)


if __name__ == "__main__":
    sys.exit(main())
