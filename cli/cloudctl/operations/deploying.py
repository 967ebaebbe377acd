"""A deploy as one step of another operation, which holds the site's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cloudctl.engine import workspace
from cloudctl.runner import Event, RunResult, run_playbook


def deploy(
    site: Path,
    *,
    nodes: Sequence[str] = (),
    health_timeout: int | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunResult:
    """Make the cloud what the site says.

    Args:
        site: its directory.
        nodes: the only ones to change; empty: all.
        health_timeout: seconds that containers get to become healthy; None: as usual.
        on_event: told of every event.

    Raises:
        CloudctlError, MultiError: it failed; the same again goes on.
    """
    extra: dict[str, object] = {"cloudctl_services": [], "cloudctl_nodes": list(nodes)}
    if health_timeout is not None:
        extra["cloudctl_health_timeout"] = health_timeout
    try:
        result = run_playbook(site, "deploy", extra, on_event=on_event)
        result.raise_for_failure(changing=True)
        return result
    finally:
        workspace.remove(site)
