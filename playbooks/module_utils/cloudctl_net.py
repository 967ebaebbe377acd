"""What the node-side modules know of network backends: which one a node uses, what is to be changed.

Runs on the node with the standard library alone. Decisions are pure functions of what was read.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import glob
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess

STATE = "/var/lib/cloudctl/network"
PENDING = "pending"
"""Directory in ``STATE`` of a change that nobody has confirmed yet."""

RECORD = f"{STATE}/backend.json"
"""The backend that was confirmed last, and its files."""

BACKENDS = ("systemd-networkd", "netplan", "networkmanager", "ifcfg")

DAEMON = {
    "systemd-networkd": "systemd-networkd.service",
    "netplan": "systemd-networkd.service",
    "networkmanager": "NetworkManager.service",
    "ifcfg": "",
}
"""The unit that must run for a backend; for ifcfg the system's own network service."""

SOCKETS = {"systemd-networkd.service": ["systemd-networkd.socket"]}
"""What would start a stopped daemon again."""

PACKAGE = {"netplan": "netplan.io", "networkmanager": "network-manager"}
"""Debian's packages; systemd-networkd is part of systemd."""

PROGRAM = {"systemd-networkd": "networkctl", "netplan": "netplan", "networkmanager": "nmcli", "ifcfg": "ifup"}

SCRIPTS = "/etc/sysconfig/network-scripts"
"""Directory of ``ifcfg`` files; Debian has an ``ifup``, too, that does not read them."""

OURS = (
    "/etc/systemd/network/05-cloudctl-*.network",
    "/etc/systemd/network/05-cloudctl-*.link",
    "/etc/netplan/90-cloudctl.yaml",
    "/etc/NetworkManager/system-connections/cloudctl-*.nmconnection",
    "/etc/NetworkManager/conf.d/05-cloudctl.conf",
    "/etc/systemd/system/*.service.d/05-cloudctl-ports.conf",
    "/etc/cloudctl/name-ports",
)
"""Where cloudctl writes; an ifcfg file has no mark, it is remembered by name in ``RECORD``."""

OTHERS = {
    "systemd-networkd": "/etc/systemd/network/*.network",
    "netplan": "/etc/netplan/*.yaml",
    "networkmanager": "/etc/NetworkManager/system-connections/*",
    "ifcfg": "/etc/sysconfig/network-scripts/ifcfg-*",
    "ifupdown": "/etc/network/interfaces",
    "ifupdown.d": "/etc/network/interfaces.d/*",
}
"""Where an installer or an operator may have configured the same ports."""

CLOUD_INIT = "/etc/cloud/cloud.cfg.d"
CLOUD_INIT_OFF = f"{CLOUD_INIT}/99-cloudctl-network.cfg"

STACKED = {"bridge", "bond", "vlan", "macvlan", "ipvlan", "vxlan", "dummy", "tun", "openvswitch"}


