"""OSDs: what a removal would do, which line of the inventory is whose, and what is waited for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_support import lab_site

from cloudctl.errors import (
    CheckFailed,
    CloudctlError,
    ConfigError,
    MultiError,
    Unreachable,
    UsageError,
    VerifyFailed,
)
from cloudctl.operations.steps import Journal
from cloudctl.osd import act, names, operate, remote, throttle, wait
from cloudctl.osd.cluster import Cluster, Osd, Pool, is_clean, parse
from cloudctl.osd.forecast import expected, forecast, spread
from cloudctl.site.edit_inventory import set_variables
from cloudctl.site.load import load_site
from cloudctl.site.model import Node, Site

GIB = 1 << 20  # in KiB
ARGUMENTS = {"ansible_host": "10.10.10.211"}


def osd(number: int, host: str, used: float = 0, size: float = 100, **more: Any) -> Osd:
    """An OSD of some GiB, of which some hold objects."""
    fields: dict[str, Any] = {
        "uuid": f"u{number}", "device_class": "hdd", "weight": size / 1024, "kb": int(size * GIB),
        "kb_used": int(used * GIB), "kb_data": int(used * GIB), "pgs": 8, "up": True,
    }  # fmt: skip
    return Osd(number, host, **{**fields, **more})


def cluster(*osds: Osd, pools: list[Pool] | None = None, **more: Any) -> Cluster:
    used = sum(item.kb_data for item in osds)
    fields: dict[str, Any] = {"pg_states": {"active+clean": 32}, "hosts": ["osd01", "osd02", "osd03"]}
    return Cluster(
        {item.id: item for item in osds},
        pools if pools is not None else [Pool("vms", 3, 2, kb=used)],
        **{**fields, **more},
    )


def three(per_host: int = 2, used: float = 10, **more: Any) -> Cluster:
    """Three nodes with as many OSDs each."""
    return cluster(*(osd(n, f"osd0{n % 3 + 1}", used) for n in range(3 * per_host)), **more)


def refs(found: Any) -> list[str]:
    return [ref for ref, _words in found.problems]


# -- where data goes ---------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.just(0.0) | st.floats(0.01, 100), max_size=8),
    st.integers(1, 5),
)
def test_copies_are_spread_completely_and_no_place_gets_two(weights: dict[str, float], copies: int) -> None:
    found = spread(weights, copies)
    places = [name for name, weight in weights.items() if weight > 0]
    assert set(found) == set(places)
    assert all(0 < part <= 1 + 1e-9 for part in found.values())
    assert sum(found.values()) == pytest.approx(min(copies, len(places)))


def test_a_large_node_gets_one_copy_of_everything() -> None:
    assert spread({"a": 10, "b": 1, "c": 1}, 2) == {"a": 1.0, "b": 0.5, "c": 0.5}


def test_data_of_a_removed_osd_stays_on_its_node_where_nodes_are_as_many_as_copies() -> None:
    found = forecast(three(), [0])
    assert not found.problems
    assert found.full[3] == pytest.approx(0.2, abs=0.01)  # the other one of that node
    assert found.full[1] == pytest.approx(0.1, abs=0.01)
    assert found.moved_kb == 10 * GIB


def test_near_full_after_the_removal() -> None:
    assert refs(forecast(three(used=50), [0])) == ["osd-near-full"]
    assert refs(forecast(three(used=40), [0])) == []
    assert refs(forecast(replace(three(used=40), nearfull=0.75), [0])) == ["osd-near-full"]
    words = forecast(three(used=50), [0]).problems[0][1]
    assert "osd.3 100%" in words and "now 50%" in words


def test_uneven_osds_stay_uneven() -> None:
    uneven = cluster(*(osd(n, f"osd0{n % 4 + 1}", 60 if n == 1 else 45) for n in range(4)))
    found = forecast(uneven, [0])  # each other one gets a copy of everything: 65 GiB
    assert found.full[2] == pytest.approx(0.65, abs=0.01)
    assert found.full[1] == pytest.approx(0.65 * 60 / 48.75, abs=0.01)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(1, 60)), min_size=3, max_size=12),
    st.sets(st.integers(0, 11), max_size=3),
)
def test_all_data_is_accounted_for(disks: list[tuple[int, float]], going: set[int]) -> None:
    here = [osd(n, f"h{host}", used) for n, (host, used) in enumerate(disks)]
    rest = [item for item in here if item.id not in going]
    pool = Pool("vms", 3, 2, kb=int(sum(used for _host, used in disks) * GIB))
    hosts = len({item.host for item in rest})
    assert sum(expected(rest, [pool]).values()) == pytest.approx(pool.kb * min(3, hosts) / 3, rel=1e-6)
    found = forecast(cluster(*here, pools=[pool]), going)
    assert all(found.full[n] >= found.before[n] - 1e-9 for n in found.full)
    fewer = hosts < min(3, len({item.host for item in here}))
    assert fewer == ("osd-failure-domain" in refs(found))


def test_fewer_nodes_than_copies() -> None:
    found = forecast(three(1), [0])
    assert refs(found) == ["osd-failure-domain"]
    assert "2 nodes with OSDs would be left" in found.problems[0][1]
    assert refs(forecast(three(2), [0, 3])) == ["osd-failure-domain"]


def test_a_node_whose_other_osd_is_off_does_not_count() -> None:
    state = three(2)
    off = {**state.osds, 3: replace(state.osds[3], up=False)}
    assert refs(forecast(replace(state, osds=off), [0])) == ["osd-failure-domain"]


def test_a_place_that_was_lacking_before_is_no_reason_against_a_removal() -> None:
    wide = [Pool("wide", 4, 3, kb=GIB)]  # four copies, three nodes
    assert refs(forecast(three(2, pools=wide), [0])) == []
    assert refs(forecast(three(2, pools=wide), [0, 3])) == ["osd-failure-domain"]


def test_an_osd_that_is_off_or_out_keeps_its_place_until_it_is_emptied() -> None:
    state = three(1)

    def with_first(**more: Any) -> Cluster:
        return replace(state, osds={**state.osds, 0: replace(state.osds[0], **more)})

    assert refs(forecast(with_first(up=False, share=0.0), [0])) == ["osd-failure-domain"]
    assert refs(forecast(with_first(weight=0.0), [0])) == []


def test_classes_and_domains_count_for_themselves() -> None:
    mixed = [osd(n, f"osd0{n % 3 + 1}", 1, device_class="ssd" if n < 3 else "hdd") for n in range(6)]
    on_ssd = [Pool("fast", 3, 2, "ssd", kb=GIB)]
    assert refs(forecast(cluster(*mixed, pools=on_ssd), [0])) == ["osd-failure-domain"]
    assert refs(forecast(cluster(*mixed, pools=on_ssd), [3])) == []
    any_osd = [Pool("loose", 3, 2, domain="osd", kb=GIB)]
    assert refs(forecast(cluster(*mixed[:4], pools=any_osd), [0])) == []


@pytest.mark.parametrize(
    "more",
    [
        {"pg_states": {"active+clean": 3, "down": 1}},
        {"pg_states": {"incomplete": 1}},
        {"pg_states": {"active+clean": 3, "stale+active+clean": 1}},
        {"unfound": 2},
    ],
)
def test_what_may_hold_the_last_copy_does_not_go(more: dict[str, Any]) -> None:
    assert refs(forecast(three(**more), [0])) == ["osd-data-loss"]


def test_degraded_data_is_no_reason_against_removing_a_failed_osd() -> None:
    assert refs(forecast(three(pg_states={"active+undersized+degraded": 9}), [0])) == []


def test_every_problem_is_an_error() -> None:
    with pytest.raises(MultiError) as caught:
        act.refuse(forecast(three(1, 90, unfound=1), [0]))
    assert [error.ref for error in caught.value.errors] == [
        "osd-data-loss",
        "osd-failure-domain",
        "osd-near-full",
    ]


# -- reading -----------------------------------------------------------------------------------


def test_the_cluster_is_read() -> None:
    answers = {
        "dump": {
            "nearfull_ratio": 0.8,
            "osds": [
                {"osd": 0, "uuid": "u0", "up": 1, "in": 1, "weight": 1.0},
                {"osd": 4, "uuid": "u4", "up": 0, "in": 0, "weight": 0},
                {"osd": 5, "uuid": "u5", "up": 0, "in": 0, "weight": 0, "state": ["exists", "new"]},
            ],
            "pools": [{"pool_name": "vms", "size": 3, "min_size": 2, "crush_rule": 1}],
        },
        "df": {
            "nodes": [
                {"id": -1, "type": "root", "name": "default", "children": [-2]},
                {"id": -2, "type": "host", "name": "osd01", "children": [0]},
                {"id": 0, "type": "osd", "crush_weight": 0.5, "kb": 100, "kb_used": 60, "kb_used_data": 50,
                 "pgs": 7},
            ],
            "stray": [{"id": 4, "type": "osd", "kb": 100}],
        },
        "metadata": [{"id": 0, "hostname": "osd01", "bluestore_bdev_partition_path": "/dev/sdc"}, {"id": 4}],
        "rules": [
            {"rule_id": 1, "steps": [{"op": "take", "item_name": "default~ssd"},
                                     {"op": "chooseleaf_firstn", "type": "host"}]},
        ],
        "usage": {"pools": [{"name": "vms", "stats": {"bytes_used": 4096}}]},
        "status": {
            "pgmap": {"pgs_by_state": [{"state_name": "active+clean", "count": 7}], "misplaced_objects": 3},
            "health": {"checks": {"A": {"summary": {"message": "a"}}, "B": {"muted": True}}},
        },
        "hosts": ["osd01"],
    }  # fmt: skip
    found = parse(answers)
    assert found.osds[0] == Osd(0, "osd01", "u0", "", 0.5, 1.0, 100, 60, 50, 7, True, device="/dev/sdc")
    assert (found.osds[4].host, found.osds[4].share, found.osds[4].up) == ("", 0.0, False)
    assert [found.osds[number].started for number in (0, 4, 5)] == [True, True, False]
    assert found.pools == [Pool("vms", 3, 2, "ssd", "host", 4)]
    assert (found.nearfull, found.misplaced, found.health) == (0.8, 3, {"A": "a"})
    # as `osd erasure-code-profile set … crush-failure-domain=osd` makes a rule
    answers["rules"][0]["steps"] = [
        {"op": "set_chooseleaf_tries", "num": 5}, {"op": "set_choose_tries", "num": 100},
        {"op": "take", "item_name": "default"}, {"op": "choose_indep", "num": 0, "type": "osd"},
        {"op": "emit"},
    ]  # fmt: skip
    assert parse(answers).pools == [Pool("vms", 3, 2, "", "osd", 4)]


def test_a_scrubbing_placement_group_is_clean() -> None:
    assert is_clean("active+clean+scrubbing+deep")
    assert not is_clean("active+undersized")
    assert not is_clean("clean")


def test_a_stale_placement_group_is_neither_served_nor_clean() -> None:
    state = three(pg_states={"active+clean": 30, "stale+active+clean": 2})
    assert (state.unclean, state.inactive) == (2, {"stale+active+clean": 2})
    assert "30 of 32 PGs clean" in wait.for_data(state).words


# -- waiting -----------------------------------------------------------------------------------


def until(states: list[Any], **more: Any) -> tuple[Cluster, list[str]]:
    lines: list[str] = []
    left = list(states)

    def look(_site: Any) -> Cluster:
        state = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(state, CloudctlError):
            raise state
        return state

    options: dict[str, Any] = {"timeout": 60, "sleep": lambda _s: None, "read_cluster": look, **more}
    return wait.until(None, wait.for_data, report=lines.append, **options), lines  # type: ignore[arg-type]


def test_progress_is_told_when_something_changes() -> None:
    busy = three(pg_states={"active+clean": 30, "active+remapped+backfilling": 2}, misplaced=9)
    found, lines = until([busy, busy, replace(busy, misplaced=4), three(), three()])
    assert found == three()
    assert lines == [
        "30 of 32 PGs clean, 9 objects to move",
        "30 of 32 PGs clean, 4 objects to move",
    ]


def test_one_quiet_look_is_not_the_end() -> None:
    busy = three(pg_states={"peering": 2})
    _found, lines = until([three(), busy, three(), three()])
    assert len(lines) == 1


def test_a_cluster_that_complains_is_not_ready() -> None:
    assert "NODE_X: bad" in wait.for_data(three(health={"NODE_X": "bad"})).words
    assert wait.for_data(three(health={"POOL_NO_REDUNDANCY": "x"})).words == ""


def test_a_complaint_of_before_is_not_waited_for() -> None:
    state = three(health={"MON_CLOCK_SKEW": "skew", "OSD_DOWN": "1 osds down"})
    assert wait.others_complaints(state) == {"MON_CLOCK_SKEW"}
    assert wait.for_data(state, wait.others_complaints(state)).words == "OSD_DOWN: 1 osds down"


def test_without_progress_waiting_ends() -> None:
    with pytest.raises(VerifyFailed) as caught:
        until([three(pg_states={"peering": 2})], timeout=-1)
    assert caught.value.ref == "osd-no-progress"


def test_a_silent_monitor_is_waited_for() -> None:
    found, lines = until([Unreachable("ceph-no-quorum", "nobody answers"), three(), three()])
    assert found == three()
    assert lines == ["nobody answers"]


def test_an_osd_is_empty_when_its_data_is_complete_elsewhere() -> None:
    assert wait.for_empty(three(), [0]).words.startswith("8 PGs still on osd.0")
    moved = three().osds | {0: replace(three().osds[0], pgs=0)}
    assert wait.for_empty(replace(three(), osds=moved), [0]).words == ""
    degraded = replace(three(pg_states={"active+degraded": 1}, degraded=4), osds=moved)
    assert "4 copies missing" in wait.for_empty(degraded, [0]).words
    assert wait.for_empty(three(), [77]).words == ""


# -- clients first -----------------------------------------------------------------------------


def test_options_come_back_as_they_were() -> None:
    config = [
        {"section": "osd", "name": "osd_max_backfills", "value": "3", "mask": ""},
        {"section": "osd", "name": "osd_mclock_profile", "value": "balanced", "mask": "class:ssd"},
    ]
    before = throttle.values_of(config, ["osd_max_backfills", "osd_mclock_profile"])
    assert before == {"osd_max_backfills": "3", "osd_mclock_profile": None}
    commands = [step["cmd"] for step in throttle.steps_to_restore(before, ["noscrub"])]
    assert [(c["prefix"], c.get("name", c.get("key")), c.get("value")) for c in commands] == [
        ("config set", "osd_max_backfills", "3"),
        ("config rm", "osd_mclock_profile", None),
        ("osd unset", "noscrub", None),
    ]


class FakeSite:
    """As much of a site as the throttle reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, name: str) -> Any:
        return {"ceph.backfill.options": {"osd_max_backfills": 1}, "ceph.backfill.flags": ["noscrub"]}[name]


