"""``cloudctl node replace``: a new machine in the place of a controller that died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.operations.steps import DONE, Journal, StepOutcome, as_plan, describe, execute
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

if TYPE_CHECKING:
    from cloudctl.node.enroll import Contact, Request
    from cloudctl.node_replace.world import World

PASSWORD_FILE = "CLOUDCTL_NODE_PASSWORD_FILE"


@click.command("replace")
@click.argument("name")
@click.option("--address", help="Of the new machine, where it must be the old one's: checked only.")
@click.option("--user", default="", help="Account of the first login (default: the one that Ansible uses).")
@click.option(
    "--ask-password", is_flag=True, help="Ask for its password (without a terminal: read one line)."
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=PASSWORD_FILE,
    help=f"File with the password, - for standard input (default: ${PASSWORD_FILE}).",
)
@click.option("--fingerprint", default="", help="SHA256 fingerprint that the host key must have.")
@click.option("--dry-run", is_flag=True, help="Check, show what is lost and the steps; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; accept a host key that comes without a fingerprint.")
@output_option
@click.pass_obj
def replace_command(
    site_path: Path,
    name: str,
    address: str | None,
    user: str,
    ask_password: bool,
    password_file: Path | None,
    fingerprint: str,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Put a new machine in the place of a controller that died.

    The new machine has the old one's name and address, and an operating system, nothing else. Refuses while
    the old one is alive, and while the others of a cluster have no majority. Only the new machine is
    deployed; containers on other nodes go on running. Interrupted at any point, the same command goes on.
    """
    from cloudctl.commands.node import _password as read_password
    from cloudctl.node_replace import decide

    site = load_site(site_path)
    decide.check_target(site, name, address)
    secrets: dict[str, str] = dict(site.secrets)
    console = Console(output, masker=Masker.for_secrets(secrets))

    def request() -> Request:
        from cloudctl.node_replace.machine import request_of

        password = read_password(ask_password, password_file)
        if password:
            secrets["node_password"] = password
            console.masker = Masker.for_secrets(secrets)
        return request_of(site.nodes[name], user=user, password=password, fingerprint=fingerprint)

    if dry_run:
        _replace(site, name, console, None, request, yes=yes)
        return
    with (
        SiteLock(site_path, "node replace"),
        RunRecord(
            site_path, "node replace", sys.argv[1:], mask=lambda text: console.masker.mask(text)
        ) as record,
    ):
        _replace(site, name, console, record, request, yes=yes)


def _replace(
    site: Site,
    name: str,
    console: Console,
    record: RunRecord | None,
    request: Callable[[], Request],
    *,
    yes: bool,
) -> None:
    """Check, show, ask, and do it; without a record only show it."""
    # Loading these takes a second: not for a command line that is wrong.
    from cloudctl.commands.service import confirm
    from cloudctl.engine.opening import Progress
    from cloudctl.engine.render import Renderer
    from cloudctl.node_replace import decide
    from cloudctl.node_replace.journal import open_journal
    from cloudctl.node_replace.steps import Run, steps
    from cloudctl.node_replace.world import World, check_others

    def report(text: str) -> None:
        console.progress(text)
        if record is not None:
            record.log(f"[{console.elapsed:7.1f} s] {text}")

    began = time.monotonic()
    world = World(site, site.nodes[name], Renderer(site), report)
    journal = open_journal(site.path, name)
    state = _look(world, journal, needed=record is not None)
    goes_on = journal.open and journal.state("take-in") == DONE
    run = Run(request, _confirm(yes), Progress(console, record) if record else lambda event: None)
    every = steps(world, run)
    lost = decide.lost(name, world.volumes(), world.members, mon=world.mon)
    data: dict[str, Any] = {
        "node": name, "machine": state, "lost": lost, "continued": goes_on, "dry_run": record is None,
    }  # fmt: skip
    if record is None:
        data |= {"clusters": check_others(world, gone=not goes_on), "steps": as_plan(every)}
        console.result(data, lambda: _preview(console, world, state, lost, describe(every, journal)))
        return
    if not goes_on:
        # Before anybody is asked, and before anything is changed.
        check_others(world, gone=True)
        if not console.json:
            _preview(console, world, state, lost, describe(every, journal if journal.open else None))
        confirm(f"{name} would be given up, and a new machine be deployed in its place", yes=yes)
    if journal.begin():
        report("going on where an earlier run was interrupted")

    def announce(number: int, total: int, step: Any) -> None:
        report(f"{number}/{total} {step.title}")

    def after(outcome: StepOutcome) -> None:
        detail = f": {outcome.detail}" if outcome.detail else ""
        report(f"{outcome.number}/{outcome.total} {outcome.result} in {outcome.seconds:.1f} s{detail}")
        record.event(outcome.as_dict())
        if outcome.result == "done":
            record.changed([{"kind": "step", "name": outcome.title, "action": "done"}])

    try:
        outcomes = execute(every, journal, announce=announce, report=after)
    except BaseException:
        if journal.state("take-in") != DONE:
            # Nothing was changed, so there is nothing to go on with.
            journal.forget()
        raise
    facts = dict(journal.facts)
    journal.finish()
    seconds = time.monotonic() - began
    data |= {
        "steps": [outcome.as_dict() for outcome in outcomes],
        "seconds": round(seconds, 1),
        "touched": facts.get("touched") or [],
        "left": facts.get("left") or [],
    }

    def text() -> None:
        console.line(f"{name} is a new machine, and every cluster is whole ({duration(seconds)}).")
        for line in data["touched"]:
            console.line(f"{console.style('warning', 'warn')}: started anew meanwhile: {line}")
        if data["left"]:
            console.line(f"  next         cloudctl deploy: {', '.join(data['left'])}")

    console.result(data, text)


