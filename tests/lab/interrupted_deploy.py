#!/usr/bin/env python3
"""Deploy a new lab while the command is killed at random moments, then once without interruption.

Half of the kills hit the command on this machine, half the one that works inside the deploy node.

usage: CLOUDCTL_LAB=NAME CLOUDCTL_SITE=… interrupted_deploy.py [KILLS]     (default: 10; CLOUDCTL_TEST_SEED)
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from conftest import PREFIX, podman, start_cloudctl

LOCKED = 8
INNER = "pkill -KILL -f '[c]loudctl .*deploy --yes'"


def attempt(limit: float | None, *, inside: bool) -> int | None:
    """Run a deploy, kill it after ``limit`` seconds; return its exit code, None where it was killed."""
    process = start_cloudctl("deploy", "--yes")
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        if inside:
            subprocess.run([*podman(), "exec", f"{PREFIX}deploy", "sh", "-c", INNER], check=False)
        else:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode not in (0, LOCKED):
        print(out[-4000:], err[-4000:], sep="\n", flush=True)
    return process.returncode


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seed = int(os.environ.get("CLOUDCTL_TEST_SEED") or time.time())
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    done = 0
    while done < kills:
        limit = chance.uniform(4, 45)
        code = attempt(limit, inside=chance.random() < 0.5)
        if code is None:
            done += 1
            print(f"[{time.monotonic() - started:6.1f} s] kill {done} after {limit:.1f} s", flush=True)
        elif code == LOCKED:
            time.sleep(1)  # the killed one's other half is still ending
        elif code == 0:
            print("complete before the next kill", flush=True)
            break
        else:
            print(f"a run that was not killed ended with {code}", flush=True)
            return 1
    while (code := attempt(None, inside=False)) == LOCKED:
        time.sleep(1)
    print(f"[{time.monotonic() - started:6.1f} s] the last run ended with {code}", flush=True)
    if code:
        return 1
    return attempt(None, inside=False) or 0


if __name__ == "__main__":
    sys.exit(main())
