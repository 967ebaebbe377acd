"""Instances that leave a compute node, and what the APIs know of the node itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from cloudctl.errors import ApplyFailed, CheckFailed
from cloudctl.node.providers import inventories, make, providers, remove
from cloudctl.openrc import connect
from cloudctl.operations.call import call
from cloudctl.site.model import Site
from cloudctl.status.collect import one_line
from cloudctl.verify.tenant import COMPUTE_VERSION

Say = Callable[[str], None]
T = TypeVar("T")

PARALLEL = 2
"""Instances that move away at the same time: each copies its memory over the network."""
ENDED = frozenset({"completed", "confirmed", "reverted", "error", "failed", "cancelled", "done"})
"""States of a migration in which nothing more happens."""
FINISHED = "finished"
"""State of a migration whose instance has arrived and waits for somebody to confirm or revert it."""
RESIZED = "VERIFY_RESIZE"
"""Status of such an instance."""
ENDED_TIMEOUT = 180.0
FENCE_TIMEOUT = 60.0
"""Seconds that a node which was called dead gets to clear away what was evacuated from it."""
EVACUATIONS = 4
EVACUATION = "evacuation"
"""Type of a migration that starts an instance of a dead node elsewhere."""
FROZEN = ("PAUSED", "SUSPENDED", "RESCUE")
"""Status of instances that the API evacuates from an error only."""
TRIES = 2
PATIENCE = 600.0
"""Seconds that one instance may take."""
SILENCE = 60.0
"""Seconds without the API that are waited for in the middle of the work."""
NOBODY = (502, 503, 504)
"""What a proxy answers while no server of the API does."""

LIVE, COLD, GONE = "live", "cold", "gone"


class ApiSilent(ApplyFailed):
    """The API did not answer: whether it does what it was asked for is not known."""


def is_silence(error: Exception) -> bool:
    """Tell whether an error means that nobody answered. Pure."""
    status = getattr(error, "status_code", None) or getattr(error, "http_status", None)
    # keystoneauth's, that of requests and Python's own have no more than this in common.
    names = {kind.__name__ for kind in type(error).__mro__}
    return "ConnectionError" in names or status in NOBODY


@dataclass(frozen=True)
class Guest:
    """An instance as the compute API tells it."""

    id: str
    name: str
    host: str
    status: str
    task: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Migration:
    """A migration that has not ended.

    Attributes:
        id: its UUID.
        guest: the instance's.
        source: the node that it is to leave.
        kind: evacuation, live-migration, migration (a cold one) or resize.
        state: where it stands.
        own: we began it, or it is as if: a cold one, begun with the account that we work with.
    """

    id: str
    guest: str
    source: str
    kind: str = ""
    state: str = ""
    own: bool = False


END_MIGRATIONS = ("nova_conductor", "nova-end-migrations.py")
"""Container and program in it that ends migrations by their UUIDs."""


def forgotten(
    left: Sequence[Migration], guests: Sequence[Guest], running: Collection[str]
) -> list[Migration]:
    """Return the migrations that are over in truth: the instance is where nothing is done with it. Pure.

    Args:
        left: those that have not ended.
        guests: all instances; one that is not among them was deleted.
        running: the instances that run on the node that is left.
    """
    now = {guest.id: guest for guest in guests}

    def over(move: Migration) -> bool:
        guest = now.get(move.guest)
        still = guest is not None and (
            guest.task or guest.host == move.source or guest.status in ("MIGRATING", RESIZED)
        )
        return not still and move.guest not in running

    return [move for move in left if over(move)]


def way_of(guest: Guest) -> str:
    """Return how an instance leaves a node that works: live, cold, gone (it is not there); else ''. Pure."""
    if guest.status in ("ACTIVE", "PAUSED"):
        return LIVE
    if guest.status in ("SHUTOFF", "STOPPED", RESIZED, "RESIZE"):
        return COLD
    if guest.status == "MIGRATING":
        return LIVE
    if guest.status in ("SHELVED_OFFLOADED", "DELETED", "SOFT_DELETED"):
        return GONE
    return ""


def refuse_immovable(node: str, guests: Sequence[Guest]) -> None:
    """Refuse to empty a node while it has instances that cannot move. Pure.

    Raises:
        CheckFailed: names them.
    """
    stuck = [guest for guest in guests if not way_of(guest)]
    if stuck:
        named = ", ".join(f"{guest.name or guest.id} ({guest.status})" for guest in stuck)
        raise CheckFailed(
            "instance-not-movable", f"these instances cannot be moved away: {named}", where=node,
            hint="resume, unrescue, reset or delete them, then again",
        )  # fmt: skip


def refuse_unbuilt(node: str, guests: Sequence[Guest]) -> None:
    """Refuse to evacuate a dead node while there are instances that it was just building. Pure.

    Raises:
        CheckFailed: names them.
    """
    stuck = [guest.name or guest.id for guest in guests if guest.status == "BUILD"]
    if stuck:
        raise CheckFailed(
            "instance-not-movable", f"these instances were not built yet: {', '.join(stuck)}", where=node,
            hint="delete them (there is nothing in them), then again",
        )  # fmt: skip


def refuse_unconfirmed(node: str, moves: Sequence[Migration], guests: Sequence[Guest]) -> None:
    """Refuse to empty a node while somebody has to decide about a resize from or to it. Pure.

    Only the services of both nodes can confirm or revert it: without this one nobody could any more.

    Args:
        node: that is left.
        moves: its migrations that have not ended.
        guests: all instances.

    Raises:
        CheckFailed: names them.
    """
    waiting = {move.guest for move in moves if move.state == FINISHED and not move.own}
    stuck = [guest for guest in guests if guest.id in waiting and guest.status == RESIZED]
    if stuck:
        named = ", ".join(f"{guest.name or guest.id} (on {guest.host})" for guest in stuck)
        raise CheckFailed(
            "resize-unconfirmed", f"these instances were resized and wait for being confirmed: {named}",
            where=node, hint="openstack server resize confirm (or revert) each of them, then again",
        )  # fmt: skip


class Compute:
    """The APIs, as the removal of a compute node uses them.

    Args:
        site: whose administrator asks.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    @cached_property
    def _cloud(self) -> Any:
        cloud = connect(self._site, timeout=60, compute_default_microversion=COMPUTE_VERSION)
        try:
            cloud.authorize()
        except Exception as error:  # openstacksdk, keystoneauth and requests have no common ancestor
            raise ApplyFailed(
                "compute-api-silent", f"the identity API does not answer: {one_line(error)}",
                hint="cloudctl status tells what is wrong",
            ) from error  # fmt: skip
        return cloud

    def _asked(self, ask: Callable[[], Any], what: str) -> Any:
        try:
            return ask()
        except ApplyFailed:
            raise
        except Exception as error:
            if is_silence(error):
                raise ApiSilent(
                    "compute-api-silent", f"{what}: no answer: {one_line(error)}",
                    hint="cloudctl status tells what is wrong; then the same command goes on",
                ) from error  # fmt: skip
            raise ApplyFailed(
                "compute-api-refused", f"{what}: {one_line(error)}", hint="cloudctl status"
            ) from error

    def _patiently(self, look: Callable[[], T]) -> T:
        """Look again for a while where the API does not answer."""
        end = time.monotonic() + SILENCE
        while True:
            try:
                return look()
            except ApiSilent:
                if time.monotonic() > end:
                    raise
            time.sleep(1)

    # -- the node ------------------------------------------------------------------------------

    def services(self) -> list[Any]:
        """Return the services of compute nodes (those that have an availability zone of their own)."""
        found = self._asked(lambda: list(self._cloud.compute.services()), "listing the compute services")
        return [service for service in found if service.availability_zone != "internal"]

    def others_up(self, node: str) -> list[str]:
        """Return the other compute nodes that take instances."""
        return [
            service.host
            for service in self.services()
            if service.host != node and service.state == "up" and service.status == "enabled"
        ]

    def _own(self, node: str) -> list[Any]:
        return [service for service in self.services() if service.host == node]

    def disable(self, node: str) -> str:
        """Keep new instances away from a node."""
        for service in self._own(node):
            if service.is_forced_down:
                self._take_back_fence(service)
            if service.status == "enabled":
                self._put(service, {"status": "disabled", "disabled_reason": "cloudctl node remove"})
                return "no new instances come"
        return "it was disabled already"

    def _take_back_fence(self, service: Any) -> None:
        """Let the API use a node again that was called dead: nothing moves away from one that is down.

        Raises:
            ApplyFailed: the API still refuses that after a while.
        """
        end = time.monotonic() + FENCE_TIMEOUT
        while True:
            try:
                self._put(service, {"forced_down": False})
                return
            except ApplyFailed as error:
                # A node that has just come back knows what was evacuated from it, and clears that away first.
                if time.monotonic() > end:
                    raise ApplyFailed(
                        "node-still-fenced", f"the API still counts it as dead: {error.message}",
                        where=service.host, hint="restart nova_compute there; then the same command goes on",
                    ) from error  # fmt: skip
            time.sleep(2)

    def fence(self, node: str) -> str:
        """Tell the API that a node is dead, so that its instances may be started elsewhere."""
        # Not disabled as well: the API would ask the dead node to, and wait for its answer.
        for service in self._own(node):
            self._put(service, {"forced_down": True})
        return "marked down"

    def _put(self, service: Any, body: dict[str, Any]) -> None:
        def put() -> None:
            answer = self._cloud.compute.put(
                f"/os-services/{service.id}", json=body, microversion=COMPUTE_VERSION
            )
            answer.raise_for_status()

        self._asked(put, f"changing the compute service of {service.host}")

    def forget(self, node: str) -> str:
        """Remove a node's compute service (its resources go with it) and its network agents."""
        gone = []
        names = {node, *self._complete(node)}
        for service in self._own(node):
            self._asked(
                partial(self._cloud.compute.delete_service, service),
                f"removing the compute service of {node}",
            )
            gone.append(str(service.binary))
        for name in names:
            if self._asked(partial(remove, self._cloud, name), f"removing what {name} had registered as"):
                gone.append("its resource provider")

        def agents() -> list[Any]:
            found: list[Any] = self._asked(
                lambda: list(self._cloud.network.agents(host=node)), "listing network agents"
            )
            return found

        for agent in agents():
            end = time.monotonic() + 60
            while True:
                try:
                    self._cloud.network.delete_agent(agent)
                    gone.append(str(agent.agent_type))
                    break
                except Exception as error:
                    # Some go by themselves when their node ends; one that still reports may not go yet.
                    if agent.id not in [left.id for left in self._patiently(agents)]:
                        break
                    if time.monotonic() > end:
                        raise ApplyFailed(
                            "agent-not-removed", f"{agent.agent_type}: {one_line(error)}", where=node
                        ) from error
                    time.sleep(2)
        return ", ".join(gone) or "nothing was left"

    def _complete(self, node: str) -> list[str]:
        """Make the resource provider of a node that died before it had made it; return how it is called.

        The compute API does not remove a service of which it does not find that (it ends with 500).
        """

        def complete() -> list[str]:
            found = list(providers(self._cloud, [node]).values())
            for known in found:
                if inventories(self._cloud, known["uuid"]) is None:
                    make(self._cloud, known)
            return [str(known["name"]) for known in found]

        names: list[str] = self._asked(complete, f"completing the registration of {node}")
        return names

    # -- its instances -------------------------------------------------------------------------

    def guests(self, node: str = "") -> list[Guest]:
        """Return the instances of all projects, of one node or of all."""

        def ask() -> list[Guest]:
            # All are asked for and chosen here: a filter that the API did not understand would hide them.
            every = [
                Guest(
                    id=server.id,
                    name=server.name or "",
                    host=server.compute_host or "",
                    status=server.status or "",
                    task=server.task_state or "",
                    fault=str((server.fault or {}).get("message") or ""),
                )
                for server in self._cloud.compute.servers(details=True, all_projects=True)
            ]
            return [guest for guest in every if node in ("", guest.host)]

        found: list[Guest] = self._asked(ask, "listing the instances")
        return found

    def _act(self, guest: Guest, body: dict[str, Any]) -> None:
        name = guest.name or guest.id

        def post() -> Any:
            # The client must not send it a second time by itself: both may be done.
            return self._cloud.compute.post(
                f"/servers/{guest.id}/action", json=body, microversion=COMPUTE_VERSION, connect_retries=0
            )

        answer = self._asked(post, f"{', '.join(body)} of {name}")
        if answer.status_code in NOBODY:
            raise ApiSilent("compute-api-silent", f"no answer ({answer.status_code})", where=name)
        if answer.status_code >= 400:
            try:
                (problem,) = answer.json().values()
                reason = str(problem.get("message") or answer.text)
            except (ValueError, AttributeError):
                reason = answer.text
            raise ApplyFailed("compute-api-refused", reason[:300], where=name)

    def move_away(self, node: str, say: Say) -> str:
        """Move all instances of a node to others: running ones live, stopped ones as they are.

        Raises:
            ApplyFailed: some cannot be moved; the others are.
        """
        told = self._empty(node, say, self._move, PARALLEL, "moved")
        self._await_ended(node, say)
        return told

    def _await_ended(self, node: str, say: Say, *, dead: bool = False) -> None:
        """Wait until the node has done its part after its instances have arrived elsewhere.

        Ended before, it leaves migrations that go on for ever, and a service that can't be removed. One that
        goes on for ever already (a service was killed in its middle) is ended here, where that is certain.

        Args:
            node: which is left.
            say: told what is waited for.
            dead: it does nothing any more: what it had to do is not waited for.

        Raises:
            ApplyFailed: it takes too long.
        """
        end = time.monotonic() + ENDED_TIMEOUT
        told = False
        while left := self._patiently(lambda: self.under_way(node)):
            late = time.monotonic() > end
            if dead and not late and self._give_up_resizes(node, left, say):
                time.sleep(1)
                continue
            # An evacuation is the work of another node, which ends it.
            its_own = all(move.source == node and move.kind != EVACUATION for move in left)
            if late or (dead and its_own):
                stale = forgotten(left, self.guests(), set() if dead else self.running(node))
                if len(stale) == len(left):
                    self.end_migrations(stale)
                    say(f"{len(stale)} migrations that nobody works on any more were ended")
                    return
            if late:
                named = ", ".join(move.guest or move.id for move in left)
                raise ApplyFailed(
                    "migrations-under-way", f"migrations do not end: {named}", where=node,
                    hint="see the log of the compute service there; then the same command goes on",
                )  # fmt: skip
            if not told:
                say(f"waiting until {node} has put away what it leaves behind")
                told = True
            time.sleep(1)

    def under_way(self, node: str) -> list[Migration]:
        """Return the migrations from or to a node that have not ended."""

        def ask() -> list[Migration]:
            me = self._cloud.current_user_id
            return [
                Migration(
                    id=str(row.uuid),
                    guest=str(row.server_id or ""),
                    source=row.source_compute or "",
                    kind=row.migration_type or "",
                    state=row.status or "",
                    own=row.migration_type == "migration" and row.user_id == me,
                )
                for row in self._cloud.compute.migrations(host=node)
                if node in (row.source_compute, row.dest_compute) and row.status not in ENDED
            ]

        found: list[Migration] = self._asked(ask, f"listing the migrations of {node}")
        return found

    def refuse_left(self, node: str) -> None:
        """Refuse to go on with a node that is not empty: something came after the others had left.

        Raises:
            ApplyFailed: names it.
        """
        moving = {move.guest for move in self.under_way(node)}
        left = [
            f"{guest.name or guest.id} ({guest.status})"
            for guest in self.guests()
            if guest.id in moving or (guest.host == node and way_of(guest) != GONE)
        ]
        if left:
            raise ApplyFailed(
                "instances-left", f"{len(left)} instances came meanwhile: {', '.join(left)}", where=node,
                hint="the same command moves them and goes on",
            )  # fmt: skip

    def running(self, node: str) -> set[str]:
        """Return the instances that run on a node, as its hypervisor tells."""
        from cloudctl.power.guests import domains, is_running

        found, failed = domains(self._site, [node])
        if failed:
            raise failed[node]
        return {number for number, state in found.get(node, {}).items() if is_running(state)}

    def end_migrations(self, stale: Sequence[Migration]) -> None:
        """Write down that migrations have failed: no API does that for one that nobody works on.

        Raises:
            CloudctlError: no controller can.
        """
        argv = ["docker", "exec", *END_MIGRATIONS, *(move.id for move in stale)]
        for node in self._site.group("control"):
            answers = call(
                self._site.path, "ansible.builtin.command", {node.name: {"argv": argv}}, changing=True
            )
            if not answers.failed:
                return
        answers.all_or_raise()

    def evacuate(self, node: str, say: Say) -> str:
        """Start a dead node's instances on others.

        Raises:
            ApplyFailed: some cannot be started; the others are.
        """
        self._give_up_resizes(node, self.under_way(node), say)
        told = self._empty(node, say, self._evacuate, EVACUATIONS, "evacuated", dead=True)
        self._await_ended(node, say, dead=True)
        return told

    def _give_up_resizes(self, node: str, moves: Sequence[Migration], say: Say) -> bool:
        """End the resizes away from a dead node: it would have to confirm or revert them.

        Returns:
            Whether there were any.
        """
        over = [move for move in moves if move.source == node and move.state in (FINISHED, "confirming")]
        if not over:
            return False
        now = {guest.id: guest for guest in self.guests()}
        for move in over:
            guest = now.get(move.guest)
            # First, so that a run which goes on after one that was killed here still finds it.
            if guest and guest.status == RESIZED:
                self._act(guest, {"os-resetState": {"state": "active"}})
        self.end_migrations(over)
        say(f"{len(over)} resizes that nobody can confirm any more were ended")
        return True

    def _move(self, guest: Guest) -> bool:
        """Do the next thing for an instance; return whether it was the beginning of a move."""
        if guest.status == RESIZED:
            self._act(guest, {"confirmResize": None})
            return False
        if way_of(guest) == LIVE:
            self._act(guest, {"os-migrateLive": {"host": None, "block_migration": "auto"}})
        else:
            self._act(guest, {"migrate": None})
        return True

    def _evacuate(self, guest: Guest) -> bool:
        if guest.status == RESIZED:
            self._act(guest, {"confirmResize": None})
            return False
        if guest.status in FROZEN:  # what it had in memory has gone with the node
            self._act(guest, {"os-resetState": {"state": "error"}})
        self._act(guest, {"evacuate": {}})
        return True

    def _empty(
        self,
        node: str,
        say: Say,
        act: Callable[[Guest], bool],
        parallel: int,
        done: str,
        *,
        dead: bool = False,
    ) -> str:
        wanted: dict[str, Guest] = {}
        tries: dict[str, int] = {}
        began: dict[str, float] = {}
        lost: dict[str, float] = {}
        stuck: dict[str, str] = {}
        arrived: set[str] = set()
        while True:
            # Asked before the instances: these show the end of what is not on its way any more.
            moves, every = self._patiently(lambda: (self.under_way(node), self.guests()))
            now = {guest.id: guest for guest in every}
            on_way = {
                move.guest
                for move in moves
                if move.kind == EVACUATION or (not dead and move.guest in tries and move.state != FINISHED)
            }
            unconfirmed = [move for move in moves if move.state == FINISHED]
            finished = {move.guest for move in unconfirmed}
            # From a dead node nothing goes back to where it was before a resize: that may be confirmed.
            theirs = {move.guest for move in unconfirmed if not (move.own or dead)}
            related = set() if dead else {move.guest for move in moves}
            for one in now.values():  # some may have come only now: a build was under way
                if way_of(one) != GONE and (one.host == node or one.id in related):
                    wanted.setdefault(one.id, one)
            moving = 0
            for number, first in wanted.items():
                guest = now.get(number)
                if guest is None or number in arrived:  # deleted meanwhile, or done
                    arrived.add(number)
                    continue
                if guest.host != node and not guest.task and guest.status != RESIZED:
                    arrived.add(number)
                    seconds = time.monotonic() - began.get(number, time.monotonic())
                    if guest.status == "ERROR":
                        stuck[number] = guest.fault or "it is in state ERROR"
                    else:
                        say(f"{first.name} is on {guest.host} ({guest.status}, {seconds:.0f} s)")
                    continue
                if number in stuck:
                    continue
                if guest.status == RESIZED and number in theirs:
                    stuck[number] = "it was resized and waits for being confirmed or reverted"
                    continue
                # What a dead node was at will not end: its instances are not waited for before the first try.
                busy = guest.task or guest.status in ("MIGRATING", "RESIZE", "REBUILD")
                if dead and number not in tries and guest.status != "REBUILD":
                    busy = ""
                elif guest.status == "BUILD" and not dead:
                    busy = "building"
                if guest.status == RESIZED and number not in finished:
                    busy = "confirming"  # or its migration was looked at just before it had finished
                # The task of an evacuation ends before the host is another one. Begun again in between, the
                # instance would run on two nodes: the end of the migration itself counts.
                if busy or number in on_way:
                    if number in on_way:
                        lost.pop(number, None)
                    moving += 1
                    if time.monotonic() - began.setdefault(number, time.monotonic()) > PATIENCE:
                        stuck[number] = f"no end after {PATIENCE:.0f} s ({guest.task or guest.status})"
                    continue
                if number in lost:
                    if time.monotonic() - lost[number] > SILENCE:
                        stuck[number] = "the API did not answer when it was asked for, and it did not begin"
                        continue
                    # The API takes no second move while the first goes on, but it does a second evacuation.
                    if dead:
                        moving += 1
                        continue
                if tries.get(number, 0) >= TRIES and guest.status != RESIZED:
                    stuck[number] = self._why(guest)
                    continue
                if moving >= parallel:
                    continue
                try:
                    if act(guest):
                        tries[number] = tries.get(number, 0) + 1
                        began.setdefault(number, time.monotonic())
                    moving += 1
                except ApiSilent:
                    tries.setdefault(number, 0)  # it may be on its way
                    lost.setdefault(number, time.monotonic())
                    moving += 1
                except ApplyFailed as error:
                    tries[number] = tries.get(number, 0) + 1
                    if tries[number] >= TRIES:
                        stuck[number] = error.message
            if len(arrived | set(stuck)) == len(wanted):
                break
            time.sleep(1)
        if stuck:
            named = "; ".join(f"{wanted[number].name}: {why}" for number, why in stuck.items())
            raise ApplyFailed(
                "instances-left", f"{len(stuck)} of {len(wanted)} instances were not {done}: {named}",
                where=node, hint="make room or mend them, then the same command goes on",
            )  # fmt: skip
        return f"{len(wanted)} instances {done}"

    def _why(self, guest: Guest) -> str:
        """Return why an instance did not move, as far as the API tells."""
        reasons = [guest.fault] if guest.fault else []
        try:
            action = next(iter(self._cloud.compute.server_actions(guest.id)))
            detail = self._cloud.compute.get_server_action(action.request_id, guest.id)
            for found in detail.events or []:
                event = found.to_dict() if hasattr(found, "to_dict") else found
                text = event.get("details") or str(event.get("traceback") or "").strip().rpartition("\n")[2]
                if event.get("result") == "Error" and text:
                    reasons.append(str(text))
        except Exception:  # only the reason is lost
            pass
        return "; ".join(dict.fromkeys(reasons)) or "it is still there"
