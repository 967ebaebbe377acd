"""The guest image in the format that Ceph clones without a copy."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cloudctl.verify.steps import StepFailed

QCOW2_MAGIC = b"QFI\xfb"


def image_format(path: Path) -> str:
    """Return ``qcow2`` or ``raw``, from the file's first bytes.

    Raises:
        StepFailed: there is no such file.
    """
    try:
        with path.open("rb") as stream:
            return "qcow2" if stream.read(4) == QCOW2_MAGIC else "raw"
    except OSError as error:
        raise StepFailed(f"no guest image at {path}: {error.strerror}") from error


@contextlib.contextmanager
def prepared(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the image to upload and its format: raw where it can be converted, else as it is.

    Ceph makes a VM's disk from a raw image by copy-on-write; a qcow2 image is downloaded and converted
    for every VM.
    """
    found = image_format(path)
    if found == "raw" or shutil.which("qemu-img") is None:
        yield path, found
        return
    with tempfile.TemporaryDirectory(prefix="cloudctl-verify-") as directory:
        raw = Path(directory) / "guest.raw"
        command = ["qemu-img", "convert", "-O", "raw", str(path), str(raw)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except subprocess.CalledProcessError as error:
            raise StepFailed(f"qemu-img could not convert {path}: {error.stderr.strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"qemu-img did not convert {path} within 300 s") from error
        yield raw, "raw"
