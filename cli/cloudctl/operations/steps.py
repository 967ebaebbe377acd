"""Numbered steps with a journal: what was done is known after a crash, and running again goes on from there.

A step's state is written before it begins and after it ended. One that began and did not end is run again, so
every step must be harmless to repeat: it looks at what is there first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudctl.runs.lock import state_directory
from cloudctl.runs.record import write_atomically

BEGUN, DONE, UNDONE = "begun", "done", "undone"


class Journal:
    """The state file of one operation, ``.cloudctl/operations/<name>.json`` of the site; mode 0600.

    Attributes:
        facts: what later steps (and the operation that takes this one back) need to know; saved by ``keep``.
    """

    def __init__(self, site: Path, name: str) -> None:
        directory = state_directory(site) / "operations"
        directory.mkdir(mode=0o700, exist_ok=True)
        self.path = directory / f"{name}.json"
        self.name = name
        self._data: dict[str, Any] = {}
        if self.path.exists():
            self._data = json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def open(self) -> bool:
        """True while the operation was begun and is not finished."""
        return bool(self._data) and not self._data.get("finished")

    @property
    def finished(self) -> str | None:
        """When the operation was finished (ISO 8601, UTC), None where it was not."""
        value = self._data.get("finished")
        return str(value) if value else None

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._data.setdefault("facts", {})
        return facts

    def begin(self) -> bool:
        """Start anew, or go on with what is there.

        Returns:
            True where an earlier run is continued.
        """
        if self.open:
            return True
        self._data = {"operation": self.name, "started": _now(), "finished": None, "facts": {}, "steps": {}}
        self.save()
        return False

    def restart(self, **facts: Any) -> None:
        """Give up where an earlier run stands, and begin anew with some facts, in one write."""
        self._data = {
            "operation": self.name,
            "started": _now(),
            "finished": None,
            "facts": facts,
            "steps": {},
        }
        self.save()

    def state(self, key: str) -> str | None:
        """Return begun, done or undone; None for a step that was never begun."""
        entry = self._data.get("steps", {}).get(key)
        return str(entry["state"]) if entry else None

    def mark(self, key: str, state: str, *, seconds: float | None = None, detail: str = "") -> None:
        """Write down where a step stands."""
        entry = self._data.setdefault("steps", {}).setdefault(key, {"runs": 0})
        if state == BEGUN:
            entry["runs"] += 1
        entry.update(state=state, at=_now(), seconds=seconds, detail=detail)
        self.save()

    def keep(self, **facts: Any) -> None:
        """Add facts and save them at once."""
        self.facts.update(facts)
        self.save()

    def finish(self) -> None:
        """The operation is complete: the next one begins anew."""
        self._data["finished"] = _now()
        self.save()

    def reopen(self) -> None:
        """More steps came to a finished operation: it goes on."""
        self._data["finished"] = None
        self.save()

    def forget(self) -> None:
        """Remove the state file."""
        self.path.unlink(missing_ok=True)
        self._data = {}

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        write_atomically(self.path, json.dumps(self._data, indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """Return everything (for ``--output json``)."""
        return dict(self._data)


@dataclass
class Step:
    """One numbered step.

    Attributes:
        key: its lasting name in the journal.
        title: what an operator reads.
        run: does it; returns a few words about what it found or did. Raises a ``CloudctlError`` to stop here.
        nodes: where it works (shown; empty: the deploy node or the API).
        commands: what it does, in the words of the commands that an operator would type (shown by a dry run).
        undo: takes it back; None where nothing needs to be taken back.
        every_time: a check that is made again when the operation goes on later.
    """

    key: str
    title: str
    run: Callable[[Journal], str]
    nodes: Sequence[str] = ()
    commands: Sequence[str] = ()
    undo: Callable[[Journal], str] | None = None
    every_time: bool = False


@dataclass
class StepOutcome:
    """How a step ended: ``done``, ``already done``, ``undone``."""

    number: int
    total: int
    key: str
    title: str
    result: str
    seconds: float = 0.0
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        return {
            "number": self.number,
            "name": self.key,
            "title": self.title,
            "result": self.result,
            "seconds": round(self.seconds, 2),
            "detail": self.detail,
        }


Report = Callable[[StepOutcome], None]
Announce = Callable[[int, int, Step], None]


def execute(
    steps: Sequence[Step],
    journal: Journal,
    *,
    announce: Announce = lambda number, total, step: None,
    report: Report = lambda outcome: None,
) -> list[StepOutcome]:
    """Run the steps in order, leaving out those that the journal knows as done.

    Args:
        steps: all steps of the operation, in order.
        journal: begun by the caller.
        announce: called before a step is run.
        report: called after every step.

    Returns:
        One outcome for every step. The first error ends the run; the journal tells where.
    """
    outcomes: list[StepOutcome] = []
    for number, step in enumerate(steps, start=1):
        outcome = StepOutcome(number, len(steps), step.key, step.title, "done")
        if journal.state(step.key) == DONE and not step.every_time:
            outcome.result = "already done"
        else:
            announce(number, len(steps), step)
            started = time.monotonic()
            journal.mark(step.key, BEGUN)
            outcome.detail = step.run(journal)
            outcome.seconds = time.monotonic() - started
            journal.mark(step.key, DONE, seconds=round(outcome.seconds, 2), detail=outcome.detail)
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def undo(
    steps: Sequence[Step],
    journal: Journal,
    *,
    announce: Announce = lambda number, total, step: None,
    report: Report = lambda outcome: None,
) -> list[StepOutcome]:
    """Take back what was begun or done, the last step first."""
    begun = [step for step in reversed(steps) if journal.state(step.key) in (BEGUN, DONE) and step.undo]
    outcomes: list[StepOutcome] = []
    for number, step in enumerate(begun, start=1):
        assert step.undo is not None
        announce(number, len(begun), step)
        started = time.monotonic()
        detail = step.undo(journal)
        seconds = time.monotonic() - started
        journal.mark(step.key, UNDONE, seconds=round(seconds, 2), detail=detail)
        outcome = StepOutcome(number, len(begun), step.key, step.title, "undone", seconds, detail)
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def describe(steps: Sequence[Step], journal: Journal | None = None) -> list[str]:
    """Return the lines of a dry run: every step with its nodes and commands."""
    lines: list[str] = []
    for number, step in enumerate(steps, start=1):
        done = (
            " (already done)" if journal and journal.state(step.key) == DONE and not step.every_time else ""
        )
        where = f"  [{', '.join(step.nodes)}]" if step.nodes else ""
        lines.append(f"{number:>2}. {step.title}{where}{done}")
        lines += [f"      {command}" for command in step.commands]
    return lines


def as_plan(steps: Sequence[Step]) -> list[Mapping[str, Any]]:
    """Return what a dry run shows, as data."""
    return [
        {"name": step.key, "title": step.title, "nodes": list(step.nodes), "commands": list(step.commands)}
        for step in steps
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
