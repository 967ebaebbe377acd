"""Desired state of the Ceph cluster.

``build`` says what the cluster should look like without any secret in it, so that it can be shown, compared
and logged; ``secrets`` returns, apart from it, what only the module on the first monitor's node may see. Both
are plain data for the module ``cloudctl_ceph``, which compares them with what it finds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cloudctl.errors import CloudctlError, ConfigError, MultiError
from cloudctl.site.model import Node, Site

Desired = dict[str, Any]

IMAGE = "ceph"
"""Name of Ceph's image in images.lock.json."""

PACKAGES: dict[str, tuple[str, ...]] = {
    # cephadm's host check wants lvcreate, a running time daemon and Python even where OSDs are raw devices.
    "mons": ("cephadm", "ceph-common", "lvm2", "chrony", "python3"),
    "storage": ("lvm2", "chrony", "python3", "util-linux", "gdisk", "smartmontools"),
}
"""Debian packages that the nodes of a group need before Ceph comes."""

DEFAULT_PG_NUM = 32
"""Placement groups that a pool starts with; the autoscaler takes it from there."""

_CAP_DAEMONS = ("mon", "osd", "mgr", "mds")
_CAP_POOL = re.compile(r"\bpool=([^\s,]+)")


def mon_nodes(site: Site) -> list[Node]:
    """Return the nodes that run a monitor: group ``mons``, or the controllers where there is none."""
    return site.group("mons") or site.group("control")


def mon_hosts(site: Site) -> list[str]:
    """Return the monitors' addresses on the storage network, for clients' ``mon_host``."""
    return [address for node in mon_nodes(site) if (address := node.address_on("storage"))]


def ceph_nodes(site: Site) -> list[Node]:
    """Return every node of the cluster, monitors first, each once."""
    nodes = {node.name: node for node in [*mon_nodes(site), *site.group("storage")]}
    return list(nodes.values())


def ceph_ssh_public_key(site: Site) -> str:
    """Return the key with which Ceph's manager reaches its nodes; it belongs in root's authorized_keys there.

    Raises:
        ConfigError: the site has no such secret yet.
    """
    return site.secrets["ceph_ssh_public_key"].strip()


def client_secret(client: str) -> str:
    """Return the name of the secret that holds a client's key."""
    return f"ceph_client_{client}_key"


def key_digest(fsid: str, key: str) -> str:
    """Return a digest that tells whether a key is the wanted one without giving it away.

    A key is 128 random bits, so its digest can't be searched. Without a key there is no digest to compare.
    """
    return hashlib.sha256(f"{fsid}:{key}".encode()).hexdigest()[:32] if key else ""


def devices_of(node: Node) -> list[tuple[str, str | None]]:
    """Return a storage node's pairs of data device and journal (None: the journal stays on the data device).

    Several data devices may have the same journal device: they share it.

    Raises:
        ConfigError: the lists make no pairs, or name a device twice.
    """
    data = _device_list(node, "devices")
    journals = _device_list(node, "journal_devices")
    where = f"inventory, host {node.name}"
    twice = sorted({path for path in data if data.count(path) > 1} | set(data) & set(journals))
    if twice:
        raise ConfigError(
            "ceph-device-twice",
            f"{node.name} uses {', '.join(twice)} more than once",
            where=where,
            hint="each device of devices and journal_devices may appear once",
        )
    if not journals:
        return [(path, None) for path in data]
    if len(journals) != len(data):
        raise ConfigError(
            "ceph-journal-count",
            f"{node.name} has {len(data)} devices but {len(journals)} journal_devices",
            where=where,
            hint="give one journal device for each data device, or none at all",
        )
    return list(zip(data, journals, strict=True))


def osds_of(node: Node) -> list[dict[str, Any]]:
    """Return a storage node's OSDs: host, data, journal, device_class ("": as Ceph finds), slot (from 1).

    Raises:
        ConfigError: see ``devices_of``.
    """
    classes = node.vars.get("device_classes") or {}
    return [
        {"host": node.name, "data": data, "journal": db, "slot": slot,
         "device_class": str(classes.get(data) or "")}
        for slot, (data, db) in enumerate(devices_of(node), start=1)
    ]  # fmt: skip


def device_arguments(desired: Mapping[str, Any], node: str, mode: str = "devices") -> dict[str, Any]:
    """Return the arguments with which ``cloudctl_ceph`` looks at, or prepares, a node's devices.

    Args:
        desired: the cluster, as returned by ``build``.
        mode: devices or prepare.
    """
    own = [osd for osd in desired["osds"] if osd["host"] == node]
    return {
        "mode": mode,
        "fsid": desired["fsid"],
        "data": [osd["data"] for osd in own],
        "journals": [osd["journal"] for osd in own if osd["journal"]],
        "journal_size": desired["journal"]["size"],
        "journal_minimum": desired["journal"]["minimum"],
    }


