"""What a tenant leaves running when the power goes; a program of the deploy node.

``make`` builds two VMs that run (one with a volume full of known data), and one that is stopped; prints them
as one line of JSON. ``look`` prints how they are now, ``remove`` removes everything of every such run.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

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
    Tenant,
    TenantNetwork,
    Volume,
    World,
    make_world,
)

PREFIX = "cloudctl-power-"
MEGABYTES = 32


def another(world: World, name: str) -> Any:
    """Start a VM like the first one."""
    made = world.tenant.compute.create_server(
        name=name,
        image_id=world.image.id,
        flavor_id=world.flavor.id,
        networks=[{"uuid": world.network.id}],
        key_name=world.name,
    )
    return made.id


def until(world: World, server: str, status: str) -> None:
    wait_until(lambda: world.admin.compute.get_server(server).status == status, 300, f"{server} {status}")


def make(world: World, state: Path) -> dict[str, Any]:
    """Make the tenant, its VMs and its volume."""
    world.name = PREFIX + secrets.token_hex(3)
    for step in (
        ExternalNetwork(), Tenant(), Flavor(), Image(), TenantNetwork(), Router(), SecurityGroup(), Keypair(),
        Volume(), Boot(), FloatingIp(), Ping(), Metadata(), Ssh(), Attach(),
    ):  # fmt: skip
        step.run(world)
    second, stopped = another(world, f"{world.name}-two"), another(world, f"{world.name}-off")
    until(world, second, "ACTIVE")
    until(world, stopped, "ACTIVE")
    world.admin.compute.stop_server(stopped)
    until(world, stopped, "SHUTOFF")
    with guest.ssh(world.address, world.private_key) as client:
        total = guest.run(
            client, f"disktest wait /dev/vdb && disktest write /dev/vdb {MEGABYTES}", timeout=180
        )
    made = {
        "name": world.name,
        "address": world.address,
        "sum": total,
        "key": world.private_key,
        "servers": {world.server.id: "ACTIVE", second: "ACTIVE", stopped: "SHUTOFF"},
    }
    state.write_text(json.dumps(made))
    state.chmod(0o600)
    return {key: value for key, value in made.items() if key != "key"}


def look(world: World, state: Path) -> dict[str, Any]:
    """Return each VM's status, and the volume's checksum as the guest reads it now."""
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

    wait_until(readable, 120, "the guest's answer", why=lambda: total)
    return {
        "servers": {key: server.status for key, server in servers.items()},
        "power": {key: server.power_state for key, server in servers.items()},
        "sum": total,
    }


def remove(world: World, state: Path) -> dict[str, list[str]]:
    """Remove what this and earlier runs made; returns what could not be removed."""
    admin = world.admin
    things = [*admin.identity.projects(), *admin.identity.users(), *admin.compute.flavors(is_public=None)]
    names = sorted({thing.name for thing in things if thing.name.startswith(PREFIX)})
    for server in list(admin.compute.servers(details=False, all_projects=True)):
        if server.name.startswith(PREFIX):
            admin.compute.delete_server(server)
            wait_until(lambda key=server.id: admin.compute.find_server(key) is None, 120, "removal of a VM")
    failed: list[str] = []
    for name in names:
        failed += undo_steps(STEPS, World(site=world.site, admin=admin, name=name))
    state.unlink(missing_ok=True)
    return {"failed": failed}


if __name__ == "__main__":
    action, site = sys.argv[1:]
    chosen = {"make": make, "look": look, "remove": remove}[action]
    place = Path(site) / ".cloudctl" / "power-test.json"
    print(json.dumps(chosen(make_world(load_site(Path(site))), place)))
