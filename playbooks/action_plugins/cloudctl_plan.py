"""Controller side: from what the nodes reported to the plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import plan, workspace


class ActionModule(ActionBase):
    """Decide what is to be done and write it down for the command line; or take what was decided."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        work = workspace.open_workspace(Path(arguments["site"]))
        if arguments.get("made"):
            made = work.made_plan()
        else:
            made = plan.select(
                work.plan(),
                nodes=_names(arguments.get("nodes")),
                services=_names(arguments.get("services")),
                needs=work.index["needs"],
            )
            work.write_plan(made)
        return {
            **result,
            "changed": False,
            "summary": plan.summary(made),
            "scope": made["scope"],
        }


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [item for item in value.split(",") if item]
    return [str(item) for item in value] if isinstance(value, list) else []