class NetworkError(Exception):
    """The network can't be configured as wanted; ``ref`` names the kind of reason, ``hint`` a way out."""

    def __init__(self, ref: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.ref = ref
        self.hint = hint


# -- decisions ---------------------------------------------------------------------------------


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of an os-release file."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            words = shlex.split(value) if value.count('"') % 2 == 0 and value.count("'") % 2 == 0 else [value]
            found[key] = " ".join(words)
    return found


def choose_backend(
    wanted: str, current: str | None, system: dict[str, str], programs: set[str], running: set[str]
) -> str:
    """Return a node's backend.

    Args:
        wanted: a backend, or auto.
        current: the one that cloudctl has configured the node with, None at the first time. It stays where
            nothing else is set: installing a package must not move a node's network.
        system: its os-release file.
        programs: those of ``PROGRAM`` that are installed, by backend.
        running: the backends whose daemon is active.
    """
    if wanted != "auto":
        return wanted
    if current is not None:
        return current
    families = {system.get("ID", "").lower(), *system.get("ID_LIKE", "").lower().split()}
    major = re.match(r"\d+", system.get("VERSION_ID", ""))
    if families & {"debian", "ubuntu"}:
        if "netplan" in programs:
            return "netplan"
        if "networkmanager" in running and "systemd-networkd" not in running:
            return "networkmanager"
        return "systemd-networkd"
    if families & {"rhel", "centos", "fedora"}:
        # Since 8 the network scripts are an extra that NetworkManager has replaced.
        old = system.get("ID", "").lower() != "fedora" and major is not None and int(major[0]) <= 7
        return "ifcfg" if old else "networkmanager"
    if "networkmanager" in running or ("networkmanager" in programs and "systemd-networkd" not in running):
        return "networkmanager"
    return "systemd-networkd"


def current_backend(recorded: dict, present: list[str]) -> str | None:
    """Return the backend of the last confirmed change; without a record, the one whose files are there."""
    if recorded.get("backend") in BACKENDS:
        return str(recorded["backend"])
    for backend, end in (
        ("systemd-networkd", ".network"),
        ("netplan", ".yaml"),
        ("networkmanager", ".nmconnection"),
    ):
        if any(path.endswith(end) for path in present):
            return backend
    return None


def configures(kind: str, path: str, text: str, ports: list[dict]) -> bool:
    """Whether a file of a kind of ``OTHERS`` configures one of these ports, by name or by MAC address."""
    return any(match_port(kind, path, text, port) for port in ports)


def match_port(kind: str, path: str, text: str, port: dict) -> str:
    """Return how a file of a kind of ``OTHERS`` finds a port: as itself, as one of many, or (empty) not."""
    name, mac = port["name"], port["mac"]
    if kind in ("netplan", "networkmanager"):
        text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    lowered = text.lower()
    if kind == "systemd-networkd":
        return _match_networkd(text, name, mac)
    if kind == "netplan":
        keys = set(re.findall(r"[\"']?([^\s#:{}\[\],\"']+)[\"']?\s*:(?=\s|$)", text))
        if name in keys or (mac and mac in lowered):
            return "itself"
        globs = re.findall(r"\bname:\s*[\"']?([^\s,}\"']+)", text)
        if any(fnmatch.fnmatchcase(name, item) for item in globs):
            return "itself" if name in globs else "many"
        # Which driver a port has is not known here.
        return "many" if "driver" in keys else ""
    if kind == "networkmanager":
        found = re.search(r"(?m)^interface-name=(\S+)", text)
        address = re.search(r"(?m)^mac-address=(\S+)", lowered)
        return "itself" if (found and found[1] == name) or (address and address[1] == mac) else ""
    if kind == "ifcfg":
        values = ifcfg_values(text)
        device = values.get("DEVICE") or os.path.basename(path).partition("-")[2]
        return "itself" if device == name or (mac and values.get("HWADDR", "").lower() == mac) else ""
    return "itself" if without_ports(text, {name}) != text else ""


def _match_networkd(text: str, name: str, mac: str | None) -> str:
    """As ``match_port``; all keys of a match must fit, and one that is not known here is taken to fit."""
    section = re.search(r"(?ms)^\[Match\]\s*$(.*?)(?=^\[|\Z)", text)
    words: dict[str, list[str]] = {}
    for line in (section[1] if section else "").splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.strip().startswith(("#", ";")):
            words.setdefault(key.strip(), []).extend(value.split())
    words = {key: values for key, values in words.items() if values}
    real = words.get("Kind", ["!"])[0].startswith("!")
    if not words or not real or not _among("ether", words.get("Type", ["*"])):
        return ""
    macs = [word.lower() for word in words.get("MACAddress", []) + words.get("PermanentMACAddress", [])]
    if (macs and mac not in macs) or not _among(name, words.get("Name", ["*"])):
        return ""
    return "itself" if macs or name in words.get("Name", []) else "many"


def _among(value: str, globs: list[str]) -> bool:
    """Whether one of systemd's globs matches; an exclamation mark before the first turns them round."""
    turned = globs[0].startswith("!")
    globs = [globs[0].lstrip("!"), *globs[1:]]
    return any(fnmatch.fnmatchcase(value, item) for item in globs) is not turned


def without_ports(text: str, names: set[str]) -> str:
    """Return ifupdown's file without the stanzas of these ports; everything else stays as it is."""
    kept: list[str] = []
    skipping = False
    for line in text.splitlines(keepends=True):
        words = line.split()
        head = words[0] if words else ""
        if head in ("auto", "iface", "mapping", "source", "source-directory") or head.startswith("allow-"):
            skipping = False
            if head in ("auto", "mapping") or head.startswith("allow-"):
                others = [word for word in words[1:] if word not in names]
                if len(others) != len(words) - 1:
                    if others:
                        kept.append(f"{head} {' '.join(others)}\n")
                    continue
            if head == "iface" and len(words) > 1 and words[1] in names:
                skipping = True
        if not skipping:
            kept.append(line)
    return "".join(kept)


def without_blocks(text: str, names: set[str]) -> str:
    """Return netplan's file without these ports, where each of them is a block of lines of its own."""
    kept: list[str] = []
    depth = -1
    for line in text.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip(" "))
        if depth >= 0 and (indent > depth or not line.strip()):
            continue
        key = re.match(r"\s+[\"']?([^\s#:\"']+)[\"']?\s*:(?=\s|$)", line)
        depth = indent if key and key[1] in names else -1
        if depth < 0:
            kept.append(line)
    # A section without a port is no YAML that netplan takes.
    return re.sub(r"(?m)^( *)ethernets:[ ]*\n(?!\1 +\S)", "", "".join(kept))


