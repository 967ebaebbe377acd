"""Where cloudctl's own data lives: playbooks, services, image definitions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def data_root() -> Path:
    """Return the directory that holds ``playbooks/``, ``services/`` and the rest.

    Inside an installed package that is ``cloudctl/data``; in a checkout it is the checkout.
    """
    package = Path(__file__).resolve().parent
    installed = package / "data"
    if installed.is_dir():
        return installed
    return package.parents[1]
