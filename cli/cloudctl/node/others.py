"""What the other nodes need to know when one comes or goes: computed from the two sites, before and after.

Nothing here is about a particular service: whatever is rendered differently is found. A file is written, a
container that can read it again does so, a job whose inputs changed is run. What could only be had by making
a container anew is not done; it is told, and a deploy does it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudctl.engine.render import COMPOSE_PATH

Spec = dict[str, Any]


@dataclass
class Work:
    """What one other node has to do.

    Attributes:
        files: their new content.
        reload: containers that read files again, with their state.
        jobs: one-shot jobs.
        deferred: containers that would have to be made anew.
    """

    files: list[Spec] = field(default_factory=list)
    reload: dict[str, Spec] = field(default_factory=dict)
    jobs: list[Spec] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.reload or self.jobs)

    def describe(self) -> list[str]:
        """Return it as lines that a person reads."""
        lines = [f"write {entry['path']}" for entry in self.files]
        lines += [f"let {name} read its files again (no restart)" for name in self.reload]
        lines += [f"run job {job['service']}/{job['name']}" for job in self.jobs]
        lines += [f"left to a deploy: make container {name} anew" for name in self.deferred]
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``; no contents."""
        return {
            "files": [entry["path"] for entry in self.files],
            "reload": list(self.reload),
            "jobs": [f"{job['service']}/{job['name']}" for job in self.jobs],
            "deferred": self.deferred,
        }


def works(
    before: Mapping[str, Spec], after: Mapping[str, Spec], without: Collection[str] = ()
) -> dict[str, Work]:
    """Return, by node, what the change of the site means for it. Pure.

    Args:
        before, after: rendered nodes (``render_site(...)["nodes"]``).
        without: nodes that are not asked: they cannot be reached.
    """
    found: dict[str, Work] = {}
    for node in before.keys() & after.keys() - set(without):
        work = _work(node, before[node], after[node])
        if work or work.deferred:
            found[node] = work
    return {node: found[node] for node in after if node in found}


def _work(node: str, before: Spec, after: Spec) -> Work:
    old_files = {entry["path"]: entry["content"] for entry in before["files"]}
    work = Work()
    for name, state in after["containers"].items():
        old = before["containers"].get(name)
        if old is None or old["parts"] != state["parts"]:
            work.deferred.append(name)
        elif old["reload"] != state["reload"]:
            work.reload[name] = {key: value for key, value in state.items() if key != "compose"}
    for entry in after["files"]:
        changed = old_files.get(entry["path"]) != entry["content"]
        # A file beside a container that still runs with the old one would only look right.
        if changed and entry["path"] != COMPOSE_PATH and entry["container"] not in work.deferred:
            work.files.append(entry)
    old_jobs = {job["id"]: job["inputs"] for job in before["jobs"]}
    for job in after["jobs"]:
        if job["once"] or (job["first"] != node and not job["everywhere"]):
            continue
        if old_jobs.get(job["id"]) != job["inputs"] and job["container"] not in work.deferred:
            work.jobs.append(job)
    return work


def call_of(node: str, work: Work, after: Spec) -> dict[str, Any]:
    """Return the call of the node-side module that does a node's work. Pure."""
    spec = {
        "schema": after["schema"],
        "node": node,
        "groups": [],
        "packages": [],
        "units": [],
        "files": work.files,
        "managed": [],
        "apply": after["apply"],
        "containers": work.reload,
        "images": [],
        "jobs": work.jobs,
        "sections": [],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(spec, separators=(",", ":")).encode(), 1)).decode()
    return {"module": "cloudctl_node", "arguments": {"action": "adapt", "spec": packed}}


def ceph_of(ceph: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the part of the wanted Ceph cluster that is about some nodes. Pure.

    A change of the site that was never deployed stays out of it, as do the devices of all other nodes.
    """
    return {
        **ceph,
        "hosts": [host for host in ceph["hosts"] if host["name"] in names],
        "osds": [osd for osd in ceph["osds"] if osd["host"] in names],
        "config": {},
        "clients": [],
        "pools": [],
    }
