"""Each playbook also runs by itself: the lab's test has an entry for every one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("playbook_runs", ROOT / "tests/lab/playbook_runs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["playbook_runs"] = module
    spec.loader.exec_module(module)
    return module


def test_every_playbook_is_tried_by_itself() -> None:
    assert set(load().RUNS) == {path.stem for path in (ROOT / "playbooks").glob("*.yml")}


def test_what_changes_a_cloud_is_tried_dry() -> None:
    for name, runs in load().RUNS.items():
        if "dry_run" in (ROOT / "playbooks" / f"{name}.yml").read_text():
            assert all(run.variables.get("dry_run") or not run.variables for run in runs), name
            assert any(run.variables.get("dry_run") for run in runs), name


def test_variables_are_given_as_one_document() -> None:
    runs = load()
    assert runs.Run(says=(), variables={"a": ["b"]}).options == ["-e", '{"a": ["b"]}']
    assert runs.Run(says=()).options == []
