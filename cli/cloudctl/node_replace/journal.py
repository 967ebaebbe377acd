"""Which controllers are being replaced: what a run that did not end has left to do."""

from __future__ import annotations

from pathlib import Path

from cloudctl.operations.steps import Journal
from cloudctl.runs.lock import state_directory

PREFIX = "node-replace-"


def open_journal(site: Path, name: str) -> Journal:
    """Return the journal of a node's replacement."""
    return Journal(site, PREFIX + name)


def replacing(site: Path) -> list[str]:
    """Return the nodes whose replacement was begun and did not end."""
    paths = (state_directory(site) / "operations").glob(f"{PREFIX}*.json")
    names = sorted(path.stem.removeprefix(PREFIX) for path in paths)
    return [name for name in names if open_journal(site, name).open]
