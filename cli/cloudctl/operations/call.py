"""One call to each of some nodes: a module of ``playbooks/library`` with its own arguments for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudctl.errors import CloudctlError, MultiError
from cloudctl.runner import Event, RunResult, run_playbook

TASK = "Call"


@dataclass
class Answers:
    """What the nodes said.

    Attributes:
        ok: by node, what the module returned.
        failed: by node, why there is no such answer (unreachable, or the module failed).
    """

    ok: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, CloudctlError] = field(default_factory=dict)

    def all_or_raise(self) -> dict[str, dict[str, Any]]:
        """Return the answers where every node gave one.

        Raises:
            CloudctlError, MultiError: what the others ended with.
        """
        errors = list(self.failed.values())
        if errors:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
        return self.ok


def call(
    site: Path,
    module: str,
    nodes: Mapping[str, Mapping[str, Any]],
    *,
    changing: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Answers:
    """Run a module on nodes, on all of them at once, as root, in one call each.

    Args:
        site: the site's directory.
        module: its name, for example ``cloudctl_containers``.
        nodes: by node, the module's arguments. No secrets: they would be written down for the run.
        changing: the module changes nodes (words of the errors).
        on_event: called with every event of the run.

    Returns:
        One answer or one failure for every node.
    """
    if not nodes:
        return Answers()
    result = run_playbook(
        site,
        "phases/call",
        {"cloudctl_module": module, "cloudctl_calls": {name: dict(args) for name, args in nodes.items()}},
        on_event=on_event,
    )
    return read_answers(result, list(nodes), changing=changing)


def read_answers(result: RunResult, nodes: list[str], *, changing: bool) -> Answers:
    """Sort what a run reported by node. Pure.

    Args:
        result: of the run.
        nodes: the ones that were called.
        changing: see ``call``.
    """
    answers = Answers()
    for node in nodes:
        answer = result.facts.get(node, {}).get(TASK)
        if answer is not None:
            answers.ok[node] = answer
            continue
        own = [failure for failure in result.failures if failure["host"] == node]
        part = RunResult(rc=result.rc or 1, failures=own or result.failures)
        try:
            part.raise_for_failure(changing=changing)
        except CloudctlError as error:
            answers.failed[node] = error
    return answers
