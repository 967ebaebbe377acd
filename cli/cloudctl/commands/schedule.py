"""``cloudctl schedule``: what the deploy node does by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, Masker, output_option
from cloudctl.errors import UsageError
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site


@click.group(name="schedule")
def command() -> None:
    """Let the deploy node run cloudctl at fixed times, by timers of systemd.

    A run that failed is shown by cloudctl status until one succeeds.
    """


def _open(site_path: Path, output: str) -> tuple[Site, Console]:
    site = load_site(site_path)
    return site, Console(output, masker=Masker.for_secrets(site.secrets))


@command.command("db-backup")
@click.option(
    "--daily", required=True, metavar="HH:MM", help="Every day at this time (of the deploy node's clock)."
)
@click.option(
    "--incremental", is_flag=True, help="Take increments; the first one, and one that has no base, is full."
)
@click.option("--dry-run", is_flag=True, help="Show the units; install nothing.")
@output_option
@click.pass_obj
def db_backup_command(site_path: Path, daily: str, incremental: bool, dry_run: bool, output: str) -> None:
    """Back the databases up every day, and remove backups that are older than the setting backup.keep allows.

    A second call changes the time. A run that the node's being off prevented is made up for.
    """
    from cloudctl.backup import schedule

    when = schedule.calendar(daily)
    site, console = _open(site_path, output)
    words = ["db", "backup", *(["--incremental"] if incremental else []), "--prune"]
    if dry_run:
        schedule.check_unattended(site)
        given = [schedule.program(), "--site", str(site.path), *words]
        shown = schedule.units(
            "db-backup", schedule.JOBS["db-backup"], site.name, schedule.prefix_of(site), given, when, "root"
        )
        console.result({"service": shown[0], "timer": shown[1]}, "\n".join(shown))
        return
    with RunRecord(site_path, "schedule db-backup", sys.argv[1:], mask=console.masker.mask) as record:
        changed = schedule.install(site, "db-backup", words, when)
        if changed:
            record.changed([{"what": "db-backup", "action": "scheduled", "detail": when}])
    console.result(
        {"name": "db-backup", "calendar": when, "changed": changed},
        f"db-backup: every day at {daily}" + ("" if changed else " (it was already)"),
    )


@command.command("list")
@output_option
@click.pass_obj
def list_command(site_path: Path, output: str) -> None:
    """List what is scheduled, and how the last runs ended."""
    from cloudctl.backup import schedule
    from cloudctl.backup.manifest import iso

    site, console = _open(site_path, output)
    found = schedule.listed(site)

    def moment(value: Any) -> str | None:
        return iso(float(value)) if value else None

    rows = {
        name: {**entry, **{key: moment(entry[key]) for key in ("next", "last", "ended")}}
        for name, entry in found.items()
    }

    def text() -> None:
        if not rows:
            console.line("Nothing is scheduled.")
            return
        console.table(
            ("NAME", "WHEN", "NEXT", "LAST ENDED", "RESULT", "COMMAND"),
            [
                (
                    name,
                    entry["calendar"],
                    entry["next"] if entry["active"] else "stopped",
                    entry["ended"],
                    "running" if entry["running"] else entry["result"] or "did not run yet",
                    " ".join(schedule.shell_words(entry["command"])[3:]),
                )
                for name, entry in rows.items()
            ],
        )

    console.result({"schedules": rows}, text)


@command.command("remove")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show whether there is one; remove nothing.")
@output_option
@click.pass_obj
def remove_command(site_path: Path, name: str, dry_run: bool, output: str) -> None:
    """Remove a schedule; a run in progress goes on to its end."""
    from cloudctl.backup import schedule

    if name not in schedule.JOBS:
        raise UsageError(
            "schedule-unknown",
            f"nothing can be scheduled as {name!r}",
            hint=f"one of: {', '.join(schedule.JOBS)}",
        )
    site, console = _open(site_path, output)
    if dry_run:
        there = name in schedule.listed(site)
        console.result(
            {"name": name, "removed": False, "there": there},
            f"{name}: " + ("would be removed" if there else "is not scheduled"),
        )
        return
    with RunRecord(site_path, "schedule remove", sys.argv[1:], mask=console.masker.mask) as record:
        removed = schedule.remove(site, name)
        if removed:
            record.changed([{"what": name, "action": "removed"}])
    console.result(
        {"name": name, "removed": removed}, f"{name}: " + ("removed" if removed else "was not scheduled")
    )
