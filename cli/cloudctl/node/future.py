"""The site as it will be: a directory beside the real one that differs in the inventory only.

What is rendered, checked and played for nodes that come or go is made from it. The real inventory changes at
the very end, so that whatever happens before leaves the site as it was.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cloudctl.runs.lock import state_directory

_OWN = {".cloudctl", ".git", "inventory", "admin-openrc.sh", "clouds.yaml", "ca.crt"}
"""What the copy has for itself: state, the inventory, and what is written from secrets."""


@contextlib.contextmanager
def future_site(site: Path, hosts: str, name: str = "future") -> Iterator[Path]:
    """Yield a directory that is the site with another inventory; it is removed afterwards.

    Args:
        site: the site's directory; the caller holds its lock.
        hosts: text of ``inventory/hosts.yml``.
        name: of the directory below the site's state.
    """
    path = state_directory(site) / name
    shutil.rmtree(path, ignore_errors=True)  # a killed run's
    path.mkdir(mode=0o700)
    try:
        for entry in site.iterdir():
            if entry.name not in _OWN:
                (path / entry.name).symlink_to(entry)
        (path / "inventory").mkdir()
        for entry in (site / "inventory").iterdir():
            if entry.name != "hosts.yml":
                (path / "inventory" / entry.name).symlink_to(entry)
        (path / "inventory" / "hosts.yml").write_text(hosts, encoding="utf-8")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
