"""Which node pings which, and what the answers mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudctl.site.model import Network, Node

Peers = dict[str, list[dict[str, Any]]]
"""By node, what it pings: ``{network, node, source, address, mtu}``."""


def pairs(nodes: Mapping[str, Node], networks: Mapping[str, Network]) -> Peers:
    """Return what each node pings: on every network all others that have an address there.

    Both directions of each pair are tried, since each direction may have its own fault. The MTU of a pair
    is the smaller of its two ports'.
    """
    wanted: Peers = {}
    for network in networks:
        ports = {name: node.interface_on(network) for name, node in nodes.items()}
        ends = {
            name: (address, port.mtu if port is not None else networks[network].mtu)
            for name, node in nodes.items()
            if (address := node.address_on(network)) is not None
            for port in (ports[name],)
        }
        for name, (source, mtu) in ends.items():
            for other, (address, other_mtu) in ends.items():
                if other != name:
                    wanted.setdefault(name, []).append(
                        {
                            "network": network,
                            "node": other,
                            "source": source,
                            "address": address,
                            "mtu": min(mtu, other_mtu),
                        }
                    )
    return wanted


@dataclass(frozen=True)
class PairFailure:
    """One direction of a pair that fails.

    Attributes:
        network, source, destination: names.
        mtu: bytes that must pass.
        kind: ``mtu`` (only small packets pass), ``cut`` (nothing passes) or ``unconfigured`` (the source has
            no such address).
    """

    network: str
    source: str
    destination: str
    mtu: int
    kind: str

    def __str__(self) -> str:
        text = {
            "mtu": f"packets of {self.mtu} bytes do not pass, small ones do",
            "cut": "nothing passes",
            "unconfigured": f"{self.source} has no address there yet",
        }[self.kind]
        return f"{self.network}: {self.source} -> {self.destination}: {text}"


@dataclass(frozen=True)
class Culprit:
    """What most likely is behind failing pairs.

    Attributes:
        network: its name.
        node: the node all failing pairs have in common; '' when there is none.
        kind: as of ``PairFailure``.
        pairs: how many directions fail by it.
        detail: what was seen on the node.
    """

    network: str
    node: str
    kind: str
    pairs: int
    detail: str = ""


Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""By node, the list that ``cloudctl_ping`` returned."""


def configured_only(answers: Answers) -> dict[str, list[Mapping[str, Any]]]:
    """Return the answers of those pairs of which both ends have their address already."""
    bare = _without_address(answers)
    return {
        node: [p for p in peers if p["configured"] and (p["node"], p["network"]) not in bare]
        for node, peers in answers.items()
    }


def _without_address(answers: Answers) -> set[tuple[str, str]]:
    return {
        (node, peer["network"]) for node, peers in answers.items() for peer in peers if not peer["configured"]
    }


def failures(answers: Answers) -> list[PairFailure]:
    """Return the directions that fail, in a stable order."""
    found = []
    for source, peers in answers.items():
        for peer in peers:
            if peer["full"]:
                continue
            kind = "unconfigured" if not peer["configured"] else "mtu" if peer["small"] else "cut"
            found.append(PairFailure(peer["network"], source, peer["node"], int(peer["mtu"]), kind))
    return sorted(found, key=lambda f: (f.network, f.source, f.destination))


def culprits(answers: Answers) -> list[Culprit]:
    """Explain the failing pairs by as few causes as possible.

    A node whose own port has too small an MTU explains all its pairs; otherwise the node that takes part in
    most failures (at least two pairs) does; what is left is told without a node.
    """
    bare = _without_address(answers)
    # That nobody reaches a node without an address is no cause of its own.
    left = [
        f for f in failures(answers) if f.kind == "unconfigured" or (f.destination, f.network) not in bare
    ]
    ports = {
        (node, peer["network"]): (str(peer["interface"]), int(peer["interface_mtu"]))
        for node, peers in answers.items()
        for peer in peers
        if peer["configured"]
    }
    found: list[Culprit] = []
    for network in sorted({failure.network for failure in left}):
        for kind in ("unconfigured", "cut", "mtu"):
            remaining = [f for f in left if f.network == network and f.kind == kind]
            while remaining:
                counts: dict[str, int] = {}
                for failure in remaining:
                    ends = (
                        (failure.source,) if kind == "unconfigured" else (failure.source, failure.destination)
                    )
                    for node in ends:
                        counts[node] = counts.get(node, 0) + 1
                wanted = remaining[0].mtu
                small = [
                    n
                    for n in counts
                    if kind == "mtu" and 0 < ports.get((n, network), ("", wanted))[1] < wanted
                ]
                node = max(small or counts, key=lambda name: counts[name])
                explained = [
                    f
                    for f in remaining
                    if f.source == node or (f.destination == node and kind != "unconfigured")
                ]
                others = {n for f in explained for n in (f.source, f.destination)} - {node}
                interface, mtu = ports.get((node, network), ("", 0))
                if node in small:
                    detail = f"{interface} has MTU {mtu}, {wanted} is wanted"
                elif kind == "mtu":
                    detail = f"packets of {wanted} bytes do not pass, small ones do"
                elif kind == "cut":
                    detail = "nothing passes"
                else:
                    detail = "it has no address there"
                blamed = node if node in small or kind == "unconfigured" or len(others) > 1 else ""
                if not blamed:
                    pair = " and ".join(sorted({node, *others}))
                    detail = f"between {pair}: {detail}"
                elif kind != "unconfigured" and node not in small:
                    detail += f" between it and {', '.join(sorted(others))}"
                found.append(Culprit(network, blamed, kind, len(explained), detail))
                remaining = [f for f in remaining if f not in explained]
    return found
