"""The decision: a table of members in; who joins, who starts the cluster, or a refusal out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cloudctl.errors import CheckFailed, CloudctlError, Unreachable
from cloudctl.galera.members import Member, is_healthy

HEALTHY, JOIN, BOOTSTRAP, REFUSE = "healthy", "join", "bootstrap", "refuse"


@dataclass(frozen=True)
class Renewed:
    """Earlier recoveries that gave the cluster a new identity, because a member was missing.

    Attributes:
        node: the member that started the cluster the last time.
        uuids: the identities that were given up, in that order: data with one of them is older than data with
            a later one, and that older than the node's.
    """

    node: str
    uuids: tuple[str, ...]

    def and_now(self, node: str, uuid: str) -> Renewed:
        """Return it after the member started the cluster anew and gave up one more identity."""
        return Renewed(node, (*(known for known in self.uuids if known != uuid), uuid))

    def newest(self, uuids: Iterable[str]) -> str | None:
        """Return the identity of the newest data; None where more than one of them was never given up."""
        found = set(uuids)
        kept = found - set(self.uuids)
        if len(kept) > 1:
            return None
        return kept.pop() if kept else max(found, key=self.uuids.index, default=None)


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        kind: ``healthy``, ``join`` (a cluster serves, members are missing), ``bootstrap`` or ``refuse``.
        reason: why, for the operator.
        chosen: the member that starts the cluster (join: those that serve, by comma).
        uuid, seqno: the chosen one's position.
        new_identity: the cluster gets a new UUID, so that a missing member that comes back with writes of its
            own copies everything instead of being taken for a part of this history.
        joiners: members that join then, in this order.
        left_out: members that were accepted as missing.
        error: the refusal.
    """

    kind: str
    reason: str
    chosen: str = ""
    uuid: str = ""
    seqno: int = -1
    new_identity: bool = False
    joiners: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    error: CloudctlError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        return {
            "decision": self.kind,
            "chosen": self.chosen or None,
            "reason": self.reason,
            "uuid": self.uuid or None,
            "seqno": self.seqno if self.seqno >= 0 else None,
            "new_identity": self.new_identity,
            "joins": list(self.joiners),
            "left_out": list(self.left_out),
        }


def decide(
    members: Mapping[str, Member],
    *,
    accept_missing: Iterable[str] = (),
    renewed: Renewed | None = None,
    at_rest: bool = False,
) -> Decision:
    """Decide what brings the cluster back without losing a write.

    Args:
        members: all members of the site, by node, in the order of the inventory.
        accept_missing: members whose data may be left out. One that is there is not left out.
        renewed: see ``Renewed``.
        at_rest: all containers are stopped: an unknown position will not be known later.

    Returns:
        The decision; where nothing safe can be said, a refusal with the reason.
    """
    accepted = set(accept_missing)
    if is_healthy(members):
        first = next(iter(members.values()))
        return Decision(
            HEALTHY,
            f"all {len(members)} members are synced",
            chosen=", ".join(members),
            uuid=first.uuid,
            seqno=max(member.seqno for member in members.values()),
        )
    if primaries := [member for member in members.values() if member.answers and member.primary]:
        return _join(members, primaries, accepted, renewed)
    return _bootstrap(members, accepted, renewed, at_rest)


def _refuse(error: CloudctlError) -> Decision:
    return Decision(REFUSE, error.message, error=error)


def _names(members: Iterable[Member]) -> str:
    return ", ".join(member.node for member in members)


def _missing(members: Iterable[Member], accepted: set[str], *, serving: str = "") -> Decision:
    """Refuse because nodes do not answer."""
    lost = [member for member in members if member.node not in accepted]
    names = _names(lost)
    options = " ".join(f"--accept-missing {member.node}" for member in lost)
    why = lost[0].error.splitlines()[0] if lost[0].error else "no answer"
    if serving:
        message = f"{names} cannot be reached ({why}); the cluster serves with {serving}: nothing is lost"
        hint = f"switch it on; it joins by itself. {options} lets the others join without it"
    else:
        message = f"{names} cannot be reached ({why}): its data may be the newest"
        hint = f"switch it on. If its data is gone for good: {options} (its last writes are lost then)"
    return _refuse(Unreachable("galera-member-unreachable", message, where=names, hint=hint))


def _join(
    members: Mapping[str, Member], primaries: list[Member], accepted: set[str], renewed: Renewed | None
) -> Decision:
    serving = _names(primaries)
    uuids = {member.uuid for member in primaries if member.uuid}
    if len(uuids) > 1 or any(member.size < len(primaries) for member in primaries):
        return _refuse(
            CheckFailed(
                "galera-split",
                f"{serving} each serve a cluster of their own: nobody can tell whose writes count",
                where=serving,
                hint="stop the writers, compare the data, and stop all but one of these servers",
            )
        )
    uuid = uuids.pop() if uuids else ""
    absent = [member for member in members.values() if not member.reachable]
    if any(member.node not in accepted for member in absent):
        return _missing(absent, accepted, serving=serving)
    joiners = [
        member
        for member in members.values()
        if member.reachable and not member.synced and not (member.node in accepted and _unreadable(member))
    ]
    foreign = [
        member
        for member in joiners
        if member.uuid
        and uuid
        and member.uuid != uuid
        and not member.running
        and not (renewed and member.uuid in renewed.uuids)
    ]
    if foreign:
        return _refuse(_different([*primaries, *foreign]))
    position = max(member.seqno for member in primaries)
    left_out = tuple(node for node, member in members.items() if not member.synced and member not in joiners)
    if not joiners:
        return Decision(
            HEALTHY,
            f"{serving} are synced" + (f", without {', '.join(left_out)}" if left_out else ""),
            chosen=serving,
            uuid=uuid,
            seqno=position,
            left_out=left_out,
        )
    return Decision(
        JOIN,
        f"the cluster serves with {serving}: nothing is started anew, {_names(joiners)} joins",
        chosen=serving,
        uuid=uuid,
        seqno=position,
        joiners=tuple(member.node for member in joiners),
        left_out=left_out,
    )


