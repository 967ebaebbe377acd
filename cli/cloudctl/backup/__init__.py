"""Backups of the databases: taken, proved to work, kept, and restored to a point in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cloudctl.backup.manifest import Manifest

if TYPE_CHECKING:
    from cloudctl.site.model import Site

__all__ = ["Manifest", "Report", "make"]

Report = Callable[[str], None]


def make(site: Site, *, kind: str = "full", report: Report, **options: Any) -> Manifest:
    """Take a backup and verify it; see ``cloudctl.backup.take.make``."""
    # Loading what talks to nodes takes a while: not for those that only read manifests.
    from cloudctl.backup import take

    return take.make(site, kind=kind, report=report, **options)