def throttled(monkeypatch: pytest.MonkeyPatch, config: dict[str, str], flags: set[str]) -> None:
    """Let the throttle talk to a cluster that is made of its options and flags."""

    def ask(_site: Any, steps: Any, _what: str, **_more: Any) -> list[dict[str, Any]]:
        out = []
        for step in steps:
            cmd, text = step["cmd"], ""
            if cmd["prefix"] == "config dump":
                text = str(
                    [{"section": "osd", "name": n, "value": v, "mask": ""} for n, v in config.items()]
                ).replace("'", '"')
            elif cmd["prefix"] == "osd dump":
                text = '{"flags": "' + ",".join(flags) + '"}'
            elif cmd["prefix"] == "config set":
                config[cmd["name"]] = cmd["value"]
            elif cmd["prefix"] == "osd unset":
                flags.discard(cmd["key"])
            out.append({"rc": 0, "out": text, "err": ""})
        return out

    monkeypatch.setattr(throttle, "ask", ask)


def test_a_run_that_was_killed_does_not_take_the_throttled_values_for_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, flags = {"osd_max_backfills": "7"}, {"noscrub"}
    throttled(monkeypatch, config, flags)
    (tmp_path / ".cloudctl").mkdir()
    site: Any = FakeSite(tmp_path)
    throttle.hold(site, lambda _line: None)
    assert config == {"osd_max_backfills": "1"}
    throttle.hold(site, lambda _line: None)  # the next run
    throttle.release(site, lambda _line: None)
    assert config == {"osd_max_backfills": "7"}
    assert flags == {"noscrub"}  # it was set before: it stays
    config["osd_max_backfills"] = "5"
    throttle.release(site, lambda _line: None)
    assert config == {"osd_max_backfills": "5"}


