"""Runs a playbook: lock, progress, record, and errors that say what, where and how to go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from cloudctl.errors import (
    ApplyFailed,
    CheckFailed,
    CloudctlError,
    ConfigError,
    LockHeld,
    MultiError,
    Unreachable,
    UsageError,
    VerifyFailed,
    merge_nodes,
)
from cloudctl.paths import data_root

Event = Mapping[str, Any]

_BY_EXIT_CODE = {
    error.exit_code: error
    for error in (UsageError, ConfigError, CheckFailed, Unreachable, ApplyFailed, VerifyFailed, LockHeld)
}


@dataclass
class RunResult:
    """How a playbook ended.

    Attributes:
        rc: Ansible's own exit code.
        stats: counts by host, as Ansible sums them up.
        facts: by host, by task name, what the task returned.
        failures: one entry for every failed or unreachable host: host, task, msg, details, unreachable.
        changed: what was changed: node and the entry that the task reported.
    """

    rc: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    changed: list[dict[str, Any]] = field(default_factory=list)

    def raise_for_failure(self, *, changing: bool = False) -> None:
        """Raise what went wrong.

        Args:
            changing: the playbook changes nodes (a failure may leave it partly done).
        """
        if self.rc == 0 and not self.failures:
            return
        errors = merge_nodes(_as_error(failure, changing) for failure in self._causes())
        if not errors:
            errors = [ApplyFailed("playbook-failed", f"ansible-playbook ended with {self.rc}")]
        raise errors[0] if len(errors) == 1 else MultiError(errors)

    def _causes(self) -> list[dict[str, Any]]:
        """Return the failures without those that follow from a node's silence.

        What is to be done cannot be decided here then; the node says why.
        """
        silent = any(failure["unreachable"] for failure in self.failures)
        return [failure for failure in self.failures if not silent or failure["host"] != "localhost"]


def _as_error(failure: Mapping[str, Any], changing: bool) -> CloudctlError:
    known = failure.get("cloudctl_error")
    if known:
        parts = [_rebuild(entry) for entry in known.get("errors", [known])]
        return parts[0] if len(parts) == 1 else MultiError(parts)
    host, message = str(failure["host"]), str(failure["msg"]).strip()
    if failure["unreachable"]:
        return explain_unreachable(host, message)
    details = str(failure.get("details") or "").strip()
    text = f"{failure['task']}: {message}" + (f"\n{details}" if details else "")
    if changing:
        return ApplyFailed(
            "apply-failed", text, where=host, hint="mend the cause and run the same command again"
        )
    return CheckFailed("task-failed", text, where=host)


def _rebuild(entry: Mapping[str, Any]) -> CloudctlError:
    kind = _BY_EXIT_CODE.get(int(entry.get("exit_code") or 0), CloudctlError)
    return kind(str(entry["ref"]), str(entry["message"]), where=entry.get("where"), hint=entry.get("hint"))


def explain_unreachable(host: str, message: str) -> CloudctlError:
    """Return the error for a node that SSH did not reach, by what SSH said."""
    lowered = message.lower()
    if "host key verification failed" in lowered or "identification has changed" in lowered:
        return Unreachable(
            "host-key-changed", "the node's SSH host key is not the pinned one", where=host,
            hint="if it was installed anew, remove its lines from the site's known_hosts and pin the new key",
        )  # fmt: skip
    if "permission denied" in lowered:
        return Unreachable(
            "ssh-key-refused", "the node refuses the site's SSH key", where=host,
            hint="install the site's ssh/id_ed25519.pub in the node's authorized_keys",
        )  # fmt: skip
    reason = message.rsplit(":", 1)[-1].strip() or message
    return Unreachable(
        "node-unreachable", f"the node does not answer by SSH: {reason}", where=host,
        hint="check its power, its management network and its address in the inventory",
    )  # fmt: skip


def environment(site: Path, private: Path) -> dict[str, str]:
    """Return the environment in which playbooks run."""
    root = data_root()
    package = Path(__file__).resolve().parents[1]
    return {
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(root / "roles"),
        "ANSIBLE_LIBRARY": str(root / "playbooks" / "library"),
        "ANSIBLE_MODULE_UTILS": str(root / "playbooks" / "module_utils"),
        "ANSIBLE_ACTION_PLUGINS": str(root / "playbooks" / "action_plugins"),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private / "cp"),
        # ansible-runner switches it off where nobody says otherwise.
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_INVENTORY_ENABLED": "yaml",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "CLOUDCTL_SITE": str(site),
        # what the playbook renders is removed by the command that runs it
        "CLOUDCTL_RUN": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_playbook(
    site: Path,
    name: str,
    extravars: Mapping[str, Any] | None = None,
    *,
    limit: Sequence[str] | str | None = None,
    on_event: Callable[[Event], None] | None = None,
    forks: int | None = None,
) -> RunResult:
    """Run ``playbooks/<name>.yml`` against a site.

    Args:
        site: the site's directory.
        name: the playbook, which is the verb.
        extravars: variables for it; no secrets.
        limit: hosts to limit it to.
        on_event: called with every event of the run (see ansible-runner).
        forks: how many nodes at once.

    Returns:
        What the tasks reported. Artifacts are removed: results stay in memory and in the run's record.
    """
    result = RunResult()
    root = data_root()
    private = Path(tempfile.mkdtemp(prefix="cloudctl-"))
    guard = threading.Lock()

    def handle(event: Event) -> bool:
        with guard:
            _collect(result, event)
        if on_event is not None:
            with contextlib.suppress(BrokenPipeError):
                on_event(event)
        return False  # nothing of it is written to disk

    try:
        (private / "tmp").mkdir(mode=0o700)
        (private / "cp").mkdir(mode=0o700)
        (private / "bin").mkdir(mode=0o700)
        # A file, since one argument has room for 128 KiB only: the pairs of 25 nodes are more.
        given = private / "extravars.json"
        given.write_text(json.dumps({"cloudctl_site": str(site), **(extravars or {})}), encoding="utf-8")
        variables = environment(site, private)
        _mortal_ansible(private / "bin", variables["PATH"])
        variables["PATH"] = os.pathsep.join([str(private / "bin"), variables["PATH"]])
        inventory = [str(root / "inventory" / "base"), str(site / "inventory" / "hosts.yml")]
        run = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(root / "playbooks"),
            playbook=f"{name}.yml",
            inventory=inventory,
            extravars=str(given),
            envvars=variables,
            limit=",".join(limit) if isinstance(limit, list | tuple) else limit,
            forks=forks or 50,
            quiet=True,
            suppress_env_files=True,
            event_handler=handle,
        )
        _ask_again(result, private, inventory, variables)
        result.rc = int(run.rc or 0)
        if run.status in ("canceled", "timeout") or result.rc in (-2, 254 - 256):
            raise KeyboardInterrupt
        if result.rc != 0 and not result.failures:
            with contextlib.suppress(Exception):
                text = run.stdout.read()[-1500:]
                result.failures.append(
                    {"host": "localhost", "task": name, "msg": text, "details": "", "unreachable": False}
                )
        return result
    finally:
        end_connections(private / "cp")
        shutil.rmtree(private, ignore_errors=True)


def _ask_again(
    result: RunResult, private: Path, inventory: Sequence[str], variables: Mapping[str, str]
) -> None:
    """Find out why SSH ended early where Ansible only says that it could not send a task any more.

    Whether it notices that before it reads what SSH said is a matter of chance; a command that needs nothing
    sent gets SSH's own words.
    """
    vague = {
        str(failure["host"]): failure
        for failure in result.failures
        if failure["unreachable"] and "broken pipe" in str(failure["msg"]).lower()
    }
    if not vague:
        return

    def handle(event: Event) -> bool:
        data = event.get("event_data") or {}
        message = (data.get("res") or {}).get("msg")
        if event.get("event") == "runner_on_unreachable" and message and str(data.get("host")) in vague:
            vague[str(data["host"])]["msg"] = message
        return False

    ansible_runner.run(
        private_data_dir=str(private),
        host_pattern=",".join(vague),
        module="raw",
        module_args="true",
        inventory=list(inventory),
        envvars=dict(variables),
        quiet=True,
        suppress_env_files=True,
        event_handler=handle,
    )


_MUX_ORDERS = struct.pack(">6I", 8, 1, 4, 8, 0x10000005, 0)
"""OpenSSH's PROTOCOL.mux: hello of version 4, then the order to end."""


