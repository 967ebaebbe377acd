"""The file of secrets, encrypted by ansible-vault."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cloudctl.errors import ConfigError

PASSWORD_FILE = ".vault-password"
PASSWORD_VARIABLE = "ANSIBLE_VAULT_PASSWORD_FILE"
_HEADER = b"$ANSIBLE_VAULT;"


def password_file(site: Path) -> Path:
    """Return the file that the vault password comes from (the environment's wins); it may not exist."""
    given = os.environ.get(PASSWORD_VARIABLE)
    return Path(given).expanduser() if given else site / PASSWORD_FILE


def password(site: Path) -> bytes:
    """Return the vault password.

    As with Ansible, an executable password file is run and its output is the password.

    Raises:
        ConfigError: there is none, or the program failed.
    """
    file = password_file(site)
    hint = f"put it in {site / PASSWORD_FILE}, or name its file in {PASSWORD_VARIABLE}"
    try:
        if file.is_file() and os.access(file, os.X_OK):
            result = subprocess.run([str(file.absolute())], capture_output=True, check=False, timeout=60)
            if result.returncode != 0:
                raise ConfigError(
                    "vault-password-program",
                    f"the vault password program ended with code {result.returncode}",
                    where=str(file),
                    hint="run it by hand to see why",
                )
            content = result.stdout
        else:
            content = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "vault-password-missing", "there is no vault password", where=str(file), hint=hint
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            "vault-password-unreadable",
            f"the vault password cannot be read: {error}",
            where=str(file),
            hint=hint,
        ) from None
    content = content.strip()
    if not content:
        raise ConfigError("vault-password-missing", "the vault password is empty", where=str(file), hint=hint)
    return content


def open_secrets(file: Path) -> dict[str, str]:
    """Decrypt a site's file of secrets with the site's vault password.

    Raises:
        ConfigError: see ``password`` and ``read_secrets``.
    """
    # A new site has neither file nor password: what it lacks is the file.
    return read_secrets(file, password(file.parent) if file.exists() else b"")


def read_secrets(file: Path, secret: bytes) -> dict[str, str]:
    """Decrypt the file of secrets.

    Args:
        file: the vault.
        secret: its password.

    Raises:
        ConfigError: missing, not a vault, or another password; never shows content.
    """
    name = file.name
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "secrets-missing", f"{name} is missing", where=name, hint="`cloudctl secrets generate` makes it"
        ) from None
    except OSError as error:
        raise ConfigError("file-unreadable", f"{name} cannot be read: {error.strerror}", where=name) from None
    if not content.startswith(_HEADER):
        raise ConfigError(
            "secrets-not-encrypted",
            f"{name} is not encrypted by ansible-vault",
            where=f"{name}:1",
            hint=f"encrypt it: ansible-vault encrypt --vault-password-file {PASSWORD_FILE} {name}",
        )
    from ansible.errors import AnsibleError

    try:
        plain = _vault(secret).decrypt(content)
    except AnsibleError as error:
        damaged = "format" in str(error).lower() or "invalid" in str(error).lower()
        message = "is damaged" if damaged else "cannot be decrypted with this vault password"
        raise ConfigError(
            "secrets-damaged" if damaged else "vault-password-wrong",
            f"{name} {message}",
            where=f"{name}:1",
            hint="take it from a backup" if damaged else f"check {PASSWORD_FILE} or {PASSWORD_VARIABLE}",
        ) from None
    try:
        values = yaml.load(plain, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # The parser's message would quote the text, which is secret.
        where = f"{name} (decrypted), line {mark.line + 1}" if mark else name
        raise ConfigError(
            "secrets-malformed", f"the content of {name} is not valid YAML", where=where
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("secrets-malformed", f"the content of {name} is not a mapping", where=name)
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(
                "secrets-malformed",
                f"the secret {key} is not text",
                where=name,
                hint="write it in quotes (`ansible-vault edit`), or remove it and generate it again",
            )
    return {str(key): value for key, value in values.items()}


def encrypt(values: dict[str, str], secret: bytes) -> str:
    """Return the encrypted file's content."""
    plain = yaml.dump(values, Dumper=_Dumper, default_flow_style=False, sort_keys=True, width=10**6)
    encrypted = _vault(secret).encrypt(plain)
    assert isinstance(encrypted, bytes)
    return encrypted.decode("ascii")


class _Dumper(yaml.SafeDumper):
    """Writes keys and certificates as blocks, as people do who edit the vault."""


def _represent(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent)


def _vault(secret: bytes) -> Any:
    # Imported late: ansible takes a noticeable part of a second, and most errors come before it is needed.
    from ansible.parsing.vault import VaultLib, VaultSecret

    return VaultLib([("default", VaultSecret(secret))])
