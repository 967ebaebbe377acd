"""That a node which joined does its work: a VM boots on a compute node, data is read from a storage node."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cloudctl.ceph.desired import mon_nodes
from cloudctl.errors import CloudctlError, VerifyFailed
from cloudctl.node.providers import inventories, providers
from cloudctl.operations.call import call
from cloudctl.site.model import Site
from cloudctl.verify import guest
from cloudctl.verify.steps import Step, StepFailed, describe, undo_steps, wait_until
from cloudctl.verify.tenant import (
    BUILD_TIMEOUT,
    EXTERNAL,
    GUEST_TIMEOUT,
    Flavor,
    FloatingIp,
    Image,
    Keypair,
    Router,
    SecurityGroup,
    SignIn,
    Tenant,
    TenantNetwork,
    World,
    build_errors,
    delete_servers,
    make_world,
)

Say = Callable[[str], None]
REGISTER_TIMEOUT = 120
"""Seconds after a compute service's first report in which the scheduler learns what its node has to give."""


class Privileged(Tenant):
    """A tenant who may say on which node a VM is to run."""

    def run(self, world: World) -> str:
        detail = super().run(world)
        identity = world.admin.identity
        user = next(iter(identity.users(name=world.name)))
        identity.assign_project_role_to_user(world.project, user, identity.find_role("admin"))
        world.tenant.session.invalidate()  # its token is from before
        return detail


class Outside(Step[World]):
    """The external network, where the cloud has one; it is not made here."""

    name = "external network"

    def run(self, world: World) -> str:
        world.external = world.admin.network.find_network(EXTERNAL)
        return "there" if world.external is not None else "the cloud has none: VMs are not pinged"


class WayOut(Router):
    """A router, where there is an outside."""

    def run(self, world: World) -> str:
        return super().run(world) if world.external is not None else ""


class Registered(Step[World]):
    """The scheduler and the network know each of the nodes, and that it works."""

    name = "registration of the new compute nodes"
    look = "the logs of the compute service and of the network's agents on that node"

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)

    def run(self, world: World) -> str:
        # A node's service reports first; what it has to give is known some seconds later. On a node that was
        # switched on again the agents count as dead for a while: no port would be bound there.
        lacking: dict[str, str] = {}

        def known() -> bool:
            lacking.clear()
            found = providers(world.admin, self.hosts)
            up = {service.host for service in world.admin.compute.services() if service.state == "up"}
            for host in self.hosts:
                if host not in up:
                    lacking[host] = "its compute service does not report"
                elif host not in found or not inventories(world.admin, found[host]["uuid"]):
                    lacking[host] = "the scheduler does not know what it has to give"
                elif dead := silent_agents(world.admin.network.agents(host=host)):
                    lacking[host] = dead
            return not lacking

        wait_until(
            known, REGISTER_TIMEOUT, "their registration",
            why=lambda: "; ".join(f"{host}: {why}" for host, why in lacking.items()),
        )  # fmt: skip
        return ", ".join(self.hosts)


def silent_agents(agents: Iterable[Any]) -> str:
    """Return which kinds of a node's network agents do not report; empty: all do. Pure."""
    alive: dict[str, bool] = {}
    for agent in agents:
        alive[agent.agent_type] = alive.get(agent.agent_type, False) or bool(agent.is_alive)
    if not alive:
        return "it has no network agent"
    dead = sorted(kind for kind, up in alive.items() if not up)
    return f"{', '.join(dead)} does not report" if dead else ""


class BootOn(Step[World]):
    """A VM on each of the nodes."""

    name = "boot a VM on each new compute node"
    look = "the logs of the compute node; 'cloudctl status' for the hypervisors"

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)
        self.servers: dict[str, Any] = {}

    def run(self, world: World) -> str:
        compute = world.tenant.compute
        for host in self.hosts:
            self.servers[host] = compute.create_server(
                name=world.name,
                image_id=world.image.id,
                flavor_id=world.flavor.id,
                networks=[{"uuid": world.network.id}],
                security_groups=[{"name": world.name}],
                key_name=world.name,
                host=host,
            )
        seen: dict[str, str] = {}

        def active() -> bool:
            for host, server in self.servers.items():
                if seen.get(host) == "ACTIVE":
                    continue
                found = compute.get_server(server.id)
                seen[host] = found.status
                if found.status == "ERROR":
                    raise StepFailed(f"the VM on {host} is in state ERROR: {build_errors(world, found)}")
            return set(seen.values()) == {"ACTIVE"}

        wait_until(
            active, BUILD_TIMEOUT, "the VMs' start", interval=0.5,
            why=lambda: ", ".join(f"{host}: {state}" for host, state in seen.items()),
        )  # fmt: skip
        for host, server in self.servers.items():
            where = world.admin.compute.get_server(server.id).compute_host
            if where != host:
                raise StepFailed(f"the VM that was wanted on {host} runs on {where}")
        return ", ".join(self.hosts)

    def undo(self, world: World) -> None:
        delete_servers(world.admin.compute, world.name)


