"""What was found on the nodes, judged. Pure.

Every check returns findings and never stops the others: the operator sees everything at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cloudctl.errors import CheckFailed, CloudctlError
from cloudctl.netcheck.pairs import configured_only, culprits
from cloudctl.site.model import Interface, Node

SUPPORTED: Mapping[str, tuple[str, ...]] = {"debian": ("13",)}
"""Operating systems on which nodes are known to work: id to versions."""

GIB = 1 << 30
CLOCK_WARNING, CLOCK_ERROR = 2.0, 5.0  # seconds
DISK_LEAST = 5 * GIB
DISK_SHARE_ERROR, DISK_SHARE_WARNING = 0.05, 0.10
ENGINE_LEAST = (25, 0)  # the first that knows a health check's start interval


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        ref: kebab-case identifier.
        message: what is wrong.
        node: where.
        hint: how to go on.
        warning: a deploy would work all the same.
    """

    ref: str
    message: str
    node: str
    hint: str = ""
    warning: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for ``--output json``."""
        return asdict(self)

    def as_error(self) -> CloudctlError:
        """Return the finding as an error."""
        return CheckFailed(self.ref, self.message, where=self.node, hint=self.hint or None)


Facts = Mapping[str, Any]


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with those that differ only in their node told once, with all the nodes."""
    merged: dict[tuple[str, str, str, bool], list[str]] = {}
    for finding in findings:
        key = (finding.ref, finding.message, finding.hint, finding.warning)
        nodes = merged.setdefault(key, [])
        if finding.node not in nodes:
            nodes.append(finding.node)
    return [
        Finding(ref, message, ", ".join(nodes), hint, warning)
        for (ref, message, hint, warning), nodes in merged.items()
    ]


def judge_node(node: Node, facts: Facts, ports: Mapping[int, str]) -> Iterator[Finding]:
    """Judge what is about one node only.

    Args:
        facts: as ``cloudctl_check`` returned them, with ``clock.received`` added.
        ports: the ports that our containers want there, with the container's name.
    """
    yield from judge_root(node.name, facts)
    yield from judge_os(node.name, facts["os"])
    yield from judge_clock(node.name, facts)
    yield from judge_disks(node.name, facts["disks"])
    yield from judge_links(node, facts["links"])
    yield from judge_ports(node.name, facts["listening"], ports)
    yield from judge_urls(node.name, facts["urls"])
    yield from judge_engine(node.name, facts["engine"])
    yield from judge_kernel(node.name, facts)


def judge_root(node: str, facts: Facts) -> Iterator[Finding]:
    """The account must be able to become root."""
    if facts["uid"] != 0:
        yield Finding(
            "become-failed", f"tasks run as uid {facts['uid']}, not as root", node,
            "log in as root, or allow the account sudo without a password and set ansible_become",
        )  # fmt: skip


def judge_os(
    node: str, system: Facts, supported: Mapping[str, Sequence[str]] = SUPPORTED
) -> Iterator[Finding]:
    """The operating system must be a known one."""
    if system["version"] not in supported.get(system["id"], ()):
        known = ", ".join(f"{name} {version}" for name, versions in supported.items() for version in versions)
        yield Finding(
            "os-unsupported", f"the operating system is {system['name'] or 'unknown'}", node,
            f"install one of: {known}",
        )  # fmt: skip


def clock_bounds(facts: Facts) -> tuple[float, float]:
    """Return the least and the most by which the node's clock may be ahead of ours, in seconds.

    Each message bounds it from one side, however slow the connection is: an answer cannot come before its
    question. The registry's and repository's dates (whole seconds) narrow it, as they come from our side.
    """
    clock = facts["clock"]
    low, high = float("-inf"), float("inf")
    if clock.get("sent"):
        high = clock["started"] - clock["sent"]
    if clock.get("received"):
        low = clock["ended"] - clock["received"]
    for answer in (facts.get("urls") or {}).values():
        if answer.get("date") is not None:
            narrow_low = max(low, answer["before"] - answer["date"] - 1)
            narrow_high = min(high, answer["after"] - answer["date"])
            # A registry elsewhere may have a clock of its own: then it says nothing about ours.
            if narrow_low <= narrow_high:
                low, high = narrow_low, narrow_high
    return low, high


def judge_clock(node: str, facts: Facts) -> Iterator[Finding]:
    """The clock must agree with the deploy node's; only what is certain counts."""
    low, high = clock_bounds(facts)
    if low <= 0 <= high:
        return
    off, direction = (low, "ahead of") if low > 0 else (-high, "behind")
    if off >= CLOCK_WARNING:
        yield Finding(
            "clock-skew", f"the clock is at least {off:.1f} s {direction} the deploy node's", node,
            "set it (date -s, or chronyc makestep), and see that the node reaches its time server",
            warning=off < CLOCK_ERROR,
        )  # fmt: skip


