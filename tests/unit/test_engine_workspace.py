"""What a plan shows of files with secrets."""

from __future__ import annotations

from pathlib import Path

from cloudctl.console import MASK
from cloudctl.engine.workspace import Workspace


def shown(tmp_path: Path, *lines: str) -> list[str]:
    """Return how a difference is shown where NEWSECRET is a secret of the site."""
    (tmp_path / "mask.json").write_text('["NEWSECRET"]')
    answer = Workspace(tmp_path).public({"done": [{"path": "/etc/a", "diff": list(lines)}]})
    found: list[str] = answer["done"][0]["diff"]
    return found


def test_the_old_value_of_a_changed_secret_is_hidden(tmp_path: Path) -> None:
    assert shown(tmp_path, "@@ -1 +1 @@", "-OLD", "+NEWSECRET") == ["@@ -1 +1 @@", f"-{MASK}", f"+{MASK}"]
    lines = (" [a]", "-x = y:OLD", "-b = 1", "+x = y:NEWSECRET", "+b = 2", " [b]", "-c = 1", "+c = 2")
    assert shown(tmp_path, *lines) == [
        *(" [a]", f"-{MASK}", f"-{MASK}", f"+x = y:{MASK}", "+b = 2"),
        *(" [b]", "-c = 1", "+c = 2"),
    ]


def test_a_line_that_moved_is_hidden_too(tmp_path: Path) -> None:
    assert shown(tmp_path, "-x = OLD", " b", "+x = NEWSECRET") == [f"-{MASK}", " b", f"+x = {MASK}"]


def test_an_ordinary_difference_is_shown(tmp_path: Path) -> None:
    lines = ["@@ -1,2 +1 @@", "-gone", " b", "-c = 1", "+c = 2"]
    assert shown(tmp_path, *lines) == lines


def test_what_replaces_the_last_lines_of_a_long_difference_is_not_known(tmp_path: Path) -> None:
    lines = [f"-line {number}" for number in range(200)]
    assert shown(tmp_path, *lines) == [f"-{MASK}"] * 200
