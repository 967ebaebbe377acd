"""Nodes on their way through the inventory: every other line stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_support import lab_site, make_site

from cloudctl.commands.node import command, ports_by_group
from cloudctl.errors import ConfigError, UsageError
from cloudctl.node import facts
from cloudctl.node.facts import propose
from cloudctl.node.future import future_site
from cloudctl.node.inventory import joined, read_text, remember_empty, role_of, tidied, waiting, write_text
from cloudctl.site.edit_inventory import add_host, remove_host, set_variables
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


@pytest.mark.parametrize(("ends", "last"), [("\n", "\n"), ("\r\n", "\r\n"), ("\n", ""), ("\r\n", "")])
def test_lines_end_as_they_did(site: Path, ends: str, last: str) -> None:
    path = site / HOSTS
    text = path.read_text().rstrip("\n") + "\n    # the end\n"

    def written(words: str) -> bytes:
        return (words.removesuffix("\n").replace("\n", ends) + last).encode()

    path.write_bytes(written(text))
    assert read_text(site) == text.removesuffix("\n") + ("\n" if last else "")
    edited = add_host(read_text(site), "compute", "compute09", {"ansible_host": "10.10.10.29"})
    write_text(site, edited)
    assert path.read_bytes() == written(edited)
    write_text(site, remove_host(read_text(site), "compute09"))
    assert path.read_bytes() == written(text)


def test_a_group_that_has_others_is_left_alone(site: Path) -> None:
    before = (site / HOSTS).read_text()
    remember_empty(load_site(site, with_secrets=False), before)
    text = add_host(before, "newnodes", "compute09", {"ansible_host": "10.10.10.29"})
    text = add_host(text, "newnodes", "compute10", {"ansible_host": "10.10.10.30"})
    after = joined(text, {"compute09": "compute"})
    assert tidied(site, after) == after
    assert "compute10" in after


def test_what_was_written_into_the_group_meanwhile_stays(site: Path) -> None:
    path = site / HOSTS
    before = path.read_text()
    remember_empty(load_site(site, with_secrets=False), before)
    text = add_host(before, "newnodes", "compute09", {"ansible_host": "10.10.10.29", "role": "compute"})
    group = text[text.index("    newnodes:") :]
    for old, new in (
        ("newnodes:", "newnodes:  # rack 7, see ticket 4711"),
        ("      hosts:\n", "      vars: {custom_rack: r7}\n      hosts:\n"),
        ("      hosts:\n", "      # arrives in May\n      hosts:\n"),
    ):
        after = joined(text.replace(group, group.replace(old, new, 1)), {"compute09": "compute"})
        assert tidied(site, after) == after
        assert new in after
    assert tidied(site, joined(text, {"compute09": "compute"})).endswith(
        before[before.index("    newnodes:") :]
    )


def test_a_group_is_tidied_beside_values_that_are_encrypted(site: Path) -> None:
    path = site / HOSTS
    secret = (
        "all:\n  vars:\n    ansible_become_password: !vault |\n      $ANSIBLE_VAULT;1.1;AES256\n      6162\n"
    )
    before = path.read_text().replace("all:\n", secret, 1)
    path.write_text(before)
    remember_empty(load_site(site, with_secrets=False), before)
    text = add_host(before, "newnodes", "compute09", {"ansible_host": "10.10.10.29"})
    assert tidied(site, remove_host(text, "compute09")) == before


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


def test_a_waiting_node_may_say_what_differs_on_the_ports_that_it_will_have(site: Path) -> None:
    path = site / HOSTS
    text = path.read_text()
    own = {"ansible_host": "10.10.10.99", "role": "compute"}
    path.write_text(add_host(text, "newnodes", "x1", own))
    loaded = load_site(site, with_secrets=False)
    ports = [
        {"name": name, "mac": f"52:54:00:aa:00:0{number}", "speed": 10000, "link": True,
         "addresses": ["10.10.10.99"] if number == 1 else []}
        for number, name in enumerate(("eno1", "ens1f0", "ens1f1"), start=1)
    ]  # fmt: skip
    found = propose(
        loaded.nodes["x1"], "compute", ports_by_group(loaded)["compute"], {"ports": ports, "disks": []}
    )
    path.write_text(set_variables(path.read_text(), "x1", found.variables))
    node = load_site(site, with_secrets=False).nodes["x1"]
    assert {port.name: port.mac for port in node.interfaces.values()} == {"eth0": "52:54:00:aa:00:01"}
    path.write_text(joined(path.read_text(), {"x1": "compute"}))
    node = load_site(site, with_secrets=False).nodes["x1"]
    assert [port.mac for port in node.interfaces.values()] == [port["mac"] for port in ports]


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"role": "compute", "interfaces": {"eth1": {"address": "10.10.20.98"}}}, ""),
        ({"devices": ["/dev/sdb"], "interfaces": {"eth2": {"mtu": 9000}}}, ""),
        ({"role": "compute", "interfaces": {"eth7": {"mtu": 9000}}}, "interface-network"),
        ({"interfaces": {"eth1": {"mtu": 9000}}}, "interface-network"),
    ],
)
def test_which_ports_a_waiting_node_will_have(site: Path, own: dict[str, object], fault: str) -> None:
    path = site / HOSTS
    path.write_text(add_host(path.read_text(), "newnodes", "x1", {"ansible_host": "10.10.10.99", **own}))
    if not fault:
        assert list(load_site(site, with_secrets=False).nodes["x1"].interfaces) == ["eth0"]
        return
    with pytest.raises(ConfigError) as caught:
        load_site(site, with_secrets=False)
    assert caught.value.ref == fault


def test_what_is_accepted_fits_the_group_that_the_node_will_be_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = lab_site(tmp_path / "lab")
    path = site / HOSTS
    text = path.read_text()
    disks = [
        {
            "path": f"/dev/disk/by-id/{name}",
            "size": 1 << 40,
            "rotational": True,
            "content": "",
            "system": False,
        }
        for name in "ab"
    ]
    for disk in disks:
        disk.update(name=disk["path"])
    (site / "inventory" / "group_vars" / "storage.yml").write_text("journal_devices: [/dev/sdz]\n")
    path.write_text(add_host(text, "newnodes", "osd09", {"ansible_host": "10.10.10.219", "role": "storage"}))
    monkeypatch.setattr(facts, "ask", lambda *_: {"osd09": {"ports": [], "disks": disks}})
    command.main(["inspect", "osd09", "--accept"], obj=site, standalone_mode=False)
    path.write_text(joined(path.read_text(), {"osd09": "storage"}))
    node = load_site(site).nodes["osd09"]
    assert (len(node.vars["devices"]), node.vars["journal_devices"]) == (2, [])
