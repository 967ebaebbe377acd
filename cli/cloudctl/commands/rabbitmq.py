"""``cloudctl rabbitmq``: bring the message bus together again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cloudctl.commands.service import confirm
from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CheckFailed, Unreachable, UsageError
from cloudctl.operations.steps import Journal, StepOutcome, as_plan, describe, execute
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site


@click.group()
def command() -> None:
    """Mend the message bus."""


@command.command()
@click.option("--all", "everything", is_flag=True, help="Make the cluster anew from the definitions.")
@click.option("--lose-messages", is_flag=True, help="With --all: queued messages may be lost.")
@click.option("--force", is_flag=True, help="With --all: though the cluster is healthy.")
@click.option("--dry-run", is_flag=True, help="Show the state, the decision and the steps; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before changing anything.")
@output_option
@click.pass_obj
def reset(
    site_path: Path, everything: bool, lose_messages: bool, force: bool, dry_run: bool, yes: bool, output: str
) -> None:
    """Bring the members together again after a partition that did not heal, or one that does not come back.

    Looks first, and refuses when the cluster is healthy. The members of the majority keep their data; the
    others are reset and join them, one at a time. Without a majority all start again together, with their
    data. --all throws the data of all away. Interrupted at any point, the same command goes on.
    """
    if everything and not lose_messages:
        raise UsageError(
            "lose-messages-needed",
            "--all throws away every queue with the messages in it",
            hint="say so: --all --lose-messages",
        )
    if (lose_messages or force) and not everything:
        raise UsageError("option-without-all", "--lose-messages and --force go with --all")
    site = load_site(site_path)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    if dry_run:
        _run(site, console, None, everything=everything, force=force, yes=yes)
        return
    with (
        SiteLock(site_path, "rabbitmq reset"),
        RunRecord(site_path, "rabbitmq", sys.argv[1:], mask=masker.mask) as record,
    ):
        _run(site, console, record, everything=everything, force=force, yes=yes)


def _run(
    site: Site, console: Console, record: RunRecord | None, *, everything: bool, force: bool, yes: bool
) -> None:
    """Look, decide, and do it; without a record only show it."""
    # Loading these takes a second: not for a command line that is wrong.
    from cloudctl.engine.render import Renderer
    from cloudctl.operations import containers, rabbitmq

    def report(text: str) -> None:
        console.progress(text)
        if record is not None:
            record.log(f"[{console.elapsed:7.1f} s] {text}")

    started = time.monotonic()
    services = Renderer(site).services
    want = rabbitmq.wanted(site, services, containers.tiers(site, services))
    journal = Journal(site.path, "rabbitmq-reset")
    report("asking every member")
    views = rabbitmq.read_views(site, want.nodes)
    for node, view in views.items():
        seen = ", ".join(sorted(view.running)) or view.error or "nobody"
        report(f"{node}: {view.state}, sees {seen}")
    decision = _decision(site, want, views, journal, everything=everything, force=force)
    report(f"{decision.kind}: {decision.reason}")
    steps = rabbitmq.steps(site, want, decision, report)
    data: dict[str, Any] = {"decision": decision.as_dict(), "dry_run": record is None}
    if record is None:
        data["steps"] = as_plan(steps)
        console.result(data, lambda: _lines(console, describe(steps, journal)))
        return
    if not console.json:
        _lines(console, describe(steps, journal))
    lost = (
        "every queued message is lost"
        if decision.kind == rabbitmq.REBUILD
        else "the message bus would be changed"
    )
    confirm(f"{decision.reason}; {lost}", yes=yes)
    journal.begin()
    journal.keep(decision=decision.as_dict())

    def after(outcome: StepOutcome) -> None:
        detail = f": {outcome.detail}" if outcome.detail else ""
        report(f"{outcome.number}/{outcome.total} {outcome.title}: {outcome.result}{detail}")
        record.event(outcome.as_dict())
        if outcome.result == "done":
            record.changed([{"kind": "step", "name": outcome.title, "action": "done"}])

    outcomes = execute(steps, journal, report=after)
    journal.finish()
    seconds = time.monotonic() - started
    data |= {"steps": [outcome.as_dict() for outcome in outcomes], "seconds": round(seconds, 1)}
    console.result(data, f"The message bus is whole: {len(want.nodes)} members ({duration(seconds)}).")


def _decision(site: Site, want: Any, views: Any, journal: Journal, *, everything: bool, force: bool) -> Any:
    """Return what to do: what an interrupted run had begun, else what the members say.

    Raises:
        CheckFailed: there is nothing to do, or it would not help.
        Unreachable: a node is missing.
    """
    from cloudctl.operations import rabbitmq

    if journal.open and (kept := journal.facts.get("decision")):
        begun = rabbitmq.Decision(
            kept["kind"],
            tuple(kept["keep"]),
            tuple(kept["reset"]),
            tuple(kept["forget"]),
            tuple(kept["moved"]),
            kept["reason"],
        )
        if not everything or begun.kind == rabbitmq.REBUILD:
            if not _healthy(views):
                return begun
            # It is whole meanwhile, by this command or otherwise: nothing is stopped or thrown away any more.
            moved = want.nodes if begun.kind == rabbitmq.REBUILD else (begun.reset or begun.moved)
            why = "an earlier reset was interrupted after the members had come together"
            return rabbitmq.Decision(rabbitmq.COMPLETE, want.nodes[:1], moved=tuple(moved), reason=why)
        journal.forget()
    if everything:
        silent = [node for node, view in views.items() if view.state == "unreachable"]
        if silent:
            raise Unreachable(
                "rabbitmq-node-unreachable",
                "the node does not answer: its old data would come back with it",
                where=", ".join(silent),
                hint="bring it back first",
            )
        if not force and _healthy(views):
            raise CheckFailed(
                "rabbitmq-healthy",
                "all members run and see each other",
                hint="--force makes it anew nevertheless",
            )
        return rabbitmq.Decision(rabbitmq.REBUILD, reason="the cluster is made anew from its definitions")
    without: dict[str, int] = {}
    if _healthy(views):
        without = rabbitmq.lacking(rabbitmq.read_queues(site, want.nodes[0]), want.nodes)
    decision = rabbitmq.decide(views, lacking=without)
    if decision.kind == rabbitmq.HEALTHY:
        raise CheckFailed(
            "rabbitmq-healthy",
            "nothing was changed: all members run, see each other and have every queue",
            hint="cloudctl status shows what else is wrong",
        )
    if decision.reset:
        apart = rabbitmq.cut_off(site, decision.reset, decision.keep)
        if apart:
            node, targets = next(iter(apart.items()))
            raise CheckFailed(
                "rabbitmq-cut-off",
                f"{', '.join(targets)} can't be reached from there: a reset is no help",
                where=node,
                hint="mend the network first; the member may come back by itself then",
            )
    return decision


def _lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.line(line)


def _healthy(views: Any) -> bool:
    from cloudctl.errors import CloudctlError
    from cloudctl.operations import rabbitmq

    try:
        return bool(rabbitmq.decide(views).kind == rabbitmq.HEALTHY)
    except CloudctlError:
        return False
