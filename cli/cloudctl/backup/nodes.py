"""The database servers as they are: one call to their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudctl.backup import server
from cloudctl.backup.choose import Server
from cloudctl.engine.definitions import load_services
from cloudctl.errors import ApplyFailed, CloudctlError, ConfigError, Unreachable
from cloudctl.operations.call import Answers, call
from cloudctl.site.model import Site

MODULE = "cloudctl_backup"


@dataclass
class Servers:
    """What the servers' nodes told.

    Attributes:
        found: by node, what ``cloudctl_backup`` returned.
        failed: by node, why it told nothing.
    """

    order: list[str]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, CloudctlError] = field(default_factory=dict)

    def judged(self) -> list[Server]:
        """Return them for the choice of one, in the order of the inventory."""
        result = []
        for node in self.order:
            told = self.found.get(node) or {}
            known = told.get("server") or {}
            result.append(
                Server(
                    node=node,
                    state=known.get("state", ""),
                    primary=bool(known.get("primary")),
                    clients=int(known.get("clients", 0)),
                    lineage=told.get("lineage", ""),
                )
            )
        return result


def server_nodes(site: Site) -> list[str]:
    """Return the nodes that run a database server, in the order of the inventory.

    Raises:
        ConfigError: the site has none.
    """
    for service in load_services(site.path):
        for container in service.containers:
            if container.name == server.CONTAINER and site.get(f"services.{service.name}.enabled", True):
                return list(
                    dict.fromkeys(node.name for group in container.groups for node in site.group(group))
                )
    raise ConfigError("no-database", "the site has no database service", where="settings.yml")


def ask(site: Site, action: str, nodes: list[str], **arguments: Any) -> Answers:
    """Let nodes do something; see the module."""
    given = {"action": action, "container": server.CONTAINER, "volume": server.VOLUME, **arguments}
    return call(
        site.path, MODULE, dict.fromkeys(nodes, given), changing=action not in ("read", "rotate", "count")
    )


def read_servers(site: Site, *, action: str = "read", nodes: list[str] | None = None) -> Servers:
    """Return the state of the servers (``action`` rotate: after each began a new binary log)."""
    order = server_nodes(site)
    answers = ask(site, action, nodes if nodes is not None else order)
    found = {node: answer["found"] for node, answer in answers.ok.items()}
    return Servers(order, found, answers.failed)


def one(site: Site, action: str, node: str, **arguments: Any) -> Mapping[str, Any]:
    """Let one node do something.

    Raises:
        Unreachable: the node does not answer.
        ApplyFailed: it did not work; the message is the module's.
    """
    answers = ask(site, action, [node], **arguments)
    if node in answers.ok:
        return answers.ok[node]
    error = answers.failed[node]
    if isinstance(error, Unreachable):
        raise error
    raise ApplyFailed(
        f"backup-{action}-failed", error.message.removeprefix("Call: "), where=node, hint=error.hint
    ) from None
