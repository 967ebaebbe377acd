"""Reads the state: one playbook over the nodes, and the APIs from here, at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloudctl.ceph.desired import mon_hosts
from cloudctl.engine.definitions import load_services
from cloudctl.errors import CloudctlError
from cloudctl.openrc import connect
from cloudctl.runner import explain_unreachable, run_playbook
from cloudctl.site.model import Site
from cloudctl.status.probes import clusters_of, probes

API_TIMEOUT = 20.0  # seconds for one request
Facts = dict[str, dict[str, Any]]


def collect_nodes(site: Site) -> tuple[Facts, dict[str, CloudctlError]]:
    """Return what the nodes tell, and by node why one does not answer."""
    clusters = clusters_of(load_services(site.path))
    asked = probes(mon_hosts(site) if site.group("storage") else [], clusters)
    result = run_playbook(site.path, "status", {"cloudctl_probes": asked, "cloudctl_show": "all:!all"})
    facts: Facts = {}
    for node, tasks in result.facts.items():
        for answer in tasks.values():
            found = (answer.get("ansible_facts") or {}).get("cloudctl_status")
            if found is not None:
                facts[node] = found
    silent: dict[str, CloudctlError] = {}
    for failure in result.failures:
        node, message = str(failure["host"]), str(failure["msg"]).strip()
        if failure["unreachable"]:
            silent[node] = explain_unreachable(node, message)
        else:
            silent[node] = CloudctlError("status-unreadable", message, where=node)
    if not facts and not silent:
        result.raise_for_failure()
    return facts, silent


def collect_api(site: Site) -> dict[str, Any]:
    """Return what the APIs tell; an API that does not answer is in ``errors`` with the reason.

    Keys: ``compute``, ``hypervisors``, ``network``, ``volume`` (lists of dicts) and ``errors``. An API that
    no enabled service registers is not asked.
    """
    from cloudctl.engine.render import Renderer

    answers: dict[str, Any] = {"errors": {}}
    registered = registered_types(service.raw for service in Renderer(site).services)
    if "identity" not in registered:
        return answers
    try:
        cloud = connect(site, timeout=API_TIMEOUT)
        cloud.authorize()
    except Exception as error:
        answers["errors"]["identity"] = one_line(error)
        return answers
    questions: dict[str, Callable[[], Iterable[Mapping[str, Any]]]] = {
        "compute": lambda: (
            {"name": s.binary, "host": s.host, "up": s.state == "up", "enabled": s.status == "enabled"}
            for s in cloud.compute.services()
        ),
        "hypervisors": lambda: (
            {"name": h.name, "up": h.state == "up", "enabled": h.status == "enabled"}
            # With details the API asks each node how long it is up, and waits for one that has just died.
            for h in cloud.compute.hypervisors(details=False)
        ),
        "network": lambda: (
            {
                "name": a.agent_type,
                "host": a.host,
                "up": bool(a.is_alive),
                "enabled": bool(a.is_admin_state_up),
            }
            for a in cloud.network.agents()
        ),
        "volume": lambda: (
            {"name": s.binary, "host": s.host, "up": s.state == "up", "enabled": s.status == "enabled"}
            for s in cloud.block_storage.services()
        ),
    }
    with ThreadPoolExecutor(max_workers=len(questions)) as pool:
        waiting = {
            name: pool.submit(_listed, ask)
            for name, ask in questions.items()
            if _API_TYPES[name] in registered
        }
        for name, future in waiting.items():
            try:
                answers[name] = future.result()
            except Exception as error:
                answers["errors"][name] = one_line(error)
    return answers


_API_TYPES = {
    "compute": "compute",
    "hypervisors": "compute",
    "network": "network",
    "volume": "block-storage",
}
"""The service type, as registered, of the API that answers a question."""


def registered_types(definitions: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the types of the APIs that these service definitions register. Pure."""
    return {
        str(entry["type"])
        for definition in definitions
        for entry in (definition.get("identity") or {}).get("services") or []
    }


def _listed(ask: Callable[[], Iterable[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return list(ask())


def one_line(error: BaseException) -> str:
    """Return an exception as one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def collect(site: Site) -> tuple[Facts, dict[str, CloudctlError], dict[str, Any]]:
    """Return the nodes' facts, the silent nodes and the APIs' answers, read at the same time."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        api = pool.submit(collect_api, site)
        facts, silent = collect_nodes(site)
        return facts, silent, api.result()