def test_a_run_that_ended_before_it_knew_the_old_values_does_not_lose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"osd_max_backfills": "7"}
    throttled(monkeypatch, config, set())
    (tmp_path / ".cloudctl").mkdir()
    site: Any = FakeSite(tmp_path)

    def silent(*_args: Any, **_more: Any) -> None:
        raise Unreachable("ceph-no-quorum", "no monitor answers")

    with monkeypatch.context() as patch:
        patch.setattr(throttle, "ask", silent)
        with pytest.raises(Unreachable):
            throttle.hold(site, lambda _line: None)
    assert not Journal(tmp_path, throttle.NAME).open
    Journal(tmp_path, throttle.NAME).begin()  # a run that was killed right after
    for value in ("7", "9"):  # the second time, what the first found is still in the file
        config["osd_max_backfills"] = value
        throttle.hold(site, lambda _line: None)
        assert config == {"osd_max_backfills": "1"}
        throttle.release(site, lambda _line: None)
        assert config == {"osd_max_backfills": value}


# -- the inventory -----------------------------------------------------------------------------


def node(**variables: Any) -> Node:
    return Node("osd01", ("storage", "all"), "10.10.10.211", {}, variables)


SHARED = {"devices": ["/dev/a", "/dev/b"], "journal_devices": ["/dev/j", "/dev/j"]}


