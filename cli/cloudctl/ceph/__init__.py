"""Ceph: what the cluster should look like, derived from the site and the service definitions."""

from cloudctl.ceph.desired import (
    PACKAGES,
    build,
    ceph_ssh_public_key,
    client_secret,
    devices_of,
    mon_hosts,
    secrets,
)

__all__ = [
    "PACKAGES",
    "build",
    "ceph_ssh_public_key",
    "client_secret",
    "devices_of",
    "mon_hosts",
    "secrets",
]
