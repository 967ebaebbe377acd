"""``cloudctl plan``: what ``deploy`` would change, and why."""

from __future__ import annotations

from pathlib import Path

import click

from cloudctl.console import output_option
from cloudctl.engine import plan as planning
from cloudctl.engine.opening import opening


@click.command()
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only this service (repeatable).")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only this node (repeatable).")
@click.option("--no-diff", is_flag=True, help="Leave out the differences inside files.")
@output_option
@click.pass_obj
def command(
    site_path: Path, services: tuple[str, ...], nodes: tuple[str, ...], no_diff: bool, output: str
) -> None:
    """Show what deploy would change: files, containers, jobs, registrations, Ceph, each with its reason.

    Changes nothing.
    """
    with opening("plan", site_path, services, nodes, output) as run:
        made = run.read()

    def text() -> None:
        for line in planning.describe(made, diff=not no_diff):
            run.console.line(line)
        run.console.line(f"Plan: {planning.summary(made)}.")

    run.console.result(made, text)
