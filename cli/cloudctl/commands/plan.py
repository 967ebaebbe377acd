"""``cloudctl plan``: what ``deploy`` would change, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloudctl.commands import deploy
from cloudctl.console import Console, Masker, output_option
from cloudctl.engine import plan as planning
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site


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
    site = load_site(site_path)
    deploy.check_selection(site, services, nodes)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    with SiteLock(site_path, "plan"), RunRecord(site_path, "plan", sys.argv[1:], mask=masker.mask) as record:
        made = deploy.make_plan(site_path, services, nodes, deploy.Progress(console, record))

    def text() -> None:
        for line in planning.describe(made, diff=not no_diff):
            console.line(line)
        console.line(f"Plan: {planning.summary(made)}.")

    console.result(made, text)
