"""Controller side: run the module that is asked for; a task's own action can't be a variable."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Hand the arguments on, and the answer back."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        answer = self._execute_module(
            module_name=self._task.args["module"],
            module_args=self._task.args["arguments"],
            task_vars=task_vars,
        )
        return {**result, **answer}
