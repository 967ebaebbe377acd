"""A connection for benchmarks: takes every module as SSH would, and answers at once that nothing differs."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: instant
short_description: Answer module executions at once, without running them
description:
  - Stands in for nodes whose answers cost nothing, so that what is left is the controller's own cost.
  - The module goes through all of Ansible's packing; its bytes are counted, it is not run.
extends_documentation_fragment:
  - connection_pipelining
author: cloudctl
"""

_MODULE = re.compile(rb"ansible_module=['\"]([\w.]+)['\"]")
_OBSERVED: dict[str, list[str]] = {
    "packages": [], "files": [], "units": [], "containers": [], "jobs": [], "markers": [], "sections": [],
    "unhealthy": [],
}  # fmt: skip


class Connection(ConnectionBase):  # type: ignore[misc]
    """Connects to nothing."""

    transport = "instant"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Return the answer of a node that is as it should be."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if in_data is None:
            raise AnsibleError(
                f"the benchmark's connection takes modules by pipelining only, not: {cmd[:80]}"
            )
        found = _MODULE.search(in_data, max(0, len(in_data) - 4096)) or _MODULE.search(in_data)
        module = found.group(1).decode() if found else ""
        answer: dict[str, Any] = {"changed": False}
        if module == "cloudctl_node":
            answer["observed"] = _OBSERVED
        elif module == "cloudctl_ceph":
            answer.update(devices={}, changes=[], health="HEALTH_OK")
        else:
            raise AnsibleError(f"the benchmark has no answer for the module {module!r}")
        text = json.dumps(answer).encode() + b"\n"
        self._count(module, len(cmd) + len(in_data), len(text))
        return 0, text, b""

    def _count(self, module: str, sent: int, received: int) -> None:
        path = os.environ.get("CLOUDCTL_BENCH_TALLY")
        if path:
            line = f"{self._play_context.remote_addr} {module} {sent} {received}\n".encode()
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, line)
            os.close(descriptor)

    def put_file(self, in_path: str, out_path: str) -> None:
        """Refuse: with pipelining nothing is copied."""
        raise AnsibleError("the benchmark's connection copies no files")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Refuse: with pipelining nothing is copied."""
        raise AnsibleError("the benchmark's connection copies no files")

    def close(self) -> None:
        """Do nothing."""
        self._connected = False
