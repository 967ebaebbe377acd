"""The site as the rest of cloudctl sees it: plain frozen values, already checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from cloudctl.errors import ConfigError

_REQUIRED = object()


@dataclass(frozen=True)
class Network:
    """One of the site's networks.

    Attributes:
        name: management, tenant, storage, replication, api or external.
        cidr: its address range; None where nodes carry no address (a provider network).
        gateway: the router's address.
        mtu: bytes.
        pool: first and last address handed out as floating IPs (external only).
    """

    name: str
    cidr: IPv4Network | None
    gateway: str | None = None
    mtu: int = 1500
    pool: tuple[str, str] | None = None

    @property
    def prefix(self) -> int | None:
        """Length of the network prefix in bits."""
        return self.cidr.prefixlen if self.cidr else None


@dataclass(frozen=True)
class Interface:
    """A node's port on a network.

    Attributes:
        name: the kernel's name (eth0).
        network: name of the network.
        address: without prefix; None when unnumbered.
        mac: lower case, when the port is to be found by it.
        mtu: bytes.
    """

    name: str
    network: str
    address: str | None = None
    mac: str | None = None
    mtu: int = 1500


@dataclass(frozen=True)
class Node:
    """A machine of the inventory.

    Attributes:
        name: inventory name, used as host name.
        groups: every group it is in, through children too, ``all`` left out.
        address: on the management network.
        interfaces: by kernel name.
        vars: its merged inventory variables.
    """

    name: str
    groups: tuple[str, ...]
    address: str
    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    vars: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def interface_on(self, network: str) -> Interface | None:
        """Return the node's port on a network, None when it has none."""
        for interface in self.interfaces.values():
            if interface.network == network:
                return interface
        return None

    def address_on(self, network: str) -> str | None:
        """Return the node's address on a network, None when it has none."""
        interface = self.interface_on(network)
        if interface is not None and interface.address is not None:
            return interface.address
        return self.address if network == "management" else None


class Settings(Mapping[str, Any]):
    """The site's settings with every default filled in; ``get("ceph.pools.size")`` reads one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def get(self, path: str, default: Any = _REQUIRED) -> Any:
        """Return a setting.

        Args:
            path: keys joined by dots; a section's path returns the section as a dict.
            default: returned when there is no such setting.

        Raises:
            ConfigError: no such setting, and no default given.
        """
        value: Any = self._values
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                if default is _REQUIRED:
                    raise ConfigError(
                        "unknown-setting", f"there is no setting '{path}'", where="settings.yml"
                    )
                return default
            value = value[key]
        return value

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({dict(self._values)!r})"


class Secrets(Mapping[str, str]):
    """The site's secrets; never shows a value when printed."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise MissingSecret(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Secrets: {len(self._values)}>"


class MissingSecret(ConfigError, KeyError):
    """A secret was asked for that the site does not have (also a KeyError, as a Mapping promises)."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "secret-missing",
            f"the site has no secret '{name}'",
            where="secrets.yml",
            hint="`cloudctl secrets generate` makes what is missing",
        )

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Site:
    """A site, read and checked.

    Attributes:
        path: its directory, absolute.
        name: the cloud's name.
        networks: by name.
        nodes: by name, in the order of the inventory.
        settings: with defaults.
        secrets: by name; empty when read without secrets.
        images: content of images.lock.json: {image: {reference, tag, size}}.
    """

    path: Path
    name: str
    networks: Mapping[str, Network]
    nodes: Mapping[str, Node]
    settings: Settings
    secrets: Mapping[str, str] = field(default_factory=Secrets, repr=False)
    images: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def get(self, path: str, default: Any = _REQUIRED) -> Any:
        """Return a setting; see ``Settings.get``."""
        return self.settings.get(path) if default is _REQUIRED else self.settings.get(path, default)

    def group(self, name: str) -> list[Node]:
        """Return a group's nodes in the order of the inventory (a new list; empty for an unknown group)."""
        if name == "all":
            return list(self.nodes.values())
        return list(self._groups.get(name, ()))

    @cached_property
    def _groups(self) -> dict[str, list[Node]]:
        groups: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for group in node.groups:
                groups.setdefault(group, []).append(node)
        return groups
