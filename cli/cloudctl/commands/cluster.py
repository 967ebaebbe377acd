"""``cloudctl cluster``: the whole cloud switched off and on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CloudctlError, MultiError, UsageError
from cloudctl.operations.reporter import Reporter
from cloudctl.operations.steps import Journal, Step, StepOutcome, as_plan, describe, execute, undo
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

if TYPE_CHECKING:
    from cloudctl.power.world import World


@click.group()
def command() -> None:
    """Switch the whole cloud off and on, step by step, losing nothing."""


def _world(site: Site, reporter: Reporter, **options: Any) -> World:
    from cloudctl.power.world import World

    return World(site=site, say=reporter.line, **options)


def _known(site: Site, names: Sequence[str]) -> list[str]:
    """Refuse names that are no nodes; a comma may stand between them, too."""
    from cloudctl.commands.deploy import check_selection

    nodes = [part for name in names for part in name.split(",") if part]
    check_selection(site, (), nodes)
    return nodes


# -- down --------------------------------------------------------------------------------------


@command.command("down")
@click.option(
    "--power-off", is_flag=True, help="Switch the nodes off at the end: computes, storage, controllers."
)
@click.option("--power-off-deploy", is_flag=True, help="Switch the deploy node off, too, as the very last.")
@click.option(
    "--force", "reason", metavar="REASON", help="Go down although something is wrong; the reason is recorded."
)
@click.option("--abort", is_flag=True, help="Take back what an unfinished shutdown did.")
@click.option("--dry-run", is_flag=True, help="Show every step with its nodes and commands; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before anything is stopped.")
@output_option
@click.pass_obj
def down_command(
    site_path: Path,
    power_off: bool,
    power_off_deploy: bool,
    reason: str | None,
    abort: bool,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Shut the whole cloud down in good order.

    Checks the cloud's health first and refuses when something is wrong, backs the database up and goes no
    further without a verified backup. Instances, services, Ceph, power: in this order. Interrupted at any
    point, running it again goes on; --abort takes back what was done; cloudctl cluster up starts everything.
    """
    if reason is not None and not reason.strip():
        raise UsageError("force-without-reason", "--force needs a reason", hint="--force 'UPS runs empty'")
    if abort and (power_off or power_off_deploy or reason or dry_run):
        raise UsageError("abort-alone", "--abort takes no other option than --yes and --output")
    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    if dry_run:
        _dry_run_down(site, console, power_off or power_off_deploy, (reason or "").strip())
        return
    verb = "cluster down --abort" if abort else "cluster down"
    with (
        SiteLock(site_path, verb),
        SiteLock(site_path, verb, name="verify.lock"),
        RunRecord(site_path, verb, sys.argv[1:], mask=console.masker.mask) as record,
    ):
        reporter = Reporter(console, record)
        if abort:
            _abort(site, console, reporter, yes)
        else:
            _down(site, console, reporter, power_off or power_off_deploy, (reason or "").strip(), yes)
    if power_off_deploy:
        console.line("The deploy node switches off in five seconds.")
        subprocess.run(["systemd-run", "--quiet", "--on-active=5s", "systemctl", "poweroff"], check=False)


def _down(site: Site, console: Console, reporter: Reporter, power_off: bool, reason: str, yes: bool) -> None:
    from cloudctl.power.down import Options, build, stopped_anything
    from cloudctl.power.world import DOWN, UP, is_down

    world = _world(site, reporter)
    journal, up = Journal(site.path, DOWN), Journal(site.path, UP)
    _begin_down(journal, up, reporter)
    if journal.finished and is_down(journal):
        if not power_off or journal.facts.get("power_off"):
            console.result(
                {"state": "down", "since": journal.finished, "steps": [], "seconds": 0.0, "notes": []},
                f"The cloud is down already, since {journal.finished}; cloudctl cluster up starts it.",
            )
            return
        journal.reopen()
    continued = journal.begin()
    if power_off:
        journal.keep(power_off=True)
    if continued:
        reporter.line(f"goes on with the shutdown that began {journal.as_dict()['started']}")
    options = Options(power_off=power_off, force=reason)
    steps = build(world, options, journal)
    try:
        if not yes and not stopped_anything(journal):
            _confirm("shut the whole cloud down", steps, console)
        outcomes = execute(steps, journal, announce=reporter.announce, report=reporter.report)
    except BaseException:
        if not stopped_anything(journal) and not journal.facts.get("carried"):
            # Nothing was stopped: nothing to go on from, and nothing to take back.
            journal.forget()
        raise
    journal.finish()
    _finish(console, journal, world, outcomes, "down")


