"""What is known of the members of the database cluster. Pure: a node's answer in, a row of the table out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NO_UUID = "00000000-0000-0000-0000-000000000000"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

SERVER, GRASTATE, ENGINE, ARGUMENT = "server", "grastate.dat", "wsrep-recover", "start argument"
"""Where a position comes from: the server that answers; the file that a clean stop leaves; the storage
engine, in a one-shot container; what a process that does not answer yet was started with."""


@dataclass(frozen=True)
class Grastate:
    """A grastate.dat.

    Attributes:
        state: ``ok``, ``missing`` or ``corrupt``.
        uuid: of the cluster; empty where there is none (all zeros, too).
        seqno: position; -1 while the server runs, and after a crash.
        safe: the member may start the cluster (it was the last one to leave).
    """

    state: str = "missing"
    uuid: str = ""
    seqno: int = -1
    safe: bool = False


@dataclass(frozen=True)
class Copy:
    """A copy of a member's data that an earlier recovery made.

    Attributes:
        name, path: of the directory on the node.
        bytes: its size.
        whole: it was not cut short.
        made: seconds since the epoch.
    """

    name: str
    path: str
    bytes: int = 0
    whole: bool = True
    made: int = 0


@dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        node: its node.
        reachable: the node answered.
        error: why it did not answer, or why the position is not known.
        container: running, restarting, exited, created, paused, dead or missing.
        running_for: seconds since the container was started, None where it does not run.
        restarts: how often the engine has started it again.
        answers: the server answers.
        primary: the server is in a part of the cluster that takes writes.
        state: what the server says of itself (Synced, Joiner, Donor/Desynced …).
        size: members that the server sees, itself included.
        uuid: the cluster that the data belongs to; empty where unknown, or where there is no data.
        seqno: the data's position in it, -1 where unknown.
        source: where uuid and seqno come from.
        grastate: what grastate.dat says.
        data: there is a data directory with a server's data.
        transfer: a full copy from another member was cut short, or is under way: the data is not usable.
        differs: grastate.dat names another cluster than the data: this one.
        copies: made by earlier recoveries on this node.
        bytes: what a copy of the data would take.
        free: bytes that are free where copies go.
    """

    node: str
    reachable: bool = True
    error: str = ""
    container: str = "missing"
    running_for: int | None = None
    restarts: int = 0
    answers: bool = False
    primary: bool = False
    state: str = ""
    size: int = 0
    uuid: str = ""
    seqno: int = -1
    source: str = ""
    grastate: Grastate = field(default_factory=Grastate)
    data: bool = False
    transfer: bool = False
    differs: str = ""
    copies: tuple[Copy, ...] = ()
    bytes: int = 0
    free: int = 0

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return self.container == "running"

    @property
    def safe_to_bootstrap(self) -> bool:
        """Whether grastate.dat says that this member left the cluster last."""
        return self.grastate.safe

    @property
    def synced(self) -> bool:
        """Whether it is a full member of a cluster that takes writes (one that gives a copy away is, too)."""
        return self.answers and self.primary and self.state in ("Synced", "Donor/Desynced")

    @property
    def position(self) -> str:
        """``uuid:seqno``, empty where unknown."""
        return f"{self.uuid}:{self.seqno}" if self.uuid and self.seqno >= 0 else ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        return {
            "node": self.node,
            "reachable": self.reachable,
            "container": self.container,
            "state": self.state,
            "primary": self.primary,
            "size": self.size,
            "uuid": self.uuid or None,
            "seqno": self.seqno if self.position else None,
            "source": self.source or None,
            "grastate": self.grastate.state,
            "safe_to_bootstrap": self.safe_to_bootstrap,
            "transfer": self.transfer,
            "error": self.error or None,
            "copies": [{"path": copy.path, "bytes": copy.bytes} for copy in self.copies],
        }


def parse_grastate(text: str | None) -> Grastate:
    """Read a grastate.dat; whatever is not as Galera writes it makes it corrupt as a whole."""
    if text is None:
        return Grastate()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if line.strip() and not line.startswith("#"):
            if not colon or name.strip() in fields:
                return Grastate("corrupt")
            fields[name.strip()] = value.strip()
    uuid, seqno, safe = (fields.get(name, "") for name in ("uuid", "seqno", "safe_to_bootstrap"))
    if not _UUID.fullmatch(uuid) or not re.fullmatch(r"-1|\d{1,18}", seqno) or safe not in ("0", "1"):
        return Grastate("corrupt")
    return Grastate("ok", "" if uuid == NO_UUID else uuid, int(seqno), safe == "1")


def _known(uuid: Any, seqno: Any) -> tuple[str, int]:
    """Return a position, or none at all: ``("", -1)``."""
    try:
        number = int(seqno)
    except (TypeError, ValueError):
        return "", -1
    text = str(uuid or "")
    return (text, number) if _UUID.fullmatch(text) and text != NO_UUID and number >= 0 else ("", -1)


