"""How podman is called, independent of its configuration on the host."""

from __future__ import annotations

import resource
from functools import lru_cache
from pathlib import Path

_PROCESSES = 30000
"""Of a node. Podman lowers its own limit below the host's; without CAP_SYS_RESOURCE it can't raise it."""


@lru_cache(maxsize=1)
def podman() -> tuple[str, ...]:
    """Return the start of every podman command line.

    runc, because crun refuses systemd mode on hybrid cgroups; the cgroup manager depends on the host's init.
    """
    manager = "systemd" if Path("/run/systemd/system").is_dir() else "cgroupfs"
    return ("podman", "--runtime", "runc", "--cgroup-manager", manager)


def open_files() -> int:
    """Return how many files a node's process may have open: this host's hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1048576 if hard == resource.RLIM_INFINITY else min(hard, 1048576)


def limits() -> list[str]:
    """Return the limits of a container: podman's defaults may be above what the host allows."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = _PROCESSES if hard == resource.RLIM_INFINITY else min(hard, _PROCESSES)
    return [
        *("--ulimit", f"nofile={open_files()}:{open_files()}"),
        *("--ulimit", f"nproc={processes}:{processes}"),
    ]
