"""Makes a new site's directory from a few answers."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cloudctl.errors import CloudctlError, UsageError
from cloudctl.site.secrets import make_ssh_key, ssh_public_key
from cloudctl.site.validate import validate_site

TEMPLATES = Path(__file__).with_name("templates")


def text(value: str) -> str:
    """Accept anything but nothing.

    Raises:
        ValueError: empty.
    """
    if not value.strip():
        raise ValueError("must not be empty")
    return value.strip()


def optional(value: str) -> str | None:
    """Accept text; empty or ``none`` means none."""
    return None if value.strip().lower() in ("", "none") else value.strip()


def addresses(value: str) -> list[str]:
    """Return the addresses of a list like ``10.10.10.11-13,10.10.10.20``; ``none`` for an empty one.

    Raises:
        ValueError: not such a list.
    """
    found: list[str] = []
    for part in re.split(r"[,\s]+", optional(value) or ""):
        if not part:
            continue
        first, dash, last = part.partition("-")
        try:
            start = IPv4Address(first)
            end = start
            if dash:
                end = IPv4Address(last if "." in last else f"{first.rpartition('.')[0]}.{last}")
        except AddressValueError:
            raise ValueError(f"'{part}' is neither an IPv4 address nor a range like 10.10.10.11-13") from None
        if end < start:
            raise ValueError(f"the range {part} ends before it begins")
        if int(end) - int(start) >= 4096:
            raise ValueError(f"the range {part} is too long")
        found += [str(IPv4Address(number)) for number in range(int(start), int(end) + 1)]
    return found


def pool(value: str) -> tuple[str, str]:
    """Return first and last address of ``10.10.50.100-199``.

    Raises:
        ValueError: not such a range.
    """
    found = addresses(value)
    if len(found) < 2:
        raise ValueError("must be a range like 10.10.50.100-199")
    return found[0], found[-1]


def words(value: str) -> list[str]:
    """Return the words of a list separated by commas; ``none`` for an empty one."""
    return [part for part in re.split(r"[,\s]+", optional(value) or "") if part]


@dataclass(frozen=True)
class Question:
    """One thing that a new site needs to know.

    Attributes:
        key: its name in the templates; the flag is ``--key``.
        prompt: the question, and the flag's help.
        default: the documented value, which ``--defaults`` takes.
        parse: turns the answer into a value; raises ValueError.
    """

    key: str
    prompt: str
    default: str
    parse: Callable[[str], Any] = text


QUESTIONS = (
    Question("name", "Name of the cloud", "cloud"),
    Question("region", "Region", "RegionOne"),
    Question("user", "User that Ansible logs in as (root, or one who may sudo)", "root"),
    Question("management", "Management network", "10.10.10.0/24"),
    Question("gateway", "Gateway of the management network (or none)", "10.10.10.1", optional),
    Question("tenant", "Tenant network", "10.10.20.0/24"),
    Question("storage-network", "Storage network", "10.10.30.0/24"),
    Question("replication", "Replication network", "10.10.40.0/24"),
    Question("api", "API network", "192.168.124.0/24"),
    Question("external", "External network (floating IPs)", "10.10.50.0/24"),
    Question("external-gateway", "Gateway of the external network", "10.10.50.1"),
    Question("pool", "Floating IPs, first and last", "10.10.50.100-199", pool),
    Question("vip-internal", "Virtual address on the management network", "10.10.10.250"),
    Question("vip-external", "Virtual address on the API network", "192.168.124.250"),
    Question("deploy", "Address of the deploy node", "10.10.10.2"),
    Question(
        "deploy-api", "Address of the deploy node on the API network (or none)", "192.168.124.10", optional
    ),
    Question("control", "Addresses of the controllers", "10.10.10.11-13", addresses),
    Question("compute", "Addresses of the compute nodes", "10.10.10.21-24", addresses),
    Question("storage", "Addresses of the storage nodes", "10.10.10.211-213", addresses),
    Question("devices", "Disks that become OSDs", "/dev/sdc,/dev/sdd,/dev/sde,/dev/sdf,/dev/sdg", words),
    Question(
        "journal-devices",
        "Journal of each disk, in the same order (or none)",
        "/dev/sdb1,/dev/sdb2,/dev/sdb3,/dev/sdb4,/dev/sdb5",
        words,
    ),
    Question("virtualisation", "Virtualisation, kvm or qemu", "kvm"),
)


def create_site(path: Path, answers: Mapping[str, Any]) -> list[Path]:
    """Write a new site.

    Args:
        path: the directory; must not exist, or be empty.
        answers: parsed values by the questions' keys.

    Returns:
        The files, relative to the directory.

    Raises:
        UsageError: the directory is not empty, or the answers do not fit together; nothing was written.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            "site-not-empty",
            f"{path} is not an empty directory",
            where=str(path),
            hint="choose a new directory: what is there is never overwritten",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there, so that there is a whole site or none.
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _write(draft, answers)
        _, errors = validate_site(draft, with_secrets=False)
        if errors:
            raise _refused(errors)
        draft.chmod(0o755)
        if path.exists():
            path.rmdir()
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def _write(directory: Path, answers: Mapping[str, Any]) -> None:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    values = {key.replace("-", "_"): value for key, value in answers.items()}
    for template in sorted(TEMPLATES.rglob("*.j2")):
        name = template.relative_to(TEMPLATES).as_posix()
        target = directory / name.removesuffix(".j2").replace("gitignore", ".gitignore")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(environment.get_template(name).render(values), encoding="utf-8")
    keys = directory / "ssh"
    keys.mkdir(mode=0o700)
    private = make_ssh_key()
    descriptor = os.open(keys / "id_ed25519", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(private)
    public = ssh_public_key(private, f"cloudctl-{values['name']}")
    (keys / "id_ed25519.pub").write_text(public + "\n", encoding="ascii")
    (directory / ".cloudctl").mkdir(mode=0o700)


def _refused(errors: list[CloudctlError]) -> UsageError:
    """Return the errors as one about the answers: their files were never there for the operator to see."""
    return UsageError(
        "answers-do-not-fit",
        "these answers do not make a valid site:" + "".join(f"\n  - {error.message}" for error in errors),
        hint="change the flags; nothing was written",
    )