def conflicts(
    backend: str, files: dict[str, dict[str, str]], ports: list[dict], links: list[dict]
) -> dict[str, str | None]:
    """Return what of others' configuration would fight with ours: path to its new text, None to take it away.

    Args:
        backend: ours.
        files: by kind of ``OTHERS``, path to text; none of them ours.
        ports: the node's.
        links: the node's devices: name, mac, kind, addresses.

    Raises:
        NetworkError: a file makes a port (a bond), or configures one that is not ours and can't be parted.
    """
    found: dict[str, str | None] = {}
    names = {port["name"] for port in ports}
    present = {link["mac"]: link["name"] for link in links if link["kind"] not in STACKED}
    ours = names | {present[port["mac"]] for port in ports if port["mac"] in present}
    made = [{**link, "mac": None} for link in links if link["name"] in names and link["kind"] in STACKED]
    others = []
    for link in links:
        if link["name"] not in ours:
            # What stands on a port may carry its MAC address; a tunnel has another kind of address there.
            own = link["kind"] not in STACKED and re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", link["mac"])
            others.append({**link, "mac": link["mac"] if own else None})
    for kind, texts in files.items():
        for path, text in texts.items():
            if not configures(kind, path, text, ports):
                continue
            if kind.startswith("ifupdown"):
                found[path] = without_ports(text, names)
                _keep_made(kind, path, text, made)
            elif kind == "systemd-networkd" and backend in ("systemd-networkd", "netplan"):
                # networkd takes the first file that matches: what comes after ours does nothing.
                first = "05-cloudctl-" if backend == "systemd-networkd" else "10-netplan-"
                if os.path.basename(path) < first:
                    found[path] = None
            elif kind == "netplan" and backend == "systemd-networkd":
                continue  # becomes 10-netplan-…, after ours
            else:
                found[path] = None
            if found.get(path, "") is None:
                _keep_made(kind, path, text, made)
                found[path] = _for_others(kind, path, text, ports, others)
    return found


def _keep_made(kind: str, path: str, text: str, made: list[dict]) -> None:
    """Refuse to take away what makes a port: networkd's ``.network`` files do not."""
    named = [link["name"] for link in made if match_port(kind, path, text, link) == "itself"]
    if named and kind != "systemd-networkd":
        raise NetworkError(
            "network-backend-refused",
            f"{path} makes {', '.join(named)}, a port of networks.yml, and goes with the network backend",
            "make it with netplan or systemd-networkd, and set its network_backend to systemd-networkd",
        )


def _for_others(kind: str, path: str, text: str, ports: list[dict], others: list[dict]) -> str | None:
    """Return what stays of a file that is in the way: what it says of ports that are not ours."""
    used = []
    for link in others:
        how = match_port(kind, path, text, link)
        # Many are meant where a pattern is: those that it gave nothing don't need it.
        if how == "itself" or (how == "many" and link["kind"] not in STACKED and link["addresses"]):
            used.append(link["name"])
    if not used:
        return None
    if kind == "netplan":
        rest = without_blocks(text, {port["name"] for port in ports})
        whole = all(rest.count(one) == rest.count(two) for one, two in ("{}", "[]"))
        # What stands on a port of ours names it, too.
        words = set(re.split(r"[\s,:\[\]{}\"']+", rest))
        apart = not configures(kind, path, rest, ports) and not words & {port["name"] for port in ports}
        if whole and apart and configures(kind, path, rest, others):
            return rest
    named = ", ".join(used)
    raise NetworkError(
        "network-backend-refused",
        f"{path} configures {named} as well as ports of networks.yml, and goes with the network backend",
        f"on the node, configure {named} in a file of its own, then take it out of {path} or remove that",
    )


def renames(links: list[dict], ports: list[dict]) -> list[tuple[str, str]]:
    """Return the ports that have another name than they should: (present, wanted).

    Args:
        links: the node's devices: name, mac, kind (None for a real port).
        ports: the wanted ones.

    Raises:
        NetworkError: the name is that of another device, which keeps it.
    """
    by_mac = {link["mac"]: link["name"] for link in links if link["kind"] not in STACKED}
    moves = [
        (by_mac[port["mac"]], port["name"])
        for port in ports
        if port["mac"] in by_mac and by_mac[port["mac"]] != port["name"]
    ]
    leaving = {old for old, _new in moves}
    for old, new in moves:
        if new in {link["name"] for link in links} - leaving:
            raise NetworkError(
                "network-port-name",
                f"the port {old} is to be called {new}, but another port has that name",
                "give both ports their MAC address in the inventory, or choose another name",
            )
    return moves


def rename_lines(moves: list[tuple[str, str]]) -> list[str]:
    """Return the commands that rename ports at once, in two steps: two may swap their names."""
    lines = []
    for number, (old, _new) in enumerate(moves):
        lines += [
            f"ip link set dev {shlex.quote(old)} down",
            f"ip link set dev {shlex.quote(old)} name cctl{number}",
        ]
    for number, (_old, new) in enumerate(moves):
        lines += [
            f"ip link set dev cctl{number} name {shlex.quote(new)}",
            f"ip link set dev {shlex.quote(new)} up",
        ]
    return lines


