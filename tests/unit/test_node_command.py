"""``cloudctl node`` as it is typed: what is refused before anything begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from site_support import make_site

from cloudctl.commands.node import command
from cloudctl.errors import ConfigError, UsageError
from cloudctl.node import facts, journal
from cloudctl.node.facts import Proposal
from cloudctl.node.inventory import joined, read_text, write_text
from cloudctl.operations.steps import BEGUN, DONE
from cloudctl.site.edit_inventory import add_host
from cloudctl.site.load import load_site
from cloudctl.site.secrets import generate


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site in whose newnodes compute09 waits."""
    path = make_site(tmp_path)
    generate(path)
    variables = {"ansible_host": "10.10.10.29", "role": "compute"}
    write_text(path, add_host(read_text(path), "newnodes", "compute09", variables))
    return path


def run(site: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), obj=site)


@pytest.mark.parametrize("verb", ["add", "inspect"])
@pytest.mark.parametrize("names", [("",), (",",), ("compute09", ""), ("compute09,",)])
def test_an_empty_name_is_refused_before_anything_begins(
    site: Path, verb: str, names: tuple[str, ...]
) -> None:
    state = journal.begin(site, journal.ADD, {"compute09": "compute"})
    state.mark("prepare", DONE)
    error = run(site, verb, *names).exception
    assert isinstance(error, UsageError)
    assert error.ref == "node-name-empty"
    assert journal.begin(site, journal.ADD, {"compute09": "compute"}).state("prepare") == DONE


def test_a_node_that_had_come_when_its_adding_was_killed_is_added(site: Path) -> None:
    state = journal.begin(site, journal.ADD, {"compute09": "compute"})
    state.mark("settle", BEGUN)
    write_text(site, joined(read_text(site), {"compute09": "compute"}))
    result = run(site, "add", "compute09", "--dry-run", "--output", "json")
    assert (result.exit_code, json.loads(result.stdout)["dry_run"]) == (0, True)
    result = run(site, "add", "compute09", "--output", "json")
    assert (result.exit_code, json.loads(result.stdout)["added"]) == (0, {"compute09": "compute"})
    assert journal.arrived(load_site(site, with_secrets=False)) == {}
    # Now it is a node as all others.
    error = run(site, "add", "compute09").exception
    assert isinstance(error, UsageError) and error.ref == "node-in-use"


def test_a_password_that_is_no_utf8_is_no_crash_and_not_told(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(b"secr\xfct\n")
    (tmp_path / "pw").chmod(0o600)
    arguments = ["enroll", "compute10", "--address", "10.10.10.30", "--password-file"]
    for file, given in ((str(tmp_path / "pw"), None), ("-", b"secr\xfct\n")):
        error = CliRunner().invoke(command, [*arguments, file], obj=site, input=given).exception
        assert isinstance(error, ConfigError)
        assert error.ref == "password-unreadable" and "secr" not in error.render()


def test_a_proposal_with_which_the_site_would_break_is_not_written(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"ports": [], "disks": []}
    wrong = Proposal(variables={"interfaces": {"eth0": {"network": "nowhere"}}})
    monkeypatch.setattr(facts, "ask", lambda site, names: dict.fromkeys(names, machine))
    monkeypatch.setattr(facts, "propose", lambda *arguments: wrong)
    before = read_text(site)
    error = run(site, "inspect", "compute09", "--accept").exception
    assert isinstance(error, ConfigError)
    assert (error.ref, error.where) == ("site-would-break", "compute09")
    assert "nowhere" in error.message
    assert read_text(site) == before