def test_a_new_device_gets_the_nodes_journal() -> None:
    osds, new = names.with_new(node(**SHARED), ["/dev/c"], None, "ssd")
    assert new == ["/dev/c"]
    assert osds[-1] == {
        "host": "osd01",
        "data": "/dev/c",
        "journal": "/dev/j",
        "slot": 3,
        "device_class": "ssd",
    }
    assert names.variables(node(**SHARED), osds) == {
        "devices": ["/dev/a", "/dev/b", "/dev/c"],
        "journal_devices": ["/dev/j"] * 3,
        "device_classes": {"/dev/c": "ssd"},
    }


def test_a_device_that_is_named_already_is_not_named_again() -> None:
    osds, new = names.with_new(node(**SHARED), ["/dev/b"], None, None)
    assert new == []
    assert names.variables(node(**SHARED), osds) == {}


@pytest.mark.parametrize(
    ("variables", "devices", "journal", "ref"),
    [
        (SHARED, ["/dev/c", "/dev/c"], None, "osd-device-twice"),
        (SHARED, ["/dev/j"], None, "osd-device-twice"),
        (SHARED, ["/dev/c"], "/dev/a", "osd-device-twice"),
        (SHARED, ["/dev/c"], "/dev/c", "osd-device-twice"),
        (SHARED, ["/dev/a"], "/dev/k", "osd-journal-differs"),
        ({"devices": ["/dev/a"]}, ["/dev/c"], "/dev/j", "osd-journal-mixed"),
        ({**SHARED, "journal_devices": ["/dev/j", "/dev/k"]}, ["/dev/c"], None, "osd-journal-missing"),
    ],
)  # fmt: skip
def test_devices_that_can_not_be_added(
    variables: dict[str, Any], devices: list[str], journal: str | None, ref: str
) -> None:
    with pytest.raises(UsageError) as caught:
        names.with_new(node(**variables), devices, journal, None)
    assert caught.value.ref == ref


