"""The inventory edited as text: the host's own lines only."""

from __future__ import annotations

import difflib
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudctl.errors import ConfigError, UsageError
from cloudctl.site.edit_inventory import (
    add_host,
    move_host,
    names_in,
    remove_host,
    set_variables,
    swap_member,
)

INVENTORY = """\
# the machines
all:
  children:
    control:
      hosts:
        ctl01: {ansible_host: 10.10.10.11}   # rack 1
    compute:
      # two of them
      hosts:
        compute01: {ansible_host: 10.10.10.21}
        # slow fan
        compute02:
          ansible_host: 10.10.10.22
          interfaces:
            eth1: {mtu: 1500}  # old switch
    # disks
    storage:
      vars:
        devices: [/dev/sdb]
      hosts:
        osd01: {ansible_host: 10.10.10.211}

    mons:
      children:
        control:
    newnodes:
# the end
"""


def changed(before: str, after: str) -> list[str]:
    """Return the added and removed lines."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_a_host_is_added_where_the_group_is_empty() -> None:
    after = add_host(INVENTORY, "newnodes", "compute03", {"ansible_host": "10.10.10.23"})
    assert changed(INVENTORY, after) == [
        "+       hosts:",
        "+         compute03: {ansible_host: 10.10.10.23}",
    ]


def test_a_host_is_added_behind_the_last_one() -> None:
    after = add_host(
        INVENTORY, "compute", "compute03", {"ansible_host": "10.10.10.23", "devices": ["/dev/sdb"]}
    )
    assert changed(INVENTORY, after) == [
        "+         compute03: {ansible_host: 10.10.10.23, devices: [/dev/sdb]}",
    ]
    assert after.index("old switch") < after.index("compute03") < after.index("# disks")


def test_a_group_that_is_missing_is_made() -> None:
    after = add_host("all:\n  children:\n    compute:\n", "newnodes", "n1", {})
    assert yaml.safe_load(after)["all"]["children"]["newnodes"] == {"hosts": {"n1": {}}}


@pytest.mark.parametrize(
    "empty", ["newnodes: {}", "newnodes: null  # none", "newnodes: {hosts: {}}", "newnodes: ~"]
)
def test_empty_groups_in_other_forms(empty: str) -> None:
    text = INVENTORY.replace("newnodes:", empty)
    try:
        after = add_host(text, "newnodes", "n1", {"ansible_host": "10.10.10.30"})
    except ConfigError:
        assert "hosts: {}" in empty
        return
    assert yaml.safe_load(after)["all"]["children"]["newnodes"]["hosts"] == {
        "n1": {"ansible_host": "10.10.10.30"}
    }


def test_a_host_moves_with_its_lines_and_comment() -> None:
    text = move_host(INVENTORY, "compute02", "newnodes")
    assert "        # slow fan\n        compute02:\n          ansible_host: 10.10.10.22\n" in text
    assert "{mtu: 1500}  # old switch" in text
    assert text.index("newnodes") < text.index("slow fan")
    assert (
        move_host(text, "compute02", "compute").rstrip()
        == INVENTORY.replace("    newnodes:\n", "    newnodes:\n      hosts:\n").rstrip()
    )


def test_a_removed_host_takes_only_its_own_lines() -> None:
    after = remove_host(INVENTORY, "compute01")
    assert changed(INVENTORY, after) == ["-         compute01: {ansible_host: 10.10.10.21}"]
    after = remove_host(INVENTORY, "compute02")
    assert len(changed(INVENTORY, after)) == 5
    assert "# disks" in after


def test_add_then_remove_leaves_the_text_as_it_was() -> None:
    added = add_host(INVENTORY, "storage", "osd02", {"ansible_host": "10.10.10.212"})
    assert remove_host(added, "osd02") == INVENTORY


MONS = """\
all:
  children:
    mons:
      hosts:
        # in the first rack
        osd01:
        osd02:  # in the second
    storage:
      hosts:
        osd01: {ansible_host: 10.0.0.1}
        osd02: {ansible_host: 10.0.0.2}
        osd03: {ansible_host: 10.0.0.3}
"""


def test_another_host_takes_a_place_in_one_group() -> None:
    edited = swap_member(MONS, "mons", "osd01", "osd03")
    assert names_in(edited, "mons") == ["osd02", "osd03"]
    assert names_in(edited, "storage") == ["osd01", "osd02", "osd03"]
    assert "osd02:  # in the second\n        osd03:\n" in edited
    with pytest.raises(ConfigError) as caught:
        swap_member(MONS, "mons", "osd03", "osd01")
    assert caught.value.ref == "host-not-in-group"
    assert names_in(MONS, "control") == []


def test_variables_are_set_in_both_layouts() -> None:
    after = set_variables(INVENTORY, "ctl01", {"rack": "a1"})
    assert changed(INVENTORY, after)[1] == "+         ctl01: {ansible_host: 10.10.10.11, rack: a1}   # rack 1"
    after = set_variables(INVENTORY, "compute02", {"ansible_host": "10.10.10.29", "devices": ["/dev/sdc"]})
    assert [line for line in changed(INVENTORY, after) if line[0] == "+"] == [
        "+           ansible_host: 10.10.10.29",
        "+           devices: [/dev/sdc]",
    ]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="already"):
        add_host(INVENTORY, "newnodes", "ctl01", {})
    with pytest.raises(UsageError, match="no compute09"):
        remove_host(INVENTORY, "compute09")
    with pytest.raises(UsageError):
        move_host(INVENTORY, "ctl01", "control")
    with pytest.raises(ConfigError, match="braces"):
        add_host("all: {children: {compute: {hosts: {a: {}}}}}", "compute", "b", {})
    with pytest.raises(ConfigError):
        remove_host("all: {children: {compute: {hosts: {a: {}, b: {}}}}}", "a")


names = st.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=8)
values = st.one_of(
    st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=5), max_size=3)
)


@settings(deadline=None)
@given(
    name=names,
    variables=st.dictionaries(names, values, max_size=4),
    group=st.sampled_from(["newnodes", "storage"]),
)
def test_any_name_and_value_is_read_back(name: str, variables: dict[str, object], group: str) -> None:
    text = add_host(INVENTORY, group, name, variables)
    assert (yaml.safe_load(text)["all"]["children"][group]["hosts"][name] or {}) == variables
    assert remove_host(text, name).replace("      hosts:\n", "") == INVENTORY.replace("      hosts:\n", "")
