#!/usr/bin/env python3
"""What a run without changes costs the controller with 10, 100 and 1,000 nodes that answer at once.

A site of that many nodes is generated, and ``cloudctl deploy --yes`` runs on it as it is: it loads,
validates and renders the site and runs the real playbook through Ansible. Only the connection to the
nodes is the benchmark's own (``plugins/connection/instant.py``): it takes each module and answers at
once that nothing differs. SSH's own cost is therefore not in these numbers; ``noop.py`` has it.

    python benchmarks/scale.py [10 100 1000] [--repeat N] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import yaml

AIMS = {100: 20.0, 1000: 150.0}
"""Seconds at most, by number of nodes, on 4 cores."""

_SECOND_OCTET = {"management": 100, "tenant": 101, "storage": 102, "replication": 103, "api": 104}


def inventory(count: int) -> dict[str, Any]:
    """Return an inventory of ``count`` nodes: a deploy node, 3 controllers, storage, computes.

    Raises:
        ValueError: fewer than 8 nodes are no such cloud.
    """
    if count < 8:
        raise ValueError("at least 8 nodes: deploy, 3 controllers, 3 storage, 1 compute")
    storage = max(3, count // 50)
    roles = ["deploy", *["control"] * 3, *["storage"] * storage]
    roles += ["compute"] * (count - len(roles))
    groups: dict[str, Any] = {
        name: {"hosts": {}} for name in ("deploy", "control", "compute", "storage", "newnodes")
    }
    for number, role in enumerate(roles, 10):
        name = f"{role}{len(groups[role]['hosts']) + 1:04d}"
        variables: dict[str, Any] = {"ansible_host": f"10.100.{number // 250}.{number % 250 + 1}"}
        if role == "storage":
            variables.update(
                devices=["/dev/sdb", "/dev/sdc"], journal_devices=["/dev/nvme0n1p1", "/dev/nvme0n1p2"]
            )
        groups[role]["hosts"][name] = variables
    groups["mons"] = {"children": {"control": {}}}
    return {"all": {"children": groups}}


def make_site(path: Path, count: int) -> None:
    """Write a valid site of ``count`` nodes, secrets included."""
    from cloudctl.engine.definitions import load_services
    from cloudctl.site.secrets import generate

    networks: dict[str, Any] = {
        name: {"cidr": f"10.{octet}.0.0/16", "mtu": 9000 if name in ("tenant", "replication") else 1500}
        for name, octet in _SECOND_OCTET.items()
    }
    networks["external"] = {
        "cidr": "10.105.0.0/16", "gateway": "10.105.0.1", "pool": ["10.105.1.1", "10.105.1.200"],
    }  # fmt: skip
    images = {container.image for service in load_services() for container in service.containers} | {"ceph"}
    documents = {
        "inventory/hosts.yml": inventory(count),
        "inventory/group_vars/all.yml": {
            "ansible_connection": "instant",
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
        },
        "networks.yml": {"networks": networks},
        "settings.yml": {
            "cloud": {"name": "scale"},
            "vip": {"internal": "10.100.255.250", "external": "10.104.255.250"},
        },
        "images.lock.json": {
            name: {"reference": f"10.100.0.11:5000/cloudctl/{name}@sha256:{0:064d}", "tag": "x", "size": 1}
            for name in sorted(images)
        },
    }
    for name, document in documents.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document) if name.endswith(".json") else yaml.safe_dump(document, sort_keys=False)
        file.write_text(text, encoding="utf-8")
    generate(path)


def measure_nodes(count: int, repeat: int, *, sample: bool = True) -> dict[str, Any]:
    """Measure runs without changes on ``count`` nodes; return the numbers of the median run."""
    with tempfile.TemporaryDirectory(prefix="cloudctl-scale-") as directory:
        site, tally = Path(directory) / "site", Path(directory) / "tally"
        make_site(site, count)
        environment = measure.command_environment(
            {
                "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).resolve().parent / "plugins" / "connection"),
                "ANSIBLE_PIPELINING": "1",  # ansible.cfg says so to the SSH plugin alone
                "CLOUDCTL_BENCH_TALLY": str(tally),
            }
        )
        runs = []
        for _ in range(repeat):
            tally.unlink(missing_ok=True)
            run = measure.run(
                [
                    sys.executable,
                    "-m",
                    "cloudctl",
                    "--site",
                    str(site),
                    "deploy",
                    "--yes",
                    "--output",
                    "json",
                ],
                environment,
                sample=1.0 if sample else None,
            )
            if run.rc != 0 or "nothing to change" not in run.stdout:
                raise SystemExit(f"{count} nodes: exit code {run.rc}\n{run.stdout}\n{run.stderr}")
            runs.append(run)
        calls = [line.split() for line in tally.read_text(encoding="utf-8").splitlines()]
    asked = {call[0] for call in calls}
    if len(asked) != count:
        raise SystemExit(f"{count} nodes: only {len(asked)} were asked")
    middle = sorted(runs, key=lambda item: item.wall)[len(runs) // 2]
    return {
        "nodes": count,
        **middle.numbers(),
        "walls": measure.spread(run.wall for run in runs),
        "cpu": round(middle.cpu, 3),
        "cpu_ms_per_node": round(1000 * middle.cpu / count, 1),
        "wall_ms_per_node": round(1000 * middle.wall / count, 1),
        "calls_per_node": round(len(calls) / count, 2),
        "kib_sent_per_node": round(sum(int(call[2]) for call in calls) / count / 1024, 1),
        "aim": AIMS.get(count),
    }


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, between neighbours, the exponent with which CPU grows with the nodes (1 is linear)."""
    found = []
    for small, large in itertools.pairwise(rows):
        ratio = math.log(large["nodes"] / small["nodes"])
        found.append(
            {
                "from": small["nodes"],
                "to": large["nodes"],
                "cpu_exponent": round(math.log(large["cpu"] / small["cpu"]) / ratio, 2),
                "marginal_cpu_ms_per_node": round(
                    1000 * (large["cpu"] - small["cpu"]) / (large["nodes"] - small["nodes"]), 1
                ),
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON when asked; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nodes", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--repeat", type=int, default=1, help="runs for each number of nodes")
    parser.add_argument("--no-sample", action="store_true", help="do not sample the memory of all processes")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args(argv)
    rows = []
    for count in sorted(set(arguments.nodes)):
        print(f"{count} nodes …", file=sys.stderr, flush=True)
        rows.append(measure_nodes(count, arguments.repeat, sample=not arguments.no_sample))
    steps = growth(rows)
    header = ("nodes", "wall s", "aim s", "user s", "system s", "CPU ms/node", "process MiB", "all MiB",
              "calls/node", "KiB/node")  # fmt: skip
    print(
        measure.table(
            header,
            [
                (
                    row["nodes"], f"{row['wall']:.1f}", row["aim"] or "", f"{row['user']:.1f}",
                    f"{row['system']:.1f}", row["cpu_ms_per_node"], f"{row['process_mib']:.0f}",
                    f"{row['tree_mib']:.0f}", row["calls_per_node"], row["kib_sent_per_node"],
                )
                for row in rows
            ],
        )
    )  # fmt: skip
    for step in steps:
        print(
            f"from {step['from']} to {step['to']} nodes: CPU grows with exponent {step['cpu_exponent']}"
            f" (1 is linear), {step['marginal_cpu_ms_per_node']} ms for each node more"
        )
    if arguments.json:
        document = {"cores": os.cpu_count(), "python": sys.version.split()[0], "rows": rows, "growth": steps}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(row["aim"] is not None and row["wall"] > row["aim"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