def _begin_down(journal: Journal, up: Journal, reporter: Reporter) -> None:
    """Forget what must not be continued; carry over what an unfinished start had not restored yet."""
    from cloudctl.power.decide import is_stale
    from cloudctl.power.down import stopped_anything
    from cloudctl.power.world import is_down

    if journal.open and is_stale(
        str(journal.as_dict()["started"]), datetime.now(UTC), stopped_anything=stopped_anything(journal)
    ):
        reporter.line("an unfinished shutdown that stopped nothing is too old to be continued: begins anew")
        journal.forget()
    if up.open:
        carried: dict[str, Any] = {}
        if is_down(journal):
            keys = ("instances", "flags_before")
            carried = {key: journal.facts[key] for key in keys if key in journal.facts}
        reporter.line("the start that was unfinished is given up")
        journal.forget()
        journal.begin()
        if carried:
            journal.keep(carried=carried)
        up.forget()


def _dry_run_down(site: Site, console: Console, power_off: bool, reason: str) -> None:
    from cloudctl.power.down import Options, build, inspect, preview_of, stopped_anything
    from cloudctl.power.world import DOWN

    reporter = Reporter(console, None)
    world = _world(site, reporter)
    journal = Journal(site.path, DOWN)
    errors: list[CloudctlError] = []
    continued = journal.open and stopped_anything(journal)
    if not continued:
        errors, _absent = inspect(world)
    steps = build(world, Options(power_off, reason), journal, None if continued else preview_of(world))
    _show_plan(console, steps, journal if journal.open else None, errors if not reason else [])


def _abort(site: Site, console: Console, reporter: Reporter, yes: bool) -> None:
    from cloudctl.power.down import Options, build
    from cloudctl.power.world import DOWN

    journal = Journal(site.path, DOWN)
    if not journal.open:
        down = journal.finished and not journal.facts.get("up")
        raise UsageError(
            "nothing-to-abort",
            "the shutdown is complete" if down else "no shutdown is unfinished",
            hint="cloudctl cluster up starts the cloud" if down else None,
        )
    world = _world(site, reporter)
    steps = build(world, Options(power_off=bool(journal.facts.get("power_off"))), journal)
    if not yes:
        _confirm("take back the unfinished shutdown", [], console)
    outcomes = undo(steps, journal, announce=reporter.announce, report=reporter.report)
    _finish(console, journal, world, outcomes, "aborted")
    journal.forget()


# -- up ----------------------------------------------------------------------------------------


@command.command("up")
@click.option(
    "--accept-missing", "accepted", multiple=True, metavar="NODE",
    help="Go on without this node (repeatable): its OSDs, or its database member, may be missing.",
)  # fmt: skip
@click.option(
    "--wait",
    type=click.IntRange(5, 7200),
    metavar="SECONDS",
    help="For nodes to boot (default: power.boot_timeout).",
)
@click.option("--dry-run", is_flag=True, help="Show every step with its nodes and commands; change nothing.")
@click.option("--yes", is_flag=True, help="Accepted for symmetry: a start asks nothing.")
@output_option
@click.pass_obj
def up_command(
    site_path: Path, accepted: tuple[str, ...], wait: int | None, dry_run: bool, yes: bool, output: str
) -> None:
    """Start the whole cloud, after cluster down or after a power cut.

    Switches the nodes on, waits for Ceph, recovers the database, starts all services tier by tier, starts
    exactly the instances that ran, and verifies the cloud. Interrupted at any point, running it again goes
    on.
    """
    from cloudctl.power.up import build, close
    from cloudctl.power.world import DOWN, UP

    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    nodes = _known(site, accepted)
    if dry_run:
        journal, down = Journal(site_path, UP), Journal(site_path, DOWN)
        world = _world(site, Reporter(console, None), accepted=nodes, boot_timeout=wait)
        _show_plan(console, build(world, journal, down), journal if journal.open else None, [])
        return
    with (
        SiteLock(site_path, "cluster up"),
        RunRecord(site_path, "cluster up", sys.argv[1:], mask=console.masker.mask) as record,
    ):
        reporter = Reporter(console, record)
        world = _world(site, reporter, accepted=nodes, boot_timeout=wait)
        journal, down = Journal(site_path, UP), Journal(site_path, DOWN)
        if journal.begin():
            reporter.line(f"goes on with the start that began {journal.as_dict()['started']}")
            if "notes" in journal.facts:
                world.notes += journal.facts["notes"]
        steps = build(world, journal, down)
        try:
            outcomes = execute(steps, journal, announce=reporter.announce, report=reporter.report)
        finally:
            journal.keep(notes=world.notes)
        close(journal, down)
        _finish(console, journal, world, outcomes, "up")


