#!/usr/bin/python
"""Wait until data lies on a storage node's OSDs, and read some of it from them.

Runs on a monitor's node with the standard library alone.
"""

from __future__ import annotations

import json
import re
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloudctl_rados import options as rados_options

DOCUMENTATION = r"""
---
module: cloudctl_osdtrial
short_description: Try the OSDs of storage nodes
description:
  - Waits until every OSD of the nodes is up and in, has placement groups, and all placement groups of the
    cluster are active and clean.
  - Then writes an object whose first copy lies on each of the nodes, reads it back and removes it.
options:
  hosts:
    description: The storage nodes.
    type: list
    elements: str
    required: true
  fsid:
    description: The cluster's id.
    type: str
    required: true
  pools:
    description: Pools in which the object may lie; the first that has a place on the node is taken.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds without any progress of the backfill after which it gives up.
    type: int
    default: 600
author: cloudctl
"""

EXAMPLES = r"""
- name: Try the new node's OSDs
  cloudctl_osdtrial:
    hosts: [osd04]
    fsid: "{{ ceph_fsid }}"
    pools: [volumes]
"""

RETURN = r"""
osds:
  description: By node, its OSDs with C(id), C(pgs) and C(class).
  type: dict
  returned: success
read:
  description: By node, the pool and OSD from which the object was read.
  type: dict
  returned: success
seconds:
  description: How long the backfill took.
  type: float
  returned: success
"""

KEYRING = "/etc/ceph/ceph.client.admin.keyring"

AGENT = r"""
import json, os, sys, time
asked = json.load(sys.stdin)

def answer(value):
    json.dump(value, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the library's own threads may hang when a manager has gone away

try:
    import rados
    cluster = rados.Rados(conffile="/etc/ceph/ceph.conf", rados_id="admin",
                          conf={"key": asked["key"], "keyring": "/dev/null", **asked["options"]})
    cluster.connect()

    def mon(prefix, **arguments):
        command = json.dumps({"prefix": prefix, "format": "json", **arguments})
        rc, out, err = cluster.mon_command(command, b"", timeout=30)
        if rc:
            raise RuntimeError("%s: %s" % (prefix, err or rc))
        return json.loads(out)

    started = moved = time.time()
    before = None
    while True:
        nodes = mon("osd df", output_method="tree")["nodes"]
        tree = {node["id"]: node for node in mon("osd tree")["nodes"]}
        pgs = {node["id"]: node.get("pgs", 0) for node in nodes}
        where = {node["name"]: [child for child in node.get("children", []) if child >= 0]
                 for node in tree.values() if node.get("type") == "host"}
        osds = {host: [{"id": number, "pgs": pgs.get(number, 0),
                        "class": tree[number].get("device_class", ""),
                        "up": tree[number].get("status") == "up" and tree[number].get("reweight", 0) > 0}
                       for number in where.get(host, [])] for host in asked["hosts"]}
        status = mon("status")["pgmap"]
        states = {entry["state_name"]: entry["count"] for entry in status.get("pgs_by_state", [])}
        dirty = {name: count for name, count in states.items() if not name.startswith("active+clean")}
        waiting = ["%s has no OSD" % host for host, found in osds.items() if not found]
        waiting += ["osd.%d is not up and in" % o["id"] for f in osds.values() for o in f if not o["up"]]
        waiting += ["osd.%d has no placement group" % o["id"] for f in osds.values() for o in f
                    if o["up"] and not o["pgs"] and states]
        waiting += ["%d placement groups are %s" % (count, name) for name, count in sorted(dirty.items())]
        if not waiting:
            break
        seen = (waiting, status.get("misplaced_objects"), status.get("degraded_objects"))
        if seen != before:
            before, moved = seen, time.time()
        if time.time() - moved > asked["timeout"]:
            answer({"error": "no progress for %d s: %s" % (asked["timeout"], "; ".join(waiting))})
        time.sleep(1)
    seconds = time.time() - started
    read = {}
    for host, found in osds.items():
        ours = {osd["id"] for osd in found}
        for pool in asked["pools"]:
            if not cluster.pool_exists(pool):
                continue
            for number in range(2000):
                name = "cloudctl-trial-%s-%d" % (host, number)
                placed = mon("osd map", pool=pool, object=name)
                if placed["acting_primary"] in ours:
                    break
            else:
                continue
            content = os.urandom(65536)
            with cluster.open_ioctx(pool) as io:
                io.write_full(name, content)
                try:
                    same = io.read(name, len(content)) == content
                finally:
                    io.remove_object(name)
            if not same:
                answer({"error": "osd.%d gave other data back than was written" % placed["acting_primary"]})
            read[host] = {"pool": pool, "osd": placed["acting_primary"]}
            break
        else:
            answer({"error": "no pool keeps first copies on %s" % host})
    answer({"osds": osds, "read": read, "seconds": round(seconds, 1)})
except Exception as error:
    answer({"error": str(error) or type(error).__name__})
"""
"""Runs in the monitor's container; the key comes by standard input, so that it shows in no process list."""


def admin_key():
    """Return the administrator's key from this node's keyring, an empty string where there is none."""
    try:
        with open(KEYRING, encoding="utf-8") as file:
            match = re.search(r"^\s*key\s*=\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else ""


def monitor(fsid):
    """Return the name of the monitor's container on this node, an empty string where none runs."""
    done = subprocess.run(
        ["docker", "ps", "--format", "{{.Names}}", "--filter", f"name=ceph-{fsid}-mon"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return next(iter(done.stdout.split()), "")


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "hosts": {"type": "list", "elements": "str", "required": True},
            "fsid": {"type": "str", "required": True},
            "pools": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=False,
    )
    asked = {name: module.params[name] for name in ("hosts", "pools", "timeout")}
    container, key = monitor(module.params["fsid"]), admin_key()
    if not container or not key:
        module.fail_json(msg="no monitor of the cluster runs here, or its administrator's key is missing")
    done = subprocess.run(
        ["docker", "exec", "-i", container, "/usr/bin/python3", "-c", AGENT],
        input=json.dumps({**asked, "key": key, "options": rados_options(20)}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        found = json.loads(done.stdout)
    except ValueError:
        module.fail_json(msg=(done.stderr.strip().splitlines() or ["no answer"])[-1])
    if "error" in found:
        module.fail_json(msg=found["error"])
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
