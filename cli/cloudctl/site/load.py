"""Reads a site's directory into the model, collecting every error on the way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from cloudctl.errors import ConfigError, MultiError
from cloudctl.site import vault
from cloudctl.site.document import Document, Problems, read_document
from cloudctl.site.inventory import Host, Inventory, read_inventory
from cloudctl.site.model import Interface, Network, Node, Secrets, Settings, Site
from cloudctl.site.schema import (
    check_section,
    check_value,
    full_settings_schema,
    is_key,
    schema,
    site_definitions,
    suggestion,
)

INVENTORY = "inventory/hosts.yml"
NETWORKS = "networks.yml"
SETTINGS = "settings.yml"
SECRETS = "secrets.yml"
IMAGES = "images.lock.json"


@dataclass(frozen=True)
class Draft:
    """What could be read of a site, valid or not; the input of the checks.

    Attributes:
        site: the model, made of what was valid.
        inventory: where each node and variable comes from.
        networks_file: networks.yml; None when it could not be read.
        settings_file: settings.yml; None when it could not be read.
        definitions: the services' definitions by name.
        secrets_read: whether the secrets were asked for and could be decrypted.
    """

    site: Site
    inventory: Inventory
    networks_file: Document | None
    settings_file: Document | None
    definitions: Mapping[str, Mapping[str, Any]]
    secrets_read: bool
    problems: Problems = field(default_factory=Problems)


def load_site(path: Path | str, *, with_secrets: bool = True, services_dir: Path | None = None) -> Site:
    """Read and check a site.

    Args:
        path: the site's directory.
        with_secrets: decrypt secrets.yml too, and require every secret to be there.
        services_dir: where the service definitions are (default: those that come with cloudctl).

    Raises:
        ConfigError, MultiError: everything that is wrong with the site, with file and line.
    """
    from cloudctl.site.validate import check_draft  # the checks need the loader's Draft

    draft = read_draft(Path(path), with_secrets=with_secrets, services_dir=services_dir)
    problems = [*draft.problems, *check_draft(draft)]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise MultiError(problems)
    return draft.site


def read_draft(path: Path, *, with_secrets: bool = True, services_dir: Path | None = None) -> Draft:
    """Read what can be read of a site.

    Raises:
        ConfigError: the directory is not a site at all.
    """
    path = path.absolute()
    if not path.is_dir() or not any((path / name).exists() for name in (INVENTORY, NETWORKS, SETTINGS)):
        raise ConfigError(
            "site-missing",
            f"{path} is not a site directory",
            where=str(path),
            hint="choose one with --site DIR or CLOUDCTL_SITE, or make one with `cloudctl init DIR`",
        )
    problems = Problems()
    definitions = site_definitions(path, services_dir)
    networks_file = read_document(path, NETWORKS, problems)
    settings_file = read_document(path, SETTINGS, problems)
    inventory = read_inventory(path, INVENTORY, problems)

    networks, ports = _networks(networks_file, problems)
    nodes = _nodes(inventory, networks, ports, networks_file, problems)
    settings = _settings(settings_file, definitions, nodes, problems)
    images = _images(path, problems)
    secrets: Mapping[str, str] = Secrets()
    secrets_read = False
    if with_secrets:
        try:
            values = vault.open_secrets(path / SECRETS)
            secrets = Secrets({**values, **_provided(path, settings)})
            secrets_read = True
        except ConfigError as error:
            problems.append(error)
    site = Site(
        path=path,
        name=str(settings.get("cloud.name")),
        networks=networks,
        nodes=nodes,
        settings=settings,
        secrets=secrets,
        images=images,
    )
    return Draft(site, inventory, networks_file, settings_file, definitions, secrets_read, problems)


def _networks(
    document: Document | None, problems: Problems
) -> tuple[dict[str, Network], dict[str, dict[str, str]]]:
    """Return the networks, and each group's ports: {group: {interface: network}}."""
    known = schema()
    ports = {group: dict(entry["default"]) for group, entry in known["interfaces"].items()}
    networks: dict[str, Network] = {}
    if document is None:
        return networks, ports
    top = document.data if document.data is not None else {}
    if not isinstance(top, dict):
        problems.add("wrong-type", "networks.yml must be a mapping", document.where())
        return networks, ports
    for key in top:
        if key not in ("networks", "interfaces"):
            hint = suggestion(key, ("networks", "interfaces"))
            problems.add("unknown-key", f"unknown key '{key}'", document.where(key), hint)
    given = top.get("networks")
    if not isinstance(given, dict):
        problems.add("key-missing", "networks.yml has no 'networks'", document.where("networks"))
        given = {}
    for name, value in given.items():
        entry = known["networks"].get(name)
        if entry is None:
            hint = suggestion(name, known["networks"])
            problems.add("unknown-key", f"unknown network '{name}'", document.where("networks", name), hint)
            continue
        path = ("networks", name)
        values = check_section(entry, value, document, path, problems)
        for key, rule in entry.items():
            if rule.get("required") and not (isinstance(value, dict) and value.get(key) is not None):
                problems.add("key-missing", f"networks.{name} has no '{key}'", document.where(*path))
        networks[name] = Network(
            name=name,
            cidr=IPv4Network(values["cidr"]) if values["cidr"] else None,
            gateway=values.get("gateway"),
            mtu=values["mtu"],
            pool=(values["pool"][0], values["pool"][1]) if values.get("pool") else None,
        )
    roles = check_section(known["interfaces"], top.get("interfaces"), document, ("interfaces",), problems)
    return networks, {**ports, **roles}