# -- status ------------------------------------------------------------------------------------


@command.command("status")
@output_option
@click.pass_obj
def status_command(site_path: Path, output: str) -> None:
    """Show where the last shutdown and the last start stand. Asks no node."""
    from cloudctl.power.world import DOWN, UP, is_down

    console = Console(output)
    down, up = Journal(site_path, DOWN), Journal(site_path, UP)
    if up.open:
        state, words = "starting", "A start is unfinished: cloudctl cluster up goes on."
    elif down.open:
        state = "stopping"
        words = "A shutdown is unfinished: cloudctl cluster down goes on, --abort takes it back."
    elif is_down(down):
        state, words = "down", f"The cloud is down since {down.finished}: cloudctl cluster up starts it."
    else:
        state, words = "up", "No shutdown or start is unfinished."

    def text() -> None:
        for journal in (down, up):
            entries: Mapping[str, Mapping[str, Any]] = journal.as_dict().get("steps", {})
            if not entries:
                continue
            console.line(
                f"{journal.name}: begun {journal.as_dict()['started']}, finished {journal.finished or '-'}"
            )
            console.table(
                ("STEP", "STATE", "RUNS", "SECONDS", "DETAIL"),
                [(k, e["state"], e["runs"], e["seconds"], e["detail"] or None) for k, e in entries.items()],
            )
            console.line()
        console.line(words)

    console.result({"state": state, "down": down.as_dict(), "up": up.as_dict()}, text)


# -- shared ------------------------------------------------------------------------------------


def _confirm(what: str, steps: Sequence[Step], console: Console) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            "confirmation-needed", f"this would {what}, and there is no terminal to ask on",
            hint="look at it with --dry-run, then give --yes",
        )  # fmt: skip
    for line in describe(steps):
        console.line(line)
    click.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)


def _show_plan(
    console: Console, steps: Sequence[Step], journal: Journal | None, errors: Sequence[CloudctlError]
) -> None:
    def text() -> None:
        for line in describe(steps, journal):
            console.line(line)
        console.line("Nothing was changed.")

    console.result({"steps": as_plan(steps), "refused": [error.as_dict() for error in errors]}, text)
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


_WORDS = {
    "down": "The cloud is down. Taken: {seconds}. cloudctl cluster up starts it.",
    "up": "The cloud is up. Taken: {seconds}.",
    "aborted": "The shutdown was taken back in {seconds}.",
}


def _finish(
    console: Console, journal: Journal, world: World, outcomes: Sequence[StepOutcome], state: str
) -> None:
    """Print the timings, and what must not be overlooked."""
    seconds = console.elapsed
    entries: Mapping[str, Mapping[str, Any]] = journal.as_dict().get("steps", {})

    def text() -> None:
        console.line()
        console.table(
            ("STEP", "SECONDS", "RESULT"),
            [
                (
                    o.title,
                    round(float(entries.get(o.key, {}).get("seconds") or o.seconds), 1),
                    o.detail or o.result,
                )
                for o in outcomes
            ],
        )
        for note in world.notes:
            console.line(f"{console.style('note', 'warn')}: {note}")
        console.line(_WORDS[state].format(seconds=duration(seconds)))

    console.result(
        {
            "state": state,
            "seconds": round(seconds, 1),
            "steps": [outcome.as_dict() for outcome in outcomes],
            "notes": list(world.notes),
            "facts": journal.facts,
        },
        text,
    )
