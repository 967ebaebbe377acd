#!/usr/bin/python
"""Timers of the deploy node: units of systemd that run cloudctl, and how their last runs ended.

Runs on the node with the standard library alone. What the units say comes from the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_schedule
short_description: Install, list and remove timers that run cloudctl
description:
  - C(set) writes a service and its timer, and starts the timer; C(remove) takes both away; C(list) reads.
options:
  action:
    description: What to do.
    type: str
    choices: [list, set, remove]
    required: true
  prefix:
    description: Beginning of the names of all units that are meant.
    type: str
    required: true
  name:
    description: The unit's name without the prefix.
    type: str
    default: ""
  service:
    description: Content of the service unit, for C(set).
    type: str
    default: ""
  timer:
    description: Content of the timer unit, for C(set).
    type: str
    default: ""
author: cloudctl
"""

EXAMPLES = r"""
- name: Which timers are there
  cloudctl_schedule: {action: list, prefix: cloudctl-cloud-}
"""

RETURN = r"""
schedules:
  description: >-
    By name C(calendar), C(command), C(active), C(next), C(last) (Unix times), and C(result) of the last run
    (success, what systemd calls its failure, or interrupted where the node was switched off meanwhile; empty
    where it never ran).
  returned: always
  type: dict
"""

UNITS = Path("/etc/systemd/system")
RESULTS = Path("/var/lib/cloudctl-schedule")


class Failed(Exception):
    """Something did not work; the message is for the operator."""


def systemctl(*words, check=True):
    """Return what systemctl prints.

    Raises:
        Failed: it failed.
    """
    try:
        done = subprocess.run(
            ["systemctl", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"systemctl {' '.join(words)}: {error}") from None
    if done.returncode and check:
        raise Failed(done.stderr.strip() or f"systemctl {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def properties(unit, *names):
    """Return properties of a unit."""
    text = systemctl("show", unit, f"--property={','.join(names)}", check=False)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def elapses(prefix):
    """Return by timer when it runs next and ran last, as Unix times; None where it does not or did not."""
    try:
        text = systemctl("list-timers", "--all", "--output=json", f"{prefix}*", check=False)
        rows = json.loads(text or "[]")
        return {row["unit"]: [(row.get(key) or 0) / 1e6 or None for key in ("next", "last")] for row in rows}
    except (ValueError, KeyError, TypeError):
        return {}


def value_of(path, key):
    """Return a setting of a unit file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2] for line in lines if line.startswith(key + "=")), "")


def read_result(unit):
    """Return how the last run ended, as the service wrote it down: it outlives a restart of the node."""
    try:
        data = json.loads((RESULTS / f"{unit}.json").read_text(encoding="utf-8"))
        return {"result": str(data["result"]), "status": str(data["status"]), "ended": float(data["ended"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"result": "", "status": "", "ended": None}


def listed(prefix):
    """Return the schedules."""
    found = {}
    times = elapses(prefix)
    for path in sorted(UNITS.glob(f"{prefix}*.timer")):
        unit = path.stem
        timer = properties(f"{unit}.timer", "ActiveState")
        following, last = times.get(f"{unit}.timer", (None, None))
        service = properties(f"{unit}.service", "ActiveState")
        found[unit[len(prefix) :]] = {
            "unit": unit,
            "calendar": value_of(path, "OnCalendar"),
            "command": value_of(UNITS / f"{unit}.service", "ExecStart"),
            "active": timer.get("ActiveState") == "active",
            "running": service.get("ActiveState") == "activating",
            "next": following,
            "last": last,
            **read_result(unit),
        }
        begun = RESULTS / f"{unit}.begun"
        if begun.exists() and service.get("ActiveState") not in ("activating", "deactivating"):
            # The node was switched off meanwhile.
            interrupted = {"result": "interrupted", "status": "", "ended": begun.stat().st_mtime}
            found[unit[len(prefix) :]].update(interrupted)
    return found


def write(path, text):
    """Replace a file where it differs; return whether it did."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)
    return True


def install(prefix, name, service, timer):
    """Write the units and start the timer; return whether anything changed."""
    unit = f"{prefix}{name}"
    changed = write(UNITS / f"{unit}.service", service)
    changed = write(UNITS / f"{unit}.timer", timer) or changed
    if changed:
        systemctl("daemon-reload")
    before = properties(f"{unit}.timer", "ActiveState", "UnitFileState")
    if changed or before != {"ActiveState": "active", "UnitFileState": "enabled"}:
        systemctl("enable", f"{unit}.timer")
        systemctl("restart", f"{unit}.timer")
        changed = True
    return changed


def remove(prefix, name):
    """Stop the timer and remove the units; a run in progress is left to its end."""
    unit = f"{prefix}{name}"
    if not (UNITS / f"{unit}.timer").exists():
        return False
    systemctl("disable", "--now", f"{unit}.timer", check=False)
    for path in (
        UNITS / f"{unit}.timer",
        UNITS / f"{unit}.service",
        RESULTS / f"{unit}.json",
        RESULTS / f"{unit}.begun",
    ):
        if path.exists():
            os.unlink(path)
    systemctl("daemon-reload")
    systemctl("reset-failed", f"{unit}.service", check=False)
    return True


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["list", "set", "remove"]},
            "prefix": {"type": "str", "required": True},
            "name": {"type": "str", "default": ""},
            "service": {"type": "str", "default": ""},
            "timer": {"type": "str", "default": ""},
        }
    )
    params = module.params
    try:
        changed = False
        if params["action"] == "set":
            changed = install(params["prefix"], params["name"], params["service"], params["timer"])
        elif params["action"] == "remove":
            changed = remove(params["prefix"], params["name"])
        module.exit_json(changed=changed, schedules=listed(params["prefix"]))
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
