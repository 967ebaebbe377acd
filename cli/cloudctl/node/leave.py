"""Letting a node leave: what it serves goes elsewhere first, then it is forgotten, and at last the inventory.

A node that works is emptied; one that will never come back (``dead``) has to be off, really: what ran there
is started elsewhere, and what it held is made complete from the other copies.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import ceph_nodes, mon_nodes
from cloudctl.engine.render import COMPOSE_PATH, CONFIG_ROOT
from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, Unreachable, UsageError
from cloudctl.node.enroll import KNOWN_HOSTS
from cloudctl.node.instances import Compute, refuse_immovable, refuse_unbuilt, refuse_unconfirmed, way_of
from cloudctl.node.inventory import WAITING, read_text, tidied, write_text
from cloudctl.node.join import Change, tell
from cloudctl.node_replace.machine import repinned
from cloudctl.operations.call import call
from cloudctl.operations.deploying import deploy
from cloudctl.operations.steps import Journal, Step
from cloudctl.osd.cluster import Cluster, Osd
from cloudctl.osd.forecast import Forecast, forecast, lost
from cloudctl.runs.record import write_atomically
from cloudctl.site.edit_inventory import names_in, remove_host, swap_member
from cloudctl.site.load import load_site
from cloudctl.site.model import Node, Site
from cloudctl.verify.guest import ping

Say = Callable[[str], None]
CONTENT_TIMEOUT = 90
"""Seconds for Ceph's orchestrator to look at its hosts again."""
MONITORS = "mons"
"""The group whose nodes hold Ceph's monitors."""


def refuse_indispensable(site: Site, node: Node) -> None:
    """Refuse nodes that a cloud cannot lose, whatever their state. Pure.

    Raises:
        UsageError, CheckFailed: why not.
    """
    if "deploy" in node.groups:
        raise UsageError("node-is-deploy", f"{node.name} is the deploy node: everything runs from it")
    if "control" in node.groups:
        count = len(site.group("control"))
        raise CheckFailed(
            "controller-quorum",
            f"of {count} controllers {count - 1} would be left, which form no safe majority"
            if count > 1
            else f"{node.name} is the only controller",
            where=node.name,
            hint=f"a controller is replaced, not removed: cloudctl node replace {node.name}",
        )
    if MONITORS in node.groups and heir_of_monitor(site, node) is None:
        raise CheckFailed(
            "node-holds-monitor", f"{node.name} holds a Ceph monitor, and no other node can take it",
            where=node.name, hint="a node of the storage network is needed that holds none: add one first",
        )  # fmt: skip
    for group in ("compute", "storage"):
        if group in node.groups and len(site.group(group)) == 1:
            raise CheckFailed(
                f"last-{group}", f"{node.name} is the last node of the group {group}", where=node.name,
                hint="cloudctl node add another one first",
            )  # fmt: skip


def heir_of_monitor(site: Site, node: Node) -> Node | None:
    """Return who gets a leaving node's monitor: a controller without one, else a storage node. Pure."""
    taken = {holder.name for holder in mon_nodes(site)}
    for group in ("control", "storage"):
        for other in site.group(group):
            if other.name not in {*taken, node.name} and other.address_on("storage"):
                return other
    return None


def with_heir(text: str, name: str, heir: str) -> str:
    """Return the inventory with a node's monitor at its new place, if the node still holds one. Pure.

    Raises:
        ConfigError: the group can't be edited.
    """
    return swap_member(text, MONITORS, name, heir) if heir and name in names_in(text, MONITORS) else text


def witnesses(site: Site, node: Node) -> dict[str, list[dict[str, Any]]]:
    """Return by other node what it pings to learn whether a node is alive. Pure.

    Every controller on every network of the node; where no controller has a port, all others that have one.
    """
    networks = {port.network: port.address for port in node.interfaces.values() if port.address}
    found: dict[str, list[dict[str, Any]]] = {}
    for network, address in {"management": node.address, **networks}.items():
        others = [
            other for other in site.nodes.values() if other.name != node.name and WAITING not in other.groups
        ]
        able = [other for other in others if other.address_on(network)]
        for other in [other for other in able if "control" in other.groups] or able:
            peer = {"network": network, "node": node.name, "address": address, "mtu": 1500}
            found.setdefault(other.name, []).append({**peer, "source": other.address_on(network)})
    return found


