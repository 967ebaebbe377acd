"""The lab's site directory: an ordinary site whose values fit the lab."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import yaml

from cloudctl.errors import ConfigError
from cloudctl.lab import nodes as lab_nodes
from cloudctl.lab.host import run
from cloudctl.lab.podman import open_files
from cloudctl.lab.powercontrol import socket_path
from cloudctl.lab.remote import MARKER
from cloudctl.lab.topology import (
    DEPLOY_ADDRESSES,
    FIRST_MINOR,
    NAME,
    NETWORKS,
    NICS,
    LabNode,
    free_block,
    make_node,
)
from cloudctl.packages import repository
from cloudctl.paths import data_root

STATES = lab_nodes.STATE.parent
"""Where every lab has its directory."""

SITE = lab_nodes.STATE / "site"
REGISTRY = "10.10.10.2:5000"
"""Of the images, as nodes reach it: the deploy node."""

INSTALLER_PASSWORD = "lab-password"
"""File below the site's ``.cloudctl``: password of the user ``installer`` on bare servers."""

SMALL: dict[str, dict[str, Any]] = {
    "cinder": {"api_workers": 1},
    "horizon": {"processes": 1},
    "keystone": {"processes": 1},
    "mariadb": {
        "applier_threads": 2,
        "buffer_pool_size": "128M",
        "gcache_size": "128M",
        "log_file_size": "64M",
        "max_connections": 600,
    },
    "memcached": {"memory": 64},
    "nova": {
        "cpu_allocation_ratio": "16.0",
        "ram_allocation_ratio": "2.0",
        "reserved_host_memory_mb": 256,
        "shutdown_timeout": 10,
    },
    "rabbitmq": {"memory_limit": "400MB", "schedulers": 1},
}
"""Settings that fit nine servers into one machine."""

_HEADER = "# Written by `cloudctl lab create`; yours to change: a changed file is never written again.\n"


def record() -> dict[str, Any]:
    """Return what ``lab create`` remembers: nodes, the running code, checksums of the written files."""
    marker = SITE / MARKER
    loaded = json.loads(marker.read_text()) if marker.exists() else {}
    return loaded if isinstance(loaded, dict) else {}


def save_record(value: dict[str, Any]) -> None:
    """Write the record, whole or not at all."""
    SITE.mkdir(parents=True, exist_ok=True)
    temporary = SITE / f".{MARKER}.new"
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(SITE / MARKER)


def recorded_nodes() -> dict[str, LabNode]:
    """Return the lab's nodes, the deploy node first."""
    known = record()
    minor = int(known.get("first_minor", FIRST_MINOR))
    options, disks = known.get("bare", {}), known.get("disks", {})
    found = {
        name: make_node(
            name, role, minor, bare=name in options, **options.get(name, {}), **disks.get(name, {})
        )
        for name, role in known.get("nodes", {}).items()
    }
    return found | {
        name: replace(found[name], remade=True) for name in known.get("remade", []) if name in found
    }


def installer_password() -> str:
    """Return the password of the bare servers' user, made when it is first asked for."""
    path = SITE / ".cloudctl" / INSTALLER_PASSWORD
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_urlsafe(12) + "\n")
    return path.read_text().strip()


def first_minor() -> int:
    """Return the first minor of this lab's loop devices: the recorded one, else a block that is free."""
    known = record()
    if NAME == "lab" or "nodes" in known:
        return int(known.get("first_minor", FIRST_MINOR))
    taken = []
    for marker in STATES.glob(f"cloudctl-*/site/{MARKER}"):
        with contextlib.suppress(OSError, ValueError):
            taken.append(int(json.loads(marker.read_text()).get("first_minor", FIRST_MINOR)))
    return free_block(taken, lab_nodes.loop_minors_in_use())


def public_key() -> str:
    """Return the operator's public key, made when it is first asked for."""
    key = SITE / "ssh" / "id_ed25519"
    if not key.exists():
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"cloudctl-{NAME}", "-f", key])
    return key.with_suffix(".pub").read_text().strip()


PACKAGE_KEY = "packages.asc"
"""File of the site with the public key of the package repository."""


def inventory(nodes: Iterable[LabNode]) -> dict[str, Any]:
    """Return the inventory of the nodes."""
    groups: dict[str, dict[str, Any]] = {
        name: {} for name in ("deploy", "control", "compute", "storage", "mons", "newnodes")
    }
    for node in nodes:
        variables: dict[str, Any] = {"ansible_host": node.address}
        if node.role == "deploy":
            variables["interfaces"] = {
                nic: {"network": network, "address": NETWORKS[network].address(DEPLOY_ADDRESSES[nic])}
                for nic, network in NICS["deploy"].items()
                if nic != "eth0"
            }
        if node.disks:
            variables["devices"] = [disk.device for disk in node.disks if disk.name.startswith("data")]
            journals = [disk.device for disk in node.disks if disk.name.startswith("journal")]
            # The one journal disk serves all data disks, as the documented SSD does.
            variables["journal_devices"] = journals * len(variables["devices"])
        groups[node.role].setdefault("hosts", {})[node.name] = variables
    groups["mons"] = {"children": {"control": {}}}
    return {"all": {"children": groups}}


