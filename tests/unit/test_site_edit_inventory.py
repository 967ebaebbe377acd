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


HEAD = "all:\n  children:\n    newnodes:\n      hosts:\n"


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
    text = move_host(INVENTORY, "compute02", "newnodes", source="compute")
    assert "        # slow fan\n        compute02:\n          ansible_host: 10.10.10.22\n" in text
    assert "{mtu: 1500}  # old switch" in text
    assert text.index("newnodes") < text.index("slow fan")
    assert (
        move_host(text, "compute02", "compute").rstrip()
        == INVENTORY.replace("    newnodes:\n", "    newnodes:\n      hosts:\n").rstrip()
    )


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        # A group of the operator's own: the host stays in it.
        (
            HEAD + "        n1: {role: compute}\n    rack7:\n      hosts:\n        n1:\n    compute:\n",
            HEAD + "    rack7:\n      hosts:\n        n1:\n    compute:\n"
            "      hosts:\n        n1: {role: compute}\n",
        ),
        # Variables of all hosts in one place.
        (
            "all:\n  hosts:\n    n1: {ansible_host: 10.0.0.9}\n  children:\n    newnodes:\n      hosts:\n"
            "        n1:\n    compute:\n",
            "all:\n  hosts:\n    n1: {ansible_host: 10.0.0.9}\n  children:\n    newnodes:\n      hosts:\n"
            "    compute:\n      hosts:\n        n1:\n",
        ),
        # Groups at the top.
        (
            "compute:\n  hosts:\n    c1:\nnewnodes:\n  hosts:\n    n1: {ansible_host: 10.0.0.9}\n",
            "compute:\n  hosts:\n    c1:\n    n1: {ansible_host: 10.0.0.9}\nnewnodes:\n  hosts:\n",
        ),
        (
            "all:\n  vars: {}\ncompute:\nnewnodes:\n  hosts:\n    n1:\n",
            "all:\n  vars: {}\ncompute:\n  hosts:\n    n1:\nnewnodes:\n  hosts:\n",
        ),
        # A group that is named at several places.
        (
            "all:\n  children:\n    zone: {children: {compute: }}\n    newnodes:\n      hosts:\n        n1:\n"
            "    compute:\n      hosts:\n        c1:\n",
            "all:\n  children:\n    zone: {children: {compute: }}\n    newnodes:\n      hosts:\n"
            "    compute:\n      hosts:\n        c1:\n        n1:\n",
        ),
        # A group that is missing.
        (
            HEAD + "        n1:\n",
            HEAD + "    compute:\n      hosts:\n        n1:\n",
        ),
    ],
)  # fmt: skip
def test_a_host_leaves_newnodes_and_no_other_group(text: str, moved: str) -> None:
    assert move_host(text, "n1", "compute") == moved


SECRET = (
    "          ansible_become_password: !vault |\n            $ANSIBLE_VAULT;1.1;AES256\n            6162\n"
)


def test_values_with_ansibles_tags_stay_as_they_are() -> None:
    text = HEAD + f"        n1:\n{SECRET}        n2: {{custom_a: !unsafe '{{{{'}}\n    compute:\n"
    assert add_host(text, "compute", "c1", {}) == text + "      hosts:\n        c1: {}\n"
    assert set_variables(text, "n2", {"role": "compute"}) == text.replace("'}", "', role: compute}")
    after = set_variables(text, "n1", {"role": "compute"})
    assert after == text.replace("6162\n", "6162\n          role: compute\n")
    assert SECRET in move_host(text, "n1", "compute")
    assert remove_host(text, "n1") == text.replace(f"        n1:\n{SECRET}", "")


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
    top = "mons:\n  hosts:\n    osd01:\n"
    assert swap_member(top, "mons", "osd01", "osd03") == "mons:\n  hosts:\n    osd03:\n"


