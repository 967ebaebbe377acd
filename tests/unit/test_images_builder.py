"""The builder: what it does in which order, what it leaves alone, and what it says when something fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudctl.errors import ApplyFailed, CheckFailed, ConfigError, MultiError
from cloudctl.images import builder as module
from cloudctl.images import host
from cloudctl.images.builder import Builder, Record, Records, lock_entries, write_lock
from cloudctl.images.definition import Catalogue, parse_catalogue
from cloudctl.images.registry import Manifest
from cloudctl.paths import data_root

DATA: dict[str, Any] = {
    "namespace": "cloudctl",
    "images": {
        "debian": {"bootstrap": True, "publish": False},
        "registry": {"parent": "debian", "packages": ["docker-registry"]},
        "base": {"parent": "debian", "publish": False, "packages": ["a"]},
        "one": {"parent": "base", "packages": ["b"]},
        "two": {"parent": "base", "user": "daemon"},
        "three": {"parent": "two", "packages": ["c"]},
    },
}


def catalogue_in(directory: Path) -> Catalogue:
    """Return the catalogue of DATA, with the real templates."""
    for template in (data_root() / "images").glob("*.j2"):
        shutil.copy(template, directory)
    return parse_catalogue(DATA, directory)


class FakeRegistry:
    """A registry in memory."""

    address = "127.0.0.1:5"

    def __init__(self) -> None:
        self.content: set[tuple[str, str]] = set()

    def ping(self) -> bool:
        return True

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        found = (repository, reference) in self.content
        return Manifest(digest=f"sha256:{reference}", size=1000) if found else None


class Harness:
    """A builder whose containers and registry are only pretended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.catalogue = catalogue_in(tmp_path)
        self.cache = tmp_path / "cache"
        self.registry = FakeRegistry()
        self.local: set[str] = set()
        self.built: list[str] = []
        self.failing: set[str] = set()
        self.lines: list[str] = []
        monkeypatch.setattr(host, "check_tools", lambda: None)
        monkeypatch.setattr(module, "Registry", lambda address: self.registry)
        monkeypatch.setattr(Builder, "_exists_locally", lambda b, image: b.local(image) in self.local)
        monkeypatch.setattr(Builder, "_bootstrap", lambda b, image: self._make(b, image))
        monkeypatch.setattr(Builder, "_container_build", lambda b, image: self._make(b, image))
        monkeypatch.setattr(
            Builder, "_push_tag", lambda b, image, tag: self.registry.content.add((image.repository, tag))
        )

    def _make(self, builder: Builder, image: Any) -> None:
        if image.name in self.failing:
            raise ApplyFailed("image-command-failed", f"{image.name} broke")
        if image.parent:
            assert builder.local(builder.catalogue.get(image.parent)) in self.local
        self.built.append(image.name)
        self.local.add(builder.local(image))

    def builder(self, **options: Any) -> Builder:
        return Builder(
            self.catalogue, self.cache, registry_address="127.0.0.1:5", report=self.lines.append, **options
        )


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Harness:
    return Harness(monkeypatch, tmp_path)


@pytest.mark.parametrize("jobs", [1, 4])
def test_builds_everything_once(harness: Harness, jobs: int) -> None:
    harness.builder(jobs=jobs).build()
    assert sorted(harness.built) == ["base", "debian", "one", "registry", "three", "two"]
    assert {name for name, _ in harness.registry.content} == {
        f"cloudctl/{name}" for name in ("one", "registry", "three", "two")
    }
    harness.built.clear()
    outcomes = harness.builder(jobs=jobs).build()
    assert harness.built == []
    assert {outcome.action for outcome in outcomes} == {"reused"}


def test_what_the_registry_has_needs_no_parent(harness: Harness) -> None:
    harness.builder().build()
    harness.local.clear()
    harness.built.clear()
    harness.builder().build(["one"])
    assert harness.built == []