def _look(world: World, journal: Journal, *, needed: bool) -> str:
    """Return what is found at the node's address, where it may be replaced.

    A journal of an earlier run is given up where yet another machine has come since.

    Args:
        world: the site and the node.
        journal: of an earlier run.
        needed: without a machine nothing can be done.

    Raises:
        CheckFailed: it is not dead, or not fresh, or does not tell.
        Unreachable: nothing answers.
    """
    from cloudctl.errors import Unreachable
    from cloudctl.node_replace import decide, machine
    from cloudctl.operations import containers

    name, address = world.name, world.node.address
    found = machine.find(world.site, world.node)
    if found.state == decide.SILENT and needed:
        why = found.error.message if found.error else "no machine is there"
        raise Unreachable(
            "replacement-missing", f"there is no new machine yet: {why}", where=name,
            hint=f"install an operating system on the new machine, called {name}, with this address on the "
            "management network and an SSH server",
        )  # fmt: skip
    begun = journal.open and journal.facts.get("fingerprint")
    if found.state == decide.ITSELF and begun != found.fingerprint:
        looked = containers.look(world.site, [name])
        answer = looked.ok.get(name)
        decide.check_told(name, address, answer, "" if answer else looked.failed[name].message)
        states = {} if answer is None else answer["containers"]
        own = set(world.names.get(name, []))
        running = [n for n, item in states.items() if n in own and item["state"] in ("running", "restarting")]
        decide.check_machine(name, address, found.state, running, [n for n in states if n not in running])
    if begun and found.state != decide.SILENT and begun != found.fingerprint and needed:
        world.report(f"another machine has come since the interrupted run ({found.fingerprint}): anew")
        journal.forget()
    return found.state


def _confirm(yes: bool) -> Callable[[Contact], bool]:
    def ask(contact: Contact) -> bool:
        from cloudctl.errors import UsageError

        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError(
                "confirmation-needed", "the host key must be accepted, and there is no terminal",
                where=contact.request.name,
                hint=f"compare {contact.fingerprint} with the machine's console, then give --fingerprint",
            )  # fmt: skip
        return click.confirm(f"Is this the host key of the new {contact.request.name}?", err=True)

    return ask


def _preview(
    console: Console, world: World, state: str, lost: dict[str, list[str]], lines: Sequence[str]
) -> None:
    what = {"silent": "nothing answers yet", "itself": "a fresh machine with the old host key"}
    console.line(f"{world.name} at {world.node.address}: {what.get(state, 'a new machine answers')}")
    console.line("Only the old machine had, and is lost with it:")
    for entry in lost["gone"]:
        console.line(f"  {entry}")
    console.line("The others have it too:")
    for entry in lost["copied"]:
        console.line(f"  {entry}")
    console.line("Steps:")
    for line in lines:
        console.line(line)