def _count(text: Any) -> int:
    """Return a status variable that counts; the server shows the largest number for none."""
    return int(text) if str(text or "").isdigit() and int(text) < 1 << 62 else 0


def member_of(node: str, answer: Mapping[str, Any]) -> Member:
    """Return what the node's answer (``member`` of the module ``cloudctl_galera``) says.

    The data itself has the last word: a grastate.dat that a crash left behind, or a hand, may be older. Where
    it names another cluster than the data, nobody can tell which is right.
    """
    status: Mapping[str, str] = answer.get("status") or {}
    state = parse_grastate(answer.get("grastate"))
    recovered = answer.get("recovered") or {}
    engine = _known(recovered.get("uuid"), recovered.get("seqno"))
    argument = answer.get("argument") or {}
    started_with = _known(argument.get("uuid"), argument.get("seqno"))
    error, differs = "", ""
    uuid, seqno, source = "", -1, ""
    if status:
        uuid, seqno = _known(status.get("local_state_uuid"), _count(status.get("last_committed")))
        source = SERVER if uuid else ""
    elif answer.get("transfer"):
        pass
    elif engine[0]:
        uuid, seqno = engine
        clean = state.uuid == uuid and state.seqno == seqno
        source = GRASTATE if clean else ENGINE
        differs = state.uuid if state.uuid and state.uuid != uuid else ""
    elif started_with[0]:
        (uuid, seqno), source = started_with, ARGUMENT
        differs = state.uuid if state.uuid and state.uuid != uuid else ""
    elif state.uuid and state.seqno >= 0:
        uuid, seqno, source = state.uuid, state.seqno, GRASTATE
    elif state.uuid:
        uuid = state.uuid
    if answer.get("data") and not status and not answer.get("transfer") and seqno < 0:
        error = str(answer.get("recover_error") or "") or "no position is known yet"
    return Member(
        node=node,
        error=error,
        container=str(answer.get("container") or "missing"),
        running_for=answer.get("running_for"),
        restarts=int(answer.get("restarts") or 0),
        answers=bool(status),
        primary=status.get("cluster_status") == "Primary" and status.get("ready") == "ON",
        state=str(status.get("local_state_comment") or ""),
        size=_count(status.get("cluster_size")),
        uuid=uuid,
        seqno=seqno,
        source=source,
        grastate=state,
        data=bool(answer.get("data")),
        transfer=bool(answer.get("transfer")) and not status,
        differs=differs,
        copies=tuple(Copy(**copy) for copy in answer.get("copies") or ()),
        bytes=int(answer.get("size") or 0),
        free=int((answer.get("free") or {}).get("bytes") or 0),
    )


def unreachable(node: str, why: str) -> Member:
    """Return a member whose node did not answer."""
    return Member(node, reachable=False, error=why, container="unknown")


def is_healthy(members: Mapping[str, Member]) -> bool:
    """Whether all members are synced parts of one cluster that takes writes."""
    return (
        bool(members)
        and all(member.synced and member.size == len(members) for member in members.values())
        and len({member.uuid for member in members.values()}) == 1
    )


HEADERS = ("node", "container", "server", "uuid", "position", "from", "safe", "remark")


def rows(members: Mapping[str, Member]) -> list[tuple[str, ...]]:
    """Return the table that an operator sees, one row for every member."""
    return [
        (
            member.node,
            member.container,
            _server(member),
            member.uuid or "-",
            str(member.seqno) if member.position else "-",
            member.source or "-",
            "yes" if member.safe_to_bootstrap else "no",
            remark(member),
        )
        for member in members.values()
    ]


def _server(member: Member) -> str:
    if not member.answers:
        return "-"
    return f"{member.state or 'unknown'}, {'primary' if member.primary else 'not primary'}, {member.size}"


def remark(member: Member) -> str:
    """Return what else there is to say about a member."""
    if not member.reachable:
        return f"unreachable: {member.error}"
    said = []
    if not member.data:
        said.append("no data")
    elif member.grastate.state != "ok" and not member.transfer:
        said.append(f"grastate.dat {member.grastate.state}")
    if member.transfer:
        said.append("a full copy was cut short" if not member.running else "receives a full copy")
    if member.differs:
        said.append(f"grastate.dat names {member.differs}")
    elif member.source == ENGINE and member.grastate.seqno >= 0:
        said.append(f"grastate.dat says {member.grastate.seqno}")
    if member.error:
        said.append(member.error.splitlines()[0][:160])
    return "; ".join(said)


def format_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of text."""
    widths = [
        max(len(header), *(len(row[i]) for row in lines)) if lines else len(header)
        for i, header in enumerate(headers)
    ]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [tuple(headers), *lines]
    ]
