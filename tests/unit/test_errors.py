"""Errors: what, where, how to go on, and the exit code."""

from __future__ import annotations

import pytest

from cloudctl import errors, main
from cloudctl.errors import CloudctlError, ConfigError, MultiError


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CloudctlError, 1),
        (errors.UsageError, 2),
        (errors.ConfigError, 3),
        (errors.CheckFailed, 4),
        (errors.Unreachable, 5),
        (errors.ApplyFailed, 6),
        (errors.VerifyFailed, 7),
        (errors.LockHeld, 8),
    ],
)
def test_each_class_has_its_exit_code(
    kind: type[CloudctlError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise kind("some-ref", "what is wrong", where="file:1", hint="do that")

    monkeypatch.setattr(main.cli, "main", fail)
    assert main.run([]) == code
    assert capsys.readouterr().err == "error[some-ref]: what is wrong\n   at: file:1\n  try: do that\n"


@pytest.mark.parametrize(("failure", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("oh"), 1)])
def test_other_ends(
    failure: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise failure

    monkeypatch.setattr(main.cli, "main", fail)
    assert main.run([]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_several_errors_are_all_shown() -> None:
    several = MultiError([ConfigError("a", "first"), CloudctlError("b", "second", exit_code=9)])
    assert several.render() == "error[a]: first\nerror[b]: second"
    assert several.exit_code == 3
    assert several.as_dict()["exit_code"] == 3
    with pytest.raises(ValueError, match="at least one"):
        MultiError([])


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["depoly"]) == 2
