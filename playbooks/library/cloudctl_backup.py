#!/usr/bin/python
"""Work on a node for backups of the database: read the server's state, try a backup, exchange its data.

Runs on the node with the standard library alone. Data itself never passes through here: it is streamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_backup
short_description: Read, try and restore the database on a node
description:
  - C(read) reports the server, its data directory and its binary logs, and changes nothing.
  - C(rotate) begins a new binary log on this server only, and reports like C(read).
  - C(count) counts the rows of every table of the running server.
  - C(open) makes a throw-away container without network; C(close) removes it with all its data.
  - C(prove) prepares what was unpacked in the throw-away container, starts a server on it, replays binary
    logs if some are given, counts the rows of every table, and stops the server.
  - C(swap) puts a prepared (or an empty) data directory in the place of the present one, which is kept under
    another name. It can be repeated.
  - C(forget) removes data directories that were replaced.
options:
  action:
    description: What to do.
    type: str
    choices: [read, rotate, count, open, prove, close, swap, forget]
    required: true
  container:
    description: Name of the server's container.
    type: str
    default: mariadb
  volume:
    description: Volume of the server's data.
    type: str
    default: mariadb
  name:
    description: Name of the throw-away container; of the restore, for C(swap).
    type: str
    default: ""
  image:
    description: Image of the throw-away container.
    type: str
    default: ""
  keep_volume:
    description: Volume in which the throw-away container works; without one its data goes with it.
    type: str
    default: ""
  parts:
    description: Directories that were unpacked there, the full backup first, then its increments.
    type: list
    elements: str
    default: []
  replay:
    description: Shell command that replays binary logs into the throw-away server.
    type: str
    default: ""
  source:
    description: Volume that holds the prepared directory C(base), for C(swap); empty makes an empty one.
    type: str
    default: ""
  memory:
    description: Memory in MiB that preparing and trying may use.
    type: int
    default: 256
author: cloudctl
"""

EXAMPLES = r"""
- name: What does the database of this node look like
  cloudctl_backup: {action: read}
"""

RETURN = r"""
found:
  description: What C(read) and C(rotate) found.
  returned: for read and rotate
  type: dict
rows:
  description: By schema its number of C(tables) and of C(rows).
  returned: for count
  type: dict
proof:
  description: C(galera), C(binlog) and C(rows) of what was prepared.
  returned: for prove
  type: dict
"""

LABEL = "cloudctl.backup"
WORK = "/work"
RESTORES = "cloudctl_restore_"  # how the volumes begin in which restores are prepared
LIFETIME = 6 * 3600  # seconds after which a throw-away container ends by itself
UNCOUNTED = ("information_schema", "performance_schema")
GRASTATE = """# GALERA saved state
version: 2.1
uuid:    00000000-0000-0000-0000-000000000000
seqno:   -1
safe_to_bootstrap: 1
"""


class Failed(Exception):
    """Something did not work; the message is for the operator."""


class AccessDenied(Failed):
    """A server wants a login that there is not."""


def run(argv, timeout=600, check=True):
    """Return a command's output.

    Raises:
        Failed: it failed (where ``check``), or took too long.
    """
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{argv[0]} {argv[1]}: no end after {timeout} s") from None
    except OSError as error:
        raise Failed(f"{argv[0]}: {error}") from None
    if done.returncode and check:
        lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        raise Failed(" | ".join(lines[-6:]) or f"{argv[0]} {argv[1]} ended with {done.returncode}")
    return done.stdout if done.returncode == 0 else ""


# -- reading ----------------------------------------------------------------------------------------


def inspect(container):
    """Return the container's state and image, or None where there is none."""
    text = run(["docker", "inspect", "--type", "container", container], check=False)
    if not text:
        return None
    (entry,) = json.loads(text)
    return {
        "running": entry["State"]["Running"],
        "image": entry["Config"]["Image"],
        "volumes": {m["Name"]: m["Source"] for m in entry["Mounts"] if m["Type"] == "volume"},
    }


