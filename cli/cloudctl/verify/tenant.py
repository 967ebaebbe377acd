"""The steps of ``cloudctl verify``: what a tenant does, and that it works.

Every step's ``undo`` finds what it made by name and as the administrator, so that the same code cleans up
after this run and after one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudctl.openrc import ca_file, connect
from cloudctl.site.model import Site
from cloudctl.verify import guest
from cloudctl.verify.console import try_console
from cloudctl.verify.image import prepared
from cloudctl.verify.steps import Step, StepFailed, undo_steps, wait_until

PREFIX = "cloudctl-verify-"
EXTERNAL = "external"
DEFAULT_IMAGE = "/var/cache/cloudctl/guest.qcow2"
TENANT_CIDR = "192.168.77.0/24"
COMPUTE_VERSION = "2.90"  # the first that lets the administrator see a server's host name as the guest does

# Seconds; several times what a loaded lab needs, so that only a hang runs into them.
BUILD_TIMEOUT = 300
CHANGE_TIMEOUT = 240
DELETE_AGAIN = 10
# Seconds for which a volume that no volume service was found for is made again, and between two such tries.
PLACEMENT_TIMEOUT = 90
PLACEMENT_PAUSE = 5
GUEST_TIMEOUT = 180
FIREWALL_TIMEOUT = 60


@dataclass
class World:
    """What the steps share: connections, and what was made so far."""

    site: Site
    admin: Any
    name: str = field(default_factory=lambda: PREFIX + secrets.token_hex(3))
    """Name of everything that is made; all of it is found again by it."""
    tenant: Any = None
    project: Any = None
    external: Any = None
    flavor: Any = None
    image: Any = None
    network: Any = None
    subnet: Any = None
    router: Any = None
    group: Any = None
    http_rule: Any = None
    private_key: str = ""
    volume: Any = None
    server: Any = None
    disks: list[str] = field(default_factory=list)
    address: str = ""
    instance: str = ""


def _delete(found: Any, delete: Any, still: Any, what: str) -> None:
    """Delete something when it is there, and wait until it is gone."""
    if found is None:
        return
    delete(found)
    wait_until(lambda: still() is None, CHANGE_TIMEOUT, f"removal of {what}")


def delete_servers(compute: Any, name: str) -> None:
    """Delete all VMs of a name and wait until they are gone; asks again where a deletion failed.

    Raises:
        StepFailed: one is still there.
    """
    asked: dict[str, float] = {}
    seen: dict[str, str] = {}

    def gone() -> bool:
        left = [one for one in compute.servers(all_projects=True, name=name) if one.name == name]
        seen.clear()
        for server in left:
            seen[server.id] = server.status
            # Its node gave up on it; a request that is still carried out has a task.
            failed = server.status == "ERROR" and server.task_state is None
            if server.id not in asked or (failed and time.monotonic() - asked[server.id] > DELETE_AGAIN):
                compute.delete_server(server, force=False)
                asked[server.id] = time.monotonic()
        return not left

    wait_until(
        gone, CHANGE_TIMEOUT, "removal of the VMs",
        why=lambda: ", ".join(f"{server}: {state}" for server, state in seen.items()),
    )  # fmt: skip


def _project_id(world: World) -> str | None:
    """Return the id of this run's project, None when there is none."""
    if world.project is None:
        world.project = next(iter(world.admin.identity.projects(name=world.name)), None)
    return world.project.id if world.project is not None else None


def _one(found: Iterable[Any]) -> Any:
    return next(iter(found), None)


class SignIn(Step[World]):
    """Password authentication and the service catalogue."""

    name = "sign in as the administrator"
    look = "the identity service's containers and logs on the controllers; 'cloudctl status'"

    def run(self, world: World) -> str:
        world.admin.authorize()
        catalogue = world.admin.service_catalog
        missing = {"compute", "image", "network", "volumev3", "placement"} - {
            entry["type"].replace("block-storage", "volumev3") for entry in catalogue
        }
        if missing:
            raise StepFailed(f"the service catalogue lacks {', '.join(sorted(missing))}")
        return f"{len(catalogue)} services in the catalogue"


