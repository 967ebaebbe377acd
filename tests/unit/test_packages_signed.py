"""Nodes accept packages by the site's key, and the lab's repository carries its signature."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from site_support import PACKAGE_KEY, lab_site

from cloudctl.engine.render import Renderer
from cloudctl.errors import ConfigError
from cloudctl.packages import repository
from cloudctl.site.load import load_site
from cloudctl.site.model import Settings, Site


def sources(site: Site) -> list[str]:
    """Return each node's package source."""
    renderer = Renderer(site)
    return [
        entry["content"]
        for node in renderer.managed_nodes()
        for entry in renderer.node_spec(node)["files"]
        if entry["path"].endswith("cloudctl.sources")
    ]


def test_nodes_get_the_key_with_their_package_source(tmp_path: Path) -> None:
    texts = sources(load_site(lab_site(tmp_path)))
    assert len(texts) == 4
    for text in texts:
        assert "Trusted" not in text
        # an empty line would end the stanza
        assert text.partition("Signed-By:\n")[2].splitlines() == [
            f" {line or '.'}" for line in PACKAGE_KEY.splitlines()
        ]


def test_without_a_key_the_repository_is_trusted(tmp_path: Path) -> None:
    site = load_site(lab_site(tmp_path))
    site = replace(site, settings=Settings({**site.settings, "packages": {"repository": "http://x/"}}))
    assert all("Trusted: yes" in text and "Signed-By" not in text for text in sources(site))


@pytest.mark.parametrize("text", [None, "something else\n"])
def test_a_key_that_is_none_is_refused(text: str | None, tmp_path: Path) -> None:
    site = load_site(lab_site(tmp_path))
    (tmp_path / "packages.asc").unlink()
    if text is not None:
        (tmp_path / "packages.asc").write_text(text)
    with pytest.raises(ConfigError) as caught:
        sources(site)
    assert caught.value.ref == "package-key"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for a key whose path is short enough for the agent's socket."""
    if shutil.which("gpg") is None:
        pytest.skip("there is no gpg")
    path = Path(tempfile.mkdtemp(prefix="key-", dir="/tmp"))
    monkeypatch.setattr(repository, "KEY_HOME", path / "a")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_repository_without_a_signature_of_the_present_key_is_signed_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "REPOSITORY", tmp_path)
    monkeypatch.setattr(repository, "CURRENT", tmp_path / "current")
    monkeypatch.setattr(repository, "version", lambda: "v1")
    place = tmp_path / "v1"
    place.mkdir()
    (place / "Release").write_text("Origin: test\n")
    assert repository.public_key() == ""
    said: list[str] = []
    repository.ensure(said.append)
    key = repository.public_key()
    assert said == ["signing the package repository"] and "PUBLIC KEY BLOCK" in key
    repository.ensure(said.append)
    assert len(said) == 1
    monkeypatch.setattr(repository, "KEY_HOME", home / "b")
    repository.ensure(said.append)
    assert len(said) == 2 and repository.public_key() != key
