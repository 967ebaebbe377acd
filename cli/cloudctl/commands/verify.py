"""``cloudctl verify``: the cloud tried end to end as a tenant."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.runs.lock import SiteLock, state_directory
from cloudctl.runs.record import FAILED, SUCCEEDED, RunRecord, write_atomically
from cloudctl.site.load import load_site
from cloudctl.verify.steps import Outcome, Report, run_steps


@click.command()
@click.option(
    "--keep", is_flag=True, help="Remove nothing: the VM goes on running until the next verify removes it."
)
@output_option
@click.pass_obj
def command(site_path: Path, keep: bool, output: str) -> None:
    """Try the cloud end to end as a tenant: network, image, volume, VM, floating IP, firewall, console.

    Everything that is made is removed again, also when a step fails. Ends with 7 when something does
    not work, naming the step, the cause and where to look.
    """
    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    # A run that is asked to end removes what it made, as with Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with (
        # Not the lock of the runs that change the site: only two verifications disturb each other.
        SiteLock(site_path, "verify", name="verify.lock"),
        RunRecord(site_path, "verify", sys.argv[1:], mask=masker.mask) as record,
    ):
        # Loading the client takes a second: not for a command line that is wrong.
        from cloudctl.verify.tenant import ALL_STEPS, console_log, make_world

        def after(outcome: Outcome) -> None:
            record.event({"step": outcome.name, "result": outcome.result, "seconds": outcome.seconds})
            mark = console.style(f"{outcome.result:>6}", "ok" if outcome.result == "ok" else "bad")
            text = f"{mark} {outcome.seconds:7.1f} s  {outcome.name}"
            console.line(text + (f": {outcome.detail}" if outcome.detail else ""))
            record.log(f"{outcome.result} {outcome.seconds:.1f} s {outcome.name}: {outcome.detail}")

        world = make_world(site)
        report = run_steps(ALL_STEPS, world, keep=keep, after=after, diagnose=lambda: console_log(world))
        for line in report.evidence:
            record.log(f"console: {line}")
        if keep and world.private_key:
            key = state_directory(site_path) / "verify.key"
            write_atomically(key, world.private_key)
            report.kept = {"project": world.name, "address": world.address, "key": str(key)}
        console.result(report.as_dict(), lambda: _text(console, report))
        record.finish(
            SUCCEEDED if report.healthy else FAILED,
            report.error.exit_code if report.error else 0,
            message=report.error.render() if report.error else None,
        )
        if report.error:
            raise report.error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _text(console: Console, report: Report) -> None:
    if report.healthy:
        seconds = sum(outcome.seconds for outcome in report.outcomes)
        console.line(f"The cloud works: {len(report.outcomes)} steps in {duration(seconds)}.")
    if report.evidence:
        console.line("The VM's console, last lines:")
        for line in report.evidence[-15:]:
            console.line(f"  {line}")
    if report.kept:
        console.line(f"Kept until the next verify: project {report.kept['project']}.")
        if report.kept["address"]:
            console.line(f"  ssh -i {report.kept['key']} root@{report.kept['address']}")
