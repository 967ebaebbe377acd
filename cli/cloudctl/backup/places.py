"""The second place: every backup that counts is copied there, read back, and only then given its name."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from cloudctl.backup import Report
from cloudctl.backup.manifest import Manifest
from cloudctl.backup.remote import ssh_command
from cloudctl.backup.store import LOGS, Store, checksum_of
from cloudctl.errors import ApplyFailed
from cloudctl.site.model import Node, Site


class Place:
    """A directory here or, as ``user@host:/directory``, on another machine.

    Args:
        site: its key and known_hosts are used.
        target: the setting ``backup.copy_to``.
    """

    def __init__(self, site: Site, target: str) -> None:
        self.target = target
        host, colon, directory = target.partition(":")
        self._prefix: list[str] | None = None
        self.directory = target
        if colon and not target.startswith("/"):
            user, _at, name = host.rpartition("@")
            known = next(iter(site.nodes.values()), None)
            inherited = dict(known.vars) if known else {}
            kept = ("ansible_ssh_common_args", "ansible_ssh_private_key_file")
            variables = {key: value for key, value in inherited.items() if key in kept}
            node = Node(
                name=name, groups=(), address=name, vars={**variables, "ansible_user": user or "root"}
            )
            # Never as another user there: the account that is named owns the copies.
            self._prefix = [*ssh_command(site, node, "")[:-1]]
            self.directory = directory

    def run(self, script: str, stdin: Path | None = None) -> str:
        """Run a shell script in the place's directory and return its output.

        Raises:
            ApplyFailed: it failed.
        """
        place = shlex.quote(self.directory)
        text = f"set -e; umask 077; mkdir -p {place}; cd {place}; {script}"
        command = (
            ["bash", "-c", text] if self._prefix is None else [*self._prefix, f"bash -c {shlex.quote(text)}"]
        )
        source = stdin.open("rb") if stdin else subprocess.DEVNULL
        try:
            done = subprocess.run(
                command, stdin=source, capture_output=True, text=True, errors="replace", check=False
            )
        finally:
            if not isinstance(source, int):
                source.close()
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ApplyFailed(
                "backup-copy-failed",
                f"the second place did not take the copy: {lines[-1] if lines else done.returncode}",
                where=self.target,
                hint="the backup itself is complete; mend the second place: the next backup copies it",
            )
        return done.stdout

    def names(self) -> set[str]:
        """Return what is there, without what is half made."""
        return set(self.run("ls -1").split())

    def put(self, directory: Path, files: Iterable[str], target: str) -> None:
        """Copy files of a directory, read them back, and give the copy its name."""
        new = shlex.quote(f".new-{target}")
        self.run(f"rm -rf {new}; mkdir -p {new}")
        for file in files:
            self.write(directory / file, f".new-{target}/{file}")
        self.run(f"mv {new} {shlex.quote(target)}")

    def write(self, file: Path, target: str) -> None:
        """Write one file and compare what arrived."""
        name = shlex.quote(target)
        told = self.run(f"cat >{name}; sync {name}; sha256sum {name}", stdin=file).split()
        if not told or told[0] != checksum_of(file)[1]:
            raise ApplyFailed(
                "backup-copy-failed", f"the copy of {file.name} differs from it", where=self.target,
                hint="the backup itself is complete; look at the second place's disk",
            )  # fmt: skip

    def remove(self, name: str) -> None:
        """Remove a backup's copy."""
        self.run(f"rm -rf {shlex.quote(name)}")


def copy_all(site: Site, store: Store, manifests: Mapping[str, Manifest], report: Report) -> list[str]:
    """Copy what the second place lacks: backups that count, and the archived binary logs.

    Returns:
        What was copied.
    """
    target = site.get("backup.copy_to")
    if not target:
        return []
    place = Place(site, target)
    there = place.names()
    copied = []
    for name, backup in sorted(manifests.items()):
        if backup.counts and name not in there and backup.path is not None:
            report(f"copying {name} to {target}")
            place.put(backup.path, [file.name for file in backup.files] + ["manifest.json"], name)
            copied.append(name)
    for archive in store.archives()[0].values():
        directory = store.log_directory(archive)
        sub = f"{LOGS}/{directory.name}"
        have = set(place.run(f"mkdir -p {shlex.quote(sub)}; ls -1 {shlex.quote(sub)}").split())
        for log in archive.logs:
            if log.file not in have:
                place.write(directory / log.file, f"{sub}/.new")
                place.run(f"mv {shlex.quote(sub)}/.new {shlex.quote(sub + '/' + log.file)}")
        place.write(directory / "index.json", f"{sub}/.new")
        place.run(f"mv {shlex.quote(sub)}/.new {shlex.quote(sub)}/index.json")
    return copied