def networks() -> dict[str, Any]:
    """Return ``networks.yml``."""
    table: dict[str, dict[str, Any]] = {
        name: {"cidr": str(network.cidr), "mtu": network.mtu} for name, network in NETWORKS.items()
    }
    table["external"] |= {"gateway": "10.10.50.1", "pool": ["10.10.50.100", "10.10.50.199"]}
    interfaces = {role: dict(nics) for role, nics in NICS.items() if role != "deploy"}
    return {"networks": table, "interfaces": interfaces | {"deploy": {"eth0": "management"}}}


def settings(storage_nodes: int, *, signed: bool = True) -> dict[str, Any]:
    """Return ``settings.yml``: what makes the lab different from a machine room is only this.

    Args:
        storage_nodes: how many there are; fewer than three can't hold three copies, none means no Ceph.
        signed: the site has the key of the package repository.
    """
    ceph: dict[str, Any] = {
        "osd_memory_target": 939524096,
        # All nodes share this machine's disk: a share of it says nothing about a monitor's space.
        "config": {"mon": {"mon_data_avail_warn": 5}},
    }
    if 0 < storage_nodes < 3:
        ceph["pools"] = {"size": storage_nodes, "min_size": 1}
    return {
        "cloud": {"name": NAME},
        "registry": {"address": REGISTRY},
        "packages": {"repository": "http://10.10.10.2:8081/", **({"key": PACKAGE_KEY} if signed else {})},
        "vip": {"internal": "10.10.10.250", "external": "192.168.124.250"},
        "datapath": "netdev",
        "virtualisation": {"type": "qemu", "cpu_mode": "none"},
        "engine": {
            "daemon_options": {
                "default-runtime": "lab",
                "runtimes": {"lab": {"path": "/usr/local/sbin/runc-lab"}},
            },
            "nofile": open_files(),
        },
        "time": {"set_clock": False},
        "power": {"driver": "lab", "socket": str(socket_path(SITE)), "boot_timeout": 90},
        "ceph": ceph,
        "services": SMALL,
    }


def write(nodes: Iterable[LabNode], report: Callable[[str], None]) -> None:
    """Write the site's files: missing ones, and those that nobody changed since the lab wrote them."""
    # A bare server is nobody's yet: `node enroll` pins its key and names it in the inventory.
    nodes = [node for node in nodes if not node.bare]
    SITE.mkdir(parents=True, exist_ok=True)
    public_key()
    written: dict[str, str] = dict(record().get("written", {}))
    key = SITE / "ssh" / "id_ed25519"
    connection = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={SITE}/known_hosts -o StrictHostKeyChecking=yes",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    package_key = repository.public_key()
    documents: dict[str, Any] = {
        "inventory/hosts.yml": inventory(nodes),
        "inventory/group_vars/all.yml": connection,
        "networks.yml": networks(),
        "settings.yml": settings(sum(node.role == "storage" for node in nodes), signed=bool(package_key)),
    }
    texts = {
        name: _HEADER + yaml.safe_dump(document, sort_keys=False) for name, document in documents.items()
    }
    texts[".gitignore"] = ".cloudctl/\n.vault-password\nssh/id_ed25519\nadmin-openrc.sh\nclouds.yaml\n"
    if package_key:
        texts[PACKAGE_KEY] = package_key
    for name, text in texts.items():
        path = SITE / name
        if path.exists() and _checksum(path.read_text()) != written.get(name):
            if path.read_text() != text:
                report(f"{path} was changed by hand: left as it is")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written[name] = _checksum(text)
    # Whether a remade server is the right one is for `node replace` to find out.
    _pin_host_keys([node for node in nodes if not node.remade])
    password = SITE / ".vault-password"
    if not password.exists():
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_urlsafe(32) + "\n")
    (SITE / "overrides").mkdir(exist_ok=True)
    (SITE / ".cloudctl").mkdir(mode=0o700, exist_ok=True)
    save_record(record() | {"written": written})


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pin_host_keys(nodes: list[LabNode]) -> None:
    """Pin the nodes' host keys; lines about other hosts stay."""
    path = SITE / "known_hosts"
    ours = {name for node in nodes for name in (node.name, node.address)}
    kept = [
        line
        for line in (path.read_text().splitlines() if path.exists() else [])
        if not ours & set(line.split(" ")[0].split(","))
    ]
    pinned = [f"{node.address},{node.name} {lab_nodes.host_key(node)}" for node in nodes]
    path.write_text("\n".join([*kept, *pinned]) + "\n")


def finish(report: Callable[[str], None]) -> None:
    """Pin the images that are built, and generate the secrets that are missing."""
    from cloudctl.images.builder import write_lock
    from cloudctl.images.definition import load_catalogue
    from cloudctl.site.secrets import generate

    lock = SITE / "images.lock.json"
    try:
        write_lock(lock, REGISTRY, catalogue=load_catalogue(data_root() / "images"))
    except ConfigError as error:
        kept = "stays as it was" if lock.exists() else "is not there yet"
        report(f"images.lock.json {kept} ({error.ref}): cloudctl image build, then cloudctl lab create again")
    made = generate(SITE).made
    if made:
        report(f"{len(made)} secrets made")
