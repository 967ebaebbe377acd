"""``cloudctl lab``: a whole cloud's servers as containers on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import click

from cloudctl.errors import INTERRUPTED, Unreachable, UsageError


def _report(line: str) -> None:
    click.echo(line, err=True)


@click.group(name="lab")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, use and remove a lab: servers as containers on this machine.

    CLOUDCTL_LAB names it (default: lab), so that several can stand side by side.
    """
    if ctx.invoked_subcommand != "destroy":
        from cloudctl.lab import powercontrol, topology

        powercontrol.ensure(topology.NAME)


@command.command()
@click.option(
    "--topology",
    type=click.Choice(["full", "small", "molecule", "storage"]),
    default="full",
    show_default=True,
)
@click.option(
    "--data-disks", default=1, show_default=True, help="Of each storage server; they share a journal disk."
)
@click.option(
    "--spare-disks",
    default=0,
    show_default=True,
    help="Of each storage server, empty and not in the inventory.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until every node answers.")
def create(topology: str, data_disks: int, spare_disks: int, wait: bool) -> None:
    """Make the lab, or what is missing of it, and its site directory."""
    from cloudctl.lab import manager, sitedir

    began = time.monotonic()
    manager.create(topology, _report, data_disks=data_disks, spare_disks=spare_disks, wait=wait)
    _report(f"lab ready in {time.monotonic() - began:.1f} s: cloudctl --site {sitedir.SITE} …")


@command.command()
@click.option("--cache", is_flag=True, help="Remove the node images, container images and packages too.")
def destroy(cache: bool) -> None:
    """Remove the lab: nodes, switches, disks and the site directory with its secrets."""
    from cloudctl.lab import manager

    manager.destroy(_report, cache=cache)


@command.command("add-node")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["compute", "storage", "control"]),
    help="Default: by the name (osd: storage).",
)
@click.option("--data-disks", type=int, default=1, show_default=True, help="Of a storage server, 8 GiB each.")
@click.option(
    "--mtu-limit",
    "limits",
    multiple=True,
    metavar="NIC=BYTES",
    help="What its switch port passes at most, for example eth1=1500 (repeatable).",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it answers.")
def add_node(name: str, role: str | None, data_disks: int, limits: tuple[str, ...], wait: bool) -> None:
    """Add a bare server: an operating system, and a user that logs in with a password.

    NAME ends in a number, which gives its address (compute03: 10.10.10.23, osd04: 10.10.10.214). The site
    knows nothing of it: cloudctl node enroll tells it.
    """
    from cloudctl.lab import manager
    from cloudctl.lab.topology import STEM

    if role is None:
        role = next((key for key, stem in STEM.items() if name.startswith((stem, key))), None)
    if role is None:
        raise UsageError("lab-node-role", f"the name {name!r} does not tell its role", hint="--role compute")
    wanted = {}
    for limit in limits:
        nic, _equals, size = limit.partition("=")
        if not size.isdigit() or not 68 <= int(size) <= 9000:
            raise UsageError("lab-mtu-limit", f"{limit!r} is not NIC=BYTES", hint="--mtu-limit eth1=1500")
        wanted[nic] = int(size)
    manager.add_node(name, role, _report, data_disks=data_disks, mtu_limits=wanted, wait=wait)


@command.command("remove-node")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def remove_node(names: tuple[str, ...]) -> None:
    """Remove servers that add-node made, with their disks. The site is left as it is."""
    from cloudctl.lab import manager

    manager.remove_nodes(names, _report)


@command.command()
@click.argument("name")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it answers.")
def remake(name: str, wait: bool) -> None:
    """Put a new machine in the place of a server that is off: an operating system and empty disks.

    It has the name and the management address of the old one, another host key, and a user that logs in with
    a password. cloudctl node replace takes it into the cloud.
    """
    from cloudctl.lab import manager

    manager.remake(name, _report, wait=wait)


@command.command()
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(output: str) -> None:
    """Show the lab's nodes."""
    from cloudctl.lab import manager

    rows = manager.status()
    if output == "json":
        click.echo(json.dumps({"nodes": rows}, indent=2))
        return
    if not rows:
        click.echo("there is no lab: cloudctl lab create")
        return
    for row in rows:
        state = "up" if row["up"] else row["state"]
        click.echo(f"{row['name']:12} {row['role']:9} {row['address']:15} {state:9} {' '.join(row['disks'])}")


@command.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def exec_(node: str, argv: tuple[str, ...]) -> int:
    """Run a command in a node, with this terminal, standard input and the command's exit code."""
    from cloudctl.lab import manager
    from cloudctl.lab.nodes import pid
    from cloudctl.lab.podman import podman

    (chosen,) = manager.pick([node])
    if not pid(chosen):
        raise Unreachable("lab-node-off", f"{node} is off", where=node, hint=f"cloudctl lab power on {node}")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        result = subprocess.run([*podman(), "exec", "-it" if terminal else "-i", chosen.container, *argv])
    except KeyboardInterrupt:
        return INTERRUPTED
    return result.returncode


@command.command()
@click.argument("action", type=click.Choice(["on", "off", "kill"]))
@click.argument("node", nargs=-1)
@click.option("--all", "all_nodes", is_flag=True, help="Every node of the lab.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="After on: until they answer.")
def power(action: str, node: tuple[str, ...], all_nodes: bool, wait: bool) -> None:
    """Switch nodes on, off (a clean shutdown), or cut their power (kill)."""
    from cloudctl.lab import manager, sitedir

    names = list(sitedir.recorded_nodes()) if all_nodes else list(node)
    if not names:
        raise click.UsageError("name a node, or --all")
    manager.power(action, names, wait=wait)
