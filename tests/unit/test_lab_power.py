"""The lab's power control, and the drivers that ask it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudctl.errors import ApplyFailed, ConfigError, LockHeld
from cloudctl.lab import manager, nodes, powercontrol, sitedir
from cloudctl.lab.remote import MARKER
from cloudctl.power.drivers import ByHand, LabPower, ask_socket, power_driver
from cloudctl.site.model import Settings


class FakeSite:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = Settings(settings)

    def get(self, path: str, default: Any = None) -> Any:
        return self.settings.get(path, default)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no json", "Expecting value"),
        ('{"action": "explode"}', "one of these actions"),
        ('["on"]', "one of these actions"),
        ('{"action": "on", "nodes": ["host"]}', "no node of this lab: host"),
    ],
)
def test_only_this_labs_nodes_and_known_actions(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        powercontrol.parse(line, ["ctl01"])
    assert powercontrol.parse('{"action": "on", "nodes": ["ctl01"]}', ["ctl01"]) == ("on", ["ctl01"])


def test_a_copy_of_a_labs_site_belongs_to_that_lab(tmp_path: Path) -> None:
    assert powercontrol.lab_of(tmp_path) is None
    (tmp_path / MARKER).write_text(json.dumps({"deploy": "cloudctl-pow-deploy"}))
    assert powercontrol.lab_of(tmp_path) == "pow"


@pytest.fixture
def pressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A power control that listens below ``tmp_path``; yields what was pressed."""
    log: list[Any] = []
    busy = [True]

    def power(action: str, names: list[str], *, wait: bool) -> None:
        if busy.pop() if busy else False:
            raise LockHeld("lab-busy", "another lab command is running")
        log.append((action, names, wait))

    monkeypatch.setattr(manager, "power", power)
    monkeypatch.setattr(sitedir, "recorded_nodes", lambda: {"ctl01": None, "osd01": None})
    monkeypatch.setattr(
        nodes,
        "all_containers",
        lambda: {powercontrol.PREFIX + "ctl01": "running", "cloudctl-x-osd01": "running"},
    )
    monkeypatch.setattr(powercontrol, "_LOOK", 0.05)
    (tmp_path / ".cloudctl").mkdir()
    (tmp_path / MARKER).write_text("{}")
    thread = threading.Thread(target=powercontrol.PowerControl(tmp_path).serve)
    thread.start()
    while not powercontrol.socket_path(tmp_path).exists():
        time.sleep(0.01)
    yield log
    (tmp_path / MARKER).unlink(missing_ok=True)
    thread.join(10)
    assert not thread.is_alive()


def test_the_driver_presses_the_button_also_when_the_lab_is_busy(tmp_path: Path, pressed: list[Any]) -> None:
    driver = LabPower(powercontrol.socket_path(tmp_path))
    driver.on(["osd01"])
    assert pressed == [("on", ["osd01"], False)]
    assert driver.states(["ctl01", "osd01"]) == {"ctl01": "on", "osd01": "off"}
    with pytest.raises(ApplyFailed, match="no node of this lab"):
        driver.on(["elsewhere"])


def test_it_ends_with_its_lab_and_leaves_no_socket(tmp_path: Path, pressed: list[Any]) -> None:
    path = powercontrol.socket_path(tmp_path)
    assert ask_socket(path, {"action": "version"})["version"] == powercontrol.version()
    powercontrol.end(tmp_path)
    assert not path.exists()
    assert LabPower(path).states(["ctl01"]) == {"ctl01": "unknown"}
    with pytest.raises(ApplyFailed) as caught:
        LabPower(path).on(["ctl01"])
    assert caught.value.ref == "power-control-silent"


def test_a_second_one_gives_way(tmp_path: Path, pressed: list[Any]) -> None:
    powercontrol.PowerControl(tmp_path).serve()
    LabPower(powercontrol.socket_path(tmp_path)).on(["osd01"])
    assert pressed


def test_the_site_chooses_the_driver() -> None:
    assert isinstance(power_driver(FakeSite({"power": {"driver": "none"}})), ByHand)  # type: ignore[arg-type]
    chosen = power_driver(FakeSite({"power": {"driver": "lab", "socket": "/x"}}))  # type: ignore[arg-type]
    assert isinstance(chosen, LabPower) and chosen.path == Path("/x")
    with pytest.raises(ConfigError):
        power_driver(FakeSite({"power": {"driver": "lab", "socket": None}}))  # type: ignore[arg-type]
    assert ByHand().states(["a"]) == {"a": "unknown"}


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_node_that_dies_slowly_is_removed_after_all(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    tries: list[int] = []

    def run(argv: list[str]) -> str:
        tries.append(len(tries))
        if len(tries) <= failures:
            raise ApplyFailed("lab-command-failed", "given PIDs did not die within timeout")
        return ""

    monkeypatch.setattr(nodes, "run", run)
    monkeypatch.setattr(nodes, "podman", lambda: ("podman",))
    monkeypatch.setattr(nodes.time, "sleep", lambda seconds: None)
    if failures == 3:
        with pytest.raises(ApplyFailed):
            nodes.remove("ctl01")
    else:
        nodes.remove("ctl01")
    assert len(tries) == min(failures + 1, 3)