def test_the_last_osd_of_a_node_is_the_nodes_business() -> None:
    assert [item["data"] for item in names.without(node(**SHARED), ["/dev/a"])] == ["/dev/b"]
    with pytest.raises(ConfigError) as caught:
        names.without(node(**SHARED), ["/dev/a", "/dev/b"])
    assert caught.value.ref == "osd-last-of-node"


def item(path: str, uuid: str, state: str = "ours") -> dict[str, Any]:
    return {"path": path, "role": "data", "osd_uuid": uuid, "state": state, "reason": ""}


def test_the_line_of_an_osd() -> None:
    state = cluster(osd(0, "osd01", device="/dev/x"), osd(1, "osd01", device="/dev/y"))
    site_node = node(**SHARED)
    labels = [item("/dev/b", "u0"), item("/dev/a", "u1")]
    assert names.line_of(state.osds[0], state, site_node, labels) == "/dev/b"
    # its device is gone: the other one's line is known, so this is the other line
    assert (
        names.line_of(state.osds[0], state, site_node, [item("/dev/a", "u1"), item("/dev/b", "")]) == "/dev/b"
    )
    # both are gone: it can't be told
    assert names.line_of(state.osds[0], state, site_node, []) == ""
    named = replace(state.osds[0], device="/dev/a")
    assert names.line_of(named, state, site_node, []) == "/dev/a"
    assert names.line_of(state.osds[0], state, None, []) == ""


