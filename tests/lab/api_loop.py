"""Runs in the deploy node: asks an API again and again; prints the time and outcome of each as a JSON line.

usage: api_loop.py SITE SERVICE PATH TIMEOUT_SECONDS; it ends when its standard input is closed.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

import requests
from keystoneauth1.adapter import Adapter

from cloudctl import openrc
from cloudctl.site.load import load_site


def main() -> None:
    site = load_site(Path(sys.argv[1]))
    cloud = openrc.connect(site)
    # Not proxy.get_endpoint(): of the identity service that is a call of its API.
    url = Adapter.get_endpoint(getattr(cloud, sys.argv[2])) + sys.argv[3]
    headers = {"X-Auth-Token": cloud.session.get_token()}
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        started = time.time()
        try:
            answer = requests.get(
                url, headers=headers, verify=str(openrc.ca_file(site)), timeout=float(sys.argv[4])
            )
            outcome = "ok" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:80]}"
        except requests.RequestException as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps({"at": started, "seconds": time.time() - started, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
