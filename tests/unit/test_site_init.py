"""Making a new site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cloudctl.commands.init import command
from cloudctl.main import run
from cloudctl.site import load_site, vault
from cloudctl.site.create import QUESTIONS, addresses, pool, words


def test_the_documented_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vault.PASSWORD_VARIABLE, raising=False)
    site = tmp_path / "site"
    assert run(["init", str(site), "--defaults"]) == 0
    assert run(["--site", str(site), "secrets", "generate"]) == 0
    assert run(["--site", str(site), "validate"]) == 0
    loaded = load_site(site)
    assert [node.address for node in loaded.group("control")] == ["10.10.10.11", "10.10.10.12", "10.10.10.13"]
    assert [node.name for node in loaded.group("storage")] == ["ceph-osd01", "ceph-osd02", "ceph-osd03"]
    assert loaded.nodes["cloud-deploy"].address_on("api") == "192.168.124.10"
    assert (site / "ssh" / "id_ed25519").stat().st_mode & 0o777 == 0o600
    assert (site / "ssh").stat().st_mode & 0o777 == 0o700
    assert (site / ".cloudctl").stat().st_mode & 0o777 == 0o700
    ignored = (site / ".gitignore").read_text().split("\n")
    assert {"ssh/", ".vault-password", ".cloudctl/", "admin-openrc.sh"} <= set(ignored)
    assert (site / "overrides" / "README.md").is_file()


def test_every_file_is_commented_yaml(tmp_path: Path) -> None:
    assert run(["init", str(tmp_path / "s"), "--defaults"]) == 0
    files = list((tmp_path / "s").rglob("*.yml"))
    assert len(files) == 4
    for file in files:
        text = file.read_text()
        assert text.startswith("# ") and text.endswith("\n") and "\n\n\n" not in text
        assert isinstance(yaml.safe_load(text), dict)


def test_flags_win(tmp_path: Path) -> None:
    site = tmp_path / "s"
    flags = ["--control", "10.10.10.11", "--storage", "10.10.10.211", "--compute", "none", "--user", "ops"]
    flags += [
        "--journal-devices",
        "none",
        "--devices",
        "/dev/vdb",
        "--gateway",
        "none",
        "--deploy-api",
        "none",
    ]
    assert run(["init", str(site), "--defaults", "--name", "small", *flags]) == 0
    loaded = load_site(site, with_secrets=False)
    assert (loaded.name, len(loaded.nodes), loaded.group("compute")) == ("small", 3, [])
    assert loaded.get("ceph.pools") == {"size": 1, "min_size": 1, "device_class": {}, "extra": []}
    node = loaded.nodes["ceph-osd01"]
    assert node.vars["devices"] == ["/dev/vdb"] and "journal_devices" not in node.vars
    assert (node.vars["ansible_user"], node.vars["ansible_become"]) == ("ops", True)
    assert loaded.networks["management"].gateway is None


def test_a_directory_with_content_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(["init", str(tmp_path), "--defaults"]) == 2
    assert "error[site-not-empty]" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert run(["init", str(tmp_path / "empty"), "--defaults"]) == 0


def test_answers_that_do_not_fit_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--defaults", "--control", "10.10.10.11-12", "--vip-internal", "10.10.10.11"]
    assert run(["init", str(tmp_path / "s"), *arguments]) == 2
    text = capsys.readouterr().err
    assert "error[answers-do-not-fit]" in text
    assert "2 controllers" in text and "vip.internal 10.10.10.11 is the address of ctl01" in text
    assert list(tmp_path.iterdir()) == []


def test_missing_flags_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "s"), "--name", "x"]) == 2
    text = capsys.readouterr().err
    assert "error[answers-missing]" in text and "--control" in text and "--name" not in text.split("try:")[0]


def test_a_malformed_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "s"), "--defaults", "--control", "ctl01"]) == 2
    assert "--control 'ctl01' is neither an IPv4 address" in capsys.readouterr().err


def test_questions_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudctl.commands.init as module

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    class System:
        stdin = Terminal

    monkeypatch.setattr(module, "sys", System)
    answers = ["asked", *[""] * 15, "ctl01", "10.10.10.11-13", *[""] * 10]
    result = CliRunner().invoke(command, [str(tmp_path / "s")], input="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    assert "neither an IPv4 address" in result.output
    assert load_site(tmp_path / "s", with_secrets=False).name == "asked"


def test_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "s"), "--defaults", "--output", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(tmp_path / "s")
    assert {"inventory/hosts.yml", "networks.yml", "settings.yml", ".gitignore"} <= set(result["files"])


def test_lists_of_addresses() -> None:
    assert addresses("10.0.0.1") == ["10.0.0.1"]
    assert addresses("10.0.0.9-11, 10.0.1.1") == ["10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.1.1"]
    assert addresses("10.0.0.255-10.0.1.1") == ["10.0.0.255", "10.0.1.0", "10.0.1.1"]
    assert addresses("none") == []
    for wrong in ("10.0.0.5-3", "10.0.0.256", "a", "10.0.0.0-10.255.255.255"):
        with pytest.raises(ValueError, match=r"range|address"):
            addresses(wrong)
    assert pool("10.0.0.10-20") == ("10.0.0.10", "10.0.0.20")
    with pytest.raises(ValueError, match="must be a range"):
        pool("10.0.0.10")
    assert words("/dev/sdb, /dev/sdc") == ["/dev/sdb", "/dev/sdc"]


def test_every_question_has_a_valid_default() -> None:
    for question in QUESTIONS:
        assert question.parse(question.default) is not None