def ifcfg_values(text: str) -> dict[str, str]:
    """Return the variables of an ifcfg file, without quotes and comments."""
    lines = re.findall(r"(?m)^\s*([A-Z_0-9]+)=(.*)$", text)
    return {key: re.sub(r"\s#.*", "", value).strip("\"' \t") for key, value in lines}


def with_hwaddr(path: str, text: str, links: list[dict]) -> str:
    """Return our ifcfg file with the MAC address of its port, where the inventory doesn't say one."""
    name = os.path.basename(path).partition("-")[2]
    macs = [link["mac"] for link in links if link["name"] == name and link["kind"] not in STACKED]
    if not macs or not macs[0] or "HWADDR" in ifcfg_values(text):
        return text
    first = f"DEVICE={name}\n"
    return text.replace(first, f"{first}HWADDR={macs[0].upper()}\n", 1)


def addresses_in(path: str, text: str) -> list[str]:
    """Return the addresses with prefix length that a configuration file gives (any backend's)."""
    if "/ifcfg-" in path:
        values = ifcfg_values(text)
        found = []
        for key, address in values.items():
            if key.startswith("IPADDR"):
                number = key[len("IPADDR") :]
                mask = values.get(f"PREFIX{number}") or values.get(f"NETMASK{number}") or "none"
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.IPv4Interface(f"{address}/{mask}").with_prefixlen)
        return found
    if "/network/interfaces" in path:
        # The mask may be in a line of its own.
        text = re.sub(r"(?m)^(\s*address\s+[\d.]+)\s*\n\s*netmask\s+", r"\1/", text)
        given = re.findall(r"(?m)^\s*address\s+([\d.]+/[\d.]+)", text)
        with contextlib.suppress(ValueError):
            return [ipaddress.IPv4Interface(address).with_prefixlen for address in given]
    return re.findall(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}/\d{1,2}(?!\d)", text)


def gateways_in(text: str) -> list[str]:
    """Return the default routers that a configuration file names (any backend's)."""
    start = r"(?:^\s*gateway\s*=\s*|^\s*gateway\s+|\bgateway4:\s*|\bvia:\s*|^address\d*=[^,\n]+,)"
    return re.findall(rf"(?mi){start}[\"']?((?:\d{{1,3}}\.){{3}}\d{{1,3}})", text)


def leftovers(
    before: dict[str, str], after: dict[str, str], links: list[dict], kept: frozenset[str] = frozenset()
) -> list[str]:
    """Return commands that remove what only the files before gave; daemons keep it, for others' sake.

    Addresses that neither set of files knows (a virtual one) stay.

    Args:
        before, after: path to text, of the files that change.
        links: name, addresses (with prefix length).
        kept: addresses and routers that stay: files that don't change give them.
    """
    old = {address for path, text in before.items() for address in addresses_in(path, text)}
    new = {address for path, text in after.items() for address in addresses_in(path, text)}
    routers = {router for text in before.values() for router in gateways_in(text)}
    routers -= {router for text in after.values() for router in gateways_in(text)} | kept
    lines = [f"ip route del default via {router} 2>/dev/null || true" for router in sorted(routers)]
    for address in sorted(old - new - kept):
        for link in links:
            if address in link["addresses"]:
                # Else the kernel takes the new address away with the older one of the same subnet.
                promote = f"/proc/sys/net/ipv4/conf/{link['name']}/promote_secondaries"
                lines.append(f"echo 1 >{shlex.quote(promote)} || true")
                lines.append(f"ip address del {address} dev {shlex.quote(link['name'])} 2>/dev/null || true")
    return lines


def undo_lines(
    before: dict[str, str],
    after: dict[str, str],
    ports: list[dict],
    links: list[dict],
    routes: list[dict],
    reload: list[str],
) -> list[str]:
    """Return the commands with which a node whose old files are back takes them up.

    Args:
        before, after: path to text, of the files that change.
        ports: the wanted ones, by the names that they had before; the change gives them their addresses.
        links: name, addresses: as they were before the change. Those stay, whoever gave them: an installer's
            file that never changed, an operator by hand.
        routes: the default routes, as ``ip`` told them before the change. They stay as well.
        reload: the commands that make whatever read the old files read them again.
    """
    given = {address for path, text in after.items() for address in addresses_in(path, text)}
    had = {(link["name"], address) for link in links for address in link["addresses"]}
    new = [
        {"name": port["name"], "addresses": [port["address"]]}
        for port in ports
        if port["address"] in given and (port["name"], port["address"]) not in had
    ]
    first = [
        # An address that is on another port now goes from there first.
        f"ip address del {entry['addresses'][0]} dev {shlex.quote(entry['name'])} 2>/dev/null || true"
        for entry in new
    ]
    kept = frozenset(str(route["gateway"]) for route in routes)
    ours = {port["name"] for port in ports}
    had_here = [link for link in links if link["name"] in ours]
    return [*first, *reload, *leftovers(after, before, new, kept), *as_it_was(had_here, routes)]


