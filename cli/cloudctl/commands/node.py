"""``cloudctl node``: machines come and go, and nothing else notices."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.errors import CloudctlError, ConfigError, MultiError, UsageError
from cloudctl.node_replace.command import PASSWORD_FILE, replace_command
from cloudctl.operations.reporter import Reporter
from cloudctl.operations.steps import Journal, as_plan, describe, execute
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Node, Site

if TYPE_CHECKING:
    from cloudctl.node.enroll import Contact, Request, Result


@click.group()
def command() -> None:
    """Let machines come and go; nothing else notices."""


command.add_command(replace_command)


def _raise(errors: Sequence[CloudctlError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


def _split(names: Sequence[str]) -> list[str]:
    """Return the names that were given, with spaces or commas between them.

    Raises:
        UsageError: one of them is empty (a variable that was not set, say).
    """
    found = [part.strip() for name in names for part in name.split(",")]
    if not all(found):
        raise UsageError(
            "node-name-empty", "the name of a node is empty", hint="name the nodes; cloudctl node list"
        )
    return found


# -- enroll ------------------------------------------------------------------------------------


@command.command("enroll")
@click.argument("name", required=False)
@click.option("--address", help="On the management network.")
@click.option("--role", type=click.Choice(["compute", "storage"]), help="What it is to be.")
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
@click.option(
    "--from", "source", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with many servers."
)
@click.option("--yes", is_flag=True, help="Accept host keys that come without a fingerprint.")
@output_option
@click.pass_obj
def enroll_command(
    site_path: Path,
    name: str | None,
    address: str | None,
    role: str | None,
    user: str,
    ask_password: bool,
    password_file: Path | None,
    fingerprint: str,
    source: Path | None,
    yes: bool,
    output: str,
) -> None:
    """Make first contact with a server that has only an operating system.

    Checks that it is nobody else's machine, shows its host key, logs in once with the password (or with the
    deploy key, where that is installed), checks its system and clock; then installs the deploy key, switches
    passwords off and writes it into the inventory's newnodes. A server that is refused stays as it was.
    """
    if (source is None) == (name is None) or (name is not None) != (address is not None):
        raise UsageError(
            "enroll-what", "name one server with its --address, or many with --from FILE",
            hint="cloudctl node enroll compute03 --address 10.10.10.23 --role compute",
        )  # fmt: skip
    if source is not None and fingerprint:
        raise UsageError("enroll-fingerprint", "with --from, each entry has its own `fingerprint`")
    site = load_site(site_path)
    password = _password(ask_password, password_file)
    secrets = [*site.secrets.items(), *([("node_password", password)] if password else [])]
    console = Console(output, masker=Masker.for_secrets(dict(secrets)))
    # Loading these takes a moment: not for a command line that is wrong.
    from cloudctl.node import journal
    from cloudctl.node.enroll import Request, enroll, read_requests

    default = Request(name or "", address or "", role or "", user, password, fingerprint)
    requests = [default] if source is None else read_requests(source, default)
    with (
        SiteLock(site_path, "node enroll"),
        RunRecord(site_path, "node enroll", sys.argv[1:], mask=console.masker.mask) as record,
    ):

        def say(text: str) -> None:
            console.progress(text)
            record.log(text)

        def confirm(contact: Contact) -> bool:
            if yes:
                return True
            if not sys.stdin.isatty():
                raise UsageError(
                    "confirmation-needed", "the host key must be accepted, and there is no terminal",
                    where=contact.request.name,
                    hint=f"compare {contact.fingerprint} with the server's console, then give it as "
                    "--fingerprint (or --yes)",
                )  # fmt: skip
            return click.confirm(f"Is this the host key of {contact.request.name}?", err=True)

        result = enroll(site, requests, confirm=confirm, say=say)
        for entry in result.done:
            journal.drop(site_path, journal.REMOVE, entry.contact.request.name)
        record.changed([{"node": entry.contact.request.name, "action": "enroll"} for entry in result.done])
        _show_enrolled(console, result, requests)
        _raise(list(result.failed.values()))


def _show_enrolled(console: Console, result: Result, requests: Sequence[Request]) -> None:
    def text() -> None:
        for entry in result.done:
            request = entry.contact.request
            for warning in entry.warnings:
                console.line(f"{console.style('warning', 'warn')}: {request.name}: {warning}")
            console.line(f"Enrolled {request.name} ({request.address}, {entry.system}); it is in newnodes.")
        if result.done:
            names = " ".join(entry.contact.request.name for entry in result.done)
            console.line(
                f"  next         cloudctl node inspect {names.split()[0]}; cloudctl node add {names}"
            )

    data: dict[str, Any] = {
        "enrolled": [entry.as_dict() for entry in result.done],
        "refused": {name: error.as_dict() for name, error in result.failed.items()},
    }
    console.result(data, text)


def _password(ask: bool, file: Path | None) -> str | None:
    """Return the password, None where none was given; it is never an argument.

    Raises:
        UsageError, ConfigError: it cannot be read.
    """
    if ask and sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, err=True))
    if not ask and file is None:
        return None
    source = None if ask or str(file) == "-" else file
    place = str(source or "standard input")
    try:
        return _password_in(source) if source else _line(sys.stdin.readline(), place)
    except UnicodeDecodeError:
        # Its text has the bytes: it is not told.
        raise ConfigError(
            "password-unreadable", f"{place} is no text in UTF-8", where=place,
            hint="the first line must be the password, in UTF-8",
        ) from None  # fmt: skip


def _password_in(file: Path) -> str:
    try:
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            click.echo(f"warning: others may read {file}: chmod 600 {file}", err=True)
        return _line(file.read_text(encoding="utf-8").split("\n")[0], str(file))
    except OSError as error:
        raise ConfigError(
            "password-unreadable", f"{file} cannot be read: {os.strerror(error.errno or 0)}", where=str(file),
            hint="a lab's commands run on its deploy node: the file must be in the site's directory",
        ) from error  # fmt: skip


def _line(text: str, where: str) -> str:
    password = text.rstrip("\r\n")
    if not password:
        raise UsageError("password-empty", f"{where} holds no password")
    return password


def _load(site_path: Path, output: str) -> tuple[Site, Console]:
    site = load_site(site_path)
    return site, Console(output, masker=Masker.for_secrets(site.secrets))


# -- inspect -----------------------------------------------------------------------------------


@command.command("inspect")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--accept", is_flag=True, help="Write the proposal into the inventory.")
@output_option
@click.pass_obj
def inspect_command(site_path: Path, names: tuple[str, ...], accept: bool, output: str) -> None:
    """Show what a machine has, and propose its ports and its OSD devices.

    Ports with MAC, speed and link; disks by stable path with size, kind and content. Data goes on spinning or
    larger disks, journals on SSDs; a disk with anything on it is left alone. Ports of a waiting node that are
    down are up for some seconds, to see their link. Nothing is written without --accept.
    """
    from cloudctl.node.facts import ask, propose, refuse_members
    from cloudctl.node.future import refuse_invalid
    from cloudctl.node.inventory import WAITING, read_text, role_of, write_text
    from cloudctl.site.document import Problems
    from cloudctl.site.edit_inventory import set_variables
    from cloudctl.site.inventory import read_inventory
    from cloudctl.site.load import INVENTORY

    site, console = _load(site_path, output)
    nodes = {name: _known(site, name) for name in _split(names)}
    if accept:
        for node in nodes.values():
            refuse_members(node)
    machines = ask(site, list(nodes))
    ports, groups = ports_by_group(site), read_inventory(site_path, INVENTORY, Problems()).vars
    found = {}
    for name, node in nodes.items():
        waiting = WAITING in node.groups
        role = role_or_none(node, role_of) if waiting else next((g for g in node.groups if g in ports), "")
        found[name] = propose(node, role, ports.get(role, {}), machines[name], groups.get(role))
    written = False
    if accept and any(proposal.variables for proposal in found.values()):
        with (
            SiteLock(site_path, "node inspect"),
            RunRecord(site_path, "node inspect", sys.argv[1:], mask=console.masker.mask) as record,
        ):
            text = read_text(site_path)
            for name, proposal in found.items():
                if proposal.variables:
                    text = set_variables(text, name, proposal.variables)
            refuse_invalid(site_path, text, ", ".join(found))
            write_text(site_path, text)
            record.changed(
                [
                    {"node": name, "action": "write", "variables": proposal.variables}
                    for name, proposal in found.items()
                    if proposal.variables
                ]
            )
            written = True
    data = {
        name: {
            **machines[name],
            "proposal": proposal.variables,
            "reasons": proposal.reasons,
            "notes": proposal.notes,
        }
        for name, proposal in found.items()
    }
    console.result({"nodes": data, "written": written}, lambda: _show_machines(console, data, accept=accept))


def role_or_none(node: Node, role_of: Callable[[Node], str]) -> str:
    """Return what a waiting node is to be, an empty string when nobody said."""
    try:
        return role_of(node)
    except ConfigError:
        return ""


def ports_by_group(site: Site) -> dict[str, dict[str, str]]:
    """Return by group its ports: kernel name to network."""
    from cloudctl.site.document import Problems, read_document
    from cloudctl.site.load import NETWORKS
    from cloudctl.site.schema import schema

    document = read_document(site.path, NETWORKS, Problems())
    given = (document.data or {}).get("interfaces") if document else {}
    known = {group: dict(entry["default"]) for group, entry in schema()["interfaces"].items()}
    return {**known, **{group: dict(ports or {}) for group, ports in (given or {}).items()}}


def _known(site: Site, name: str) -> Node:
    from difflib import get_close_matches

    node = site.nodes.get(name)
    if node is None:
        close = get_close_matches(name, list(site.nodes), 1)
        hint = f"did you mean {close[0]!r}?" if close else "cloudctl node list"
        raise UsageError("node-unknown", f"there is no node {name!r} in the inventory", hint=hint)
    return node


def _show_machines(console: Console, data: Mapping[str, Any], *, accept: bool) -> None:
    from cloudctl.node.facts import size

    for name, machine in data.items():
        console.line(console.style(name, "bold", console.out))
        rows: list[Sequence[object]] = []
        for port in machine["ports"]:
            link = {True: "up", False: "no link"}.get(port["link"], "down")
            rows.append(
                (port["name"], port["mac"], port["speed"], link, port["mtu"], " ".join(port["addresses"]))
            )
        console.table(("port", "mac", "Mbit/s", "link", "mtu", "addresses"), rows)
        rows = [
            (disk["path"], disk["name"], size(disk["size"]), "rotational" if disk["rotational"] else "ssd",
             disk["content"] or "empty")
            for disk in machine["disks"]
        ]  # fmt: skip
        console.table(("disk", "now", "size", "kind", "content"), rows)
        for note in machine["notes"]:
            console.line(f"  note: {note}")
        for reason in machine["reasons"]:
            console.line(f"  {reason}")
        for key, value in machine["proposal"].items():
            console.line(f"  {key}: {value}")
        if machine["proposal"]:
            console.line("  written" if accept else "  --accept writes this into the inventory")


# -- add ---------------------------------------------------------------------------------------


def _begin(stack: ExitStack, site_path: Path, verb: str, console: Console, *, dry_run: bool) -> Reporter:
    """Take the site's lock and begin a run's record, which a dry run has none of; return who tells of it."""
    stack.enter_context(SiteLock(site_path, verb))
    record = None
    if not dry_run:
        record = stack.enter_context(RunRecord(site_path, verb, sys.argv[1:], mask=console.masker.mask))
    return Reporter(console, record)


def confirm(question: str, lines: Sequence[str], console: Console, *, yes: bool) -> None:
    """Ask before anything is changed.

    Raises:
        UsageError: there is no terminal to ask on.
        click.Abort: no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "confirmation-needed", f"this would {question}, and there is no terminal to ask on",
            hint="look at it with --dry-run, then give --yes",
        )  # fmt: skip
    for line in lines:
        console.progress(line)
    click.confirm(f"{question[0].upper()}{question[1:]}?", abort=True, err=True)