def test_a_device_with_an_osd_is_no_new_one() -> None:
    state = cluster(osd(0, "osd01"))
    for uuid, words in (("u0", "is osd.0 already"), ("gone", "does not have any more")):
        with pytest.raises(CheckFailed, match=words):
            names.refuse_foreign("osd01", {"osd01": [item("/dev/c", uuid)]}, state, ["/dev/c"])
    names.refuse_foreign("osd01", {"osd01": [item("/dev/c", "", "empty")]}, state, ["/dev/c"])


def test_an_unknown_osd_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        names.pick(cluster(osd(0, "osd01")), [0, 7])
    assert caught.value.ref == "osd-unknown" and "7" in caught.value.message


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_site(tmp_path_factory.mktemp("site"))


OPERATIONS: dict[str, Callable[[Site], Any]] = {
    "add": lambda site: operate.plan_add(site, "osd01", ["/dev/new"], print),
    "replace": lambda site: operate.plan_replace(site, 0, "/dev/new", print),
    "remove": lambda site: operate.plan_remove(site, [0], print),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("overruled", [True, False])
def test_what_the_inventory_says_must_be_in_force(
    whole_site: Path, monkeypatch: pytest.MonkeyPatch, operation: str, overruled: bool
) -> None:
    hosts = whole_site / "inventory/hosts.yml"
    own = load_site(whole_site).nodes["osd01"].vars
    said = {key: own[key] for key in ("devices", "journal_devices") if key in own}
    said = {key: [*value, value[0] if key != "devices" else "/dev/b"] for key, value in said.items()}
    text = hosts.read_text()
    other = whole_site / "inventory/host_vars/osd01.yml"
    if overruled:
        other.parent.mkdir(exist_ok=True)
        other.write_text(json.dumps(said))
    else:
        hosts.write_text(set_variables(text, "osd01", said))
    changed = hosts.read_text()
    state = three(2)
    state = replace(state, osds={n: replace(one, up=n != 0) for n, one in state.osds.items()})
    labels = [item(said["devices"][0], "u0"), item("/dev/b", "u3"), item("/dev/new", "", "empty")]
    labels = [{**one, "size": 1} for one in labels]
    monkeypatch.setattr(operate, "read", lambda _site: state)
    monkeypatch.setattr(act, "read", lambda _site: state)
    monkeypatch.setattr(
        remote, "look",
        lambda _site, wanted, **_more: {
            host: [one for one in labels if one["path"] in [entry["data"] for entry in osds]]
            for host, osds in wanted.items()
        },
    )  # fmt: skip
    try:
        plan = OPERATIONS[operation]
        if not overruled:
            assert plan(load_site(whole_site)).steps
        else:
            with pytest.raises(ConfigError) as caught:
                plan(load_site(whole_site))
            assert caught.value.ref == "osd-inventory-overruled"
            assert str(caught.value.where).startswith("inventory/host_vars/osd01.yml:")
            assert "devices" in caught.value.message
            with pytest.raises(ConfigError):  # nor does the step write
                operate.write_lines(
                    load_site(whole_site), "osd01", names.without(node(**said), said["devices"][:1])
                )
        assert hosts.read_text() == changed
        assert not list((whole_site / ".cloudctl").glob("osd-*"))
    finally:
        hosts.write_text(text)
        other.unlink(missing_ok=True)


def test_a_replacement_waits_until_others_have_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".cloudctl").mkdir()
    seen = [three(1, pg_states={"stale+active+clean": 8}), three(1)]
    monkeypatch.setattr(act, "read", lambda _site: seen.pop(0))
    monkeypatch.setattr(act, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _s: None))
    site: Any = SimpleNamespace(path=tmp_path, nodes={})
    with pytest.raises(CheckFailed) as caught:
        operate.plan_replace(site, 0, "/dev/new", print)
    assert (caught.value.ref, seen) == ("osd-node-absent", [])