def as_it_was(links: list[dict], routes: list[dict]) -> list[str]:
    """Return commands that give ports and default routes back what nothing has given them back yet.

    Args:
        links: name, addresses. A virtual address (/32) may be on another node by now, and stays there.
        routes: as ``ip`` tells them.
    """
    lines = []
    for link in links:
        name = shlex.quote(link["name"])
        addresses = [address for address in link["addresses"] if not address.endswith("/32")]
        lines += [f"ip link set dev {name} up"] if addresses else []
        # Not replaced: a lease would lose its end.
        lines += [f"ip address add {address} dev {name} 2>/dev/null || true" for address in addresses]
    for route in routes:
        words = ["ip", "route", "replace", "default", "via", route["gateway"], "dev", route["dev"]]
        for option, key in (("proto", "protocol"), ("metric", "metric"), ("src", "prefsrc")):
            words += [option, str(route[key])] if key in route else []
        words += ["onlink"] if "onlink" in route.get("flags", []) else []
        lines.append(f"{shlex.join(words)} || true")
    return lines


def moved(before: dict[str, str], ports: list[dict], links: list[dict]) -> list[str]:
    """Return commands that take an address from the port that has it where another one shall have it."""
    wanted = {port["address"]: port["name"] for port in ports if port["address"]}
    return [
        f"ip address del {address} dev {shlex.quote(link['name'])} 2>/dev/null || true"
        for link in links
        for address in link["addresses"]
        if address in wanted
        and wanted[address] != link["name"]
        and any(address in addresses_in(path, text) for path, text in before.items())
    ]


def daemon_changes(
    backend: str, remaining: dict[str, list[str]], states: dict[str, dict]
) -> list[tuple[str, str]]:
    """Return what happens to the daemons: (stop or start, unit), stops first.

    A daemon of another backend stays where it configures ports that are not ours.

    Args:
        backend: the one that is to configure the ports.
        remaining: by backend, others' files that stay.
        states: by unit: active, enabled (both bool), for those that exist.
    """
    ours = DAEMON[backend]
    users = {
        "systemd-networkd.service": ("systemd-networkd", "netplan"),
        "NetworkManager.service": ("networkmanager", "ifcfg"),
    }
    changes = []
    for unit, kinds in users.items():
        if unit == ours or backend == "ifcfg" or any(remaining.get(kind) for kind in kinds):
            continue
        state = states.get(unit) or {}
        if state.get("active") or state.get("enabled"):
            changes.append(("stop", unit))
    state = states.get(ours) or {}
    if ours and not (state.get("active") and state.get("enabled")):
        changes.append(("start", ours))
    return changes


# -- scripts -----------------------------------------------------------------------------------


def daemon_lines(changes: list[tuple[str, str]], option: str = "") -> list[str]:
    """Return the commands for ``daemon_changes``.

    Args:
        option: of systemctl's start and stop, for example to not wait for them.
    """
    lines = []
    for action, unit in changes:
        units = " ".join([unit, *SOCKETS.get(unit, [])])
        if action == "stop":
            lines += [f"systemctl disable --quiet {unit} || true", f"systemctl stop {option} {units} || true"]
        else:
            lines += [
                f"systemctl unmask --quiet {unit} || true",
                f"systemctl enable --quiet {unit}",
                f"systemctl start {option} {unit}",
            ]
    return [line.replace("  ", " ") for line in lines]


def daemons_back(changes: list[tuple[str, str]], states: dict[str, dict]) -> list[tuple[str, str]]:
    """Return the changes that undo changes of daemons.

    Args:
        states: by unit, as they were before: active, enabled.
    """
    back = []
    for action, unit in reversed(changes):
        state = states.get(unit) or {}
        was = bool(state.get("active"))
        if was != (action == "start"):
            back.append(("start" if was else "stop", unit))
    return sorted(back, key=lambda change: change[0] != "stop")


def reload_lines(backend: str, ports: list[str]) -> list[str]:
    """Return the commands by which a backend takes its files up, for these ports."""
    if backend in ("systemd-networkd", "netplan"):
        return [*_READ, *_networkd_lines(ports)]
    if backend == "networkmanager":
        return [*_READ, *_NETWORKMANAGER, *(f"up cloudctl-{name} {shlex.quote(name)}" for name in ports)]
    return [*_READ, *_ifcfg_lines(ports)]


_READ = (
    "udevadm control --reload 2>/dev/null || true",
    "systemctl daemon-reload",
    # What netplan wrote into /run from a file that is gone goes too.
    "if command -v netplan >/dev/null; then netplan generate; fi",
)
_NETWORKMANAGER = ("nmcli general reload conf", "nmcli connection reload")


