"""How an operation in numbered steps is shown on the console and kept in its run's record."""

from __future__ import annotations

from cloudctl.console import Console, duration
from cloudctl.operations.steps import Step, StepOutcome
from cloudctl.runs.record import RunRecord


class Reporter:
    """Shows and records where an operation stands.

    Args:
        console: where lines go.
        record: of the run; None for a dry run.
    """

    def __init__(self, console: Console, record: RunRecord | None) -> None:
        self._console = console
        self._record = record

    def line(self, text: str) -> None:
        """Show a line of detail."""
        self._show(f"      {text}")

    def announce(self, number: int, total: int, step: Step) -> None:
        """Show that a step begins."""
        where = f"  [{', '.join(step.nodes)}]" if step.nodes else ""
        self._show(self._console.style(f"{number:>2}/{total} {step.title}{where}", "bold", self._console.out))

    def report(self, outcome: StepOutcome) -> None:
        """Show how a step ended."""
        if outcome.result == "already done":
            text = f"{outcome.number:>2}/{outcome.total} {outcome.title}: already done"
        else:
            detail = f": {outcome.detail}" if outcome.detail else ""
            text = f"      {outcome.result} in {duration(outcome.seconds)}{detail}"
        self._show(text)
        if self._record is not None:
            self._record.event({"step": outcome.key, "result": outcome.result, "seconds": outcome.seconds})
            if outcome.result != "already done":
                self._record.changed(
                    [{"what": outcome.key, "action": outcome.result, "detail": outcome.detail}]
                )

    def _show(self, text: str) -> None:
        self._console.progress(text)
        if self._record is not None:
            self._record.log(f"[{self._console.elapsed:7.1f} s] {text}")
