"""``cloudctl check``: what would keep a deploy from working."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloudctl.console import Console, Masker, output_option
from cloudctl.errors import MultiError
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site


@click.command()
@output_option
@click.pass_obj
def command(site_path: Path, output: str) -> None:
    """Check all nodes before a deploy: reachability, system, clock, disks, network, registry, OSD devices.

    Changes nothing and tells everything that it finds. Ends with 4 when something would keep a deploy from
    working, with 5 when nodes are not reachable and nothing else is wrong.
    """
    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    with RunRecord(site_path, "check", sys.argv[1:], mask=masker.mask) as record:
        # Loading these takes a second: not for a command line that is wrong.
        from cloudctl.checks.collect import check

        checked = check(site)
        errors = checked.errors

        def text() -> None:
            for finding in checked.warnings:
                console.line(f"{console.style('warning', 'warn')}[{finding.ref}]: {finding.message}")
                console.line(f"   at: {finding.node}")
                if finding.hint:
                    console.line(f"  try: {finding.hint}")
            if errors:
                console.line(
                    f"{len(errors)} of the checks on {len(site.nodes)} nodes failed; nothing was changed."
                )
            else:
                console.line(f"All checks passed on {checked.nodes} nodes.")

        console.result(
            {
                "healthy": not errors,
                "nodes": checked.nodes,
                "errors": [error.as_dict() for error in errors],
                "warnings": [finding.as_dict() for finding in checked.warnings],
            },
            text,
        )
        for finding in checked.warnings:
            record.log(f"warning[{finding.ref}] {finding.node}: {finding.message}")
        if errors:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
