"""Nodes on their way through the inventory: every other line stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_support import make_site

from cloudctl.errors import ConfigError, UsageError
from cloudctl.node.future import future_site
from cloudctl.node.inventory import joined, remember_empty, role_of, tidied, waiting
from cloudctl.site.edit_inventory import add_host
from cloudctl.site.load import load_site
from cloudctl.site.model import Node

HOSTS = "inventory/hosts.yml"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path)


@pytest.mark.parametrize("empty", ["newnodes:", "newnodes: {}  # nobody", "newnodes:\n      hosts: {}"])
def test_the_diff_of_a_node_that_came_is_its_own_line(site: Path, empty: str) -> None:
    path = site / HOSTS
    before = path.read_text().replace("newnodes:", "newnodes:\n", 1)
    before = path.read_text()
    before = before[: before.rindex("    newnodes:")] + f"    {empty}\n"
    path.write_text(before)
    remember_empty(load_site(site, with_secrets=False), before)
    enrolled = add_host(before, "newnodes", "compute09", {"ansible_host": "10.10.10.29", "role": "compute"})
    after = tidied(site, joined(enrolled, {"compute09": "compute"}))
    old, new = before.splitlines(), after.splitlines()
    assert [line for line in old if line not in new] == []
    assert [line.strip() for line in new if line not in old] == [
        "compute09: {ansible_host: 10.10.10.29, role: compute}"
    ]
    assert len(new) == len(old) + 1


def test_a_group_that_has_others_is_left_alone(site: Path) -> None:
    before = (site / HOSTS).read_text()
    remember_empty(load_site(site, with_secrets=False), before)
    text = add_host(before, "newnodes", "compute09", {"ansible_host": "10.10.10.29"})
    text = add_host(text, "newnodes", "compute10", {"ansible_host": "10.10.10.30"})
    after = joined(text, {"compute09": "compute"})
    assert tidied(site, after) == after
    assert "compute10" in after


def node(**variables: object) -> Node:
    return Node("n", ("newnodes",), "10.10.10.99", vars=variables)


def test_what_a_node_is_to_be() -> None:
    assert role_of(node(role="compute")) == "compute"
    assert role_of(node(role="compute", devices=["/dev/sdb"])) == "compute"
    assert role_of(node(devices=["/dev/sdb"])) == "storage"
    with pytest.raises(ConfigError, match="does not say"):
        role_of(node())


def test_only_waiting_nodes_are_added(site: Path) -> None:
    text = (site / HOSTS).read_text()
    (site / HOSTS).write_text(
        add_host(text, "newnodes", "x1", {"ansible_host": "10.10.10.99", "role": "compute"})
    )
    loaded = load_site(site, with_secrets=False)
    assert waiting(loaded, ["x1"]) == {"x1": "compute"}
    with pytest.raises(UsageError) as unknown:
        waiting(loaded, ["x2"])
    assert unknown.value.ref == "node-unknown"
    with pytest.raises(UsageError) as used:
        waiting(loaded, ["ctl01"])
    assert used.value.ref == "node-in-use"


def test_the_site_as_it_will_be_is_a_site(site: Path) -> None:
    text = (site / HOSTS).read_text()
    with_new = add_host(text, "newnodes", "x1", {"ansible_host": "10.10.10.99", "role": "compute"})
    (site / HOSTS).write_text(with_new)
    before = {
        path: path.read_bytes()
        for path in site.rglob("*")
        if path.is_file() and ".cloudctl" not in path.parts
    }
    with future_site(site, joined(with_new, {"x1": "compute"})) as future:
        loaded = load_site(future, with_secrets=False)
        assert loaded.nodes["x1"].address_on("storage") == "10.10.30.99"
        assert "compute" in loaded.nodes["x1"].groups
        assert future.stat().st_mode & 0o777 == 0o700
    assert not future.exists()
    assert before == {
        path: path.read_bytes()
        for path in site.rglob("*")
        if path.is_file() and ".cloudctl" not in path.parts
    }
