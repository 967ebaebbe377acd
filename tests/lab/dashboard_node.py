"""A tenant with a VM for the browser to look at; a program of the deploy node.

``make`` prints what the browser needs as one line of JSON, ``remove`` removes everything of every such run.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from cloudctl.openrc import ca_file
from cloudctl.site.load import load_site
from cloudctl.verify.steps import undo_steps
from cloudctl.verify.tenant import (
    STEPS,
    Boot,
    Flavor,
    Image,
    Keypair,
    SecurityGroup,
    Tenant,
    TenantNetwork,
    World,
    make_world,
)

PREFIX = "cloudctl-dashboard-"


def make(world: World) -> dict[str, str]:
    """Make the tenant and its VM."""
    world.name = PREFIX + secrets.token_hex(3)
    for step in (Tenant(), Flavor(), Image(), TenantNetwork(), SecurityGroup(), Keypair(), Boot()):
        step.run(world)
    password = secrets.token_urlsafe(24)
    user = next(iter(world.admin.identity.users(name=world.name)))
    world.admin.identity.update_user(user, password=password)
    return {
        "url": f"https://{world.site.get('vip.external')}/",
        "ca": str(ca_file(world.site)),
        "user": world.name,
        "password": password,
        "project": world.name,
        "server": world.name,
        "server_id": world.server.id,
    }


def remove(world: World) -> dict[str, list[str]]:
    """Remove what this and earlier runs made; returns what could not be removed."""
    identity = world.admin.identity
    things = [*identity.projects(), *identity.users(), *world.admin.compute.flavors(is_public=None)]
    names = sorted({thing.name for thing in things if thing.name.startswith(PREFIX)})
    failed: list[str] = []
    for name in names:
        failed += undo_steps(STEPS, World(site=world.site, admin=world.admin, name=name))
    return {"failed": failed}


if __name__ == "__main__":
    action, site = sys.argv[1:]
    world = make_world(load_site(Path(site)))
    print(json.dumps(make(world) if action == "make" else remove(world)))
