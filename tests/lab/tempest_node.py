"""Runs Tempest against the site's cloud; a program of the deploy node.

Makes what the tests need (images, flavors, configuration), runs them, removes it again, and writes
``results.xml`` and ``tempest.log`` into the work directory.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudctl.openrc import ca_file, credentials
from cloudctl.site.load import load_site
from cloudctl.site.model import Site
from cloudctl.verify.image import prepared
from cloudctl.verify.tenant import BUILD_TIMEOUT, DEFAULT_IMAGE, ExternalNetwork, World, make_world

PREFIX = "cloudctl-tempest"
# Seconds: several times what a loaded lab needs.
_WAIT = 300


@contextmanager
def made(world: World) -> Iterator[dict[str, str]]:
    """Make two images and two flavors that every project sees; yields their ids by name."""
    remove(world)
    try:
        ids = {}
        source = Path(str(world.site.get("verify.guest_image", DEFAULT_IMAGE)))
        with prepared(source) as (path, disk_format):
            for name in (PREFIX, f"{PREFIX}-alt"):
                image = world.admin.image.create_image(
                    name,
                    filename=str(path),
                    disk_format=disk_format,
                    container_format="bare",
                    visibility="public",
                    wait=True,
                    timeout=BUILD_TIMEOUT,
                )
                ids[f"image {name}"] = image.id
        for name, ram in ((PREFIX, 128), (f"{PREFIX}-alt", 192)):
            flavor = world.admin.compute.create_flavor(name=name, ram=ram, vcpus=1, disk=1, is_public=True)
            ids[f"flavor {name}"] = flavor.id
        yield ids
    finally:
        remove(world)


def remove(world: World) -> None:
    """Remove what this program made, also in a run that was killed."""
    for image in list(world.admin.image.images(visibility="all")):
        if (image.name or "").startswith(PREFIX):
            world.admin.image.delete_image(image)
    for flavor in list(world.admin.compute.flavors(is_public=None)):
        if flavor.name.startswith(PREFIX):
            world.admin.compute.delete_flavor(flavor)


def configuration(site: Site, world: World, ids: dict[str, str], work: Path) -> dict[str, dict[str, Any]]:
    """Return Tempest's configuration for this cloud: sections, keys, values."""
    admin = credentials(site)
    internal = {"endpoint_type": "internal", "region": admin["OS_REGION_NAME"]}
    waits = {"build_timeout": _WAIT, "build_interval": 1}
    types = {entry["type"] for entry in world.admin.service_catalog}
    extensions = sorted(extension.alias for extension in world.admin.network.extensions())
    hypervisors = len(list(world.admin.compute.hypervisors()))
    return {
        "DEFAULT": {"log_file": work / "tempest.log", "use_stderr": False},
        "oslo_concurrency": {"lock_path": work / "lock"},
        "auth": {
            "admin_username": admin["OS_USERNAME"],
            "admin_password": admin["OS_PASSWORD"],
            "admin_project_name": admin["OS_PROJECT_NAME"],
            "admin_domain_name": admin["OS_USER_DOMAIN_NAME"],
            "use_dynamic_credentials": True,
            "create_isolated_networks": True,
            "tempest_roles": "member",
        },
        "identity": {
            "auth_version": "v3",
            "uri_v3": admin["OS_AUTH_URL"],
            "v3_endpoint_type": "internal",
            "region": admin["OS_REGION_NAME"],
            **({"ca_certificates_file": ca_file(site)} if "OS_CACERT" in admin else {}),
        },
        "service_available": {
            "nova": "compute" in types,
            "neutron": "network" in types,
            "glance": "image" in types,
            "cinder": "block-storage" in types,
            "swift": "object-store" in types,
            "horizon": bool(site.get("services.horizon.enabled", True)),
        },
        "compute": {
            **internal,
            **waits,
            "image_ref": ids[f"image {PREFIX}"],
            "image_ref_alt": ids[f"image {PREFIX}-alt"],
            "flavor_ref": ids[f"flavor {PREFIX}"],
            "flavor_ref_alt": ids[f"flavor {PREFIX}-alt"],
            "fixed_network_name": "",
            "min_compute_nodes": hypervisors,
            "max_microversion": "latest",
        },
        # The two that are off are looked at from inside the guest by programs that the small guest does not
        # have (curl, sudo); ``cloudctl verify`` looks at the metadata.
        "compute-feature-enabled": {"vnc_console": True, "metadata_service": False, "config_drive": False},
        "placement": internal,
        "dashboard": {"dashboard_url": f"https://{site.get('vip.external')}/"},
        "image": internal | {"build_timeout": _WAIT},
        "network": {
            **internal,
            **waits,
            "public_network_id": world.external.id,
            "floating_network_name": world.external.name,
        },
        "network-feature-enabled": {"api_extensions": ",".join(extensions), "ipv6": True},
        "volume": {
            **internal,
            **waits,
            "catalog_type": "block-storage",
            "storage_protocol": "ceph",
            "vendor_name": "Open Source",
            "volume_size": 1,
        },
        "volume-feature-enabled": {"backup": True, "snapshot": True},
        "validation": {
            "run_validation": True,
            "connect_method": "floating",
            "auth_method": "keypair",
            "image_ssh_user": "root",
            "image_alt_ssh_user": "root",
            "ssh_key_type": "ecdsa",
            "ping_timeout": _WAIT,
            "connect_timeout": 60,
            "ssh_timeout": _WAIT,
        },
    }


def write_configuration(path: Path, sections: dict[str, dict[str, Any]]) -> None:
    """Write the configuration as an INI file that only its owner may read."""
    parser = configparser.RawConfigParser(default_section="there is none")
    for section, values in sections.items():
        parser[section] = {key: str(value) for key, value in values.items()}
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        parser.write(stream)


def main() -> int:
    """Run the tests; returns Tempest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--tempest", type=Path, required=True, help="virtual environment with Tempest")
    parser.add_argument("--work", type=Path, required=True, help="new directory; an old one is removed")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--exclude-list", type=Path)
    parser.add_argument("--regex", help="instead of the smoke set")
    arguments = parser.parse_args()

    site = load_site(arguments.site)
    world = make_world(site)
    ExternalNetwork().run(world)
    programs, work = arguments.tempest / "bin", arguments.work
    workspace, home = work / "workspace", work / "home"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700, parents=True)
    home.mkdir()
    workspace.mkdir()
    environment = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}", HOME=str(home))
    environment.pop("PYTHONPATH", None)
    if ca_file(site).is_file():
        environment["SSL_CERT_FILE"] = str(ca_file(site))  # the dashboard's test knows no other way

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=workspace,
            env=environment,
            check=False,
            **options,
        )

    run(["tempest", "init", str(workspace)], stdout=subprocess.DEVNULL)
    settings = workspace / "etc" / "tempest.conf"
    with made(world) as ids:
        write_configuration(settings, configuration(site, world, ids, work))
        which = ["--regex", arguments.regex] if arguments.regex else ["--smoke"]
        if arguments.exclude_list:
            which += ["--exclude-list", str(arguments.exclude_list)]
        try:
            done = run(["tempest", "run", "--concurrency", str(arguments.concurrency), *which])
        finally:
            settings.unlink()  # it has the administrator's password
    results = run(["stestr", "last", "--subunit"], stdout=subprocess.PIPE).stdout
    junit = run(["subunit2junitxml"], input=results, stdout=subprocess.PIPE).stdout
    (work / "results.xml").write_bytes(junit)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
