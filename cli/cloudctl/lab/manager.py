"""Making, showing, switching and removing a whole lab."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudctl.errors import CheckFailed, CloudctlError, LockHeld, MultiError, UsageError
from cloudctl.lab import images, network, nodes, powercontrol, sitedir
from cloudctl.lab.host import CACHE, check_host
from cloudctl.lab.topology import NAME, TOPOLOGIES, LabNode, make_node, topology
from cloudctl.paths import data_root

Report = Callable[[str], None]
_LOCK = Path(f"/run/cloudctl-{NAME}.lock")


@contextmanager
def _locked() -> Iterator[None]:
    """Keep a second ``lab`` command that changes something out."""
    with _LOCK.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld("lab-busy", "another lab command is running", where=str(_LOCK)) from None
        yield


@contextmanager
def _cache_locked() -> Iterator[None]:
    """Let one lab at a time fill what all labs share."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _each(action: Callable[[LabNode], None], wanted: Iterable[LabNode]) -> None:
    """Do it to all nodes at once; raise every error."""

    def attempt(node: LabNode) -> CloudctlError | None:
        try:
            action(node)
        except CloudctlError as error:
            error.where = error.where or node.name
            return error
        return None

    wanted = list(wanted)
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        errors = [error for error in pool.map(attempt, wanted) if error]
    if errors:
        raise MultiError(errors)


def code_mount() -> tuple[Path, str]:
    """Return the running cloudctl's directory and where the deploy node sees it.

    A checkout is mounted whole; of an installed package only the package (its data are inside).
    """
    package = Path(__file__).resolve().parents[1]
    if data_root() == package / "data":
        return package, "/opt/cloudctl/cli/cloudctl"
    return data_root(), "/opt/cloudctl"


def create(
    name: str, report: Report, *, data_disks: int = 1, spare_disks: int = 0, wait: bool = True
) -> list[str]:
    """Make the lab, or what is missing of it.

    Nodes that were switched off on purpose stay off.

    Args:
        name: of the topology.
        data_disks, spare_disks: of each storage node that is made; those that are there keep theirs.
        wait: until every started node answers.

    Returns:
        The names of the nodes that were made or started.
    """
    check_host()
    if name not in TOPOLOGIES:
        raise UsageError("lab-topology", f"no topology {name!r}", hint=f"one of: {', '.join(TOPOLOGIES)}")
    with _locked():
        with _cache_locked():
            images.ensure(report)
            _ensure_repository(report)
            (CACHE / "registry").mkdir(parents=True, exist_ok=True)
        network.ensure()
        minor = sitedir.first_minor()
        wanted = sitedir.recorded_nodes()
        layout = topology(name, minor, data_disks=data_disks, spare_disks=spare_disks)
        disks = dict(sitedir.record().get("disks", {}))
        if (data_disks, spare_disks) != (1, 0):
            more = {"data_disks": data_disks, "spare_disks": spare_disks}
            disks |= {key: more for key, node in layout.items() if node.disks and key not in wanted}
        wanted |= {key: value for key, value in layout.items() if key not in wanted}
        source, target = code_mount()
        stale = sitedir.record().get("code") not in (None, str(source))
        sitedir.save_record(
            sitedir.record()
            | {
                "deploy": wanted["deploy"].container,
                "nodes": {node.name: node.role for node in wanted.values()},
                "first_minor": minor,
            }
            | ({"disks": disks} if disks else {})
        )
        sitedir.write(wanted.values(), report)
        present = nodes.containers()
        key = sitedir.public_key()
        begun: list[str] = []
        running: list[str] = []

        def make(node: LabNode) -> None:
            half_made = node.name in present and not nodes.is_complete(node)
            if half_made or (stale and node.role == "deploy"):
                nodes.remove(node.name)
                network.unplug(node)
            elif node.name in present and present[node.name] not in ("created", "configured"):
                if present[node.name] == "running":
                    nodes.start(node)
                    running.append(node.name)
                return
            if half_made or node.name not in present or (stale and node.role == "deploy"):
                is_deploy = node.role == "deploy"
                mounts = [f"{source}:{target}:ro", f"{sitedir.SITE}:{sitedir.SITE}", f"{CACHE}:{CACHE}:ro"]
                image = images.deploy_image() if is_deploy else images.node_image()
                password = sitedir.installer_password() if node.unknown else ""
                nodes.create(node, image, key, mounts if is_deploy else [], password=password)
            begun.append(node.name)
            nodes.start(node)

        began = time.monotonic()
        _each(make, wanted.values())
        sitedir.save_record(sitedir.record() | {"code": str(source)})
        if wait:
            _each(nodes.wait, [wanted[key] for key in [*begun, *running]])
        if off := sorted(set(present) - set(begun) - set(running)):
            report(f"switched off, and left so: {', '.join(off)} (cloudctl lab power on)")
        report(f"{len(begun)} nodes made in {time.monotonic() - began:.1f} s, {len(wanted)} in the lab")
    sitedir.finish(report)
    powercontrol.ensure(NAME)
    return sorted(begun)


