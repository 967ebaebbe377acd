"""Tenants of a cloud that grows and shrinks; a program of the deploy node.

``make SITE NAME HOST COUNT`` starts COUNT VMs (on HOST; ``-``: anywhere), each with a public address, the
first with a volume of known data; prints them as one line of JSON. ``look SITE NAME`` prints where they are
and the volume's checksum as the guest reads it now. ``write SITE NAME`` writes to the volume and reads it
back, again and again, until its standard input is closed; a line of JSON for each. ``act SITE NAME ID ACTION
STATUS`` asks for an action (JSON) as the administrator and waits for the VM's status; ``resize SITE NAME ID``
gives it another size, which waits for being confirmed. ``service SITE NAME HOST CHANGE`` changes (JSON) what
the API holds of a compute node's service. ``remove SITE NAME`` removes all.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudctl.node.prove import BootOn, Privileged
from cloudctl.site.load import load_site
from cloudctl.verify import guest
from cloudctl.verify.steps import undo_steps, wait_until
from cloudctl.verify.tenant import (
    STEPS,
    Attach,
    Boot,
    ExternalNetwork,
    Flavor,
    FloatingIp,
    Image,
    Keypair,
    Metadata,
    Ping,
    Router,
    SecurityGroup,
    Ssh,
    TenantNetwork,
    Volume,
    World,
    make_world,
)

PREFIX = "cloudctl-grow-"
MEGABYTES = 16


def start(world: World, host: str) -> Any:
    """Start a VM and return it when it runs."""
    if host == "-":
        boot = Boot()
        boot.run(world)
        return world.server
    boot_on = BootOn([host])
    boot_on.run(world)
    return world.admin.compute.get_server(boot_on.servers[host].id)


def make(world: World, state: Path, host: str, count: str) -> dict[str, Any]:
    """Make the tenant, its VMs and its volume."""
    for step in (
        ExternalNetwork(), Privileged(), Flavor(), Image(), TenantNetwork(), Router(), SecurityGroup(),
        Keypair(), Volume(),
    ):  # fmt: skip
        step.run(world)
    servers: dict[str, str] = {}
    made: dict[str, Any] = {"name": world.name, "servers": servers}
    for number in range(int(count)):
        world.server = start(world, host)
        FloatingIp().run(world)
        Ping().run(world)
        servers[str(world.server.id)] = world.address
        if number == 0:
            for step in (Metadata(), Ssh(), Attach()):
                step.run(world)
            with guest.ssh(world.address, world.private_key) as client:
                command = f"disktest wait /dev/vdb && disktest write /dev/vdb {MEGABYTES}"
                made |= {"sum": guest.run(client, command, timeout=180), "address": world.address}
    state.write_text(json.dumps({**made, "key": world.private_key}))
    state.chmod(0o600)
    return made


def look(world: World, state: Path) -> dict[str, Any]:
    """Return where each VM runs, its status, and the volume's checksum."""
    made = json.loads(state.read_text())
    servers = {key: world.admin.compute.get_server(key) for key in made["servers"]}
    total = ""

    def readable() -> bool:
        nonlocal total
        try:
            with guest.ssh(made["address"], made["key"]) as client:
                total = guest.run(client, "disktest wait /dev/vdb && disktest read /dev/vdb", timeout=120)
        except Exception as error:  # the guest boots: no route, no SSH yet
            total = f"{type(error).__name__}: {error}"
            return False
        return True

    wait_until(readable, 180, "the guest's answer", why=lambda: total)
    return {
        "hosts": {key: server.compute_host for key, server in servers.items()},
        "status": {key: server.status for key, server in servers.items()},
        "sum": total,
    }


def write(world: World, state: Path) -> dict[str, Any]:
    """Write and read until standard input ends; a failed or wrong one is told."""
    made = json.loads(state.read_text())
    count, failures = 0, []
    with guest.ssh(made["address"], made["key"], timeout=30) as client:
        while not select.select([sys.stdin], [], [], 0.2)[0]:
            began = time.time()
            try:
                told = guest.run(client, f"disktest write /dev/vdb {MEGABYTES}", timeout=60)
                found = guest.run(client, "disktest read /dev/vdb", timeout=60)
                if told != found:
                    failures.append([began, f"wrote {told}, read {found}"])
            except Exception as error:
                failures.append([began, f"{type(error).__name__}: {error}"])
                if len(failures) > 5:
                    break
            count += 1
            print(json.dumps({"at": began, "seconds": round(time.time() - began, 2)}), flush=True)
    return {"writes": count, "failures": failures}


def act(world: World, state: Path, server: str, action: str, status: str) -> dict[str, str]:
    """Ask for an action and wait until the VM has the status; return where it is."""
    compute = world.admin.compute
    compute.post(f"/servers/{server}/action", json=json.loads(action)).raise_for_status()

    def there() -> bool:
        now = compute.get_server(server)
        return now.status == status and not now.task_state

    wait_until(there, 300, f"{status} of {server}")
    return {"host": compute.get_server(server).compute_host}


def resize(world: World, state: Path, server: str) -> dict[str, str]:
    """Give a VM another size; what came of it is not confirmed."""
    flavor = world.admin.compute.create_flavor(
        name=f"{world.name}-other", ram=320, vcpus=1, disk=1, is_public=False
    )
    return act(world, state, server, json.dumps({"resize": {"flavorRef": flavor.id}}), "VERIFY_RESIZE")


def service(world: World, state: Path, host: str, change: str) -> dict[str, str]:
    """Change what the API holds of a compute node's service."""
    compute = world.admin.compute
    (found,) = (one for one in compute.services() if one.host == host and one.binary == "nova-compute")
    compute.put(f"/os-services/{found.id}", json=json.loads(change)).raise_for_status()
    return {"host": host}


def remove(world: World, state: Path) -> dict[str, list[str]]:
    """Remove what this and earlier runs of the name made."""
    admin = world.admin

    def left() -> Sequence[Any]:
        servers = admin.compute.servers(details=False, all_projects=True, name=world.name)
        return [server for server in servers if server.name == world.name]

    for server in left():
        admin.compute.delete_server(server)
    wait_until(lambda: not left(), 180, "removal of the VMs")
    for flavor in list(admin.compute.flavors(is_public=None)):
        if flavor.name == f"{world.name}-other":
            admin.compute.delete_flavor(flavor)
    failed = undo_steps(STEPS, World(site=world.site, admin=admin, name=world.name))
    state.unlink(missing_ok=True)
    return {"failed": failed}


if __name__ == "__main__":
    action, site, name, *rest = sys.argv[1:]
    known = {"make": make, "look": look, "write": write, "remove": remove}
    chosen = {**known, "act": act, "resize": resize, "service": service}[action]
    found = make_world(load_site(Path(site)))
    found.name = PREFIX + name
    place = Path(site) / ".cloudctl" / f"grow-{name}.json"
    print(json.dumps(chosen(found, place, *rest)))
