"""The record a run leaves in ``SITE/.cloudctl/runs/<id>/``: ``run.json``, ``log.jsonl``, ``log.txt``.

Nothing secret gets into it: every text passes the masker on its way in. A run that was killed cannot
write its end; its record is recognised by the lock on ``log.jsonl`` being gone while no result is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudctl.errors import INTERNAL, INTERRUPTED, OK, CloudctlError, UsageError
from cloudctl.runs.lock import caller, state_directory

RUNNING = "running"
SUCCEEDED = "ok"
FAILED = "failed"
INTERRUPTED_RESULT = "interrupted"

MASK = "********"
_SECRET_OPTION = re.compile(r"(password|passwd|secret|token|private-?key)", re.IGNORECASE)

Change = Mapping[str, object] | str
"""One changed thing: a sentence, or keys such as ``node``, ``what``, ``action``, ``reason``."""


def mask_arguments(argv: Sequence[str]) -> list[str]:
    """Return the command line with the values of options that carry a secret by their name hidden.

    >>> mask_arguments(["--password", "x", "--os-token=y", "--yes"])
    ['--password', '********', '--os-token=********', '--yes']
    """
    masked: list[str] = []
    hide_next = False
    for argument in argv:
        if hide_next and not argument.startswith("-"):
            masked.append(MASK)
            hide_next = False
            continue
        hide_next = False
        if argument.startswith("-") and _SECRET_OPTION.search(argument.partition("=")[0]):
            option, equals, _value = argument.partition("=")
            masked.append(option + (equals + MASK if equals else ""))
            # "--password-file x" names a file, which is no secret and worth knowing.
            hide_next = not equals and not option.endswith("-file")
        else:
            masked.append(argument)
    return masked


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return the value with every text in it (keys too) masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {mask(str(key)): _masked(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item, mask) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return mask(str(value))


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file so that a reader (or a crash) sees the old or the new text, never half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class RunRecord:
    """Writes one run's record; a context manager that also records how the run ended.

    Args:
        site_path: the site's directory.
        verb: the command, for example ``deploy``.
        argv: the command line after the program's name.
        mask: takes a text and returns it without the site's secrets.
    """

    def __init__(
        self,
        site_path: Path,
        verb: str,
        argv: Sequence[str],
        *,
        mask: Callable[[str], str] = lambda text: text,
    ) -> None:
        self._mask = mask
        started = datetime.now(UTC)
        self.id = f"{started:%Y%m%dT%H%M%SZ}-{verb}-{secrets.token_hex(2)}"
        runs = state_directory(site_path) / "runs"
        runs.mkdir(mode=0o700, exist_ok=True)
        self.path = runs / self.id
        self.path.mkdir(mode=0o700)
        self._guard = threading.Lock()
        self._run: dict[str, object] = {
            "id": self.id,
            "verb": verb,
            "who": caller(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": mask(" ".join(["cloudctl", *mask_arguments(argv)])),
            "started": started.isoformat(timespec="milliseconds"),
            "ended": None,
            "seconds": None,
            "result": RUNNING,
            "exit_code": None,
            "message": None,
            "changed": [],
        }
        self._started = started
        self._events = self._open("log.jsonl")
        # Held until this process ends: how a reader tells a running run from a killed one.
        fcntl.flock(self._events, fcntl.LOCK_EX)
        self._text = self._open("log.txt")
        self._save()

    def _open(self, name: str) -> int:
        return os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _save(self) -> None:
        write_atomically(self.path / "run.json", json.dumps(self._run, indent=1) + "\n")

    @property
    def finished(self) -> bool:
        """True once the run's end is written."""
        return self._run["result"] != RUNNING

    def event(self, event: Mapping[str, object]) -> None:
        """Append one event (any JSON-like keys) to ``log.jsonl`` with the time it came."""
        line = json.dumps({"at": _now(), **_masked(event, self._mask)}) + "\n"
        with self._guard:
            if not self.finished:
                os.write(self._events, line.encode())

    def log(self, text: str) -> None:
        """Append what the operator saw to ``log.txt``."""
        with self._guard:
            if not self.finished:
                os.write(self._text, (self._mask(text).rstrip("\n") + "\n").encode())

    def changed(self, changes: Sequence[Change]) -> None:
        """Add changed things; written at once, so that a run killed later still tells what it did."""
        with self._guard:
            known = self._run["changed"]
            assert isinstance(known, list)
            known.extend(_masked(list(changes), self._mask))
            self._save()

    def finish(
        self,
        result: str = SUCCEEDED,
        exit_code: int = OK,
        *,
        changed: Sequence[Change] = (),
        message: str | None = None,
    ) -> None:
        """Write the run's end; a second call does nothing."""
        with self._guard:
            if self.finished:
                return
            ended = datetime.now(UTC)
            known = self._run["changed"]
            assert isinstance(known, list)
            known.extend(_masked(list(changed), self._mask))
            self._run.update(
                ended=ended.isoformat(timespec="milliseconds"),
                seconds=round((ended - self._started).total_seconds(), 3),
                result=result,
                exit_code=exit_code,
                message=None if message is None else self._mask(message),
            )
            self._save()
            os.close(self._events)
            os.close(self._text)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, CloudctlError):
            self.finish(FAILED, error.exit_code, message=error.render())
        elif isinstance(error, KeyboardInterrupt):
            self.finish(INTERRUPTED_RESULT, INTERRUPTED, message="interrupted by the operator")
        elif isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else (OK if error.code is None else INTERNAL)
            self.finish(SUCCEEDED if code == OK else FAILED, code)
        else:
            self.finish(FAILED, INTERNAL, message=f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Run:
    """A recorded run as it is read back."""

    id: str
    path: Path
    verb: str
    who: str
    command: str
    started: str
    ended: str | None
    seconds: float | None
    result: str
    """``running``, ``ok``, ``failed`` or ``interrupted``."""
    exit_code: int | None
    message: str | None
    changed: list[dict[str, object] | str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return the run for ``--output json``."""
        return {
            name: getattr(self, name)
            for name in (
                "id", "verb", "who", "command", "started", "ended", "seconds",
                "result", "exit_code", "message", "changed",
            )
        } | {"path": str(self.path)}  # fmt: skip

    def events(self) -> list[dict[str, object]]:
        """Return the run's events; a last line cut off by a kill is left out."""
        found: list[dict[str, object]] = []
        with contextlib.suppress(OSError):
            for line in (self.path / "log.jsonl").read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def log_text(self) -> str:
        """Return what the operator saw."""
        try:
            return (self.path / "log.txt").read_text(errors="replace")
        except OSError:
            return ""


def _is_alive(path: Path) -> bool:
    """Tell whether the run's process still holds its log."""
    try:
        with (path / "log.jsonl").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_run(path: Path) -> Run | None:
    """Return the run recorded in a directory, or None when it is no record (for example half made)."""
    try:
        data = json.loads((path / "run.json").read_text())
        result = data["result"]
        if result == RUNNING and not _is_alive(path):
            # It may have ended between the two looks.
            data = json.loads((path / "run.json").read_text())
            result = data["result"] if data["result"] != RUNNING else INTERRUPTED_RESULT
        return Run(
            id=data["id"],
            path=path,
            verb=data["verb"],
            who=data["who"],
            command=data["command"],
            started=data["started"],
            ended=data["ended"],
            seconds=data["seconds"],
            result=result,
            exit_code=data["exit_code"],
            message=data["message"],
            changed=data["changed"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def list_runs(site_path: Path) -> list[Run]:
    """Return the site's runs, newest first."""
    directory = site_path / ".cloudctl" / "runs"
    if not directory.is_dir():
        return []
    runs = (read_run(path) for path in directory.iterdir() if path.is_dir())
    return sorted(
        (run for run in runs if run is not None), key=lambda run: (run.started, run.id), reverse=True
    )


def find_run(site_path: Path, wanted: str) -> Run:
    """Return one run by its id, the unambiguous beginning of an id, or ``last``.

    Raises:
        UsageError: there is none, or several begin so.
    """
    runs = list_runs(site_path)
    if wanted == "last" and runs:
        return runs[0]
    exact = [run for run in runs if run.id == wanted]
    found = exact or [run for run in runs if run.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            "run-ambiguous",
            f"{len(found)} runs begin with '{wanted}'",
            hint="give more of the id: " + ", ".join(run.id for run in found[:5]),
        )
    raise UsageError(
        "run-unknown",
        f"no run '{wanted}' is recorded",
        where=str(site_path / ".cloudctl" / "runs"),
        hint="'cloudctl runs list' shows the recorded runs",
    )
