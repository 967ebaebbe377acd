"""``cloudctl db``: backups of the databases, and the way back."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CloudctlError, UsageError
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site


@click.group(name="db")
def command() -> None:
    """Back the databases up, look at the backups, and restore one, to a point in time too.

    Backups lie on the deploy node (setting backup.directory), sealed with the site's key. One counts when it
    was verified: unpacked, prepared and started in a throw-away container.
    """


class _Tell:
    """Prints what is being done and keeps it in the run's record."""

    def __init__(self, console: Console, record: RunRecord | None = None) -> None:
        self._console = console
        self._record = record

    def __call__(self, text: str) -> None:
        self._console.progress(text)
        if self._record is not None:
            self._record.log(f"[{self._console.elapsed:7.1f} s] {text}")


def _open(site_path: Path, output: str) -> tuple[Site, Console]:
    site = load_site(site_path)
    return site, Console(output, masker=Masker.for_secrets(site.secrets))


def _confirm(question: str, *, yes: bool, hint: str) -> None:
    """Ask before something is removed.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("confirmation-needed", f"{question} There is no terminal to ask on", hint=hint)
    click.confirm(question, abort=True, err=True)


# -- backup ----------------------------------------------------------------------------------------


@command.command("backup")
@click.option("--incremental", is_flag=True, help="Only what changed since the last backup.")
@click.option(
    "--dump/--no-dump",
    default=None,
    help="Write the logical dump too (default: setting backup.dump.enabled).",
)
@click.option(
    "--no-verify", is_flag=True, help="Do not try it; it does not count until cloudctl db verify did."
)
@click.option("--from-writer", is_flag=True, help="Take it from the writer where no other server is Synced.")
@click.option("--prune", is_flag=True, help="Afterwards remove what db prune would (setting backup.keep).")
@click.option("--dry-run", is_flag=True, help="Show from which server and what kind; take none.")
@output_option
@click.pass_obj
def backup_command(
    site_path: Path,
    incremental: bool,
    dump: bool | None,
    no_verify: bool,
    from_writer: bool,
    prune: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Take a backup and verify it.

    Comes from a Synced server that is not the writer, streamed, compressed and encrypted; archives the binary
    logs since the last one; is copied to the second place. Interrupted or failed, it leaves earlier ones as
    they were. An incremental one becomes a full one where there is nothing that it could be based on.
    """
    from cloudctl.backup import take

    site, console = _open(site_path, output)
    kind = "incremental" if incremental else "full"
    if dry_run:
        shown = _what_backup(site, kind, from_writer)
        console.result(shown, lambda: console.line(_backup_words(shown)))
        return
    with RunRecord(site_path, "db backup", sys.argv[1:], mask=console.masker.mask) as record:
        tell = _Tell(console, record)
        started = time.monotonic()
        backup = take.make(
            site, kind=kind, report=tell, verify=not no_verify, dump=dump, from_writer=from_writer
        )
        record.changed([{"what": "backup", "action": "made", "detail": backup.id}])
        removed = _prune(site, int(site.get("backup.keep")), tell) if prune else {"backups": []}
        seconds = time.monotonic() - started

        def text() -> None:
            from cloudctl.backup.store import mebibytes

            state = "verified" if backup.counts else "not verified: it does not count yet"
            console.line(
                f"{backup.id}: {backup.kind}, {mebibytes(backup.size)}, {state}, in {duration(seconds)}"
            )
            console.line(f"  {backup.path}")
            if backup.dump:
                console.line(f"  {backup.dump}")

        console.result(
            {**backup.as_dict(), "seconds": round(seconds, 1), "removed": removed["backups"]}, text
        )


def _what_backup(site: Site, kind: str, from_writer: bool) -> dict[str, Any]:
    from cloudctl.backup import take
    from cloudctl.backup.choose import find_base, find_writer
    from cloudctl.backup.nodes import read_servers
    from cloudctl.backup.store import Store

    store = Store(site)
    manifests, _unreadable = store.read()
    servers = read_servers(site)
    donor = take.pick_donor(servers, manifests, from_writer)
    longest = int(site.get("backup.increments"))
    base, why = find_base(manifests, donor, longest) if kind == "incremental" else (None, "")
    writer = find_writer(servers.judged())
    return {
        "kind": "incremental" if base else "full",
        "why": why,
        "base": base.id if base else None,
        "node": donor.node,
        "writer": writer.node if writer else None,
        "directory": str(store.directory),
        "data_size": servers.found[donor.node]["data_size"],
        "copy_to": site.get("backup.copy_to"),
    }