@command.command("add")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--dry-run", is_flag=True, help="Check the machines and show what would be done; change nothing."
)
@click.option("--yes", is_flag=True, help="Do not ask before anything is changed.")
@output_option
@click.pass_obj
def add_command(site_path: Path, names: tuple[str, ...], dry_run: bool, yes: bool, output: str) -> None:
    """Let machines of newnodes join the running cloud, all at the same time.

    Only they are worked on: checks, base settings, network, container engine, services. The others are told
    what they need to know in one call each; none of their containers is restarted. At the end a VM runs on
    each new compute node, data is read from each new storage node, and the inventory is changed. Interrupted
    at any point, running it again goes on.
    """
    from cloudctl.node import join, journal
    from cloudctl.node.future import future_site
    from cloudctl.node.inventory import joined, read_text, waiting

    site, console = _load(site_path, output)
    wanted = _split(names)
    # A run that was killed after its last step: only its end is not written down.
    arrived = {name: role for name, role in journal.arrived(site).items() if name in wanted}
    roles = waiting(site, [name for name in wanted if name not in arrived])
    began = time.monotonic()
    with ExitStack() as stack:
        reporter = _begin(stack, site_path, "node add", console, dry_run=dry_run)
        for name, role in arrived.items():
            reporter.line(f"{name} is in {role} already; cloudctl plan tells whether anything is left to do")
            if not dry_run:
                journal.drop(site_path, journal.ADD, name)
        if not roles and dry_run:
            console.result({"dry_run": True, "nodes": {}}, "Nothing was changed.")
            return
        if not roles:
            data = {"added": arrived, "seconds": 0.0, "steps": [], "others": {}}
            console.result(data, f"Added {', '.join(arrived)}; cloudctl status shows the cloud.")
            return
        text = joined(read_text(site_path), roles)
        future = stack.enter_context(future_site(site_path, text))
        change = join.change_of(site, load_site(future), list(roles))
        joining = join.Joining(change, roles, reporter.line, begun=list(journal.joining(site)))
        reporter.line(f"checking {', '.join(roles)}: machine, networks at full size, disks, registry")
        found = joining.check()
        reporter.line(f"{found} ({time.monotonic() - began:.1f} s)")
        for finding in joining.warnings:
            console.line(
                f"{console.style('warning', 'warn')}[{finding.ref}]: {finding.node}: {finding.message}"
            )
        if dry_run:
            lines = joining.describe()
            console.result({"dry_run": True, **joining.as_dict()}, lambda: _lines(console, lines))
            return
        confirm(f"add {', '.join(roles)}", joining.describe(), console, yes=yes)
        from cloudctl.node.prove import Computes

        computes = Computes(site, joining.of_role("compute"), reporter.line)
        state = journal.begin(site_path, journal.ADD, roles)
        try:
            steps = join.build(joining, computes)
            outcomes = execute(steps, state, announce=reporter.announce, report=reporter.report)
            journal.end(state)
            for name in roles:
                journal.drop(site_path, journal.REMOVE, name)
            ready = time.monotonic() - began
            reporter.line("removing what was made to try them")
        finally:
            computes.end()
        data = {
            "added": roles,
            "seconds": round(ready, 1),
            "steps": [outcome.as_dict() for outcome in outcomes],
            "others": {node: work.as_dict() for node, work in change.others.items()},
        }
        console.result(
            data, f"Added {', '.join(roles)} in {duration(ready)}; cloudctl status shows the cloud."
        )


