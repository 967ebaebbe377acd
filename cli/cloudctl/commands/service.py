"""``cloudctl service``: stop, start and restart one service or container, mindful of what it is part of."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, UsageError
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Stop, start or restart a service or a container on the nodes where it runs.

    NAME is a service (as in 'cloudctl status'), one of its containers, or 'all'. What is stopped stays
    stopped, over a restart of its node too, until 'service start' or 'cloudctl deploy'.
    """


def _options(function: _F) -> _F:
    for option in (
        output_option,
        click.option("--yes", is_flag=True, help="Do not ask before changing anything."),
        click.option("--dry-run", is_flag=True, help="Show the steps and what they cost; change nothing."),
        click.option(
            "--node", "nodes", multiple=True, metavar="NAME", help="Only on this node (repeatable)."
        ),
        click.option(
            "--group",
            "groups",
            multiple=True,
            metavar="NAME",
            help="Only on the nodes of this group of the inventory (repeatable).",
        ),
        click.argument("name"),
    ):
        function = option(function)
    return function


@command.command()
@_options
@click.pass_obj
def stop(
    site_path: Path,
    name: str,
    nodes: tuple[str, ...],
    groups: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Stop it, and say before what will not work then.

    Containers stop in the reverse of the order in which they start; the members of the database cluster one
    at a time, so that it is known which was the last.
    """
    work_on("stop", site_path, name, nodes, groups, dry_run=dry_run, yes=yes, output=output)


@command.command()
@_options
@click.option(
    "--timeout", default=300, show_default=True, metavar="S", help="Seconds for containers to become healthy."
)
@click.pass_obj
def start(
    site_path: Path,
    name: str,
    nodes: tuple[str, ...],
    groups: tuple[str, ...],
    timeout: int,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Start what is stopped, in the right order, and wait until it is healthy.

    Of the database cluster the member that stopped last starts first; when none is known to be the last one,
    nothing is started: see 'cloudctl galera recover'.
    """
    work_on("start", site_path, name, nodes, groups, dry_run=dry_run, yes=yes, output=output, timeout=timeout)


@command.command()
@_options
@click.option(
    "--timeout", default=300, show_default=True, metavar="S", help="Seconds for containers to become healthy."
)
@click.pass_obj
def restart(
    site_path: Path,
    name: str,
    nodes: tuple[str, ...],
    groups: tuple[str, ...],
    timeout: int,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Restart it one controller at a time, the next when this one is healthy and its cluster whole.

    Refused where it would leave a cluster without a majority.
    """
    work_on(
        "restart", site_path, name, nodes, groups, dry_run=dry_run, yes=yes, output=output, timeout=timeout
    )


def confirm(what: str, *, yes: bool) -> None:
    """Ask before anything is changed.

    Raises:
        UsageError: there is nobody to ask, and ``--yes`` was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "confirmation-needed", f"{what}, and there is no terminal to ask on",
            hint="look at it with --dry-run, then give --yes",
        )  # fmt: skip
    click.confirm("Do this?", abort=True, err=True)


def check_nodes(site: Site, nodes: Sequence[str]) -> None:
    """Refuse names of nodes that are not there.

    Raises:
        UsageError: unknown node, with a suggestion.
    """
    from cloudctl.commands.deploy import check_selection

    check_selection(site, (), nodes)


def nodes_of(site: Site, groups: Sequence[str]) -> list[str]:
    """Return the nodes of groups.

    Raises:
        UsageError: there is no such group, or nobody is in it.
    """
    for name in groups:
        if not site.group(name):
            known = sorted({group for node in site.nodes.values() for group in node.groups})
            raise UsageError(
                "group-unknown", f"no node is in a group {name!r}", hint=f"groups: {', '.join(known)}"
            )
    return list(dict.fromkeys(node.name for name in groups for node in site.group(name)))


def work_on(
    action: str,
    site_path: Path,
    name: str,
    nodes: Sequence[str],
    groups: Sequence[str] = (),
    *,
    dry_run: bool,
    yes: bool,
    output: str,
    timeout: int = 300,
) -> None:
    """Preview, ask, do, verify."""
    # Loading these takes a second: not for a command line that is wrong.
    from cloudctl.commands.status import expected as wanted
    from cloudctl.engine.render import Renderer
    from cloudctl.operations import containers, service
    from cloudctl.status.collect import collect_nodes

    site = load_site(site_path)
    check_nodes(site, nodes)
    nodes = [*nodes, *nodes_of(site, groups)]
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    services = Renderer(site).services
    chosen = service.choose(name, services, containers.tiers(site, services), nodes)
    expected = wanted(site)

    def look() -> service.Work:
        facts, silent = collect_nodes(site)
        _reachable(chosen, facts, silent)
        first = service.first_member(site, chosen, facts, expected) if action == "start" else None
        work = service.plan(
            action, chosen, facts, expected, services,
            controllers=[node.name for node in site.group("control")],
            vips=expected.vips.values(),
            first=first,
        )  # fmt: skip
        absent = service.missing(work, facts)
        if absent:
            listed = ", ".join(f"{container} on {node}" for node, container in absent)
            raise CheckFailed("container-absent", f"not there: {listed}", hint="cloudctl deploy makes them")
        return work

    if dry_run:
        work = look()
        console.result(_data(work, dry_run=True), lambda: _preview(console, work))
        return
    started = time.monotonic()
    masker = console.masker
    with (
        SiteLock(site_path, f"service {action} {name}"),
        RunRecord(site_path, "service", sys.argv[1:], mask=masker.mask) as record,
    ):

        def report(text: str) -> None:
            console.progress(text)
            record.log(f"[{console.elapsed:7.1f} s] {text}")

        def changed(names: Mapping[str, Sequence[str]], what: str) -> None:
            entries = [
                {"node": node, "kind": "container", "name": container, "action": what}
                for node, held in names.items()
                for container in held
            ]
            if entries:
                record.changed(entries)
                done.extend(entries)

        done: list[dict[str, str]] = []
        report("reading every node")
        work = look()
        if not work.batches:
            console.result(_data(work), f"Nothing to do: {name} is {_NOTHING[action]}.")
            return
        if not console.json:
            _preview(console, work)
        if work.action == "restart" and work.serious:
            raise CheckFailed("majority-at-risk", work.losses[0], where=name, hint=service.AT_RISK)
        confirm(f"service {action} would change {', '.join(work.nodes())}", yes=yes)
        service.run(site, work, expected, services, report=report, timeout=timeout, changed=changed)
        warnings = service.verify(site, work, expected)
        seconds = time.monotonic() - started
        data = {**_data(work), "changed": done, "warnings": warnings, "seconds": round(seconds, 1)}
        console.result(data, lambda: _text(console, name, work, warnings, seconds))


_NOTHING = {"stop": "stopped", "start": "running and healthy", "restart": "nowhere"}
_DONE = {"stop": "stopped", "start": "started", "restart": "restarted"}


def _reachable(chosen: Sequence[Any], facts: Mapping[str, Any], silent: Mapping[str, CloudctlError]) -> None:
    """Refuse to work on a part of the nodes because others do not answer."""
    nodes = {node for tier in chosen for node in tier.containers}
    errors = [silent[node] for node in sorted(nodes) if node in silent]
    errors += [
        CheckFailed("engine-down", f"the container engine does not answer: {why}", where=node,
                    hint="systemctl start docker, on that node")
        for node in sorted(nodes & set(facts))
        if (why := (facts[node].get("engine") or {}).get("error"))
    ]  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


def _data(work: Any, *, dry_run: bool = False) -> dict[str, Any]:
    return {
        "action": work.action,
        "containers": work.names,
        "steps": [
            {"action": batch.action, "nodes": list(batch.containers), "commands": batch.commands()}
            for batch in work.batches
        ],
        "losses": work.losses,
        "serious": work.serious,
        "dry_run": dry_run,
    }


def _preview(console: Console, work: Any) -> None:
    if not work.batches:
        console.line("Nothing to do.")
    for number, batch in enumerate(work.batches, start=1):
        console.line(f"{number:>2}. {batch.action} on {', '.join(batch.containers)}")
        for text in batch.commands():
            console.line(f"      {text}")
    if work.losses:
        console.line(console.style("What it costs:", "bad" if work.serious else "warn"))
        for text in work.losses:
            console.line(f"  {text}")


def _text(console: Console, name: str, work: Any, warnings: Sequence[str], seconds: float) -> None:
    console.line(f"{name} is {_DONE[work.action]} ({duration(seconds)}).")
    for text in warnings:
        console.line(console.style(f"  still wrong: {text}", "warn"))
    if work.action == "stop":
        console.line(f"  start it again: cloudctl service start {name}")
