"""Instances: ending their guests in good order, and starting exactly those again.

The compute API does it; the hypervisors are asked what is true, since only they know whether a guest ended by
itself or was switched off, and whether one is left that the API knows nothing about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cloudctl.errors import ApplyFailed, CloudctlError
from cloudctl.openrc import connect
from cloudctl.operations.containers import run_in
from cloudctl.power.decide import Instance, next_batch, start_action
from cloudctl.power.names import HYPERVISOR
from cloudctl.site.model import Site
from cloudctl.status.collect import one_line

Report = Callable[[str], None]

PER_HOST = 8
"""Guests of one compute node that end, or boot, at the same time."""
START_TIMEOUT = 300.0
"""Seconds for an instance to run again."""
LEFT_TIMEOUT = 30
"""Seconds that a guest which the API does not stop gets to end by itself."""
NO_CONTAINER = 125
"""What is answered where the hypervisor's container does not run."""
LIST_GUESTS = (
    "ids=$(virsh list --all --uuid) || exit; for id in $ids; do"
    ' state=$(virsh domstate --reason "$id") || state=unknown; echo "$id $state"; done'
)
RUNNING = 1


class Cloud:
    """The compute API, as the steps use it.

    Args:
        site: whose administrator asks.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    @cached_property
    def _compute(self) -> Any:
        # Asks for the catalogue already: not before somebody handles its silence.
        return connect(self._site, timeout=60).compute

    def instances(self) -> list[Instance]:
        """Return all instances of all projects.

        Raises:
            ApplyFailed: the API does not answer.
        """
        found: list[Instance] = self._asked(
            lambda: [
                Instance(
                    id=server.id,
                    name=server.name or "",
                    host=server.compute_host or server.hypervisor_hostname or "",
                    status=server.status or "",
                    task=server.task_state or "",
                    power=int(server.power_state or 0),
                )
                for server in self._compute.servers(details=True, all_projects=True)
            ]
        )
        return found

    def stop(self, instance: Instance) -> None:
        """Ask for the guest's shutdown; it is switched off when it does not end within the API's own time."""
        self._compute.stop_server(instance.id)

    def start(self, instance: Instance) -> None:
        """Start an instance that is off."""
        self._compute.start_server(instance.id)

    def reboot(self, instance: Instance) -> None:
        """Bring up an instance that counts as running and does not run."""
        self._compute.reboot_server(instance.id, "HARD")

    def reset(self, instance: Instance) -> None:
        """Take an instance out of ERROR."""
        self._compute.reset_server_state(instance.id, "active")

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # openstacksdk, keystoneauth and requests have no common ancestor
            raise ApplyFailed(
                "compute-api-silent", f"the compute API does not answer: {one_line(error)}",
                hint="cloudctl status tells what is wrong",
            ) from error  # fmt: skip


def domains(
    site: Site, computes: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, CloudctlError]]:
    """Return by compute node and guest (the instance's id) its state with the reason: ``running (booted)``.

    A node whose hypervisor does not run is in neither: it has nothing to tell.

    Returns:
        The guests of nodes that told them, and why others did not: silence does not mean that nothing runs.
    """
    answers, failed = run_in(site, computes, HYPERVISOR, ["sh", "-c", LIST_GUESTS], timeout=60)
    found: dict[str, dict[str, str]] = {}
    for node, answer in answers.items():
        if answer["rc"] == 0:
            found[node] = parse_domains(answer["stdout"])
        elif answer["rc"] != NO_CONTAINER:
            said = answer["stderr"].strip() or f"it ended with {answer['rc']}"
            failed[node] = ApplyFailed(
                "hypervisor-silent", f"the hypervisor does not tell its guests: {said[-300:]}", where=node,
                hint="see the log of its container there; then the same command again",
            )  # fmt: skip
    return found, failed


def parse_domains(text: str) -> dict[str, str]:
    """Read lines of ``<uuid> <state> (<reason>)``. Pure."""
    pairs = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return {uuid: state.strip() for uuid, _space, state in pairs}


def is_running(state: str) -> bool:
    """Tell whether a guest has a process: everything but off and crashed."""
    return bool(state) and not state.startswith(("shut off", "crashed"))


def forced(found: Mapping[str, Mapping[str, str]], ids: Collection[str]) -> list[str]:
    """Return the guests that did not end by themselves. Pure."""
    return sorted(
        uuid
        for states in found.values()
        for uuid, state in states.items()
        if uuid in ids and state.startswith("shut off") and "(shutdown)" not in state
    )


def stop_all(
    site: Site, cloud: Cloud, wanted: Sequence[Instance], *, limit: float, report: Report
) -> list[str]:
    """Stop instances, some of each host at the same time; ones that are off already are only looked at.

    Args:
        wanted: what ran when the shutdown began.
        limit: seconds for each guest before its hypervisor is told to switch it off.

    Returns:
        Names of those for which the API was too slow, so that the hypervisor did it.
    """
    asked: dict[str, float] = {}
    late: list[str] = []
    told: set[str] = set()
    while True:
        now = {instance.id: instance for instance in cloud.instances()}
        running = [
            instance
            for entry in wanted
            if (instance := now.get(entry.id)) is not None and instance.status not in ("SHUTOFF", "DELETED")
        ]
        for entry in wanted:
            if entry.id in asked and entry.id not in told and entry.id not in {i.id for i in running}:
                told.add(entry.id)
                report(f"{entry.name} is off ({time.monotonic() - asked[entry.id]:.0f} s)")
        if not running:
            return late
        working = [instance for instance in running if instance.id in asked]
        waiting = [instance for instance in running if instance.id not in asked and not instance.task]
        if not working and not waiting:
            waiting = [instance for instance in running if instance.id not in asked]
        batch = next_batch(waiting, working, per_host=PER_HOST)
        for instance, error in _each(cloud.stop, batch):
            asked[instance.id] = time.monotonic()
            if error:
                report(f"{instance.name}: the API does not stop it ({error})")
        slow = [i for i in working if time.monotonic() - asked[i.id] > limit and i.name not in late]
        if slow:
            report(f"switched off after {limit:.0f} s: {', '.join(i.name for i in slow)}")
            end_domains(site, {i.host: [i.id] for i in slow}, patience=0)
            late += [instance.name for instance in slow]
        if working and all(time.monotonic() - asked[i.id] > limit + 60 for i in working) and not batch:
            names = ", ".join(instance.name for instance in working)
            raise ApplyFailed(
                "instances-not-stopped", f"these instances still count as running: {names}",
                hint="see the compute nodes' logs; running the same command again goes on",
            )  # fmt: skip
        time.sleep(1)


def _each(work: Callable[[Instance], None], instances: Sequence[Instance]) -> list[tuple[Instance, str]]:
    """Do it to all at the same time; return each with why it failed (or '')."""

    def attempt(instance: Instance) -> tuple[Instance, str]:
        try:
            work(instance)
        except Exception as error:
            return instance, one_line(error)
        return instance, ""

    if not instances:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(instances))) as pool:
        return list(pool.map(attempt, instances))


def end_domains(site: Site, guests: Mapping[str, Sequence[str]], *, patience: int = LEFT_TIMEOUT) -> None:
    """End guests by their hypervisor: ask them; switch off those that still run after ``patience`` seconds.

    Args:
        guests: by compute node, ids.
    """
    script = (
        'wait=$1; shift; for id in "$@"; do [ "$wait" = 0 ] || virsh shutdown "$id"; done;'
        'end=$(($(date +%s) + wait)); for id in "$@"; do'
        ' while virsh list --uuid | grep -q "$id" && [ "$(date +%s)" -lt "$end" ]; do sleep 1; done;'
        ' if virsh list --uuid | grep -q "$id"; then virsh destroy "$id"; fi; done; virsh list --uuid'
    )
    left: dict[str, list[str]] = {}
    for node, ids in guests.items():
        if not ids:
            continue
        command = ["sh", "-c", script, "end", str(patience), *ids]
        answers, failed = run_in(site, [node], HYPERVISOR, command, timeout=patience + 120)
        if failed:
            raise failed[node]
        still = set(answers[node]["stdout"].split()) & set(ids)
        if still:
            left[node] = sorted(still)
    if left:
        listed = "; ".join(f"{node}: {', '.join(ids)}" for node, ids in left.items())
        raise ApplyFailed("guests-not-ended", f"guests still run: {listed}", where=", ".join(left))


@dataclass(frozen=True)
class NotStarted:
    """Why an instance that ran before does not run.

    Attributes:
        kind: absent (its node is), gone (deleted), left (somebody paused or shelved it), failed, late.
        reason: in words.
    """

    name: str
    kind: str
    reason: str


def start_all(
    cloud: Cloud, wanted: Sequence[Instance], *, without: Collection[str], report: Report
) -> tuple[list[str], list[NotStarted]]:
    """Start instances and wait until they run; ones that run already are left alone.

    Args:
        wanted: what ran before.
        without: absent compute nodes.

    Returns:
        Names of those that run, and why the others do not.
    """
    done: list[str] = []
    why: list[NotStarted] = []
    tried: dict[str, str] = {}
    began: dict[str, float] = {}
    pending = list(wanted)
    while pending:
        now = {instance.id: instance for instance in cloud.instances()}
        todo: list[tuple[Instance, str]] = []
        for entry in list(pending):
            instance = now.get(entry.id)
            where = instance.host if instance else entry.host
            if instance is not None and where in without:
                why.append(NotStarted(entry.name, "absent", f"its compute node {where} is absent"))
                pending.remove(entry)
                continue
            action = start_action(instance, tried=tried.get(entry.id) in ("reboot", "reset"))
            if entry.id in began and time.monotonic() - began[entry.id] > START_TIMEOUT:
                state = now[entry.id].status if entry.id in now else "gone"
                text = f"not running after {START_TIMEOUT:.0f} s ({state})"
                why.append(NotStarted(entry.name, "late", text))
                pending.remove(entry)
            elif action == "done":
                done.append(entry.name)
                pending.remove(entry)
                report(f"{entry.name} runs on {where}")
            elif action in ("gone", "left", "failed"):
                state = instance.status if instance else ""
                text = {
                    "gone": "it was deleted meanwhile",
                    "left": f"it is {state} now",
                    "failed": f"it is {state}: see the compute node's log on {where}",
                }[action]
                why.append(NotStarted(entry.name, action, text))
                pending.remove(entry)
            elif action != "wait" and instance is not None and tried.get(entry.id) != action:
                todo.append((instance, action))
            else:
                began.setdefault(entry.id, time.monotonic())
        working = [now[i] for i in began if i in now and any(e.id == i for e in pending)]
        batch = {instance.id for instance in next_batch([i for i, _ in todo], working, per_host=PER_HOST)}

        def act(instance: Instance, actions: Mapping[str, str] = {i.id: a for i, a in todo}) -> None:
            action = actions[instance.id]
            if action == "reset":
                cloud.reset(instance)
                cloud.reboot(instance)
            else:
                (cloud.start if action == "start" else cloud.reboot)(instance)

        chosen = [(i, a) for i, a in todo if i.id in batch]
        for instance, error in _each(act, [i for i, _ in chosen]):
            began.setdefault(instance.id, time.monotonic())
            if error:
                report(f"{instance.name}: {error}")
            else:
                tried[instance.id] = dict((i.id, a) for i, a in chosen)[instance.id]
        if pending:
            time.sleep(1)
    return done, why
