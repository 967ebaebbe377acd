"""Letting machines join a running cloud: only they are worked on, the others are told in one call each.

All of it is made from the site as it will be (see ``future``). The inventory changes at the very end, when
the new nodes have shown that they work.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cloudctl.ceph.desired import device_arguments, mon_nodes
from cloudctl.checks import judge
from cloudctl.checks.judge import Finding
from cloudctl.checks.registry import missing
from cloudctl.checks.wanted import images, ports, questions
from cloudctl.engine import workspace
from cloudctl.engine.plan import describe as describe_plan
from cloudctl.engine.plan import summary
from cloudctl.engine.render import Renderer, render_site
from cloudctl.errors import CloudctlError, MultiError
from cloudctl.netcheck.collect import facts_of, silent_nodes
from cloudctl.node.check import adopted, judge_leftovers, judge_trial, trials
from cloudctl.node.inventory import joined, read_text, tidied, write_text
from cloudctl.node.others import Work, call_of, ceph_of, works
from cloudctl.operations.call import call
from cloudctl.operations.steps import Journal, Step
from cloudctl.osd import read, throttle
from cloudctl.runner import Event, RunResult, run_playbook
from cloudctl.runs.lock import state_directory
from cloudctl.runs.record import write_atomically
from cloudctl.site.model import Site

Say = Callable[[str], None]


def progress(say: Say) -> Callable[[Event], None]:
    """Return a handler of a playbook's events that says what was done where."""
    play = ""

    def handle(event: Event) -> None:
        nonlocal play
        data = event.get("event_data") or {}
        kind = event.get("event")
        if kind == "playbook_on_play_start":
            play = str(data.get("name") or "")
        elif kind in ("runner_on_failed", "runner_on_unreachable"):
            say(f"{data.get('host')}: {play}: {'failed' if kind == 'runner_on_failed' else 'unreachable'}")
        elif kind == "runner_on_ok":
            counts: dict[str, int] = {}
            for entry in (data.get("res") or {}).get("done") or []:
                if isinstance(entry, Mapping):
                    what = f"{entry.get('kind', 'change')} {entry.get('action', '')}".strip()
                    counts[what] = counts.get(what, 0) + 1
            if counts:
                told = ", ".join(f"{n} x {what}" if n > 1 else what for what, n in counts.items())
                say(f"{data.get('host')}: {play}: {told}")

    return handle


@dataclass
class Change:
    """What a change of the site means: for the nodes that come or go, and for all others.

    Attributes:
        before, after: the site as it is and as it will be.
        names: the nodes that come or go.
        others: by other node, what it has to do.
        specs: rendered nodes as they will be.
        ceph: the wanted Ceph cluster, None where there is none.
    """

    before: Site
    after: Site
    names: Sequence[str]
    others: dict[str, Work]
    specs: Mapping[str, Any]
    ceph: Mapping[str, Any] | None


def change_of(before: Site, after: Site, names: Sequence[str], without: Sequence[str] = ()) -> Change:
    """Render both sites and compare. Pure.

    Args:
        without: nodes that cannot be told anything.
    """
    old, new = render_site(before), render_site(after)
    others = works(
        {name: spec for name, spec in old["nodes"].items() if name not in names},
        {name: spec for name, spec in new["nodes"].items() if name not in names},
        without,
    )
    ceph = new["ceph"]["desired"] if new["ceph"] else None
    return Change(before, after, list(names), others, new["nodes"], ceph)


def tell(
    change: Change,
    say: Say,
    extra: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    *,
    patient: bool = False,
) -> list[str]:
    """Do the others' work, on all of them at the same time, with one connection each.

    Args:
        change: what there is to do.
        say: told what is done.
        extra: by node, more calls of modules, after its own work.
        patient: jobs may wait, too, for the deploy that tells a node that cannot be reached now.

    Returns:
        The nodes that could not be reached; a deploy tells them later.

    Raises:
        ApplyFailed, MultiError: a node's work failed; or one that matters cannot be reached.
    """
    calls: dict[str, list[Mapping[str, Any]]] = {
        node: [call_of(node, work, change.specs[node])] for node, work in change.others.items() if work
    }
    needed = {node for node, work in change.others.items() if work.jobs and not patient}
    for node, more in (extra or {}).items():
        calls.setdefault(node, []).extend(more)
        needed.add(node)
    if not calls:
        return []
    directory = state_directory(change.after.path) / "private"
    directory.mkdir(mode=0o700, exist_ok=True)
    for node, own in calls.items():
        write_atomically(directory / f"{node}.json", json.dumps(own))
    result = run_playbook(
        change.after.path,
        "phases/private",
        {"cloudctl_private_nodes": list(calls), "cloudctl_private_directory": str(directory)},
        on_event=progress(say),
    )
    unreached = [
        str(failure["host"])
        for failure in result.failures
        if failure["unreachable"] and failure["host"] not in needed
    ]
    left = [failure for failure in result.failures if failure["host"] not in unreached]
    if left:
        RunResult(rc=result.rc, failures=left).raise_for_failure(changing=True)
    return unreached


