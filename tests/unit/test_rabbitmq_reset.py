"""What `cloudctl rabbitmq reset` decides from what the members say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudctl.errors import CheckFailed, Unreachable
from cloudctl.operations import rabbitmq
from cloudctl.operations.rabbitmq import View, decide, groups_of, lacking, read_view

ALL = ("a", "b", "c")


def view(*running: str, members: tuple[str, ...] = ALL, apart: tuple[str, ...] = (), **more: Any) -> View:
    return View(
        more.pop("state", "running"), frozenset(running), frozenset(members), frozenset(apart), **more
    )


def silent(error: str = "Error: it does not run", state: str = "running") -> View:
    return View(state, error=error)


# -- deciding -----------------------------------------------------------------------------------


def test_a_whole_cluster_needs_nothing() -> None:
    assert decide(dict.fromkeys(ALL, view(*ALL))).kind == rabbitmq.HEALTHY


def test_queues_without_a_replica_get_one() -> None:
    found = decide(dict.fromkeys(ALL, view(*ALL)), lacking=["c"])
    assert (found.kind, found.reset) == (rabbitmq.COMPLETE, ()) and "c" in found.reason


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (silent(), "does not serve"),
        (silent(state="restarting"), "starts again and again"),
        (view("c", members=("c",)), "in a cluster of its own"),
        (view("c"), "does not see them"),
    ],
)
def test_the_majority_keeps_its_data_and_the_other_is_reset(lost: View, words: str) -> None:
    found = decide({"a": view("a", "b"), "b": view("a", "b"), "c": lost})
    assert (found.kind, found.keep, found.reset) == (rabbitmq.RESET, ("a", "b"), ("c",))
    assert words in found.reason


def test_seeing_is_mutual() -> None:
    # c believes that it sees all, the others do not see it.
    views = {"a": view("a", "b"), "b": view("a", "b"), "c": view(*ALL)}
    assert groups_of(views) == [frozenset("ab"), frozenset("c")]
    # All run in the eyes of all, but a partition is known between c and the others.
    views = {"a": view(*ALL, apart=("c",)), "b": view(*ALL, apart=("c",)), "c": view(*ALL)}
    assert decide(views).reset == ("c",)


def test_of_equal_groups_the_one_that_has_run_longest_comes_first() -> None:
    views = {"a": view("a", started="2026-01-03"), "b": view("b", started="2026-01-01")}
    assert groups_of(views)[0] == frozenset("b")


def test_without_a_majority_nobody_loses_data() -> None:
    for views in (
        {node: view(node) for node in ALL},
        {node: silent() for node in ALL},
        {"a": view("a"), "b": silent(), "c": silent(state="restarting")},
    ):
        found = decide(views)
        assert (found.kind, found.reset) == (rabbitmq.RESTART, ())


def test_what_is_stopped_starts_with_its_data() -> None:
    stopped = View("exited")
    found = decide({"a": view("a", "b"), "b": view("a", "b"), "c": stopped})
    assert (found.kind, found.keep, found.start, found.reset) == (rabbitmq.START, ("a", "b"), ("c",), ())
    assert decide(dict.fromkeys(ALL, stopped)).kind == rabbitmq.RESTART


def test_two_of_four_are_no_majority() -> None:
    four = (*ALL, "d")
    views = {n: view("a", "b", members=four) for n in "ab"} | {n: view("c", "d", members=four) for n in "cd"}
    assert decide(views).kind == rabbitmq.RESTART


def test_a_member_of_no_node_is_forgotten() -> None:
    found = decide(dict.fromkeys(ALL, view(*ALL, members=(*ALL, "old"))))
    assert (found.kind, found.reset, found.forget) == (rabbitmq.RESET, (), ("old",))


@pytest.mark.parametrize(
    ("state", "ref", "error"),
    [
        ("unreachable", "rabbitmq-node-unreachable", Unreachable),
        ("absent", "rabbitmq-absent", CheckFailed),
    ],
)
def test_what_cannot_be_mended_now_is_refused(state: str, ref: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        decide({"a": view("a", "b"), "b": view("a", "b"), "c": View(state)})
    assert caught.value.ref == ref and caught.value.where == "c"  # type: ignore[attr-defined]


# -- going on after an interruption -------------------------------------------------------------

RESET_C = rabbitmq.Decision(rabbitmq.RESET, ("a", "b"), ("c",))
C_AWAY = {"a": view("a", "b"), "b": view("a", "b"), "c": silent()}


@pytest.mark.parametrize(
    ("done", "views", "expected"),
    [
        # Before and while its data went: the same steps, those that are done are left out.
        ({"stop-c": "done", "forget-c": "begun"}, C_AWAY, (RESET_C, [])),
        # It was started empty and is not there: it may be alone, so from its stop on again.
        (
            {"stop-c": "done", "forget-c": "done", "aside-c": "done", "join-c": "begun"},
            C_AWAY,
            (RESET_C, ["stop-c", "forget-c", "aside-c"]),
        ),
        # It joined and was lost again; or those whose data counted are lost: everything is looked at anew.
        ({"stop-c": "done", "forget-c": "done", "aside-c": "done", "join-c": "done"}, C_AWAY, (None, [])),
        ({"stop-c": "done"}, {"a": view("a"), "b": silent(), "c": view("c")}, (None, [])),
        ({"stop-c": "done"}, {"a": silent(), "b": view("b", "c"), "c": view("b", "c")}, (None, [])),
    ],
)
def test_an_interrupted_reset_goes_on_or_decides_anew(
    done: dict[str, str], views: dict[str, View], expected: tuple[Any, list[str]]
) -> None:
    assert rabbitmq.go_on(RESET_C, views, done.get) == expected


def test_an_interrupted_start_goes_on_until_it_was_done() -> None:
    begun = rabbitmq.Decision(rabbitmq.RESTART)
    assert rabbitmq.go_on(begun, C_AWAY, {"stop": "done"}.get) == (begun, [])
    assert rabbitmq.go_on(begun, C_AWAY, {"stop": "done", "start": "done"}.get) == (None, [])


def test_an_interrupted_rebuild_needs_its_flags_again_until_data_were_moved_away() -> None:
    anew = rabbitmq.Decision(rabbitmq.REBUILD)
    assert rabbitmq.go_on(anew, C_AWAY, {"stop": "done"}.get) == (None, [])
    assert rabbitmq.go_on(anew, C_AWAY, {"stop": "done"}.get, everything=True) == (anew, [])
    assert rabbitmq.go_on(anew, C_AWAY, {"stop": "done", "aside": "begun"}.get) == (anew, [])
    assert rabbitmq.go_on(anew, C_AWAY, {"aside": "done", "start": "done"}.get) == (None, [])


def test_a_decision_is_written_down_and_read_again() -> None:
    found = rabbitmq.Decision(rabbitmq.RESET, ("a",), ("b",), ("c",), ("d",), "why", ("e",))
    assert rabbitmq.Decision.from_dict(json.loads(json.dumps(found.as_dict()))) == found


# -- reading ------------------------------------------------------------------------------------


def status(**more: Any) -> dict[str, Any]:
    names = [f"rabbit@{node}" for node in ALL]
    found = {"running_nodes": names[:2], "disk_nodes": names, "partitions": {}, **more}
    return {"rc": 0, "stdout": json.dumps(found), "stderr": ""}


def test_a_view_is_read_from_the_members_answer() -> None:
    found = read_view(
        "a", {"state": "running", "started": "x"}, status(partitions={"rabbit@a": ["rabbit@c"]})
    )
    assert (found.running, found.members) == (frozenset("ab"), frozenset(ALL))
    assert (found.apart, found.started, found.error) == (frozenset("c"), "x", "")
    # A record of one member is told by all of them: it is that member's.
    told = status(
        running_nodes=[f"rabbit@{node}" for node in ALL], partitions={"rabbit@c": ["rabbit@a", "rabbit@b"]}
    )
    views = {node: read_view(node, {"state": "running"}, told) for node in ALL}
    assert groups_of(views) == [frozenset("ab"), frozenset("c")]
    assert decide(views).reset == ("c",)


def test_a_member_that_does_not_answer_sees_nobody_and_says_why() -> None:
    assert read_view("a", None, None).state == "absent"
    answer = {"rc": 69, "stdout": "", "stderr": "Error: unable to perform\n\nsee 'help cluster_status'"}
    found = read_view("a", {"state": "running"}, answer)
    assert (found.running, found.error) == (frozenset(), "Error: unable to perform")
    assert "cannot be read" in read_view("a", {"state": "running"}, {**status(), "stdout": "[]]"}).error


def test_replicas_are_counted_of_replicated_queues_only() -> None:
    queues = [
        {"type": "quorum", "members": ["rabbit@a", "rabbit@b"], "online": ["rabbit@a"]},
        {"type": "quorum", "members": ["rabbit@a", "rabbit@b", "rabbit@c"], "online": []},
        {"type": "classic", "members": ["rabbit@a"]},
    ]
    assert lacking(queues, ALL) == {"c": 1}
    assert lacking(queues, ALL, key="online") == {"a": 1, "b": 2, "c": 2}


def test_a_queue_that_counts_on_a_forgotten_member_is_seen() -> None:
    queue = {"type": "quorum", "vhost": "v", "members": ["rabbit@a", "rabbit@c"]}
    alone = {"type": "quorum", "vhost": "v", "name": "alone", "members": ["rabbit@c"]}
    classic = {"type": "classic", "vhost": "v", "name": "x", "members": ["rabbit@c", "rabbit@a"]}
    assert rabbitmq.holding([{**queue, "name": "q"}, alone, classic], "c") == ["v q"]


def test_the_newest_member_that_waits_for_a_broken_one_goes_first() -> None:
    def state(finished: str, *, state: str = "running", looping: bool = False) -> dict[str, Any]:
        return {"state": state, "looping": looping, "finished": finished}

    broken = state("2026-01-01T10:00:09Z", state="restarting", looping=True)
    waiting = {"ctl01": state("2026-01-01T10:00:02Z"), "ctl02": state("2026-01-01T10:00:01Z")}
    first = rabbitmq.first_without_others
    assert first({**waiting, "ctl03": broken}, 3) == "ctl01"
    assert first({**waiting, "ctl03": {**broken, "state": "running"}}, 3) == "ctl01"
    assert first({**waiting, "ctl03": None}, 3) == "ctl01"
    assert first({**waiting, "ctl03": state("2026-01-01T10:00:00Z")}, 3) is None, "none is known to be broken"
    assert first({"ctl01": waiting["ctl01"], "ctl02": broken, "ctl03": broken}, 3) is None, "no majority"
