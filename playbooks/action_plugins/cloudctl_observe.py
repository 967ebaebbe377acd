"""Controller side: compare one node with its rendered state, in one call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import netchange, workspace


class ActionModule(ActionBase):
    """Send the node its spec, keep the masked answer for the plan."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        node = task_vars["inventory_hostname"]
        work = workspace.open_workspace(Path(self._task.args["site"]))
        answer = self._execute_module(
            module_name="cloudctl_node",
            module_args={"spec": work.blob(node), "action": "observe"},
            task_vars=task_vars,
        )
        if "observed" not in answer:
            return {**result, **work.public(netchange.with_error(node, answer)), "failed": True}
        observed = answer["observed"]
        devices = work.devices_wanted(node)
        if devices is not None:
            checked = self._execute_module(
                module_name="cloudctl_ceph", module_args=devices, task_vars=task_vars
            )
            if checked.get("failed"):
                return {**result, **work.public(checked)}
            observed["devices"] = checked["devices"]
        work.keep(node, observed)
        return {**result, "changed": False}
