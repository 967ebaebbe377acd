"""Which node pings which, and what the answers mean."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloudctl.netcheck.collect import explain_failure
from cloudctl.netcheck.pairs import configured_only, culprits, failures, pairs
from cloudctl.site.model import Interface, Network, Node

NETWORKS = {
    "management": Network("management", IPv4Network("10.0.1.0/24")),
    "tenant": Network("tenant", IPv4Network("10.0.2.0/24"), mtu=9000),
    "external": Network("external", None),
}


def node(number: int, *, tenant: bool = True, mtu: int = 9000) -> Node:
    interfaces = {"eth0": Interface("eth0", "management", f"10.0.1.{number}")}
    if tenant:
        interfaces["eth1"] = Interface("eth1", "tenant", f"10.0.2.{number}", mtu=mtu)
    interfaces["eth2"] = Interface("eth2", "external")
    return Node(f"n{number}", ("compute",), f"10.0.1.{number}", interfaces)


def test_all_pairs_in_both_directions_where_both_have_an_address() -> None:
    nodes = {n.name: n for n in (node(1), node(2), node(3, tenant=False))}
    wanted = pairs(nodes, NETWORKS)
    assert {(p["network"], p["node"]) for p in wanted["n1"]} == {
        ("management", "n2"), ("management", "n3"), ("tenant", "n2"),
    }  # fmt: skip
    assert wanted["n1"][-1] == {
        "network": "tenant", "node": "n2", "source": "10.0.2.1", "address": "10.0.2.2", "mtu": 9000,
    }  # fmt: skip
    assert [p["network"] for p in wanted["n3"]] == ["management", "management"]


def test_a_port_with_a_smaller_mtu_on_purpose_is_respected() -> None:
    nodes = {n.name: n for n in (node(1), node(2, mtu=4000))}
    wanted = pairs(nodes, NETWORKS)
    assert {p["mtu"] for peers in wanted.values() for p in peers if p["network"] == "tenant"} == {4000}


@given(st.integers(min_value=0, max_value=12))
def test_number_of_pings(count: int) -> None:
    nodes = {f"n{number}": node(number) for number in range(1, count + 1)}
    assert sum(len(peers) for peers in pairs(nodes, NETWORKS).values()) == 2 * count * max(count - 1, 0)


def answers(names: str, bad: Any, *, mtus: dict[str, int] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return ping answers of a network; ``bad(a, b)`` says None, 'mtu', 'cut' or 'unconfigured'."""
    found: dict[str, list[dict[str, Any]]] = {}
    for a in names:
        for b in names:
            if a == b:
                continue
            kind = bad(a, b)
            found.setdefault(a, []).append(
                {
                    "network": "tenant",
                    "node": b,
                    "mtu": 9000,
                    "full": kind is None,
                    "small": None if kind in (None, "unconfigured") else kind == "mtu",
                    "configured": kind != "unconfigured",
                    "interface": "" if kind == "unconfigured" else "eth1",
                    "interface_mtu": (mtus or {}).get(a, 9000),
                }
            )
    return found


def test_all_well() -> None:
    good = answers("abc", lambda a, b: None)
    assert failures(good) == [] and culprits(good) == []


def test_each_failing_pair_is_named() -> None:
    bad = answers("abc", lambda a, b: "mtu" if "c" in (a, b) else None)
    assert [str(failure) for failure in failures(bad)] == [
        "tenant: a -> c: packets of 9000 bytes do not pass, small ones do",
        "tenant: b -> c: packets of 9000 bytes do not pass, small ones do",
        "tenant: c -> a: packets of 9000 bytes do not pass, small ones do",
        "tenant: c -> b: packets of 9000 bytes do not pass, small ones do",
    ]


def test_port_with_too_small_an_mtu_is_the_one_cause() -> None:
    bad = answers("abc", lambda a, b: "mtu" if "c" in (a, b) else None, mtus={"c": 1500})
    (cause,) = culprits(bad)
    assert (cause.node, cause.kind, cause.pairs) == ("c", "mtu", 4)
    assert cause.detail == "eth1 has MTU 1500, 9000 is wanted"


def test_small_mtu_is_found_even_with_two_nodes_only() -> None:
    bad = answers("ab", lambda a, b: "mtu", mtus={"b": 1500})
    assert [cause.node for cause in culprits(bad)] == ["b"]


def test_switch_port_with_too_small_an_mtu() -> None:
    (cause,) = culprits(answers("abcd", lambda a, b: "mtu" if "b" in (a, b) else None))
    assert cause.node == "b" and "between it and a, c, d" in cause.detail


def test_one_cut_pair_blames_no_node() -> None:
    (cause,) = culprits(answers("abc", lambda a, b: "cut" if {a, b} == {"a", "b"} else None))
    assert cause.node == "" and cause.detail == "between a and b: nothing passes"


def test_two_causes_are_told_apart() -> None:
    def bad(a: str, b: str) -> str | None:
        return "cut" if "a" in (a, b) else "mtu" if "d" in (a, b) else None

    assert [(cause.node, cause.kind) for cause in culprits(answers("abcde", bad))] == [
        ("a", "cut"),
        ("d", "mtu"),
    ]


def test_unconfigured_node() -> None:
    def bad(a: str, b: str) -> str | None:
        return "unconfigured" if a == "c" else "cut" if b == "c" else None

    assert [(cause.node, cause.kind) for cause in culprits(answers("abc", bad))] == [("c", "unconfigured")]
    assert failures(configured_only(answers("abc", bad))) == []


def test_every_unconfigured_node_is_named() -> None:
    found = culprits(answers("abc", lambda a, b: "unconfigured"))
    assert {cause.node for cause in found} == {"a", "b", "c"}


def test_failures_of_a_reached_node_are_told_apart() -> None:
    assert explain_failure("n", "t", "Missing sudo password").ref == "become-failed"
    assert explain_failure("n", "t", "/bin/sh: 1: /usr/bin/python3: not found").ref == "python-missing"
    assert explain_failure("n", "t", "x").ref == "node-unread"