class Leftovers(Step[World]):
    """What an earlier run that was killed (or asked to keep) left."""

    name = "remove leftovers of earlier runs"
    look = "what is named cloudctl-verify-* in the cloud"

    def run(self, world: World) -> str:
        names = leftover_names(world.admin)
        failed: list[str] = []
        for name in names:
            failed += undo_steps(STEPS, World(site=world.site, admin=world.admin, name=name))
        if failed:
            raise StepFailed("; ".join(failed))
        return f"removed: {', '.join(names)}" if names else "none"


def leftover_names(admin: Any) -> list[str]:
    """Return the names of earlier runs of which anything is left."""
    things = (
        admin.identity.projects(),
        admin.identity.users(),
        admin.compute.flavors(is_public=None),
        admin.image.images(visibility="all"),
    )
    names = {thing.name for found in things for thing in found if (thing.name or "").startswith(PREFIX)}
    return sorted(names)


class ExternalNetwork(Step[World]):
    """The provider network that floating IPs come from: made once, shared by all, never removed."""

    name = "external network"
    look = "networks.yml (external), the gateway chassis and the bridge mappings on the controllers"

    def run(self, world: World) -> str:
        found = world.admin.network.find_network(EXTERNAL)
        detail = "there"
        if found is None:
            wanted = world.site.networks.get(EXTERNAL)
            if wanted is None or wanted.cidr is None:
                raise StepFailed(f"networks.yml gives no address range to the network '{EXTERNAL}'")
            found = world.admin.network.create_network(
                name=EXTERNAL,
                is_router_external=True,
                provider_network_type="flat",
                provider_physical_network="physnet1",
                mtu=wanted.mtu,
            )
            detail = "made; it stays"
        else:
            wanted = world.site.networks.get(EXTERNAL)
        if not found.is_router_external:
            raise StepFailed(f"the network '{EXTERNAL}' exists but is not an external one")
        if not found.subnet_ids:
            if wanted is None or wanted.cidr is None:
                raise StepFailed(f"the network '{EXTERNAL}' has no subnet, and networks.yml gives no range")
            pool = [{"start": wanted.pool[0], "end": wanted.pool[1]}] if wanted.pool else None
            world.admin.network.create_subnet(
                name=EXTERNAL,
                network_id=found.id,
                ip_version=4,
                cidr=str(wanted.cidr),
                is_dhcp_enabled=False,
                **({"gateway_ip": wanted.gateway} if wanted.gateway else {}),
                **({"allocation_pools": pool} if pool else {}),
            )
            detail = "made; it stays"
        world.external = found
        return detail


