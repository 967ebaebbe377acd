"""A person in front of the dashboard: logs in, looks at the instances, logs out.

Runs with the deploy node's network. Reads what to do from standard input (one JSON object, as
``dashboard_node.py make`` prints it), prints what it saw as one line of JSON, and writes screenshots into
the directory that its argument names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

# Seconds; a loaded lab takes ten for a page.
PAGE_TIMEOUT = 120

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1280,900",
)


def trust(home: Path, ca: str) -> None:
    """Make the browser that runs with this home directory trust the site's CA, besides its own ones."""
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    certutil = ["certutil", "-d", f"sql:{database}"]
    subprocess.run([*certutil, "-N", "--empty-password"], check=True)
    subprocess.run([*certutil, "-A", "-t", "C,,", "-n", "site", "-i", ca], check=True)


class Person:
    """Somebody who uses the dashboard and takes a picture of every page."""

    def __init__(self, driver: Any, url: str, pictures: Path) -> None:
        """``url`` ends with a slash."""
        self.driver = driver
        self.url = url
        self.pictures = pictures
        self.pages: list[dict[str, Any]] = []

    def find(self, selector: str) -> WebElement:
        """Wait for an element and return it."""
        return WebDriverWait(self.driver, PAGE_TIMEOUT).until(
            lambda driver: driver.find_element(By.CSS_SELECTOR, selector)
        )

    def note(self, name: str, started: float) -> None:
        """Keep the page's picture, and what is wrong with it: failed requests, styles, script errors."""
        wait = WebDriverWait(self.driver, PAGE_TIMEOUT)
        wait.until(lambda driver: driver.execute_script("return document.readyState") == "complete")
        seconds = round(time.monotonic() - started, 2)
        self.driver.save_screenshot(str(self.pictures / f"dashboard-{len(self.pages) + 1}-{name}.png"))
        failed, asked = [], {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            event = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                asked[event["requestId"]] = event["request"]["url"]
            elif message["method"] == "Network.responseReceived" and event["response"]["status"] >= 400:
                failed.append(f"{event['response']['status']} {event['response']['url']}")
            elif message["method"] == "Network.loadingFailed" and not event.get("canceled"):
                failed.append(f"{event['errorText']} {asked.get(event['requestId'], '?')}")
        scripts = [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]
        rules = self.driver.execute_script(
            "return [...document.styleSheets].map(s => s.cssRules.length).reduce((a, b) => a + b, 0)"
        )
        self.pages.append(
            {
                "page": name,
                "url": self.driver.current_url,
                "title": self.driver.title,
                "seconds": seconds,
                "failed": failed,
                "scripts": scripts,
                "style_rules": rules,
            }
        )

    def log_in(self, user: str, password: str) -> None:
        """Fill in the login form and send it."""
        started = time.monotonic()
        self.driver.get(self.url)
        self.find("#id_password")
        self.note("login", started)
        self.find("#id_username").send_keys(user)
        self.find("#id_password").send_keys(password)
        started = time.monotonic()
        self.find("button[type=submit]").click()
        self.find("a[href*='/auth/logout']")
        self.note("overview", started)

    def instances(self) -> list[str]:
        """Open the project's instances; returns the rows of the table as text."""
        started = time.monotonic()
        self.driver.get(f"{self.url}project/instances/")
        self.find("table#instances tbody tr")
        self.note("instances", started)
        rows = self.driver.find_elements(By.CSS_SELECTOR, "table#instances tbody tr")
        return [" ".join(row.text.split()) for row in rows]

    def instance(self, server_id: str) -> str:
        """Open one instance's page; returns its text."""
        started = time.monotonic()
        self.driver.get(f"{self.url}project/instances/{server_id}/")
        text = self.find("#content_body").text
        self.note("instance", started)
        return " ".join(text.split())

    def log_out(self) -> None:
        """Use the menu's entry."""
        started = time.monotonic()
        link = self.find("a[href*='/auth/logout']")
        if not link.is_displayed():
            # the menu that holds it
            self.driver.execute_script(
                "arguments[0].closest('.dropdown').querySelector('[data-toggle=dropdown]').click()", link
            )
            WebDriverWait(self.driver, 10).until(lambda driver: link.is_displayed())
        link.click()
        self.find("#id_password")
        self.note("logged-out", started)


def main() -> None:
    """Do what standard input says."""
    task = json.load(sys.stdin)
    pictures = Path(sys.argv[1])
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="cloudctl-browser-") as directory:
        home = Path(directory)
        trust(home, task["ca"])
        os.environ["HOME"] = str(home)
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*_FLAGS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path="/usr/bin/chromedriver")
        driver = webdriver.Chrome(options=options, service=service)
        person = Person(driver, task["url"], pictures)
        try:
            driver.set_page_load_timeout(PAGE_TIMEOUT)
            driver.get("about:blank")
            driver.get_log("performance")  # what the browser did of its own accord when it started
            person.log_in(task["user"], task["password"])
            rows = person.instances()
            details = person.instance(task["server_id"])
            person.log_out()
            driver.get(f"{task['url']}project/instances/")
            after = driver.current_url
        except BaseException:
            driver.save_screenshot(str(pictures / "dashboard-failed.png"))
            (pictures / "dashboard-failed.html").write_text(driver.page_source)
            raise
        finally:
            driver.quit()
    print(json.dumps({"pages": person.pages, "rows": rows, "instance": details, "after": after}))


if __name__ == "__main__":
    main()