def _lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.line(line)
    console.line("Nothing was changed.")


# -- list, show --------------------------------------------------------------------------------


@command.command("list")
@output_option
@click.pass_obj
def list_command(site_path: Path, output: str) -> None:
    """List the nodes of the inventory: what they are, and where they stand. No node is asked."""
    from cloudctl.node.listing import rows

    site = load_site(site_path, with_secrets=False)
    console = Console(output)
    found = rows(site)

    def text() -> None:
        console.table(
            ("node", "address", "role", "mon", "state"),
            [(row["name"], row["address"], row["role"] or "-", row["mon"], row["state"]) for row in found],
        )

    console.result({"nodes": found}, text)


@command.command("show")
@click.argument("name")
@output_option
@click.pass_obj
def show_command(site_path: Path, name: str, output: str) -> None:
    """Show a node: what the inventory says of it, and what is true of it now."""
    from cloudctl.node.listing import details, live

    site, console = _load(site_path, output)
    node = _known(site, name)
    said, found = details(site, node), live(site, node)

    def text() -> None:
        console.line(console.style(f"{name}  {node.address}  {said['role'] or '-'}", "bold", console.out))
        console.line(f"  groups     {', '.join(said['groups'])}; {said['state']}")
        for port in said["ports"]:
            console.line(
                f"  {port['name']:9}  {port['network']}, {port['address'] or 'no address'}, MTU {port['mtu']}"
            )
        for device in said["devices"]:
            console.line(f"  OSD        {device}")
        if not found["reachable"]:
            console.line(f"  now        does not answer: {found['error']}")
            return
        system = f"{found['system']}, kernel {found['kernel']}, up {duration(float(found['uptime'] or 0))}"
        console.line(f"  now        {system}")
        wanted = set(said["containers"])
        for container, state in sorted(found["containers"].items()):
            mark = "" if container in wanted or not wanted else "  (not of cloudctl)"
            console.line(f"  container  {container}: {state['state']} {state['health']}{mark}")
        for container in sorted(wanted - set(found["containers"])):
            console.line(f"  container  {container}: absent")
        for instance in found["instances"] or []:
            console.line(f"  VM         {instance['name']} ({instance['id']}): {instance['status']}")

    console.result({**said, "now": found}, text)


