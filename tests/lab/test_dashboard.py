"""The dashboard as a person sees it: a headless browser, a tenant of its own, HTTPS with the site's CA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploynode import OUTPUT, SITE, call, in_network

PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver", "certutil": "libnss3-tools"}
"""Program, and the Debian package that has it."""


@pytest.fixture
def browser() -> Path:
    """The program that drives the browser, installed where it is missing."""
    missing = sorted(package for program, package in PROGRAMS.items() if shutil.which(program) is None)
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
        subprocess.run([*install, *missing], env=environment, check=True)
    return Path(__file__).with_name("dashboard_browser.py")


@pytest.fixture
def tenant() -> Iterator[dict[str, str]]:
    """A new project with one user and one VM, removed afterwards."""
    call("dashboard_node.py", "remove", str(SITE))
    try:
        yield call("dashboard_node.py", "make", str(SITE))
    finally:
        left = call("dashboard_node.py", "remove", str(SITE))
    assert left == {"failed": []}


def test_a_tenant_sees_its_instances(tenant: dict[str, str], browser: Path) -> None:
    """Log in over HTTPS, see the VM in the list and its page, log out; nothing on the way is broken."""
    OUTPUT.mkdir(exist_ok=True)
    for old in OUTPUT.glob("dashboard-*"):
        old.unlink()
    done = subprocess.run(
        in_network([sys.executable, str(browser), str(OUTPUT)]),
        input=json.dumps(tenant),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n(screenshots in {OUTPUT})"
    seen = json.loads(done.stdout.splitlines()[-1])
    (OUTPUT / "dashboard-pages.json").write_text(json.dumps(seen, indent=2) + "\n")

    row = next((row for row in seen["rows"] if tenant["server"] in row), None)
    assert row is not None, f"no row for {tenant['server']} in {seen['rows']}"
    assert "Active" in row
    assert "Running" in row
    assert tenant["server_id"] in seen["instance"]
    for page in seen["pages"]:
        assert page["failed"] == [], page
        assert page["scripts"] == [], page
        assert page["style_rules"] > 1000, f"no styles: {page}"
        assert page["url"].startswith(tenant["url"]), page
    assert "/auth/login/" in seen["after"], "the session goes on after the logout"