@pytest.mark.parametrize(("device", "told"), [("/dev/b", True), ("/dev/disk/by-id/b", False)])
def test_an_osd_of_a_silent_node_is_removed_if_its_line_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, told: bool
) -> None:
    (tmp_path / ".cloudctl").mkdir()
    state = cluster(osd(0, "osd01", device="/dev/a"), osd(1, "osd01", device="/dev/b"))
    site: Any = SimpleNamespace(path=tmp_path, nodes={"osd01": node(devices=["/dev/a", device])})

    def silent(*_args: Any, **_more: Any) -> None:
        raise Unreachable("node-unreachable", "it does not answer")

    monkeypatch.setattr(remote, "look", silent)
    if told:
        (fact,) = operate._identify(site, state, [state.osds[1]], print)
        assert fact["path"] == device
        return
    monkeypatch.setattr(act, "read", lambda _site: state)
    with pytest.raises(CheckFailed, match=r"osd\.1 can't be told: it does not answer") as caught:
        operate.plan_remove(site, [1], print)
    assert caught.value.ref == "osd-line-unknown"
    assert "switch osd01 on" in str(caught.value.hint)
    assert "node remove osd01 --dead" in str(caught.value.hint)
    assert not Journal(tmp_path, "osd-remove").open
    strange = replace(state.osds[1], host="elsewhere")  # of no node that the inventory knows: no line
    assert operate._identify(site, state, [strange], print)[0]["path"] == ""


# -- replacing ---------------------------------------------------------------------------------


def test_an_osd_that_runs_is_replaced_only_when_its_data_can_move_or_is_complete() -> None:
    with pytest.raises(CheckFailed) as caught:
        operate._refuse_replace(three(1), 0, running=True, degraded=False)
    assert caught.value.ref == "osd-not-emptied"
    operate._refuse_replace(three(1), 0, running=True, degraded=True)
    operate._refuse_replace(three(2), 0, running=True, degraded=False)
    for state in (
        three(1, pg_states={"active+undersized+degraded": 1}),
        replace(three(1), pools=[Pool("once", 1, 1)]),
    ):
        with pytest.raises(CheckFailed) as caught:
            operate._refuse_replace(state, 0, running=True, degraded=True)
        assert caught.value.ref == "osd-data-loss"


def test_a_failed_osd_is_replaced_unless_nobody_has_its_data() -> None:
    operate._refuse_replace(three(1, pg_states={"active+undersized": 3}), 0, running=False, degraded=False)
    with pytest.raises(CheckFailed):
        operate._refuse_replace(three(1, pg_states={"down": 3}), 0, running=False, degraded=False)


