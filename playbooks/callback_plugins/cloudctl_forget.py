"""Removes the rendered site, which holds secrets, when a playbook that rendered it ends, however it went."""

from __future__ import annotations

import atexit
import os
import shutil
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: cloudctl_forget
type: aggregate
short_description: Removes the rendered site when a playbook ends
description:
  - The first task of C(plan.yml) and C(deploy.yml) renders the site, with its secrets, into
    C(SITE/.cloudctl/rendered).
  - The command line removes that itself; this does it where ansible-playbook runs alone.
"""


class CallbackModule(CallbackBase):
    """Remembers what the task that renders said, and removes it at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cloudctl_forget"
    CALLBACK_NEEDS_ENABLED = False

    def v2_runner_on_ok(self, result: Any) -> None:
        """Remember the directory that was rendered."""
        path = result.result.get("cloudctl_workspace")
        # A command goes on with it in a second playbook, and removes it when it ends.
        if path and "CLOUDCTL_RUN" not in os.environ:
            # Not when the statistics come: they do not after Ctrl-C.
            atexit.register(shutil.rmtree, path, ignore_errors=True)
