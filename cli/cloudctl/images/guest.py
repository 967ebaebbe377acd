"""The test guest's disk image: a small Linux that boots in seconds even without hardware virtualisation."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from cloudctl.errors import ApplyFailed
from cloudctl.images import host
from cloudctl.images.builder import Builder
from cloudctl.images.definition import tree_digest

GUEST_BUILDER = "guest-builder"
GUEST_NAME = "guest.qcow2"


def guest_key(builder: Builder, source: Path) -> str:
    """Return the content address of the disk image: a hash of its files and of the image that makes it."""
    text = f"{builder.keys[GUEST_BUILDER]} {tree_digest(source)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_guest(builder: Builder, source: Path, cache: Path) -> Path:
    """Build the guest's disk image unless it is there already.

    Args:
        builder: builds the image in which the disk image is made.
        source: the ``guest`` directory.
        cache: where ``guest.qcow2`` goes.

    Returns:
        The path of the disk image.

    Raises:
        ApplyFailed: the build failed.
    """
    target = cache / GUEST_NAME
    stamp = cache / f"{GUEST_NAME}.key"
    key = guest_key(builder, source)
    if (
        target.exists()
        and stamp.exists()
        and stamp.read_text(encoding="utf-8").strip() == key
        and not builder.rebuild
    ):
        return target
    builder.build([GUEST_BUILDER], push=False)
    log = cache / "log" / "guest.log"
    log.unlink(missing_ok=True)
    work = cache / "build" / "guest"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    image = builder.local(builder.catalogue.get(GUEST_BUILDER))
    host.run(
        host.podman(
            *("run", "--rm", "--network", "none", *host.ULIMITS, "--entrypoint", "/bin/sh"),
            *("--volume", f"{source}:/src:ro", "--volume", f"{work}:/out", image, "/src/build.sh"),
        ),
        log=log,
    )
    made = work / GUEST_NAME
    if not made.exists():
        raise ApplyFailed(
            "guest-image-missing", "the build ended well but made no disk image", where=str(log)
        )
    made.replace(target)
    stamp.write_text(key + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    return target