def _networkd_lines(ports: list[str]) -> list[str]:
    lines = ["networkctl reload"]
    for name in map(shlex.quote, ports):
        lines.append(f"if [ -e /sys/class/net/{name} ]; then networkctl reconfigure {name}; fi")
    return [*lines, "settle"]


def _ifcfg_lines(ports: list[str]) -> list[str]:
    lines = [f"ifdown {shlex.quote(name)} || true" for name in ports]
    return lines + [f"ifup {shlex.quote(name)}" for name in ports]


def back_lines(
    before: dict[str, str], ports: list[str], units: dict[str, dict], profiles: dict[str, str]
) -> list[str]:
    """Return the commands by which whatever read the old files takes them up again; more than one may have.

    Args:
        before: path to text, of the files that change.
        ports: their names before the change.
        units: by unit, as they were before: active.
        profiles: NetworkManager's profile (its UUID) of each port that it configured.
    """
    lines = list(_READ)
    if units.get(DAEMON["networkmanager"], {}).get("active"):
        # It leaves the ports of the profiles that are gone after it has answered.
        lines += [*_NETWORKMANAGER, "sleep 1"]
        lines += [
            f"nmcli --wait 15 connection up uuid {shlex.quote(profiles[name])}"
            for name in ports
            if name in profiles
        ]
    if units.get(DAEMON["systemd-networkd"], {}).get("active"):
        lines += _networkd_lines(ports)
    scripts = [os.path.basename(path).partition("-")[2] for path in before if "/ifcfg-" in path]
    lines += _ifcfg_lines([name for name in scripts if name not in profiles])
    stanzas = [text for path, text in before.items() if "/network/interfaces" in path]
    for name in ports:
        if any(without_ports(text, {name}) != text for text in stanzas):
            # It says that the port is up, and some of what it does to it is there already.
            lines.append(f"ifup --force --ignore-errors {shlex.quote(name)}")
    return lines


FUNCTIONS = """\
# networkd takes its files up after it has answered.
settle() {
  sleep 0.5
  tries=0
  state="^ADMIN_STATE=(pending|initialized|configuring)$"
  while [ $tries -lt 50 ] && grep -qsE "$state" /run/systemd/netif/links/*; do
    tries=$((tries + 1))
    sleep 0.2
  done
}
# A port without a cable keeps its profile for later; any other must come up.
up() {
  if nmcli --wait 15 connection up id "$1"; then return 0; fi
  [ "$(cat "/sys/class/net/$2/carrier" 2>/dev/null || echo 0)" != 1 ]
}
"""


def apply_script(lines: list[str]) -> str:
    """Return the script that takes the new files up, and puts the old ones back where a command fails."""
    body = "\n".join(lines)
    return f"""\
#!/bin/sh
# Takes the new network up. Written by cloudctl; {STATE}/pending/undo takes it back.
cd {STATE}/pending || exit 0
touch started
{FUNCTIONS}
(
set -ex
{body}
) >log 2>&1
code=$?
echo "$code $(cut -d" " -f1 /proc/uptime)" >result.new && mv result.new result
[ "$code" = 0 ] || exec sh {STATE}/pending/undo failed
"""


def undo_script(
    saved: list[dict], daemons: list[tuple[str, str]], renamed: list[tuple[str, str]], lines: list[str]
) -> str:
    """Return the script that puts the old files back and takes them up.

    It is run by the timer, at once when the new files can't be taken up, at a boot before the confirmation,
    or by hand. Whoever moves the directory first wins: the script, or the confirmation.

    Args:
        saved: path, and copy (its name in the directory), None for a file that was not there.
        daemons: what is to be started and stopped for the old files.
        renamed: the ports that were renamed: (old name, new name).
        lines: the commands that take the old files up.
    """
    restore = []
    for entry in saved:
        path = shlex.quote(entry["path"])
        if entry["copy"] is None:
            restore.append(f"rm -f {path}")
        else:
            restore.append(f"mkdir -p {shlex.quote(os.path.dirname(entry['path']))}")
            restore.append(f"cp -p {entry['copy']} {path}.cloudctl-old && mv {path}.cloudctl-old {path}")
    names_back = [f"  {line}" for line in rename_lines([(new, old) for old, new in renamed])]
    parts = {
        "restore": "\n".join(restore),
        "boot": "\n".join(f"  {line}" for line in daemon_lines(daemons, "--no-block")) or "  :",
        "names": "\n".join(names_back) or "  :",
        "daemons": "\n".join(f"  {line}" for line in daemon_lines(daemons)) or "  :",
        "lines": "\n".join(f"  {line}" for line in lines) or "  :",
    }
    return f"""\
#!/bin/sh
# Puts the old network back. Written by cloudctl; run by a timer unless the change is confirmed.
# usage: undo timer|failed|refused|hand|boot  (boot: before anything configures the network)
mv {STATE}/pending {STATE}/undone 2>/dev/null || exit 0
cd {STATE}/undone || exit 1
if [ "$1" != failed ]; then
  systemctl stop cloudctl-network-apply.timer
  # Every process of it: what goes on would change the old network.
  systemctl kill --signal=KILL cloudctl-network-apply.service
  systemctl stop cloudctl-network-apply.service
fi
{FUNCTIONS}
(
set -x
{parts["restore"]}
sync
if [ "$1" = boot ]; then
  if command -v netplan >/dev/null; then netplan generate; fi
  # Ports may have their new names already.
  if udevadm control --reload; then
    udevadm trigger --action=add --subsystem-match=net
    udevadm settle --timeout=15
  fi
{parts["boot"]}
else
if [ -e started ]; then
{parts["names"]}
fi
{parts["daemons"]}
{parts["lines"]}
fi
) >undo.log 2>&1
echo "${{1:-hand}}" >reason
systemctl disable --quiet cloudctl-network-boot.service
[ "$1" = timer ] || systemctl stop cloudctl-network-undo.timer
exit 0
"""


