"""Which secrets a site needs: fixed ones, and those that follow from the service definitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudctl.errors import ConfigError

KINDS = (
    "password",
    "fernet",
    "ceph-key",
    "uuid",
    "ssh-key",
    "erlang-cookie",
    "vrrp",
    "ca",
    "certificate",
)


@dataclass(frozen=True)
class SecretName:
    """A secret of a site.

    Attributes:
        name: its key in secrets.yml.
        kind: how it is made, one of KINDS.
        description: what it is for.
        late: a site that was made before this secret existed works without it, until a command needs it.
    """

    name: str
    kind: str
    description: str
    late: bool = False


_FIXED = (
    SecretName("admin_password", "password", "password of the cloud's administrator"),
    SecretName("backup_key", "password", "key that backups of the databases are encrypted with", late=True),
    SecretName("ca_certificate", "ca", "certificate of the site's CA"),
    SecretName("ca_key", "ca", "key of the site's CA"),
    SecretName("ceph_fsid", "uuid", "identity of the Ceph cluster"),
    SecretName("ceph_ssh_private_key", "ssh-key", "key with which Ceph's orchestrator reaches its hosts"),
    SecretName("ceph_ssh_public_key", "ssh-key", "public half of ceph_ssh_private_key"),
    SecretName("tls_certificate", "certificate", "certificate of both virtual addresses"),
    SecretName("tls_key", "certificate", "key of tls_certificate"),
    SecretName("vrrp_password", "vrrp", "shared by the controllers that hold the virtual addresses"),
)


def secret_names(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, SecretName]:
    """Return every secret that a site with these services needs, by name.

    Args:
        definitions: service definitions by name.

    Raises:
        ConfigError: a definition declares a secret of an unknown kind.
    """
    found = {secret.name: secret for secret in _FIXED}

    def add(name: str, kind: str, description: str) -> None:
        found.setdefault(name, SecretName(name, kind, description))

    for service, definition in definitions.items():
        for database in definition.get("databases") or []:
            user = database.get("user", database.get("name"))
            add(f"{user}_database_password", "password", f"database account {user}")
        user = (definition.get("messaging") or {}).get("user")
        if user:
            add(f"{user}_messaging_password", "password", f"messaging user {user}")
        user = (definition.get("identity") or {}).get("user")
        if user:
            add(f"{user}_identity_password", "password", f"service user {user}")
        ceph = definition.get("ceph") or {}
        clients = [entry.get("name") for entry in (ceph.get("client"), *(ceph.get("clients") or [])) if entry]
        for client in filter(None, clients):
            add(f"ceph_client_{client}_key", "ceph-key", f"Ceph key of client.{client}")
        for name, entry in (definition.get("secrets") or {}).items():
            kind = str((entry or {}).get("kind", "password"))
            if kind not in KINDS:
                raise ConfigError(
                    "service-definition",
                    f"the secret {name} of service {service} has the unknown kind '{kind}'",
                    hint=f"known: {', '.join(KINDS)}",
                )
            description = str((entry or {}).get("description", ""))
            if kind == "ssh-key":
                add(f"{name}_private_key", kind, description)
                add(f"{name}_public_key", kind, f"public half of {name}_private_key")
            else:
                add(str(name), kind, description)
    return dict(sorted(found.items()))
