"""``cloudctl deploy``: bring the cloud to what the site describes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, Masker, duration, output_option
from cloudctl.engine import plan as planning
from cloudctl.engine import workspace
from cloudctl.engine.definitions import load_services
from cloudctl.errors import CheckFailed, CloudctlError, MultiError, UsageError
from cloudctl.runner import run_playbook
from cloudctl.runs.lock import SiteLock
from cloudctl.runs.record import RunRecord
from cloudctl.site.load import load_site
from cloudctl.site.model import Site


class Progress:
    """Shows where a run is: a line for each phase and for each node that finished a step."""

    def __init__(self, console: Console, record: RunRecord) -> None:
        self._console = console
        self._record = record
        self._play = ""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the playbook's run."""
        data = event.get("event_data") or {}
        kind = event.get("event")
        if kind == "playbook_on_play_start":
            self._play = str(data.get("name") or data.get("play") or "")
        elif kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            host, res = str(data.get("host")), data.get("res") or {}
            seconds = data.get("duration")
            self._record.event(
                {
                    "play": self._play,
                    "task": data.get("task"),
                    "node": host,
                    "result": kind,
                    "seconds": seconds,
                }
            )
            done = [entry for entry in res.get("done") or [] if isinstance(entry, Mapping)]
            if kind != "runner_on_ok":
                self.line(f"{self._play}: {host}: {'unreachable' if 'unreach' in kind else 'failed'}")
            elif done:
                self._record.changed([{"node": host, **entry} for entry in done])
                self.line(f"{self._play}: {host}: {_what(done)}")

    def line(self, text: str) -> None:
        """Print a line with the time since the start, and keep it in the record."""
        self._console.progress(text)
        self._record.log(f"[{self._console.elapsed:7.1f} s] {text}")


def _what(done: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for entry in done:
        key = f"{entry.get('kind', 'change')} {entry.get('action', '')}".strip()
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{count} x {key}" if count > 1 else key for key, count in counts.items())


def check_selection(site: Site, services: Sequence[str], nodes: Sequence[str]) -> None:
    """Refuse names that are not there.

    Raises:
        UsageError: unknown service or node, with a suggestion.
    """
    known = {"service": [service.name for service in load_services(site.path)], "node": list(site.nodes)}
    for kind, names in (("service", services), ("node", nodes)):
        for name in names:
            if name not in known[kind]:
                close = get_close_matches(name, known[kind], 1)
                hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known[kind])}"
                raise UsageError(f"{kind}-unknown", f"there is no {kind} {name!r}", hint=hint)


def make_plan(
    site_path: Path, services: Sequence[str], nodes: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Run the plan's playbook; return the plan."""
    try:
        extra = {"cloudctl_services": list(services), "cloudctl_nodes": list(nodes)}
        result = run_playbook(site_path, "plan", extra, on_event=progress)
        result.raise_for_failure()
        return read_plan(site_path)
    finally:
        workspace.remove(site_path)


def read_plan(site_path: Path) -> dict[str, Any]:
    """Return the plan that the last run made."""
    found: dict[str, Any] = json.loads((site_path / ".cloudctl" / "plan.json").read_text(encoding="utf-8"))
    return found


def refuse(made: Mapping[str, Any]) -> None:
    """Refuse a plan that names OSD devices which must not be touched, before anything is changed.

    Raises:
        CheckFailed, MultiError: a device is not empty, is mounted, or cannot be judged.
    """
    errors: list[CloudctlError] = []
    for change in made["ceph"]:
        if change["action"] == "refuse":
            node, _colon, device = str(change["name"]).partition(":")
            errors.append(
                CheckFailed(
                    "osd-device-refused",
                    f"{device} cannot be used for an OSD: {change['reason']}",
                    where=node,
                    hint="name an empty device in the inventory; if its data may go, wipe it yourself "
                    "(wipefs, or ceph-volume lvm zap): cloudctl never does",
                )
            )
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)


@click.command()
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only this service (repeatable).")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only this node (repeatable).")
@click.option("--yes", is_flag=True, help="Do not ask before changing anything.")
@output_option
@click.pass_obj
def command(
    site_path: Path, services: tuple[str, ...], nodes: tuple[str, ...], yes: bool, output: str
) -> None:
    """Bring the cloud to what the site describes.

    Shows the plan's summary, then does it. Run again, it changes nothing and says so; interrupted at any
    point, running it again goes on.
    """
    site = load_site(site_path)
    check_selection(site, services, nodes)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    started = time.monotonic()
    with (
        SiteLock(site_path, "deploy"),
        RunRecord(site_path, "deploy", sys.argv[1:], mask=masker.mask) as record,
    ):
        progress = Progress(console, record)
        progress.line("reading every node")
        made = make_plan(site_path, services, nodes, progress)
        progress.line(f"plan: {planning.summary(made)}")
        changed: list[dict[str, Any]] = []
        refuse(made)
        if made["changes"]:
            if not yes and sys.stdin.isatty():
                for line in planning.describe(made, diff=False):
                    console.progress(line)
                click.confirm("Do this?", abort=True, err=True)
            elif not yes:
                raise UsageError(
                    "confirmation-needed",
                    "deploy would change the cloud, and there is no terminal to ask on",
                    hint="look at cloudctl plan, then give --yes",
                )  # fmt: skip
            try:
                extra = {"cloudctl_services": list(services), "cloudctl_nodes": list(nodes)}
                result = run_playbook(site_path, "deploy", extra, on_event=progress)
                result.raise_for_failure(changing=True)
                changed = result.changed
            finally:
                workspace.remove(site_path)
        seconds = time.monotonic() - started
        console.result(
            {"changed": changed, "seconds": round(seconds, 1), "summary": planning.summary(made)},
            lambda: _text(console, site, made, seconds),
        )


def _text(console: Console, site: Site, made: Mapping[str, Any], seconds: float) -> None:
    if not made["changes"]:
        console.line(f"Nothing to change: the cloud is as the site describes it ({duration(seconds)}).")
        return
    console.line(f"Deployed in {duration(seconds)}.")
    external = site.get("vip.external") or site.get("vip.internal")
    console.line(f"  dashboard    https://{external}/")
    console.line(
        f"  API          https://{external}:5000/v3 (the others: cloudctl openstack -- endpoint list)"
    )
    console.line(f"  credentials  {site.path}/admin-openrc.sh, CA {site.path}/ca.crt")
    console.line(
        "  next         cloudctl verify tries the cloud as a tenant; cloudctl status shows its health"
    )