def judge_disks(node: str, disks: Mapping[str, Facts]) -> Iterator[Finding]:
    """There must be room for images and logs."""
    for path, disk in disks.items():
        share = disk["free"] / disk["total"] if disk["total"] else 0.0
        if disk["free"] < DISK_LEAST or share < DISK_SHARE_WARNING:
            yield Finding(
                "disk-nearly-full",
                f"only {disk['free'] / GIB:.1f} GiB ({100 * share:.0f} %) of {path}'s filesystem is free",
                node,
                f"at least {DISK_LEAST // GIB} GiB and {100 * DISK_SHARE_ERROR:.0f} % must be free",
                warning=disk["free"] >= DISK_LEAST and share >= DISK_SHARE_ERROR,
            )


def judge_links(node: Node, links: Sequence[Facts]) -> Iterator[Finding]:
    """Every port of the node must exist, be able to carry its MTU, and have a link where it is up."""
    by_name = {link["name"]: link for link in links}
    by_mac = {link["mac"].lower(): link for link in links}
    for port in node.interfaces.values():
        link = by_mac.get(port.mac) if port.mac else by_name.get(port.name)
        if link is None:
            by = f"with MAC {port.mac}" if port.mac else f"named {port.name}"
            others = ", ".join(f"{name} ({link['mac']})" for name, link in by_name.items() if name != "lo")
            yield Finding(
                "nic-missing", f"there is no network port {by} (for network {port.network})", node.name,
                f"the node has: {others or 'none'}; correct 'interfaces', or cable the port",
            )  # fmt: skip
            continue
        if link["max_mtu"] and link["max_mtu"] < port.mtu:
            yield Finding(
                "nic-mtu", f"{link['name']} carries at most {link['max_mtu']} bytes, network {port.network} "
                f"wants {port.mtu}", node.name, "use another port, or a smaller MTU for the whole network",
            )  # fmt: skip
        if link["up"] and not link["carrier"]:
            yield Finding(
                "nic-no-link", f"{link['name']} (network {port.network}) has no link", node.name,
                "check the cable and the switch port",
            )  # fmt: skip
        yield from _judge_configured(node.name, port, links)


def _judge_configured(node: str, port: Interface, links: Sequence[Facts]) -> Iterator[Finding]:
    """A port that carries its address already must have the wanted MTU."""
    if port.address is None:
        return
    for link in links:
        if any(entry["address"] == port.address for entry in link["addresses"]) and link["mtu"] < port.mtu:
            yield Finding(
                "nic-mtu-configured",
                f"{link['name']} (network {port.network}) has MTU {link['mtu']}, {port.mtu} is wanted", node,
                f"ip link set {link['name']} mtu {port.mtu}, if the switch port carries it",
            )  # fmt: skip


def judge_ports(node: str, listening: Sequence[Facts], wanted: Mapping[int, str]) -> Iterator[Finding]:
    """Nothing but our own containers may listen on our ports."""
    foreign: dict[tuple[str, int], list[int]] = {}
    for entry in listening:
        if entry["port"] in wanted and not is_ours(entry):
            name = (
                (entry["container"] and f"container {entry['container']}") or entry["process"] or "a process"
            )
            foreign.setdefault((name, entry["pid"]), []).append(entry["port"])
    for (name, pid), found in sorted(foreign.items()):
        ports = ", ".join(f"{port} ({wanted[port]})" for port in sorted(set(found)))
        yield Finding(
            "port-in-use", f"{name} (pid {pid}) listens on {ports}", node,
            "stop it, and keep it from starting at boot",
        )  # fmt: skip


def is_ours(entry: Facts) -> bool:
    """Tell whether a listening process belongs to one of our containers."""
    name = str(entry["container"])
    return bool(entry["project"] == "cloudctl") or name.startswith(("cloudctl-job-", "ceph-"))


def judge_urls(node: str, urls: Mapping[str, Facts]) -> Iterator[Finding]:
    """The registry and the package repository must answer from the node."""
    for name, answer in urls.items():
        if answer["error"] or answer["status"] >= 500:
            what = {"registry": "image registry", "repository": "package repository"}.get(name, name)
            yield Finding(
                f"{name}-silent",
                f"the {what} at {answer['url']} does not answer: {answer['error'] or answer['status']}", node,
                "start it on the deploy node, and check the way from this node to it",
            )  # fmt: skip


