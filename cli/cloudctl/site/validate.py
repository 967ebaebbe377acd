"""The checks of a site that need more than one value at a time; pure functions over what was read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from cloudctl.engine.merge import parse_ini
from cloudctl.errors import CloudctlError, ConfigError
from cloudctl.site.document import Problems
from cloudctl.site.inventory import Host
from cloudctl.site.load import NETWORKS, SECRETS, Draft, read_draft
from cloudctl.site.model import Interface, Node, Site
from cloudctl.site.names import secret_names
from cloudctl.site.schema import schema, suggestion

GENEVE_OVERHEAD = 58
"""Bytes that a tunnel adds to each packet of a VM (IPv4, UDP, Geneve with OVN's option, Ethernet)."""

_SMALLEST_VM_MTU = 1280


def validate_site(
    path: Path | str, *, with_secrets: bool = True, services_dir: Path | None = None
) -> tuple[Site | None, list[CloudctlError]]:
    """Read and check a site.

    Args:
        path, with_secrets, services_dir: as for ``load_site``.

    Returns:
        The site (None when there is none at all) and everything that is wrong with it.
    """
    try:
        draft = read_draft(Path(path), with_secrets=with_secrets, services_dir=services_dir)
    except ConfigError as error:
        return None, [error]
    return draft.site, [*draft.problems, *check_draft(draft)]


def check_draft(draft: Draft) -> Problems:
    """Return everything that is wrong with a site beyond what reading it found."""
    problems = Problems()
    # Without a readable file there would be one follow-up error for everything that it says.
    if draft.networks_file is not None:
        check_networks(draft, problems)
        check_ports(draft, problems)
    if draft.inventory.hosts:
        check_groups(draft, problems)
        check_devices(draft, problems)
    if draft.networks_file is not None:
        check_addresses(draft, problems)
        check_macs(draft, problems)
    if draft.settings_file is not None:
        if draft.networks_file is not None:
            check_vips(draft, problems)
        check_ceph(draft, problems)
        check_tls(draft, problems)
    check_overrides(draft, problems)
    if draft.secrets_read:
        check_secrets(draft, problems)
    return problems


def check_networks(draft: Draft, problems: Problems) -> None:
    """Each network by itself, and all against each other."""
    document = draft.networks_file
    assert document is not None
    networks = draft.site.networks
    if "management" not in networks:
        problems.add("network-missing", "there is no network 'management'", document.where("networks"))
    for network in networks.values():
        if network.cidr is None:
            if network.pool is not None:
                where = document.where("networks", network.name, "pool")
                problems.add("pool-outside-network", f"{network.name} has a pool but no cidr", where)
            continue
        if network.gateway and not _usable(network.gateway, network.cidr):
            problems.add(
                "gateway-outside-network",
                f"the gateway {network.gateway} is no host address of {network.name} ({network.cidr})",
                document.where("networks", network.name, "gateway"),
            )
        if network.pool:
            where = document.where("networks", network.name, "pool")
            first, last = network.pool
            if not (_usable(first, network.cidr) and _usable(last, network.cidr)):
                problems.add(
                    "pool-outside-network",
                    f"the pool {first}-{last} is not inside {network.name} ({network.cidr})",
                    where,
                )
            elif IPv4Address(first) > IPv4Address(last):
                problems.add("pool-reversed", f"the pool ends ({last}) before it begins ({first})", where)
            elif network.gateway and _between(network.gateway, network.pool):
                problems.add(
                    "pool-overlap", f"the pool {first}-{last} contains the gateway {network.gateway}", where
                )
    for one, two in combinations(networks.values(), 2):
        if one.cidr and two.cidr and one.cidr.overlaps(two.cidr):
            problems.add(
                "network-overlap",
                f"the networks {one.name} ({one.cidr}) and {two.name} ({two.cidr}) overlap",
                document.where("networks", two.name, "cidr"),
            )
    tenant = networks.get("tenant")
    if tenant is not None and tenant.mtu < _SMALLEST_VM_MTU + GENEVE_OVERHEAD:
        problems.add(
            "mtu-too-small",
            f"the tenant network's MTU {tenant.mtu} leaves VMs less than {_SMALLEST_VM_MTU} bytes",
            document.where("networks", "tenant", "mtu"),
            f"at least {_SMALLEST_VM_MTU + GENEVE_OVERHEAD}: tunnels take {GENEVE_OVERHEAD} bytes a packet",
        )


def check_ports(draft: Draft, problems: Problems) -> None:
    """Interfaces are on networks that exist, once each, and able to carry the network's packets."""
    document = draft.networks_file
    assert document is not None
    networks = draft.site.networks
    used = {group for host in draft.inventory.hosts.values() for group in host.groups}
    given = document.data.get("interfaces") if isinstance(document.data, dict) else None
    given = given if isinstance(given, dict) else {}
    for group, entry in schema()["interfaces"].items():
        ports = given.get(group, entry["default"] if group in used else {})
        if not isinstance(ports, dict):
            continue
        for name, network in ports.items():
            where = document.where("interfaces", group, name)
            if not _interface_name(name):
                problems.add("interface-name", f"'{name}' cannot be an interface name", where)
            if isinstance(network, str) and network not in networks:
                problems.add(
                    "unknown-network",
                    f"{name} of {group} is on network '{network}', which is not defined",
                    where,
                    suggestion(network, networks),
                )
        for network, names in _repeated((network, name) for name, network in ports.items()):
            problems.add(
                "network-twice",
                f"{' and '.join(map(str, names))} of {group} are both on network {network}",
                document.where("interfaces", group, names[-1]),
            )
    for host in draft.inventory.hosts.values():
        node = draft.site.nodes.get(host.name)
        own = host.vars.get("interfaces")
        for name, value in (own if isinstance(own, dict) else {}).items():
            network = value.get("network") if isinstance(value, dict) else None
            if not _interface_name(name):
                where = _port_where(host, name)
                problems.add("interface-name", f"'{name}' of {host.name} cannot be an interface name", where)
            if isinstance(network, str) and network not in networks:
                problems.add(
                    "unknown-network",
                    f"{name} of {host.name} is on network '{network}', which is not defined",
                    _port_where(host, name, "network"),
                    suggestion(network, networks),
                )
        if node is None:
            continue
        if own:
            pairs = ((port.network, port.name) for port in node.interfaces.values())
            for network, names in _repeated(pairs):
                where = _port_where(host, names[-1])
                text = f"{' and '.join(names)} of {host.name} are both on network {network}"
                problems.add("network-twice", text, where)
        for port in node.interfaces.values():
            if port.mtu < networks[port.network].mtu:
                problems.add(
                    "mtu-mismatch",
                    f"{port.name} of {host.name} has MTU {port.mtu} on network {port.network} with MTU "
                    f"{networks[port.network].mtu}",
                    _port_where(host, port.name, "mtu"),
                    "all nodes of a network need its MTU",
                )
        if "management" in networks and node.interface_on("management") is None and _known_groups(host):
            problems.add(
                "management-missing",
                f"node {host.name} has no interface on the management network",
                host.where,
                f"add it to `interfaces` of its group ({', '.join(node.groups)}) in {NETWORKS}",
            )


def check_groups(draft: Draft, problems: Problems) -> None:
    """Every node has a part to play, and there are enough of each, in numbers that can vote."""
    known = tuple(schema()["interfaces"])
    inventory = draft.inventory
    for host in inventory.hosts.values():
        if not _known_groups(host):
            named = ", ".join(host.groups) or "none"
            close = [suggestion(group, known) for group in host.groups]
            problems.add(
                "node-without-role",
                f"node {host.name} is in no group that cloudctl knows (its groups: {named})",
                host.where,
                next((hint for hint in close if hint), f"known: {', '.join(known)}"),
            )
        others = [group for group in host.groups if group in known and group != "newnodes"]
        if "newnodes" in host.groups and others:
            problems.add(
                "newnode-in-use",
                f"node {host.name} is in newnodes and in {', '.join(others)}",
                host.direct.get("newnodes", host.where),
                "take it out of newnodes once it is prepared",
            )
    members = {group: [host for host in inventory.hosts.values() if group in host.groups] for group in known}

    def place(group: str) -> str:
        return inventory.groups.get(
            group, next(iter(inventory.hosts.values())).where.rsplit(":", 1)[0] + ":1"
        )

    for group in ("deploy", "control"):
        if not members[group]:
            problems.add("group-empty", f"the group {group} has no node", place(group))
    if len(members["deploy"]) > 1:
        names = ", ".join(host.name for host in members["deploy"])
        problems.add("deploy-nodes", f"there must be one deploy node, not {names}", place("deploy"))
    if len(members["control"]) % 2 == 0 and members["control"]:
        count = len(members["control"])
        problems.add(
            "controllers-even",
            f"{count} controllers cannot form a majority when half of them fail",
            place("control"),
            "use 1, 3 or 5",
        )
    if members["storage"] and not members["mons"]:
        problems.add(
            "group-empty",
            "there are storage nodes, but the group mons has no node",
            place("mons"),
            "mons on the controllers: `mons: {children: {control: }}`",
        )
    if members["mons"] and len(members["mons"]) % 2 == 0:
        count = len(members["mons"])
        problems.add(
            "mons-even",
            f"{count} mons cannot form a majority when half of them fail",
            place("mons"),
            "use 1, 3 or 5",
        )


def check_devices(draft: Draft, problems: Problems) -> None:
    """Disks of the storage nodes."""
    reported: set[tuple[str, str]] = set()

    def report(ref: str, message: str, where: str, hint: str | None = None) -> None:
        # A group's nodes share its list: one error for the list, not one for each node.
        if (ref, where) not in reported:
            reported.add((ref, where))
            problems.add(ref, message, where, hint)

    for host in draft.inventory.hosts.values():
        devices, journals = _texts(host.vars.get("devices")), _texts(host.vars.get("journal_devices"))
        storage = "storage" in host.groups
        where = _var_where(host, "devices")
        if storage and not devices:
            hint = "name the disks that become OSDs: `devices: [/dev/sdb]`"
            report("devices-missing", f"storage node {host.name} has no devices", where, hint)
            continue
        if devices and not storage and "newnodes" not in host.groups:
            text = f"node {host.name} has devices but is not in the group storage"
            report("devices-unused", text, where)
        for device, indices in _repeated((device, index) for index, device in enumerate(devices)):
            where = _var_where(host, "devices", indices[-1])
            report("device-twice", f"{device} of {host.name} is listed twice", where)
        for index, device in enumerate(journals):
            if device in devices:
                where = _var_where(host, "journal_devices", index)
                report("device-twice", f"{device} of {host.name} is both a device and a journal", where)
        if journals and len(journals) != len(devices):
            report(
                "journal-count",
                f"{host.name} has {len(devices)} devices but {len(journals)} journal_devices",
                _var_where(host, "journal_devices"),
                "name one journal for each device, in the same order, or none",
            )


def check_addresses(draft: Draft, problems: Problems) -> None:
    """Every address is inside its network, free, and used once."""
    site = draft.site
    taken: dict[str, tuple[str, bool]] = {}
    for node in site.nodes.values():
        host = draft.inventory.hosts[node.name]
        management = node.interface_on("management")
        clash = False
        ports = sorted(node.interfaces.values(), key=lambda port: port is not management)
        for port in ports:
            explicit = port is management or _explicit(host, port)
            where = _address_where(host, port)
            network = site.networks[port.network]
            if port.address is None:
                if network.cidr and not explicit and network.name != "external" and not clash:
                    problems.add(
                        "address-outside-network",
                        f"{host.name} has the management address {node.address}, and {network.name} "
                        f"({network.cidr}) has no host with that number",
                        _var_where(host, "ansible_host"),
                        f"give {port.name} an address in the node's `interfaces`",
                    )
                continue
            if network.cidr and not _usable(port.address, network.cidr):
                problems.add(
                    "address-outside-network",
                    f"{port.address} of {host.name} is no host address of {network.name} ({network.cidr})",
                    where,
                )
                clash = clash or port is management
            owner = taken.get(port.address)
            if owner is not None and (explicit or owner[1]) and not clash:
                problems.add(
                    "duplicate-address",
                    f"{port.address} is the address of both {owner[0]} and {host.name}",
                    where,
                )
                clash = clash or port is management
            taken.setdefault(port.address, (host.name, explicit))
            # The deploy node may well be the router of a closed network.
            if port.address == network.gateway and "deploy" not in node.groups:
                problems.add(
                    "duplicate-address",
                    f"{port.address} of {host.name} is the gateway of {network.name}",
                    where,
                )
            if network.pool and _between(port.address, network.pool):
                problems.add(
                    "pool-overlap",
                    f"{port.address} of {host.name} is inside the pool {'-'.join(network.pool)}",
                    where,
                )
        if management is not None and management.address != node.address:
            problems.add(
                "address-mismatch",
                f"{host.name} has ansible_host {node.address}, but {management.address} on management",
                _address_where(host, management),
            )


def check_macs(draft: Draft, problems: Problems) -> None:
    """A MAC address belongs to one port."""
    owners: dict[str, str] = {}
    for node in draft.site.nodes.values():
        for port in node.interfaces.values():
            if port.mac is None:
                continue
            host = draft.inventory.hosts[node.name]
            name = f"{port.name} of {node.name}"
            if port.mac in owners:
                text = f"{port.mac} is the MAC address of both {owners[port.mac]} and {name}"
                problems.add("duplicate-mac", text, _port_where(host, port.name, "mac"))
            owners.setdefault(port.mac, name)


def check_vips(draft: Draft, problems: Problems) -> None:
    """Both virtual addresses are inside their network and nobody else's."""
    site = draft.site
    document = draft.settings_file
    assert document is not None
    public = "api" if "api" in site.networks else "management"
    owners = {
        port.address: node.name
        for node in site.nodes.values()
        for port in node.interfaces.values()
        if port.address is not None
    }
    for kind, network_name in (("internal", "management"), ("external", public)):
        vip = site.get(f"vip.{kind}")
        where = document.where("vip", kind)
        network = site.networks.get(network_name)
        if vip is None:
            if document.lines.get(("vip", kind)) is not None and _given(document.data, "vip", kind) is None:
                problems.add("key-missing", f"the setting vip.{kind} is empty", where)
            continue
        if network is not None and network.cidr is not None:
            if not _usable(vip, network.cidr):
                problems.add(
                    "vip-outside-network",
                    f"vip.{kind} {vip} is no host address of {network_name} ({network.cidr})",
                    where,
                )
            elif vip == network.gateway:
                problems.add("vip-in-use", f"vip.{kind} {vip} is the gateway of {network_name}", where)
        if vip in owners:
            problems.add("vip-in-use", f"vip.{kind} {vip} is the address of {owners[vip]}", where)
        for other in site.networks.values():
            if other.pool and _between(vip, other.pool):
                problems.add(
                    "pool-overlap",
                    f"vip.{kind} {vip} is inside the pool {'-'.join(other.pool)} of {other.name}",
                    where,
                )
    if site.get("vip.internal") is not None and site.get("vip.internal") == site.get("vip.external"):
        problems.add(
            "vip-in-use",
            "vip.internal and vip.external must be two addresses",
            document.where("vip", "external"),
        )


def check_ceph(draft: Draft, problems: Problems) -> None:
    """Pools that this many storage nodes can hold."""
    site = draft.site
    document = draft.settings_file
    assert document is not None
    storage = len(site.group("storage"))
    size, least = site.get("ceph.pools.size"), site.get("ceph.pools.min_size")
    if least > size:
        problems.add(
            "ceph-pool-size",
            f"ceph.pools.min_size {least} is more than ceph.pools.size {size}",
            document.where("ceph", "pools", "min_size"),
        )
    elif storage and size > storage:
        problems.add(
            "ceph-pool-size",
            f"ceph.pools.size {size} wants copies on {size} storage nodes, there {_are(storage)}",
            document.where("ceph", "pools", "size"),
            "add storage nodes, or lower ceph.pools.size and ceph.pools.min_size",
        )


def check_tls(draft: Draft, problems: Problems) -> None:
    """The operator's own certificate: files that are there and belong together."""
    site = draft.site
    document = draft.settings_file
    assert document is not None
    provided = site.get("tls.source") == "provided"
    contents: dict[str, bytes] = {}
    for key in ("certificate", "key", "ca"):
        value = site.get(f"tls.{key}")
        where = document.where("tls", key)
        if value is None:
            if provided:
                problems.add("tls-file-missing", f"tls.source is provided, but tls.{key} is not set", where)
            continue
        try:
            contents[key] = (site.path / value).read_bytes()
        except OSError as error:
            reason = error.strerror or "cannot be read"
            problems.add(
                "tls-file-missing", f"tls.{key}: {value}: {reason}", where, "paths are relative to the site"
            )
    if provided and {"certificate", "key"} <= contents.keys():
        from cloudctl.site.certificates import mismatch  # cryptography is slow to import

        wrong = mismatch(contents["certificate"], contents["key"])
        if wrong is not None:
            problems.add("tls-invalid", wrong, document.where("tls", "certificate"))


def check_overrides(draft: Draft, problems: Problems) -> None:
    """Every file in overrides/ is for a configuration file that some service has, and can be parsed."""
    base = draft.site.path / "overrides"
    formats: dict[str, str] = {
        str(name): str((entry or {}).get("format", "raw"))
        for definition in draft.definitions.values()
        for name, entry in (definition.get("files") or {}).items()
    }
    stems: dict[str, list[str]] = {}
    for name in formats:
        stems.setdefault(_stem(name), []).append(name)
    if not base.is_dir():
        return
    for path in sorted(base.iterdir()):
        shown = f"overrides/{path.name}"
        if path.name.startswith((".", "README")):
            continue
        if path.is_file():
            if path.name in formats:
                _parse_override(path, shown, formats[path.name], problems)
            else:
                problems.add(
                    "unknown-override",
                    f"no service has a configuration file '{path.name}'",
                    shown,
                    suggestion(path.name, formats),
                )
            continue
        if path.name not in stems:
            problems.add(
                "unknown-override",
                f"no service has a configuration file of the name '{path.name}'",
                shown,
                suggestion(path.name, stems),
            )
            continue
        wanted = {
            f"{node}{_suffix(name)}": formats[name]
            for name in stems[path.name]
            for node in draft.inventory.hosts
        }
        for file in sorted(path.iterdir()):
            if file.name.startswith((".", "README")):
                continue
            if file.name in wanted:
                _parse_override(file, f"{shown}/{file.name}", wanted[file.name], problems)
            else:
                problems.add(
                    "unknown-override",
                    f"{file.name} is not named after a node of the inventory",
                    f"{shown}/{file.name}",
                    suggestion(file.name, wanted),
                )


def check_secrets(draft: Draft, problems: Problems) -> None:
    """Every secret that the services need is there."""
    wanted = secret_names(draft.definitions).values()
    missing = [secret.name for secret in wanted if not secret.late and secret.name not in draft.site.secrets]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        problems.add(
            "secret-missing",
            f"{len(missing)} of the secrets {'is' if len(missing) == 1 else 'are'} missing: {shown}",
            SECRETS,
            "`cloudctl secrets generate` makes what is missing",
        )
        return
    site = draft.site
    vips = [site.get("vip.internal"), site.get("vip.external")]
    if site.get("tls.source") == "provided" or None in vips:
        return
    from cloudctl.site.certificates import outdated  # cryptography is slow to import

    try:
        reason = outdated(site.secrets["ca_certificate"], site.secrets["tls_certificate"], site.name, vips)
    except ValueError:
        problems.add(
            "tls-invalid", "the site's certificate is not valid PEM", SECRETS, "restore it from a backup"
        )
        return
    if reason is not None:
        problems.add(
            "certificate-outdated",
            f"the site's certificate must be made anew: {reason}",
            SECRETS,
            "`cloudctl secrets generate` does it",
        )


def _parse_override(path: Path, shown: str, form: str, problems: Problems) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        if form == "ini":
            parse_ini(text)
        elif form == "json":
            json.loads(text)
        elif form == "yaml":
            yaml.safe_load(text)
    except json.JSONDecodeError as error:
        problems.add("override-malformed", f"not valid JSON: {error.msg}", f"{shown}:{error.lineno}")
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problems.add("override-malformed", f"not valid YAML: {error.problem}", f"{shown}{line}")
    except (OSError, ValueError, yaml.YAMLError) as error:
        line, _, reason = str(error).partition(": ")
        if line.startswith("line ") and line[5:].isdigit():
            problems.add("override-malformed", reason, f"{shown}:{line[5:]}")
        else:
            problems.add("override-malformed", str(error), shown)


def _stem(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem or suffix


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix}" if stem else ""


def _known_groups(host: Host) -> bool:
    return any(group in schema()["interfaces"] for group in host.groups)


def _interface_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name) is not None


