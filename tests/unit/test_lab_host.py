"""What the lab learns from its host."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudctl.errors import ApplyFailed, CheckFailed
from cloudctl.lab import host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deb http://mirror.example/debian bookworm main contrib\n", "http://mirror.example/debian"),
        (
            "deb [arch=amd64 signed-by=/k.gpg] https://m.example/x/debian/ trixie main\n",
            "https://m.example/x/debian",
        ),
        (
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n",
            "http://mirror.example/debian",
        ),
        (
            "Types: deb\nURIs: http://a.example/debian-security\nSuites: s\nComponents: main\n\n"
            "Types: deb deb-src\nURIs: http://b.example/debian\nSuites: s\nComponents: main\n",
            "http://b.example/debian",
        ),
        ("deb http://mirror.example/debian-security bookworm-security main\n", None),
        ("# deb http://mirror.example/debian bookworm main\n", None),
        ("deb http://other.example/tools stable main\n", None),
        ("Types: deb-src\nURIs: http://b.example/debian\nSuites: s\nComponents: main\n", None),
    ],
)
def test_find_mirror(text: str, expected: str | None) -> None:
    assert host.find_mirror(text) == expected


def test_no_mirror_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    with pytest.raises(CheckFailed, match="no Debian archive"):
        host.debian_mirror(tmp_path)


def test_only_harmless_apt_options_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / "apt.conf.d").mkdir()
    (tmp_path / "apt.conf.d" / "10x").write_text(
        'Acquire::Check-Date "false";\nAPT::Get::AllowUnauthenticated "true";\n// Acquire::Check-Date "x";\n'
    )
    assert host.apt_options(tmp_path) == ['Acquire::Check-Date "false";']


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PROGRAMS", {"no-such-program": "some-package", "sh": "dash"})
    assert host.missing_packages() == ["some-package"]
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    with pytest.raises(CheckFailed) as caught:
        host.check_host()
    assert caught.value.hint == "apt-get install --no-install-recommends some-package"


def test_a_failing_program_is_an_error_with_its_words() -> None:
    with pytest.raises(ApplyFailed, match="no room"):
        host.run(["sh", "-c", "echo no room >&2; exit 3"])
    assert host.run(["sh", "-c", "cat; exit 3"], stdin="in", check=False) == "in"