def untried(
    asked: Mapping[str, Sequence[Mapping[str, Any]]], tried: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the networks on which nobody that was asked could try: silence says nothing there. Pure."""
    done = {peer["network"] for peer in tried if peer["configured"]}
    return sorted({peer["network"] for peers in asked.values() for peer in peers} - done)


def what_leaves(cluster: Cluster, own: Collection[Osd]) -> Forecast | None:
    """Return what the removal of a node's OSDs would do; None where an earlier run has emptied them. Pure.

    Empty ones need no places and no room. One that is off may hold more than it tells: what is out of reach.
    """
    holding = [osd.id for osd in own if osd.pgs or osd.weight > 0]
    if holding:
        return forecast(cluster, holding)
    problems = lost(cluster) if any(not osd.up for osd in own) else []
    return Forecast(problems=problems) if problems else None


def script_of_stop(fsid: str) -> str:
    """Return what ends our containers on a node and removes what holds secrets. Pure.

    Args:
        fsid: of the Ceph cluster that has daemons there; empty: none has.
    """
    lines = [
        # What is left after a failure must be enough for the next try.
        f"if [ -f {COMPOSE_PATH} ]; then"
        f" docker compose --file {COMPOSE_PATH} down --timeout 30 --volumes; fi",
        f"rm -rf {CONFIG_ROOT} /etc/cloudctl /var/lib/cloudctl",
        # What our containers told the kernel outlives them: the next cloud's packets would be dropped.
        "nft list tables 2>/dev/null | while read -r _ family table; do case $table in cloudctl_*)"
        " nft delete table $family $table;; esac; done",
    ]
    if fsid:
        lines += [
            f"if [ -d /var/lib/ceph/{fsid} ]; then cephadm rm-cluster --force --fsid {fsid}; fi",
            "rm -f /etc/ceph/*.keyring",
        ]
    return "\n".join(lines)


def forget_host_key(site: Path, node: Node) -> None:
    """Take a node's names out of the site's known_hosts."""
    known = site / KNOWN_HOSTS
    if known.exists():
        write_atomically(known, repinned(known.read_text(encoding="utf-8"), node), mode=0o644)


def left_of(site: Path, name: str) -> list[str]:
    """Return the files of a node that is gone: variables that a later one of its name would have, too."""
    stem = f"inventory/host_vars/{name}"
    return [file for suffix in (".yml", ".yaml") if (site / (file := stem + suffix)).exists()]


@dataclass
class Leaving:
    """A node on its way out.

    Attributes:
        site: as it is.
        node: that leaves.
        role: what it does in the cloud: compute, storage, both or nothing (it waits in newnodes).
        change: what it means for the others.
        dead: it will never come back.
        say: told what is done.
        heir: the node that gets its monitor; empty where it holds none.
    """

    site: Site
    node: Node
    roles: Collection[str]
    change: Change
    dead: bool
    say: Say
    compute: Compute
    heir: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The node's."""
        return self.node.name

    @property
    def in_ceph(self) -> bool:
        """Whether it is a host of Ceph: a storage node is, and whoever holds a monitor, or held it before."""
        holder = bool(self.heir) or self.name in {node.name for node in ceph_nodes(self.site)}
        return "storage" in self.roles or (holder and self.change.ceph is not None)

    # -- check ---------------------------------------------------------------------------------

    def check(self) -> str:
        """Refuse what would lose something.

        Raises:
            CheckFailed, Unreachable: why it must not be done; nothing was changed.
        """
        if self.dead:
            self._refuse_alive()
        elif self.roles:
            self._refuse_silent()
        told = []
        if "compute" in self.roles:
            told.append(self._check_compute())
        if "storage" in self.roles:
            told.append(self._check_storage())
        return "; ".join(told)

    def _refuse_silent(self) -> None:
        answers = call(self.site.path, "ansible.builtin.ping", {self.name: {}})
        if self.name in answers.failed:
            error = answers.failed[self.name]
            raise Unreachable(
                error.ref, error.message, where=self.name,
                hint=f"switch it on; if it will never come back: cloudctl node remove {self.name} --dead",
            )  # fmt: skip

    def _refuse_alive(self) -> None:
        """Two machines that write the same disk destroy it: what is called dead must be off."""
        from cloudctl.power.drivers import OFF, ON

        power = self._power()
        signs = ["its power is on"] if power == ON else []
        if ping(self.node.address):
            signs.append(f"{self.node.address} answers pings")
        try:
            with socket.create_connection((self.node.address, 22), timeout=3):
                signs.append("its SSH server answers")
        except OSError:
            pass
        asked = witnesses(self.site, self.node)
        answers = call(
            self.site.path, "cloudctl_ping", {name: {"peers": peers} for name, peers in asked.items()}
        )
        tried = [peer for answer in answers.ok.values() for peer in answer["ansible_facts"]["cloudctl_ping"]]
        heard = {peer["network"] for peer in tried if peer["full"] or peer["small"]}
        signs += [f"it answers on network {network}" for network in sorted(heard)]
        if signs:
            raise CheckFailed(
                "node-alive", f"{self.name} is not dead: {', '.join(signs)}", where=self.name,
                hint=f"without --dead its work is moved away first; else switch {self.name} off, really",
            )  # fmt: skip
        unknown = untried(asked, tried)
        if unknown and power != OFF:
            silent = f" ({', '.join(sorted(answers.failed))} did not answer)" if answers.failed else ""
            raise CheckFailed(
                "node-unknown-state",
                f"nobody could try whether {self.name} is off on network {', '.join(unknown)}{silent}",
                where=self.name,
                hint="a controller (or another node with a port there) must be able to try: mend that, "
                "then the same command goes on",
            )

    def _power(self) -> str:
        """Return what the power control says of the node."""
        from cloudctl.power.drivers import UNKNOWN, power_driver

        try:
            return power_driver(self.site).states([self.name]).get(self.name, UNKNOWN)
        except CloudctlError:
            return UNKNOWN

    def _check_compute(self) -> str:
        every = self.compute.guests()
        guests = [guest for guest in every if guest.host == self.name and way_of(guest) != "gone"]
        others = self.compute.others_up(self.name)
        # Half a member has never taken any: the cloud loses nothing.
        member = "compute" in self.site.nodes[self.name].groups
        if not others and (guests or (member and not self.dead)):
            raise CheckFailed(
                "no-other-compute", f"without {self.name} no compute node takes instances", where=self.name,
                hint="cloudctl status names those that are down or disabled: mend or enable one, or add one",
            )  # fmt: skip
        if not others:
            self.say("warning: no compute node takes instances")
        if self.dead:
            refuse_unbuilt(self.name, guests)
        else:
            refuse_immovable(self.name, guests)
            refuse_unconfirmed(self.name, self.compute.under_way(self.name), every)
        self.report["instances"] = [guest.name for guest in guests]
        return f"{len(guests)} instances, {len(others)} other compute nodes"

    def _check_storage(self) -> str:
        from cloudctl import osd

        cluster = osd.read_at_rest(self.site, self.say)
        own = cluster.on(self.name)
        self.report["osds"] = [entry.id for entry in own]
        found = what_leaves(cluster, own)
        if found is None:
            return f"{len(own)} OSDs, all empty" if own else "no OSD"
        osd.refuse(found)
        gib = found.moved_kb / (1 << 20)
        return f"{len(own)} OSDs, {gib:.1f} GiB to move, the fullest OSD gets {found.fullest:.0%}"

    # -- steps ---------------------------------------------------------------------------------

    def _ids(self) -> list[int]:
        from cloudctl import osd

        return [entry.id for entry in osd.read(self.site).on(self.name)]

    def move_monitor(self) -> str:
        """Let another node hold the monitor, and tell everything that reads where the monitors are."""
        path = self.site.path
        write_text(path, with_heir(read_text(path), self.name, self.heir))
        done = len(deploy(path).changed)
        self.site = load_site(path)
        return f"{self.heir} holds it; {done} changes in the cloud"

    def drain(self) -> str:
        """Let all data leave the node's OSDs."""
        from cloudctl import osd
        from cloudctl.osd import throttle

        ids = self._ids()
        if not ids:
            return "it has no OSD"
        throttle.hold(self.site, self.say)
        osd.drain(self.site, ids, self.say)
        return f"{len(ids)} OSDs are empty"

    def remove_osds(self) -> str:
        """Take the OSDs out of the cluster."""
        from cloudctl import osd
        from cloudctl.osd import throttle

        gone = osd.remove(self.site, self._ids(), self.say, dead=self.dead)
        throttle.release(self.site, self.say)
        return ", ".join(f"osd.{number}" for number in gone) or "none was left"

    def forget_host(self) -> str:
        """Take the node out of Ceph's orchestrator and out of CRUSH."""
        from cloudctl.osd.remote import ask, mgr, mon

        before = set() if self.dead else self._orchestrators_complaints().keys()
        if (known := self._as_host()) is not None:
            told: dict[str, Any] = {}
            if self.dead:
                # The orchestrator looks whether a host is there every minute or so, and takes "offline" for
                # one that it believes to be online as a mistake: it is made to look.
                for _ in range(3):
                    if known is None or "offline" in str(known.get("status")).lower():
                        break
                    look = mgr("cephadm check-host", host=self.name, timeout=60, may_fail=True)
                    ask(self.site, [look], f"asking Ceph for {self.name}")
                    known = self._as_host()
                if known is not None and "offline" in str(known.get("status")).lower():
                    told = {"offline": True}
            else:
                drain = mgr("orch host drain", hostname=self.name, force=True, timeout=60, may_fail=True)
                ask(self.site, [drain], f"emptying {self.name}", changing=True)
                self._wait_for_daemons()
            remove = mgr("orch host rm", hostname=self.name, force=True, timeout=120, **told)
            ask(self.site, [remove], f"removing {self.name} from Ceph", changing=True)
        if self.dead and self.heir:
            # Nobody can stop it properly; the others must not count it any more.
            gone = mon("mon remove", name=self.name, may_fail=True)
            ask(self.site, [gone], f"forgetting the monitor of {self.name}", changing=True)
        bucket = mon("osd crush remove", name=self.name, may_fail=True)
        ask(self.site, [bucket], f"removing {self.name} from CRUSH", changing=True)
        left = self._wait_for_content(before)
        return "no host of Ceph any more" + (f"; Ceph complains: {'; '.join(left)}" if left else "")

    def _orchestrators_complaints(self) -> dict[str, str]:
        """Return what Ceph's orchestrator complains of, by name."""
        from cloudctl import osd

        return {
            name: text for name, text in osd.read(self.site).health.items() if name.startswith("CEPHADM_")
        }

    def _wait_for_content(self, before: Collection[str]) -> list[str]:
        """Wait until the orchestrator has forgotten its complaints about the host; return those that stay.

        It keeps them until it has looked at every host again.
        """
        from cloudctl.osd.remote import ask, mgr

        end = time.monotonic() + CONTENT_TIMEOUT
        while left := [f"{k}: {v}" for k, v in self._orchestrators_complaints().items() if k not in before]:
            if time.monotonic() > end:
                break
            again = mgr("orch ps", refresh=True, timeout=60, may_fail=True)
            ask(self.site, [again], "letting Ceph look at its hosts")
            time.sleep(3)
        return left

    def _as_host(self) -> dict[str, Any] | None:
        """Return what Ceph's orchestrator knows of the node, None where it is no host of it."""
        from cloudctl.osd.remote import ask, mgr

        hosts = json.loads(
            ask(self.site, [mgr("orch host ls", timeout=30)], "listing Ceph's hosts")[0]["out"]
        )
        return next((entry for entry in hosts if entry["hostname"] == self.name), None)

    def _wait_for_daemons(self) -> None:
        from cloudctl.osd.remote import ask, mgr

        end = time.monotonic() + 90
        while True:
            question = mgr("orch ps", hostname=self.name, refresh=True, timeout=60, may_fail=True)
            (answer,) = ask(self.site, [question], "listing daemons")
            if answer["rc"] == 0 and not json.loads(answer["out"] or "[]"):
                return
            if time.monotonic() > end:  # what is left (it holds no data) goes with the host
                return
            time.sleep(3)

    def stop_services(self) -> str:
        """End our containers on the node and remove what holds secrets.

        Raises:
            ApplyFailed: guests run there, whatever the API says, or the API knows of some.
        """
        if "compute" in self.roles:
            self.compute.refuse_left(self.name)
            self._refuse_guests()
        fsid = str((self.change.ceph or {}).get("fsid", "")) if self.in_ceph else ""
        code, said = self._run(script_of_stop(fsid))
        if code:
            raise ApplyFailed(
                "services-not-ended", f"its services could not be ended: {said[-500:] or code}",
                where=self.name, hint="mend that on the node, then the same command goes on",
            )  # fmt: skip
        return "its containers and their configuration are gone"

    def _run(self, script: str) -> tuple[int, str]:
        """Run a shell script on the node up to its first failure; return how it ended, and what it said."""
        argv = ["sh", "-c", 'sh -ec "$1" 2>&1; code=$?; echo; echo $code', "sh", script]
        answers = call(self.site.path, "ansible.builtin.command", {self.name: {"argv": argv}}, changing=True)
        said, _, code = str(answers.all_or_raise()[self.name]["stdout"]).rstrip().rpartition("\n")
        return int(code), said.strip()

    def _refuse_guests(self) -> None:
        """Ask the hypervisor itself: only it knows what runs."""
        from cloudctl.power.guests import domains, is_running

        found, failed = domains(self.site, [self.name])
        if failed:
            raise failed[self.name]
        left = [uuid for uuid, state in found.get(self.name, {}).items() if is_running(state)]
        if self.name not in found:
            # Its container does not run; guests may, all the same.
            code, said = self._run("pgrep -f '[q]emu-system' || [ $? = 1 ]")
            if code:
                raise ApplyFailed(
                    "hypervisor-silent", f"nobody can tell whether guests still run: {said or code}",
                    where=self.name, hint="mend that on the node, then the same command goes on",
                )  # fmt: skip
            left = [f"process {number}" for number in said.split()]
        if left:
            raise ApplyFailed(
                "guests-left", f"{len(left)} guests still run on {self.name}: {', '.join(left)}",
                where=self.name, hint="move or delete these instances, then the same command goes on",
            )  # fmt: skip

    def unregister(self) -> str:
        """Let the APIs forget the node."""
        return self.compute.forget(self.name)

    def tell(self) -> str:
        """Tell the others."""
        # One that is off just now may be lost, too, and its own replacement wait for this removal.
        unreached = tell(self.change, self.say, patient=True)
        told = [node for node, work in self.change.others.items() if work and node not in unreached]
        text = f"told {len(told)} nodes, one call each"
        return text + (f"; not reached, a deploy does the rest: {', '.join(unreached)}" if unreached else "")

    def settle(self) -> str:
        """Take the node out of the inventory and of known_hosts."""
        path = self.site.path
        text = read_text(path)
        try:
            text = remove_host(with_heir(text, self.name, self.heir), self.name)
        except UsageError:
            return "it was gone already"
        write_text(path, tidied(path, text))
        forget_host_key(path, self.node)
        return f"{self.name} is gone"


def rest(site: Path, node: Node, heir: str) -> list[Step]:
    """Return what may be left to do for a node that the inventory does not name any more.

    Args:
        site: the site's directory.
        node: as far as the interrupted run wrote it down.
        heir: who got its monitor in the inventory; empty: it held none.
    """

    def forget(journal: Journal) -> str:
        forget_host_key(site, node)
        return "known_hosts does not know it"

    def tell_monitors(journal: Journal) -> str:
        return f"{heir} holds it; {len(deploy(site).changed)} changes in the cloud"

    steps = [Step("settle", "the inventory", forget, every_time=True)]
    if heir:
        title = f"its Ceph monitor goes to {heir}"
        steps.append(Step("monitor", title, tell_monitors, [heir], ["cloudctl deploy"], every_time=True))
    return steps


def build(leaving: Leaving) -> list[Step]:
    """Return the steps in order."""
    name, dead = leaving.name, leaving.dead
    steps: list[Step] = []

    def add(key: str, title: str, run: Callable[[], str], nodes: list[str], *commands: str) -> None:
        # Each looks at what is there first, and a deploy may have brought things back: all run again.
        steps.append(Step(key, title, lambda journal: run(), nodes, commands, every_time=True))

    moving = (f"its Ceph monitor goes to {leaving.heir}", leaving.move_monitor, [leaving.heir])
    if leaving.heir and not dead:
        add("monitor", *moving, "cloudctl deploy")
    if "compute" in leaving.roles:
        compute = leaving.compute
        if dead:
            add("fence", "mark the compute service down", lambda: compute.fence(name), [])
            add("evacuate", "start its instances elsewhere", lambda: compute.evacuate(name, leaving.say), [])
        else:
            add("disable", "keep new instances away", lambda: compute.disable(name), [])
            add("move", "move its instances away", lambda: compute.move_away(name, leaving.say), [])
    if "storage" in leaving.roles:
        title = "make its data complete elsewhere" if dead else "move its data away"
        add("drain", title, leaving.drain, [], "ceph osd crush reweight … 0, wait for active+clean")
        add("osds", "remove its OSDs", leaving.remove_osds, [], "ceph osd purge …")
    if leaving.in_ceph:
        add("host", "remove it from Ceph", leaving.forget_host, [], f"ceph orch host rm {name}")
    if leaving.roles and not dead:
        add("stop", "end its services", leaving.stop_services, [name])
    if "compute" in leaving.roles:
        add("unregister", "remove its registrations", leaving.unregister, [])
    told = [node for node, work in leaving.change.others.items() if work]
    if told:
        add("tell", "what the others need to know", leaving.tell, told)
    add("settle", "the inventory", leaving.settle, [])
    if leaving.heir and dead:
        # Before that the deploy would wait for the dead node.
        add("monitor", *moving, "cloudctl deploy")
    return steps
