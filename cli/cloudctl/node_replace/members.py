"""Which clusters a node is a member of, as data of the service definitions. Pure.

``members`` of a definition says what the others do with a member whose machine is gone for good,
``leftovers`` what else may carry the node's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudctl.engine.definitions import Service
from cloudctl.errors import ConfigError
from cloudctl.site.model import Node

_MEMBER_KEYS = {"status", "volume", "known", "forget", "complete"}
_LEFTOVER_KEYS = {"title", "container", "user", "list", "keep", "remove"}


@dataclass(frozen=True)
class Member:
    """A cluster's members: how one leaves that is dead, and what a new one needs.

    Attributes:
        status: the cluster's name, as the definition's ``status`` has it.
        title: what an operator calls it.
        container: a member.
        user: account of the commands in the container; empty: the image's.
        volume: of a member's data, which a new one copies from the others.
        known: command that lists the members; empty where nothing has to be forgotten.
        text: what it prints of a member.
        forget: command with which the others forget a member.
        complete: commands that one of the others carries out when the new member is there.
    """

    status: str
    title: str
    container: str
    user: str = ""
    volume: str = ""
    known: tuple[str, ...] = ()
    text: str = ""
    forget: tuple[str, ...] = ()
    complete: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Leftover:
    """What a dead node may leave behind in a database, besides what the new machine takes over.

    Attributes:
        service: whose definition says it.
        title: in words.
        container: where it is asked and removed.
        user: account of the commands; empty: the image's.
        listed: command that prints one name a line.
        keep: the name that the new machine goes on with.
        remove: command that removes one, ``{item}``.
    """

    service: str
    title: str
    container: str
    listed: tuple[str, ...]
    keep: str
    remove: tuple[str, ...]
    user: str = ""


def members(services: Iterable[Service]) -> list[Member]:
    """Return the clusters of the definitions.

    Raises:
        ConfigError: a definition is malformed.
    """
    found: list[Member] = []
    for service, entry in _entries(services, "members", _MEMBER_KEYS):
        known = entry.get("known") or {}
        if bool(known) != bool(entry.get("forget")):
            raise _malformed(service, "members: known and forget belong together")
        cluster = next((item for item in service.clusters if item.name == entry["status"]), None)
        if cluster is None:
            raise _malformed(service, f"members: status names no cluster {entry['status']!r}")
        found.append(
            Member(
                status=cluster.name,
                title=cluster.title,
                container=cluster.container,
                user=cluster.user,
                volume=str(entry.get("volume") or ""),
                known=_words(known.get("command")),
                text=str(known.get("text") or ""),
                forget=_words(entry.get("forget")),
                complete=tuple(_words(command) for command in entry.get("complete") or ()),
            )
        )
    return found


def leftovers(services: Iterable[Service]) -> list[Leftover]:
    """Return what a dead node may leave behind.

    Raises:
        ConfigError: a definition is malformed.
    """
    return [
        Leftover(
            service=service.name,
            title=str(entry["title"]),
            container=str(entry["container"]),
            listed=_words(entry["list"]),
            keep=str(entry["keep"]),
            remove=_words(entry["remove"]),
            user=str(entry.get("user") or ""),
        )
        for service, entry in _entries(services, "leftovers", _LEFTOVER_KEYS)
    ]


def fill(words: Sequence[str], node: Node, item: str = "") -> list[str]:
    """Return a command of a definition for a node."""
    return [filled(word, node, item) for word in words]


def filled(text: str, node: Node, item: str = "") -> str:
    """Return a text of a definition with ``{node}``, ``{address}`` and ``{item}`` filled in."""
    for key, value in (("{node}", node.name), ("{address}", node.address), ("{item}", item)):
        text = text.replace(key, value)
    return text


def _entries(
    services: Iterable[Service], key: str, known: set[str]
) -> Iterable[tuple[Service, Mapping[str, Any]]]:
    for service in services:
        names = {container.name for container in service.containers}
        for entry in service.raw.get(key) or ():
            needed = {"status"} if "status" in known else {"title", "container", "list", "keep", "remove"}
            if not isinstance(entry, Mapping) or needed - set(entry) or set(entry) - known:
                raise _malformed(service, f"{key}: {sorted(needed)} are needed, {sorted(known)} are known")
            if "container" in entry and entry["container"] not in names:
                raise _malformed(service, f"{key}: there is no container {entry['container']!r}")
            yield service, entry


def _words(value: Any) -> tuple[str, ...]:
    return tuple(str(word) for word in value or ())


def _malformed(service: Service, why: str) -> ConfigError:
    return ConfigError("service-members", why, where=str(service.path / "service.yml"))