def test_a_failed_osd_may_hold_the_only_copy_of_a_pool_that_keeps_one() -> None:
    once = replace(three(1), pools=[Pool("vms", 3, 2), Pool("scratch", 1, 1)])
    with pytest.raises(CheckFailed, match="only copy in the pools scratch") as caught:
        operate._refuse_replace(once, 0, running=False, degraded=False)
    assert caught.value.ref == "osd-data-loss"
    emptied = replace(once, osds={**once.osds, 0: replace(once.osds[0], weight=0.0)})
    operate._refuse_replace(emptied, 0, running=False, degraded=False)  # it died after it was emptied


@pytest.mark.parametrize(
    ("fact", "made", "commands"),
    [
        # as it was
        ({"weight": 100 / 1024, "kb": 100 * GIB, "class": "hdd"}, {}, []),
        # a larger disk: the weight of its size
        ({"weight": 50 / 1024, "kb": 50 * GIB, "class": "hdd"}, {"weight": 0.048}, ["osd crush reweight"]),
        # it was emptied first
        ({"weight": 100 / 1024, "kb": 100 * GIB, "class": "hdd"}, {"weight": 0.0}, ["osd crush reweight"]),
        # an operator had lowered it: it stays so
        ({"weight": 0.05, "kb": 100 * GIB, "class": "hdd"}, {"weight": 0.05}, []),
        (
            {"weight": 100 / 1024, "kb": 100 * GIB, "class": "ssd"}, {},
            ["osd crush rm-device-class", "osd crush set-device-class"],
        ),
    ],
)  # fmt: skip
def test_the_new_osd_takes_the_old_ones_place(
    fact: dict[str, Any], made: dict[str, Any], commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        operate, "ask", lambda _s, steps, _w, **_m: asked.extend(s["cmd"]["prefix"] for s in steps)
    )
    operate._place(None, osd(3, "osd01", **made), fact)  # type: ignore[arg-type]
    assert asked == commands


# -- asking ------------------------------------------------------------------------------------


def test_refused_devices_are_errors_of_their_node() -> None:
    bad = [{"path": "/dev/a", "state": "refused", "reason": "it is mounted (/srv)"}]
    with pytest.raises(CheckFailed) as caught:
        remote.refuse_devices({"osd01": [*bad, {"path": "/dev/b", "state": "empty", "reason": ""}]})
    assert (caught.value.ref, caught.value.where) == ("osd-device-refused", "osd01")
    with pytest.raises(MultiError):
        remote.refuse_devices({"osd01": bad, "osd02": bad})
    assert "wipefs" in str(caught.value.hint)
    twice = {"path": "/dev/a", "state": "refused", "reason": "it is /dev/b", "same_as": ["/dev/b"]}
    with pytest.raises(CheckFailed) as caught:
        remote.refuse_devices({"osd01": [twice]})
    assert "wipe" not in str(caught.value.hint)


@pytest.mark.parametrize(
    ("states", "reads"),
    [
        ([{"peering": 2}, {"activating": 1}, {}], 3),
        ([{"incomplete": 1}], 1),
        ([{"stale+active+clean": 3}, {}], 2),  # their OSD died just now: another takes over
        ([{}], 1),
        ([{"remapped+peering": 1}] * 99, 46),
    ],
)
def test_pgs_that_have_not_agreed_yet_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, states: list[dict[str, int]], reads: int
) -> None:
    seen = iter(states)
    clock = itertools.count(0, 2.0)
    counted: list[Any] = []

    def read(site: Any) -> Any:
        counted.append(SimpleNamespace(inactive=next(seen)))
        return counted[-1]

    monkeypatch.setattr(act, "read", read)
    monkeypatch.setattr(act, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    said: list[str] = []
    site: Any = None
    assert act.read_at_rest(site, said.append) is counted[-1]
    assert len(counted) == reads and len(said) == int(reads > 1)
