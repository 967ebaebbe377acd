"""The databases are put back: prepared beside the running cloud, then exchanged by renaming, step by step.

All that can fail for a reason in the backup happens before anything is stopped. The exchange itself is a
rename on each node, so that a restore that ends half-way is found in one of few known states, and goes on
from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cloudctl.backup import Report, prove, server
from cloudctl.backup.choose import Choice, LogArchive, choose_restore
from cloudctl.backup.manifest import Manifest, iso
from cloudctl.backup.nodes import Servers, ask, one, read_servers, server_nodes
from cloudctl.backup.store import Store, mebibytes
from cloudctl.backup.take import archive_logs, position_text
from cloudctl.engine.definitions import load_services
from cloudctl.engine.render import desired_containers
from cloudctl.errors import (
    ApplyFailed,
    CheckFailed,
    CloudctlError,
    ConfigError,
    MultiError,
    Unreachable,
    UsageError,
    VerifyFailed,
)
from cloudctl.operations import containers
from cloudctl.operations.steps import DONE, Journal, Step
from cloudctl.site.model import Site

JOURNAL = "db-restore"
JOIN_TIMEOUT = 4 * 3600
"""Seconds in which a server that receives all data from another one has to be Synced."""


@dataclass(frozen=True)
class Plan:
    """What a restore will do.

    Attributes:
        choice: the backups and logs.
        target: the node that gets the data; it starts the cluster.
        joiners: the others, which copy from it.
        missing: servers that do not answer and were accepted as missing.
        writers: by node, the containers that write to the databases.
    """

    choice: Choice
    target: str
    joiners: list[str]
    missing: list[str]
    writers: dict[str, list[str]]


def writers_of(site: Site) -> dict[str, list[str]]:
    """Return by node the containers of the services that have databases, on the nodes of the controllers.

    Agents on other nodes reach the databases through these only, and virtual machines run on without them.
    """
    using = {service.name for service in load_services(site.path) if service.raw.get("databases")}
    control = {node.name for node in site.group("control")}
    found = {
        node: [entry["name"] for entry in entries if entry["service"] in using]
        for node, entries in desired_containers(site).items()
        if node in control
    }
    return {node: names for node, names in found.items() if names}


def make_plan(
    site: Site,
    store: Store,
    *,
    to: str | None,
    at: float | None,
    unverified: bool,
    accept_missing: Sequence[str],
    fetch: bool,
    report: Report,
) -> Plan:
    """Choose backups, logs and nodes; changes nothing on the nodes, but for new binary logs that are begun.

    Args:
        fetch: archive first what the servers still have (a dry run does not).

    Raises:
        UsageError, CheckFailed, Unreachable: it cannot be done; the message says why.
    """
    if site.get("image_set") != "debian":
        raise ConfigError(
            "restore-image-set",
            f"a cluster is not started anew with images of the set {site.get('image_set')!r}",
            where="settings.yml",
            hint="restore with the images that cloudctl builds (image_set: debian)",
        )
    manifests, unreadable = store.read()
    if to is not None and to in unreadable:
        raise unreadable[to]
    for error in unreadable.values():
        report(f"left out: {error.message} ({error.where})")
    if fetch:
        try:
            archive_logs(site, store, manifests, report)
        except CloudctlError as error:
            report(f"the newest binary logs could not be fetched: {error.message}")
    archives, damaged = store.archives()
    for damage in damaged:
        report(f"left out: {damage.message} ({damage.where})")
    choice = choose_restore(manifests, archives, to=to, at=at, now=time.time(), unverified=unverified)
    for warning in choice.warnings:
        report(warning)
    order = server_nodes(site)
    unknown = sorted(set(accept_missing) - set(order))
    if unknown:
        raise UsageError(
            "node-unknown", f"{', '.join(unknown)} runs no database", hint=f"one of: {', '.join(order)}"
        )
    servers = read_servers(site)
    silent = [node for node in order if node not in servers.found]
    refused = [servers.failed[node] for node in silent if node not in accept_missing]
    if refused:
        for failure in refused:
            failure.hint = (
                f"{failure.hint or ''}; or restore without it: --accept-missing NODE "
                "(it copies everything when it comes back)"
            ).lstrip("; ")
        raise refused[0] if len(refused) == 1 else MultiError(refused)
    target = _target(servers, choice)
    return Plan(
        choice=choice,
        target=target,
        joiners=[node for node in order if node != target and node not in silent],
        missing=silent,
        writers={node: names for node, names in writers_of(site).items() if node not in silent},
    )


def _target(servers: Servers, choice: Choice) -> str:
    """Return the node that gets the data, and refuse where one has no room.

    Raises:
        CheckFailed: a node's disk is too small; naming it.
    """
    logs = sum(log.size for log in choice.logs)
    needed = prove.needed_room(choice.chain) + 3 * logs
    target = prove.choose_node(servers, needed, prefer=choice.backup.node)
    # The replaced data stays, so each of the others needs room for a second copy.
    for node, found in servers.found.items():
        copy = choice.chain[0].data_size + 2 * logs
        if node != target and found["free"] < copy:
            raise CheckFailed(
                "disk-full",
                f"{mebibytes(copy)} are needed beside the present data, {mebibytes(found['free'])} are free",
                where=node,
                hint="make room there; cloudctl db forget-replaced removes what earlier restores replaced",
            )
    return target


def check_files(store: Store, choice: Choice) -> None:
    """Compare all that will be used with its checksums.

    Raises:
        CheckFailed: something is damaged; naming it.
    """
    for part in choice.chain:
        store.check_files(part)
    archive = _archive(store, choice)
    for log in choice.logs:
        assert archive is not None
        store.check_log(archive, log)


def _archive(store: Store, choice: Choice) -> LogArchive | None:
    return store.archives()[0].get(choice.backup.lineage) if choice.logs else None


def facts_of(plan: Plan, *, at: float | None, unverified: bool, moment: float) -> dict[str, Any]:
    """Return what the journal keeps of a plan."""
    choice = plan.choice
    return {
        "id": datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%SZ"),
        "backup": choice.backup.id,
        "chain": [part.id for part in choice.chain],
        "at": at,
        "unverified": unverified,
        "logs": [log.name for log in choice.logs],
        "target": plan.target,
        "joiners": plan.joiners,
        "missing": plan.missing,
        "writers": plan.writers,
    }


def describe(plan: Plan) -> list[str]:
    """Return what will be restored, for people."""
    choice = plan.choice
    backup = choice.backup
    lines = [f"backup      {' + '.join(part.id for part in choice.chain)} (from {backup.node})"]
    if choice.at is not None:
        count = len(choice.logs)
        lines.append(
            f"then        {count} binary log{'s' * (count != 1)} from {position_text(choice.start)} up to "
            f"{iso(choice.at)}: writes of that second and later ones are left out"
        )
    else:
        lines.append(f"state of    {iso(backup.finished)}: all later writes are lost")
    lines.append(f"restored on {plan.target}; {', '.join(plan.joiners) or 'nobody'} will copy from it")
    if plan.missing:
        lines.append(f"left out    {', '.join(plan.missing)}")
    return lines


def undone_facts(facts: Mapping[str, Any]) -> str:
    """Return what an interrupted restore was about, for people. Pure."""
    at = f" at {iso(facts['at'])}" if facts.get("at") else ""
    return f"{facts['backup']}{at}"


def make_steps(site: Site, store: Store, facts: Mapping[str, Any], report: Report) -> list[Step]:
    """Return the steps of a restore, which look at what is there before they do anything.

    Args:
        facts: of the plan, see ``facts_of``.
    """
    target, joiners = str(facts["target"]), list(facts["joiners"])
    nodes = [target, *joiners]
    writers = {node: list(names) for node, names in facts["writers"].items()}
    name = f"cloudctl_restore_{facts['id']}"
    at = facts["at"]

    def check(journal: Journal) -> str:
        check_files(store, _choice(store, facts))
        return "all checksums are right"

    def prepare(journal: Journal) -> str:
        choice = _choice(store, facts)
        rows = _prepare(site, store, choice, target, name, at, report)
        journal.keep(rows=rows)
        return f"{sum(entry['rows'] for entry in rows.values())} rows in {len(rows)} schemas"

    def stop_writers(journal: Journal) -> str:
        stopped = containers.stop(site, writers, report=report)
        # Run again, it finds them stopped already: what the first run stopped is what has to start again.
        known = {node: list(names) for node, names in (journal.facts.get("stopped") or {}).items()}
        for node, names in stopped.items():
            known[node] = sorted({*known.get(node, []), *names})
        journal.keep(stopped=known)
        return f"{sum(len(names) for names in known.values())} containers"

    def stop_servers(journal: Journal) -> str:
        # The one that is restored last: should the restore be given up here, it starts the old cluster again.
        for group in (joiners, [target]):
            containers.stop(site, {node: [_SERVERS] for node in group}, report=report)
        return ""

    def swap(journal: Journal) -> str:
        _swap(site, nodes, target, name, str(facts["id"]))
        return f"the replaced data is kept on {', '.join(nodes)}"

    def bootstrap(journal: Journal) -> str:
        containers.start(site, {target: [server.CONTAINER]}, report=report, timeout=1800)
        return ""

    def join(journal: Journal) -> str:
        for node in joiners:
            containers.start(site, {node: [server.CONTAINER]}, report=report, timeout=JOIN_TIMEOUT)
        return ""

    def compare(journal: Journal) -> str:
        return _compare(site, nodes, journal.facts["rows"])

    def start_checks(journal: Journal) -> str:
        containers.start(site, {node: [server.CHECK_CONTAINER] for node in nodes}, report=report)
        return ""

    def start_writers(journal: Journal) -> str:
        # All of them, in their order: some may have been restarted meanwhile, and is only waited for.
        wanted = {node: set(names) for node, names in writers.items()}
        groups = []
        for tier in containers.tiers(site):
            group = {
                node: [entry for entry in names if entry in wanted.get(node, set())]
                for node, names in tier.containers.items()
            }
            groups.append({node: names for node, names in group.items() if names})
        containers.start(site, containers.by_node(groups), report=report)
        return ""

    def services(journal: Journal) -> str:
        return _check_services(site)

    def tidy(journal: Journal) -> str:
        one(site, "close", target, name=name, keep_volume=name)
        return ""

    upto = f", replay binary logs up to {iso(at)}" if at is not None else ""
    return [
        Step("check", "Compare the backup's files with their checksums", check, commands=["sha256sum"]),
        Step("prepare", f"Prepare {facts['backup']} in a throw-away container{upto}", prepare, [target],
             ["mbstream -x", "mariadb-backup --prepare", "mariadb-binlog | mariadb" if at else "count rows"]),
        Step("stop-writers", "Stop what writes to the databases", stop_writers, list(writers),
             [f"{node}: docker stop {' '.join(names)}" for node, names in writers.items()]),
        Step("stop-servers", "Stop the database servers, the restored one last", stop_servers,
             [*joiners, target], [f"docker stop {' '.join(_SERVERS)}"]),
        Step("swap", "Put the restored data in place; keep what was there", swap, nodes,
             [f"mv _data replaced-{facts['id']}"]),
        Step("bootstrap", "Start the cluster anew from the restored data", bootstrap, [target],
             [f"docker start {server.CONTAINER}"]),
        Step("join", "Let the others copy from it, one at a time", join, joiners,
             [f"docker start {server.CONTAINER}"]),
        Step("compare", "Compare members and rows with what was prepared", compare, nodes),
        Step("start-checks", "Let the load balancer see the servers", start_checks, nodes,
             [f"docker start {server.CHECK_CONTAINER}"]),
        Step("start-writers", "Start the services again, in their order", start_writers, list(writers)),
        Step("services", "Sign in, and ask the services", services, commands=["openstack token issue"]),
        Step("tidy", "Remove what was only needed meanwhile", tidy, [target]),
    ]  # fmt: skip


_SERVERS = [server.CHECK_CONTAINER, server.CONTAINER]


def begun_swap(journal: Journal) -> bool:
    """Tell whether a restore is so far that it has to be finished."""
    return journal.open and journal.state("stop-writers") is not None


def _choice(store: Store, facts: Mapping[str, Any]) -> Choice:
    """Return the choice that was made when the restore began.

    Raises:
        CheckFailed: a part of it is gone.
    """
    manifests: dict[str, Manifest]
    manifests, unreadable = store.read()
    if facts["backup"] in unreadable:
        raise unreadable[facts["backup"]]
    return choose_restore(
        manifests,
        store.archives()[0],
        to=facts["backup"],
        at=facts["at"],
        now=time.time(),
        unverified=bool(facts["unverified"]),
    )


def _prepare(
    site: Site, store: Store, choice: Choice, node: str, name: str, at: float | None, report: Report
) -> dict[str, dict[str, int]]:
    servers = read_servers(site, nodes=[node])
    found = servers.found.get(node)
    if found is None or found["container"] is None:
        raise servers.failed.get(node) or ApplyFailed(
            "container-missing", "the database's container does not exist", where=node,
            hint="cloudctl deploy makes it",
        )  # fmt: skip
    one(site, "open", node, name=name, image=found["container"]["image"], keep_volume=name)
    try:
        parts = prove.unpack(site, store, choice.chain, node, name, report)
        replay = ""
        archive = _archive(store, choice)
        if choice.logs and at is not None:
            assert choice.start is not None
            report(f"{node}: unpacking {len(choice.logs)} binary logs")
            paths = prove.send_logs(site, store, archive, choice.logs, node, name)
            until = datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%d %H:%M:%S")
            replay = server.replay_command(prove.WORK, paths, choice.start.offset, until)
        report(f"{node}: preparing" + (f", replaying up to {iso(at)}" if at is not None else ""))
        proof = one(site, "prove", node, name=name, parts=parts, replay=replay)["proof"]
    except CloudctlError:
        ask(site, "close", [node], name=name, keep_volume=name)
        raise
    # Its volume stays: it becomes the server's.
    one(site, "close", node, name=name)
    if choice.at is None and (problem := prove.missing_from(choice.backup, proof["rows"])):
        raise CheckFailed("backup-incomplete", problem, where=choice.backup.id, hint="choose another backup")
    rows: dict[str, dict[str, int]] = proof["rows"]
    return rows


def _swap(site: Site, nodes: Sequence[str], target: str, name: str, restore: str) -> None:
    one(site, "swap", target, name=restore, source=name)
    others = [node for node in nodes if node != target]
    ask(site, "swap", others, name=restore).all_or_raise()


def _compare(site: Site, nodes: Sequence[str], rows: Mapping[str, Mapping[str, int]]) -> str:
    """Compare the servers with what was prepared.

    Raises:
        VerifyFailed: they differ.
    """
    counted = {
        node: answer["rows"] for node, answer in ask(site, "count", list(nodes)).all_or_raise().items()
    }
    problems, more = differences(rows, counted)
    servers = read_servers(site, nodes=list(nodes))
    told = {node: found["server"] or {} for node, found in servers.found.items()}
    uuids = {known.get("uuid") for known in told.values()}
    sizes = {known.get("size") for known in told.values()}
    states = {node: known.get("state") for node, known in told.items() if known.get("state") != "Synced"}
    if uuids == {None} or len(uuids) != 1 or sizes != {len(nodes)} or states or len(told) != len(nodes):
        problems.append(
            f"the cluster is not whole: sizes {sorted(map(str, sizes))}, not Synced: {states or 'none'}"
        )
    if problems:
        raise VerifyFailed(
            "restore-differs", "; ".join(problems[:5]), where=", ".join(nodes),
            hint="cloudctl status shows the cluster; run the same command again to go on",
        )  # fmt: skip
    (known,) = [told[nodes[0]]]
    found = f"{len(nodes)} members, {known['uuid']}:{known['seqno']}"
    if more:
        found += f"; something writes to the servers directly: {', '.join(more)} grew since"
    return found


_OWN = ("mysql", "sys")


def differences(
    prepared: Mapping[str, Mapping[str, int]], counted: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> tuple[list[str], list[str]]:
    """Compare the members' rows with what was prepared: pure.

    Nothing comes through the load balancer yet. What a program on a node itself, or a person, adds meanwhile
    must not keep the restore from its end.

    Returns:
        What is missing, and the schemas that have more.
    """
    missing, more = [], set()
    for node, rows in counted.items():
        for schema, expected in prepared.items():
            found = rows.get(schema, {"tables": 0, "rows": 0})
            # The server's own tables change by themselves.
            if schema in _OWN or (found == expected and schema in rows):
                continue
            if schema not in rows or any(found[key] < expected[key] for key in ("tables", "rows")):
                missing.append(f"{node}: {schema} has {rows.get(schema)}, prepared were {expected}")
            else:
                more.add(schema)
    return missing, sorted(more)


def _check_services(site: Site) -> str:
    """Sign in and ask for the catalogue, as long as that may still become right.

    Raises:
        VerifyFailed: it does not.
    """
    # The client takes a second to load: not for those that only look at backups.
    from cloudctl.openrc import connect

    # It tells every attempt that fails, and the first ones may.
    logging.getLogger("keystoneauth").setLevel(logging.CRITICAL)
    deadline = time.monotonic() + 120
    while True:
        try:
            cloud = connect(site, timeout=20)
            cloud.authorize()
            entries = list(cloud.identity.services())
            return f"signed in, {len(entries)} services in the catalogue"
        except Exception as error:
            if time.monotonic() > deadline:
                raise VerifyFailed(
                    "services-not-back",
                    f"signing in does not work: {' '.join(str(error).split())[:300]}",
                    where="identity",
                    hint="cloudctl deploy sets passwords again that were changed after the backup; then run "
                    "the same command again",
                ) from None
            time.sleep(3)


def replaced(site: Site) -> tuple[dict[str, list[str]], dict[str, CloudctlError]]:
    """Return by node the data directories that restores replaced, and why a node does not tell."""
    servers = read_servers(site)
    return {node: found["replaced"] for node, found in servers.found.items()}, servers.failed


def forget(site: Site, nodes: Sequence[str]) -> dict[str, list[str]]:
    """Remove the replaced data directories.

    Raises:
        CloudctlError, MultiError: a node did not do it.
    """
    return {
        node: answer["removed"] for node, answer in ask(site, "forget", list(nodes)).all_or_raise().items()
    }


def guard_open(journal: Journal) -> None:
    """Refuse what must not happen while a restore is half done.

    Raises:
        CheckFailed: one is.
    """
    if begun_swap(journal) and journal.state("tidy") != DONE:
        raise CheckFailed(
            "restore-unfinished", f"the restore of {undone_facts(journal.facts)} is not finished",
            where=str(journal.path), hint="cloudctl db restore goes on with it",
        )  # fmt: skip


__all__ = ["Plan", "Unreachable", "check_files", "describe", "facts_of", "forget", "make_plan", "make_steps"]
