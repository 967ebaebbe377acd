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
    # Later versions ask each node how long it is up, and wait for one that has just died.
    answer = cloud.compute.get("/os-hypervisors/detail", microversion="2.53")
    answer.raise_for_status()
    return {
        str(entry["service"]["host"]): {"uuid": entry["id"], "name": entry["hypervisor_hostname"]}
        for entry in answer.json()["hypervisors"]
        if entry["service"]["host"] in hosts
    }


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
