#!/usr/bin/env python3
"""Compare the cloud's databases, accounts and registrations with what is wanted, and change the difference.

    cluster.py --check|--apply --section databases|identity [--input FILE|-] [--verify-passwords]
               [--services NAME,NAME]

Runs inside a container of the cloud with nothing but Python and pymysql: one process for all services. The
wanted state is cluster.json beside this file unless --input names another one. Each section is read, compared
by a pure function, then applied. The last line printed is JSON:

    {"changes": [{"kind", "name", "action", "reason", "for"}], "extras": [{"kind", "name"}]}

``for`` names the services that need the change; with --services only what one of them needs is changed.
Extras are things that nothing here asked for; they are reported and never removed. No secret is printed.
Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Change = dict[str, Any]
State = dict[str, Any]

SYSTEM_DATABASES = frozenset({"information_schema", "mysql", "performance_schema", "sys", "test"})
SYSTEM_ACCOUNTS = frozenset({"", "root", "mysql", "mariadb.sys", "haproxy", "PUBLIC"})
CHARACTER_SET = "utf8mb3"
DIGEST_KEY = "cloudctl_digest"
WORKERS = 8
REQUEST_SECONDS = 20
# how long a section waits for a service that is just coming up: a check answers soon, a change is patient
PATIENCE = {"check": 4.0, "apply": 90.0}


class ReconcileError(Exception):
    """The state could not be read or changed; the message holds no secret."""


def change(kind: str, name: str, action: str, reason: str) -> Change:
    """Return one entry of the answer."""
    return {"kind": kind, "name": name, "action": action, "reason": reason}


def subject(entry: Change) -> str:
    """Return what a change is about, as the desired state's ``owners`` call it."""
    kind, name = str(entry["kind"]), str(entry["name"])
    if kind == "database-grant":
        return f"database {name.partition(' on ')[2]}"
    if kind == "endpoint":
        return f"service {name.partition(' ')[0]}"
    if kind == "role-assignment":
        return f"user {name.partition(': ')[0]}"
    return f"{kind} {name}"


def needed(changes: Iterable[Change], wanted: State, services: Collection[str]) -> list[Change]:
    """Return the changes, each with the services that need it; limited to some services when any is given."""
    owners: dict[str, list[str]] = wanted.get("owners") or {}
    tagged = [
        {**entry, "for": [name for name, own in owners.items() if subject(entry) in own]} for entry in changes
    ]
    return [entry for entry in tagged if not services or set(entry["for"]) & set(services)]


# -- databases: pure ---------------------------------------------------------------------------


def database_password(password: str) -> str:
    """Return a password as the database stores it (mysql_native_password)."""
    inner = hashlib.sha1(password.encode()).digest()  # the server's own format
    return "*" + hashlib.sha1(inner).hexdigest().upper()


def grant_pattern(database: str) -> str:
    """Return a database's name as a grant names it: there, underscore and percent are wildcards."""
    return database.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


def diff_databases(wanted: State, found: State) -> tuple[list[Change], list[Change]]:
    """Compare databases, accounts and grants.

    Args:
        wanted: ``databases`` and ``accounts`` of the desired state.
        found: ``databases`` (names), ``accounts`` (user to hash) and ``grants``
            (user to {pattern: complete}).

    Returns:
        Changes in the order in which to apply them, and extras.
    """
    changes = []
    names = [entry["name"] for entry in wanted["databases"]]
    for name in names:
        if name not in found["databases"]:
            changes.append(change("database", name, "create", "does not exist"))
    for account in wanted["accounts"]:
        user = account["user"]
        current = found["accounts"].get(user)
        if current is None:
            changes.append(change("database-account", user, "create", "does not exist"))
        elif current.upper() != database_password(account["password"]):
            changes.append(change("database-account", user, "update", "another password is set"))
        grants = found["grants"].get(user, {})
        for database in account["databases"]:
            complete = grants.get(grant_pattern(database))
            if complete is None and "_" not in database:
                complete = grants.get(database)
            if not complete:
                reason = "no access" if complete is None else "some privileges are missing"
                changes.append(change("database-grant", f"{user} on {database}", "grant", reason))
    users = {account["user"] for account in wanted["accounts"]}
    extras = [
        {"kind": "database", "name": name}
        for name in sorted(set(found["databases"]) - set(names) - SYSTEM_DATABASES)
    ]
    extras += [
        {"kind": "database-account", "name": name}
        for name in sorted(set(found["accounts"]) - users - SYSTEM_ACCOUNTS)
    ]
    return changes, extras


