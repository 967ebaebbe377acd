"""Makes the secrets that a site lacks."""

from __future__ import annotations

import base64
import os
import secrets as random
import string
import struct
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudctl.errors import ConfigError
from cloudctl.runs.record import write_atomically
from cloudctl.site import certificates, vault
from cloudctl.site.load import SECRETS, load_site
from cloudctl.site.model import Site
from cloudctl.site.names import SecretName, secret_names
from cloudctl.site.schema import site_definitions

CA_FILE = "ca.crt"


@dataclass(frozen=True)
class Generated:
    """What ``generate`` did.

    Attributes:
        made: names of new secrets.
        renewed: names of secrets that were made anew, with the reason.
        kept: how many were there already.
        password_made: the vault password file, if it was made.
    """

    made: tuple[str, ...]
    renewed: Mapping[str, str]
    kept: int
    password_made: Path | None


def generate(path: Path, *, renew_certificate: bool = False, services_dir: Path | None = None) -> Generated:
    """Make the secrets that a site lacks; what is there is never changed, save an outdated certificate.

    Args:
        path: the site's directory.
        renew_certificate: make the certificate anew although it is good.
        services_dir: where the service definitions are.

    Raises:
        ConfigError, MultiError: the site is not valid, or its vault cannot be opened.
    """
    site = load_site(path, with_secrets=False, services_dir=services_dir)
    names = secret_names(site_definitions(site.path, services_dir))
    file = site.path / SECRETS
    password_made = None
    # A new password would never open an old file.
    if not file.exists() and os.environ.get(vault.PASSWORD_VARIABLE) is None:
        password_made = make_password(site.path)
    password = vault.password(site.path)
    values = vault.read_secrets(file, password) if file.exists() else {}
    made, renewed = fill(site, names, values, renew_certificate=renew_certificate)
    if made or renewed:
        write_atomically(file, vault.encrypt(values, password))
    certificate = values["ca_certificate"]
    ca_file = site.path / CA_FILE
    if site.get("tls.source") == "site-ca" and (not ca_file.exists() or ca_file.read_text() != certificate):
        write_atomically(ca_file, certificate, mode=0o644)
    kept = len(values) - len(made) - len(renewed)
    return Generated(tuple(made), renewed, kept, password_made)


def make_password(path: Path) -> Path | None:
    """Make SITE/.vault-password where there is none; return the file when it was made."""
    file = path / vault.PASSWORD_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(random.token_urlsafe(32) + "\n")
    return file


def fill(
    site: Site, names: Mapping[str, SecretName], values: dict[str, str], *, renew_certificate: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Add what is missing to ``values``.

    Returns:
        Names of the new secrets; and of those made anew, with the reason.
    """
    made: dict[str, None] = {}
    renewed: dict[str, str] = {}
    for name, secret in names.items():
        if secret.kind in ("ca", "certificate", "ssh-key") or name in values:
            continue
        values[name] = make(secret.kind)
        made[name] = None
    for name, secret in names.items():
        if secret.kind == "ssh-key" and name.endswith("_private_key"):
            public = f"{name.removesuffix('_private_key')}_public_key"
            if name not in values:
                values[name] = make_ssh_key()
                made[name] = None
                values.pop(public, None)
            if public not in values:
                values[public] = ssh_public_key(values[name])
                made[public] = None
    _fill_certificates(site, values, made, renewed, renew_certificate)
    return [name for name in names if name in made], renewed


def _fill_certificates(
    site: Site, values: dict[str, str], made: dict[str, None], renewed: dict[str, str], force: bool
) -> None:
    if ("ca_certificate" in values) != ("ca_key" in values):
        lost = "ca_key" if "ca_certificate" in values else "ca_certificate"
        raise ConfigError(
            "ca-incomplete",
            f"the site's CA has no {lost}",
            where=SECRETS,
            hint="restore it from a backup, or remove both halves: clients must then trust a new CA",
        )
    if "ca_certificate" not in values:
        values["ca_certificate"], values["ca_key"] = certificates.make_ca(site.name)
        made.update(dict.fromkeys(("ca_certificate", "ca_key")))
    addresses = [site.get("vip.internal"), site.get("vip.external")]
    reason: str | None
    try:
        if "tls_certificate" not in values or "tls_key" not in values:
            reason = "missing"
        elif force:
            reason = "asked for"
        else:
            reason = certificates.outdated(
                values["ca_certificate"], values["tls_certificate"], site.name, addresses
            )
        if reason is None:
            return
        certificate, key = certificates.make_certificate(
            values["ca_certificate"], values["ca_key"], site.name, addresses
        )
    except ValueError as error:
        raise ConfigError(
            "tls-invalid",
            f"the site's CA or certificate cannot be used: {error}",
            where=SECRETS,
            hint="restore them from a backup",
        ) from None
    for name, value in (("tls_certificate", certificate), ("tls_key", key)):
        if name in values:
            renewed[name] = reason
        else:
            made[name] = None
        values[name] = value


def make(kind: str) -> str:
    """Return a new secret of a kind that stands for itself.

    Raises:
        ValueError: no such kind.
    """
    if kind == "password":
        return _word(32)
    if kind == "fernet":
        return base64.urlsafe_b64encode(random.token_bytes(32)).decode()
    if kind == "uuid":
        return str(uuid.uuid4())
    if kind == "erlang-cookie":
        return "".join(random.choice(string.ascii_uppercase) for _ in range(32))
    if kind == "vrrp":
        # The protocol has eight bytes for it.
        return _word(8)
    if kind == "ceph-key":
        # struct CryptoKey: type (1 is AES), creation time (seconds, nanoseconds), length, key.
        now = time.time()
        header = struct.pack("<HIIH", 1, int(now), int(now % 1 * 10**9), 16)
        return base64.b64encode(header + random.token_bytes(16)).decode()
    raise ValueError(f"unknown kind of secret: {kind}")


def _word(length: int) -> str:
    """Return random letters and digits: they need no quoting in any URL, shell or configuration format."""
    alphabet = string.ascii_letters + string.digits
    return "".join(random.choice(alphabet) for _ in range(length))


def make_ssh_key() -> str:
    """Return a new ed25519 private key in OpenSSH's format."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return (
        Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        .decode()
    )


def ssh_public_key(private: str, comment: str = "cloudctl") -> str:
    """Return the public line of a private key in OpenSSH's format.

    Raises:
        ConfigError: not such a key.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        key: Any = serialization.load_ssh_private_key(private.encode(), password=None)
    except ValueError:
        raise ConfigError("ssh-key-invalid", "a private SSH key cannot be read", where=SECRETS) from None
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{public.decode()} {comment}"
