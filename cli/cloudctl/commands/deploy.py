"""``cloudctl deploy``: bring the cloud to what the site describes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, duration, output_option
from cloudctl.engine import plan as planning
from cloudctl.engine.opening import Opening, check_selection, opening
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, UsageError
from cloudctl.site.model import Site

__all__ = ["check_selection", "command"]

FRESH = 60.0
"""Seconds for which a plan counts: a question answered later than that is asked again of the nodes."""


def refuse(made: Mapping[str, Any]) -> None:
    """Refuse a plan that names OSD devices which must not be touched, before anything is changed.

    Raises:
        CheckFailed, MultiError: a device is not empty, is mounted, or cannot be judged.
    """
    errors: list[CloudctlError] = []
    for change in made["ceph"]:
        if change["action"] == "refuse" and change["kind"] == "pool":
            errors.append(
                CheckFailed(
                    "ceph-pool-class",
                    f"the pool {change['name']} can't be placed by class: {change['reason']}",
                    where="settings.yml",
                    hint="add OSDs of that class (cloudctl osd add --class), or another class",
                )
            )
        elif change["action"] == "refuse":
            node, _colon, device = str(change["name"]).partition(":")
            errors.append(
                CheckFailed(
                    "osd-device-refused",
                    f"{device} cannot be used for an OSD: {change['reason']}",
                    where=node,
                    hint="name an empty device in the inventory; if its data may go, wipe it yourself "
                    "(wipefs, or ceph-volume lvm zap): cloudctl never does",
                )
            )
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


def agree(run: Opening, made: dict[str, Any]) -> dict[str, Any]:
    """Ask whether to do this plan; return the one that was agreed to.

    Whoever answers late is not held to what was true earlier: the nodes are read again, and what is another
    plan by then is shown and asked about anew.

    Raises:
        click.Abort: no.
    """
    while True:
        for line in planning.describe(made, diff=False):
            run.console.progress(line)
        asked = time.monotonic()
        click.confirm("Do this?", abort=True, err=True)
        if time.monotonic() - asked < FRESH:
            return made
        run.progress.line("the plan is not fresh any more: reading every node again")
        again = run.read()
        refuse(again)
        if not again["changes"] or planning.same(made, again):
            return again
        made = again
        run.progress.line(f"the cloud has changed since the plan was shown: {planning.summary(made)}")


@click.command()
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only this service (repeatable).")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only this node (repeatable).")
@click.option("--yes", is_flag=True, help="Do not ask before changing anything.")
@output_option
@click.pass_obj
def command(
    site_path: Path, services: tuple[str, ...], nodes: tuple[str, ...], yes: bool, output: str
) -> None:
    """Bring the cloud to what the site describes.

    Shows the plan's summary, then does it. Run again, it changes nothing and says so; interrupted at any
    point, running it again goes on.
    """
    started = time.monotonic()
    with opening("deploy", site_path, services, nodes, output) as run:
        run.progress.line("reading every node")
        made = run.read()
        run.progress.line(f"plan: {planning.summary(made)}")
        for note in made.get("notes") or ():
            run.progress.line(f"note: {note}")
        refuse(made)
        changed: list[dict[str, Any]] = []
        if made["changes"] and not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    "confirmation-needed",
                    "deploy would change the cloud, and there is no terminal to ask on",
                    hint="look at cloudctl plan, then give --yes",
                )  # fmt: skip
            made = agree(run, made)
        if made["changes"]:
            changed = run.apply()
            for line in planning.surprises(made, changed):
                run.progress.line(line)
        seconds = time.monotonic() - started
        run.console.result(
            {"changed": changed, "seconds": round(seconds, 1), "summary": planning.summary(made)},
            lambda: _text(run.console, run.site, made, seconds),
        )


def _text(console: Console, site: Site, made: Mapping[str, Any], seconds: float) -> None:
    if not made["changes"]:
        console.line(f"Nothing to change: the cloud is as the site describes it ({duration(seconds)}).")
        return
    console.line(f"Deployed in {duration(seconds)}.")
    external = site.get("vip.external") or site.get("vip.internal")
    console.line(f"  dashboard    https://{external}/")
    console.line(
        f"  API          https://{external}:5000/v3 (the others: cloudctl openstack -- endpoint list)"
    )
    console.line(f"  credentials  {site.path}/admin-openrc.sh, CA {site.path}/ca.crt")
    console.line(
        "  next         cloudctl verify tries the cloud as a tenant; cloudctl status shows its health"
    )
