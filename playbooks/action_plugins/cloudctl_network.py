"""Controller side: change a node's network, and confirm it over a new connection, else see it taken back."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2] / "cli"))

from cloudctl.engine import netchange, workspace


class ActionModule(ActionBase):
    """Apply, connect anew, confirm."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._node = str(self._vars["inventory_hostname"])
        work = workspace.open_workspace(Path(self._task.args["site"]))
        network = work.spec(self._node)["network"]
        self._extra = ""
        with contextlib.suppress(AnsibleError, KeyError, AttributeError):
            self._extra = self._connection.get_option("ssh_extra_args") or ""
        peers = work.index.get("peers", {}).get(self._node, [])
        while True:
            answer = self._call({"action": "apply", "network": network, "seconds": netchange.UNDO_AFTER})
            if answer.get("failed"):
                return {**result, **netchange.with_error(self._node, answer)}
            if not answer.get("changed"):
                return {**result, **answer}
            # From here: before that the node may have waited for an earlier change, or installed a package.
            started = time.monotonic()
            end = self._confirm(str(answer["token"]), started, peers)
            seconds = time.monotonic() - started
            if not (answer.get("taken_over") and netchange.ran_out(end)):
                break
        error = netchange.judge(self._node, end, seconds)
        if error is not None:
            return {**result, "failed": True, "msg": error.message, "cloudctl_error": error.as_dict()}
        return {**result, "changed": True, "done": answer["done"]}

    def _confirm(self, token: str, started: float, peers: list[str]) -> dict[str, Any] | None:
        """Return how the change ended as the node tells it, None where the node is silent."""
        last: dict[str, Any] | None = None
        while time.monotonic() - started < netchange.GIVE_UP_AFTER:
            time.sleep(netchange.PAUSE)
            self._new_connection()
            action = "confirm" if time.monotonic() - started < netchange.UNDO_AFTER else "status"
            with contextlib.suppress(AnsibleError):
                answer = self._call({"action": action, "token": token, "peers": peers})
                if not answer.get("failed") and not answer.get("unreachable"):
                    last = answer
                    if netchange.is_end(answer):
                        return answer
        return last

    def _new_connection(self) -> None:
        """End the connection that Ansible keeps open: the next call makes another."""
        with contextlib.suppress(AnsibleError, NotImplementedError, AttributeError):
            self._connection.reset()
        with contextlib.suppress(AnsibleError, KeyError, AttributeError):
            # One that is cut while it waits for an answer must not wait for ever.
            self._connection.set_option("ssh_extra_args", f"{self._extra} {netchange.WATCHED}".strip())

    def _call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="cloudctl_network", module_args=arguments, task_vars=self._vars
        )
        return answer