BOOT_UNIT = f"""\
[Unit]
Description=Put the old network back: the node went down before the new one was confirmed
DefaultDependencies=no
ConditionPathExists={STATE}/pending/undo
# Not local-fs.target: a mount whose device udev is still to find must not wait for this, nor this for it.
RequiresMountsFor={STATE} /etc
After=systemd-remount-fs.service systemd-udevd.service systemd-udev-trigger.service
Before=network-pre.target systemd-networkd.service NetworkManager.service networking.service network.service
Wants=network-pre.target

[Service]
Type=oneshot
ExecStart=/bin/sh {STATE}/pending/undo boot

[Install]
WantedBy=sysinit.target
"""


# -- reading -----------------------------------------------------------------------------------


def read_text(path: str) -> str | None:
    """Return a file's text, None where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return None


def read_record() -> dict:
    """Return what the last confirmed change wrote down."""
    try:
        found = json.loads(read_text(RECORD) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_links() -> list[dict]:
    """Return the node's network devices: name, mac, kind, addresses."""
    done = subprocess.run(
        ["ip", "-details", "-json", "address", "show"], capture_output=True, text=True, check=False
    )
    try:
        rows = json.loads(done.stdout or "[]")
    except ValueError:
        rows = []
    return [
        {
            "name": row["ifname"],
            "mac": str(row.get("address", "")).lower(),
            "kind": (row.get("linkinfo") or {}).get("info_kind"),
            "addresses": [
                f"{entry['local']}/{entry['prefixlen']}"
                for entry in row.get("addr_info") or []
                if entry.get("family") == "inet"
            ],
        }
        for row in rows
        if row and row.get("ifname") != "lo"
    ]


def read_routes() -> list[dict]:
    """Return the default routes as ``ip`` tells them, of those that go by one router."""
    done = subprocess.run(
        ["ip", "-4", "-json", "route", "show", "default"], capture_output=True, text=True, check=False
    )
    try:
        rows = json.loads(done.stdout or "[]")
    except ValueError:
        return []
    return [row for row in rows if row.get("gateway") and row.get("dev")]


