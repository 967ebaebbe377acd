"""Whether the registry has every image that the site wants; asked once, from here."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
TIMEOUT = 5  # seconds for one question


def manifest_url(reference: str) -> str:
    """Return the URL of an image's manifest.

    >>> manifest_url("10.10.10.2:5000/cloudctl/keystone@sha256:ab")
    'http://10.10.10.2:5000/v2/cloudctl/keystone/manifests/sha256:ab'
    """
    registry, _slash, rest = reference.partition("/")
    name, at, digest = rest.partition("@")
    if not at:
        name, _colon, digest = rest.rpartition(":")
        if not name:
            name, digest = rest, "latest"
    return f"http://{registry}/v2/{name}/manifests/{digest}"


def ask(url: str) -> tuple[int, str]:
    """Return ``(status, error)`` of a HEAD request; status 0 when nothing answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _ACCEPT})
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ssl.SSLError, http.client.HTTPException) as error:
        return 0, str(getattr(error, "reason", error))


def missing(
    references: Mapping[str, str], *, asks: Callable[[str], tuple[int, str]] = ask
) -> tuple[list[str], str]:
    """Return the images that the registry does not have, and why it does not answer ('' when it does).

    Args:
        references: image name to reference.
    """
    if not references:
        return [], ""
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = dict(
            zip(references, pool.map(lambda r: asks(manifest_url(r)), references.values()), strict=True)
        )
    silent = next(
        (error or f"HTTP {status}" for status, error in answers.values() if not 200 <= status < 500), ""
    )
    if silent:
        return [], silent
    return sorted(name for name, (status, _error) in answers.items() if status == 404), ""
