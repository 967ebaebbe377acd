"""Controller side: render the desired state of the whole site once, for the tasks of every node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import workspace
from cloudctl.errors import CloudctlError


class ActionModule(ActionBase):
    """Load, validate and render the site; nothing leaves the controller."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            site = workspace.site_root(Path(self._task.args["site"]))
            index = workspace.render(site)
        except CloudctlError as error:
            return {**result, "failed": True, "msg": error.render(), "cloudctl_error": error.as_dict()}
        leader = index["ceph_leader"]
        return {
            **result,
            "changed": False,
            "nodes": index["nodes"],
            "cloudctl_workspace": str(workspace.workspace_path(site)),
            "ceph_leader": [leader] if leader else [],
        }
