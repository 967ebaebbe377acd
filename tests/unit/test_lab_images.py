"""The definition of the lab's images and of the package repository."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cloudctl.lab import images
from cloudctl.packages import repository
from cloudctl.paths import data_root

LAB = data_root() / "lab"


def test_the_digest_follows_names_contents_and_modes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    seen = {images.digest(tmp_path)}
    file.chmod(0o755)
    seen.add(images.digest(tmp_path))
    file.write_text("y")
    seen.add(images.digest(tmp_path))
    file.rename(tmp_path / "b")
    seen.add(images.digest(tmp_path))
    assert len(seen) == 4
    assert images.digest(tmp_path) == images.digest(tmp_path)


def test_the_deploy_node_has_what_the_package_requires() -> None:
    project = tomllib.loads((data_root() / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=~ ]", line)[0].lower() for line in lines}

    assert names(images.read_list(LAB / "deploy" / "requirements.txt")) == names(project["dependencies"])


def test_package_lists_are_sorted_and_without_repetition() -> None:
    for packages in (repository.wanted_packages(), images.read_list(LAB / "node" / "packages.txt")):
        assert packages == sorted(set(packages))


def test_the_bare_node_lacks_what_cloudctl_installs() -> None:
    assert not set(repository.wanted_packages()) & set(images.read_list(LAB / "node" / "packages.txt"))


@pytest.mark.parametrize("option", ["--bundle", "-b", "--process", "-p", "--bundle=", "--process="])
def test_the_runtime_lowers_limits_that_are_too_high(option: str, tmp_path: Path) -> None:
    """The wrapper is run up to the point where it would start runc."""
    wrapper = LAB / "node/files/usr/local/lib/cloudctl-lab/runc-lab.py"
    top = 64
    limits = [
        {"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 10},
        {"type": "RLIMIT_UNKNOWN", "hard": 7, "soft": 7},
    ]
    process = option.startswith(("-p", "--process"))
    spec = {"rlimits": limits} if process else {"process": {"rlimits": limits}}
    file = tmp_path / ("process.json" if process else "config.json")
    file.write_text(json.dumps(spec))
    target = str(file if process else tmp_path)
    arguments = [option + target] if option.endswith("=") else [option, target]
    program = tmp_path / "wrapper.py"
    program.write_text(wrapper.read_text().replace("/usr/sbin/runc", "/bin/true"))

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, top))

    subprocess.run([sys.executable, program, "create", *arguments], check=True, preexec_fn=lower)
    after = json.loads(file.read_text())
    rewritten = after["rlimits"] if process else after["process"]["rlimits"]
    assert rewritten[0] == {"type": "RLIMIT_NOFILE", "hard": top, "soft": 10}
    assert rewritten[1] == limits[1]


def test_no_mirror_is_named_in_the_lab() -> None:
    for path in (*LAB.rglob("*"), *(Path(images.__file__).parent).glob("*.py")):
        if path.is_file() and "__pycache__" not in path.parts:
            assert not re.search(r"https?://[a-z0-9.-]+\.(org|com|net|io)\b", path.read_text()), path


def test_programs_of_the_node_are_executable() -> None:
    for name in ("init.sh", "usr/local/sbin/lab-disks", "usr/local/sbin/runc-lab"):
        assert os.access(LAB / "node" / "files" / name, os.X_OK)
