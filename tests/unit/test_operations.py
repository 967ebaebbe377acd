"""Steps with a journal, and calls to nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudctl.errors import ApplyFailed, Unreachable
from cloudctl.operations.call import TASK, read_answers
from cloudctl.operations.steps import BEGUN, DONE, UNDONE, Journal, Step, describe, execute, undo
from cloudctl.runner import RunResult


def steps(log: list[str], fail: str = "") -> list[Step]:
    def make(key: str, *, always: bool = False) -> Step:
        def run(journal: Journal) -> str:
            if key == fail:
                raise ApplyFailed("broken", key)
            log.append(key)
            return f"did {key}"

        def back(journal: Journal) -> str:
            log.append(f"-{key}")
            return ""

        return Step(key, f"Step {key}", run, ["n1"], [f"do {key}"], undo=back, every_time=always)

    return [make("check", always=True), make("a"), make("b")]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log: list[str] = []
    journal = Journal(tmp_path, "cluster-down")
    assert not journal.begin()
    with pytest.raises(ApplyFailed):
        execute(steps(log, fail="b"), journal)
    assert log == ["check", "a"]
    assert Journal(tmp_path, "cluster-down").state("b") == BEGUN

    again = Journal(tmp_path, "cluster-down")
    assert again.begin() and again.open
    outcomes = execute(steps(log), again)
    assert log == ["check", "a", "check", "b"]
    assert [outcome.result for outcome in outcomes] == ["done", "already done", "done"]
    again.finish()
    assert not Journal(tmp_path, "cluster-down").open
    assert not Journal(tmp_path, "cluster-down").begin()


def test_undo_takes_back_what_was_begun_the_last_first(tmp_path: Path) -> None:
    log: list[str] = []
    journal = Journal(tmp_path, "x")
    journal.begin()
    with pytest.raises(ApplyFailed):
        execute(steps(log, fail="b"), journal)
    undo(steps(log), journal)
    assert log == ["check", "a", "-b", "-a", "-check"]
    assert journal.state("a") == UNDONE
    execute(steps(log), journal)
    assert journal.state("a") == DONE


def test_facts_are_kept_and_private(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "x")
    journal.begin()
    journal.keep(flags=["noscrub"])
    assert Journal(tmp_path, "x").facts == {"flags": ["noscrub"]}
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_a_dry_run_names_nodes_and_commands(tmp_path: Path) -> None:
    lines = describe(steps([]))
    assert lines[0] == " 1. Step check  [n1]" and lines[1].strip() == "do check"


def test_every_called_node_has_an_answer_or_a_failure() -> None:
    result = RunResult(
        rc=4,
        facts={"a": {TASK: {"x": 1}}},
        failures=[
            {"host": "b", "task": TASK, "msg": "timed out", "details": "", "unreachable": True},
        ],
    )
    answers = read_answers(result, ["a", "b"], changing=False)
    assert answers.ok == {"a": {"x": 1}}
    assert isinstance(answers.failed["b"], Unreachable)
    with pytest.raises(Unreachable):
        answers.all_or_raise()


def test_a_run_that_ended_before_any_node_was_called_fails_for_all() -> None:
    result = RunResult(rc=2, failures=[])
    answers = read_answers(result, ["a"], changing=True)
    assert isinstance(answers.failed["a"], ApplyFailed)
