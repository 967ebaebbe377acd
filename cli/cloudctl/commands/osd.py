"""``cloudctl osd``: disks of the storage cluster come, are replaced, and go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloudctl.commands.service import confirm
from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CloudctlError
from cloudctl.operations.steps import Step, StepOutcome, describe, execute
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

if TYPE_CHECKING:
    from cloudctl.osd.operate import Plan

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Add, replace and remove disks of the storage cluster (OSDs).

    Data is moved with clients first, and waited for. An operation that was interrupted goes on when the same
    command is given again.
    """


_abandon = click.option(
    "--abandon", is_flag=True, help="Give up one that is not finished, before its OSDs begin to go."
)


def _options(function: _F) -> _F:
    for option in (
        output_option,
        click.option("--yes", is_flag=True, help="Do not ask before changing anything."),
        click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing."),
    ):
        function = option(function)
    return function


@command.command()
@click.argument("node")
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@click.option(
    "--journal", metavar="DEVICE", help="Their journal device (default: the node's, where it has one)."
)
@click.option(
    "--class", "device_class", type=click.Choice(["hdd", "ssd", "nvme"]), help="Their device class."
)
@_options
@click.pass_obj
def add(
    site_path: Path,
    node: str,
    devices: tuple[str, ...],
    journal: str | None,
    device_class: str | None,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Make OSDs of empty devices of NODE, and name them in the inventory.

    Without a DEVICE: of those that the inventory names and that have no OSD yet. Devices with anything on
    them are refused, never wiped.
    """

    def plan(site: Site, report: Callable[[str], None]) -> Plan:
        from cloudctl.osd.operate import plan_add

        return plan_add(site, node, devices, report, journal_device=journal, device_class=device_class)

    _work(
        "add", site_path, plan, f"osd add would make OSDs on {node}", dry_run=dry_run, yes=yes, output=output
    )


@command.command()
@click.argument("number", metavar="ID", type=int)
@click.argument("device", required=False)
@click.option(
    "--degraded", is_flag=True, help="Do not empty an OSD that runs: its data has a copy less for a while."
)
@_abandon
@_options
@click.pass_obj
def replace(
    site_path: Path,
    number: int,
    device: str | None,
    degraded: bool,
    abandon: bool,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Make the OSD ID anew on DEVICE: the same id and place, its journal used again.

    Without DEVICE: on the new disk that has the old one's name. An OSD that still runs is emptied first.
    """

    def plan(site: Site, report: Callable[[str], None]) -> Plan:
        from cloudctl.osd.operate import plan_abandon, plan_replace

        if abandon:
            return plan_abandon(site, "replace", [number], report)
        return plan_replace(site, number, device, report, degraded=degraded)

    what = f"give up the replacement of osd.{number}" if abandon else f"make osd.{number} anew"
    _work(
        "replace", site_path, plan, f"osd replace would {what}",
        dry_run=dry_run, yes=yes, output=output,
    )  # fmt: skip


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)
@click.option("--zap", metavar="DEVICE", help="Erase this device afterwards: its name in /dev/disk/by-id.")
@_abandon
@_options
@click.pass_obj
def remove(
    site_path: Path,
    ids: tuple[int, ...],
    zap: str | None,
    abandon: bool,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Empty OSDs, remove them from the cluster, and take them out of the inventory.

    Refused where data would be lost, a pool would have fewer nodes than copies, or an OSD would be near full.
    The device keeps what is on it unless --zap names it.
    """

    def plan(site: Site, report: Callable[[str], None]) -> Plan:
        from cloudctl.osd.operate import plan_abandon, plan_remove

        if abandon:
            return plan_abandon(site, "remove", ids, report)
        return plan_remove(site, ids, report, zap=zap)

    shown = ", ".join(f"osd.{number}" for number in ids)
    what = f"give up the removal of {shown}" if abandon else f"remove {shown}"
    _work("remove", site_path, plan, f"osd remove would {what}", dry_run=dry_run, yes=yes, output=output)


def _work(
    action: str,
    site_path: Path,
    make_plan: Callable[[Site, Callable[[str], None]], Plan],
    what: str,
    *,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Look, show, ask, do."""
    from cloudctl.osd.operate import begin

    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    if dry_run:
        plan = make_plan(site, console.progress)
        data = {"action": action, "changed": [], "dry_run": True, **_as_json(plan)}
        console.result(data, lambda: _preview(console, plan))
        return
    started = time.monotonic()
    with (
        SiteLock(site_path, f"osd {action}"),
        RunRecord(site_path, "osd", sys.argv[1:], mask=console.masker.mask) as record,
    ):

        def report(text: str) -> None:
            console.progress(text)
            record.log(f"[{console.elapsed:7.1f} s] {text}")

        plan = make_plan(site, report)
        if plan.nothing:
            console.result(
                _result(action, plan, [], started), "Nothing to do: those devices are OSDs already."
            )
            return
        if not console.json:
            for line in plan.lines:
                console.line(line)
        confirm(what, yes=yes)

        def announce(number: int, total: int, step: Step) -> None:
            report(f"{number}/{total} {step.title}")

        def done(outcome: StepOutcome) -> None:
            if outcome.detail:
                report(f"    {outcome.detail}")

        begin(plan)
        try:
            outcomes = execute(plan.steps, plan.journal, announce=announce, report=done)
        except CloudctlError:
            report("stopped half-way: the same command goes on; until then clients come first")
            raise
        finally:
            if plan.done:
                record.changed(plan.done)
        plan.journal.finish()
        console.result(
            _result(action, plan, outcomes, started),
            lambda: console.line(f"Done ({duration(time.monotonic() - started)}): {plan.end}."),
        )


def _as_json(plan: Plan) -> dict[str, Any]:
    from cloudctl.osd.operate import as_json

    return as_json(plan)


def _result(action: str, plan: Plan, outcomes: list[StepOutcome], started: float) -> dict[str, Any]:
    return {
        "action": action,
        "changed": plan.done,
        "dry_run": False,
        "seconds": round(time.monotonic() - started, 1),
        "steps": [outcome.as_dict() for outcome in outcomes],
    }


def _preview(console: Console, plan: Plan) -> None:
    if plan.nothing:
        console.line("Nothing to do.")
        return
    for line in plan.lines:
        console.line(line)
    for line in describe(plan.steps, plan.journal if plan.journal.open and plan.anew is None else None):
        console.line(line)