@dataclass
class Joining:
    """Machines on their way into the cloud.

    Attributes:
        change: what it means.
        roles: by machine, the group that it joins.
        say: told what is done.
        plan: what the machines lack; filled by ``check``.
        warnings: what was found and does not keep them from joining.
        begun: machines of an earlier run that did not end.
    """

    change: Change
    roles: Mapping[str, str]
    say: Say
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: list[Finding] = field(default_factory=list)
    devices: dict[str, Any] = field(default_factory=dict)
    changed: list[dict[str, Any]] = field(default_factory=list)
    begun: Collection[str] = ()

    @property
    def names(self) -> list[str]:
        """The machines."""
        return list(self.roles)

    def of_role(self, role: str) -> list[str]:
        """Return the machines of a role."""
        return [name for name, its in self.roles.items() if its == role]

    # -- check ---------------------------------------------------------------------------------

    def check(self) -> str:
        """Look at the machines, try their networks, and find out what they lack; nothing is changed.

        Raises:
            CheckFailed, Unreachable, MultiError: everything that keeps them from joining.
        """
        after = self.change.after
        renderer = Renderer(after)
        received: dict[str, float] = {}
        guard = threading.Lock()

        def on_event(event: Event) -> None:
            data = event.get("event_data") or {}
            facts = (data.get("res") or {}).get("ansible_facts") or {}
            if event.get("event") == "runner_on_ok" and "cloudctl_check" in facts:
                with guard:
                    received.setdefault(str(data.get("host")), time.time())

        workspace.render(after.path)
        self._limit()
        wanted = {
            name: ref
            for name, ref in images(renderer).items()
            if name in self._images_of(renderer) or not ref
        }
        asked = {name: entry for name, entry in questions(renderer).items() if name in self.roles}
        with ThreadPoolExecutor(max_workers=1) as pool:
            registry = pool.submit(missing, {name: ref for name, ref in wanted.items() if ref})
            result = run_playbook(
                after.path,
                "phases/joining",
                {
                    "cloudctl_only": self.names,
                    "cloudctl_checks": asked,
                    "cloudctl_trials": trials(after, self.names),
                },
                on_event=on_event,
            )
            absent, registry_silent = registry.result()
        silent = silent_nodes(result)
        facts = facts_of(result, "cloudctl_check")
        if not facts and not silent:
            result.raise_for_failure()
        findings: list[Finding] = []
        for name in self.names:
            node = after.nodes[name]
            if name in facts:
                facts[name]["clock"]["received"] = received.get(name)
                findings += judge.judge_node(node, facts[name], ports(renderer, node))
            for answer in result.facts.get(name, {}).values():
                if "trial" in answer:
                    findings += judge_trial(name, answer["trial"])
        findings += judge.judge_images(wanted, absent, registry_silent)
        work = workspace.open_workspace(after.path)
        for name in self.names:
            self.devices[name] = work.observed(name).get("devices", [])
            if name in self.begun and any(item["state"] == "refused" for item in self.devices[name]):
                self.devices[name] = adopted(self.devices[name], read(self.change.before))
            findings += judge.judge_devices(name, self.devices[name])
            if name not in self.begun:
                findings += judge_leftovers(name, self.devices[name])
        self.warnings = [finding for finding in judge.merge(findings) if finding.warning]
        errors: list[CloudctlError] = [
            finding.as_error() for finding in judge.merge(findings) if not finding.warning
        ]
        errors += [error for error in silent.values() if error.ref != "node-unread"]
        if errors:
            raise errors[0] if len(errors) == 1 else MultiError(errors)
        result.raise_for_failure()
        self.plan = json.loads((state_directory(after.path) / "plan.json").read_text(encoding="utf-8"))
        return summary(self.plan)

    def _images_of(self, renderer: Renderer) -> set[str]:
        nodes = [self.change.after.nodes[name] for name in self.names]
        return {container.image for node in nodes for container in renderer.containers_of(node)}

    def _limit(self) -> None:
        """Let what was rendered be about these machines only: nobody else is compared, or worked on."""
        path = workspace.workspace_path(self.change.after.path) / "index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["nodes"] = [name for name in index["nodes"] if name in self.roles]
        write_atomically(path, json.dumps(index))
        image = self._ceph_image()
        for name in self.of_role("storage") if image else ():
            # It is large, and the orchestrator would only begin to fetch it when all else is ready.
            place = workspace.workspace_path(self.change.after.path) / "nodes" / name
            spec = json.loads(zlib.decompress(place.read_bytes()))
            spec["images"].append(image)
            place.write_bytes(zlib.compress(json.dumps(spec).encode(), 1))

    def _ceph_image(self) -> str:
        return str(self.change.ceph["image"]) if self.change.ceph else ""

    # -- what is shown -------------------------------------------------------------------------

    def describe(self) -> list[str]:
        """Return what would be done as lines that a person reads."""
        lines = describe_plan(self.plan, diff=False)
        ceph = self._ceph()
        if ceph is not None:
            lines.append("ceph:")
            lines += [f"  add host {host['name']} ({host['address']})" for host in ceph["hosts"]]
            lines += [f"  create OSD {osd['host']}:{osd['data']}" for osd in ceph["osds"]]
        for node, work in self.change.others.items():
            lines.append(f"{node}: one call")
            lines += [f"  {line}" for line in work.describe()]
        quiet = [name for name in self.change.specs if name not in self.change.others]
        quiet = [name for name in quiet if name not in self.roles]
        if quiet:
            lines.append(f"not touched: {', '.join(quiet)}")
        lines += [f"inventory: {name} moves from newnodes to {role}" for name, role in self.roles.items()]
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return what would be done as data."""
        return {
            "nodes": dict(self.roles),
            "plan": {key: self.plan[key] for key in ("nodes", "totals")} if self.plan else {},
            "others": {node: work.as_dict() for node, work in self.change.others.items()},
            "warnings": [finding.as_dict() for finding in self.warnings],
        }

    # -- doing it ------------------------------------------------------------------------------

    def prepare(self) -> str:
        """Bring the machines to what the site describes: base settings, network, engine, services."""
        if not self.plan.get("changes"):
            return "nothing to change"
        result = run_playbook(
            self.change.after.path,
            "deploy",
            {"cloudctl_planned": True, "cloudctl_services": [], "cloudctl_nodes": []},
            on_event=progress(self.say),
        )
        result.raise_for_failure(changing=True)
        self.changed += result.changed
        return summary(self.plan)

    def register(self) -> str:
        """Tell the others; let the storage nodes' disks become OSDs."""
        extra: dict[str, list[Mapping[str, Any]]] = {}
        ceph = self._ceph()
        if ceph is not None:
            self._prepare_devices()
            throttle.hold(self.change.before, self.say)
            devices = {name: self.devices[name] for name in self.of_role("storage")}
            # The proof waits for the data; this need not.
            arguments = {
                "mode": "apply", "desired": ceph, "secrets": {}, "devices": devices, "timeout": 600,
                "settle": False,
            }  # fmt: skip
            leader = mon_nodes(self.change.after)[0].name
            extra[leader] = [{"module": "cloudctl_ceph", "arguments": arguments}]
        unreached = tell(self.change, self.say, extra)
        told = [node for node, work in self.change.others.items() if work and node not in unreached]
        text = f"told {len(told)} nodes, one call each"
        if unreached:
            text += f"; not reached, a deploy tells them: {', '.join(unreached)}"
        return text

    def _prepare_devices(self) -> None:
        """Give the storage nodes' devices lasting names, and shared journal devices their partitions."""
        assert self.change.ceph is not None
        names = self.of_role("storage")
        if image := self._ceph_image():
            pull = {"argv": ["docker", "pull", "--quiet", image]}
            call(
                self.change.after.path, "ansible.builtin.command", dict.fromkeys(names, pull), changing=True
            ).all_or_raise()
        calls = {name: device_arguments(self.change.ceph, name, "prepare") for name in names}
        answers = call(self.change.after.path, "cloudctl_ceph", calls, changing=True).all_or_raise()
        for name in names:
            self.devices[name] = [{**item, "prepared": True} for item in self.devices[name]]
            for entry in answers[name].get("done") or answers[name].get("changes") or []:
                self.say(f"{name}: {entry.get('kind')} {entry.get('name')}: {entry.get('action')}")

    def _ceph(self) -> dict[str, Any] | None:
        storage = self.of_role("storage")
        return ceph_of(self.change.ceph, storage) if storage and self.change.ceph else None

    def prove(self, computes: Any) -> str:
        """Show that the nodes do their work."""
        from cloudctl.node.prove import prove_storage

        told = []
        storage = self.of_role("storage")
        if storage and self.change.ceph is not None:
            pools = [pool["name"] for pool in self.change.ceph["pools"]]
            timeout = int(self.change.after.get("ceph.backfill.timeout"))
            told.append(prove_storage(self.change.after, storage, pools, timeout=timeout))
            throttle.release(self.change.before, self.say)
        if self.of_role("compute"):
            told.append(computes.run())
        return "; ".join(told)

    def settle(self) -> str:
        """Move the nodes to their groups in the real inventory."""
        site = self.change.before.path
        write_text(site, tidied(site, joined(read_text(site), self.roles)))
        return ", ".join(f"{name} is in {role}" for name, role in self.roles.items())


def build(joining: Joining, computes: Any) -> list[Step]:
    """Return the steps in order."""
    names = joining.names
    told = [node for node, work in joining.change.others.items() if work]

    def prepare(journal: Journal) -> str:
        computes.start()
        return joining.prepare()

    def step(key: str, title: str, run: Callable[[Journal], str], nodes: Sequence[str] = ()) -> Step:
        # Each looks at what is there first. Between two runs a deploy, which does not know the nodes yet, may
        # have taken back what the others were told, and the inventory may say something else: all run again.
        return Step(key, title, run, nodes, every_time=True)

    return [
        step("prepare", "base settings, network, engine, services", prepare, names),
        step("register", "what the others need to know", lambda journal: joining.register(), told),
        step("prove", "whether they do their work", lambda journal: joining.prove(computes), names),
        step("settle", "the inventory", lambda journal: joining.settle()),
    ]