def _backup_words(shown: Mapping[str, Any]) -> str:
    text = f"would take a {shown['kind']} backup from {shown['node']} (the writer is {shown['writer']})"
    text += f", based on {shown['base']}" if shown["base"] else ""
    text += f": {shown['why']}" if shown["why"] else ""
    return f"{text}, into {shown['directory']}" + (f" and {shown['copy_to']}" if shown["copy_to"] else "")


# -- list ------------------------------------------------------------------------------------------


@command.command("list")
@output_option
@click.pass_obj
def list_command(site_path: Path, output: str) -> None:
    """List the backups, and the times that can be restored."""
    from cloudctl.backup.choose import spans
    from cloudctl.backup.manifest import iso
    from cloudctl.backup.store import Store, mebibytes

    site, console = _open(site_path, output)
    store = Store(site)
    manifests, unreadable = store.read()
    archives, damaged = store.archives()
    for error in damaged:
        console.error(error.render())
    times = spans(manifests, archives)
    data = {
        "directory": str(store.directory),
        "backups": [manifests[name].as_dict() for name in sorted(manifests)],
        "unreadable": {name: error.as_dict() for name, error in sorted(unreadable.items())},
        "times": [{"from": iso(first), "to": iso(last)} for first, last in times],
    }

    def text() -> None:
        rows: list[tuple[Any, ...]] = []
        for name in sorted({*manifests, *unreadable}):
            if name in unreadable:
                rows.append((name, None, None, None, None, None, f"UNUSABLE: {unreadable[name].message}"))
                continue
            known = manifests[name]
            rows.append(
                (
                    name,
                    known.base,
                    known.node,
                    iso(known.finished),
                    mebibytes(known.size),
                    sum(entry["rows"] for entry in known.verified["rows"].values())
                    if known.verified
                    else None,
                    f"FAILED: {known.failure}"
                    if known.failure
                    else "verified"
                    if known.counts
                    else "not verified",
                )
            )
        if not rows:
            console.line(f"There is no backup in {store.directory}; cloudctl db backup makes one.")
            return
        console.table(("BACKUP", "BASED ON", "FROM", "ENDS AT", "SIZE", "ROWS", "STATE"), rows)
        for first, last in times:
            console.line(f"Any second from {iso(first)} to {iso(last)} can be restored (db restore --at).")

    console.result(data, text)


# -- verify ----------------------------------------------------------------------------------------


@command.command("verify")
@click.argument("backup", required=False)
@click.option("--all", "everything", is_flag=True, help="Every backup, the newest first.")
@click.option("--checksums", is_flag=True, help="Compare checksums only; do not try the backup.")
@output_option
@click.pass_obj
def verify_command(
    site_path: Path, backup: str | None, everything: bool, checksums: bool, output: str
) -> None:
    """Verify a backup (default: the newest): checksums, a test prepare, a start, a count of all rows.

    Ends with 7 when one does not work. It is marked then, and not used any more.
    """
    from cloudctl.backup import take

    site, console = _open(site_path, output)
    if backup is not None and everything:
        raise UsageError("all-or-one", "--all and the name of a backup exclude each other")
    with RunRecord(site_path, "db verify", sys.argv[1:], mask=console.masker.mask) as record:
        results = take.verify_again(
            site, backup, everything=everything, checksums=checksums, report=_Tell(console, record)
        )
        failed = [error for _name, error in results if error is not None]

        def text() -> None:
            for name, error in results:
                mark = console.style("ok", "ok") if error is None else console.style("BAD", "bad")
                console.line(f"{mark:>3} {name}" + (f": {error.message}" if error else ""))

        console.result(
            {
                "backups": [
                    {"id": name, "error": error.as_dict() if error else None} for name, error in results
                ]
            },
            text,
        )
        if failed:
            raise failed[0]


# -- prune -----------------------------------------------------------------------------------------


