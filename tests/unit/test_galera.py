"""Galera: what a node's answer says, and which member may start the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudctl.errors import CheckFailed, Unreachable
from cloudctl.galera.decide import BOOTSTRAP, HEALTHY, JOIN, REFUSE, Decision, Renewed, decide
from cloudctl.galera.members import (
    ARGUMENT,
    ENGINE,
    GRASTATE,
    HEADERS,
    NO_UUID,
    SERVER,
    Grastate,
    Member,
    format_table,
    is_healthy,
    member_of,
    parse_grastate,
    remark,
    rows,
    unreachable,
)

A = "0ee3ee03-e575-11f1-b602-cffb54711728"
B = "1ff4ff14-e575-11f1-b602-cffb54711728"


def file(uuid: str = A, seqno: int | str = -1, safe: int | str = 0) -> str:
    return (
        f"# GALERA saved state\nversion: 2.1\nuuid:    {uuid}\nseqno:   {seqno}\nsafe_to_bootstrap: {safe}\n"
    )


def crashed(node: str, seqno: int = 10, uuid: str = A, **more: Any) -> Member:
    """A member whose server is gone; the position is known from its data."""
    given: dict[str, Any] = {
        "container": "exited",
        "data": True,
        "source": ENGINE,
        "uuid": uuid,
        "seqno": seqno,
    }
    return Member(node, **{**given, "grastate": Grastate("ok", uuid, -1), **more})


def synced(node: str, seqno: int = 10, size: int = 3, uuid: str = A, **more: Any) -> Member:
    given: dict[str, Any] = {
        "container": "running",
        "data": True,
        "source": SERVER,
        "uuid": uuid,
        "seqno": seqno,
    }
    given.update(answers=True, primary=True, state="Synced", size=size, running_for=1000)
    return Member(node, **{**given, **more})


def lost(node: str) -> Member:
    return unreachable(node, "the node does not answer by SSH: timed out")


def table(*members: Member) -> dict[str, Member]:
    return {member.node: member for member in members}


# -- grastate.dat -------------------------------------------------------------------------------


def test_grastate_is_read_as_galera_writes_it() -> None:
    assert parse_grastate(file(seqno=113, safe=1)) == Grastate("ok", A, 113, True)
    assert parse_grastate(file() + "my_uuid: 0ecc5e51-e575-11f1-9aa0-f2d8ae222332\n").seqno == -1
    # new data that has not been in a cluster yet
    assert parse_grastate(file(uuid=NO_UUID, safe=1)) == Grastate("ok", "", -1, True)
    assert parse_grastate(None) == Grastate()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\0\0\0",
        "uuid: x",
        file(uuid=A[:-1]),
        file(uuid=A.upper()),
        file(seqno="12x"),
        file(seqno=""),
        file(seqno=-2),
        file(safe="2"),
        file(safe=""),
        file() + "uuid: " + B + "\n",
        file()[:70],
        "�PNG garbage\n" + file(),
    ],
)
def test_a_damaged_grastate_says_nothing_at_all(text: str) -> None:
    assert parse_grastate(text) == Grastate("corrupt")


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert parse_grastate(text).state in ("ok", "corrupt")


@given(st.data())
def test_a_grastate_cut_short_is_never_read_as_another_position(data: st.DataObject) -> None:
    whole = file(seqno=data.draw(st.integers(-1, 10**9)), safe=data.draw(st.integers(0, 1)))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    assert parse_grastate(cut) in (parse_grastate(whole), Grastate("corrupt"))


# -- the node's answer --------------------------------------------------------------------------


def answer(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"container": "exited", "data": True, "grastate": file(), "recovered": None}
    return {**given, **more}


def engine(uuid: str = A, seqno: int = 10) -> dict[str, Any]:
    return {"uuid": uuid, "seqno": seqno}


STATUS = {
    "local_state_uuid": A,
    "last_committed": "116",
    "cluster_status": "Primary",
    "ready": "ON",
    "local_state_comment": "Synced",
    "cluster_size": "3",
}


def test_a_server_that_answers_is_believed() -> None:
    member = member_of("n", answer(container="running", status=STATUS))
    assert (member.uuid, member.seqno, member.source) == (A, 116, SERVER)
    assert member.synced and member.size == 3


def test_a_joining_server_is_not_a_part_yet() -> None:
    status = {
        **STATUS,
        "ready": "OFF",
        "local_state_comment": "Joiner",
        "last_committed": "18446744073709551615",
    }
    member = member_of("n", answer(container="running", status=status))
    assert not member.primary and not member.synced
    assert not member_of("n", answer(status={**STATUS, "cluster_status": "non-Primary"})).primary


def test_after_a_clean_stop_the_file_is_named_as_the_source() -> None:
    member = member_of("n", answer(grastate=file(seqno=10, safe=1), recovered=engine()))
    assert (member.position, member.source, member.safe_to_bootstrap) == (f"{A}:10", GRASTATE, True)
    assert remark(member) == ""


@pytest.mark.parametrize("text", [None, "garbage", file(), file(uuid=NO_UUID)])
def test_without_a_position_in_the_file_the_storage_engine_is_asked(text: str | None) -> None:
    member = member_of("n", answer(grastate=text, recovered=engine(seqno=77)))
    assert (member.position, member.source) == (f"{A}:77", ENGINE)


@pytest.mark.parametrize("said", [5, 5000])
def test_the_data_has_the_last_word_over_a_file_with_another_number(said: int) -> None:
    member = member_of("n", answer(grastate=file(seqno=said, safe=1), recovered=engine(seqno=77)))
    assert (member.seqno, member.source) == (77, ENGINE)
    assert remark(member) == f"grastate.dat says {said}"


def test_a_file_that_names_another_cluster_than_the_data_is_told() -> None:
    assert member_of("n", answer(grastate=file(uuid=B, seqno=5), recovered=engine())).differs == B
    assert member_of("n", answer(grastate=file(uuid=B), recovered=engine())).differs == B
    assert member_of("n", answer(grastate=file(), recovered=engine())).differs == ""


def test_data_that_came_without_a_position_go_by_the_file() -> None:
    member = member_of("n", answer(grastate=file(seqno=9), recovered=engine(NO_UUID, -1)))
    assert (member.position, member.source) == (f"{A}:9", GRASTATE)


def test_a_running_server_that_does_not_answer_is_known_by_what_it_was_started_with() -> None:
    member = member_of("n", answer(container="running", argument=engine(seqno=55)))
    assert (member.position, member.source) == (f"{A}:55", ARGUMENT)


def test_a_copy_that_was_cut_short_is_no_position() -> None:
    member = member_of("n", answer(transfer=True, grastate=file(seqno=10), recovered=None))
    assert member.position == "" and member.transfer and not member.error
    assert remark(member) == "a full copy was cut short"


def test_unreadable_data_say_why() -> None:
    member = member_of("n", answer(recovered=None, recover_error="exit code 1: InnoDB: corrupted page"))
    assert member.uuid == A and member.position == "" and "corrupted page" in member.error
    assert remark(member_of("n", {"container": "missing"})) == "no data"


@given(
    st.fixed_dictionaries(
        {
            "container": st.sampled_from(["running", "exited", "restarting", "missing"]),
            "data": st.booleans(),
            "transfer": st.booleans(),
            "grastate": st.none() | st.just(file()) | st.just(file(seqno=4)) | st.text(max_size=20),
            "recovered": st.none() | st.builds(engine, st.sampled_from([A, B, NO_UUID]), st.integers(-1, 9)),
            "argument": st.none() | st.builds(engine, st.just(A), st.integers(-1, 9)),
            "status": st.just({}) | st.just(STATUS) | st.just({"cluster_status": "Disconnected"}),
        }
    )
)
def test_a_position_is_whole_or_not_there(given_answer: Mapping[str, Any]) -> None:
    member = member_of("n", given_answer)
    assert bool(member.position) == bool(member.source)
    assert member.seqno >= 0 or not member.source
    assert member.uuid != NO_UUID
    assert format_table(HEADERS, rows({"n": member}))
    assert member.as_dict()["node"] == "n"


# -- healthy, joining ---------------------------------------------------------------------------


def test_healthy_is_all_synced_in_one_cluster() -> None:
    whole = table(synced("n1"), synced("n2"), synced("n3", state="Donor/Desynced"))
    assert is_healthy(whole) and decide(whole).kind == HEALTHY
    assert not is_healthy({})
    assert not is_healthy(table(synced("n1"), synced("n2"), lost("n3")))
    assert not is_healthy(table(synced("n1"), synced("n2"), synced("n3", size=2)))
    assert not is_healthy(table(synced("n1"), synced("n2"), synced("n3", uuid=B)))


def test_a_cluster_that_serves_is_only_joined() -> None:
    decision = decide(table(synced("n1", size=1), crashed("n2", 5000), crashed("n3", grastate=Grastate())))
    assert (decision.kind, decision.chosen, decision.joiners) == (JOIN, "n1", ("n2", "n3"))


def test_a_member_without_data_or_with_a_copy_cut_short_joins() -> None:
    members = table(synced("n1", size=1), Member("n2", container="exited"), crashed("n3", transfer=True))
    assert decide(members).joiners == ("n2", "n3")


def test_nothing_is_joined_while_a_node_is_away() -> None:
    members = table(synced("n1", size=2), synced("n2", size=2), lost("n3"))
    decision = decide(members)
    assert decision.kind == REFUSE and isinstance(decision.error, Unreachable)
    assert "n3" in decision.error.message and "serves with n1, n2" in decision.error.message
    assert decide(members, accept_missing=["n3"]).kind == HEALTHY
    one = table(synced("n1", size=1), crashed("n2"), lost("n3"))
    assert decide(one).kind == REFUSE
    assert decide(one, accept_missing=["n3"]).joiners == ("n2",)


def test_data_of_another_cluster_are_not_overwritten_by_a_join() -> None:
    members = table(synced("n1", size=2), synced("n2", size=2), crashed("n3", uuid=B))
    assert refused(decide(members)) == "galera-uuids-differ"
    # unless an earlier recovery gave that identity up
    assert decide(members, renewed=Renewed("n1", (B,))).joiners == ("n3",)


def test_two_clusters_that_serve_are_refused() -> None:
    assert refused(decide(table(synced("n1", size=1), synced("n2", size=1), crashed("n3")))) == "galera-split"
    assert refused(decide(table(synced("n1", size=1), synced("n2", size=2, uuid=B)))) == "galera-split"


# -- starting anew ------------------------------------------------------------------------------


def refused(decision: Decision) -> str:
    assert decision.kind == REFUSE and decision.error is not None
    assert not decision.chosen and not decision.joiners
    return decision.error.ref


def test_the_newest_data_start_the_cluster() -> None:
    decision = decide(table(crashed("n1", 8), crashed("n2", 12), crashed("n3", 11)))
    assert (decision.kind, decision.chosen, decision.seqno) == (BOOTSTRAP, "n2", 12)
    assert decision.joiners == ("n1", "n3") and not decision.new_identity
    assert decision.reason == "n2 has the newest data, 12; n1 is 4 behind, n3 is 1 behind"


def test_a_mark_does_not_beat_newer_data() -> None:
    stale = crashed("n1", 8, source=GRASTATE, grastate=Grastate("ok", A, 8, safe=True))
    decision = decide(table(stale, crashed("n2", 12), crashed("n3", 12)))
    assert decision.chosen == "n2"
    assert "n1 is 4 behind although marked safe_to_bootstrap" in decision.reason


def test_tied_members_go_by_the_mark_then_by_the_inventory() -> None:
    last = crashed("n3", 12, grastate=Grastate("ok", A, 12, safe=True))
    decision = decide(table(crashed("n1", 12), crashed("n2", 9), last))
    assert decision.chosen == "n3" and "left the cluster last" in decision.reason
    decision = decide(table(crashed("n2", 12), crashed("n1", 12)))
    assert decision.chosen == "n2" and "have the same data at 12" in decision.reason


def test_different_clusters_are_refused() -> None:
    decision = decide(table(crashed("n1"), crashed("n2", uuid=B), crashed("n3")))
    assert refused(decision) == "galera-uuids-differ"
    assert isinstance(decision.error, CheckFailed) and B in decision.error.message
    assert refused(decide(table(crashed("n1"), crashed("n2", differs=B)))) == "galera-uuids-differ"
    # known before anything is stopped
    waiting = crashed("n2", -1, uuid=B, container="running", source="")
    assert refused(decide(table(crashed("n1"), waiting))) == "galera-uuids-differ"


def test_a_missing_node_is_refused_unless_accepted() -> None:
    members = table(crashed("n1"), crashed("n2", 5), lost("n3"))
    decision = decide(members)
    assert refused(decision) == "galera-member-unreachable"
    assert decision.error is not None and "--accept-missing n3" in str(decision.error.hint)
    decision = decide(members, accept_missing=["n3"])
    assert (decision.chosen, decision.joiners, decision.left_out) == ("n1", ("n2",), ("n3",))
    assert decision.new_identity, "n3 may come back with writes of its own"
    assert refused(decide(table(crashed("n1"), lost("n2"), lost("n3")), accept_missing=["n3"]))


def test_a_node_that_is_there_is_not_left_out() -> None:
    decision = decide(table(crashed("n1"), crashed("n2", 50)), accept_missing=["n2"])
    assert (decision.chosen, decision.left_out, decision.new_identity) == ("n2", (), False)


def test_an_unknown_position_is_refused_unless_accepted() -> None:
    blind = crashed("n2", -1, uuid="", source="", error="exit code 1")
    assert refused(decide(table(crashed("n1"), blind))) == "galera-position-unknown"
    decision = decide(table(crashed("n1"), blind, crashed("n3")), accept_missing=["n2"])
    assert (decision.chosen, decision.left_out, decision.joiners) == ("n1", ("n2",), ("n3",))
    # a server that runs will be asked again when it is stopped; then it has to be known
    running = replace(blind, container="running")
    assert decide(table(crashed("n1"), running)).kind == BOOTSTRAP
    assert refused(decide(table(crashed("n1"), running), at_rest=True)) == "galera-position-unknown"
    # and where no other position is known, none is made up
    assert decide(table(running)).chosen == ""


def test_nothing_to_recover_from() -> None:
    empty = table(Member("n1"), Member("n2", container="exited"))
    assert refused(decide(empty)) == "galera-no-data"
    assert refused(decide(table(crashed("n1", -1, uuid="", transfer=True), Member("n2")))) == "galera-no-data"


def test_what_an_earlier_recovery_gave_up_is_older() -> None:
    # n1 started the cluster under a new UUID and crashed before the others had joined it
    members = table(crashed("n1", 3, uuid=B), crashed("n2", 500), crashed("n3", 400))
    assert refused(decide(members)) == "galera-uuids-differ"
    decision = decide(members, renewed=Renewed("n1", (A,)))
    assert (decision.chosen, decision.uuid, decision.joiners) == ("n1", B, ("n2", "n3"))
    # it crashed before that: nothing has been given up yet
    members = table(crashed("n1", 500), crashed("n2", 500), crashed("n3", 600))
    assert decide(members, renewed=Renewed("n1", (A,))).chosen == "n3"
    third = "2ff4ff14-e575-11f1-b602-cffb54711728"
    members = table(crashed("n1", 3, uuid=B), crashed("n2"), crashed("n3", uuid=third))
    assert refused(decide(members, renewed=Renewed("n1", (A,)))) == "galera-uuids-differ"


# -- whatever the table is ----------------------------------------------------------------------

GRASTATES = st.sampled_from(
    [Grastate(), Grastate("corrupt"), Grastate("ok", A, -1), Grastate("ok", A, 5, True)]
)
MEMBERS = st.one_of(
    st.builds(lambda seqno, state: crashed("", seqno, grastate=state), st.integers(0, 30), GRASTATES),
    st.builds(lambda seqno: crashed("", seqno, uuid=B), st.integers(0, 30)),
    st.builds(lambda size, seqno: synced("", seqno, size), st.integers(1, 3), st.integers(0, 30)),
    st.builds(lambda seqno: crashed("", seqno, container="running", source=ARGUMENT), st.integers(0, 30)),
    st.builds(lambda seqno: synced("", seqno, primary=False, state="Initialized"), st.integers(0, 30)),
    st.just(crashed("", -1, uuid="", source="", error="unreadable")),
    st.just(crashed("", -1, uuid="", transfer=True, source="")),
    st.just(Member("")),
    st.just(lost("")),
)


@given(st.lists(MEMBERS, min_size=1, max_size=5), st.sets(st.sampled_from(["n0", "n1", "n2"])), st.booleans())
def test_no_decision_loses_a_write_that_is_known_of(
    found: list[Member], accepted: set[str], at_rest: bool
) -> None:
    members = {f"n{i}": replace(member, node=f"n{i}") for i, member in enumerate(found)}
    decision = decide(members, accept_missing=accepted, at_rest=at_rest)
    serving = [m for m in members.values() if m.synced]
    absent = {name for name, m in members.items() if not m.reachable}
    if decision.kind == REFUSE:
        assert decision.error is not None and decision.error.message
        return
    assert absent <= accepted
    assert set(decision.left_out) <= accepted
    assert not set(decision.joiners) & {decision.chosen, *decision.left_out}
    if serving:
        # a cluster that serves is never replaced
        assert decision.kind in (HEALTHY, JOIN)
        return
    assert decision.kind == BOOTSTRAP
    positions = [m for m in members.values() if m.position]
    assert len({m.uuid for m in positions}) <= 1
    if decision.chosen:
        chosen = members[decision.chosen]
        assert not chosen.transfer
        assert all(m.seqno <= chosen.seqno for m in positions)
        assert decision.new_identity == bool(decision.left_out)
        everyone = {decision.chosen, *decision.joiners, *decision.left_out}
        assert everyone == set(members)
    else:
        assert not positions and not at_rest


@given(st.permutations(range(4)), st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_the_position_of_the_choice_does_not_depend_on_the_order(
    order: list[int], positions: list[int]
) -> None:
    members = [crashed(f"n{i}", seqno) for i, seqno in enumerate(positions)]
    shuffled = decide(table(*(members[i] for i in order)))
    assert shuffled.seqno == max(positions)
    assert set(shuffled.joiners) | {shuffled.chosen} == {"n0", "n1", "n2", "n3"}


def test_the_order_in_which_identities_were_given_up_is_the_age_of_the_data() -> None:
    renewed = Renewed("n1", ()).and_now("n1", A).and_now("n2", B)
    assert renewed == Renewed("n2", (A, B))
    assert renewed.newest([A, B]) == B and renewed.newest([A]) == A
    assert renewed.newest([A, "C"]) == "C" and renewed.newest(["C", "D", A]) is None
    assert renewed.newest([]) is None
    assert renewed.and_now("n1", A).newest([A, B]) == A
