"""How the administrator's credentials reach a client: environment, files of the site, or a connection."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from cloudctl.runs.record import write_atomically
from cloudctl.site.model import Site

IDENTITY_PORT = 5000


def ca_file(site: Site) -> Path:
    """Return the path of the CA certificate that clients of this cloud trust."""
    return site.path / "ca.crt"


def credentials(site: Site, *, interface: str = "internal") -> dict[str, str]:
    """Return the administrator's credentials as ``OS_*`` variables.

    Args:
        interface: ``internal`` (what the deploy node uses) or ``public`` (reached from outside).

    Raises:
        MissingSecret: the site has no administrator's password yet.
    """
    address = site.get("vip.external" if interface == "public" else "vip.internal")
    variables = {
        "OS_AUTH_URL": f"https://{address}:{IDENTITY_PORT}/v3",
        "OS_IDENTITY_API_VERSION": "3",
        "OS_USERNAME": "admin",
        "OS_PASSWORD": site.secrets["admin_password"],
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": str(site.get("cloud.region", "RegionOne")),
        "OS_INTERFACE": interface,
        "OS_ENDPOINT_TYPE": interface,
    }
    if _ca_text(site):
        variables["OS_CACERT"] = str(ca_file(site))
    return variables


def write_openrc(site: Site) -> list[Path]:
    """Write ``ca.crt``, ``admin-openrc.sh`` and ``clouds.yaml`` into the site's directory where they differ.

    Returns:
        The files that were written (none when all were right already).
    """
    changed = write_ca(site)
    lines = ["# Credentials of the cloud's administrator: source this file, then use the OpenStack client."]
    # A shell that was logged in elsewhere must not mix the two.
    lines.append('for name in $(env | sed -n "s/^\\(OS_[A-Z_]*\\)=.*/\\1/p"); do unset "$name"; done')
    lines += [f"export {name}={shlex.quote(value)}" for name, value in credentials(site).items()]
    changed += _write_if_different(site.path / "admin-openrc.sh", "\n".join(lines) + "\n", 0o600)
    clouds = {"clouds": {"cloudctl": _cloud(site, "internal"), "cloudctl-public": _cloud(site, "public")}}
    changed += _write_if_different(site.path / "clouds.yaml", yaml.safe_dump(clouds, sort_keys=False), 0o600)
    return changed


def write_ca(site: Site) -> list[Path]:
    """Write the CA's certificate to ``ca.crt`` where it differs; returns the files written."""
    certificate = _ca_text(site)
    if not certificate:
        return []
    return _write_if_different(ca_file(site), certificate.rstrip("\n") + "\n", 0o644)


def _ca_text(site: Site) -> str:
    """Return the certificate that clients must trust; empty where the system's CAs do."""
    if site.get("tls.source", "site-ca") == "provided":
        ca = site.get("tls.ca", None)
        return (site.path / ca).read_text() if ca else ""
    return site.secrets.get("ca_certificate", "")


def _cloud(site: Site, interface: str) -> dict[str, Any]:
    variables = credentials(site, interface=interface)
    cloud: dict[str, Any] = {
        "auth": {
            "auth_url": variables["OS_AUTH_URL"],
            "username": variables["OS_USERNAME"],
            "password": variables["OS_PASSWORD"],
            "project_name": variables["OS_PROJECT_NAME"],
            "user_domain_name": variables["OS_USER_DOMAIN_NAME"],
            "project_domain_name": variables["OS_PROJECT_DOMAIN_NAME"],
        },
        "region_name": variables["OS_REGION_NAME"],
        "interface": interface,
        "identity_api_version": "3",
    }
    if "OS_CACERT" in variables:
        cloud["cacert"] = variables["OS_CACERT"]
    return cloud


def _write_if_different(path: Path, text: str, mode: int) -> list[Path]:
    try:
        if path.read_text() == text and path.stat().st_mode & 0o777 == mode:
            return []
    except OSError:
        pass
    write_atomically(path, text, mode=mode)
    return [path]


def client_environment(site: Site) -> dict[str, str]:
    """Return this process's environment with the administrator's credentials and no others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    return environment | credentials(site)


def connect(site: Site, *, timeout: float = 60, auth: dict[str, str] | None = None, **options: Any) -> Any:
    """Return an openstacksdk connection over the internal endpoints; nothing is sent yet.

    Args:
        timeout: seconds that one request may take.
        auth: other credentials than the administrator's (without ``auth_url``).
        options: passed to ``openstack.connect``.
    """
    import openstack  # takes a second to load: only for those who need it

    write_ca(site)
    variables = credentials(site)
    cloud = _cloud(site, "internal")
    if auth is not None:
        cloud["auth"] = {"auth_url": variables["OS_AUTH_URL"], **auth}
    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        api_timeout=timeout,
        app_name="cloudctl",
        **cloud,
        **options,
    )
