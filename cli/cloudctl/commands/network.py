"""``cloudctl network``: whether the nodes reach each other."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloudctl.console import Console, output_option
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, merge_nodes
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site


@click.group()
def command() -> None:
    """Look at the nodes' networks."""


@command.command("check")
@output_option
@click.pass_obj
def check_command(site_path: Path, output: str) -> None:
    """Ping all pairs of nodes on every network, at full MTU and without fragmentation.

    Names each failing pair and what most likely is behind it. Ends with 4 when a pair fails, with 5 when
    only nodes are not reachable by SSH.
    """
    from cloudctl.netcheck.collect import ping_all
    from cloudctl.netcheck.pairs import culprits, failures

    site = load_site(site_path, with_secrets=False)
    console = Console(output)
    with RunRecord(site_path, "network", sys.argv[1:]) as record:
        answers, silent = ping_all(site)
        # A node that could not be asked is told as such; that it does not answer pings is no news.
        asked = {
            node: [peer for peer in peers if peer["node"] not in silent] for node, peers in answers.items()
        }
        failing, causes = failures(asked), culprits(asked)
        networks: dict[str, dict[str, int]] = {}
        for peers in asked.values():
            for peer in peers:
                count = networks.setdefault(peer["network"], {"mtu": 0, "pairs": 0, "passed": 0})
                count["mtu"] = max(count["mtu"], int(peer["mtu"]))
                count["pairs"] += 1
                count["passed"] += bool(peer["full"])
        errors: list[CloudctlError] = [
            CheckFailed(
                f"network-{cause.kind}",
                f"network {cause.network}: {cause.detail}",
                where=cause.node or None,
                hint={
                    "mtu": "set the MTU on the node's port, and on every switch port between the nodes",
                    "cut": "check cable, switch port and VLAN; 'ip address' on the node",
                    "unconfigured": "'cloudctl deploy' configures the nodes' ports",
                }[cause.kind],
            )
            for cause in causes
        ]
        errors += merge_nodes(silent.values())

        def text() -> None:
            console.table(
                ("NETWORK", "MTU", "PINGS", "PASSED"),
                [(name, count["mtu"], count["pairs"], count["passed"]) for name, count in networks.items()],
            )
            for failure in failing:
                console.line(f"{console.style('failed', 'bad')} {failure}")

        console.result(
            {
                "healthy": not errors,
                "networks": networks,
                "failures": [vars(failure) for failure in failing],
                "errors": [error.as_dict() for error in errors],
            },
            text,
        )
        for failure in failing:
            record.log(str(failure))
        if errors:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
