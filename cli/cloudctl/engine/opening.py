"""What ``plan`` and ``deploy`` begin with: selection, lock, record, and one comparison of all nodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cloudctl.console import Console, Masker
from cloudctl.engine import workspace
from cloudctl.engine.definitions import load_services
from cloudctl.errors import UsageError
from cloudctl.power.world import refuse_while_off
from cloudctl.runner import RunResult, run_playbook
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


@dataclass
class Opening:
    """A run that holds the site's lock and has compared nothing yet.

    Attributes:
        site: the loaded site.
        services, nodes: what the run is limited to; empty: nothing.
        console, progress: where it says what it does.
    """

    site: Site
    services: Sequence[str]
    nodes: Sequence[str]
    console: Console
    progress: Progress

    def read(self) -> dict[str, Any]:
        """Compare every node with the site and return the plan; the rendered site is kept for ``apply``."""
        self._run("plan").raise_for_failure()
        path = self.site.path / ".cloudctl" / "plan.json"
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return made

    def apply(self) -> list[dict[str, Any]]:
        """Do what the plan that ``read`` returned says, nothing else; return what was changed."""
        result = self._run("deploy", cloudctl_planned=True)
        result.raise_for_failure(changing=True)
        return result.changed

    def _run(self, playbook: str, **variables: Any) -> RunResult:
        extra = {"cloudctl_services": list(self.services), "cloudctl_nodes": list(self.nodes), **variables}
        return run_playbook(Path(self.site.path), playbook, extra, on_event=self.progress)


@contextmanager
def opening(
    verb: str, site_path: Path, services: Sequence[str], nodes: Sequence[str], output: str
) -> Iterator[Opening]:
    """Load the site, check the selection, take the lock and open the record; forget what was rendered.

    Args:
        verb: the command, for lock and record.
        output: ``text`` or ``json``.

    Raises:
        CheckFailed: the cloud was shut down, or is being shut down or started.
    """
    site = load_site(site_path)
    check_selection(site, services, nodes)
    masker = Masker.for_secrets(site.secrets)
    console = Console(output, masker=masker)
    with (
        SiteLock(site_path, verb),
        RunRecord(site_path, verb, sys.argv[1:], mask=masker.mask) as record,
    ):
        if verb != "plan":
            # Containers that a shutdown stopped would be started, in no order that saves data.
            refuse_while_off(site_path, verb)
        try:
            yield Opening(site, services, nodes, console, Progress(console, record))
        finally:
            workspace.remove(site_path)
