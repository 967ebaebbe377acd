"""Controller side: the end of a deploy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import workspace
from cloudctl.openrc import write_openrc
from cloudctl.site.load import load_site


class ActionModule(ActionBase):
    """Write the administrator's credentials; remove the rendered state."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        site = workspace.site_root(Path(self._task.args["site"]))
        write_openrc(load_site(site))
        workspace.remove(site)
        return {**result, "changed": False}
