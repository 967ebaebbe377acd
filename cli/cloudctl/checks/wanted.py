"""What each node is asked, from the site and the service definitions."""

from __future__ import annotations

from typing import Any

from cloudctl.engine.render import Renderer
from cloudctl.site.model import Node

_MON_PORTS = (3300, 6789)


def ports(renderer: Renderer, node: Node) -> dict[int, str]:
    """Return the TCP ports that our containers will listen on at a node, with the container's name."""
    containers = {container.name: container for container in renderer.containers_of(node)}
    found: dict[int, str] = {}
    for name, container in containers.items():
        found.update(dict.fromkeys(container.ports, name))
    # The virtual addresses' ports are taken on every node that may hold them.
    balancer = next((name for name, item in containers.items() if "frontends" in item.serves), None)
    for service in renderer.services:
        for frontend in service.frontends:
            if balancer:
                found.setdefault(int(frontend["port"]), balancer)
            backend = str(frontend.get("container", ""))
            if backend in containers:
                found[int(frontend.get("backend_port", frontend["port"]))] = backend
                check = frontend.get("check") or {}
                if check.get("port"):
                    found[int(check["port"])] = backend
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


def kernel_modules(renderer: Renderer, node: Node) -> list[str]:
    """Return the kernel modules that the services with a container on a node need there."""
    running = {container.service for container in renderer.containers_of(node)}
    return sorted(
        {
            str(entry["name"])
            for service in renderer.services
            if service.name in running
            for entry in service.raw.get("kernel_modules") or ()
            if renderer.matches(entry.get("only"))
        }
    )


def questions(renderer: Renderer) -> dict[str, dict[str, Any]]:
    """Return by node the arguments of the module ``cloudctl_check``."""
    site = renderer.site
    vips = [str(site.get(f"vip.{name}")) for name in ("internal", "external")]
    kvm = site.get("virtualisation.type", "kvm") == "kvm"
    return {
        node.name: {
            "ports": sorted(ports(renderer, node)),
            "urls": {
                "registry": f"http://{site.get('registry.address')}/v2/",
                "repository": str(site.get("packages.repository")),
            },
            "vips": vips if "control" in node.groups else [],
            "modules": kernel_modules(renderer, node),
            "kvm": kvm and "compute" in node.groups,
        }
        for node in site.nodes.values()
    }
