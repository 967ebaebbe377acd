"""Steps that are run in order, timed, and undone in reverse: nothing here knows about clouds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Generic, TypeVar

from cloudctl.errors import CloudctlError, VerifyFailed

World = TypeVar("World")


class StepFailed(Exception):
    """A step found that something does not work; the text says what and why."""


class Step(Generic[World]):
    """One thing to try.

    Attributes:
        name: what is tried, as the operator reads it.
        look: where to look when it fails.
    """

    name: ClassVar[str]
    look: ClassVar[str] = ""

    def run(self, world: World) -> str:
        """Try it; returns a detail worth showing (may be empty).

        Raises:
            StepFailed: it does not work.
        """
        raise NotImplementedError

    def undo(self, world: World) -> None:
        """Remove what ``run`` made, also when it got only half way; harmless when there is nothing."""


@dataclass(frozen=True)
class Outcome:
    """How one step went; ``seconds`` is wall time."""

    name: str
    result: str
    """``ok``, ``failed`` or ``interrupted``."""
    seconds: float
    detail: str = ""


@dataclass
class Report:
    """How all of it went."""

    outcomes: list[Outcome] = field(default_factory=list)
    error: CloudctlError | None = None
    leftovers: list[str] = field(default_factory=list)
    """What could not be removed."""
    kept: dict[str, str] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    """Lines that help to find the cause; taken before the clean-up removes their source."""

    @property
    def healthy(self) -> bool:
        """True when every step passed and everything was removed again."""
        return self.error is None

    def as_dict(self) -> dict[str, object]:
        """Return the report for ``--output json``."""
        return {
            "healthy": self.healthy,
            "seconds": round(sum(outcome.seconds for outcome in self.outcomes), 2),
            "steps": [asdict(outcome) for outcome in self.outcomes],
            "error": self.error.as_dict() if self.error else None,
            "leftovers": self.leftovers,
            "kept": self.kept,
            "evidence": self.evidence,
        }


def describe(error: BaseException) -> str:
    """Return an exception as one line that an operator can act on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, StepFailed) else f"{type(error).__name__}: {text}"


def run_steps(
    steps: Sequence[Step[World]],
    world: World,
    *,
    keep: bool = False,
    before: Callable[[str], None] = lambda name: None,
    after: Callable[[Outcome], None] = lambda outcome: None,
    diagnose: Callable[[], list[str]] = list,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Run the steps until one fails, then undo all that were begun, last first.

    Args:
        keep: undo nothing.
        before: told a step's name when it starts.
        after: told how it went.
        diagnose: called after a failure, before anything is removed; returns evidence.
        clock: seconds, for tests.

    Returns:
        The report; a failed step is in ``report.error``, not raised.

    Raises:
        KeyboardInterrupt: interrupted; everything was undone first.
    """
    report = Report()
    begun: list[Step[World]] = []
    interrupted: KeyboardInterrupt | None = None

    def note(name: str, result: str, start: float, detail: str = "") -> None:
        outcome = Outcome(name, result, round(clock() - start, 2), detail)
        report.outcomes.append(outcome)
        after(outcome)

    for step in steps:
        before(step.name)
        begun.append(step)
        start = clock()
        try:
            detail = step.run(world)
        except KeyboardInterrupt as error:
            note(step.name, "interrupted", start)
            interrupted = error
            break
        except Exception as error:
            cause = describe(error)
            note(step.name, "failed", start, cause)
            report.error = VerifyFailed(
                "verify-failed", f"{step.name}: {cause}", where=step.name, hint=step.look or None
            )
            with contextlib.suppress(Exception):
                report.evidence = diagnose()
            break
        note(step.name, "ok", start, detail)

    if not keep or interrupted:
        before("clean up")
        start = clock()
        report.leftovers = undo_steps(begun, world)
        if report.leftovers:
            note("clean up", "failed", start, "; ".join(report.leftovers))
            report.error = report.error or VerifyFailed(
                "verify-cleanup-failed",
                f"not everything could be removed: {'; '.join(report.leftovers)}",
                hint="the next 'cloudctl verify' removes it before it starts",
            )
        else:
            note("clean up", "ok", start)
    if interrupted:
        raise interrupted
    return report


def undo_steps(begun: Sequence[Step[World]], world: World) -> list[str]:
    """Undo steps, last first; one that fails does not keep the others from being undone.

    Returns:
        What could not be undone, one line each.
    """
    failed: list[str] = []
    for step in reversed(begun):
        try:
            step.undo(world)
        except Exception as error:
            failed.append(f"{step.name}: {describe(error)}")
    return failed


def wait_until(
    check: Callable[[], object],
    timeout: float,
    what: str,
    *,
    interval: float = 1.0,
    why: Callable[[], str] = lambda: "",
) -> float:
    """Call ``check`` until it returns something true.

    Args:
        timeout: seconds.
        what: what is waited for, for the message.
        why: tells what was seen last.

    Returns:
        Seconds waited.

    Raises:
        StepFailed: it did not happen in time.
    """
    start = time.monotonic()
    while True:
        if check():
            return time.monotonic() - start
        if time.monotonic() - start + interval > timeout:
            seen = why()
            raise StepFailed(f"{what} did not happen within {timeout:.0f} s" + (f" ({seen})" if seen else ""))
        time.sleep(interval)