def add_node(
    name: str,
    role: str,
    report: Report,
    *,
    data_disks: int = 1,
    mtu_limits: Mapping[str, int] | None = None,
    wait: bool = True,
) -> LabNode:
    """Make a bare server beside the lab's nodes: an operating system, and a user with a password.

    The site knows nothing of it. Only its management port has an address.

    Args:
        name: ends in a number that gives its address, as of the other nodes.
        role: compute or storage (its NICs and disks); control is possible, too.
        data_disks: of a storage server.
        mtu_limits: NIC -> bytes that its switch port passes at most (a fault to try).
        wait: until it answers.

    Raises:
        UsageError: there is no lab, the name is taken, or it has no number.
    """
    check_host()
    with _locked():
        known = sitedir.recorded_nodes()
        if not known:
            raise UsageError("lab-missing", "there is no lab to add a node to", hint="cloudctl lab create")
        limits = dict(mtu_limits or {})
        node = make_node(
            name, role, sitedir.first_minor(), bare=True, data_disks=data_disks, mtu_limits=limits
        )
        for other in known.values():
            if other.name == name or other.address == node.address:
                raise UsageError(
                    "lab-node-exists",
                    f"the lab has {other.name} at {other.address} already",
                    hint=f"cloudctl lab remove-node {other.name}, or another number",
                )
        record = sitedir.record()
        options = {"data_disks": data_disks, "mtu_limits": limits}
        sitedir.save_record(
            record
            | {
                "nodes": record["nodes"] | {name: role},
                "bare": record.get("bare", {}) | {name: options},
            }
        )
        network.ensure()
        try:
            nodes.create(node, images.node_image(), "", [], password=sitedir.installer_password())
        except BaseException:
            _forget(node)
            raise
        nodes.start(node)
        if wait:
            nodes.wait(node)
    password = sitedir.SITE / ".cloudctl" / sitedir.INSTALLER_PASSWORD
    report(f"{name} answers at {node.address}; user {nodes.INSTALLER}, password in {password}")
    return node


def remove_nodes(names: Iterable[str], report: Report) -> None:
    """Remove servers that ``add_node`` made, with their disks; the site is left as it is.

    Raises:
        UsageError: no such node, or one that belongs to the lab's topology.
    """
    check_host()
    with _locked():
        chosen = pick(names)
        if fixed := [node.name for node in chosen if not node.bare]:
            raise UsageError(
                "lab-node-fixed",
                f"{', '.join(fixed)} belongs to the lab's topology",
                hint="cloudctl lab destroy removes the whole lab",
            )
        for node in chosen:
            _forget(node)
            report(f"removed {node.name}")


