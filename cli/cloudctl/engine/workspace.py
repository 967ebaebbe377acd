"""The rendered site on disk, between the tasks of one playbook run.

Ansible runs every task of every node in a process of its own. So the site is loaded and rendered
once, in the first task; the others read just what they need. The directory is private (0700, files
0600) because rendered files hold secrets, and is removed when the run ends.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

from cloudctl.ceph.desired import device_arguments
from cloudctl.console import MASK, Masker
from cloudctl.engine import plan as planning
from cloudctl.engine.render import render_site
from cloudctl.errors import ConfigError, Unreachable
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

Spec = dict[str, Any]

_NEEDS = {
    "containers": ("containers",),
    "jobs": ("jobs",),
    "section": ("sections",),
}
"""What each action of the node-side module needs of the spec; the others need all of it."""

_LONGEST_DIFF = 200
"""Lines of a difference that the node-side module reports at most: of such a one the end may be missing."""

_SECRET_LINE = re.compile(
    r"(?i)^([ +-]\s*[\w.-]*(?:password|secret|_key|token|connection|transport_url)[\w.-]*\s*[=:])(.*)$"
)


class Workspace:
    """One rendered site.

    Args:
        path: the private directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def index(self) -> Spec:
        """What the site consists of: node names, Ceph's leader."""
        found: Spec = json.loads((self.path / "index.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def masker(self) -> Masker:
        """Hides the site's secrets in whatever is shown or kept."""
        return Masker(json.loads((self.path / "mask.json").read_text(encoding="utf-8")))

    def spec(self, node: str) -> Spec:
        """Return a node's rendered state."""
        found: Spec = json.loads(zlib.decompress((self.path / "nodes" / node).read_bytes()))
        return found

    def blob(self, node: str, action: str = "observe") -> str:
        """Return what the node-side module takes, no more than the action needs."""
        needs = _NEEDS.get(action)
        if needs is None:
            return base64.b64encode((self.path / "nodes" / node).read_bytes()).decode()
        spec = self.spec(node)
        return base64.b64encode(_pack({key: spec[key] for key in ("node", *needs)})).decode()

    def ceph_name(self) -> str:
        """Return the node that works on the Ceph cluster, or an empty string."""
        return str(self.index.get("ceph_leader") or "")

    @cached_property
    def _ceph(self) -> Spec:
        found: Spec = json.loads((self.path / "ceph.json").read_text(encoding="utf-8"))
        return found

    def ceph_arguments(self) -> Spec:
        """Return the arguments of the module that works on the Ceph cluster."""
        devices = {
            node: found["devices"]
            for node in self.index["nodes"]
            if "devices" in (found := self.observed(node))
        }
        return {"desired": self._ceph["desired"], "secrets": self._ceph["secrets"], "devices": devices}

    def devices_wanted(self, node: str, mode: str = "devices") -> Spec | None:
        """Return the arguments that check (or prepare) a node's OSD devices; None where it has none."""
        if not self.ceph_name():
            return None
        desired = self._ceph["desired"]
        if not any(osd["host"] == node for osd in desired["osds"]):
            return None
        return device_arguments(desired, node, mode)

    def observed(self, name: str) -> Spec:
        """Return what a node (or ``ceph``) reported."""
        path = self.path / "observed" / f"{name}.json"
        found: Spec = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def public(self, answer: Spec) -> Spec:
        """Return a module's answer without secrets: neither its arguments nor values in its texts."""
        shown = {key: value for key, value in answer.items() if key not in ("invocation", "module_stdout")}
        return self._mask(shown)  # type: ignore[no-any-return]

    def keep(self, node: str, observed: Spec) -> None:
        """Keep what a node reported, masked, for the plan."""
        _write(self.path / "observed" / f"{node}.json", json.dumps(self._mask(observed)))

    def prepared(self, node: str) -> None:
        """Note that a node's OSD devices have their links now: OSDs are made on such only."""
        found = self.observed(node)
        found["devices"] = [{**item, "prepared": True} for item in found.get("devices", ())]
        self.keep(node, found)

    def plan(self) -> Spec:
        """Return the plan from all that the nodes reported.

        Raises:
            Unreachable: a node has not: a plan without it would be no plan.
        """
        specs = {node: self.spec(node) for node in self.index["nodes"]}
        observed = {node: self.observed(node) for node in specs}
        if silent := [node for node, found in observed.items() if not found]:
            raise Unreachable(
                "node-unread", f"no plan without {', '.join(silent)}: nothing is known of what is there",
                where=", ".join(silent),
            )  # fmt: skip
        ceph = self.observed("ceph").get("changes", [])
        return planning.build(specs, observed, ceph, self.ceph_name())

    def write_plan(self, plan: Spec) -> None:
        """Write the plan where the command line reads it (it holds no secret)."""
        _write(self.path / "plan.json", json.dumps(plan))
        _write(self.path.parent / "plan.json", json.dumps(plan))

    def made_plan(self) -> Spec:
        """Return the plan that was made from this very rendering.

        Raises:
            ConfigError: none was made.
        """
        try:
            found: Spec = json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                "plan-missing", "no plan was made from what is rendered", where=str(self.path),
                hint="run deploy.yml without cloudctl_planned",
            ) from None  # fmt: skip
        return found

    def _mask(self, value: Any) -> Any:
        if isinstance(value, str):
            return _SECRET_LINE.sub(r"\1 ********", self.masker.mask(value))
        if isinstance(value, dict):
            return {
                key: mask_diff(item, self._mask(item)) if key == "diff" else self._mask(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._mask(item) for item in value]
        return value


def mask_diff(lines: Any, masked: Any) -> Any:
    """Return a file's difference without secrets that were: no masker knows a value that was changed.

    A line that goes is hidden where a line with a secret comes in its place, or where what comes in its
    place is not known.

    Args:
        lines: as the node reported them.
        masked: the same lines without the site's present secrets.
    """
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return masked
    secret = [old != new and old.startswith("+") for old, new in zip(lines, masked, strict=True)]
    if not any(secret) and len(lines) < _LONGEST_DIFF:
        return masked
    shown = list(masked)
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end].startswith("-"):
            end += 1
        gone = end
        while end < len(lines) and lines[end].startswith("+"):
            end += 1
        if any(secret[gone:end]) or gone == end:
            shown[start:gone] = [f"-{MASK}"] * (gone - start)
        start = max(end, start + 1)
    return shown


def site_root(path: Path) -> Path:
    """Return the site's directory, from itself or from its inventory (what Ansible knows of it).

    Raises:
        ConfigError: no site is there.
    """
    for candidate in (path, *path.parents[:2]):
        if (candidate / "settings.yml").is_file():
            return candidate
    raise ConfigError("site-missing", f"{path} belongs to no site: no settings.yml", hint="give --site DIR")


def workspace_path(site: Path) -> Path:
    """Return where a site's rendered state stands while a run lasts."""
    return site / ".cloudctl" / "rendered"


def open_workspace(site: Path) -> Workspace:
    """Return the workspace that the first task of the run rendered."""
    return Workspace(workspace_path(site_root(site)))


def render(site_path: Path) -> Spec:
    """Load, validate and render a site into its workspace; return the index."""
    site_path = site_root(site_path)
    site = load_site(site_path)
    state = render_site(site)
    path = workspace_path(site_path)
    shutil.rmtree(path, ignore_errors=True)
    for directory in (path, path / "nodes", path / "observed"):
        directory.mkdir(mode=0o700, parents=True)
    for node, spec in state["nodes"].items():
        _write_bytes(path / "nodes" / node, _pack(spec))
    leader = ""
    if state["ceph"] is not None:
        leader = state["ceph"]["desired"]["mons"][0]["name"]
        _write(path / "ceph.json", json.dumps(state["ceph"]))
    _write(path / "mask.json", json.dumps([value for value in site.secrets.values() if len(value) >= 6]))
    index = {
        "nodes": list(state["nodes"]),
        "ceph_leader": leader,
        "needs": state["needs"],
        "peers": _peers(site),
    }
    _write(path / "index.json", json.dumps(index))
    return index


def _peers(site: Site) -> dict[str, list[str]]:
    """Return whom a node must reach after a change of its network: the deploy node is asked from itself."""
    others = [node.address for node in site.nodes.values() if not {"deploy", "newnodes"} & set(node.groups)]
    return {node.name: others[:5] for node in site.group("deploy") if others}


def remove(site_path: Path) -> None:
    """Remove the rendered state: it holds secrets."""
    shutil.rmtree(workspace_path(site_path), ignore_errors=True)


def _pack(value: object) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _write(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    temporary.rename(path)