def read_profiles() -> dict[str, str]:
    """Return the UUID of the profile by which NetworkManager configures each port that it does configure."""
    try:
        done = subprocess.run(
            ["nmcli", "-t", "-f", "DEVICE,STATE,CON-UUID", "device", "status"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_profiles(done.stdout)


def parse_profiles(text: str) -> dict[str, str]:
    """Return device to UUID from nmcli's device status; what others configured is connected externally."""
    rows = [line.split(":") for line in text.splitlines() if line.count(":") == 2]
    return {
        device: uuid
        for device, state, uuid in rows
        if state.startswith("connected") and "externally" not in state and uuid
    }


def read_units() -> dict[str, dict]:
    """Return the backends' daemons that exist: active, enabled."""
    names = sorted({unit for unit in DAEMON.values() if unit})
    done = subprocess.run(
        ["systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for block in done.stdout.split("\n\n"):
        state = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if state.get("LoadState") in ("loaded", "masked"):
            found[state["Id"]] = {
                "active": state.get("ActiveState") in ("active", "activating", "reloading"),
                "enabled": state.get("UnitFileState") == "enabled",
            }
    return found


def compare(network: dict) -> dict:
    """Return what a node's network lacks, and everything that a change needs to know.

    Args:
        network: as rendered: wanted, ports, backends.

    Returns:
        ``backend``, ``from`` (None at the first time), ``pending`` (a change that a run which was interrupted
        did not confirm: the node is about to take it back), ``packages``, ``files`` (changes as of all other
        files, each with its difference), ``daemons``, ``renames``, and ``texts``: path to the wanted text
        (None to remove) of what changes.

    Raises:
        NetworkError: the node can't be configured like this.
    """
    present = sorted({path for pattern in OURS for path in glob.glob(pattern)})
    record = read_record()
    pending = os.path.isdir(f"{STATE}/{PENDING}")
    units = read_units()
    programs = {name for name, program in PROGRAM.items() if shutil.which(program, path=_PATH)}
    if not os.path.isdir(SCRIPTS):
        programs.discard("ifcfg")
    running = {
        name for name, unit in DAEMON.items() if units.get(unit, {}).get("active") and name in programs
    }
    current = current_backend(record, present)
    system = parse_os_release(read_text("/etc/os-release") or "")
    backend = choose_backend(network["wanted"], current, system, programs, running)
    rendered = network["backends"][backend]
    if "refused" in rendered:
        raise NetworkError(
            "network-backend-refused",
            f"the network backend {backend} can't be used here: {rendered['refused']}",
            "set network.backend, or the node's network_backend, to systemd-networkd or netplan",
        )
    packages = []
    if backend not in programs:
        packages = [PACKAGE[backend]] if backend in PACKAGE and shutil.which("apt-get", path=_PATH) else []
        if not packages:
            raise NetworkError(
                "network-backend-missing",
                f"the network backend {backend} needs {PROGRAM[backend]}"
                + (f" with {SCRIPTS}" if backend == "ifcfg" else "")
                + ", which is not on this node",
                "choose another backend for it: network_backend in the inventory",
            )
    wanted: dict[str, str] = {entry["path"]: entry["content"] for entry in rendered["files"]}
    modes = {entry["path"]: int(entry["mode"], 8) for entry in rendered["files"]}
    links = read_links()
    if backend == "ifcfg":
        wanted = {path: with_hwaddr(path, text, links) for path, text in wanted.items()}
    if os.path.isdir(CLOUD_INIT):
        wanted[CLOUD_INIT_OFF] = (
            "# Written by cloudctl: it configures the network.\nnetwork: {config: disabled}\n"
        )
        modes[CLOUD_INIT_OFF] = 0o644
    ours = {*present, *(str(path) for path in record.get("files", []))}
    texts: dict[str, str | None] = {**dict.fromkeys(sorted(ours - wanted.keys())), **wanted}
    others = {
        kind: {
            path: text
            for path in sorted(glob.glob(pattern))
            if path not in texts and (text := read_text(path)) is not None
        }
        for kind, pattern in OTHERS.items()
    }
    fighting = conflicts(backend, others, network["ports"], links)
    texts.update(fighting)
    files = []
    for path, text in texts.items():
        change = file_change(path, text, modes.get(path))
        if change:
            files.append(change)
    gone = {path for path, text in fighting.items() if text is None}
    remaining = {kind: [path for path in paths if path not in gone] for kind, paths in others.items()}
    # An installer's file for our ports that comes after ours does nothing, and is no reason for a daemon.
    for kind in ("systemd-networkd", "netplan"):
        remaining[kind] = [
            path
            for path in remaining[kind]
            if not configures(kind, path, fighting.get(path) or others[kind][path], network["ports"])
        ]
    return {
        "backend": backend,
        # What nobody confirmed is not the node's network yet.
        "from": record.get("backend") if pending else current,
        "pending": pending,
        "packages": packages,
        "files": files,
        "daemons": daemon_changes(backend, remaining, units),
        "renames": renames(links, network["ports"]),
        "texts": {change["path"]: texts[change["path"]] for change in files},
        "modes": modes,
        "links": links,
        "units": units,
        "wanted": sorted(wanted),
        "ours": sorted(ours),
    }


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def file_change(path: str, text: str | None, mode: int | None) -> dict | None:
    """Return how a file differs from what is wanted, None where it does not."""
    present = read_text(path)
    base = {"path": path, "area": "network", "container": ""}
    if text is None:
        if present is None:
            return None
        return {**base, "action": "remove", "diff": difference(present, "")}
    if present is None:
        return {**base, "action": "create", "diff": difference("", text)}
    if present != text:
        return {**base, "action": "change", "diff": difference(present, text)}
    status = os.stat(path)
    if mode is not None and (status.st_mode & 0o7777 != mode or status.st_uid != 0):
        shown = [f"-mode {status.st_mode & 0o7777:04o} uid {status.st_uid}", f"+mode {mode:04o} uid 0"]
        return {**base, "action": "change", "diff": shown}
    return None


def difference(before: str, after: str) -> list[str]:
    """Return a unified difference without its head."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "current", "wanted", n=1, lineterm=""
    )
    return list(lines)[2:202]


def is_change(found: dict) -> bool:
    """Whether a comparison found anything to do."""
    return any(found[key] for key in ("pending", "packages", "files", "daemons", "renames"))


def public(found: dict) -> dict:
    """Return what the controller needs of a comparison."""
    return {
        key: found[key] for key in ("backend", "from", "pending", "packages", "files", "daemons", "renames")
    }