def _usable(address: str, network: IPv4Network) -> bool:
    """Tell whether an address is a host's: inside, and neither the network's nor the broadcast address."""
    value = IPv4Address(address)
    return value in network and value not in (network.network_address, network.broadcast_address)


def _between(address: str, pool: tuple[str, str]) -> bool:
    return IPv4Address(pool[0]) <= IPv4Address(address) <= IPv4Address(pool[1])


def _repeated(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each key that comes more than once, with its values."""
    seen: dict[Any, list[Any]] = {}
    for key, value in pairs:
        seen.setdefault(str(key), []).append(value)
    return ((key, values) for key, values in seen.items() if len(values) > 1)


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _given(data: Any, *path: str) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _var_where(host: Host, name: str, *path: Any) -> str:
    if name not in host.origin:
        return host.where
    document, base = host.origin[name]
    return document.where(*base, *path)


def _port_where(host: Host, port: str, *path: str) -> str:
    return _var_where(host, "interfaces", port, *path)


def _explicit(host: Host, port: Interface) -> bool:
    return "address" in (_given(host.vars, "interfaces", port.name) or {})


def _address_where(host: Host, port: Interface) -> str:
    if _explicit(host, port):
        return _port_where(host, port.name, "address")
    return _var_where(host, "ansible_host")


def describe(site: Site) -> str:
    """Return the line that says that a site is valid."""
    return f"site {site.name}: {_count(site.nodes, 'node')}, {_count(site.networks, 'network')}, valid"


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _count(items: Mapping[str, Any] | list[Node], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
