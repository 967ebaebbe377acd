"""Controller side of the module of the same name: it gets its arguments from the rendered site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import workspace


class ActionModule(ActionBase):
    """Fill in what the cluster should be; keep what was found, masked, for the plan."""

    TRANSFERS_FILES = False
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        site = arguments.pop("site", None)
        if site is None:
            answer = self._execute_module(
                module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val
            )
            return {**result, **answer}
        work = workspace.open_workspace(Path(site))
        if arguments["mode"] == "prepare":
            arguments.update(work.devices_wanted(task_vars["inventory_hostname"], "prepare") or {})
        else:
            arguments.update(work.ceph_arguments())
        answer = self._execute_module(
            module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val
        )
        if arguments["mode"] == "prepare" and not answer.get("failed"):
            work.prepared(task_vars["inventory_hostname"])
        if arguments["mode"] == "observe" and not answer.get("failed"):
            work.keep("ceph", {"changes": answer.get("changes", []), "health": answer.get("health", "")})
        return {**result, **work.public(answer)}
