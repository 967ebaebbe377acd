"""OpenStack's own test suite: Tempest's smoke set, run from the deploy node."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from deploynode import NODE, OUTPUT, SITE, script_command

from cloudctl.lab.images import deploy_image, outside_world
from cloudctl.lab.podman import limits, podman

# The lab mounts this directory in the deploy node, read-only.
TEMPEST = Path("/var/cache/cloudctl/tempest")
# The second writes the results in a form that can be read without the first.
PACKAGES = "tempest==47.0.0 junitxml"
WORK = "/var/lib/cloudctl-tempest"
EXCLUDED = Path(__file__).with_name("tempest-exclude.txt")
# Seconds; ten minutes on four cores that do nothing else.
TIMEOUT = 3600


@pytest.fixture(scope="module")
def installed() -> Path:
    """Tempest in a virtual environment for the deploy node's Python, kept in the cache.

    It is made in a container of the deploy node's image that has the outside world: the node itself has none.
    """
    environment, mark = TEMPEST / "venv", TEMPEST / "packages"
    if not (mark.is_file() and mark.read_text() == PACKAGES and (environment / "bin" / "tempest").is_file()):
        TEMPEST.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        install = (
            f"python3 -m venv --clear {environment}"
            f" && {environment}/bin/pip install -q --no-cache-dir {PACKAGES}"
        )
        with outside_world() as options:
            container = [*podman(), "run", "--rm", "--network", "host", *limits(), *options]
            mount = ["-v", f"{TEMPEST}:{TEMPEST}"]
            subprocess.run(["nice", *container, *mount, deploy_image(), "sh", "-c", install], check=True)
        mark.write_text(PACKAGES)
    return environment


def reasons() -> dict[str, str]:
    """Return the reason of each excluded expression; one without a reason is an error."""
    found = {}
    for line in EXCLUDED.read_text().splitlines():
        if line and not line.startswith("#"):
            expression, _, reason = line.partition("  # ")
            assert len(reason.split()) > 2, f"{EXCLUDED.name}: no reason for {expression}"
            found[expression.strip()] = reason
    return found


def test_every_exclusion_has_a_reason() -> None:
    """And its expression can be read."""
    for expression in reasons():
        re.compile(expression)


def test_smoke(installed: Path) -> None:
    """All pass, none is skipped: what does not apply is excluded with its reason."""
    OUTPUT.mkdir(exist_ok=True)
    log = OUTPUT / "tempest.txt"
    with log.open("w") as stream:
        command = script_command(
            *("tempest_node.py", "--site", str(SITE), "--tempest", str(installed), "--work", WORK),
            *("--exclude-list", f"/opt/cloudctl/tests/lab/{EXCLUDED.name}"),
        )
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False)
    results = fetch("results.xml")
    (OUTPUT / "tempest-details.log").write_bytes(fetch("tempest.log"))
    (OUTPUT / "tempest.xml").write_bytes(results)
    passed, failed, skipped = summary(results)
    counts = {"passed": len(passed), "failed": len(failed), "skipped": len(skipped)}
    (OUTPUT / "tempest.json").write_text(
        json.dumps(counts | {"failures": failed, "skips": skipped}, indent=2) + "\n"
    )
    print(counts)
    assert not failed, f"{counts}; {', '.join(failed)}: see {log}"
    assert not skipped, f"skipped without a reason in {EXCLUDED.name}: {skipped}"
    assert done.returncode == 0, f"Tempest ended with {done.returncode}: see {log}"
    assert len(passed) >= 80, f"the smoke set is larger than {len(passed)} tests"


def fetch(name: str) -> bytes:
    """Return a file of Tempest's work directory."""
    return subprocess.run(
        [*podman(), "exec", NODE, "cat", f"{WORK}/{name}"], capture_output=True, check=True
    ).stdout


def summary(results: bytes) -> tuple[list[str], list[str], dict[str, str]]:
    """Return the tests that passed, those that failed, and the skipped ones with Tempest's reason."""
    passed, failed, skipped = [], [], {}
    for case in ElementTree.fromstring(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix(".")
        skip = case.find("skipped")
        if skip is not None:
            skipped[name] = (skip.text or skip.get("message") or "").strip()
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        else:
            passed.append(name)
    return passed, failed, skipped
