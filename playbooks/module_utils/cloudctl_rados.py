"""How a program that a module runs inside one of Ceph's containers reaches the cluster."""

from __future__ import annotations

import contextlib
import re

CONF = "/etc/ceph/ceph.conf"


def options(connect_timeout, conf=CONF):
    """Return options for librados: the monitors as the node knows them now, and an end to waiting for them.

    A container keeps the configuration of the moment in which it was started: a monitor's may name only the
    first one, and that one may be off. librados itself would wait for five minutes.

    Args:
        connect_timeout: seconds.
        conf: the node's configuration of Ceph; the orchestrator writes it anew when a monitor comes or goes.
    """
    found = {"client_mount_timeout": str(connect_timeout)}
    with contextlib.suppress(OSError), open(conf, encoding="utf-8") as file:
        if match := re.search(r"^\s*mon[_ ]host\s*=\s*(\S.*?)\s*$", file.read(), re.MULTILINE):
            found["mon_host"] = match.group(1)
    return found
