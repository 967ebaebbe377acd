"""Desired state of what all controllers share: databases, their accounts, and Keystone's registrations.

Pure: derived from the site and the service definitions, as one JSON document that ``reconcile`` takes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cloudctl.errors import ConfigError
from cloudctl.site.model import Site

Definition = Mapping[str, Any]

CA_PATH = "/etc/ssl/certs/cloudctl-ca.crt"
"""Where every container finds the site's CA certificate."""

DATABASE_PORT = 3306
SERVICE_PROJECT = "service"
"""Project in which the services' own users have their roles."""

DEFAULT_ROLES = ("admin", "service")
"""Roles of a service's own user where its definition names none."""

INTERFACES = {"public": "external", "internal": "internal", "admin": "internal"}
"""Interface of an endpoint to the virtual address behind it; an admin endpoint is never public."""


def password_hash(password: str, salt: str) -> str:
    """Return a password as RabbitMQ stores it: base64 of a four-byte salt and SHA-256 of salt and password.

    Args:
        salt: any text; the four bytes follow from it, so that the same input gives the same hash.
    """
    prefix = hashlib.sha256(salt.encode()).digest()[:4]
    return base64.b64encode(prefix + hashlib.sha256(prefix + password.encode()).digest()).decode()


def build(site: Site, services: Sequence[Definition]) -> dict[str, Any]:
    """Return the desired state of a site as ``{"databases": …, "identity": …}``, with the secrets it needs.

    Args:
        services: the parsed service definitions that are enabled.

    Raises:
        ConfigError: a definition names a frontend that none declares, two disagree, or a secret is missing.
    """
    wanted = {"databases": _databases(site, services), "identity": _identity(site, services)}
    for section, own in (("databases", _own_databases), ("identity", _own_identity)):
        wanted[section]["owners"] = {
            str(service["name"]): subjects for service in services if (subjects := sorted(own(service)))
        }
    return wanted


def _own_databases(service: Definition) -> set[str]:
    """Return what of the databases a service needs, as ``reconcile.subject`` calls it."""
    found = set()
    for entry in service.get("databases") or ():
        found |= {f"database {entry['name']}", f"database-account {entry.get('user', entry['name'])}"}
    return found


def _own_identity(service: Definition) -> set[str]:
    """Return what of the registrations a service needs, as ``reconcile.subject`` calls it."""
    part = service.get("identity") or {}
    found = {f"role {name}" for name in part.get("extra_roles") or ()}
    found |= {f"service {entry['type']}/{entry['name']}" for entry in part.get("services") or ()}
    if part.get("user"):
        found |= {f"user {part['user']}", f"project {SERVICE_PROJECT}"}
        found |= {f"role {name}" for name in part.get("roles") or DEFAULT_ROLES}
    return found


def _databases(site: Site, services: Sequence[Definition]) -> dict[str, Any]:
    owners: dict[str, str] = {}
    for service in services:
        for entry in service.get("databases") or ():
            name, user = entry["name"], entry.get("user", entry["name"])
            if owners.setdefault(name, user) != user:
                raise ConfigError(
                    "database-owner", f"the database {name} is given to {owners[name]} and to {user}",
                    where=str(service.get("name")),
                )  # fmt: skip
    users: dict[str, list[str]] = {}
    for name, user in sorted(owners.items()):
        users.setdefault(user, []).append(name)
    return {
        "connection": {
            "host": site.get("vip.internal"),
            "port": DATABASE_PORT,
            "user": "root",
            "password": site.secrets["mariadb_root_password"] if users else "",
        },
        "databases": [{"name": name} for name in sorted(owners)],
        "accounts": [
            {"user": user, "password": site.secrets[f"{user}_database_password"], "databases": names}
            for user, names in sorted(users.items())
        ],
    }


def _identity(site: Site, services: Sequence[Definition]) -> dict[str, Any]:
    frontends = {front["name"]: front for service in services for front in service.get("frontends") or ()}
    region = site.get("cloud.region")
    users, roles, registered, endpoints = [], set(), [], []
    auth_url = ""
    for service in services:
        part = service.get("identity") or {}
        if part.get("user"):
            wanted = list(part.get("roles") or DEFAULT_ROLES)
            roles.update(wanted)
            users.append(
                {
                    "name": part["user"],
                    "password": site.secrets[f"{part['user']}_identity_password"],
                    "project": SERVICE_PROJECT,
                    "roles": sorted(wanted),
                }
            )
        roles.update(part.get("extra_roles") or ())
        for entry in part.get("services") or ():
            front = frontends.get(entry["frontend"])
            if front is None:
                raise ConfigError(
                    "frontend-unknown", f"the service {entry['name']} is registered with the frontend "
                    f"{entry['frontend']!r}, which no service declares", where=str(service.get("name")),
                )  # fmt: skip
            registered.append(
                {"name": entry["name"], "type": entry["type"], "description": entry.get("description", "")}
            )
            if entry["type"] == "identity":
                auth_url = f"https://{site.get('vip.internal')}:{front['port']}/v3"
            endpoints += list(_endpoints(site, entry, front, region))
    return {
        "connection": {
            "auth_url": auth_url,
            "username": "admin",
            "password": site.secrets["admin_password"],
            "project": "admin",
            "cafile": CA_PATH,
        },
        "region": region,
        "projects": [{"name": SERVICE_PROJECT, "description": "Accounts of the cloud's own services"}],
        "roles": sorted(roles),
        "users": sorted(users, key=lambda user: str(user["name"])),
        "services": sorted(registered, key=lambda item: (item["type"], item["name"])),
        "endpoints": sorted(endpoints, key=lambda item: (item["type"], item["service"], item["interface"])),
    }


def _endpoints(
    site: Site, entry: Mapping[str, Any], front: Mapping[str, Any], region: str
) -> Iterator[dict[str, str]]:
    for interface, scope in INTERFACES.items():
        address, port = site.get("vip.internal"), front["port"]
        if scope == "external":
            address = site.get("vip.external", None) or address
            port = front.get("public_port", port)
        yield {
            "service": entry["name"],
            "type": entry["type"],
            "interface": interface,
            "region": region,
            "url": f"https://{address}:{port}{entry.get('path', '')}",
        }