@command.command("prune")
@click.option(
    "--keep", type=click.IntRange(min=1), help="Verified backups to keep (default: setting backup.keep)."
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@output_option
@click.pass_obj
def prune_command(site_path: Path, keep: int | None, dry_run: bool, yes: bool, output: str) -> None:
    """Remove old backups, here and in the second place.

    The newest verified ones stay, with all that they are based on and the binary logs they need; what cannot
    be read is never removed.
    """
    site, console = _open(site_path, output)
    number = keep if keep is not None else int(site.get("backup.keep"))
    quiet = _Tell(Console("json", masker=console.masker)) if dry_run else None
    planned = _prune(site, number, quiet or (lambda text: None), dry_run=True)
    if not dry_run and any(planned.values()):
        count = len(planned["backups"])
        _confirm(
            f"Remove {count} backup{'s' * (count != 1)}, {len(planned['logs'])} binary logs and "
            f"{len(planned['dumps'])} dumps?",
            yes=yes,
            hint="look with --dry-run, then give --yes",
        )
        with RunRecord(site_path, "db prune", sys.argv[1:], mask=console.masker.mask) as record:
            planned = _prune(site, number, _Tell(console, record))
            record.changed([{"what": "backup", "action": "removed", "detail": n} for n in planned["backups"]])

    def text() -> None:
        words = "would be removed" if dry_run else "removed"
        for name in (*planned["backups"], *planned["logs"], *planned["dumps"]):
            console.line(f"{words}: {name}")
        if not any(planned.values()):
            console.line("Nothing to remove.")

    console.result({"dry_run": dry_run, "keep": number, **planned}, text)


def _prune(site: Site, keep: int, report: Any, *, dry_run: bool = False) -> dict[str, list[str]]:
    from cloudctl.backup import take

    return take.prune(site, keep, report=report, dry_run=dry_run)


# -- restore ---------------------------------------------------------------------------------------


@command.command("restore")
@click.option("--to", metavar="BACKUP", help="This backup (default: the newest verified one that fits).")
@click.option(
    "--at", metavar="TIME", help="The state at a time, e.g. 2026-11-21T03:00:05; needs its binary logs."
)
@click.option(
    "--replace-databases", "cloud", metavar="CLOUD", help="Yes: all databases of the cloud of this name."
)
@click.option("--accept-unverified", is_flag=True, help="Use a backup that was never verified.")
@click.option(
    "--accept-missing", multiple=True, metavar="NODE", help="Go on without this server (repeatable)."
)
@click.option("--dry-run", is_flag=True, help="Show every step with its nodes and commands; change nothing.")
@click.option(
    "--yes", is_flag=True, help="Do not ask on a terminal; --replace-databases is needed all the same."
)
@output_option
@click.pass_obj
def restore_command(
    site_path: Path,
    to: str | None,
    at: str | None,
    cloud: str | None,
    accept_unverified: bool,
    accept_missing: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Put the databases back to a backup, or to a point in time.

    Prepares everything beside the running cloud first; then stops what writes, exchanges the data, starts the
    cluster anew from it, lets the other servers copy, starts the services and checks them. The replaced data
    is kept until cloudctl db forget-replaced. Interrupted at any point, running it again goes on.
    """
    from cloudctl.backup.choose import parse_time

    site, console = _open(site_path, output)
    moment = parse_time(at) if at is not None else None
    if dry_run:
        _restore_dry(site, console, to, moment, accept_unverified, accept_missing)
        return
    if cloud is None and sys.stdin.isatty() and not yes:
        cloud = click.prompt(f"All databases of {site.name} are replaced. Type the cloud's name", err=True)
    if cloud is None:
        raise UsageError(
            "confirmation-needed", f"a restore replaces all databases of the cloud {site.name}",
            hint=f"look with --dry-run, then give --replace-databases {site.name}",
        )  # fmt: skip
    if cloud != site.name:
        raise UsageError(
            "confirmation-differs",
            f"this is the cloud {site.name}, not {cloud}",
            hint="is it the right --site?",
        )
    from cloudctl.backup import take

    with (
        SiteLock(site_path, "db restore"),
        SiteLock(site_path, "db restore", name=take.LOCK),
        RunRecord(site_path, "db restore", sys.argv[1:], mask=console.masker.mask) as record,
    ):
        _restore(site, console, record, to, moment, accept_unverified, accept_missing)


def _restore(
    site: Site,
    console: Console,
    record: RunRecord,
    to: str | None,
    at: float | None,
    unverified: bool,
    missing: tuple[str, ...],
) -> None:
    from cloudctl.backup import restore
    from cloudctl.backup.store import Store
    from cloudctl.operations.steps import Journal, Step, StepOutcome, execute

    tell = _Tell(console, record)
    store = Store(site)
    journal = Journal(site.path, restore.JOURNAL)
    if restore.begun_swap(journal):
        facts = journal.facts
        if (to is not None and to != facts["backup"]) or (at is not None and at != facts["at"]):
            restore.guard_open(journal)
        tell(f"going on with the restore of {restore.undone_facts(facts)}")
    else:
        # Nothing was stopped yet: what was prepared is made anew, for what is wanted now.
        journal.forget()
        plan = restore.make_plan(
            site, store, to=to, at=at, unverified=unverified, accept_missing=missing, fetch=True, report=tell
        )
        for line in restore.describe(plan):
            tell(line)
        journal.begin()
        journal.keep(**restore.facts_of(plan, at=at, unverified=unverified, moment=time.time()))
    started = time.monotonic()
    steps = restore.make_steps(site, store, journal.facts, tell)

    def announce(number: int, total: int, step: Step) -> None:
        tell(f"{number}/{total} {step.title}")

    def report(outcome: StepOutcome) -> None:
        record.event({"step": outcome.key, "result": outcome.result, "seconds": outcome.seconds})
        if outcome.result == "already done":
            tell(f"{outcome.number}/{outcome.total} {outcome.title}: already done")
        else:
            detail = f": {outcome.detail}" if outcome.detail else ""
            tell(f"{outcome.number}/{outcome.total} done in {duration(outcome.seconds)}{detail}")

    outcomes = execute(steps, journal, announce=announce, report=report)
    facts = dict(journal.facts)
    journal.finish()
    record.changed([{"what": "databases", "action": "restored", "detail": restore.undone_facts(facts)}])
    seconds = time.monotonic() - started

    def text() -> None:
        console.line(f"Restored {restore.undone_facts(facts)} in {duration(seconds)}.")
        console.line("  kept     the replaced data, on every node; cloudctl db forget-replaced removes it")
        console.line("  next     cloudctl db backup: increments cannot go on from backups before the restore")
        console.line(
            "  look     cloudctl verify; what was made after that time is unknown to the services now"
        )

    console.result(
        {
            "backup": facts["backup"],
            "at": facts["at"],
            "rows": facts.get("rows"),
            "seconds": round(seconds, 1),
            "steps": [outcome.as_dict() for outcome in outcomes],
        },
        text,
    )


def _restore_dry(
    site: Site, console: Console, to: str | None, at: float | None, unverified: bool, missing: tuple[str, ...]
) -> None:
    from cloudctl.backup import restore
    from cloudctl.backup.store import Store
    from cloudctl.operations.steps import Journal, as_plan
    from cloudctl.operations.steps import describe as describe_steps

    store = Store(site)
    journal = Journal(site.path, restore.JOURNAL)
    if restore.begun_swap(journal):
        facts, lines = journal.facts, [f"goes on with the restore of {restore.undone_facts(journal.facts)}"]
    else:
        plan = restore.make_plan(
            site, store, to=to, at=at, unverified=unverified, accept_missing=missing, fetch=False,
            report=console.error,
        )  # fmt: skip
        facts = restore.facts_of(plan, at=at, unverified=unverified, moment=time.time())
        lines = restore.describe(plan)
        restore.check_files(store, plan.choice)
    steps = restore.make_steps(site, store, facts, lambda text: None)
    shown = describe_steps(steps, journal if restore.begun_swap(journal) else None)
    console.result(
        {"backup": facts["backup"], "at": facts["at"], "what": lines, "steps": as_plan(steps)},
        lambda: console.line("\n".join([*lines, "", *shown])),
    )


# -- what a restore replaced -----------------------------------------------------------------------


@command.command("forget-replaced")
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@output_option
@click.pass_obj
def forget_command(site_path: Path, dry_run: bool, yes: bool, output: str) -> None:
    """Remove the data directories that restores replaced; there is no way back to them then."""
    from cloudctl.backup import restore
    from cloudctl.operations.steps import Journal

    site, console = _open(site_path, output)
    with SiteLock(site_path, "db forget-replaced"):
        restore.guard_open(Journal(site.path, restore.JOURNAL))
        found, failed = restore.replaced(site)
        there = {node: names for node, names in found.items() if names}
        if there and not dry_run:
            where = ", ".join(f"{node}: {' '.join(names)}" for node, names in there.items())
            _confirm(f"Remove {where}?", yes=yes, hint="look with --dry-run, then give --yes")
            with RunRecord(site_path, "db forget-replaced", sys.argv[1:], mask=console.masker.mask) as record:
                there = restore.forget(site, list(there))
                record.changed(
                    [
                        {"node": node, "what": name, "action": "removed"}
                        for node, names in there.items()
                        for name in names
                    ]
                )

    def text() -> None:
        for node, names in there.items():
            console.line(f"{node}: {'would remove' if dry_run else 'removed'} {', '.join(names)}")
        if not there:
            console.line("Nothing to remove.")

    console.result({"dry_run": dry_run, "removed": there}, text)
    errors: list[CloudctlError] = list(failed.values())
    if errors:
        raise errors[0]