def build(site: Site, services: Sequence[Mapping[str, Any]]) -> Desired:
    """Return the cluster that the site and its services ask for.

    Args:
        site: the site; its secrets are needed for the cluster's id only.
        services: parsed service definitions; their ``ceph`` part gives pools and clients.

    Returns:
        Plain data without secrets: ``fsid``, ``image``, ``mons`` [{name, address}], ``mgrs`` [name],
        ``public_network``, ``cluster_network``, ``hosts`` [{name, address, labels}],
        ``osds`` (see ``osds_of``), ``config`` {section: {option: text}},
        ``pools`` [{name, application, size, min_size, pg_num, device_class}],
        ``clients`` [{name, caps, key_digest}], ``journal`` {size, minimum} in bytes.

    Raises:
        ConfigError, MultiError: everything that is wrong with it, at once.
    """
    errors: list[CloudctlError] = []
    mons = mon_nodes(site)
    if not mons:
        errors.append(
            ConfigError("ceph-no-mons", "no node runs a Ceph monitor", hint="put nodes into the group mons")
        )
    for node in mons:
        if node.address_on("storage") is None:
            errors.append(_no_address(node, "storage"))
    osds: list[dict[str, Any]] = []
    for node in site.group("storage"):
        for network in ("storage", "replication"):
            if node.address_on(network) is None:
                errors.append(_no_address(node, network))
        try:
            osds += osds_of(node)
        except ConfigError as error:
            errors.append(error)
    pools = _pools(site, services, errors)
    clients = _clients(site, services, {pool["name"] for pool in pools}, errors)
    image = _image(site, errors)
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    names = [node.name for node in mons]
    return {
        "fsid": site.secrets.get("ceph_fsid", ""),
        "image": image,
        "mons": [{"name": node.name, "address": node.address_on("storage")} for node in mons],
        "mgrs": names[:2],
        "public_network": _cidr(site, "storage"),
        "cluster_network": _cidr(site, "replication"),
        "hosts": [
            {"name": node.name, "address": node.address, "labels": ["_admin"] if node.name in names else []}
            for node in ceph_nodes(site)
        ],
        "osds": osds,
        "config": _config(site, pools),
        "pools": pools,
        "clients": clients,
        "journal": {
            "size": int(site.get("ceph.journal.size") or 0),
            "minimum": int(site.get("ceph.journal.minimum")),
        },
    }


