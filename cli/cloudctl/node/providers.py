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


VERSION = "1.28"
"""Of the API: allocations carry a generation, so that a change in between is noticed."""


def remove(cloud: Any, name: str) -> int:
    """Remove the resource provider of a node that is none any more, with what instances still hold of it.

    Instances that were started elsewhere keep what they had on a dead node: the compute API leaves the
    provider behind then, and a new node of the name could not register.

    Returns:
        How many providers were removed.
    """
    placement = cloud.placement

    def ask(path: str) -> Any:
        answer = placement.get(path, microversion=VERSION)
        answer.raise_for_status()
        return answer.json()

    found = [entry["uuid"] for entry in ask(f"/resource_providers?name={name}")["resource_providers"]]
    for uuid in found:
        for consumer in ask(f"/resource_providers/{uuid}/allocations")["allocations"]:
            held = ask(f"/allocations/{consumer}")
            held["allocations"] = {
                key: {"resources": value["resources"]}
                for key, value in held["allocations"].items()
                if key != uuid
            }
            placement.put(f"/allocations/{consumer}", json=held, microversion=VERSION).raise_for_status()
        placement.delete(f"/resource_providers/{uuid}").raise_for_status()
    return len(found)
