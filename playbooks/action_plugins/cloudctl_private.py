"""Controller side: calls of modules whose arguments may hold secrets, from private files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Call one module after the other on one node; the first that fails ends it."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        path = Path(self._task.args["directory"]) / f"{task_vars['inventory_hostname']}.json"
        answers: list[dict[str, Any]] = []
        for call in json.loads(path.read_text(encoding="utf-8")):
            answer = self._execute_module(
                module_name=call["module"], module_args=call["arguments"], task_vars=task_vars
            )
            answer.pop("invocation", None)
            if answer.get("failed") or answer.get("unreachable"):
                return {**result, **answer, "answers": answers}
            answers.append(answer)
        done = [entry for answer in answers for entry in answer.get("done") or answer.get("changes") or []]
        return {**result, "answers": answers, "done": done, "changed": bool(done)}