def volume_path(volume):
    """Return where a volume's data lies, None where there is no such volume."""
    text = run(["docker", "volume", "inspect", volume], check=False)
    if not text:
        return None
    (entry,) = json.loads(text)
    if entry["Driver"] != "local" or (entry.get("Options") or {}):
        raise Failed(f"the volume {volume} is not a directory of this node (driver {entry['Driver']})")
    return Path(entry["Mountpoint"])


def lineage_of(data):
    """Return what stays the same while a data directory lives, and differs in any other one.

    A directory that was copied anew from another member has new files: their numbers and times of birth tell.
    """
    marks = []
    for name in ("ibdata1", "mysql"):
        try:
            entry = subprocess.run(
                ["stat", "--format", "%i.%W", str(data / name)], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        marks.append(entry.stdout.strip())
    return f"{Path('/etc/machine-id').read_text(encoding='ascii').strip()[:12]}:{':'.join(marks)}"


def read_logs(data):
    """Return the binary logs in their order, as the server's own list names them."""
    found = []
    for index in sorted(data.glob("*.index")):
        for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
            path = data / Path(line.strip()).name
            if not re.search(r"\.\d+$", path.name) or not path.is_file():
                continue
            with path.open("rb") as stream:
                head = stream.read(8)
            begins = struct.unpack("<I", head[4:8])[0] if head[:4] == b"\xfebin" and len(head) == 8 else 0
            found.append(
                {"name": path.name, "path": str(path), "size": path.stat().st_size, "begins": begins}
            )
    return found


def data_size(data):
    """Return the bytes that a backup would hold: without logs, caches and what the server makes anew."""
    total = 0
    for directory, _folders, files in os.walk(data):
        for name in files:
            if directory == str(data) and re.match(r"galera\.cache|ibtmp|.*-bin\.\d+|gcache|tc\.log", name):
                continue
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except OSError:
                continue
    return total


def sql(container, statement, options=(), timeout=60):
    """Return the rows of a statement as lists of texts."""
    text = run(
        ["docker", "exec", "-u", "mysql", container, "mariadb", *options, "-NB", "-e", statement],
        timeout=timeout,
    )
    return [line.split("\t") for line in text.splitlines()]


def read_server(container):
    """Return what the running server tells.

    Raises:
        Failed: it does not answer.
    """
    status = dict(
        row
        for row in sql(
            container,
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_local_state_comment', 'wsrep_cluster_status', "
            "'wsrep_cluster_state_uuid', 'wsrep_last_committed', 'wsrep_cluster_size', 'Innodb_lsn_current')",
        )
        if len(row) == 2
    )
    (facts,) = sql(
        container,
        "SELECT UNIX_TIMESTAMP(NOW(6)), @@version, @@server_id, @@log_bin, (SELECT COUNT(*) FROM "
        "information_schema.processlist WHERE host LIKE '%:%' AND user <> 'system user')",
    )
    tables = sql(
        container,
        "SELECT s.schema_name, COUNT(t.table_name) FROM information_schema.schemata s LEFT JOIN "
        "information_schema.tables t ON t.table_schema = s.schema_name AND t.table_type = 'BASE TABLE' "
        "GROUP BY s.schema_name",
    )
    return {
        "state": status.get("wsrep_local_state_comment", ""),
        "primary": status.get("wsrep_cluster_status") == "Primary",
        "uuid": status.get("wsrep_cluster_state_uuid", ""),
        "seqno": int(status.get("wsrep_last_committed", -1)),
        "size": int(status.get("wsrep_cluster_size", 0)),
        "lsn": int(status.get("Innodb_lsn_current", 0)),
        "now": float(facts[0]),
        "version": facts[1],
        "server_id": int(facts[2]),
        "logs": facts[3] == "1",
        "clients": int(facts[4]),
        "schemas": {row[0]: int(row[1]) for row in tables if row[0] not in UNCOUNTED},
    }


def read_all(params):
    """Return everything that is known of this node's database."""
    container = inspect(params["container"])
    path = volume_path(params["volume"])
    found = {
        "container": container,
        "server": None,
        "why": "",
        "lineage": "",
        "logs": [],
        "data_size": 0,
        "free": 0,
        "path": str(path) if path else "",
        "replaced": [],
        "now": time.time(),
    }
    if path is not None:
        found["free"] = shutil.disk_usage(path.parent).free
        found["replaced"] = sorted(entry.name for entry in path.parent.glob("replaced-*"))
        if path.is_dir():
            found |= {"lineage": lineage_of(path), "logs": read_logs(path), "data_size": data_size(path)}
    if container is not None and container["running"]:
        try:
            found["server"] = read_server(params["container"])
        except (Failed, ValueError, IndexError) as error:
            found["why"] = str(error)
    else:
        found["why"] = "its container does not run"
    return found


def rotate(params):
    """Begin a new binary log where the server runs; return what ``read_all`` does, and ``until``.

    ``until``: Unix time up to which all writes are in logs that are closed now.
    """
    container = inspect(params["container"])
    until = None
    if container is not None and container["running"]:
        try:
            rows = sql(
                params["container"],
                # NOW() is when the statement began; only then it waits for all that others committed before.
                "SET SESSION wsrep_sync_wait = 1; SELECT UNIX_TIMESTAMP(NOW(6)); "
                "FLUSH NO_WRITE_TO_BINLOG BINARY LOGS",
            )
            until = float(rows[0][0])
        except (Failed, ValueError, IndexError):
            until = None
    found = read_all(params)
    if until is not None:
        # The last one is open.
        found["closed"] = found["logs"][:-1]
    else:
        # Nothing writes: all of them are as they will stay. Their last write is what they reach to.
        found["closed"] = (
            found["logs"] if container is None or not container["running"] else found["logs"][:-1]
        )
        times = [os.stat(log["path"]).st_mtime for log in found["closed"]]
        until = max(times) if times else 0.0
    found["until"] = until
    return found


# -- trying a backup --------------------------------------------------------------------------------


def open_container(params):
    """Make the throw-away container; those left by interrupted runs go first (one works at a time)."""
    close_container({"name": "", "keep_volume": ""})
    if params["keep_volume"]:
        # One restore works at a time: what an earlier one prepared and did not use is of no use any more.
        left = run(["docker", "volume", "ls", "--quiet", "--filter", f"name=^{RESTORES}"]).split()
        for name in {*left, params["keep_volume"]}:
            run(["docker", "volume", "rm", "--force", name])
    volume = f"{params['keep_volume']}:{WORK}" if params["keep_volume"] else WORK
    run(
        ["docker", "run", "--detach", "--rm", "--name", params["name"], "--label", f"{LABEL}=1",
         "--network", "none", "--memory", f"{params['memory'] + 768}m", "--user", "root",
         "--workdir", "/", "--volume", volume, "--entrypoint", "sleep", params["image"], str(LIFETIME)]
    )  # fmt: skip
    run(["docker", "exec", "-u", "root", params["name"], "install", "-d", "-o", "mysql", "-g", "mysql", WORK])


def close_container(params):
    """Remove the throw-away container with its data; without a name all of them."""
    names = [params["name"]] if params["name"] else []
    if not names:
        names = run(["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}=1"]).split()
    for name in names:
        run(["docker", "rm", "--force", "--volumes", name], check=False)
    if params["keep_volume"]:
        run(["docker", "volume", "rm", "--force", params["keep_volume"]], check=False)


def inside(name, script, timeout):
    """Run a shell script in the throw-away container as the server's user, and return its output."""
    return run(
        ["docker", "exec", "-u", "mysql", name, "bash", "-c", "set -eo pipefail\n" + script], timeout=timeout
    )


def prove(params):
    """Prepare, start, replay, count, stop."""
    name, parts, hours = params["name"], params["parts"], 3600
    base = f"{WORK}/{parts[0]}"
    for number, part in enumerate(parts):
        increment = f" --incremental-dir={WORK}/{part}" if number else ""
        inside(
            name,
            f"nice -n 10 mariadb-backup --prepare --target-dir={base}{increment} "
            f"--use-memory={params['memory']}M >{WORK}/prepare.log 2>&1 "
            f"|| {{ tail -n 5 {WORK}/prepare.log >&2; exit 1; }}\n"
            f"grep -q 'completed OK!' {WORK}/prepare.log",
            4 * hours,
        )
    galera, binlog = read_positions(name, f"{WORK}/{parts[-1]}")
    if params["replay"]:
        # Statements about accounts and roles ask who says them: the server knows its own user by the socket.
        # Where the accounts do not know that one, nobody is asked, and most of these statements work, too.
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(throw_away_server(name, base, params["memory"], accounts=True))
            except AccessDenied:
                stack.enter_context(throw_away_server(name, base, params["memory"]))
            inside(name, params["replay"], 12 * hours)
    with throw_away_server(name, base, params["memory"]) as options:
        rows = count_rows(name, options, 4 * hours)
    return {"galera": galera, "binlog": binlog, "rows": rows}


@contextlib.contextmanager
def throw_away_server(name, base, memory, accounts=False):
    """Run a server on prepared data; yields a client's options. Without ``accounts`` it asks for no login.

    Raises:
        AccessDenied: it knows the client's account not.
        Failed: it does not start.
    """
    hour = 3600
    login = "" if accounts else "--skip-grant-tables "
    server = (
        f"nice -n 10 mariadbd --defaults-file={base}/backup-my.cnf --datadir={base} --socket={WORK}/socket "
        f"--pid-file={WORK}/pid --log-error={WORK}/error.log --skip-networking {login}"
        f"--wsrep-on=OFF --skip-log-bin --innodb-buffer-pool-size={memory}M --event-scheduler=OFF "
        "--max-allowed-packet=1G --character-set-server=utf8mb3 --collation-server=utf8mb3_general_ci "
        "--aria-pagecache-buffer-size=16M --performance-schema=OFF --skip-name-resolve"
    )
    ended = f"{WORK}/ended"
    script = f"rm -f {WORK}/error.log {ended}; ( ({server}; touch {ended}) </dev/null >/dev/null 2>&1 &)"
    inside(name, script, 60)
    try:
        deadline = time.monotonic() + hour
        options = ["--no-defaults", f"--socket={WORK}/socket"]
        while True:
            try:
                sql(name, "SELECT 1", options)
                break
            except Failed as error:
                if "Access denied" in str(error):
                    raise AccessDenied(str(error)) from None
                gone = run(["docker", "exec", name, "ls", ended], check=False)
                if gone or time.monotonic() > deadline:
                    log = run(["docker", "exec", name, "tail", "-n", "30", f"{WORK}/error.log"], check=False)
                    errors = [line for line in log.splitlines() if "[ERROR]" in line]
                    raise Failed(
                        f"a server does not start on it: {' | '.join(errors[-3:]) or log[-500:]}"
                    ) from None
                time.sleep(0.3)
        yield options
    finally:
        # One that was killed leaves its file behind, and stays as a zombie: nobody waits for it there.
        script = (
            f"pid=$(cat {WORK}/pid) || exit 0; kill -TERM $pid; while [ -e {WORK}/pid ] && "
            f"grep -qs '^State:[[:space:]]*[^XZ[:space:]]' /proc/$pid/status; do sleep 0.1; done; "
            f"rm -f {WORK}/pid"
        )
        run(["docker", "exec", "-u", "mysql", name, "bash", "-c", script], check=False, timeout=hour)


def read_positions(name, directory):
    """Return the cluster's and the binary log's position that the last part carries."""
    script = f"cat {directory}/*_galera_info; echo; echo ==; cat {directory}/*_binlog_info; true"
    text = run(["docker", "exec", name, "bash", "-c", script], check=False)
    first, _mark, second = text.partition("==")
    match = re.search(r"([0-9a-f-]{36}):(-?\d+)", first)
    galera = {"uuid": match.group(1), "seqno": int(match.group(2))} if match else None
    words = second.split()
    binlog = {"file": words[0], "offset": int(words[1])} if len(words) > 1 and words[1].isdigit() else None
    return galera, binlog


def count_rows(name, options, timeout):
    """Return ``{schema: {tables, rows}}``: every table is read to its end."""
    tables = sql(
        name,
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE' "
        "AND table_schema NOT IN ('information_schema', 'performance_schema')",
        options,
    )
    schemas = [row[0] for row in sql(name, "SHOW DATABASES", options) if row[0] not in UNCOUNTED]
    found = {schema: {"tables": 0, "rows": 0} for schema in schemas if not schema.startswith("#")}

    def quote(word):
        return "`" + word.replace("`", "``") + "`"

    statements = [
        f"SELECT {number}, COUNT(*) FROM {quote(row[0])}.{quote(row[1])}" for number, row in enumerate(tables)
    ]
    for start in range(0, len(statements), 200):
        for number, count in sql(name, "; ".join(statements[start : start + 200]), options, timeout):
            entry = found[tables[int(number)][0]]
            entry["tables"] += 1
            entry["rows"] += int(count)
    return found


def count_running(container):
    """Count the rows of the server that runs, where tables may come and go meanwhile.

    Raises:
        Failed: it does not answer.
    """
    for _attempt in range(9):
        try:
            return count_rows(container, [], 3600)
        except Failed as error:
            if not re.search(r"ERROR (1146|1049) ", str(error)):  # no such table, no such database
                raise
    return count_rows(container, [], 3600)


# -- restoring --------------------------------------------------------------------------------------


def swap(params):
    """Put another data directory in the place of the present one, by renaming; the present one is kept."""
    container = inspect(params["container"])
    if container is not None and container["running"]:
        raise Failed("the server still runs: its data directory is not touched")
    path = volume_path(params["volume"])
    if path is None:
        raise Failed(f"there is no volume {params['volume']}")
    replaced = path.parent / f"replaced-{params['name']}"
    like = path if path.is_dir() else replaced
    entry = like.stat()
    done = []
    if path.is_dir() and not replaced.exists():
        path.rename(replaced)
        done.append("kept the present data directory")
    if not path.exists():
        fresh = path.parent / f"fresh-{params['name']}"
        if params["source"]:
            source = volume_path(params["source"])
            if source is None or not (source / "base").is_dir():
                raise Failed("the prepared data directory is gone: run the restore again from its beginning")
            fresh = source / "base"
            for name in ("gvwstate.dat", "galera.cache"):
                (fresh / name).unlink(missing_ok=True)
            (fresh / "grastate.dat").write_text(GRASTATE, encoding="ascii")
            os.chown(fresh / "grastate.dat", *owner_of(fresh))
        else:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
        os.chown(fresh, entry.st_uid, entry.st_gid)
        os.chmod(fresh, entry.st_mode & 0o7777)
        os.sync()
        fresh.rename(path)
        done.append("put the restored data directory in place" if params["source"] else "made an empty one")
    return {"replaced": replaced.name, "did": done}


def owner_of(path):
    """Return uid and gid of the server's files."""
    entry = (path / "ibdata1").stat()
    return entry.st_uid, entry.st_gid


def forget(params):
    """Remove replaced data directories (``name``: only that one)."""
    path = volume_path(params["volume"])
    removed = []
    for entry in sorted(path.parent.glob("replaced-*")) if path else []:
        if not params["name"] or entry.name == f"replaced-{params['name']}":
            shutil.rmtree(entry)
            removed.append(entry.name)
    return removed


def main():
    """Run the module."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "required": True,
                "choices": ["read", "rotate", "count", "open", "prove", "close", "swap", "forget"],
            },
            "container": {"type": "str", "default": "mariadb"},
            "volume": {"type": "str", "default": "mariadb"},
            "name": text,
            "image": text,
            "keep_volume": text,
            "parts": {"type": "list", "elements": "str", "default": []},
            "replay": text,
            "source": text,
            "memory": {"type": "int", "default": 256},
        }
    )
    params = module.params
    try:
        if params["action"] in ("read", "rotate"):
            found = read_all(params) if params["action"] == "read" else rotate(params)
            module.exit_json(changed=False, found=found)
        elif params["action"] == "count":
            module.exit_json(changed=False, rows=count_running(params["container"]))
        elif params["action"] == "open":
            open_container(params)
            module.exit_json(changed=True)
        elif params["action"] == "prove":
            module.exit_json(changed=False, proof=prove(params))
        elif params["action"] == "close":
            close_container(params)
            module.exit_json(changed=True)
        elif params["action"] == "swap":
            module.exit_json(changed=True, swapped=swap(params))
        else:
            removed = forget(params)
            module.exit_json(changed=bool(removed), removed=removed)
    except (Failed, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
