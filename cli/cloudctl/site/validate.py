"""The checks of a site that need more than one value at a time; pure functions over what was read."""

from __future__ import annotations

from cloudctl.site.document import Problems
from cloudctl.site.load import Draft


def check_draft(draft: Draft) -> Problems:
    """Return everything that is wrong with a site beyond what reading it found."""
    return Problems()
