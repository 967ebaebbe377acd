"""Stopping and starting containers on many nodes, in the order that the service definitions give.

A container that is stopped here stays stopped until it is started again, also over a restart of its node; one
that runs comes back by itself after a power cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cloudctl.engine.definitions import PHASES, Container, Service
from cloudctl.engine.render import Renderer
from cloudctl.errors import ApplyFailed, CloudctlError, MultiError
from cloudctl.operations.call import TASK, Answers, call
from cloudctl.runner import Event
from cloudctl.site.model import Site

MODULE = "cloudctl_containers"
START_TIMEOUT = 300
"""Seconds in which the containers of one tier have to become healthy."""

Report = Callable[[str], None]
Names = Sequence[str] | Sequence[Sequence[str]]
"""Containers of a node that are worked on at the same time; or lists of them, worked off in order."""
State = dict[str, Any]
States = dict[str, dict[str, State]]


@dataclass(frozen=True)
class Tier:
    """Containers that start at the same time; they need those of the tiers before it.

    Attributes:
        name: phase and place in it, for example ``control-2``; stays the same while the definitions do.
        phase: one of ``PHASES``.
        services: which services have containers in it.
        containers: by node, the containers' names.
    """

    name: str
    phase: str
    services: tuple[str, ...] = ()
    containers: dict[str, list[str]] = field(default_factory=dict)

    def only(self, nodes: Iterable[str]) -> Tier:
        """Return the tier without other nodes (it may have no container then)."""
        kept = set(nodes)
        return Tier(
            self.name, self.phase, self.services,
            {node: names for node, names in self.containers.items() if node in kept},
        )  # fmt: skip


def phase_of(service: Service, container: Container) -> str:
    """Return the phase in which a container starts: its service's, but for those of the compute nodes.

    The agents on compute nodes need the controllers' services, those of their own service too.
    """
    if service.phase == "control" and "control" not in container.groups:
        return "compute"
    return service.phase


def ranks(services: Sequence[Service]) -> dict[str, int]:
    """Return by service how many others of its phase have to be there before it, one behind the other."""
    by_name = {service.name: service for service in services}
    found: dict[str, int] = {}

    def rank(service: Service) -> int:
        if service.name not in found:
            before = [by_name[name] for name in service.after if name in by_name]
            same = [rank(other) + 1 for other in before if other.phase == service.phase]
            found[service.name] = max(same, default=0)
        return found[service.name]

    for service in services:
        rank(service)
    return found


def tiers(site: Site, services: Sequence[Service] | None = None) -> list[Tier]:
    """Return all containers of the site in the order in which they start.

    Args:
        site: the loaded site; neither secrets nor images are needed.
        services: the definitions; read from the product and the site when not given.

    Returns:
        Tiers that are not empty: by phase, within it by what a service names in ``after``. Stopping takes
        them from the last to the first.
    """
    renderer = Renderer(site, services)
    rank = ranks(renderer.services)
    service_of = {service.name: service for service in renderer.services}
    found: dict[tuple[int, int], dict[str, list[str]]] = {}
    members: dict[tuple[int, int], dict[str, None]] = {}
    for node in renderer.managed_nodes():
        for container in renderer.containers_of(node):
            service = service_of[container.service]
            phase = phase_of(service, container)
            # A service's place among others of its phase says nothing where it starts in another phase.
            place = (PHASES.index(phase), rank[service.name] if phase == service.phase else 0)
            found.setdefault(place, {}).setdefault(node.name, []).append(container.name)
            members.setdefault(place, {})[service.name] = None
    result: list[Tier] = []
    for place in sorted(found):
        phase = PHASES[place[0]]
        number = 1 + sum(tier.phase == phase for tier in result)
        result.append(Tier(f"{phase}-{number}", phase, tuple(members[place]), found[place]))
    return result


def by_node(groups: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[list[str]]]:
    """Return, by node, the lists of containers that ``stop`` and ``start`` work off in order."""
    found: dict[str, list[list[str]]] = {}
    for group in groups:
        for node, names in group.items():
            if names:
                found.setdefault(node, []).append(list(names))
    return found


# -- calls to nodes ----------------------------------------------------------------------------


def ask(site: Site | Path, calls: Mapping[str, Mapping[str, Any]], **options: Any) -> Answers:
    """Call the node-side module; see ``cloudctl.operations.call.call``."""
    return call(_path(site), MODULE, calls, **options)


def look(site: Site | Path, nodes: Iterable[str]) -> Answers:
    """Return what runs on nodes, as far as they answer.

    Returns:
        Answers with ``containers`` (as ``read`` returns them), ``engine`` (the container engine runs),
        ``installed`` (there is one, be it off),
        ``boot`` (changes when the node is started again) and ``ceph`` (units, see ``cloudctl.ceph.daemons``).
    """
    return ask(site, {node: {"action": "read"} for node in nodes})


def read(site: Site | Path, nodes: Iterable[str]) -> States:
    """Return the containers of nodes, by node and name.

    Returns:
        For each container ``state`` (running, exited, restarting, created …), ``health`` (healthy, starting,
        unhealthy or empty where it has no check), ``started`` and ``finished`` (ISO 8601), ``id``,
        ``restarts`` (by the engine), ``looping`` (it is started again and again), ``exit_code`` and
        ``policy``. Nothing of a node whose container engine does not run.

    Raises:
        CloudctlError, MultiError: a node does not answer.
    """
    return {node: answer["containers"] for node, answer in look(site, nodes).all_or_raise().items()}


def stop(
    site: Site | Path,
    containers: Mapping[str, Names],
    *,
    report: Report = lambda line: None,
) -> dict[str, list[str]]:
    """Stop containers, on all nodes at the same time, each with its own stop timeout.

    Args:
        site: the site or its directory.
        containers: by node. One that does not exist, or is stopped already, is no error.
        report: called with a line for every node that is done.

    Returns:
        By node, what was running and was stopped.

    Raises:
        CloudctlError, MultiError: of the nodes that failed; the others are done then.
    """
    calls = {
        node: {"action": "stop", "groups": _groups(names)} for node, names in containers.items() if names
    }
    answers = _work(site, calls, "stopped", report)
    left = [
        ApplyFailed(
            "container-not-stopped", f"still there: {', '.join(names)}", where=node, hint="run the same again"
        )
        for node, answer in answers.items()
        if (names := _still_running(answer["containers"], calls[node]["groups"]))
    ]
    _raise(left)
    return {node: list(answer["changed_names"]) for node, answer in answers.items()}


def start(
    site: Site | Path,
    containers: Mapping[str, Names],
    *,
    report: Report = lambda line: None,
    timeout: int = START_TIMEOUT,
) -> dict[str, list[str]]:
    """Start containers, on all nodes at the same time, and wait until they are healthy.

    Starts the container engine where it does not run.

    Args:
        site: the site or its directory.
        containers: by node. One that runs already is only waited for.
        report: called with a line for every node that is done.
        timeout: seconds for each list of containers.

    Returns:
        By node, what was not running and was started.

    Raises:
        ApplyFailed, MultiError: a container does not exist or does not become healthy; the others are
            started.
    """
    return _start(site, containers, "start", report, timeout)


def _start(
    site: Site | Path,
    containers: Mapping[str, Names],
    action: str,
    report: Report,
    timeout: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, list[str]]:
    calls = {
        node: {"action": action, "groups": _groups(names), "timeout": timeout, **options}
        for node, names in containers.items()
        if names
    }
    answers = _work(site, calls, f"{action}ed", report)
    _raise(
        [
            ApplyFailed(
                "container-missing", f"there is no container {', '.join(answer['absent'])}", where=node,
                hint="cloudctl deploy makes it",
            )
            for node, answer in answers.items()
            if answer["absent"]
        ]
    )  # fmt: skip
    return {node: list(answer["changed_names"]) for node, answer in answers.items()}


def restart(
    site: Site | Path,
    containers: Mapping[str, Names],
    *,
    report: Report = lambda line: None,
    timeout: int = START_TIMEOUT,
    hand_over: Mapping[str, Any] | None = None,
) -> dict[str, list[str]]:
    """Stop containers and start them again, on all given nodes at the same time; a stopped one is started.

    See ``start``; several lists of a node stop in the reverse order.

    Args:
        site, containers, report, timeout: see ``start``.
        hand_over: virtual addresses that the nodes hold, and how they give them up first: ``holder``,
            ``addresses``, ``ports`` (see the node-side module).

    Returns:
        By node, what was started.
    """
    return _start(site, containers, "restart", report, timeout, hand_over or {})


def poweroff(site: Site | Path, nodes: Iterable[str], *, report: Report = lambda line: None) -> None:
    """Switch nodes off: Ceph's daemons and the container engine are stopped cleanly first, then SSH ends.

    A node is off some seconds after this returns.

    Raises:
        CloudctlError, MultiError: a node does not answer, or its engine does not stop (it stays on then).
    """
    _work(site, {node: {"action": "poweroff"} for node in nodes}, "switching off", report)


def run_in(
    site: Site | Path,
    nodes: Iterable[str],
    container: str,
    command: Sequence[str],
    *,
    user: str = "",
    timeout: int = 60,
) -> tuple[dict[str, dict[str, Any]], dict[str, CloudctlError]]:
    """Run a command in a container of each node, on all of them at the same time.

    Args:
        site: the site or its directory.
        nodes: where.
        container: a shell pattern; the first running container that matches is taken.
        command: its arguments, without secrets; ``{hostname}`` becomes the node's name.
        user: account in the container; default: the image's.
        timeout: seconds.

    Returns:
        By node ``rc``, ``stdout``, ``stderr`` (rc 125: no such container runs; 124: no end within the time),
        and by node why there is no answer.
    """
    asked = {
        "action": "exec", "container": container, "command": list(command), "user": user, "timeout": timeout,
    }  # fmt: skip
    answers = ask(site, dict.fromkeys(nodes, asked))
    return {node: answer["answer"] for node, answer in answers.ok.items()}, answers.failed


def _path(site: Site | Path) -> Path:
    return site.path if isinstance(site, Site) else site


def _groups(names: Names) -> list[list[str]]:
    if all(isinstance(entry, str) for entry in names):
        return [[str(entry) for entry in names]]
    return [[entry] if isinstance(entry, str) else list(entry) for entry in names]


def _still_running(found: Mapping[str, State], groups: Sequence[Sequence[str]]) -> list[str]:
    """Return what should be stopped and is not. Pure."""
    wanted = {name for group in groups for name in group}
    return sorted(name for name in wanted & set(found) if found[name]["state"] in ("running", "restarting"))


def _work(
    site: Site | Path, calls: Mapping[str, Mapping[str, Any]], done: str, report: Report
) -> dict[str, dict[str, Any]]:
    begin = time.monotonic()

    def tell(event: Event) -> None:
        data = event.get("event_data") or {}
        if event.get("event") == "runner_on_ok" and data.get("task") == TASK:
            names = (data.get("res") or {}).get("changed_names") or []
            what = f"{done} {', '.join(names)}" if names else f"nothing to do ({done} before)"
            report(f"{data.get('host')}: {what} ({time.monotonic() - begin:.1f} s)")

    return ask(site, calls, changing=True, on_event=tell).all_or_raise()


def _raise(errors: Sequence[CloudctlError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