def _nodes(
    inventory: Inventory,
    networks: Mapping[str, Network],
    ports: Mapping[str, Mapping[str, str]],
    networks_file: Document | None,
    problems: Problems,
) -> dict[str, Node]:
    entries = schema()["inventory"]
    port_entries = schema()["interface"]
    nodes: dict[str, Node] = {}
    for host in inventory.hosts.values():
        values: dict[str, Any] = {}
        for key, entry in entries.items():
            if key in host.vars:
                document, path = host.origin[key]
                # Ansible fills templates in when it connects; we cannot check them.
                if check_value(entry, host.vars[key], document, path, problems):
                    values[key] = host.vars[key]
        address = values.get("ansible_host")
        if address is None:
            if "ansible_host" not in host.vars:
                problems.add(
                    "address-missing",
                    f"node {host.name} has no ansible_host",
                    host.where,
                    "give it its address on the management network",
                )
            continue
        interfaces = _interfaces(
            host,
            address,
            values.get("interfaces") or {},
            networks,
            ports,
            _coming_ports(host, values, ports),
            networks_file,
            port_entries,
            problems,
        )
        nodes[host.name] = Node(
            name=host.name,
            groups=host.groups,
            address=address,
            interfaces=interfaces,
            vars=dict(host.vars),
        )
    return nodes


def _coming_ports(
    host: Host, values: Mapping[str, Any], ports: Mapping[str, Mapping[str, str]]
) -> Mapping[str, str]:
    """Return the ports of the group that a waiting node is to join; none where nobody said which."""
    if "newnodes" not in host.groups:
        return {}
    return ports.get(values.get("role") or ("storage" if values.get("devices") else ""), {})


def _interfaces(
    host: Host,
    management: str,
    overrides: Mapping[str, Any],
    networks: Mapping[str, Network],
    ports: Mapping[str, Mapping[str, str]],
    coming: Mapping[str, str],
    networks_file: Document | None,
    port_entries: Mapping[str, Any],
    problems: Problems,
) -> dict[str, Interface]:
    """Put a node's ports together: those of its groups, then its own differences."""
    wanted: dict[str, str] = {}
    for group in host.groups:
        for name, target in ports.get(group, {}).items():
            if wanted.setdefault(name, target) != target and name not in overrides:
                problems.add(
                    "interface-conflict",
                    f"{name} of {host.name} is on {wanted[name]} and, by group {group}, on {target}",
                    networks_file.where("interfaces", group, name) if networks_file else None,
                    f"say which in the node's own `interfaces`: {{{name}: {{network: …}}}}",
                )
    own: dict[str, dict[str, Any]] = {}
    document, path = host.origin.get("interfaces", (None, ()))
    for name, value in overrides.items():
        assert document is not None
        values = check_section(port_entries, value, document, (*path, name), problems)
        given = value if isinstance(value, dict) else {}
        own[name] = {key: values[key] for key in given if key in values}
        if own[name].get("network") is not None:
            wanted[name] = own[name]["network"]
        elif name not in wanted and name not in coming:  # a waiting node's other ports come with its group
            problems.add(
                "interface-network",
                f"{name} of {host.name} is on no network",
                document.where(*path, name),
                "add `network:`, or use an interface of its group in networks.yml",
            )
    base = networks.get("management")
    number = int(IPv4Address(management)) - int(base.cidr.network_address) if base and base.cidr else None
    result: dict[str, Interface] = {}
    for name, network_name in wanted.items():
        network = networks.get(network_name)
        if network is None:
            continue  # reported by the checks, once per place instead of once per node
        mine = own.get(name, {})
        address = mine.get("address")
        if "address" not in mine:
            address = management if network_name == "management" else _derived(network, number)
        mac = mine.get("mac")
        result[name] = Interface(
            name=name,
            network=network_name,
            address=address,
            mac=mac.lower() if mac else None,
            mtu=mine.get("mtu") or network.mtu,
        )
    return result