def remake(name: str, report: Report, *, wait: bool = True) -> LabNode:
    """Put a new machine in a server's place: same name, cables and sizes of disks, all else is new.

    Its disks are empty, its host key is another one, and it knows nothing of the site: a user with a password
    and its management address are all there is.

    Args:
        name: of a node that is off.
        wait: until it answers.

    Raises:
        UsageError: no such node, one that is on, or the deploy node.
    """
    check_host()
    with _locked():
        (node,) = pick([name])
        if node.role == "deploy":
            raise UsageError("lab-node-deploy", "the deploy node keeps the site: it can't be made anew")
        if nodes.pid(node):
            raise UsageError(
                "lab-node-on", f"{name} is on", where=name, hint=f"cloudctl lab power kill {name}, first"
            )
        record = sitedir.record()
        remade = list(dict.fromkeys([*record.get("remade", []), name]))
        sitedir.save_record(record | {"remade": remade})
        _scrap(node)
        (node,) = pick([name])
        network.ensure()
        nodes.create(node, images.node_image(), "", [], password=sitedir.installer_password())
        nodes.start(node)
        if wait:
            nodes.wait(node)
    password = sitedir.SITE / ".cloudctl" / sitedir.INSTALLER_PASSWORD
    report(f"{name} is a new machine at {node.address}; user {nodes.INSTALLER}, password in {password}")
    return node


def _scrap(node: LabNode) -> None:
    """Remove a machine, whatever there is of it, with its disks."""
    network.unplug(node)
    nodes.remove(node.name)
    nodes.detach_disks(node.name)
    shutil.rmtree(nodes.directory(node), ignore_errors=True)


def _forget(node: LabNode) -> None:
    """Remove a bare server, and what the lab knows of it."""
    _scrap(node)
    record = sitedir.record()
    for key in ("nodes", "bare"):
        record.get(key, {}).pop(node.name, None)
    record["remade"] = [name for name in record.get("remade", []) if name != node.name]
    sitedir.save_record(record)


def _ensure_repository(report: Report) -> None:
    from cloudctl.packages import repository

    repository.ensure(report)


def destroy(report: Report, *, cache: bool = False) -> None:
    """Remove everything of the lab; with ``cache`` the images and packages too.

    Raises:
        CheckFailed: the cache is to go, and another lab lives from it.
    """
    check_host()
    with _locked():
        present = nodes.containers()
        if cache and (others := len(nodes.all_containers()) - len(present)):
            raise CheckFailed(
                "lab-cache-in-use",
                f"nodes of other labs ({others}) use the images and packages",
                hint="destroy those labs first, or this one without --cache",
            )
        powercontrol.end(sitedir.SITE)
        with ThreadPoolExecutor(max_workers=max(1, len(present))) as pool:
            list(pool.map(nodes.remove, present))
        network.remove()
        devices = nodes.detach_disks()
        nodes.remove_state()
        report(f"removed {len(present)} nodes, {len(devices)} disks, the switches and {nodes.STATE}")
        if cache:
            images.remove()
            shutil.rmtree(CACHE, ignore_errors=True)
            report(f"removed the node images and {CACHE}")
    _LOCK.unlink(missing_ok=True)


def pick(names: Iterable[str]) -> list[LabNode]:
    """Return the lab's nodes with these names.

    Raises:
        UsageError: the lab has no such node.
    """
    known = sitedir.recorded_nodes()
    names = list(names)
    if unknown := [name for name in names if name not in known]:
        hint = f"nodes: {', '.join(known)}" if known else "cloudctl lab create"
        raise UsageError("lab-no-such-node", f"the lab has no node {', '.join(unknown)}", hint=hint)
    return [known[name] for name in names]


def power(action: str, names: Iterable[str], *, wait: bool = True) -> None:
    """Switch nodes on or off, or cut their power, all at once.

    Args:
        action: ``on``, ``off`` (clean) or ``kill``.
        wait: after ``on``, until they answer.
    """
    check_host()
    chosen = pick(names)
    with _locked():
        if action == "on":
            network.ensure()
            _each(nodes.start, chosen)
            if wait:
                _each(nodes.wait, chosen)
        else:
            _each(nodes.stop if action == "off" else nodes.kill, chosen)


def status() -> list[dict[str, Any]]:
    """Return one row per node: name, role, address, container state, whether it is up."""
    states = nodes.containers()
    rows = []
    for node in sitedir.recorded_nodes().values():
        state = states.get(node.name, "missing")
        rows.append(
            {
                "name": node.name,
                "role": node.role,
                "address": node.address,
                "state": state,
                "up": state == "running" and nodes.is_up(node, nodes.pid(node)),
                "disks": [disk.device for disk in node.disks],
            }
        )
    return rows