# -- remove ------------------------------------------------------------------------------------


@command.command("remove")
@click.argument("name")
@click.option(
    "--dead", is_flag=True, help="It is off and will never come back: nothing is moved away from it."
)
@click.option("--dry-run", is_flag=True, help="Check, and show every step; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before anything is changed.")
@output_option
@click.pass_obj
def remove_command(site_path: Path, name: str, dead: bool, dry_run: bool, yes: bool, output: str) -> None:
    """Let a node leave the cloud.

    Compute: no new instances, its instances move away live, then its services and registrations go. Storage:
    its data moves away, its OSDs and its host go. At last the inventory. With --dead, for a machine that is
    off: its instances are started elsewhere, its data is made complete from the other copies. Refused for the
    last compute node, for controllers, and where data would have too few places. Interrupted at any point,
    running it again goes on.
    """
    from cloudctl.errors import CheckFailed
    from cloudctl.node import journal, leave
    from cloudctl.node.future import future_site
    from cloudctl.node.instances import Compute
    from cloudctl.node.inventory import WAITING, joined, read_text
    from cloudctl.node.join import change_of
    from cloudctl.site.edit_inventory import remove_host

    site, console = _load(site_path, output)
    if name not in site.nodes and name in journal.leaving(site_path):
        _end_removal(site_path, name, console, dry_run=dry_run)
        return
    node = _known(site, name)
    leave.refuse_indispensable(site, node)
    joining = journal.joining(site).get(name)
    began = time.monotonic()
    with ExitStack() as stack:
        reporter = _begin(stack, site_path, "node remove", console, dry_run=dry_run)
        text, before = read_text(site_path), site
        roles: list[str] = [group for group in ("compute", "storage") if group in node.groups]
        if WAITING in node.groups and joining:
            # Half a member: the others may know it already.
            roles = [joining]
            whole = joined(text, {name: joining})
            before = load_site(stack.enter_context(future_site(site_path, whole, "present")))
            node = before.nodes[name]
        state = Journal(site_path, journal.REMOVE)
        continued = state.open and name in (state.facts.get("nodes") or {})
        heir = leave.heir_of_monitor(site, node) if leave.MONITORS in node.groups else None
        # Interrupted after the inventory names the monitor's new place: the cloud may not know it yet.
        known = str(state.facts.get("monitor") or "") if continued else ""
        if heir:
            text = leave.with_heir(text, name, heir.name)
            before = load_site(stack.enter_context(future_site(site_path, text, "present")))
        future = stack.enter_context(future_site(site_path, remove_host(text, name)))
        try:
            change = change_of(before, load_site(future), [name])
        except CloudctlError as error:
            raise CheckFailed(
                "node-needed", f"without {name} the site would not work: {error.message}", where=name,
                hint=error.hint,
            ) from error  # fmt: skip
        leaving = leave.Leaving(
            site, node, roles, change, dead, reporter.line, Compute(site), heir.name if heir else known
        )
        steps = leave.build(leaving)
        reporter.line(f"checking what {name} serves")
        reporter.line(leaving.check() or "nothing")
        if dry_run:
            lines = describe(steps)
            data = {"dry_run": True, "node": name, "dead": dead, "steps": as_plan(steps), **leaving.report}
            console.result(data, lambda: _lines(console, lines))
            return
        if not continued:
            confirm(f"remove {name}", describe(steps), console, yes=yes)
        state = journal.begin(site_path, journal.REMOVE, {name: "dead" if dead else "alive"})
        state.keep(monitor=leaving.heir, address=node.address, port=node.vars.get("ansible_port"))
        outcomes = execute(steps, state, announce=reporter.announce, report=reporter.report)
        journal.end(state)
        journal.drop(site_path, journal.ADD, name)
        seconds = time.monotonic() - began
        data = {
            "removed": name,
            "dead": dead,
            "seconds": round(seconds, 1),
            "steps": [outcome.as_dict() for outcome in outcomes],
            **leaving.report,
        }
        _show_removed(console, site_path, data)