def database_statement(entry: Change, wanted: State) -> tuple[str, tuple[str, ...]]:
    """Return the SQL statement and its parameters that make one change; a password goes in as a hash."""
    if entry["kind"] == "database":
        return f"CREATE DATABASE IF NOT EXISTS {quoted(entry['name'])} CHARACTER SET {CHARACTER_SET}", ()
    if entry["kind"] == "database-account":
        password = next(item["password"] for item in wanted["accounts"] if item["user"] == entry["name"])
        verb = "CREATE USER IF NOT EXISTS" if entry["action"] == "create" else "ALTER USER"
        return f"{verb} %s@'%%' IDENTIFIED BY PASSWORD %s", (entry["name"], database_password(password))
    user, _, database = entry["name"].partition(" on ")
    pattern = quoted(grant_pattern(database)).replace("%", "%%")
    return f"GRANT ALL PRIVILEGES ON {pattern}.* TO %s@'%%'", (user,)


def quoted(name: str) -> str:
    """Return an identifier in backticks."""
    return "`" + name.replace("`", "``") + "`"


# -- databases: effects ------------------------------------------------------------------------


def connect_database(connection: State, patience: float) -> Any:
    """Connect as the deployment's account; a cluster that is still forming is waited for.

    Raises:
        ReconcileError: no connection within ``patience`` seconds.
    """
    pymysql = importlib.import_module("pymysql")
    end = time.monotonic() + patience
    while True:
        try:
            return pymysql.connect(
                host=connection["host"],
                port=int(connection["port"]),
                user=connection["user"],
                password=connection["password"],
                connect_timeout=5,
                read_timeout=60,
                write_timeout=60,
                autocommit=True,
            )
        except pymysql.err.MySQLError as error:
            if time.monotonic() > end:
                where = f"{connection['host']}:{connection['port']}"
                raise ReconcileError(f"the database at {where} does not let us in: {error}") from None
            time.sleep(0.5)


def read_databases(cursor: Any) -> State:
    """Return what the server has, as ``diff_databases`` takes it."""
    cursor.execute("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")
    databases = [row[0] for row in cursor.fetchall()]
    cursor.execute("SELECT User, authentication_string FROM mysql.user WHERE Host = '%'")
    accounts = {row[0]: row[1] or "" for row in cursor.fetchall()}
    cursor.execute("SELECT * FROM mysql.db WHERE Host = '%'")
    titles = [item[0] for item in cursor.description]
    grants: dict[str, dict[str, bool]] = {}
    for row in cursor.fetchall():
        values = dict(zip(titles, row, strict=True))
        # GRANT ALL gives everything but the right to pass it on
        rights = [value for key, value in values.items() if key.endswith("_priv") and key != "Grant_priv"]
        grants.setdefault(values["User"], {})[values["Db"]] = all(value == "Y" for value in rights)
    return {"databases": databases, "accounts": accounts, "grants": grants}


def reconcile_databases(wanted: State, *, apply: bool, verify: bool, services: Collection[str] = ()) -> State:
    """Read, compare and, with ``apply``, change. ``verify`` means nothing here: hashes are compared."""
    if not wanted["databases"] and not wanted["accounts"]:
        return {"changes": [], "extras": []}
    connection = connect_database(wanted["connection"], PATIENCE["apply" if apply else "check"])
    try:
        with connection.cursor() as cursor:
            changes, extras = diff_databases(wanted, read_databases(cursor))
            changes = needed(changes, wanted, services)
            for entry in changes if apply else ():
                statement, values = database_statement(entry, wanted)
                try:
                    cursor.execute(statement, values or None)
                except Exception as error:
                    number = error.args[0] if error.args else type(error).__name__
                    raise ReconcileError(
                        f"{entry['kind']} {entry['name']}: {entry['action']} failed (error {number})"
                    ) from None
    finally:
        connection.close()
    return {"changes": changes, "extras": extras}


