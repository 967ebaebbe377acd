"""Controller side: let one node do one step of the plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import workspace

_ACTIONS = {"files": "files", "create": "containers", "roll": "containers", "sections": "section"}


class ActionModule(ActionBase):
    """Send what the step needs of the node's spec, return what was done, masked."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        node = task_vars["inventory_hostname"]
        step = self._task.args["step"]
        work = workspace.open_workspace(Path(self._task.args["site"]))
        names = task_vars["cloudctl_todo"][step]
        action = _ACTIONS.get(step.rpartition("_")[2], "jobs")
        answer = self._execute_module(
            module_name="cloudctl_node",
            module_args={
                "spec": work.blob(node, action),
                "action": action,
                "names": names,
                "timeout": int(self._task.args.get("timeout", 300)),
            },
            task_vars=task_vars,
        )
        return {**result, **work.public(answer)}
