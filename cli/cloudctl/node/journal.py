"""Which nodes are on their way, in or out: what a run that did not end has left to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloudctl.node.inventory import WAITING
from cloudctl.operations.steps import Journal
from cloudctl.site.model import Site

ADD, REMOVE = "node-add", "node-remove"


def begin(site: Path, name: str, nodes: Mapping[str, str]) -> Journal:
    """Begin, or go on with the same nodes; nodes of another run that did not end are remembered.

    Args:
        site: the site's directory.
        name: ``ADD`` or ``REMOVE``.
        nodes: by node, its group, or how it goes.
    """
    journal = Journal(site, name)
    left = _left(journal)
    if not (journal.open and journal.facts.get("nodes") == dict(nodes)):
        journal.forget()
        journal.begin()
    journal.keep(nodes=dict(nodes), unfinished={**left, **nodes})
    return journal


def end(journal: Journal) -> None:
    """The nodes have come, or gone."""
    journal.keep(unfinished=_others(journal))
    journal.finish()


def give_up(journal: Journal) -> None:
    """Nothing was changed: nobody has to go on from here."""
    if journal.as_dict().get("steps"):
        return
    left = _others(journal)
    if left:
        end(journal)
    else:
        journal.forget()


def drop(site: Path, name: str, node: str) -> None:
    """Nobody has to go on with a node any more."""
    journal = Journal(site, name)
    left = _left(journal)
    if node in left:
        journal.keep(unfinished={other: value for other, value in left.items() if other != node})
        if node in (journal.facts.get("nodes") or {}) and journal.open:
            # What was done for it was undone: a node of this name that comes later begins anew.
            journal.finish()


def joining(site: Site) -> dict[str, str]:
    """Return by name the role of every waiting node whose joining was begun and did not end."""
    waiting = {node.name for node in site.group(WAITING)}
    return {name: role for name, role in _left(Journal(site.path, ADD)).items() if name in waiting}


def arrived(site: Site) -> dict[str, str]:
    """Return by name the role of every node that is in its group, though its joining did not end."""
    members = {node.name: node.groups for node in site.nodes.values() if WAITING not in node.groups}
    left = _left(Journal(site.path, ADD))
    return {name: role for name, role in left.items() if role in members.get(name, ())}


def leaving(site: Path) -> list[str]:
    """Return the nodes whose removal was begun and did not end."""
    return sorted(_left(Journal(site, REMOVE)))


def _left(journal: Journal) -> dict[str, str]:
    found = journal.as_dict().get("facts", {}).get("unfinished") or {}
    return {str(name): str(value) for name, value in found.items()}


def _others(journal: Journal) -> dict[str, str]:
    nodes = journal.facts.get("nodes") or {}
    return {name: value for name, value in _left(journal).items() if name not in nodes}