def secrets(site: Site, services: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the module needs and nobody else may read.

    Returns:
        ``ssh_private_key``, ``ssh_public_key`` and ``client_keys`` {client: key}.

    Raises:
        ConfigError: a secret is missing.
    """
    keys = {client["name"]: site.secrets[client_secret(client["name"])] for client in _declared(services)}
    return {
        "ssh_private_key": site.secrets["ceph_ssh_private_key"].rstrip("\n") + "\n",
        "ssh_public_key": ceph_ssh_public_key(site) + "\n",
        "client_keys": dict(sorted(keys.items())),
    }


def _device_list(node: Node, key: str) -> list[str]:
    value = node.vars.get(key) or []
    if not isinstance(value, list) or not all(isinstance(p, str) and p.startswith("/dev/") for p in value):
        raise ConfigError(
            "ceph-device-list",
            f"{key} of {node.name} is not a list of device paths",
            where=f"inventory, host {node.name}",
            hint=f"write {key}: [/dev/sdb, /dev/sdc]",
        )
    return list(value)


def _no_address(node: Node, network: str) -> ConfigError:
    return ConfigError(
        "ceph-no-address",
        f"{node.name} has no address on the {network} network, which Ceph uses there",
        where="networks.yml",
        hint=f"give its group an interface on {network}",
    )


def _cidr(site: Site, network: str) -> str:
    found = site.networks.get(network)
    return str(found.cidr) if found is not None and found.cidr is not None else ""


def _image(site: Site, errors: list[CloudctlError]) -> str:
    entry = site.images.get(IMAGE)
    if entry is None:
        # Without a lock file nothing was built yet; whoever deploys checks that before.
        if site.images:
            errors.append(
                ConfigError(
                    "image-missing",
                    f"there is no image '{IMAGE}'",
                    where="images.lock.json",
                    hint=f"cloudctl image build {IMAGE}",
                )
            )
        return ""
    return str(entry["reference"])


def _pools(
    site: Site, services: Iterable[Mapping[str, Any]], errors: list[CloudctlError]
) -> list[dict[str, Any]]:
    size, min_size = int(site.get("ceph.pools.size")), int(site.get("ceph.pools.min_size"))
    pools: dict[str, dict[str, Any]] = {}
    classes = site.get("ceph.pools.device_class") or {}
    own = {"name": "settings", "ceph": {"pools": site.get("ceph.pools.extra") or []}}
    for service in [*services, own]:
        for declared in (service.get("ceph") or {}).get("pools") or ():
            if not declared.get("name"):
                errors.append(ConfigError("ceph-pool-name", "a pool has no name", where="settings.yml"))
                continue
            pool = {
                "name": declared["name"],
                "application": declared.get("application", "rbd"),
                "size": int(declared.get("size", size)),
                "min_size": int(declared.get("min_size", min_size)),
                "pg_num": int(declared.get("pg_num", DEFAULT_PG_NUM)),
                "device_class": str(classes.get(declared["name"]) or declared.get("device_class") or ""),
            }
            known = pools.setdefault(pool["name"], pool)
            if known != pool:
                errors.append(
                    ConfigError(
                        "ceph-pool-conflict",
                        f"the pool '{pool['name']}' is declared twice, differently",
                        where="settings.yml"
                        if service is own
                        else f"services/{service.get('name')}/service.yml",
                    )
                )
    if unknown := sorted(set(classes) - set(pools)):
        errors.append(
            ConfigError(
                "ceph-pool-unknown", f"ceph.pools.device_class: there is no pool {', '.join(unknown)}",
                where="settings.yml", hint=f"pools: {', '.join(sorted(pools))}",
            )
        )  # fmt: skip
    nodes = len(site.group("storage"))
    for pool in pools.values():
        if pool["min_size"] > pool["size"]:
            errors.append(
                ConfigError(
                    "ceph-pool-size",
                    f"the pool '{pool['name']}' wants {pool['min_size']} of {pool['size']} copies present",
                    where="settings.yml",
                    hint="ceph.pools.min_size must not be above ceph.pools.size",
                )
            )
        elif pool["size"] > nodes:
            errors.append(
                ConfigError(
                    "ceph-pool-size",
                    f"the pool '{pool['name']}' keeps {pool['size']} copies on different nodes, "
                    f"but there are {nodes} storage nodes",
                    where="settings.yml",
                    hint="add storage nodes, or lower ceph.pools.size",
                )
            )
    return [pools[name] for name in sorted(pools)]


def _declared(services: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for service in services:
        ceph = service.get("ceph") or {}
        clients = [ceph["client"]] if ceph.get("client") else []
        for client in [*clients, *(ceph.get("clients") or ())]:
            found.append({**client, "service": service.get("name")})
    return found


def _clients(
    site: Site, services: Iterable[Mapping[str, Any]], pools: set[str], errors: list[CloudctlError]
) -> list[dict[str, Any]]:
    clients: dict[str, dict[str, Any]] = {}
    for declared in _declared(services):
        where = f"services/{declared['service']}/service.yml"
        name, caps = declared["name"], dict(declared.get("caps") or {})
        client = {
            "name": name,
            "caps": dict(sorted(caps.items())),
            "key_digest": key_digest(
                site.secrets.get("ceph_fsid", ""), site.secrets.get(client_secret(name), "")
            ),
        }
        unknown = sorted(set(caps) - set(_CAP_DAEMONS))
        missing = sorted({p for cap in caps.values() for p in _CAP_POOL.findall(str(cap))} - pools)
        if unknown:
            errors.append(
                ConfigError(
                    "ceph-caps", f"the client '{name}' has capabilities for {', '.join(unknown)}", where=where
                )
            )
        if missing:
            errors.append(
                ConfigError(
                    "ceph-caps",
                    f"the client '{name}' may use pools that no service declares: {', '.join(missing)}",
                    where=where,
                )
            )
        if clients.setdefault(name, client) != client:
            errors.append(
                ConfigError(
                    "ceph-client-conflict", f"the client '{name}' is declared twice, differently", where=where
                )
            )
    return [clients[name] for name in sorted(clients)]


def _config(site: Site, pools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    config: dict[str, dict[str, Any]] = {
        "global": {
            "public_network": _cidr(site, "storage"),
            "cluster_network": _cidr(site, "replication"),
            "osd_pool_default_size": site.get("ceph.pools.size"),
            "osd_pool_default_min_size": site.get("ceph.pools.min_size"),
        },
        "osd": {
            # The target is a setting of ours: cephadm's own tuning would overwrite it per host.
            "osd_memory_target": site.get("ceph.osd_memory_target"),
            "osd_memory_target_autotune": False,
        },
        # A node that came back is called bad until it is looked at again: by itself, after ten minutes.
        "mgr": {"mgr/cephadm/host_check_interval": 120},
    }
    if int(site.get("ceph.pools.size")) == 1 or any(pool["size"] == 1 for pool in pools):
        config["global"]["mon_allow_pool_size_one"] = True
        config["global"]["mon_warn_on_pool_no_redundancy"] = False
    for section, options in (site.get("ceph.config", {}) or {}).items():
        config.setdefault(section, {}).update(options or {})
    return {
        section: {option: _text(value) for option, value in sorted(options.items())}
        for section, options in sorted(config.items())
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