def test_a_failure_stops_only_what_depends_on_it(harness: Harness) -> None:
    harness.failing = {"two"}
    with pytest.raises(MultiError) as caught:
        harness.builder(jobs=2).build()
    assert [error.message for error in caught.value.errors] == ["two broke"]
    assert "one" in harness.built and "three" not in harness.built
    assert any("skipped three: two failed" in line for line in harness.lines)


def test_rebuild_builds_what_exists(harness: Harness) -> None:
    harness.builder().build()
    harness.built.clear()
    harness.builder(rebuild=True).build(["one"])
    assert harness.built == ["debian", "base", "one"]


def test_no_push_touches_no_registry(harness: Harness) -> None:
    harness.builder().build(["one"], push=False)
    assert harness.built == ["debian", "base", "one"]
    assert harness.registry.content == set()


def test_lock_pins_digests(harness: Harness, tmp_path: Path) -> None:
    harness.builder().build()
    path = tmp_path / "images.lock.json"
    write_lock(path, "10.0.0.2:5000", catalogue=harness.catalogue, cache=harness.cache)
    lock = json.loads(path.read_text())
    assert sorted(lock) == ["one", "registry", "three", "two"]
    key = harness.catalogue.keys()["one"]
    assert lock["one"] == {
        "reference": f"10.0.0.2:5000/cloudctl/one@sha256:{key}",
        "tag": key,
        "size": 1000,
    }


def test_lock_names_what_is_missing_or_outdated(tmp_path: Path) -> None:
    catalogue = catalogue_in(tmp_path)
    records = Records(tmp_path / "cache")
    records.write(Record(name="one", key="older", repository="cloudctl/one", digest="sha256:1"))
    with pytest.raises(ConfigError, match="one, registry, three, two") as caught:
        lock_entries(catalogue, records, "r:5000")
    assert caught.value.ref == "images-not-built"


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.json").write_text("{")
    assert records.read("x") is None
    (tmp_path / "images" / "x.json").write_text('{"unknown": 1}')
    assert records.read("x") is None


def test_missing_tools_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        host.shutil, "which", lambda name: None if name in ("podman", "mmdebstrap") else "/bin/x"
    )
    with pytest.raises(CheckFailed) as caught:
        host.check_tools()
    assert caught.value.hint == "apt-get install --yes --no-install-recommends podman mmdebstrap"


def test_mirrors_come_from_the_machine() -> None:
    targets = (
        "Other|Other|http://other.test/x/\n"
        "Debian|Debian-Security|http://mirror.test/security/\n"
        "Debian|Debian|http://mirror.test/debian/\n"
        "Debian|Debian|http://second.test/debian/\n"
    )
    assert host.mirrors(targets) == ("http://mirror.test/debian", "http://mirror.test/security")
    assert host.mirrors("Debian|Debian|http://m.test/d/\n") == ("http://m.test/d", None)
    with pytest.raises(CheckFailed):
        host.mirrors("Other|Other|http://other.test/\n")


def test_sources() -> None:
    lines = host.sources("trixie", ["main"], "http://m.test/d", "http://m.test/s")
    assert [line.split("] ")[1] for line in lines] == [
        "http://m.test/d trixie main",
        "http://m.test/d trixie-updates main",
        "http://m.test/s trixie-security main",
    ]


def test_proxies() -> None:
    dump = 'Acquire "";\nAcquire::http::Proxy "http://p.test:3142";\nAcquire::http::Timeout "5";\n'
    assert host.proxy_lines(dump) == ['Acquire::http::Proxy "http://p.test:3142";']


def test_a_failed_command_tells_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **options: Any) -> Any:
        options["stdout"].write("the reason\n")
        return SimpleNamespace(returncode=7)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ApplyFailed, match="the reason") as caught:
        host.run(["podman", "build"], log=tmp_path / "x.log")
    assert caught.value.where == str(tmp_path / "x.log")