def test_variables_are_set_in_both_layouts() -> None:
    after = set_variables(INVENTORY, "ctl01", {"rack": "a1"})
    assert changed(INVENTORY, after)[1] == "+         ctl01: {ansible_host: 10.10.10.11, rack: a1}   # rack 1"
    after = set_variables(INVENTORY, "compute02", {"ansible_host": "10.10.10.29", "devices": ["/dev/sdc"]})
    assert [line for line in changed(INVENTORY, after) if line[0] == "+"] == [
        "+           ansible_host: 10.10.10.29",
        "+           devices: [/dev/sdc]",
    ]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        # What YAML 1.1 calls a number in base 60, or a date, stays as it is written.
        (
            "x: {interfaces: {eth0: {mac: 52:54:00:12:34:56}}}",
            "x: {interfaces: {eth0: {mac: 52:54:00:12:34:56}}, devices: [/dev/sdb]}",
        ),
        ("x: {custom_bought: 2024-05-01}", "x: {custom_bought: 2024-05-01, devices: [/dev/sdb]}"),
        ('x: {custom_note: "slot #7"}', 'x: {custom_note: "slot #7", devices: [/dev/sdb]}'),
        ("x: {devices: [/dev/a], role: storage} # new", "x: {devices: [/dev/sdb], role: storage} # new"),
        ("x: {'devices': , role: storage}", "x: {'devices': [/dev/sdb] , role: storage}"),
        ("x: {role: storage, custom_a: }", "x: {role: storage, custom_a:, devices: [/dev/sdb] }"),
        (
            "x: {\n  role: storage,  # see ticket 9\n  # rack 3\n}",
            "x: {\n  role: storage, devices: [/dev/sdb],  # see ticket 9\n  # rack 3\n}",
        ),
        ("x: # new", "x: {devices: [/dev/sdb]} # new"),
        ("x: {}  # new", "x: {devices: [/dev/sdb]}  # new"),
        ("x: ~", "x: {devices: [/dev/sdb]}"),
        (
            "x:\n  devices: [/dev/a]  # old\n  role: storage",
            "x:\n  devices: [/dev/sdb]  # old\n  role: storage",
        ),
        (
            "x:\n  devices:  # data\n    - /dev/a  # slot 1\n    - /dev/b\n  # rack 3\n  role: storage",
            "x:\n  devices: [/dev/sdb]  # data\n  # rack 3\n  role: storage",
        ),
        (
            "x:\n  custom_note: |\n    a\n    # b\n\n# end",
            "x:\n  custom_note: |\n    a\n    # b\n\n  devices: [/dev/sdb]\n# end",
        ),
    ],
)
def test_what_a_host_has_besides_stays_as_it_is_written(lines: str, wanted: str) -> None:
    def text(words: str) -> str:
        return HEAD + "".join(f"        {line}\n" if line else "\n" for line in words.split("\n"))

    assert set_variables(text(lines), "x", {"devices": ["/dev/sdb"]}) == text(wanted)


def test_values_that_are_shared_stay_what_they_are_for_others() -> None:
    text = HEAD + "        x: &x {devices: &d [/dev/sdb]}\n        y: {devices: *d}\n        z: {<<: *x}\n"
    with pytest.raises(ConfigError) as caught:
        set_variables(text, "x", {"devices": ["/dev/sdc"]})
    assert caught.value.ref == "inventory-layout"
    after = set_variables(text, "y", {"devices": ["/dev/sdc"]})
    assert changed(text, after)[1] == "+         y: {devices: [/dev/sdc]}"
    after = set_variables(text, "z", {"role": "storage"})
    assert changed(text, after)[1] == "+         z: {<<: *x, role: storage}"


def test_refusals() -> None:
    with pytest.raises(UsageError, match="already"):
        add_host(INVENTORY, "newnodes", "ctl01", {})
    with pytest.raises(UsageError, match="no compute09"):
        remove_host(INVENTORY, "compute09")
    with pytest.raises(UsageError):
        move_host(INVENTORY, "ctl01", "control")
    with pytest.raises(UsageError, match="not in newnodes"):
        move_host(INVENTORY, "ctl01", "compute")
    with pytest.raises(ConfigError, match=r"no all\.children"):
        add_host("all: {}\ncompute:\n", "newnodes", "n1", {})
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


@settings(deadline=None)
@given(
    variables=st.dictionaries(names, values, min_size=1, max_size=4),
    name=st.sampled_from(["ctl01", "compute02"]),
)
def test_any_variable_is_set(name: str, variables: dict[str, object]) -> None:
    again = set_variables(set_variables(INVENTORY, name, dict.fromkeys(variables, 1)), name, variables)
    assert again == set_variables(INVENTORY, name, variables)
    assert not [line for line in changed(INVENTORY, again) if line[0] == "-"] or name == "ctl01"