class Reach(Step[World]):
    """Every VM answers at a public address."""

    name = "ping the VMs"
    look = "the VMs' console logs, the gateway chassis"

    def __init__(self, boot: BootOn) -> None:
        self.boot = boot

    def run(self, world: World) -> str:
        if world.external is None:
            return "not tried: no external network"
        network = world.tenant.network
        addresses: dict[str, str] = {}
        for host, server in self.boot.servers.items():
            port = next(iter(network.ports(device_id=server.id)), None)
            if port is None:
                raise StepFailed(f"the VM on {host} has no port")
            made = network.create_ip(floating_network_id=world.external.id, port_id=port.id)
            addresses[host] = made.floating_ip_address
        with ThreadPoolExecutor(max_workers=min(16, len(addresses))) as pool:
            waited = list(
                pool.map(
                    lambda item: wait_until(
                        lambda: guest.ping(item[1]), GUEST_TIMEOUT, f"an answer from the VM on {item[0]}"
                    ),
                    addresses.items(),
                )
            )
        return f"answered after {max(waited):.1f} s"

    def undo(self, world: World) -> None:
        FloatingIp().undo(world)


class Computes:
    """Proves compute nodes with a VM on each; what does not need them is made while they are prepared.

    Args:
        site: the site.
        hosts: the nodes.
        say: told what is done.
    """

    def __init__(self, site: Site, hosts: Sequence[str], say: Say) -> None:
        self._site, self._hosts, self._say = site, list(hosts), say
        self._world: World | None = None
        self._begun: list[Step[World]] = []
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._ready: Future[None] | None = None

    def start(self) -> None:
        """Begin to make what the VMs need."""
        if self._hosts and self._ready is None:
            self._ready = self._pool.submit(self._prepare)

    def run(self) -> str:
        """Boot the VMs and reach them; returns what was seen.

        Raises:
            VerifyFailed: it does not work.
        """
        if not self._hosts:
            return ""
        self.start()
        assert self._ready is not None
        boot = BootOn(self._hosts)
        registered = Registered(self._hosts)
        step: Step[World] = registered
        began = time.monotonic()
        try:
            self._ready.result()
            details = []
            for step in (registered, boot, Reach(boot)):
                details.append(self._do(step))
        except CloudctlError:
            raise
        except Exception as error:
            raise VerifyFailed(
                "node-not-proven", f"{step.name}: {describe(error)}",
                where=", ".join(self._hosts), hint=f"{step.look}; then the same command again",
            ) from error  # fmt: skip
        return f"VM on {details[1]}; {details[2]} ({time.monotonic() - began:.1f} s)"

    def end(self) -> None:
        """Remove all that was made."""
        if self._ready is None:
            return
        with contextlib.suppress(Exception):
            self._ready.result()
        self._pool.shutdown()
        if self._world is not None:
            for text in undo_steps(self._begun, self._world):
                self._say(f"could not be removed: {text} (the next cloudctl verify does)")
        self._begun = []
        self._ready = None

    def _do(self, step: Step[World]) -> str:
        assert self._world is not None
        self._begun.append(step)
        return step.run(self._world)

    def _prepare(self) -> None:
        self._world = make_world(self._site)
        steps: Sequence[Step[World]] = (
            SignIn(), Outside(), Privileged(), Flavor(), Image(), TenantNetwork(), WayOut(), SecurityGroup(),
            Keypair(),
        )  # fmt: skip
        for step in steps:
            try:
                self._do(step)
            except Exception as error:
                raise VerifyFailed(
                    "node-not-proven", f"{step.name}: {describe(error)}", hint=step.look or None
                ) from error


def prove_storage(site: Site, hosts: Sequence[str], pools: Sequence[str], *, timeout: int = 600) -> str:
    """Wait until data lies on the nodes' OSDs, and read some from them; returns what was seen.

    Args:
        site: the site with these nodes in it.
        hosts: the nodes.
        pools: names of the cluster's pools.
        timeout: seconds without progress of the backfill.

    Raises:
        VerifyFailed: it does not work.
    """
    leader = mon_nodes(site)[0].name
    arguments = {
        "hosts": list(hosts), "fsid": site.secrets["ceph_fsid"], "pools": list(pools), "timeout": timeout,
    }  # fmt: skip
    answers = call(site.path, "cloudctl_osdtrial", {leader: arguments})
    if leader in answers.failed:
        error = answers.failed[leader]
        raise VerifyFailed(
            "node-not-proven", f"the OSDs of {', '.join(hosts)}: {error.message}",
            where=", ".join(hosts), hint="cloudctl status; then the same command again",
        )  # fmt: skip
    found = answers.ok[leader]
    told = []
    for host in hosts:
        pgs = sum(int(osd["pgs"]) for osd in found["osds"][host])
        read = found["read"][host]
        told.append(f"{host}: {pgs} PGs, data read from osd.{read['osd']} (pool {read['pool']})")
    return f"{'; '.join(told)}; active+clean after {found['seconds']:.1f} s"