def end_connections(directory: Path) -> None:
    """End the SSH connections that Ansible kept for a run.

    Nobody could use them any more, and each would stay for two minutes: a process here, two on its node.
    This asks them itself: ``ssh -O exit`` would cost a process for each.

    Args:
        directory: where their sockets are.
    """
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as master:
                master.settimeout(1)
                master.connect(str(path))
                master.sendall(_MUX_ORDERS)
                while master.recv(4096):
                    pass


def _mortal_ansible(directory: Path, search: str) -> None:
    """Put an ansible-playbook into ``directory`` that ends when this process does, however it ends.

    The lock goes with this process: an Ansible left behind would work beside the next run.

    Args:
        directory: comes first on the PATH of the run.
        search: the PATH on which the real one is.

    Raises:
        UsageError: there is none.
    """
    real = shutil.which("ansible-playbook", path=search)
    if real is None:
        raise UsageError("ansible-missing", "there is no ansible-playbook", hint="pip install ansible-core")
    path = directory / "ansible-playbook"
    path.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig TERM -- {real} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def _collect(result: RunResult, event: Event) -> None:
    kind = event.get("event")
    data = event.get("event_data") or {}
    host, task, res = str(data.get("host") or ""), str(data.get("task") or ""), data.get("res") or {}
    if kind == "runner_on_ok":
        result.facts.setdefault(host, {})[task] = res
        for entry in res.get("done") or []:
            if isinstance(entry, Mapping):
                result.changed.append({"node": host, **entry})
    elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
        message = res.get("msg") or res.get("module_stderr") or res.get("exception") or "no reason was given"
        result.failures.append(
            {
                "host": host,
                "task": task,
                "msg": message,
                "details": res.get("details") or "",
                "cloudctl_error": res.get("cloudctl_error"),
                "unreachable": kind == "runner_on_unreachable",
            }
        )
    elif kind == "playbook_on_stats":
        result.stats = {key: value for key, value in data.items() if isinstance(value, dict)}