def _show_removed(console: Console, site_path: Path, data: Mapping[str, Any]) -> None:
    """Show how a removal ended, and what is left of the node in the site."""
    from cloudctl.node.leave import left_of

    name = data["removed"]
    left = left_of(site_path, name)

    def text() -> None:
        console.line(f"Removed {name} in {duration(data['seconds'])}; cloudctl status shows the cloud.")
        for file in left:
            console.line(
                f"{console.style('warning', 'warn')}: {file} is left: a later {name} would have what it says"
            )

    console.result({**data, "left": left}, text)


def _end_removal(site_path: Path, name: str, console: Console, *, dry_run: bool) -> None:
    """Go on with a removal that was interrupted after the inventory had lost the node."""
    from cloudctl.node import journal, leave

    began = time.monotonic()
    with ExitStack() as stack:
        reporter = _begin(stack, site_path, "node remove", console, dry_run=dry_run)
        state = Journal(site_path, journal.REMOVE)
        # Another node's removal may have begun since then, and have overwritten what was known of this one.
        facts = state.facts if name in (state.facts.get("nodes") or {}) else {}
        port = {"ansible_port": facts["port"]} if facts.get("port") else {}
        node = Node(name, (), str(facts.get("address") or name), vars=port)
        steps = leave.rest(site_path, node, str(facts.get("monitor") or ""))
        if dry_run:
            lines = describe(steps)
            console.result(
                {"dry_run": True, "node": name, "steps": as_plan(steps)}, lambda: _lines(console, lines)
            )
            return
        outcomes = execute(steps, state, announce=reporter.announce, report=reporter.report)
        journal.drop(site_path, journal.REMOVE, name)
        journal.drop(site_path, journal.ADD, name)
        data = {
            "removed": name,
            "seconds": round(time.monotonic() - began, 1),
            "steps": [outcome.as_dict() for outcome in outcomes],
        }
        _show_removed(console, site_path, data)