# -- identity: pure ----------------------------------------------------------------------------


def password_digest(user: str, password: str) -> str:
    """Return what is kept beside a user to see that its password is the wanted one.

    Short and slow to compute on purpose: it tells a changed password, and is of no use for finding one.
    """
    return hashlib.pbkdf2_hmac(
        "sha256", password.encode(), f"cloudctl:{user}".encode(), 20_000, dklen=8
    ).hex()


def diff_identity(wanted: State, found: State) -> tuple[list[Change], list[Change]]:
    """Compare projects, roles, users, role assignments, services and endpoints.

    Args:
        wanted: the section ``identity`` of the desired state.
        found: ``roles``, ``projects`` (name to id), ``users`` (name to {id, digest, enabled, refused}),
            ``assignments`` (set of (user, role, project)), ``services`` ((type, name) to id) and
            ``endpoints`` (list of {id, type, service, interface, region, url, enabled}).

    Returns:
        Changes in the order in which to apply them, and extras.
    """
    changes = [
        change("role", name, "create", "does not exist")
        for name in wanted["roles"]
        if name not in found["roles"]
    ]
    for project in wanted["projects"]:
        if project["name"] not in found["projects"]:
            changes.append(change("project", project["name"], "create", "does not exist"))
    for service in wanted["services"]:
        if (service["type"], service["name"]) not in found["services"]:
            changes.append(
                change("service", f"{service['type']}/{service['name']}", "create", "does not exist")
            )
    for user in wanted["users"]:
        changes += _diff_user(user, found["users"].get(user["name"]))
    changes_endpoints, extras = _diff_endpoints(wanted, found)
    changes += changes_endpoints
    for user in wanted["users"]:
        for role in user["roles"]:
            if (user["name"], role, user["project"]) not in found["assignments"]:
                name = f"{user['name']}: {role} in {user['project']}"
                changes.append(change("role-assignment", name, "grant", "not assigned"))
    registered = {(service["type"], service["name"]) for service in wanted["services"]}
    extras += [
        {"kind": "service", "name": f"{kind}/{name}"}
        for kind, name in sorted(set(found["services"]) - registered)
    ]
    return changes, extras


def _diff_user(user: State, current: State | None) -> list[Change]:
    if current is None:
        return [change("user", user["name"], "create", "does not exist")]
    if current["digest"] != password_digest(user["name"], user["password"]):
        return [change("user", user["name"], "update", "another password is set")]
    if current.get("refused"):
        return [change("user", user["name"], "update", "the password is refused")]
    if not current["enabled"]:
        return [change("user", user["name"], "update", "is disabled")]
    return []


def _diff_endpoints(wanted: State, found: State) -> tuple[list[Change], list[Change]]:
    changes, extras = [], []
    by_key: dict[tuple[str, str, str, str], list[State]] = {}
    for endpoint in found["endpoints"]:
        by_key.setdefault(endpoint_key(endpoint), []).append(endpoint)
    for endpoint in wanted["endpoints"]:
        current = by_key.pop(endpoint_key(endpoint), [])
        if not current:
            changes.append(change("endpoint", endpoint_name(endpoint), "create", "does not exist"))
            continue
        first, *others = sorted(current, key=lambda item: (item["url"] != endpoint["url"], item["id"]))
        if first["url"] != endpoint["url"]:
            reason = f"url: {first['url']} -> {endpoint['url']}"
            changes.append(change("endpoint", endpoint_name(endpoint), "update", reason))
        elif not first["enabled"]:
            changes.append(change("endpoint", endpoint_name(endpoint), "update", "is disabled"))
        extras += [{"kind": "endpoint", "name": f"{endpoint_name(item)} {item['url']}"} for item in others]
    for rest in by_key.values():
        extras += [{"kind": "endpoint", "name": f"{endpoint_name(item)} {item['url']}"} for item in rest]
    return changes, extras


