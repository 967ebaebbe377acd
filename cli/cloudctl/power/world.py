"""What the steps of both ways share: the site, who is told, the nodes, what is read of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError
from cloudctl.operations.containers import Tier, tiers
from cloudctl.operations.steps import Journal
from cloudctl.power.decide import Instance, Roles, roles
from cloudctl.power.drivers import OFF, PowerDriver, power_driver
from cloudctl.site.model import Site

DOWN, UP = "cluster-down", "cluster-up"
"""Names of the two journals."""
OFF_TIMEOUT = 240.0
"""Seconds that a node gets to switch off."""

Report = Callable[[str], None]


@dataclass
class World:
    """One run of ``cluster down`` or ``cluster up``.

    Attributes:
        site: the site.
        say: tells the operator a line.
        accepted: nodes that the operator goes on without.
        boot_timeout: seconds for nodes to boot; None: as the site says.
    """

    site: Site
    say: Report = lambda line: None
    accepted: Sequence[str] = ()
    boot_timeout: int | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def roles(self) -> Roles:
        return roles(self.site)

    @cached_property
    def tiers(self) -> list[Tier]:
        return tiers(self.site)

    @cached_property
    def driver(self) -> PowerDriver:
        return power_driver(self.site)

    @cached_property
    def osds(self) -> dict[str, int]:
        """By storage node, how many OSDs it should have."""
        return {node.name: len(node.vars.get("devices") or []) for node in self.site.group("storage")}

    def note(self, text: str) -> None:
        """Tell something that must be seen at the end, too."""
        self.say(text)
        if text not in self.notes:
            self.notes.append(text)


def instances_of(journal: Journal) -> list[Instance]:
    """Return the instances that a journal knows as running when it all began."""
    return [Instance(**entry) for entry in journal.facts.get("instances", [])]


def answers_ssh(site: Site, node: str, timeout: float = 2.0) -> bool:
    """Tell whether something listens on a node's SSH port."""
    found = site.nodes[node]
    port = int(found.vars.get("ansible_port") or 22)
    try:
        with socket.create_connection((found.address, port), timeout=timeout):
            return True
    except OSError:
        return False


def reachable(site: Site, nodes: Sequence[str]) -> list[str]:
    """Return the nodes whose SSH port is open, asked all at the same time."""
    if not nodes:
        return []
    with ThreadPoolExecutor(max_workers=min(64, len(nodes))) as pool:
        open_ = list(pool.map(lambda node: answers_ssh(site, node), nodes))
    return [node for node, yes in zip(nodes, open_, strict=True) if yes]


def silent_ones(site: Site, nodes: Sequence[str]) -> list[str]:
    """Return the nodes whose SSH port is closed, asked once and all at the same time."""
    answering = set(reachable(site, nodes))
    return [node for node in nodes if node not in answering]


def switch_on(world: World, nodes: Sequence[str], *, optional: Collection[str] = ()) -> list[str]:
    """Switch nodes on where they are off, and wait until they answer.

    Args:
        nodes: which.
        optional: of these, the ones that nobody waits for.

    Returns:
        Those that do not answer when the time is over.
    """
    timeout = world.boot_timeout or int(world.site.get("power.boot_timeout", 900))
    silent = silent_ones(world.site, nodes)
    if not silent:
        return []
    wanted = [node for node in silent if node not in optional]
    if world.driver.switches:
        states = world.driver.states(wanted)
        off = [node for node in wanted if states[node] == OFF]
        if off:
            world.say(f"switching on {', '.join(off)}")
            _switch(world, off)
    elif wanted:
        world.say(world.driver.command(wanted))
    deadline = time.monotonic() + timeout
    told = time.monotonic()
    while True:
        silent = silent_ones(world.site, silent)
        late = [node for node in silent if node not in optional]
        if not late or time.monotonic() > deadline:
            return silent
        if time.monotonic() - told > 15:
            told = time.monotonic()
            world.say(f"waiting for {', '.join(late)} ({deadline - told:.0f} s left)")
        time.sleep(0.5)


def _switch(world: World, nodes: Sequence[str]) -> None:
    """Switch on together; where that fails one by one: one broken node must not keep the others off."""
    try:
        world.driver.on(nodes)
    except CloudctlError as error:
        if len(nodes) == 1:
            world.say(f"{nodes[0]} can't be switched on: {error.message}")
            return
        for node in nodes:
            _switch(world, [node])


def wait_until_off(world: World, nodes: Sequence[str], *, timeout: float = OFF_TIMEOUT) -> None:
    """Wait until nodes are off: the power control says so, or, without one, nothing answers any more.

    Raises:
        ApplyFailed: one is still on.
    """
    deadline = time.monotonic() + timeout
    left = list(nodes)
    while left:
        if world.driver.switches:
            states = world.driver.states(left)
            left = [node for node in left if states[node] != OFF]
        else:
            left = reachable(world.site, left)
        if left and time.monotonic() > deadline:
            raise ApplyFailed(
                "node-not-off", f"still on after {timeout:.0f} s: {', '.join(left)}", where=", ".join(left),
                hint="look at its console; running the same command again goes on",
            )  # fmt: skip
        if left:
            time.sleep(0.5)


def refuse_while_off(site_path: Path, verb: str) -> None:
    """Refuse a command that changes the cloud while it is, or is being, shut down or started.

    Raises:
        CheckFailed: names what to do instead.
    """
    down, up = Journal(site_path, DOWN), Journal(site_path, UP)
    if not is_down(down) and not up.open:
        return
    if down.open:
        message, hint = (
            "a shutdown of the cloud is unfinished",
            "cloudctl cluster down goes on, --abort takes it back",
        )
    elif up.open:
        message, hint = "a start of the cloud is unfinished", "cloudctl cluster up goes on"
    else:
        message, hint = "the cloud was shut down", "cloudctl cluster up starts it"
    raise CheckFailed("cloud-is-down", f"{verb}: {message}; nothing was changed", hint=hint)


def is_down(down: Journal) -> bool:
    """Tell whether a shutdown was begun, or done, and no start has ended it."""
    return down.open or (down.finished is not None and not down.facts.get("up"))
