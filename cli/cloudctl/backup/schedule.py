"""Timers on the deploy node that run cloudctl: what their units say, and how they are brought there."""

from __future__ import annotations

import getpass
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudctl.errors import ApplyFailed, ConfigError, UsageError
from cloudctl.operations.call import call
from cloudctl.site import vault
from cloudctl.site.model import Site

MODULE = "cloudctl_schedule"
JOBS: dict[str, str] = {"db-backup": "backup of the databases"}
"""What can be scheduled, and how its unit is described."""
RESULTS = "cloudctl-schedule"
"""Directory below /var/lib in which runs leave how they ended."""


def prefix_of(site: Site) -> str:
    """Return how the names of this cloud's units begin: one deploy node may have several clouds."""
    return f"cloudctl-{site.name}-"


def calendar(daily: str) -> str:
    """Return systemd's expression for a time of day. Pure.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", daily)
    if match is None:
        raise UsageError("time-malformed", f"{daily!r} is no time of day", hint="write it as 02:30")
    return f"*-*-* {int(match.group(1)):02d}:{match.group(2)}:00"


def units(
    name: str, description: str, cloud: str, prefix: str, command: list[str], when: str, user: str
) -> tuple[str, str]:
    """Return the service and the timer. Pure.

    Args:
        name: the job.
        description: what it does.
        cloud: the cloud's name.
        prefix: see ``prefix_of``.
        command: what is run.
        when: systemd's calendar expression.
        user: whose process it is.
    """
    line = " ".join(_quote(word) for word in command)
    result = f"/var/lib/{RESULTS}/{prefix}{name}.json"
    # Stays where the node is switched off meanwhile: then nobody writes down how it ended.
    begun = f"/var/lib/{RESULTS}/{prefix}{name}.begun"
    record = (
        'printf \'{"result": "%s", "status": "%s", "ended": %s}\\n\' "$SERVICE_RESULT" "$EXIT_STATUS" '
        f'"$(date +%s)" >{result}.new && mv {result}.new {result}; rm -f {begun}'
    )
    service = f"""# Written by cloudctl schedule; cloudctl schedule remove {name} removes it.
[Unit]
Description=cloudctl: {description} of the cloud {cloud}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
Environment=CLOUDCTL_CALLER=schedule LANG=C.UTF-8
ExecStartPre=/bin/sh -c {_quote(f"touch {begun}")}
ExecStart={line}
ExecStopPost=/bin/sh -c {_quote(record)}
StateDirectory={RESULTS}
Nice=10
TimeoutStartSec=12h
"""
    timer = f"""# Written by cloudctl schedule; cloudctl schedule remove {name} removes it.
[Unit]
Description=cloudctl: {description} of the cloud {cloud}

[Timer]
OnCalendar={when}
# A run that was missed while the node was off is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"""
    return service, timer


def _quote(word: str) -> str:
    """Return a word as unit files write it, where ``$`` and ``%`` mean something unless they are doubled."""
    if re.fullmatch(r"[A-Za-z0-9@_+=:,./-]+", word):
        return word
    for special, written in (("\\", "\\\\"), ('"', '\\"'), ("$", "$$"), ("%", "%%"), ("\n", "\\n")):
        word = word.replace(special, written)
    return f'"{word}"'


def deploy_node(site: Site) -> str:
    """Return the deploy node.

    Raises:
        ConfigError: the inventory has none.
    """
    nodes = site.group("deploy")
    if not nodes:
        raise ConfigError(
            "no-deploy-node", "the inventory has no deploy node", where="inventory/hosts.yml",
            hint="put the machine that cloudctl runs on into the group deploy",
        )  # fmt: skip
    return nodes[0].name


def program() -> str:
    """Return the path of the command that runs now."""
    found = shutil.which("cloudctl") or str(Path(sys.argv[0]).resolve())
    return found


def check_unattended(site: Site) -> None:
    """Refuse where a run without a person could not open the secrets.

    Raises:
        ConfigError: the vault's password is not in the site's file.
    """
    if not (site.path / vault.PASSWORD_FILE).exists():
        raise ConfigError(
            "vault-password-elsewhere",
            f"a scheduled run reads the vault's password from {vault.PASSWORD_FILE}, which is not there",
            where=str(site.path / vault.PASSWORD_FILE),
            hint="put the password into that file (mode 0600, an executable file is run)",
        )


def install(site: Site, name: str, command: list[str], when: str) -> bool:
    """Install a job's timer; return whether anything changed.

    Raises:
        CloudctlError: the deploy node did not take it.
    """
    check_unattended(site)
    given = [program(), "--site", str(site.path), *command]
    service, timer = units(name, JOBS[name], site.name, prefix_of(site), given, when, getpass.getuser())
    answer = _ask(site, {"action": "set", "name": name, "service": service, "timer": timer})
    return bool(answer["changed"])


def remove(site: Site, name: str) -> bool:
    """Remove a job's timer; return whether there was one."""
    return bool(_ask(site, {"action": "remove", "name": name})["changed"])


def listed(site: Site) -> dict[str, dict[str, Any]]:
    """Return the schedules by name, see ``cloudctl_schedule``."""
    found: dict[str, dict[str, Any]] = _ask(site, {"action": "list"})["schedules"]
    return found


def _ask(site: Site, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    node = deploy_node(site)
    answers = call(site.path, MODULE, {node: {"prefix": prefix_of(site), **arguments}}, changing=True)
    if node in answers.ok:
        return answers.ok[node]
    error = answers.failed[node]
    if isinstance(error, ApplyFailed):
        raise ApplyFailed(
            "schedule-failed",
            error.message.removeprefix("Call: "),
            where=node,
            hint="systemctl on the deploy node",
        ) from None
    raise error


def shell_words(command: str) -> list[str]:
    """Return the words of a unit's command, as far as they can be told apart."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()