def endpoint_key(endpoint: State) -> tuple[str, str, str, str]:
    """Return what makes two endpoints the same one."""
    return endpoint["type"], endpoint["service"], endpoint["interface"], endpoint["region"]


def endpoint_name(endpoint: State) -> str:
    """Return how an endpoint is called in the answer."""
    return f"{endpoint['type']}/{endpoint['service']} {endpoint['interface']} {endpoint['region']}"


# -- identity: effects -------------------------------------------------------------------------


FORBIDDEN_TRIES = 4
FORBIDDEN_PAUSE = 1.0  # seconds


class Keystone:
    """The identity API, version 3, over HTTPS; safe to use from several threads."""

    def __init__(self, connection: State) -> None:
        self.url = connection["auth_url"].rstrip("/")
        self.context = ssl.create_default_context(cafile=connection.get("cafile"))
        self.token = ""

    def request(self, method: str, path: str, body: State | None = None) -> tuple[State, Any]:
        """Send one request.

        Returns:
            The decoded body and the headers.

        Raises:
            urllib.error.HTTPError: the API refused.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token:
            headers["X-Auth-Token"] = self.token
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        for left in reversed(range(FORBIDDEN_TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=self.context) as answer:
                    text = answer.read()
                    return (json.loads(text) if text else {}), answer.headers
            except urllib.error.HTTPError as error:
                # A process that has just started refuses what is asked while another of its threads still
                # reads the policy, whoever asks.
                if error.code != 403 or not self.token or not left:
                    raise
                error.close()
                time.sleep(FORBIDDEN_PAUSE)
        raise AssertionError("not reached")

    def login(self, user: str, password: str, project: str) -> str:
        """Return a token for a user in a project."""
        domain = {"id": "default"}
        identity = {"user": {"name": user, "domain": domain, "password": password}}
        auth = {
            "identity": {"methods": ["password"], "password": identity},
            "scope": {"project": {"name": project, "domain": domain}},
        }
        _, headers = self.request("POST", "/auth/tokens?nocatalog", {"auth": auth})
        return str(headers["X-Subject-Token"])

    def get(self, path: str, **query: str) -> State:
        """Return a collection or an item."""
        return self.request("GET", path + ("?" + urllib.parse.urlencode(query) if query else ""))[0]


def connect_keystone(connection: State, patience: float) -> Keystone:
    """Log in as the administrator; an API that is still coming up is waited for.

    Raises:
        ReconcileError: no token within ``patience`` seconds, or the password is wrong.
    """
    try:
        keystone = Keystone(connection)
    except OSError as error:
        raise ReconcileError(
            f"the CA certificate {connection.get('cafile')} can't be read: {error}"
        ) from None
    end = time.monotonic() + patience
    while True:
        try:
            keystone.token = keystone.login(
                connection["username"], connection["password"], connection["project"]
            )
            return keystone
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise ReconcileError(f"{keystone.url} refuses the administrator's password") from None
            reason = f"HTTP {error.code}"
        except OSError as error:
            reason = str(getattr(error, "reason", error))
        if time.monotonic() > end:
            raise ReconcileError(f"{keystone.url} does not answer: {reason}")
        time.sleep(0.5)


def read_identity(keystone: Keystone, wanted: State, pool: ThreadPoolExecutor, *, verify: bool) -> State:
    """Return what Keystone has, as ``diff_identity`` takes it; only what is wanted is asked for by name."""
    roles = pool.submit(keystone.get, "/roles")
    services = pool.submit(keystone.get, "/services")
    endpoints = pool.submit(keystone.get, "/endpoints")
    projects = {
        entry["name"]: pool.submit(keystone.get, "/projects", domain_id="default", name=entry["name"])
        for entry in wanted["projects"]
    }
    users = {
        entry["name"]: pool.submit(keystone.get, "/users", domain_id="default", name=entry["name"])
        for entry in wanted["users"]
    }
    tries = {entry["name"]: pool.submit(_refused, keystone, entry) for entry in wanted["users"] if verify}
    found_projects = {name: item["id"] for name, job in projects.items() for item in job.result()["projects"]}
    found_roles = {
        item["name"]: item["id"] for item in roles.result()["roles"] if item.get("domain_id") is None
    }
    found_users = {
        name: {
            "id": item["id"],
            "digest": item.get(DIGEST_KEY, ""),
            "enabled": item["enabled"],
            "refused": tries[name].result() if name in tries else False,
        }
        for name, job in users.items()
        for item in job.result()["users"]
    }
    found_services = {
        item["id"]: (item["type"], item.get("name", "")) for item in services.result()["services"]
    }
    return {
        "roles": found_roles,
        "projects": found_projects,
        "users": found_users,
        "assignments": _read_assignments(keystone, found_projects, found_roles, found_users),
        "services": {key: ident for ident, key in found_services.items()},
        "endpoints": [
            {
                "id": item["id"],
                "type": found_services[item["service_id"]][0],
                "service": found_services[item["service_id"]][1],
                "interface": item["interface"],
                "region": item.get("region_id") or item.get("region") or "",
                "url": item["url"],
                "enabled": item.get("enabled", True),
            }
            for item in endpoints.result()["endpoints"]
            if item["service_id"] in found_services
        ],
    }


def _read_assignments(
    keystone: Keystone, projects: State, roles: State, users: State
) -> set[tuple[str, str, str]]:
    role_names = {ident: name for name, ident in roles.items()}
    user_names = {item["id"]: name for name, item in users.items()}
    found = set()
    empty: State = {}
    for project, ident in projects.items():
        answer = keystone.get("/role_assignments", **{"scope.project.id": ident})
        for item in answer["role_assignments"]:
            user = user_names.get(item.get("user", empty).get("id", ""))
            role = role_names.get(item["role"]["id"])
            if user and role:
                found.add((user, role, project))
    return found


def _refused(keystone: Keystone, user: State) -> bool:
    """Whether a user's wanted password does not let it in."""
    other = object.__new__(Keystone)
    other.url, other.context, other.token = keystone.url, keystone.context, ""
    try:
        other.login(user["name"], user["password"], user["project"])
    except urllib.error.HTTPError as error:
        return error.code == 401
    return False