class Tenant(Step[World]):
    """A project with one user, and that user's session."""

    name = "project and user"
    look = "the identity service's log"

    def run(self, world: World) -> str:
        identity = world.admin.identity
        role = identity.find_role("member") or identity.find_role("_member_")
        if role is None:
            raise StepFailed("the role 'member' does not exist")
        world.project = identity.create_project(
            name=world.name, domain_id="default", description="cloudctl verify"
        )
        password = secrets.token_urlsafe(24)
        user = identity.create_user(
            name=world.name, domain_id="default", password=password, default_project_id=world.project.id
        )
        identity.assign_project_role_to_user(world.project, user, role)
        world.tenant = connect(
            world.site,
            auth={
                "username": world.name,
                "password": password,
                "project_name": world.name,
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            compute_default_microversion=COMPUTE_VERSION,
        )
        world.tenant.authorize()
        return world.name

    def undo(self, world: World) -> None:
        # Neutron makes a default security group for each project that lists them.
        project = _project_id(world)
        if project is not None:
            for group in list(world.admin.network.security_groups(project_id=project)):
                world.admin.network.delete_security_group(group)
        for user in list(world.admin.identity.users(name=world.name)):
            world.admin.identity.delete_user(user)
        if project is not None:
            world.admin.identity.delete_project(project)


class Flavor(Step[World]):
    """The size of the VM; the administrator makes it, for this project only."""

    name = "flavor"
    look = "the compute API's log"

    def run(self, world: World) -> str:
        compute = world.admin.compute
        world.flavor = compute.create_flavor(name=world.name, ram=256, vcpus=1, disk=1, is_public=False)
        compute.flavor_add_tenant_access(world.flavor, world.project.id)
        return "1 CPU, 256 MiB, 1 GiB"

    def undo(self, world: World) -> None:
        for flavor in list(world.admin.compute.flavors(is_public=None)):
            if flavor.name == world.name:
                world.admin.compute.delete_flavor(flavor)


class Image(Step[World]):
    """The guest image, uploaded."""

    name = "image upload"
    look = "the image API's log, the pool 'images' in Ceph, and settings.yml (verify.guest_image)"

    def run(self, world: World) -> str:
        source = Path(str(world.site.get("verify.guest_image", DEFAULT_IMAGE)))
        with prepared(source) as (path, disk_format):
            world.image = world.tenant.image.create_image(
                world.name,
                filename=str(path),
                disk_format=disk_format,
                container_format="bare",
                visibility="private",
                wait=True,
                timeout=BUILD_TIMEOUT,
            )
            size = path.stat().st_size
        image = world.tenant.image.get_image(world.image.id)
        if image.status != "active":
            raise StepFailed(f"the image is '{image.status}' after its upload")
        return f"{disk_format}, {size / 2**20:.0f} MiB"

    def undo(self, world: World) -> None:
        images = world.admin.image
        for image in list(images.images(name=world.name, visibility="all")):
            images.delete_image(image)


class TenantNetwork(Step[World]):
    """A network of the tenant's own."""

    name = "network and subnet"
    look = "the network API's log"

    def run(self, world: World) -> str:
        network = world.tenant.network
        world.network = network.create_network(name=world.name)
        world.subnet = network.create_subnet(
            name=world.name, network_id=world.network.id, ip_version=4, cidr=TENANT_CIDR
        )
        return f"{TENANT_CIDR}, MTU {world.network.mtu}"

    def undo(self, world: World) -> None:
        api = world.admin.network
        for network in list(api.networks(name=world.name)):
            for port in list(api.ports(network_id=network.id)):
                if not (port.device_owner or "").startswith("network:"):
                    api.delete_port(port)
            api.delete_network(network)


class Router(Step[World]):
    """A router between the tenant's network and the outside."""

    name = "router"
    look = "the network API's log and the OVN northbound database"

    def run(self, world: World) -> str:
        network = world.tenant.network
        world.router = network.create_router(
            name=world.name, external_gateway_info={"network_id": world.external.id}
        )
        network.add_interface_to_router(world.router, subnet_id=world.subnet.id)
        addresses = (world.router.external_gateway_info or {}).get("external_fixed_ips") or []
        return f"gateway {addresses[0]['ip_address']}" if addresses else ""

    def undo(self, world: World) -> None:
        api = world.admin.network
        for router in list(api.routers(name=world.name)):
            for port in list(api.ports(device_id=router.id)):
                if (port.device_owner or "").startswith("network:router_interface"):
                    api.remove_interface_from_router(router, port_id=port.id)
            api.delete_router(router)


class SecurityGroup(Step[World]):
    """Lets ping, SSH and HTTP in."""

    name = "security group"
    look = "the network API's log"

    def run(self, world: World) -> str:
        network = world.tenant.network
        world.group = network.create_security_group(name=world.name)
        network.create_security_group_rule(
            security_group_id=world.group.id, direction="ingress", ethertype="IPv4", protocol="icmp"
        )
        self.allow(world, 22)
        world.http_rule = self.allow(world, 80)
        return "ping, SSH and HTTP"

    @staticmethod
    def allow(world: World, port: int) -> Any:
        """Let TCP connections to a port in; returns the rule."""
        return world.tenant.network.create_security_group_rule(
            security_group_id=world.group.id,
            direction="ingress",
            ethertype="IPv4",
            protocol="tcp",
            port_range_min=port,
            port_range_max=port,
        )

    def undo(self, world: World) -> None:
        api = world.admin.network
        for group in list(api.security_groups(name=world.name)):
            api.delete_security_group(group)


class Keypair(Step[World]):
    """The key that the VM gets from its metadata."""

    name = "key pair"
    look = "the compute API's log"

    def run(self, world: World) -> str:
        world.private_key, public = guest.make_keypair()
        world.tenant.compute.create_keypair(name=world.name, public_key=public, type="ssh")
        return "ed25519"

    def undo(self, world: World) -> None:
        # Key pairs belong to a user, not to a project.
        for user in list(world.admin.identity.users(name=world.name)):
            world.admin.compute.delete_keypair(world.name, user_id=user.id)


class Volume(Step[World]):
    """A volume in Ceph."""

    name = "volume"
    look = "the volume service's logs and the pool 'volumes' in Ceph; 'cloudctl status'"

    def run(self, world: World) -> str:
        # A volume service reports its space now and then: just after a deploy the scheduler knows none yet.
        wait_until(
            lambda: bool(list(world.admin.block_storage.backend_pools())),
            CHANGE_TIMEOUT,
            "report of a volume service",
            why=lambda: "the scheduler knows no space",
        )
        # The question above is answered by one of the schedulers; the volume may be placed by another that
        # heard of no space yet: such a volume fails at once, and has no host.
        last_try = time.monotonic() + PLACEMENT_TIMEOUT
        while not self._made(world):
            if time.monotonic() > last_try:
                raise StepFailed("the volume is in state 'error': no volume service was found for it")
            self.undo(world)
            time.sleep(PLACEMENT_PAUSE)
        host = world.admin.block_storage.get_volume(world.volume.id).host or "?"
        return f"1 GiB on {host}"

    @staticmethod
    def _made(world: World) -> bool:
        """Make the volume; return whether it was placed.

        Raises:
            StepFailed: it was placed, but not made.
        """
        storage = world.tenant.block_storage
        world.volume = storage.create_volume(name=world.name, size=1)
        seen = ""

        def decided() -> bool:
            nonlocal seen
            seen = storage.get_volume(world.volume.id).status
            return seen in ("available", "error")

        wait_until(
            decided, CHANGE_TIMEOUT, "creation of the volume", interval=0.5, why=lambda: f"it is '{seen}'"
        )
        if seen == "available":
            return True
        if world.admin.block_storage.get_volume(world.volume.id).host:
            raise StepFailed("the volume is in state 'error'")
        return False

    def undo(self, world: World) -> None:
        storage = world.admin.block_storage

        def found() -> Any:
            return _one(storage.volumes(details=True, all_projects=True, name=world.name))

        volume = found()
        if volume is not None and volume.status == "in-use":
            # Its VM is gone by now, but the volume service learns it a moment later.
            with contextlib.suppress(StepFailed):
                wait_until(lambda: found().status != "in-use", 30, "release of the volume")
        _delete(volume, storage.delete_volume, found, "the volume")


class Boot(Step[World]):
    """The VM itself."""

    name = "boot the VM"
    look = "the logs of scheduler, conductor and the compute node; 'cloudctl status' for the hypervisors"

    def run(self, world: World) -> str:
        compute = world.tenant.compute
        world.server = compute.create_server(
            name=world.name,
            image_id=world.image.id,
            flavor_id=world.flavor.id,
            networks=[{"uuid": world.network.id}],
            security_groups=[{"name": world.name}],
            key_name=world.name,
        )
        seen: Any = None

        def active() -> bool:
            nonlocal seen
            seen = compute.get_server(world.server.id)
            if seen.status == "ERROR":
                raise StepFailed(f"the VM is in state ERROR: {build_errors(world, seen)}")
            return bool(seen.status == "ACTIVE")

        wait_until(
            active, BUILD_TIMEOUT, "the VM's start", why=lambda: f"{seen.status}, task {seen.task_state}"
        )
        world.server = world.admin.compute.get_server(world.server.id)
        return f"on {world.server.compute_host or world.server.hypervisor_hostname}"

    def undo(self, world: World) -> None:
        delete_servers(world.admin.compute, world.name)


def build_errors(world: World, server: Any) -> str:
    """Return why a VM could not be built: what Nova says, and where it was tried.

    A compute node that hands the VM back to the scheduler keeps its reason in its own log.
    """
    reasons = [(server.fault or {}).get("message") or "no reason given"]
    tried: list[str] = []
    with contextlib.suppress(Exception):
        compute = world.admin.compute
        for action in compute.server_actions(server.id):
            for found in compute.get_server_action(action.request_id, server.id).events or []:
                event = found.to_dict() if hasattr(found, "to_dict") else found
                host, trace = event.get("host"), str(event.get("traceback") or "").strip()
                cause = event.get("details") or (trace.splitlines()[-1].strip() if trace else "")
                if event.get("result") == "Error" and cause:
                    reasons.append(f"{host or event.get('event')}: {cause}")
                elif host and str(event.get("event")).startswith("compute_") and host not in tried:
                    tried.append(host)
    if tried:
        reasons.append(f"tried on {', '.join(sorted(tried))}: the reason is in nova-compute.log there")
    return "; ".join(dict.fromkeys(reasons))


def console_log(world: World) -> list[str]:
    """Return the last lines of the VM's console, an empty list where there is none."""
    if world.server is None:
        return []
    output = world.admin.compute.get_server_console_output(world.server.id, length=40)["output"]
    return [line.rstrip() for line in output.splitlines() if line.strip()]


class FloatingIp(Step[World]):
    """A public address for the VM."""

    name = "floating IP"
    look = "the network API's log; networks.yml (external.pool) when the addresses are used up"

    def run(self, world: World) -> str:
        network = world.tenant.network
        port = _one(network.ports(device_id=world.server.id))
        if port is None:
            raise StepFailed("the VM has no port")
        made = network.create_ip(floating_network_id=world.external.id, port_id=port.id)
        world.address = made.floating_ip_address
        return world.address

    def undo(self, world: World) -> None:
        project = _project_id(world)
        if project is not None:
            for address in list(world.admin.network.ips(project_id=project)):
                world.admin.network.delete_ip(address)


class Ping(Step[World]):
    """The VM's address answers."""

    name = "ping the VM"
    look = "the VM's console log, the gateway chassis, the route from here to the external network"

    def run(self, world: World) -> str:
        waited = wait_until(
            lambda: guest.ping(world.address), GUEST_TIMEOUT, f"an answer from {world.address}"
        )
        return f"answered after {waited:.1f} s"


class Metadata(Step[World]):
    """The guest's web page tells what it learnt from the metadata service; compare with Nova."""

    name = "HTTP and metadata"
    look = "the metadata agent on the VM's compute node, the metadata API, the VM's console log"

    def run(self, world: World) -> str:
        last = ""

        def answers() -> str:
            nonlocal last
            try:
                return guest.http_get(world.address, "/instance-id")
            except OSError as error:
                last = str(error)
                return ""

        wait_until(answers, GUEST_TIMEOUT, "an answer on port 80", why=lambda: last)
        instance, host = answers(), guest.http_get(world.address, "/hostname")
        if not plausible_id(instance, str(world.server.id)):
            raise StepFailed(f"the guest's instance-id is '{instance}', the VM's id is {world.server.id}")
        world.instance = instance
        wanted = world.server.hostname or world.name
        if host.split(".")[0] != wanted.split(".")[0]:
            raise StepFailed(f"the guest's host name is '{host}', Nova's is '{wanted}'")
        return f"instance-id {instance}, host name {host}"


def plausible_id(instance: str, server: str) -> bool:
    """Tell whether a guest may know itself by this id: the server's UUID, or EC2's short form.

    The short form (``i-0000002a``) is a number that no API tells; SSH compares the rest.
    """
    return instance == server or re.fullmatch(r"i-[0-9a-f]{8}", instance) is not None


_METADATA = "http://169.254.169.254"
_LIST_DISKS = "cd /sys/block && for d in [hsv]d*; do [ -e $d ] && echo $d; done; true"


class Ssh(Step[World]):
    """A login with the key that metadata carried into the guest."""

    name = "SSH into the VM"
    look = "the VM's console log: it tells whether the key came from the metadata service"

    def run(self, world: World) -> str:
        import paramiko

        last = ""

        def logged_in() -> str:
            nonlocal last
            try:
                with guest.ssh(world.address, world.private_key) as client:
                    world.disks = guest.run(client, _LIST_DISKS).split()
                    return guest.run(client, "uname -r")
            except (OSError, EOFError, paramiko.SSHException) as error:
                last = f"{type(error).__name__}: {error}"
                return ""

        kernel = ""

        def attempt() -> bool:
            nonlocal kernel
            kernel = logged_in()
            return bool(kernel)

        wait_until(attempt, GUEST_TIMEOUT, "a login by SSH", why=lambda: last)
        with guest.ssh(world.address, world.private_key) as client:
            own = json.loads(
                guest.run(client, f"wget -q -T 10 -O - {_METADATA}/openstack/latest/meta_data.json")
            )
            short = guest.run(client, f"wget -q -T 10 -O - {_METADATA}/latest/meta-data/instance-id")
        if own.get("uuid") != world.server.id:
            raise StepFailed(
                f"the metadata service says uuid {own.get('uuid')}, the VM's is {world.server.id}"
            )
        if world.instance not in (short, own["uuid"]):
            raise StepFailed(f"the guest says instance-id '{world.instance}', the metadata service '{short}'")
        return f"kernel {kernel}; metadata has the VM's uuid"


class Attach(Step[World]):
    """The volume becomes a disk of the running VM."""

    name = "attach the volume"
    look = "the compute node's log, libvirt's log, and the Ceph key that libvirt uses"

    def run(self, world: World) -> str:
        world.tenant.compute.create_volume_attachment(world.server.id, volume_id=world.volume.id)
        seen = ""
        begun = False

        def attached() -> bool:
            nonlocal seen, begun
            seen = world.tenant.block_storage.get_volume(world.volume.id).status
            if seen.startswith("error") or (begun and seen == "available"):
                raise StepFailed(f"the volume was not attached: it is '{seen}'")
            begun = begun or seen in ("reserved", "attaching")
            return bool(seen == "in-use")

        wait_until(
            attached, CHANGE_TIMEOUT, "attaching the volume", interval=0.5, why=lambda: f"it is '{seen}'"
        )
        return ""


class Disk(Step[World]):
    """A filesystem on the volume keeps what is written."""

    name = "write to the volume and read it back"
    look = "the VM's console log; 'cloudctl status' for Ceph's health"

    def run(self, world: World) -> str:
        with guest.ssh(world.address, world.private_key) as client:
            disks: list[str] = []

            def appeared() -> bool:
                nonlocal disks
                disks = guest.run(client, _LIST_DISKS).split()
                return set(disks) > set(world.disks)

            wait_until(
                appeared, 60, "the disk's arrival in the guest", why=lambda: f"disks: {' '.join(disks)}"
            )
            device = guest.new_disk(world.disks, disks)
            made = guest.run(client, guest.disk_script(device, secrets.token_hex(8)), timeout=CHANGE_TIMEOUT)
        return f"{device}, {made.splitlines()[-1]}"


class Firewall(Step[World]):
    """Without its rule port 80 is closed, and the rest goes on; with the rule it is open again."""

    name = "security group blocks"
    look = "port security of the VM's port, and the datapath on its compute node"

    def run(self, world: World) -> str:
        world.tenant.network.delete_security_group_rule(world.http_rule)
        closed = wait_until(
            lambda: not guest.accepts(world.address, 80),
            FIREWALL_TIMEOUT,
            "closing of port 80 after its rule was removed",
        )
        if not guest.accepts(world.address, 22, timeout=5):
            raise StepFailed("port 22 is closed too, though its rule is still there")
        if guest.accepts(world.address, 80):
            raise StepFailed("port 80 is open again without a rule")
        SecurityGroup.allow(world, 80)
        opened = wait_until(
            lambda: guest.accepts(world.address, 80),
            FIREWALL_TIMEOUT,
            "opening of port 80 after its rule was made again",
        )
        return f"closed after {closed:.1f} s, open again after {opened:.1f} s"


class Console(Step[World]):
    """The VM's screen in a browser."""

    name = "console"
    look = "the console proxy's log on the controllers, VNC's listening address on the compute node"

    def run(self, world: World) -> str:
        console = world.tenant.compute.create_console(world.server.id, console_type="novnc")
        ca = ca_file(world.site)
        return try_console(console["url"], ca if ca.is_file() else None)


STEPS: tuple[Step[World], ...] = (
    Tenant(),
    Flavor(),
    Image(),
    TenantNetwork(),
    Router(),
    SecurityGroup(),
    Keypair(),
    Volume(),
    Boot(),
    FloatingIp(),
    Ping(),
    Metadata(),
    Ssh(),
    Attach(),
    Disk(),
    Firewall(),
    Console(),
)
"""What is made and tried, in order; undone from the last to the first."""

ALL_STEPS: tuple[Step[World], ...] = (SignIn(), Leftovers(), ExternalNetwork(), *STEPS)


def make_world(site: Site) -> World:
    """Return a world with the administrator's connection; nothing is sent yet."""
    return World(site=site, admin=connect(site, compute_default_microversion=COMPUTE_VERSION))
