"""Which line of the inventory an OSD stands in, and what the inventory says after a change. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudctl.ceph.desired import osds_of
from cloudctl.errors import CheckFailed, ConfigError, UsageError
from cloudctl.osd.cluster import Cluster, Osd
from cloudctl.osd.remote import Checks
from cloudctl.site.model import Node, Site

FILE = "inventory/hosts.yml"


def storage_node(site: Site, name: str) -> Node:
    """Return a storage node.

    Raises:
        UsageError: there is none of that name.
    """
    nodes = {node.name: node for node in site.group("storage")}
    if name not in nodes:
        where = (
            "it is in the inventory, but not in the group storage" if name in site.nodes else "it is unknown"
        )
        raise UsageError(
            "node-unknown", f"there is no storage node {name!r}: {where}", where=FILE,
            hint=f"storage nodes: {', '.join(nodes) or 'none'}; cloudctl node add makes one",
        )  # fmt: skip
    return nodes[name]


def pick(cluster: Cluster, ids: Sequence[int]) -> list[Osd]:
    """Return OSDs by their ids.

    Raises:
        UsageError: there is no such OSD.
    """
    unknown = sorted(set(ids) - set(cluster.osds))
    if unknown:
        known = ", ".join(f"{number} ({osd.host})" for number, osd in sorted(cluster.osds.items()))
        raise UsageError(
            "osd-unknown", f"there is no OSD {', '.join(map(str, unknown))}", hint=f"OSDs: {known or 'none'}"
        )
    return [cluster.osds[number] for number in dict.fromkeys(ids)]


def line_of(osd: Osd, cluster: Cluster, node: Node | None, items: Sequence[Mapping[str, Any]]) -> str:
    """Return the device in the inventory that is an OSD's; "" where none is.

    Its label says it; where the device is gone, the name under which it was last seen, or what no other OSD
    of the node is on.

    Args:
        items: what is on the node's devices (``look``); empty where the node does not answer.
    """
    own = [item for item in osds_of(node)] if node else []
    paths = [str(entry["data"]) for entry in own]
    by_uuid = {
        item["osd_uuid"]: item["path"] for item in items if item["role"] == "data" and item["osd_uuid"]
    }
    if osd.uuid in by_uuid:
        return str(by_uuid[osd.uuid])
    others = {other.uuid for other in cluster.osds.values()} - {osd.uuid}
    taken = {path for uuid, path in by_uuid.items() if uuid in others}
    left = [path for path in paths if path not in taken]
    if osd.device in left:
        return osd.device
    # The others of this node whose device is not known either might be it.
    unknown = [other for other in cluster.on(osd.host) if other.uuid not in by_uuid]
    return left[0] if len(left) == 1 and len(unknown) == 1 else ""


def with_line(fact: Mapping[str, Any], device: str | None, node: Node) -> dict[str, Any]:
    """Return what is known of an OSD with the device in the inventory that is to be its from now on.

    Raises:
        CheckFailed: the inventory does not name that device.
    """
    journals = {osd["data"]: osd["journal"] for osd in osds_of(node)}
    if device not in journals:
        raise CheckFailed(
            "osd-line-unknown",
            f"which device of {node.name} in the inventory was osd.{fact['id']} can't be told",
            where=FILE, hint="write the new device into devices in its place, then name it",
        )  # fmt: skip
    return {**fact, "path": device, "journal": journals[device] or ""}


def variables(node: Node, osds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a node's variables that say these OSDs: ``devices``, ``journal_devices``, ``device_classes``.

    Only those that differ from what it has.
    """
    wanted: dict[str, Any] = {"devices": [osd["data"] for osd in osds]}
    journals = [osd["journal"] for osd in osds if osd["journal"]]
    classes = {osd["data"]: osd["device_class"] for osd in osds if osd.get("device_class")}
    if journals or node.vars.get("journal_devices"):
        wanted["journal_devices"] = journals
    if classes or node.vars.get("device_classes"):
        wanted["device_classes"] = classes
    return {name: value for name, value in wanted.items() if node.vars.get(name) != value}


