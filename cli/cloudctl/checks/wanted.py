"""What each node is asked, from the site and the service definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudctl.engine.render import Renderer
from cloudctl.site.model import Node

# Ports that daemons use among themselves: they have no frontend. By container.
_CLUSTER_PORTS: Mapping[str, tuple[int, ...]] = {
    "mariadb": (3306, 4444, 4567, 4568),
    "rabbitmq": (4369, 5672, 25672),
    "memcached": (11211,),
    "ovn_nb_db": (6641, 6643),
    "ovn_sb_db": (6642, 6644),
}
_MON_PORTS = (3300, 6789)


def ports(renderer: Renderer, node: Node) -> dict[int, str]:
    """Return the TCP ports that our containers will listen on at a node, with the container's name."""
    containers = {container.name: container for container in renderer.containers_of(node)}
    found: dict[int, str] = {}
    for name in containers:
        for port in _CLUSTER_PORTS.get(name, ()):
            found[port] = name
    # The virtual addresses' ports are taken on every node that may hold them.
    balancer = next((name for name in containers if name == "haproxy"), None)
    for service in renderer.services:
        for frontend in service.frontends:
            if balancer:
                found.setdefault(int(frontend["port"]), balancer)
            container = str(frontend.get("container", ""))
            if container in containers:
                found[int(frontend.get("backend_port", frontend["port"]))] = container
                check = frontend.get("check") or {}
                if check.get("port"):
                    found[int(check["port"])] = container
    if "mons" in node.groups and renderer.site.group("storage"):
        found.update(dict.fromkeys(_MON_PORTS, "ceph-mon"))
    return found


def images(renderer: Renderer) -> dict[str, str]:
    """Return the images that the site's containers run: name to reference; '' for one that is not locked."""
    names = sorted(
        {c.image for node in renderer.managed_nodes() for c in renderer.containers_of(node) if c.image}
    )
    lock = renderer.site.images
    return {name: str((lock.get(name) or {}).get("reference", "")) for name in names}


def questions(renderer: Renderer) -> dict[str, dict[str, Any]]:
    """Return by node the arguments of the module ``cloudctl_check``."""
    site = renderer.site
    vips = [str(site.get(f"vip.{name}")) for name in ("internal", "external")]
    system = site.get("datapath", "system") == "system"
    kvm = site.get("virtualisation.type", "kvm") == "kvm"
    return {
        node.name: {
            "ports": sorted(ports(renderer, node)),
            "urls": {
                "registry": f"http://{site.get('registry.address')}/v2/",
                "repository": str(site.get("packages.repository")),
            },
            "vips": vips if "control" in node.groups else [],
            "modules": ["openvswitch"] if system and {"control", "compute"} & set(node.groups) else [],
            "kvm": kvm and "compute" in node.groups,
        }
        for node in site.nodes.values()
    }
