"""The database server's own words: names of its container and programs, and how their answers are read. Pure.

The only place of this package that knows which server it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from cloudctl.backup.manifest import Position

CONTAINER = "mariadb"
CHECK_CONTAINER = "mariadb_clustercheck"
VOLUME = "mariadb"
SERVICE = "mariadb"
DATA = "/var/lib/mysql"
SOCKET = "/run/mysqld/mysqld.sock"
USER = "mysql"
MARK = "=== cloudctl ==="

_LIFELINE = """
set -o pipefail; set -m; exec 3<&0
{work} </dev/null & worker=$!
{{ cat <&3 >/dev/null; kill -TERM -- -$worker; }} 2>/dev/null & guard=$!
wait $worker; code=$?
kill -TERM -- -$guard 2>/dev/null
"""
"""Runs until it is done or its input closes, which it does when the other end is gone, however that ended."""


def _in_container(script: str) -> str:
    return f"docker exec -i -u {USER} {CONTAINER} bash -c {shlex.quote(script)}"


def backup_command(name: str, *, since: int | None = None) -> str:
    """Return the shell command that writes a compressed copy of the server's data to its output.

    Args:
        name: of the backup; names the directory of its notes.
        since: an increment of what changed after this LSN.

    Standard error carries the program's log, a mark, then its notes.
    """
    notes = f"/tmp/cloudctl-backup-{name}"
    increment = f" --incremental-lsn={since}" if since is not None else ""
    work = (
        f"{{ nice -n 10 mariadb-backup --backup --stream=mbstream --galera-info --target-dir={notes}/work "
        f"--extra-lsndir={notes} --user={USER} --socket={SOCKET}{increment} 2>{notes}/log "
        "| nice -n 10 gzip -1; }"
    )
    script = (
        f"rm -rf /tmp/cloudctl-backup-*; mkdir -m 700 {notes} {notes}/work || exit 1"
        + _LIFELINE.format(work=work)
        + f"tail -n 40 {notes}/log >&2\necho {shlex.quote(MARK)} >&2\n"
        f"cat {notes}/mariadb_backup_info {notes}/mariadb_backup_checkpoints "
        f"{notes}/xtrabackup_info {notes}/xtrabackup_checkpoints >&2 2>/dev/null\n"
        f"grep -q 'completed OK!' {notes}/log || code=${{code/#0/1}}\nrm -rf {notes}\nexit $code"
    )
    return _in_container(script)


def dump_command() -> str:
    """Return the shell command that writes a compressed logical dump of everything to its output."""
    work = (
        f"{{ nice -n 10 mariadb-dump --user={USER} --socket={SOCKET} --all-databases --single-transaction "
        "--quick --skip-lock-tables --routines --events --triggers --hex-blob "
        "--default-character-set=utf8mb4 | nice -n 10 gzip -1; }"
    )
    return _in_container(_LIFELINE.format(work=work) + "exit $code")


def log_command(path: str) -> str:
    """Return the shell command that writes a compressed binary log to its output."""
    return f"nice -n 10 gzip -1 -c {shlex.quote(path)}"


def parse_notes(text: str) -> dict[str, Any]:
    """Read what ``backup_command`` wrote to its standard error.

    Returns:
        ``binlog`` (a Position or None), ``lsn`` ({from, to}), ``tools``.

    Raises:
        ValueError: the notes are not complete.
    """
    _log, _mark, notes = text.partition(MARK)
    fields = dict(re.findall(r"(?m)^(\w+) = (.*)$", notes))
    try:
        lsn = {"from": int(fields["from_lsn"]), "to": int(fields["to_lsn"])}
    except (KeyError, ValueError):
        raise ValueError("the program's notes have no positions") from None
    place = re.search(r"filename '([^']+)', position '?(\d+)", fields.get("binlog_pos", ""))
    tools = {
        name: fields[key]
        for name, key in (("server", "server_version"), ("backup", "tool_version"), ("program", "tool_name"))
        if key in fields
    }
    return {
        "binlog": Position(place.group(1), int(place.group(2))) if place else None,
        "lsn": lsn,
        "tools": tools,
    }


def replay_command(place: str, logs: list[str], offset: int, until: str | None) -> str:
    """Return the shell command (inside the throw-away container) that replays binary logs into its server.

    Args:
        place: the directory of the throw-away server.
        logs: paths, in order.
        offset: where to begin in the first.
        until: local time of the container (UTC) at which to stop, ``YYYY-MM-DD HH:MM:SS``.
    """
    stop = f" --stop-datetime={shlex.quote(until)}" if until else ""
    names = " ".join(shlex.quote(path) for path in logs)
    # The server runs without its accounts; statements that change accounts need them.
    return (
        "{ echo 'FLUSH PRIVILEGES;'; TZ=UTC mariadb-binlog --no-defaults --skip-gtid-strict-mode "
        f"--verify-binlog-checksum --start-position={offset}{stop} {names}; }} | "
        f"mariadb --no-defaults --binary-mode --max-allowed-packet=1G --socket={place}/socket"
    )


def schemas_of(rows: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of tables by schema, without those that a server makes up."""
    return {
        str(name): int(count)
        for name, count in rows.items()
        if name not in ("information_schema", "performance_schema")
    }
