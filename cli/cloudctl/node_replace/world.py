"""Reading and acting for a replacement: clusters, Ceph, the scoped deploy. Decisions are elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudctl.ceph import desired as ceph_desired
from cloudctl.engine import workspace
from cloudctl.engine.definitions import Cluster as Definition
from cloudctl.engine.render import Renderer
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, MultiError, VerifyFailed
from cloudctl.node_replace import ceph, decide
from cloudctl.node_replace.members import Leftover, Member, fill, filled, leftovers, members
from cloudctl.operations import containers
from cloudctl.operations.call import call
from cloudctl.operations.deploying import deploy
from cloudctl.runner import Event, RunResult, run_playbook
from cloudctl.site.model import Node, Site
from cloudctl.status.probes import clusters_of, parse, probes

FORGET_TIMEOUT = 120
CEPH_TIMEOUT = 300
CEPH_PATIENCE = 60
JOIN_TIMEOUT = 600
HEALTH_TIMEOUT = 1800
"""Seconds in which the new node's containers become healthy: its database copies all data first."""

Report = Callable[[str], None]


@dataclass
class World:
    """A site, the node that is replaced, and what the definitions say of both.

    Attributes:
        site, node: see above.
        renderer: with the site's services.
        names: by node, the containers that should run.
        members, leftovers: of the definitions, as far as the node has the container.
        clusters: those that the node is a member of.
        definitions: how the clusters tell their state.
    """

    site: Site
    node: Node
    renderer: Renderer
    report: Report = lambda line: None
    names: dict[str, list[str]] = field(init=False)
    members: list[Member] = field(init=False)
    leftovers: list[Leftover] = field(init=False)
    clusters: list[decide.Cluster] = field(init=False)
    definitions: tuple[Definition, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {
            node.name: [container.name for container in self.renderer.containers_of(node)]
            for node in self.renderer.managed_nodes()
        }
        own = self.names.get(self.node.name, [])
        services = self.renderer.services
        self.members = [member for member in members(services) if member.container in own]
        self.leftovers = [entry for entry in leftovers(services) if entry.container in own]
        self.definitions = clusters_of(services)
        every = decide.clusters(self.site, self.definitions, self.names)
        self.clusters = [cluster for cluster in every if self.node.name in cluster.nodes]

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def others(self) -> list[str]:
        """The other nodes of the cloud."""
        return [node for node in self.names if node != self.name]

    @property
    def mon(self) -> bool:
        """Whether the node carries a monitor of Ceph."""
        return any(cluster.name == "ceph" for cluster in self.clusters)

    def volumes(self) -> dict[str, list[str]]:
        """Return by named volume of the node the containers that use it."""
        found: dict[str, list[str]] = {}
        for container in self.renderer.containers_of(self.node):
            for entry in container.volumes:
                source = (entry if isinstance(entry, str) else str(entry["volume"])).partition(":")[0]
                if not source.startswith("/"):
                    found.setdefault(source, []).append(container.name)
        return found

    # -- reading -------------------------------------------------------------------------------

    def answers(self, nodes: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """Ask the members of the clusters.

        Args:
            nodes: which must all answer.

        Returns:
            By cluster and node, the parsed answer.

        Raises:
            CloudctlError, MultiError: a node does not answer.
        """
        known = probes(ceph_desired.mon_hosts(self.site) if self.mon else [], self.definitions)
        asked = {cluster.name: known[cluster.name] for cluster in self.clusters}
        wanted = [node for node in nodes if any(node in cluster.nodes for cluster in self.clusters)]
        facts = call(self.site.path, "cloudctl_status", {node: {"probes": asked} for node in wanted})
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for node, answer in facts.all_or_raise().items():
            for name, said in (answer["ansible_facts"]["cloudctl_status"].get("probes") or {}).items():
                data, _why = parse(name, said, self.definitions)
                if data is not None:
                    found.setdefault(name, {})[node] = data
        return found

    def started(self, nodes: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """Return by node and container its id and when it was started."""
        return {
            node: {name: [str(state["id"]), str(state["started"])] for name, state in found.items()}
            for node, found in containers.read(self.site, nodes).items()
        }

    def plan(self) -> dict[str, Any]:
        """Return what a deploy would change now, on all nodes.

        Raises:
            CloudctlError, MultiError: a node does not answer.
        """
        try:
            run_playbook(
                self.site.path, "plan", {"cloudctl_services": [], "cloudctl_nodes": []}
            ).raise_for_failure()
            path = self.site.path / ".cloudctl" / "plan.json"
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        finally:
            workspace.remove(self.site.path)

    # -- clusters ------------------------------------------------------------------------------

    def keeper(self, container: str) -> str:
        """Return one of the others that has the container."""
        return next(node for node in self.others if container in self.names[node])

    def _run(self, container: str, command: Sequence[str], user: str, timeout: int = 60) -> str:
        node = self.keeper(container)
        answers, failed = containers.run_in(
            self.site, [node], container, list(command), user=user, timeout=timeout
        )
        if node in failed:
            raise failed[node]
        answer = answers[node]
        if answer["rc"] != 0:
            said = f"{answer['stdout']}\n{answer['stderr']}".strip()
            raise ApplyFailed(
                "cluster-command", f"{' '.join(command)}: {said[-500:] or answer['rc']}", where=node,
                hint="mend the cause and run the same command again",
            )  # fmt: skip
        return str(answer["stdout"])

    def knows(self, member: Member) -> bool:
        """Whether the others still count the node as a member."""
        listed = self._run(member.container, fill(member.known, self.node), member.user)
        return filled(member.text, self.node) in listed

    def forget(self, member: Member) -> str:
        """Let the others forget the dead member; wait until they have."""
        if not self.knows(member):
            return "no member any more"
        self._run(member.container, fill(member.forget, self.node), member.user, FORGET_TIMEOUT)
        end = time.monotonic() + FORGET_TIMEOUT
        while self.knows(member):
            if time.monotonic() > end:
                raise ApplyFailed(
                    "member-not-forgotten", f"{member.title} still counts {self.name}",
                    where=self.keeper(member.container), hint="see the container's log; then the same again",
                )  # fmt: skip
            time.sleep(2)
        return "forgotten"

    def complete(self, member: Member) -> str:
        """Give the new member what it does not get by itself."""
        for command in member.complete:
            self._run(member.container, fill(command, self.node), member.user, JOIN_TIMEOUT)
        return ""

    def clear(self, entry: Leftover) -> str:
        """Remove what carries the node's name under another identity."""
        listed = self._run(entry.container, fill(entry.listed, self.node), entry.user)
        keep = filled(entry.keep, self.node)
        items = [line.strip() for line in listed.splitlines() if line.strip() and line.strip() != keep]
        for item in items:
            self._run(entry.container, fill(entry.remove, self.node, item), entry.user)
        return f"removed {', '.join(items)}" if items else "none"

    # -- Ceph ----------------------------------------------------------------------------------

    def _ceph_mon(self) -> str:
        nodes = [mon.name for mon in ceph_desired.mon_nodes(self.site) if mon.name != self.name]
        return nodes[0]

    def ceph_forget(self) -> str:
        """Take the dead monitor out of the monitors' map, and its host out of the orchestrator.

        Raises:
            ApplyFailed: it is still there, or Ceph does not answer.
        """
        end = time.monotonic() + CEPH_TIMEOUT
        patience = time.monotonic() + CEPH_PATIENCE
        done: list[str] = []
        problem = ""
        while True:
            try:
                steps, words = ceph.leaving(
                    self.name, self._ceph_ask(ceph.question()), patient=time.monotonic() < patience
                )
                if not steps:
                    return ", ".join(done) or "not there any more"
                self._ceph_ask(steps)
                done += [word for word in words if word not in done]
            except ApplyFailed as error:
                # The active manager may have died with the node: another one takes over in half a minute.
                problem = error.message
                self.report(f"waiting for Ceph's orchestrator: {problem}")
            if time.monotonic() > end:
                raise ApplyFailed(
                    "ceph-host-not-removed", f"Ceph still knows {self.name}: {problem or ', '.join(words)}",
                    where=self._ceph_mon(), hint="ceph status, in 'cephadm shell' there; then the same again",
                )  # fmt: skip
            time.sleep(3)

    def _ceph_ask(self, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Carry out commands on a monitor's node.

        Raises:
            ApplyFailed: one failed.
        """
        leader = self._ceph_mon()
        full = self._ceph_desired()
        arguments = {
            "mode": "ask", "fsid": full["fsid"], "image": full["image"], "node": leader,
            "steps": [dict(entry) for entry in steps],
        }  # fmt: skip
        answers = call(self.site.path, "cloudctl_ceph", {leader: arguments}, changing=True)
        if leader in answers.failed:
            error = answers.failed[leader]
            raise ApplyFailed("ceph-silent", error.message, where=leader, hint=error.hint)
        found: list[dict[str, Any]] = answers.ok[leader]["answers"]
        for asked, answer in zip(steps, found, strict=False):
            if answer["rc"] and not asked["may_fail"]:
                reason = str(answer["err"] or answer["out"]).strip() or f"error {answer['rc']}"
                raise ApplyFailed("ceph-command", f"{asked['cmd']['prefix']}: {reason[-500:]}", where=leader)
        return found

    def ceph_join(self) -> str:
        """Add the new host, wait until its daemons are in."""
        leader = self._ceph_mon()
        arguments = {
            "mode": "apply", "desired": ceph.trimmed(self._ceph_desired(), self.name, leader),
            "timeout": JOIN_TIMEOUT,
        }  # fmt: skip
        answers = call(self.site.path, "cloudctl_ceph", {leader: arguments}, changing=True)
        changes = answers.all_or_raise()[leader]["changes"]
        return ", ".join(f"{entry['kind']} {entry['name']}" for entry in changes) or "nothing to do"

    def _ceph_desired(self) -> dict[str, Any]:
        return ceph_desired.build(self.site, [service.raw for service in self.renderer.services])

    # -- the node ------------------------------------------------------------------------------

    def adopt(self, names: Sequence[str]) -> str:
        """Write down on the new node that the cloud has done these one-shot jobs."""
        wanted = set(names)
        jobs = [{"id": job["id"], "inputs": job["inputs"]} for job in self.jobs() if job["id"] in wanted]
        if not jobs:
            return "none"
        call(self.site.path, "cloudctl_adopt", {self.name: {"jobs": jobs}}, changing=True).all_or_raise()
        return f"{len(jobs)} jobs"

    def jobs(self) -> list[dict[str, Any]]:
        """Return the node's one-shot jobs as rendered."""
        found: list[dict[str, Any]] = self.renderer.node_spec(self.node)["jobs"]
        return found

    def deploy(self, on_event: Callable[[Event], None]) -> RunResult:
        """Make the machine what the site says of the node; no other node is changed.

        Raises:
            CloudctlError, MultiError: it failed; the same again goes on.
        """
        return deploy(self.site.path, nodes=[self.name], health_timeout=HEALTH_TIMEOUT, on_event=on_event)

    # -- the end -------------------------------------------------------------------------------

    def await_whole(self, timeout: float) -> str:
        """Wait until every cluster has all its members.

        Raises:
            VerifyFailed: they are not together in time.
        """
        end = time.monotonic() + timeout
        told = ""
        while True:
            try:
                missing = decide.incomplete(self.clusters, self.answers(list(self.names)))
            except (CloudctlError, MultiError) as error:
                missing = [str(error)]
            if not missing:
                count = len(self.clusters[0].nodes) if self.clusters else 0
                return f"{len(self.clusters)} clusters of {count}"
            if time.monotonic() > end:
                raise VerifyFailed(
                    "not-whole", "; ".join(missing), where=self.name,
                    hint="cloudctl status tells more; then the same again",
                )  # fmt: skip
            if told != missing[0]:
                told = missing[0]
                self.report(f"waiting: {told}")
            time.sleep(3)

    def await_healthy(self, timeout: float) -> str:
        """Wait until the cloud's status is healthy and nothing is registered twice.

        Raises:
            VerifyFailed: something is wrong at the end.
        """
        from cloudctl.commands.status import expected
        from cloudctl.status.collect import collect
        from cloudctl.status.summary import summarise

        end = time.monotonic() + timeout
        told = ""
        while True:
            facts, silent, api = collect(self.site)
            status = summarise(facts, silent, api, expected(self.site))
            wrong = [f"{p.where}: {p.message}" for p in status.problems if not p.warning]
            wrong += [f"registered twice: {line}" for line in decide.duplicates(api, self.name)]
            if not wrong:
                return "healthy"
            if time.monotonic() > end:
                raise VerifyFailed(
                    "cloud-unhealthy", "; ".join(wrong[:5]), where=self.name,
                    hint="cloudctl status tells more; then the same again",
                )  # fmt: skip
            if told != wrong[0]:
                told = wrong[0]
                self.report(f"waiting: {told}")
            time.sleep(3)

    def await_settled(self, timeout: float) -> tuple[str, list[str]]:
        """Wait until a deploy would change nothing on the node, and nothing of Ceph.

        Returns:
            Words, and what a deploy would change on other nodes: that was so before, and is not ours.

        Raises:
            VerifyFailed: something is left to do.
        """
        end = time.monotonic() + timeout
        while True:
            own, others = decide.left_in(self.plan(), self.name)
            if not own:
                return "a deploy changes nothing" + (" there" if others else ""), others
            if time.monotonic() > end:
                raise VerifyFailed(
                    "deploy-left", f"a deploy would still change: {'; '.join(own[:5])}", where=self.name,
                    hint="cloudctl plan shows it",
                )  # fmt: skip
            self.report(f"waiting: {own[0]}")
            time.sleep(5)


def check_others(world: World, *, gone: bool = False) -> list[str]:
    """Refuse where another node is silent, or the others of a cluster have no majority.

    Args:
        world: the site and the node.
        gone: refuse also where the others see the node's member: it lives, then.

    Returns:
        One line for each cluster.

    Raises:
        CloudctlError, MultiError: why it is not safe now.
    """
    looked = containers.look(world.site, world.others)
    if looked.failed:
        # A deploy compares every node; half of it would be done when it found that out.
        looked.all_or_raise()
    if dead := [node for node, answer in looked.ok.items() if world.names[node] and not answer["engine"]]:
        raise CheckFailed(
            "engine-off", "the container engine does not run", where=", ".join(dead),
            hint="cloudctl deploy starts it, or systemctl start docker there",
        )  # fmt: skip
    answers = world.answers(world.others)
    if gone:
        decide.check_gone(world.name, world.clusters, answers)
    return decide.check_quorum(world.name, world.clusters, answers)
