"""A deployed cloud: it works, a second deploy leaves it alone, and a change touches what it names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import ApiClient

Cloudctl = Callable[..., Any]


def test_the_cloud_works_as_a_tenant_sees_it(cloudctl: Cloudctl) -> None:
    result = cloudctl("verify", "--output", "json")
    assert result.rc == 0, result.out + result.err


def test_every_part_is_healthy(cloudctl: Cloudctl) -> None:
    deadline = time.monotonic() + 90
    while (result := cloudctl("status")).rc != 0 and time.monotonic() < deadline:
        time.sleep(3)
    assert result.rc == 0, result.out + result.err


def test_the_networks_carry_full_packets(cloudctl: Cloudctl) -> None:
    result = cloudctl("network", "check")
    assert result.rc == 0, result.out + result.err


def test_the_pre_checks_pass_on_a_running_cloud(cloudctl: Cloudctl) -> None:
    result = cloudctl("check")
    assert result.rc == 0, result.out + result.err


def test_a_second_deploy_changes_nothing(cloudctl: Cloudctl, containers: Callable[[], Any]) -> None:
    before = containers()
    result = cloudctl("deploy", "--yes", "--output", "json")
    assert result.rc == 0, result.out + result.err
    assert '"summary": "nothing to change"' in result.out
    assert containers() == before


def test_the_plan_of_an_unchanged_cloud_is_empty(cloudctl: Cloudctl) -> None:
    result = cloudctl("plan")
    assert result.rc == 0
    assert "nothing to change" in result.out


@pytest.fixture
def overridden(lab: Path, cloudctl: Cloudctl) -> Iterator[Path]:
    path = lab / "overrides" / "nova.conf"
    path.write_text("[DEFAULT]\nmax_age = 0\n\n[api]\nmax_limit = 900\n")
    yield path
    path.unlink()
    assert cloudctl("deploy", "--yes").rc == 0


READERS = {"nova_api", "nova_metadata", "nova_conductor", "nova_scheduler", "nova_novncproxy", "nova_compute"}


def test_an_override_recreates_exactly_its_readers(
    cloudctl: Cloudctl, overridden: Path, containers: Callable[[], Any]
) -> None:
    plan = json.loads(cloudctl("plan", "--output", "json").out)
    changed = {change["name"] for node in plan["nodes"].values() for change in node["containers"]}
    assert changed == READERS
    for node in plan["nodes"].values():
        for change in node["containers"]:
            assert [reason["attribute"] for reason in change["reasons"]] == ["file:nova.conf"]
    before = containers()
    with ApiClient("compute", "/servers") as client:
        result = cloudctl("deploy", "--yes")
        assert result.rc == 0, result.out + result.err
    assert client.requests > 20
    assert client.failures == []
    after = containers()
    touched = {
        name for node, found in after.items() for name in found if found[name] != before[node].get(name)
    }
    assert touched == READERS


def test_two_runs_at_once(cloudctl: Cloudctl) -> None:
    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(cloudctl("plan")))
    thread.start()
    time.sleep(2)
    second = cloudctl("deploy", "--yes")
    thread.join()
    assert first[0].rc == 0
    assert second.rc == 8, second.out + second.err
    assert "plan" in second.err and "pid" in second.err
