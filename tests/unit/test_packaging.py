"""The package holds everything that cloudctl needs: installed, it works without the checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from site_support import make_site

from cloudctl import __version__

ROOT = Path(__file__).resolve().parents[2]
DATA = ("playbooks", "roles", "services", "images", "guest", "lab", "inventory", "group_vars")
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))

# Neither this checkout nor the settings of the person who runs the tests help.
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("ANSIBLE_", "CLOUDCTL_", "PYTHON")) and name != "VIRTUAL_ENV"
}


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """Run a program that must succeed; return what it printed."""
    done = subprocess.run(
        words, cwd=cwd, env={**PLAIN, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package built from this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, "--wheel-dir", place, ROOT, cwd=place)
    (built,) = place.glob("cloudctl-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``cloudctl`` of an environment in which nothing but the package was installed.

    What the package depends on is taken from the running environment: it need not be downloaded again.
    """
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet")
    run(*pip, "--disable-pip-version-check", "--no-deps", wheel, cwd=place)
    (packages,) = place.glob("lib/python3*/site-packages")
    # A path file adds one directory, and not what path files there add (such as an editable cloudctl).
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin" / "cloudctl"


def test_the_package_holds_all_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    listed = subprocess.run(
        ["git", "ls-files", "--", *DATA, "ansible.cfg"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    wanted = listed or [
        str(path.relative_to(ROOT)) for name in DATA for path in (ROOT / name).rglob("*") if path.is_file()
    ]
    assert [
        name for name in wanted if (ROOT / name).is_file() and f"cloudctl/data/{name}" not in packed
    ] == []
    code = (path.relative_to(ROOT / "cli").as_posix() for path in (ROOT / "cli").rglob("*") if path.is_file())
    assert [name for name in code if "__pycache__" not in name and name not in packed] == []


def test_the_package_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
    assert [name for name in packed if "__pycache__" in name or name.endswith(".pyc")] == []
    assert {name.partition("/")[0].partition("-")[0] for name in packed} == {"cloudctl"}


def test_everything_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    places = (*(ROOT / "cli").rglob("*.py"), *(ROOT / "playbooks" / "action_plugins").glob("*.py"))
    for file in places:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for module in {name.partition(".")[0] for name in names} - {"cloudctl", *sys.stdlib_module_names}:
                found = {owner.lower().replace("_", "-") for owner in owners.get(module, [])}
                assert found & declared, f"{file.relative_to(ROOT)}:{node.lineno}: {module}"


def test_programs_keep_their_mode(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}
    programs = [
        path.relative_to(ROOT).as_posix()
        for name in DATA
        for path in (ROOT / name).rglob("*")
        if path.is_file() and os.access(path, os.X_OK) and "__pycache__" not in path.parts
    ]
    assert [name for name in programs if not modes[f"cloudctl/data/{name}"] & 0o100] == []


def test_installed_command_works_from_any_directory(installed: Path, tmp_path: Path) -> None:
    assert __version__ in run(installed, "--version", cwd=tmp_path)
    assert "deploy" in run(installed, "--help", cwd=tmp_path)
    run(installed, "init", "--defaults", "mine", cwd=tmp_path)
    site = tmp_path / "mine"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The services' definitions, which come with the package, say which secrets there are.
    run(installed, "secrets", "generate", cwd=elsewhere, CLOUDCTL_SITE=str(site))
    listed = run(installed, "--site", site, "secrets", "list", cwd=elsewhere)
    assert "keystone_database_password" in listed
    assert "valid" in run(installed, "validate", cwd=site)
    assert "keystone" in run(installed, "--site", site, "image", "list", cwd=elsewhere)


def test_installed_command_finds_its_own_data(installed: Path, tmp_path: Path) -> None:
    code = "from cloudctl.paths import data_root; print(data_root())"
    root = Path(run(installed.with_name("python"), "-c", code, cwd=tmp_path).strip())
    assert root.is_relative_to(installed.parents[1]) and not root.is_relative_to(ROOT)
    assert sorted(path.name for path in (root / "playbooks").glob("*.yml")) == PLAYBOOKS
    for name in (*DATA, "ansible.cfg"):
        assert (root / name).exists(), name


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the documented site's inventory."""
    return make_site(tmp_path_factory.mktemp("site")) / "inventory"


def test_every_playbook_is_one_that_plain_ansible_takes(inventory: Path) -> None:
    """All at once: they share the second that Ansible takes to start."""
    assert PLAYBOOKS
    ansible = Path(sys.executable).with_name("ansible-playbook")
    books = [f"playbooks/{name}" for name in PLAYBOOKS]
    said = run(ansible, "--syntax-check", "-i", inventory, *books, cwd=ROOT)
    for book in books:
        assert f"playbook: {book}" in said


def test_plain_ansible_lists_the_hosts_of_a_playbook(inventory: Path) -> None:
    ansible = Path(sys.executable).with_name("ansible-playbook")
    said = run(ansible, "--list-hosts", "-i", inventory, "playbooks/status.yml", cwd=ROOT)
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())["all"]["children"]["control"]["hosts"]
    for host in hosts:
        assert f" {host}\n" in said
