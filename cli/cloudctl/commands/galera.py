"""``cloudctl galera``: the database cluster after an outage."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import UsageError
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site


@click.group()
def command() -> None:
    """Look at the database cluster, and bring it back after an outage without losing a write."""


@command.command()
@output_option
@click.pass_obj
def status(site_path: Path, output: str) -> None:
    """Show where every member's data stands, and what recover would do. Changes nothing."""
    from cloudctl.galera import recovery as galera

    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    members, decision = galera.look(site)
    _show_look(console, members, decision)


def _show_look(console: Console, members: Any, decision: Any) -> None:
    from cloudctl.galera import recovery as galera

    def text() -> None:
        for line in [*galera.table(members), *galera.describe(decision)]:
            console.line(line)
        if decision.error is not None:
            console.line(f"recover would refuse: {decision.reason}")
            if decision.error.hint:
                console.line(f"  try: {decision.error.hint}")

    console.result(
        {
            **decision.as_dict(),
            "error": decision.error.as_dict() if decision.error else None,
            "members": [member.as_dict() for member in members.values()],
        },
        text,
    )


@command.command()
@click.option("--dry-run", is_flag=True, help="Show the members and the choice; change nothing.")
@click.option(
    "--accept-missing",
    "missing",
    multiple=True,
    metavar="NODE",
    help="Go on without this member; writes that only it has are lost (repeatable).",
)
@click.option("--no-copy", is_flag=True, help="Do not copy the chosen member's data first.")
@click.option("--yes", is_flag=True, help="Do not ask before changing anything.")
@output_option
@click.pass_obj
def recover(
    site_path: Path, dry_run: bool, missing: tuple[str, ...], no_copy: bool, yes: bool, output: str
) -> None:
    """Bring the database cluster back after an outage.

    Reads every member's position, starts the cluster from the newest data, and lets the others join one at a
    time. Refuses where a write could be lost. Interrupted at any point, running it again goes on.
    """
    from cloudctl.galera import recovery as galera
    from cloudctl.galera.decide import HEALTHY

    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    if dry_run:
        members, decision = galera.look(site, accept_missing=missing, report=console.progress)
        _show_look(console, members, decision)
        if decision.error is not None:
            raise decision.error
        return
    started = time.monotonic()
    with (
        SiteLock(site_path, "galera recover"),
        RunRecord(site_path, "galera recover", sys.argv[1:], mask=masker.mask) as record,
    ):

        def report(line: str) -> None:
            console.progress(line)
            record.log(f"[{console.elapsed:7.1f} s] {line}")

        if not yes:
            members, decision = galera.look(site, accept_missing=missing, report=report)
            if decision.error is None and decision.kind != HEALTHY:
                for line in [*galera.table(members), *galera.describe(decision)]:
                    console.progress(line)
                if not sys.stdin.isatty():
                    raise UsageError(
                        "confirmation-needed",
                        "recover would change the database cluster, and there is no terminal to ask on",
                        hint="look at cloudctl galera recover --dry-run, then give --yes",
                    )
                click.confirm("Do this?", abort=True, err=True)
        done = galera.recover(site, accept_missing=missing, copy=not no_copy, report=report)
        record.changed([{"node": node, "what": "database member", "action": "join"} for node in done.joined])
        if done.bootstrapped:
            record.changed([{"node": done.chosen, "what": "database cluster", "action": "start"}])
        seconds = time.monotonic() - started
        console.result(
            {**done.as_dict(), "seconds": round(seconds, 1)}, lambda: _text(console, done, seconds)
        )


def _text(console: Console, done: Any, seconds: float) -> None:
    console.line(f"The database cluster is whole: {done.size} members in {duration(seconds)}.")
    console.line(f"  uuid      {done.uuid}")
    console.line(f"  position  {done.position}")
    console.line(f"  started   {'from' if done.bootstrapped else 'not anew, served by'} {done.chosen}")
    if done.left_out:
        console.line(f"  left out  {', '.join(done.left_out)}")
    if done.copy:
        node, _colon, path = done.copy.partition(":")
        console.line(f"  copy      {path} on {node}: the data as it was before")
        console.line(
            f"            remove it with: cloudctl galera copies --remove {node}:{path.rpartition('/')[2]}"
        )
    older = [place for place in done.copies if place != done.copy]
    if older:
        total = sum(done.copies[place] for place in older) / 2**30
        console.line(f"  earlier   copies: {len(older)} ({total:.1f} GiB); see cloudctl galera copies")


@command.command()
@click.option(
    "--remove",
    multiple=True,
    metavar="NODE:NAME",
    help="Remove this copy (repeatable).",
)
@click.option("--remove-all", is_flag=True, help="Remove all copies.")
@click.option("--yes", is_flag=True, help="Do not ask before removing anything.")
@output_option
@click.pass_obj
def copies(site_path: Path, remove: tuple[str, ...], remove_all: bool, yes: bool, output: str) -> None:
    """List the copies of data that recoveries made, or remove them."""
    from cloudctl.galera import recovery as galera

    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    members = galera.read_members(site, probe=False)
    found = {
        f"{node}:{copy.name}": (node, copy) for node, member in members.items() for copy in member.copies
    }
    chosen = list(found) if remove_all else list(remove)
    for name in chosen:
        if name not in found:
            raise UsageError(
                "galera-copy-unknown",
                f"there is no copy {name!r}",
                hint=f"one of: {', '.join(found)}" if found else "there is none",
            )
    removed: list[str] = []
    if chosen:
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    "confirmation-needed",
                    "copies would be removed, and there is no terminal to ask on",
                    hint="give --yes",
                )
            click.confirm(f"Remove {', '.join(chosen)}?", abort=True, err=True)
        with (
            SiteLock(site_path, "galera copies"),
            RunRecord(site_path, "galera copies", sys.argv[1:], mask=masker.mask) as record,
        ):
            wanted: dict[str, list[str]] = {}
            for name in chosen:
                wanted.setdefault(found[name][0], []).append(found[name][1].name)
            done = galera.forget_copies(site, wanted)
            removed = [f"{node}:{name}" for node, names in done.items() for name in names]
            record.changed(
                [{"node": name.partition(":")[0], "what": name, "action": "remove"} for name in removed]
            )
    left = {name: entry for name, entry in found.items() if name not in removed}

    def text() -> None:
        for name in removed:
            console.line(f"removed {name}")
        if left:
            console.table(
                ("copy", "size MiB", "made", "whole", "path"),
                [
                    (name, copy.bytes >> 20, _when(copy.made), copy.whole, copy.path)
                    for name, (_node, copy) in left.items()
                ],
            )
        else:
            console.line("There are no copies.")

    console.result(
        {
            "removed": removed,
            "copies": [
                {"copy": name, "node": node, "path": copy.path, "bytes": copy.bytes, "made": _when(copy.made),
                 "whole": copy.whole}
                for name, (node, copy) in left.items()
            ],
            "unreachable": [node for node, member in members.items() if not member.reachable],
        },
        text,
    )  # fmt: skip


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
