#!/usr/bin/env python3
"""What ``cloudctl deploy --yes`` costs on a cloud that is as its site describes it.

Runs it several times and reports time and controller CPU; then once more through a counting SSH, which
reports commands and bytes on the wire for each node (slower, so its time does not count). Never changes
anything: it stops when there is anything to change. On a lab's site, which only the lab's deploy node can
reach, it moves there by itself.

    python benchmarks/noop.py --site DIR [--runs N] [--json FILE]
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure

AIMS = {"wall": 8.0, "most": 15.0, "commands": 12, "mib": 2.0}
"""Seconds (aim, and at most) for the full lab on 4 cores; SSH commands and MiB for each node."""

_WRAPPERS = Path(__file__).resolve().parent / "wrappers"
_WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"


def cloudctl(site: Path, *words: str) -> list[str]:
    """Return the command line of cloudctl: the lab's own in a lab's deploy node, else this checkout's."""
    from cloudctl.lab import remote

    # The lab's knows where byte code is kept, which the checkout's can't be there.
    start = ["/usr/local/bin/cloudctl"] if remote.inside_deploy_node() else [sys.executable, "-m", "cloudctl"]
    return [*start, "--site", str(site), *words]


def deploy(site: Path, environment: Mapping[str, str], verb: str = "deploy") -> measure.Measured:
    """Run a deploy that has nothing to do.

    It goes without ``--yes`` and without a terminal: where nothing is to be changed it is the same, and
    else it refuses.

    Raises:
        SystemExit: it failed, or the cloud is not as its site describes it.
    """
    run = measure.run(cloudctl(site, verb, "--output", "json"), environment)
    if run.rc != 0:
        raise SystemExit(f"exit code {run.rc}\n{run.stdout}\n{run.stderr}")
    return run


def host_of(arguments: Sequence[str]) -> str | None:
    """Return the host of an ``ssh`` command line; None where it names none (``ssh -V``)."""
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-") or word == "-":
            return word.rpartition("@")[2]
        if word[1] in _WITH_VALUE and len(word) == 2:
            next(rest, None)
    return None


def tally(directory: Path) -> dict[str, dict[str, int]]:
    """Return, by address, what the counting SSH noted: commands, connections, bytes sent and received."""
    found: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"commands": 0, "connections": 0, "sent": 0, "received": 0}
    )
    for file in directory.glob("call.*"):
        _, *arguments = file.read_text(errors="replace").split("\0")[:-1]
        host = host_of(arguments)
        if host:
            found[host]["commands"] += 1
    for file in directory.glob("bytes.*"):
        host = file.name.removeprefix("bytes.").rpartition(".")[0]
        sent, received = file.read_text().split()
        found[host]["connections"] += 1
        found[host]["sent"] += int(sent)
        found[host]["received"] += int(received)
    return dict(found)


def count(site: Path, verb: str) -> dict[str, dict[str, int]]:
    """Run a deploy through the counting SSH; return what each node's address got."""
    with tempfile.TemporaryDirectory(prefix="cloudctl-noop-") as directory:
        extra = {
            "CLOUDCTL_BENCH_SSH": directory,
            "CLOUDCTL_BENCH_PYTHON": sys.executable,
            "CLOUDCTL_BENCH_COUNT": str(_WRAPPERS / "count.py"),
            **{
                f"ANSIBLE_{tool.upper()}_EXECUTABLE": str(_WRAPPERS / tool) for tool in ("ssh", "sftp", "scp")
            },
        }
        deploy(site, measure.command_environment(extra), verb)
        return tally(Path(directory))


def report(site: Path, runs: int, verb: str) -> dict[str, Any]:
    """Measure everything."""
    from cloudctl.site.load import load_site

    nodes = {node.address: node.name for node in load_site(site, with_secrets=False).nodes.values()}
    measured = []
    for number in range(runs):
        print(f"run {number + 1} of {runs} …", file=sys.stderr, flush=True)
        measured.append(deploy(site, measure.command_environment(), verb))
    print("counting SSH …", file=sys.stderr, flush=True)
    counted = count(site, verb)
    middle = sorted(measured, key=lambda run: run.wall)[len(measured) // 2]
    return {
        "verb": verb,
        "nodes": len(nodes),
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "runs": [run.numbers() for run in measured],
        "wall": measure.spread(run.wall for run in measured),
        "cpu": measure.spread(run.cpu for run in measured),
        "cpu_ms_per_node": round(1000 * middle.cpu / len(nodes), 1),
        "process_mib": round(middle.process_mib, 1),
        "ssh": {nodes.get(address, address): numbers for address, numbers in sorted(counted.items())},
    }


def show(found: Mapping[str, Any]) -> int:
    """Print the tables; return 1 when an aim is missed."""
    wall, cpu = found["wall"], found["cpu"]
    where = (
        f"cloudctl {found['verb']}: {found['nodes']} nodes, {found['cores']} cores, load {found['load'][0]}"
    )
    print(f"{where}, {len(found['runs'])} runs\n")
    print(
        measure.table(
            ("", "median", "min", "max", "aim"),
            [
                ("seconds", wall["median"], wall["min"], wall["max"], f"{AIMS['wall']:.0f}"),
                ("controller CPU seconds", cpu["median"], cpu["min"], cpu["max"], ""),
            ],
        )
    )
    print(f"controller CPU for each node: {found['cpu_ms_per_node']} ms\n")
    rows = [
        (
            name,
            item["commands"],
            item["connections"],
            *(f"{item[way] / 1024:.1f}" for way in ("sent", "received")),
        )
        for name, item in found["ssh"].items()
    ]
    print(measure.table(("node", "SSH commands", "connections", "KiB sent", "KiB received"), rows))
    most_commands = max((item["commands"] for item in found["ssh"].values()), default=0)
    most = max((item["sent"] + item["received"] for item in found["ssh"].values()), default=0) / 2**20
    aims = f"(aims {AIMS['commands']} and {AIMS['mib']})"
    print(f"\nmost for a node: {most_commands} commands, {most:.2f} MiB {aims}")
    return int(wall["median"] > AIMS["most"] or most_commands > AIMS["commands"] or most > AIMS["mib"])


def moved(site: Path, runs: int, verb: str) -> dict[str, Any] | None:
    """Measure in the lab's deploy node where the site is a lab's; None where it is to be done here."""
    from cloudctl.lab import remote

    if not remote.is_lab_site(site) or remote.inside_deploy_node():
        return None
    container = json.loads((site / remote.MARKER).read_text())["deploy"]
    there = ["/opt/venv/bin/python", "/opt/cloudctl/benchmarks/noop.py"]
    words = ["--site", str(site), "--runs", str(runs), "--verb", verb, "--json", "-"]
    run = subprocess.run(["podman", "exec", container, *there, *words], stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        raise SystemExit(run.returncode)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON when asked; 1 when an aim is missed."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, default=os.environ.get("CLOUDCTL_SITE", "."))
    parser.add_argument("--runs", type=int, default=5, help="timed runs")
    parser.add_argument(
        "--verb",
        choices=("deploy", "plan"),
        default="deploy",
        help="plan reads the same, and goes on where there is something to change",
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file; - instead of the tables")
    arguments = parser.parse_args(words)
    site = arguments.site.absolute()
    found = moved(site, arguments.runs, arguments.verb) or report(site, arguments.runs, arguments.verb)
    if arguments.json and str(arguments.json) == "-":
        print(json.dumps(found, indent=1))
        return 0
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return show(found)


if __name__ == "__main__":
    sys.exit(main())
