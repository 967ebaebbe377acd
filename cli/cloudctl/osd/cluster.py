"""What the storage cluster says of its OSDs, pools and data, as plain objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Answers = Mapping[str, Any]


@dataclass(frozen=True)
class Osd:
    """One OSD.

    Attributes:
        uuid: changes when the OSD is made anew.
        weight: in CRUSH, 0 once it is being emptied.
        share: 0 to 1; 0 when it is marked out.
        kb, kb_used, kb_data: size, everything that is used, and the objects' part of it (KiB).
        device, journal: as the node named them when the OSD last started; "" where that is not known.
        started: it ran once; what an interrupted creation leaves never did, and holds nothing.
    """

    id: int
    host: str = ""
    uuid: str = ""
    device_class: str = ""
    weight: float = 0.0
    share: float = 1.0
    kb: int = 0
    kb_used: int = 0
    kb_data: int = 0
    pgs: int = 0
    up: bool = False
    present: bool = True
    device: str = ""
    journal: str = ""
    started: bool = True

    @property
    def name(self) -> str:
        return f"osd.{self.id}"

    @property
    def takes_data(self) -> bool:
        """Whether data is placed on it."""
        return self.up and self.share > 0 and self.weight > 0


@dataclass(frozen=True)
class Pool:
    """One pool: how many copies on how many different things, and how much it holds.

    Attributes:
        domain: what holds at most one copy: host or osd (others count as host).
        kb: all copies together (KiB).
    """

    name: str
    size: int
    min_size: int
    device_class: str = ""
    domain: str = "host"
    kb: int = 0


@dataclass(frozen=True)
class Cluster:
    """The cluster at one moment.

    Attributes:
        nearfull: 0 to 1; an OSD that is fuller makes the cluster complain.
        pg_states: number of PGs by state.
        misplaced, degraded: objects that are not where, or not as often there, as they should be.
        bytes_per_second: of recovery.
        health: checks that complain, name to message; ``unfound`` objects have lost their last copy.
        hosts: nodes that the orchestrator knows.
        in_osdmap: ids of all OSDs that exist.
    """

    osds: Mapping[int, Osd]
    pools: Sequence[Pool] = ()
    nearfull: float = 0.85
    pg_states: Mapping[str, int] = field(default_factory=dict)
    misplaced: int = 0
    degraded: int = 0
    unfound: int = 0
    bytes_per_second: int = 0
    health: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[str] = ()

    @property
    def unclean(self) -> int:
        """How many PGs are not active+clean (scrubbing ones are)."""
        return sum(count for state, count in self.pg_states.items() if not is_clean(state))

    @property
    def inactive(self) -> dict[str, int]:
        """PGs that serve nobody, by state: no copy of their data can be reached."""
        return {state: count for state, count in self.pg_states.items() if not is_served(state)}

    def on(self, host: str) -> list[Osd]:
        """Return the OSDs of a node."""
        return [osd for osd in self.osds.values() if osd.host == host]


def is_served(state: str) -> bool:
    """Return whether a PG's data can be reached; a stale one's state is from before its OSDs fell silent."""
    parts = state.split("+")
    return "active" in parts and "stale" not in parts


def is_clean(state: str) -> bool:
    """Return whether a PG's state is active+clean, scrubbing or not."""
    return is_served(state) and "clean" in state.split("+")


QUESTIONS: dict[str, Mapping[str, Any]] = {
    "dump": {"prefix": "osd dump"},
    "df": {"prefix": "osd df", "output_method": "tree"},
    "metadata": {"prefix": "osd metadata"},
    "rules": {"prefix": "osd crush rule dump"},
    "usage": {"prefix": "df"},
    "status": {"prefix": "status"},
}
"""What is asked, in one call; ``parse`` takes the decoded answers by these names."""


def parse(answers: Answers) -> Cluster:
    """Return the cluster from the decoded answers to ``QUESTIONS`` (and ``hosts``: names)."""
    places, rows = _rows(answers["df"])
    metadata = {entry["id"]: entry for entry in answers["metadata"] if "id" in entry}
    osds = {}
    for entry in answers["dump"]["osds"]:
        number = int(entry["osd"])
        row, known = rows.get(number, {}), metadata.get(number, {})
        osds[number] = Osd(
            id=number,
            host=places.get(number) or known.get("hostname", ""),
            uuid=entry.get("uuid", ""),
            device_class=row.get("device_class", ""),
            weight=float(row.get("crush_weight", 0)),
            share=float(entry.get("weight", 1)) if entry.get("in") else 0.0,
            kb=int(row.get("kb", 0)),
            kb_used=int(row.get("kb_used", 0)),
            kb_data=int(row.get("kb_used_data", 0)),
            pgs=int(row.get("pgs", 0)),
            up=bool(entry.get("up")),
            device=known.get("bluestore_bdev_partition_path", ""),
            journal=known.get("bluefs_db_partition_path", ""),
            started=bool(entry.get("up")) or "new" not in (entry.get("state") or ()),
        )
    status = answers["status"]
    pgmap = status.get("pgmap") or {}
    checks = (status.get("health") or {}).get("checks") or {}
    return Cluster(
        osds=osds,
        pools=_pools(answers),
        nearfull=float(answers["dump"].get("nearfull_ratio") or 0.85),
        pg_states={s["state_name"]: int(s["count"]) for s in pgmap.get("pgs_by_state") or ()},
        misplaced=int(pgmap.get("misplaced_objects") or 0),
        degraded=int(pgmap.get("degraded_objects") or 0),
        unfound=int(pgmap.get("unfound_objects") or 0),
        bytes_per_second=int(pgmap.get("recovering_bytes_per_sec") or 0),
        health={
            name: str((check.get("summary") or {}).get("message", ""))
            for name, check in checks.items()
            if not check.get("muted")
        },
        hosts=list(answers.get("hosts") or ()),
    )


def _rows(df: Answers) -> tuple[dict[int, str], dict[int, Answers]]:
    """Return the host and the row of each OSD in ``osd df tree``."""
    places: dict[int, str] = {}
    for node in df.get("nodes") or ():
        if node.get("type") == "host":
            places.update(dict.fromkeys(node.get("children") or (), node["name"]))
    rows = [*(df.get("nodes") or ()), *(df.get("stray") or ())]
    return places, {int(node["id"]): node for node in rows if node.get("type") == "osd"}


def _pools(answers: Answers) -> list[Pool]:
    rules = {rule["rule_id"]: rule for rule in answers["rules"]}
    used = {pool["name"]: (pool.get("stats") or {}) for pool in answers["usage"].get("pools") or ()}
    pools = []
    for pool in answers["dump"]["pools"]:
        steps = (rules.get(pool.get("crush_rule")) or {}).get("steps") or ()
        take = next((str(step.get("item_name", "")) for step in steps if step.get("op") == "take"), "")
        # Not set_choose_tries and the like, with which rules of erasure-coded pools begin.
        choose = next(
            (str(step.get("type", "")) for step in steps if str(step.get("op")).startswith("choose")), "host"
        )
        pools.append(
            Pool(
                name=pool["pool_name"],
                size=int(pool["size"]),
                min_size=int(pool["min_size"]),
                device_class=take.partition("~")[2],
                domain="osd" if choose == "osd" else "host",
                kb=int(used.get(pool["pool_name"], {}).get("bytes_used") or 0) // 1024,
            )
        )
    return pools