def apply_identity(
    keystone: Keystone, wanted: State, found: State, changes: Iterable[Change], pool: ThreadPoolExecutor
) -> None:
    """Make the changes; what others refer to comes first, the rest at the same time."""
    entries = list(changes)
    stages: tuple[dict[str, Callable[[Keystone, State, State, Change], None]], ...] = (
        {"role": _apply_role, "project": _apply_project, "service": _apply_service},
        {"user": _apply_user, "endpoint": _apply_endpoint},
        {"role-assignment": _apply_assignment},
    )

    def one(work: Callable[[Keystone, State, State, Change], None], entry: Change) -> None:
        try:
            work(keystone, wanted, found, entry)
        except urllib.error.HTTPError as error:
            if error.code == 409:  # made meanwhile by a run that was interrupted
                return
            raise ReconcileError(
                f"{entry['kind']} {entry['name']}: {entry['action']} failed (HTTP {error.code})"
            ) from None
        except OSError as error:
            raise ReconcileError(
                f"{entry['kind']} {entry['name']}: {entry['action']} failed ({error})"
            ) from None

    for stage in stages:
        jobs = [pool.submit(one, stage[entry["kind"]], entry) for entry in entries if entry["kind"] in stage]
        for job in jobs:
            job.result()


def _apply_role(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    answer, _ = keystone.request("POST", "/roles", {"role": {"name": entry["name"]}})
    found["roles"][entry["name"]] = answer["role"]["id"]


def _apply_project(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    project = next(item for item in wanted["projects"] if item["name"] == entry["name"])
    answer, _ = keystone.request("POST", "/projects", {"project": {**project, "domain_id": "default"}})
    found["projects"][entry["name"]] = answer["project"]["id"]


def _apply_service(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    service = next(item for item in wanted["services"] if f"{item['type']}/{item['name']}" == entry["name"])
    answer, _ = keystone.request("POST", "/services", {"service": {**service, "enabled": True}})
    found["services"][service["type"], service["name"]] = answer["service"]["id"]


def _apply_user(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    user = next(item for item in wanted["users"] if item["name"] == entry["name"])
    digest = password_digest(user["name"], user["password"])
    values = {"password": user["password"], "enabled": True, DIGEST_KEY: digest}
    if entry["action"] == "create":
        body = {"user": {**values, "name": user["name"], "domain_id": "default"}}
        answer, _ = keystone.request("POST", "/users", body)
        found["users"][user["name"]] = {"id": answer["user"]["id"]}
    else:
        keystone.request("PATCH", f"/users/{found['users'][user['name']]['id']}", {"user": values})


def _apply_endpoint(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    endpoint = next(item for item in wanted["endpoints"] if endpoint_name(item) == entry["name"])
    values = {
        "service_id": found["services"][endpoint["type"], endpoint["service"]],
        "interface": endpoint["interface"],
        "region_id": endpoint["region"],
        "url": endpoint["url"],
        "enabled": True,
    }
    if entry["action"] == "create":
        keystone.request("POST", "/endpoints", {"endpoint": values})
        return
    current = [item for item in found["endpoints"] if endpoint_key(item) == endpoint_key(endpoint)]
    chosen = min(current, key=lambda item: (item["url"] != endpoint["url"], item["id"]))
    keystone.request(
        "PATCH", f"/endpoints/{chosen['id']}", {"endpoint": {"url": endpoint["url"], "enabled": True}}
    )


def _apply_assignment(keystone: Keystone, wanted: State, found: State, entry: Change) -> None:
    user, _, rest = entry["name"].partition(": ")
    role, _, project = rest.partition(" in ")
    project_path = f"/projects/{found['projects'][project]}/users/{found['users'][user]['id']}"
    keystone.request("PUT", f"{project_path}/roles/{found['roles'][role]}")


def reconcile_identity(wanted: State, *, apply: bool, verify: bool, services: Collection[str] = ()) -> State:
    """Read, compare and, with ``apply``, change; ``verify`` also logs in as every user."""
    if not wanted["connection"]["auth_url"]:
        return {"changes": [], "extras": []}
    keystone = connect_keystone(wanted["connection"], PATIENCE["apply" if apply else "check"])
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            found = read_identity(keystone, wanted, pool, verify=verify)
        except urllib.error.HTTPError as error:
            raise ReconcileError(f"{keystone.url} answers HTTP {error.code}") from None
        except OSError as error:
            raise ReconcileError(f"{keystone.url} does not answer: {error}") from None
        changes, extras = diff_identity(wanted, found)
        changes = needed(changes, wanted, services)
        if apply:
            apply_identity(keystone, wanted, found, changes, pool)
    return {"changes": changes, "extras": extras}


SECTIONS: dict[str, Callable[..., State]] = {"databases": reconcile_databases, "identity": reconcile_identity}


def main(argv: list[str] | None = None) -> int:
    """Run one section."""
    parser = argparse.ArgumentParser(description="Reconcile the cloud's shared state.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="only say what would change")
    what.add_argument("--apply", action="store_true", help="change it")
    parser.add_argument("--section", required=True, choices=sorted(SECTIONS))
    parser.add_argument("--input", default=str(Path(__file__).resolve().with_name("cluster.json")))
    parser.add_argument("--services", default="", help="only what these need, separated by commas")
    parser.add_argument("--verify-passwords", action="store_true", help="also log in as every service user")
    options = parser.parse_args(argv)
    try:
        text = sys.stdin.read() if options.input == "-" else Path(options.input).read_text(encoding="utf-8")
        wanted = json.loads(text)[options.section]
        answer = SECTIONS[options.section](
            wanted,
            apply=options.apply,
            verify=options.verify_passwords,
            services=[name for name in options.services.split(",") if name],
        )
    except ReconcileError as error:
        print(f"{options.section}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        # the type alone: the message of a JSON error quotes the text
        print(f"{options.section}: the input can't be used ({type(error).__name__})", file=sys.stderr)
        return 1
    print(json.dumps(answer, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
