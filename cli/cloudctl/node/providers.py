"""What compute nodes have registered as with the scheduler: their resource providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def providers(cloud: Any, hosts: Sequence[str]) -> dict[str, Any]:
    """Return by compute node what it has registered as, where it has: the resource provider's UUID and name.

    Args:
        cloud: an administrator's connection.
        hosts: the nodes.
    """
    found = {}
    for hypervisor in cloud.compute.hypervisors(details=True):
        host = (hypervisor.service_details or {}).get("host") or hypervisor.name
        if host in hosts:
            found[host] = {"uuid": hypervisor.id, "name": hypervisor.name}
    return found


def inventories(cloud: Any, uuid: str) -> dict[str, Any] | None:
    """Return what a resource provider has to give, by resource class; None where there is none."""
    answer = cloud.placement.get(f"/resource_providers/{uuid}/inventories", raise_exc=False)
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    return dict(answer.json()["inventories"])


def make(cloud: Any, known: dict[str, Any]) -> None:
    """Make an empty resource provider (see ``providers``)."""
    cloud.placement.post("/resource_providers", json=known).raise_for_status()
