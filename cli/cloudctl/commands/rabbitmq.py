"""``cloudctl rabbitmq``: bring the message bus together again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cloudctl.commands.service import confirm
from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CheckFailed, Unreachable, UsageError, VerifyFailed
from cloudctl.operations.steps import UNDONE, Journal, StepOutcome, as_plan, describe, execute
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

    def look() -> dict[str, rabbitmq.View]:
        report("asking every member")
        views = rabbitmq.read_views(site, want.nodes)
        for node, view in views.items():
            seen = ", ".join(sorted(view.running)) or view.error or "nobody"
            report(f"{node}: {view.state}, sees {seen}")
        return views

    def after(outcome: StepOutcome) -> None:
        detail = f": {outcome.detail}" if outcome.detail else ""
        report(f"{outcome.number}/{outcome.total} {outcome.title}: {outcome.result}{detail}")
        if record is not None:
            record.event(outcome.as_dict())
            if outcome.result == "done":
                record.changed([{"kind": "step", "name": outcome.title, "action": "done"}])

    def carry_out(decision: rabbitmq.Decision) -> list[dict[str, Any]]:
        steps = rabbitmq.steps(site, want, decision, report)
        if not console.json:
            _lines(console, describe(steps, journal))
        if decision.kind != rabbitmq.COMPLETE or not done:
            confirm(f"{decision.reason}; {_LOST.get(decision.kind, _KEPT)}", yes=yes)
        journal.begin()
        journal.keep(decision=decision.as_dict())
        outcomes = execute(steps, journal, report=after)
        journal.finish()
        return [outcome.as_dict() for outcome in outcomes]

    views = look()
    decision, redo, continued = _decision(site, want, views, journal, everything=everything, force=force)
    report(f"{decision.kind}: {decision.reason}")
    data: dict[str, Any] = {"decision": decision.as_dict(), "dry_run": record is None}
    done: list[dict[str, Any]] = []
    if record is None:
        steps = rabbitmq.steps(site, want, decision, report)
        if decision.kind in rabbitmq.WITH_DATA:
            # What comes then, when all come back.
            steps += rabbitmq.steps(site, want, rabbitmq.Decision(rabbitmq.COMPLETE), report)
        data["steps"] = as_plan(steps)
        console.result(data, lambda: _lines(console, describe(steps, journal if continued else None)))
        return
    if not continued:
        journal.forget()
    for key in redo:
        journal.mark(key, UNDONE)
    done += carry_out(decision)
    if decision.kind in rabbitmq.WITH_DATA:
        moved, reason = decision.moved, "all members are back"
        decision = rabbitmq.decide(look())
        if decision.kind == rabbitmq.HEALTHY:
            decision = rabbitmq.Decision(rabbitmq.COMPLETE, want.nodes[:1], reason=reason)
        elif decision.kind != rabbitmq.RESET:
            raise VerifyFailed(
                "rabbitmq-not-whole", f"they were started, and yet {decision.reason}",
                hint="their logs say why; the same again, or --all --lose-messages makes the cluster anew",
            )  # fmt: skip
        decision = replace(decision, moved=moved)
        _reachable(site, decision, want.nodes)
        report(f"{decision.kind}: {decision.reason}")
        done += carry_out(decision)
    seconds = time.monotonic() - started
    data |= {"steps": done, "seconds": round(seconds, 1)}
    console.result(data, f"The message bus is whole: {len(want.nodes)} members ({duration(seconds)}).")


_KEPT = "the message bus would be changed"
_LOST = {"rebuild": "every queued message is lost"}


def _decision(
    site: Site, want: Any, views: Any, journal: Journal, *, everything: bool, force: bool
) -> tuple[Any, list[str], bool]:
    """Return what to do: what an interrupted run had begun, else what the members say.

    Returns:
        The decision, the keys of steps that an interrupted run did and that are done again, and whether it
        is that run's decision.

    Raises:
        CheckFailed: there is nothing to do, or it would not help.
        Unreachable: a node is missing.
    """
    from cloudctl.operations import rabbitmq

    moved: tuple[str, ...] = ()
    if journal.open and (kept := journal.facts.get("decision")):
        begun = rabbitmq.Decision.from_dict(kept)
        if not everything or begun.kind == rabbitmq.REBUILD:
            moved = want.nodes if begun.kind == rabbitmq.REBUILD else begun.reset + begun.moved
            if _healthy(views):
                # By this command or otherwise: nothing is stopped or thrown away any more.
                why = "an earlier reset was interrupted after the members had come together"
                kind = rabbitmq.COMPLETE
                return rabbitmq.Decision(kind, want.nodes[:1], moved=tuple(moved), reason=why), [], False
            decision, redo = rabbitmq.go_on(begun, views, journal.state, everything=everything)
            if decision is not None:
                _reachable(site, decision, list(views))
                return decision, redo, True
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
        why = "the cluster is made anew from its definitions"
        return rabbitmq.Decision(rabbitmq.REBUILD, reason=why), [], False
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
    _reachable(site, decision, list(views))
    return replace(decision, moved=moved), [], False


def _reachable(site: Site, decision: Any, nodes: Sequence[str]) -> None:
    """Refuse to change members that the network keeps apart: it would be no help.

    Raises:
        CheckFailed: one can't reach another.
    """
    from cloudctl.operations import rabbitmq

    if decision.kind == rabbitmq.RESTART:
        apart = rabbitmq.cut_off(site, nodes, nodes, running=False)
    else:
        apart = rabbitmq.cut_off(site, [*decision.reset, *decision.start], decision.keep)
    if apart:
        node, targets = next(iter(apart.items()))
        raise CheckFailed(
            "rabbitmq-cut-off",
            f"{', '.join(targets)} can't be reached from there: no reset would help",
            where=node,
            hint="mend the network first; the member may come back by itself then",
        )


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