def judge_engine(node: str, engine: Facts) -> Iterator[Finding]:
    """An engine that is installed already must be recent enough."""
    if not engine["installed"]:
        return
    match = re.match(r"(\d+)\.(\d+)", engine["version"])
    if match and tuple(map(int, match.groups())) < ENGINE_LEAST:
        yield Finding(
            "engine-too-old", f"the container engine is version {engine['version']}", node,
            f"at least {'.'.join(map(str, ENGINE_LEAST))} is needed: remove it, deploy installs one",
        )  # fmt: skip


def judge_kernel(node: str, facts: Facts) -> Iterator[Finding]:
    """What the settings want of the kernel must be there."""
    for name, usable in facts["modules"].items():
        if not usable:
            yield Finding(
                "kernel-module-missing", f"the kernel has no module {name}", node,
                "install a kernel that has it, or set 'datapath: netdev' (slower)",
            )  # fmt: skip
    if facts["kvm"]:
        yield Finding(
            "kvm-unusable", f"KVM cannot be used: {facts['kvm']}", node,
            "switch virtualisation on in the firmware, or set 'virtualisation: {type: qemu}' (much slower)",
        )  # fmt: skip


def judge_devices(node: str, devices: Sequence[Facts]) -> Iterator[Finding]:
    """An OSD's devices must be empty, or this cluster's own."""
    for device in devices:
        if device["state"] == "refused":
            yield Finding(
                "osd-device-refused", f"{device['path']} cannot be used for an OSD: {device['reason']}", node,
                "name each device once in the inventory (ls -l /dev/disk/by-id, on the node)"
                if device.get("same_as")
                else "name another journal device: this one may hold journals of OSDs that run"
                if device.get("role") == "journal"
                else "name an empty device in the inventory; if its data may go, wipe it yourself "
                "(wipefs, or ceph-volume lvm zap): cloudctl never does",
            )  # fmt: skip


def judge_vips(
    vips: Mapping[str, str],
    facts: Mapping[str, Facts],
    silent: Sequence[str],
    *,
    holders: Collection[str] | None = None,
) -> Iterator[Finding]:
    """No foreign machine may have a virtual address, and of the nodes only a controller.

    Args:
        vips: name to address.
        silent: nodes that could not be asked: one of them may have it.
        holders: the nodes that may have it; None: all.
    """
    ours = {link["mac"].lower() for known in facts.values() for link in known["links"]}
    held: dict[str, list[str]] = {}
    for node, known in facts.items():
        for link in known["links"]:
            for entry in link["addresses"]:
                held.setdefault(entry["address"], []).append(node)
    for name, address in vips.items():
        wrong = [node for node in held.get(address, ()) if holders is not None and node not in holders]
        for node in wrong:
            yield Finding(
                "vip-in-use", f"the {name} virtual address {address} is on this node, which is no controller",
                node, f"ip address del {address} there, and from what configures it at boot",
            )  # fmt: skip
        if address in held:
            continue
        for node, known in facts.items():
            mac = (known["vips"].get(address) or "").lower()
            if mac and mac not in ours:
                yield Finding(
                    "vip-in-use", f"the {name} virtual address {address} is another machine's (MAC {mac})",
                    node, "free the address, or choose another one (settings.yml, vip)", warning=bool(silent),
                )  # fmt: skip
                break


def judge_pings(answers: Mapping[str, Sequence[Facts]], known: Sequence[Finding]) -> Iterator[Finding]:
    """Links that are configured must pass packets of full size.

    Args:
        known: what was found already: a port that has the wrong MTU is told once.
    """
    told = {finding.node for finding in known if finding.ref == "nic-mtu-configured"}
    for cause in culprits(configured_only(answers)):
        if cause.node in told or any(node in cause.detail for node in told):
            continue
        yield Finding(
            f"network-{cause.kind}", f"network {cause.network}: {cause.detail}", cause.node,
            "'cloudctl network check' names every pair",
        )  # fmt: skip


def judge_images(references: Mapping[str, str], missing: Sequence[str], silent: str) -> Iterator[Finding]:
    """Every image must be locked, and in the registry.

    Args:
        references: image name to reference, '' for one that is not locked.
        missing: what the registry does not have.
        silent: why the registry does not answer; '' when it does.
    """
    unlocked = sorted(name for name, reference in references.items() if not reference)
    if unlocked:
        yield Finding(
            "image-not-built", f"images.lock.json has no {', '.join(unlocked)}", "",
            f"cloudctl image build {' '.join(unlocked)}",
        )  # fmt: skip
    if missing:
        yield Finding(
            "image-missing", f"the registry does not have {', '.join(missing)}", "",
            f"cloudctl image build {' '.join(missing)}",
        )  # fmt: skip
    if silent:
        yield Finding(
            "registry-silent", f"the image registry does not answer the deploy node: {silent}", "",
            "start the registry on the deploy node; what runs goes on without it",
        )  # fmt: skip
