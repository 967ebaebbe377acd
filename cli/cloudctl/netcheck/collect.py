"""Lets the nodes ping each other."""

from __future__ import annotations

from typing import Any

from cloudctl.errors import CloudctlError
from cloudctl.netcheck.pairs import pairs
from cloudctl.runner import RunResult, explain_unreachable, run_playbook
from cloudctl.site.model import Site


def facts_of(result: RunResult, name: str) -> dict[str, Any]:
    """Return by node the fact that a module of ours returned under its name."""
    return {
        node: facts[name]
        for node, tasks in result.facts.items()
        for answer in tasks.values()
        if name in (facts := answer.get("ansible_facts") or {})
    }


def silent_nodes(result: RunResult) -> dict[str, CloudctlError]:
    """Return by node why it could not be asked."""
    silent: dict[str, CloudctlError] = {}
    for failure in result.failures:
        node, message = str(failure["host"]), str(failure["msg"]).strip()
        if failure["unreachable"]:
            silent[node] = explain_unreachable(node, message)
        else:
            silent[node] = explain_failure(node, str(failure["task"]), message)
    return silent


def explain_failure(node: str, task: str, message: str) -> CloudctlError:
    """Return the error for a node that was reached but could not be asked."""
    from cloudctl.errors import CheckFailed

    lowered = message.lower()
    if "sudo" in lowered or "become" in lowered or "privilege" in lowered:
        return CheckFailed(
            "become-failed",
            f"the node's account may not become root: {message}",
            where=node,
            hint="allow it sudo without a password, or set ansible_become_method for the node",
        )
    if "python" in lowered and "not found" in lowered:
        return CheckFailed(
            "python-missing", "the node has no Python 3", where=node, hint="install python3 on it"
        )
    return CheckFailed("node-unread", f"{task}: {message}", where=node)


def ping_all(site: Site) -> tuple[dict[str, list[dict[str, Any]]], dict[str, CloudctlError]]:
    """Return by node what ``cloudctl_ping`` found, and by node why it could not be asked."""
    result = run_playbook(site.path, "network", {"cloudctl_pairs": pairs(site.nodes, site.networks)})
    answers, silent = facts_of(result, "cloudctl_ping"), silent_nodes(result)
    if not answers and not silent:
        result.raise_for_failure()
    return answers, silent
