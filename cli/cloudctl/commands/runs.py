"""``cloudctl runs``: what was run on this site, by whom and with which result."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cloudctl.console import Console, duration, output_option
from cloudctl.runs.record import Run, find_run, list_runs


@click.group()
def command() -> None:
    """Show the runs recorded in the site's directory."""


@command.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Show that many.")
@output_option
@click.pass_obj
def list_command(site_path: Path, limit: int, output: str) -> None:
    """List runs, newest first."""
    console = Console(output)
    runs = list_runs(site_path)
    shown = runs[:limit]

    def text() -> None:
        if not runs:
            console.line("No run is recorded yet.")
            return
        console.table(
            ("RUN", "WHO", "COMMAND", "TOOK", "RESULT", "CHANGED"),
            [(run.id, run.who, run.verb, _took(run), _result(run), len(run.changed)) for run in shown],
        )
        if len(runs) > limit:
            console.line(f"... and {len(runs) - limit} older: --limit shows more")

    console.result([run.as_dict() for run in shown], text)


@command.command("show")
@click.argument("run", default="last")
@click.option("--log", is_flag=True, help="Show the log too.")
@click.option("--events", is_flag=True, help="Show every recorded event too.")
@output_option
@click.pass_obj
def show_command(site_path: Path, run: str, log: bool, events: bool, output: str) -> None:
    """Show one run: RUN is its id, the beginning of it, or 'last'."""
    console = Console(output)
    found = find_run(site_path, run)
    data = found.as_dict()
    if log or output == "json":
        data["log"] = found.log_text().splitlines()
    if events:
        data["events"] = found.events()

    def text() -> None:
        for name, value in (
            ("run", found.id),
            ("who", found.who),
            ("command", found.command),
            ("started", found.started),
            ("took", _took(found)),
            ("result", _result(found)),
            ("record", str(found.path)),
        ):
            console.line(f"{name + ':':<9} {value}")
        if found.message:
            console.line(found.message)
        console.line(f"changed:  {len(found.changed)}" if found.changed else "changed:  nothing")
        for change in found.changed:
            console.line(f"  {change_text(change)}")
        if log:
            console.line("log:")
            console.line(found.log_text().rstrip("\n"))
        if events:
            for event in found.events():
                console.line(json.dumps(event))

    console.result(data, text)


def _took(run: Run) -> str:
    return "-" if run.seconds is None else duration(run.seconds)


def _result(run: Run) -> str:
    return run.result if not run.exit_code else f"{run.result} ({run.exit_code})"


def change_text(change: dict[str, object] | str) -> str:
    """Return one changed thing as a line: ``ctl01: recreate nova_api (file nova.conf)``."""
    if isinstance(change, str):
        return change
    rest = dict(change)
    node = rest.pop("node", None)
    line = " ".join(str(rest.pop(key)) for key in ("action", "what") if rest.get(key))
    reason = rest.pop("reason", None)
    line += f" ({reason})" if reason else ""
    line += "".join(f" {key}={value}" for key, value in rest.items() if value not in (None, "", []))
    return f"{node}: {line.strip()}" if node else line.strip()
