"""Clients first while data is moved: options and flags of the settings, and what was there before afterwards.

What was there before is written down before anything is changed: a run that goes on after a killed one
restores that, not the throttled values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cloudctl.ceph.flags import expand, parse_flags
from cloudctl.operations.steps import Journal
from cloudctl.osd.remote import Report, Step, ask, mon
from cloudctl.site.model import Site

NAME = "osd-throttle"


def text(value: object) -> str:
    """Return an option's value as Ceph writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def steps_to_set(options: Mapping[str, Any], flags: Sequence[str]) -> list[Step]:
    """Return the commands that set options and flags. Pure."""
    return [
        *(mon("config set", who="osd", name=name, value=text(value)) for name, value in options.items()),
        *(mon("osd set", key=flag) for flag in flags),
    ]


def steps_to_restore(before: Mapping[str, str | None], flags: Sequence[str]) -> list[Step]:
    """Return the commands that bring back options (None: it was not set) and unset flags. Pure."""
    return [
        *(
            mon("config rm", who="osd", name=name)
            if value is None
            else mon("config set", who="osd", name=name, value=value)
            for name, value in before.items()
        ),
        *(mon("osd unset", key=flag) for flag in flags),
    ]


def values_of(config: Sequence[Mapping[str, Any]], options: Sequence[str]) -> dict[str, str | None]:
    """Return what options of section osd are set to in ``config dump``; None where they are not. Pure."""
    found = {e["name"]: str(e["value"]) for e in config if e["section"] == "osd" and not e.get("mask")}
    return {name: found.get(name) for name in options}


def hold(site: Site, report: Report) -> None:
    """Put clients first; harmless where that was done already."""
    options: dict[str, Any] = dict(site.get("ceph.backfill.options") or {})
    flags = expand(site.get("ceph.backfill.flags") or [])
    if not options and not flags:
        return
    journal = Journal(site.path, NAME)
    # Nothing was set before this was written down: a run that ended earlier leaves what it would have found.
    if not journal.open or "before" not in journal.facts:
        answers = ask(site, [mon("config dump"), mon("osd dump")], "reading options")
        present = parse_flags(answers[1]["out"])
        before = values_of(json.loads(answers[0]["out"]), list(options))
        journal.begin()
        journal.keep(before=before, flags=[flag for flag in flags if flag not in present])
    ask(site, steps_to_set(options, journal.facts.get("flags", [])), "putting clients first", changing=True)
    shown = [f"{name}={text(value)}" for name, value in options.items()] + flags
    report(f"clients first while data is moved: {', '.join(shown)}")


def release(site: Site, report: Report) -> None:
    """Restore what ``hold`` found, this run's or an earlier one's."""
    journal = Journal(site.path, NAME)
    if not journal.open:
        return
    before, flags = journal.facts.get("before", {}), journal.facts.get("flags", [])
    ask(site, steps_to_restore(before, flags), "restoring options", changing=True)
    journal.finish()
    report("options as before")
