#!/usr/bin/env python3
"""Writes the generated reference pages: settings (of the schema), commands, services (of the definitions).

``--check`` writes nothing and fails when a page is out of date (a test runs it).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "cli"))

import click  # noqa: E402
import yaml  # noqa: E402

from cloudctl.engine.definitions import Container, Service, load_services  # noqa: E402
from cloudctl.main import cli  # noqa: E402
from cloudctl.site.schema import is_key, schema, service_definitions, service_settings  # noqa: E402

NOTE = "<!-- Written by scripts/gen_reference.py: change the schema or the command, then run it. -->\n"


def settings_page() -> str:
    """Return the page of every key of a site's files."""
    known = schema()
    parts = [
        "# Settings\n",
        NOTE,
        "Every key of a site's files. `cloudctl validate` refuses any other.\n",
        "## settings.yml\n",
        _table(_keys(known["settings"])),
        "## settings.yml: services\n",
        "Keys of one service go under `services.<service>`. All services have:\n",
        _table(_keys(known["service"])),
    ]
    definitions = service_definitions()
    for service, entries in sorted(service_settings(definitions).items()):
        own = {key: entry for key, entry in entries.items() if key not in known["service"]}
        if own:
            description = str(definitions[service].get("description", "")).strip()
            parts += [f"### {service}\n", *([f"{description}\n"] if description else []), _table(_keys(own))]
    parts += [
        "## networks.yml: networks\n",
        _table(_keys(known["networks"])),
        "## networks.yml: interfaces\n",
        "The ports of each group's nodes: `group: {interface: network}`.\n",
        _table(_keys(known["interfaces"])),
        "## Inventory variables\n",
        "For hosts and groups, in inventory/hosts.yml, group_vars and host_vars. Variables of Ansible itself "
        "(`ansible_*`) and of your own (`custom_*`) are accepted too.\n",
        _table(_keys(known["inventory"])),
        "### One entry of `interfaces`\n",
        _table(_keys(known["interface"])),
    ]
    return "\n".join(parts)


def _keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, entry in section.items():
        if is_key(entry):
            yield f"{prefix}{key}", entry
        else:
            yield from _keys(entry, f"{prefix}{key}.")


def _table(entries: Iterator[tuple[str, Mapping[str, Any]]]) -> str:
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for key, entry in entries:
        cells = (f"`{key}`", _type(entry), _default(entry), str(entry["description"]).strip())
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _type(entry: Mapping[str, Any]) -> str:
    text = str(entry.get("type", "any"))
    if "items" in entry:
        text += f" of {entry['items'].get('format', entry['items']['type'])}"
    if "format" in entry:
        text += f" ({entry['format']})"
    if "enum" in entry:
        text += ": " + ", ".join(f"`{value}`" for value in entry["enum"])
    if "min" in entry or "max" in entry:
        text += f", {entry.get('min', '')} to {entry.get('max', '')}".rstrip()
    return text


def _default(entry: Mapping[str, Any]) -> str:
    if entry.get("required"):
        return "required"
    if entry.get("default") is None:
        return str(entry.get("derived", "none"))
    dumped = yaml.safe_dump(entry["default"], default_flow_style=True, sort_keys=False, width=10**6)
    return f"`{dumped.removesuffix('...' + chr(10)).strip()}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def commands_page() -> str:
    """Return the page of every command and option."""
    parts = ["# Commands\n", NOTE]
    context = click.Context(cli, info_name="cloudctl", terminal_width=100, **cli.context_settings)
    parts += ["```text", cli.get_help(context).rstrip(), "```", ""]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None, name
        parts += _command(command, context, name, 2)
    return "\n".join(parts)


def _command(command: click.Command, parent: click.Context, name: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
    yield f"{'#' * level} {context.command_path}\n"
    yield "```text"
    yield command.get_help(context).rstrip()
    yield "```\n"
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None:
                yield from _command(child, context, child_name, level + 1)


def services_page() -> str:
    """Return the page of every service: what runs where, its ports, databases, files, settings."""
    parts = [
        "# Services\n",
        NOTE.replace("the schema or the command", "services/*/service.yml"),
        "What each service definition says, in the order in which a deploy brings the services up. "
        "[The keys of a definition](service-definition.md) explains the terms.\n",
    ]
    for service in load_services():
        parts += [f"## {service.name}\n", f"{service.description}. Phase: {service.phase}.\n"]
        parts += list(_service(service))
    return "\n".join(parts)


def _service(service: Service) -> Iterator[str]:
    if service.containers:
        yield _rows(
            ("Container", "Image", "Groups", "Only where"),
            ((f"`{c.name}`", f"`{c.image}`", ", ".join(c.groups), _condition(c)) for c in service.containers),
        )
    if service.frontends:
        yield _rows(
            ("Frontend", "Port of the virtual address", "Address", "Port of the servers"),
            (
                (
                    f"`{front['name']}` ({front.get('mode', 'http')})",
                    str(front["port"]),
                    str(front.get("scope", "both")),
                    str(front.get("backend_port", front["port"])),
                )
                for front in service.frontends
            ),
        )
    raw = service.raw
    facts: dict[str, list[str]] = {
        "Databases": [
            f"`{entry['name']}` (account `{entry.get('user', entry['name'])}`)"
            for entry in raw.get("databases") or ()
        ],
        "Messaging user": [f"`{raw['messaging']['user']}`"] if raw.get("messaging") else [],
        "Registered in the catalogue": [
            f"`{entry['name']}` as {entry['type']}"
            for entry in (raw.get("identity") or {}).get("services") or ()
        ],
        "Ceph pools": [f"`{pool['name']}`" for pool in (raw.get("ceph") or {}).get("pools") or ()],
        "Ceph clients": [f"`client.{client['name']}`" for client in _ceph_clients(raw)],
        "Configuration files": [
            f"`{name}`" + (f" ({config.format})" if config.format != "raw" else "")
            for name, config in service.files.items()
        ],
        "Jobs": [f"`{job.name}` ({job.at} phase {job.phase})" for job in service.jobs],
    }
    lines = [f"- {title}: {', '.join(items)}" for title, items in facts.items() if items]
    if lines:
        yield "\n".join(lines) + "\n"
    if service.settings:
        yield f"Settings, under `services.{service.name}`:\n"
        yield _table(iter(service.settings.items()))


def _ceph_clients(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    ceph = raw.get("ceph") or {}
    return [client for client in (ceph.get("client"), *(ceph.get("clients") or ())) if client]


def _condition(container: Container) -> str:
    wanted = [f"`{container.enabled}`"] if container.enabled else []
    wanted += [f"`{key}: {value}`" for key, value in container.only.items()]
    return ", ".join(wanted)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    filled = list(rows)
    # A column that is empty everywhere says nothing.
    kept = [index for index in range(len(head)) if any(row[index] for row in filled)]
    lines = ["| " + " | ".join(head[index] for index in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(_cell(row[index]) for index in kept) + " |" for row in filled]
    return "\n".join(lines) + "\n"


PAGES = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/commands.md": commands_page,
    "docs/reference/services.md": services_page,
}


def main() -> int:
    """Write the pages, or with ``--check`` compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}: run scripts/gen_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
