"""A registry of container images: talking to one, and running one from the image this builder makes."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudctl.errors import ApplyFailed, Unreachable
from cloudctl.images import host

_MANIFESTS = ", ".join(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.manifest.v1+json",
        "docker.distribution.manifest.v2+json",
        "oci.image.index.v1+json",
    )
)


@dataclass(frozen=True)
class Manifest:
    """What a registry says of one image."""

    digest: str
    size: int  # compressed bytes: the layers and the configuration


class Registry:
    """A plain-HTTP registry at `address` ("host:port")."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ping(self, timeout: float = 2.0) -> bool:
        """Return whether a registry answers."""
        try:
            return self._get("/v2/", timeout)[0] == 200
        except OSError:
            return False

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Return what is stored under a tag or digest; None when nothing is.

        Raises:
            Unreachable: the registry does not answer.
        """
        try:
            status, headers, body = self._get(f"/v2/{repository}/manifests/{reference}", 10.0)
        except OSError as error:
            raise Unreachable(
                "registry-unreachable", f"the registry does not answer: {error}", where=self.address
            ) from error
        if status == 404:
            return None
        if status != 200:
            raise Unreachable(
                "registry-error", f"the registry answers with status {status}", where=self.address
            )
        content = json.loads(body)
        size = sum(layer["size"] for layer in [content["config"], *content["layers"]])
        return Manifest(digest=headers["docker-content-digest"], size=size)

    def _get(self, path: str, timeout: float) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Accept": _MANIFESTS})
            response = connection.getresponse()
            return (
                response.status,
                {key.lower(): value for key, value in response.getheaders()},
                response.read(),
            )
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


def free_port() -> int:
    """Return a TCP port on the loopback interface that nothing uses right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextlib.contextmanager
def temporary_registry(image: str, storage: Path, wait: float = 20.0) -> Iterator[Registry]:
    """Run a registry on the loopback interface over `storage` for as long as the context lasts.

    Args:
        image: reference of the registry image.
        storage: directory that keeps the images.
        wait: seconds until it has to answer.

    Raises:
        ApplyFailed: it did not come up.
    """
    storage.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    container = host.run(
        host.podman(
            *("run", "--detach", "--rm", "--network", "host", *host.ULIMITS),
            *("--env", f"REGISTRY_ADDRESS={address}", "--entrypoint", "cloudctl_registry"),
            *("--volume", f"{storage}:/var/lib/registry", image),
        )
    ).strip()
    registry = Registry(address)
    try:
        deadline = time.monotonic() + wait
        while not registry.ping(0.5):
            if time.monotonic() > deadline:
                raise ApplyFailed(
                    "registry-start", f"the registry did not answer within {wait:.0f} seconds", where=address
                )
            time.sleep(0.1)
        yield registry
    finally:
        with contextlib.suppress(ApplyFailed):
            host.run(host.podman("stop", "--time", "5", container))