def _derived(network: Network, number: int | None) -> str | None:
    """Return the address with the management address's host number; None on a provider network."""
    if network.cidr is None or number is None or network.name == "external":
        return None
    # Out of the management network is reported there; the sum stays an address for the checks to look at.
    if not 0 < number < network.cidr.num_addresses - 1:
        return None
    return str(network.cidr.network_address + number)


def _settings(
    document: Document | None,
    definitions: Mapping[str, Mapping[str, Any]],
    nodes: Mapping[str, Node],
    problems: Problems,
) -> Settings:
    tree = full_settings_schema(definitions)
    data = document.data if document is not None else None
    values = check_section(tree, data, document or Document(SETTINGS, None), (), problems)
    if document is not None:
        _require(tree, values, document, (), problems)
    deploy = next((node for node in nodes.values() if "deploy" in node.groups), None)
    if deploy is not None:
        values["registry"]["address"] = values["registry"]["address"] or f"{deploy.address}:5000"
        values["packages"]["repository"] = (
            values["packages"]["repository"] or f"http://{deploy.address}:8081/"
        )
    if values["virtualisation"]["cpu_mode"] is None:
        kvm = values["virtualisation"]["type"] == "kvm"
        values["virtualisation"]["cpu_mode"] = "host-model" if kvm else "none"
    return Settings(values)


def _require(
    tree: Mapping[str, Any],
    values: Mapping[str, Any],
    document: Document,
    path: tuple[Any, ...],
    problems: Problems,
) -> None:
    for key, entry in tree.items():
        here = (*path, key)
        if not is_key(entry):
            _require(entry, values.get(key) or {}, document, here, problems)
        elif entry.get("required") and values.get(key) is None and document.lines.get(here) is None:
            name = ".".join(map(str, here))
            problems.add(
                "key-missing", f"the setting {name} is missing", document.where(*path), entry["description"]
            )


def _provided(path: Path, settings: Settings) -> dict[str, str]:
    """Return the operator's own certificate, which stands in for the one made by the site's CA."""
    if settings.get("tls.source") != "provided":
        return {}
    found: dict[str, str] = {}
    for key, name in (("certificate", "tls_certificate"), ("key", "tls_key"), ("ca", "ca_certificate")):
        file = settings.get(f"tls.{key}")
        with contextlib.suppress(OSError, UnicodeDecodeError):  # the checks report it
            found[name] = (path / file).read_text(encoding="utf-8") if file else ""
    return {name: value for name, value in found.items() if value}


def _images(path: Path, problems: Problems) -> dict[str, Any]:
    try:
        content = json.loads((path / IMAGES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        where = f"{IMAGES}:{error.lineno}:{error.colno}"
        problems.add(
            "json-malformed", f"not valid JSON: {error.msg}", where, "`cloudctl image build` writes it"
        )
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.add("file-unreadable", f"{IMAGES} cannot be read: {error}", IMAGES)
        return {}
    valid = isinstance(content, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("reference"), str) for entry in content.values()
    )
    if not valid:
        problems.add(
            "json-malformed",
            "each image needs a 'reference'",
            f"{IMAGES}:1",
            "`cloudctl image build` writes it",
        )
        return {}
    return dict(content)
