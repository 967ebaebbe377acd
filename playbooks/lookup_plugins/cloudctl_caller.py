"""Who started a playbook, for the records of the commands that it runs on the deploy node."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.runs.lock import caller

DOCUMENTATION = """
name: cloudctl_caller
short_description: Who started this playbook
description:
  - The user and host on which ansible-playbook runs, or the user and number of the job where AWX runs it.
"""
EXAMPLES = """
- environment: {CLOUDCTL_CALLER: "{{ lookup('cloudctl_caller') }}"}
"""
RETURN = """
_raw:
  description: user@host, or user@awx-job-NUMBER
  type: list
  elements: str
"""


class LookupModule(LookupBase):
    """Answers with one name."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **options: Any
    ) -> list[str]:
        found = variables or {}
        job = found.get("awx_job_id")
        return [f"{found.get('awx_user_name') or 'awx'}@awx-job-{job}" if job else caller()]