def _unreadable(member: Member) -> bool:
    """Whether there is data of which nobody can tell where it stands."""
    return member.data and not member.transfer and not member.running and not member.position


def _different(members: Iterable[Member]) -> CloudctlError:
    named = ", ".join(f"{member.node} {member.uuid}:{member.seqno}" for member in members)
    return CheckFailed(
        "galera-uuids-differ",
        f"the members' data belong to different clusters: {named}",
        where=named.partition(" ")[0],
        hint="find out which data is the cloud's; move the data directory of the others away "
        "(they copy everything when they join), then run this again",
    )


def _bootstrap(
    members: Mapping[str, Member], accepted: set[str], renewed: Renewed | None, at_rest: bool
) -> Decision:
    absent = [member for member in members.values() if not member.reachable]
    if any(member.node not in accepted for member in absent):
        return _missing(absent, accepted)
    present = [member for member in members.values() if member.reachable]
    # Two names for the same data: a crash between two writes, or a hand. Only the first can be told apart.
    for member in present:
        if member.differs and not (renewed and {member.uuid, member.differs} & {*renewed.uuids}):
            return _refuse(
                CheckFailed(
                    "galera-uuids-differ",
                    f"grastate.dat says {member.differs}, the data itself {member.uuid}",
                    where=member.node,
                    hint="if the data is right, remove grastate.dat; if not, move the data directory away; "
                    "then run this again",
                )
            )
    unknown = [member for member in present if member.data and not member.transfer and not member.position]
    # A running server that says nothing yet is asked again when all are stopped.
    pending = [member for member in unknown if not at_rest and member.container in ("running", "restarting")]
    lost = [member for member in unknown if member not in pending]
    if refused := [member for member in lost if member.node not in accepted]:
        first = refused[0]
        return _refuse(
            CheckFailed(
                "galera-position-unknown",
                f"where the data of {_names(refused)} stands cannot be read: {first.error}",
                where=first.node,
                hint="see what is wrong with its data; if it is gone for good: "
                + " ".join(f"--accept-missing {member.node}" for member in refused)
                + " (its last writes are lost then)",
            )
        )
    known = [member for member in present if member.position]
    uuids = {member.uuid for member in [*known, *pending] if member.uuid}
    if renewed and len(uuids) > 1:
        newest, starter = renewed.newest(uuids), members.get(renewed.node)
        if newest and starter is not None and starter.uuid == newest:
            known = [member for member in known if member.uuid == newest]
            uuids = {newest}
    if len(uuids) > 1:
        return _refuse(_different([member for member in present if member.uuid]))
    if not known and not pending:
        return _refuse(
            CheckFailed(
                "galera-no-data",
                "no member has data to recover from",
                hint="a cluster that never was is made by cloudctl deploy; else restore a backup",
            )
        )
    left_out = tuple(member.node for member in [*absent, *lost])
    if not known:
        return Decision(
            BOOTSTRAP,
            "no position is known before the servers are stopped",
            joiners=(),
            left_out=left_out,
        )
    best = max(member.seqno for member in known)
    tied = [member for member in known if member.seqno == best]
    chosen = next((member for member in tied if member.safe_to_bootstrap), tied[0])
    return Decision(
        BOOTSTRAP,
        _reason(chosen, tied, known, members),
        chosen=chosen.node,
        uuid=chosen.uuid,
        seqno=chosen.seqno,
        new_identity=bool(left_out),
        joiners=tuple(
            member.node for member in present if member is not chosen and member.node not in left_out
        ),
        left_out=left_out,
    )


def _reason(chosen: Member, tied: list[Member], known: list[Member], members: Mapping[str, Member]) -> str:
    """Return why this one, and why not the others."""
    others = [member for member in tied if member is not chosen]
    behind = [member for member in known if member.seqno < chosen.seqno]
    if others:
        why = "left the cluster last" if chosen.safe_to_bootstrap else "comes first in the inventory"
        text = f"{_names([chosen, *others])} have the same data at {chosen.seqno}; {chosen.node} {why}"
    else:
        text = f"{chosen.node} has the newest data, {chosen.seqno}"
    if behind:
        text += "; " + ", ".join(
            f"{member.node} is {chosen.seqno - member.seqno} behind"
            + (" although marked safe_to_bootstrap" if member.safe_to_bootstrap else "")
            for member in behind
        )
    empty = [member.node for member in members.values() if member.reachable and not member.data]
    if empty:
        text += f"; {', '.join(empty)} has no data"
    return text
