"""Every way in which cloudctl ends other than well.

An error names what is wrong, where, and how to go on; its class fixes the exit code, so that a
caller (a shell script, AWX) can tell "nothing was changed" from "maybe partly done".
"""

from __future__ import annotations

from collections.abc import Iterable

OK = 0
INTERNAL = 1
INTERRUPTED = 130


class CloudctlError(Exception):
    """An error with a stable reference.

    Args:
        ref: kebab-case identifier, stable across releases.
        message: what is wrong, one sentence.
        where: ``file:line`` or a node's name.
        hint: how to go on.
    """

    exit_code = INTERNAL

    def __init__(
        self,
        ref: str,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.ref = ref
        self.message = message
        self.where = where
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def render(self) -> str:
        """Return the error as the operator reads it."""
        lines = [f"error[{self.ref}]: {self.message}"]
        if self.where:
            lines.append(f"   at: {self.where}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Return the error for ``--output json``."""
        return {
            "ref": self.ref,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(CloudctlError):
    """The command line is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(CloudctlError):
    """The site's files are wrong; nothing was changed."""

    exit_code = 3


class CheckFailed(CloudctlError):
    """A pre-check failed; nothing was changed."""

    exit_code = 4


class Unreachable(CloudctlError):
    """A node or service could not be reached."""

    exit_code = 5


class ApplyFailed(CloudctlError):
    """Changing something failed; it may be partly done. Running the command again goes on."""

    exit_code = 6


class VerifyFailed(CloudctlError):
    """The change was made, but the result does not work."""

    exit_code = 7


class LockHeld(CloudctlError):
    """Another run is in progress."""

    exit_code = 8


class MultiError(CloudctlError):
    """Several errors found in one pass: all are printed, the first one's exit code counts."""

    def __init__(self, errors: Iterable[CloudctlError]) -> None:
        self.errors = list(errors)
        if not self.errors:
            raise ValueError("MultiError needs at least one error")
        first = self.errors[0]
        super().__init__(
            first.ref, first.message, where=first.where, hint=first.hint, exit_code=first.exit_code
        )

    def render(self) -> str:
        return "\n".join(error.render() for error in self.errors)

    def as_dict(self) -> dict[str, object]:
        return {"errors": [error.as_dict() for error in self.errors], "exit_code": self.exit_code}


def merge_nodes(errors: Iterable[CloudctlError]) -> list[CloudctlError]:
    """Return the errors with those that differ only in their place told once, with all the places.

    >>> [error.where for error in merge_nodes([Unreachable("a", "b", where=node) for node in ("n1", "n2")])]
    ['n1, n2']
    """
    merged: dict[object, list[CloudctlError]] = {}
    for error in errors:
        alone = isinstance(error, MultiError) or error.where is None
        key = id(error) if alone else (type(error), error.ref, error.message, error.hint, error.exit_code)
        merged.setdefault(key, []).append(error)
    for same in merged.values():
        if len(same) > 1:
            same[0].where = ", ".join(sorted({str(error.where) for error in same}))
    return [same[0] for same in merged.values()]
