"""``cloudctl ceph``: the cluster-wide flags of Ceph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cloudctl.commands.service import confirm
from cloudctl.console import Console, Masker, output_option
from cloudctl.errors import UsageError
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Look at the storage cluster and change what an operator changes by hand."""


@command.group()
def flags() -> None:
    """Show, set or unset the flags of the storage cluster.

    FLAG is a flag of Ceph, or 'maintenance' for the six of a planned shutdown: noout, norecover, norebalance,
    nobackfill, nodown, pause. Any monitor that is in the quorum is asked.
    """


@flags.command()
@click.argument("names", nargs=-1, metavar="[FLAG]...")
@output_option
@click.pass_obj
def show(site_path: Path, names: tuple[str, ...], output: str) -> None:
    """Show which flags are set (all, or of those named)."""
    from cloudctl.ceph.flags import FLAGS, expand, read_flags

    wanted = expand(names)
    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    present = read_flags(site)

    def text() -> None:
        for flag in wanted or present:
            state = "set" if flag in present else "not set"
            console.line(f"{flag:<13} {state:<8} {FLAGS[flag]}")
        if not wanted and not present:
            console.line("No flag is set.")

    shown = [flag for flag in present if not wanted or flag in wanted]
    console.result({"set": shown, "unset": [flag for flag in wanted or FLAGS if flag not in present]}, text)


def _options(function: _F) -> _F:
    for option in (
        output_option,
        click.option("--yes", is_flag=True, help="Do not ask before changing anything."),
        click.option("--dry-run", is_flag=True, help="Show what would be changed; change nothing."),
        click.argument("names", nargs=-1, metavar="FLAG..."),
    ):
        function = option(function)
    return function


@flags.command("set")
@_options
@click.pass_obj
def set_(site_path: Path, names: tuple[str, ...], dry_run: bool, yes: bool, output: str) -> None:
    """Set flags, and confirm that the cluster shows them."""
    _change(site_path, names, wanted=True, dry_run=dry_run, yes=yes, output=output)


@flags.command()
@_options
@click.pass_obj
def unset(site_path: Path, names: tuple[str, ...], dry_run: bool, yes: bool, output: str) -> None:
    """Unset flags, and confirm that the cluster does not show them any more."""
    _change(site_path, names, wanted=False, dry_run=dry_run, yes=yes, output=output)


def _change(
    site_path: Path, names: Sequence[str], *, wanted: bool, dry_run: bool, yes: bool, output: str
) -> None:
    from cloudctl.ceph import flags as ceph

    verb = "set" if wanted else "unset"
    if not names:
        raise UsageError(
            "flag-missing", f"which flags shall be {verb}?",
            hint=f"'maintenance' stands for {', '.join(ceph.MAINTENANCE)}; known: {', '.join(ceph.FLAGS)}",
        )  # fmt: skip
    todo = ceph.expand(names)
    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)

    def result(changed: Sequence[str], present: Sequence[str]) -> dict[str, Any]:
        return {"action": verb, "changed": list(changed), "set": list(present), "dry_run": dry_run}

    if dry_run:
        present = ceph.read_flags(site)
        change = ceph.to_change(present, todo, wanted=wanted)
        console.result(
            result(change, present),
            lambda: _lines(console, [f"would {verb} {flag}: {ceph.FLAGS[flag]}" for flag in change], verb),
        )
        return
    with (
        SiteLock(site_path, f"ceph flags {verb}"),
        RunRecord(site_path, "ceph", sys.argv[1:], mask=masker.mask) as record,
    ):
        present = ceph.read_flags(site)
        change = ceph.to_change(present, todo, wanted=wanted)
        if change:
            for flag in change:
                console.progress(f"{verb} {flag}: {ceph.FLAGS[flag]}")
            confirm(f"ceph flags {verb} would change the storage cluster", yes=yes)
            change = ceph.set_flags(site, change) if wanted else ceph.unset_flags(site, change)
            record.changed([{"kind": "flag", "name": flag, "action": verb} for flag in change])
            after = {*present, *change} if wanted else {*present} - {*change}
            present = [flag for flag in ceph.FLAGS if flag in after]
        console.result(
            result(change, present),
            lambda: _lines(console, [f"{verb}, and confirmed: {', '.join(change)}"] if change else [], verb),
        )


def _lines(console: Console, lines: Sequence[str], verb: str) -> None:
    for line in lines or [f"Nothing to do: they are {verb}."]:
        console.line(line)
