"""What stopping, starting and restarting have to know of the clustered services, as data.

A cluster is known by its probe (``cloudctl.status.probes``), which names the container that is a member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cloudctl.engine.definitions import Service
from cloudctl.operations.call import call
from cloudctl.site.model import Site
from cloudctl.status.probes import PROBES, parse, working
from cloudctl.status.summary import Expected, Problem, summarise


@dataclass(frozen=True)
class Cluster:
    """One kind of cluster.

    Attributes:
        probe: its name among the probes.
        title: what an operator calls it.
        uses: key of a service definition that says that a service needs it; empty: none does.
        lost: what happens while it has no majority.
        ordered: its members stop and start one at a time, the one that stopped last first.
    """

    probe: str
    title: str
    uses: str
    lost: str
    ordered: bool = False

    @property
    def container(self) -> str:
        """Name of the member's container."""
        return str(PROBES[self.probe]["container"])

    @property
    def prefix(self) -> str:
        """How the references of its problems begin."""
        return self.probe.partition("_")[0] + "-"


CLUSTERS = (
    Cluster("galera", "the database cluster", "databases", "the database refuses work", ordered=True),
    Cluster("rabbitmq", "the message bus", "messaging", "the message bus takes no messages"),
    Cluster(
        "ovn_northbound", "OVN's northbound database", "",
        "networks, ports and routers cannot be changed; what is there goes on",
    ),
    Cluster(
        "ovn_southbound", "OVN's southbound database", "",
        "changes of the network do not reach the nodes; what is there goes on",
    ),
)  # fmt: skip
BALANCER, HOLDER = "haproxy", "keepalived"
"""Containers: what listens on the virtual addresses, and what holds them on one node at a time."""
BY_CONTAINER: dict[str, Cluster] = {cluster.container: cluster for cluster in CLUSTERS}


def users(cluster: Cluster, services: Iterable[Service]) -> list[str]:
    """Return the services that need the cluster. Pure."""
    return sorted(service.name for service in services if cluster.uses and service.raw.get(cluster.uses))


def problems(
    names: Iterable[str], facts: Mapping[str, Mapping[str, Any]], expected: Expected
) -> list[Problem]:
    """Return what is wrong with the clusters that these containers are members of. Pure."""
    prefixes = tuple({BY_CONTAINER[name].prefix for name in names if name in BY_CONTAINER})
    if not prefixes:
        return []
    found = summarise(facts, {}, {}, expected).problems
    unread = {BY_CONTAINER[name].probe.replace("_", " ") for name in names if name in BY_CONTAINER}
    return [
        problem
        for problem in found
        if problem.ref.startswith(prefixes)
        or (problem.ref == "state-unreadable" and any(problem.message.startswith(name) for name in unread))
    ]


def members_up(name: str, facts: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the nodes whose copy of a container runs and is not known to be ill. Pure."""
    return {
        node
        for node, known in facts.items()
        for item in known.get("containers") or []
        if item["name"] == name and item["state"] == "running" and item["health"] in ("", "healthy")
    }


def members_well(name: str, facts: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the nodes whose copy of a container is up and works, if it is one, as a cluster's member. Pure.

    A member whose cluster was not asked counts by its container alone.
    """
    up = members_up(name, facts)
    if name not in BY_CONTAINER:
        return up
    probe = BY_CONTAINER[name].probe
    told = {node: facts[node]["probes"][probe] for node in up if probe in (facts[node].get("probes") or {})}
    answers = {node: data for node, answer in told.items() if (data := parse(probe, answer)[0]) is not None}
    return (up - set(told)) | (up & working(answers))


def members_ill(name: str, facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> list[str]:
    """Return the nodes whose member should work in its cluster and does not. Pure."""
    return sorted(set(expected.nodes_of(name)) - members_well(name, facts))


def present(names: Iterable[str], facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> Expected:
    """Return what the site wants of these containers, without the nodes on which they do not run. Pure."""
    runs = {
        (node, item["name"])
        for node, known in facts.items()
        for item in known.get("containers") or []
        if item["state"] in ("running", "restarting")
    }
    wanted = set(names)
    kept = {
        node: [item for item in items if item["name"] in wanted and (node, item["name"]) in runs]
        for node, items in expected.containers.items()
    }
    return replace(expected, containers=kept)


def ask(site: Site, names: Iterable[str], nodes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what the members on some nodes tell (as ``collect_nodes`` does, of these clusters alone)."""
    wanted = {
        BY_CONTAINER[name].probe: PROBES[BY_CONTAINER[name].probe] for name in names if name in BY_CONTAINER
    }
    answers = call(site.path, "cloudctl_status", {node: {"probes": wanted} for node in nodes})
    return {node: answer["ansible_facts"]["cloudctl_status"] for node, answer in answers.ok.items()}


def wait_whole(
    site: Site,
    names: Iterable[str],
    expected: Expected,
    *,
    timeout: float,
    waiting: Callable[[str], None] = lambda text: None,
) -> list[Problem]:
    """Wait until the clusters of these containers have all members that run; return what is wrong at the end.

    A member whose node or container is off is not waited for.

    Args:
        site: the site.
        names: containers; those of no cluster are ignored.
        expected: what the site wants.
        timeout: seconds.
        waiting: told once what is waited for.
    """
    concerned = [name for name in names if name in BY_CONTAINER]
    nodes = sorted({node for name in concerned for node in expected.nodes_of(name)})
    end = time.monotonic() + timeout
    told = False
    while concerned:
        facts = ask(site, concerned, nodes)
        found = problems(concerned, facts, present(concerned, facts, expected))
        if not found or time.monotonic() > end:
            return found
        if not told:
            waiting(f"waiting: {found[0].message}")
            told = True
        time.sleep(2)
    return []
