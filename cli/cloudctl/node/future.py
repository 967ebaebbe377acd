"""The site as it will be: a directory beside the real one that differs in the inventory only.

What is rendered, checked and played for nodes that come or go is made from it. The real inventory changes at
the very end, so that whatever happens before leaves the site as it was.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cloudctl.errors import CloudctlError, ConfigError, MultiError
from cloudctl.runs.lock import state_directory
from cloudctl.site.load import INVENTORY, load_site

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


def refuse_invalid(site: Path, hosts: str, names: str) -> None:
    """Refuse to write an inventory with which the site would not load.

    Args:
        site: the site's directory; the caller holds its lock.
        hosts: text of ``inventory/hosts.yml``.
        names: whose lines are new.

    Raises:
        ConfigError: what would be wrong.
    """
    with future_site(site, hosts) as future:
        try:
            load_site(future, with_secrets=False)
        except CloudctlError as error:
            errors = error.errors if isinstance(error, MultiError) else [error]
            # The lines that these name are of a text that nobody sees.
            wrong = "; ".join(entry.message for entry in errors)
            raise ConfigError(
                "site-would-break", f"the site would not be valid with it: {wrong}", where=names,
                hint=errors[0].hint or f"nothing was written to {INVENTORY}",
            ) from error  # fmt: skip
