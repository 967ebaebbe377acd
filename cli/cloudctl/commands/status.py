"""``cloudctl status``: is the cloud healthy, and if not, what is wrong where."""

from __future__ import annotations

from pathlib import Path

import click

from cloudctl.console import Console, Masker, output_option
from cloudctl.errors import CheckFailed
from cloudctl.site.load import load_site
from cloudctl.site.model import Site
from cloudctl.status.summary import Expected


@click.command()
@output_option
@click.pass_obj
def command(site_path: Path, output: str) -> None:
    """Show nodes, containers, clusters and services, and what is wrong with them.

    Ends with 0 when the cloud is healthy and with 4 when it is not. A node or an API that does not
    answer is one of the problems shown.
    """
    # Loading these takes a second: not for a command line that is wrong.
    from cloudctl.status.collect import collect
    from cloudctl.status.summary import summarise
    from cloudctl.status.text import show

    site = load_site(site_path)
    console = Console(output, masker=Masker.for_secrets(site.secrets))
    facts, silent, api = collect(site)
    status = summarise(facts, silent, api, expected(site))
    console.result(status.as_dict(), lambda: show(console, status))
    if not status.healthy:
        problems = [problem for problem in status.problems if not problem.warning]
        raise CheckFailed(
            "cloud-unhealthy",
            f"{len(problems)} problem{'s' * (len(problems) != 1)}, the first: {problems[0].message}",
            where=problems[0].where,
            hint=problems[0].hint or "see the list above",
        )


def expected(site: Site) -> Expected:
    """Return what the site wants, as far as the state is judged by it."""
    from cloudctl.backup.schedule import prefix_of
    from cloudctl.engine.definitions import load_services
    from cloudctl.engine.render import desired_containers
    from cloudctl.node.journal import joining, leaving
    from cloudctl.node_replace.journal import replacing
    from cloudctl.status.probes import clusters_of

    storage = site.group("storage")
    osds = sum(len(node.vars.get("devices") or []) for node in storage)
    return Expected(
        containers=desired_containers(site),
        nodes={node.name: node.groups for node in site.nodes.values()},
        mons=len(site.group("mons")) if osds else 0,
        osds=osds,
        vips={
            name: str(address)
            for name in ("internal", "external")
            if (address := site.get(f"vip.{name}", None))
        },
        release=str(site.get("release", "")),
        schedules=prefix_of(site),
        joining=joining(site),
        leaving=leaving(site.path),
        replacing=replacing(site.path),
        clusters=clusters_of(load_services(site.path)),
    )