def with_new(
    node: Node, devices: Sequence[str], journal: str | None, device_class: str | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a node's OSDs with further devices, and which of those the inventory does not name yet.

    Args:
        journal: for all of them; None: the journal device of the others, where they have one only.

    Raises:
        UsageError: a device is named twice, or as a journal; the journal is not the one it has; journals for
            some OSDs of a node only.
        ConfigError: what the inventory says makes no sense.
    """
    present = osds_of(node)
    known = {osd["data"]: osd for osd in present}
    if len(set(devices)) < len(devices):
        raise UsageError("osd-device-twice", "a device is named twice")
    journals = list(dict.fromkeys(osd["journal"] for osd in present if osd["journal"]))
    new = [path for path in devices if path not in known]
    if journal is None and journals and new:
        if len(journals) > 1:
            raise UsageError(
                "osd-journal-missing", f"{node.name} has its journals on {', '.join(journals)}",
                hint=f"--journal {journals[0]}, for example",
            )  # fmt: skip
        journal = journals[0]
    if journal and new and present and not journals:
        raise UsageError(
            "osd-journal-mixed", f"the OSDs of {node.name} have no journal device, and all have one or none",
            where=FILE, hint="leave out --journal",
        )  # fmt: skip
    for path in devices:
        if path == journal or path in journals:
            raise UsageError("osd-device-twice", f"{path} is a journal device of {node.name}", where=FILE)
        if path in known and journal and known[path]["journal"] != journal:
            raise UsageError(
                "osd-journal-differs", f"the journal of {path} is on {known[path]['journal']}", where=FILE
            )
    if journal in known:
        raise UsageError("osd-device-twice", f"{journal} is a data device of {node.name}", where=FILE)
    osds = [dict(osd) for osd in present]
    for path in new:
        osds.append(
            {"host": node.name, "data": path, "journal": journal, "slot": len(osds) + 1, "device_class": ""}
        )
    for osd in osds:
        if device_class and osd["data"] in devices:
            osd["device_class"] = device_class
    return osds, new


def refuse_foreign(node: str, checks: Checks, cluster: Cluster, wanted: Sequence[str]) -> None:
    """Refuse devices that hold an OSD already: one of this cluster's under another name, or a removed one.

    Args:
        wanted: the devices that are to become OSDs.

    Raises:
        CheckFailed: the first of them.
    """
    known = {osd.uuid: osd for osd in cluster.osds.values()}
    for item in checks.get(node, ()):
        if item["role"] != "data" or item["path"] not in wanted or item["state"] != "ours":
            continue
        osd = known.get(item["osd_uuid"])
        if osd is None:
            raise CheckFailed(
                "osd-device-refused", f"{item['path']} holds an OSD that this cluster does not have any more",
                where=node, hint=f"if its data may go: wipefs --all {item['path']}, on that node",
            )  # fmt: skip
        raise CheckFailed("osd-device-refused", f"{item['path']} is {osd.name} already", where=node)


def without(node: Node, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return a node's OSDs without some devices.

    Raises:
        ConfigError: none would be left; such a node is no storage node.
    """
    left = [osd for osd in osds_of(node) if osd["data"] not in paths]
    if not left:
        raise ConfigError(
            "osd-last-of-node", f"{node.name} would be a storage node without an OSD", where=FILE,
            hint=f"cloudctl node remove {node.name} takes the whole node out",
        )  # fmt: skip
    return [{**osd, "slot": slot} for slot, osd in enumerate(left, start=1)]


def exchanged(node: Node, old: str, new: str) -> list[dict[str, Any]]:
    """Return a node's OSDs with one device in another's place."""
    return [{**osd, "data": new} if osd["data"] == old else osd for osd in osds_of(node)]
