"""Runs the pre-checks: one playbook over all nodes, the registry from here, then the judgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cloudctl.checks import judge
from cloudctl.checks.judge import Finding
from cloudctl.checks.registry import missing
from cloudctl.checks.wanted import images, ports, questions
from cloudctl.engine.render import Renderer
from cloudctl.errors import CloudctlError, merge_nodes
from cloudctl.netcheck.collect import facts_of, silent_nodes
from cloudctl.netcheck.pairs import pairs
from cloudctl.runner import run_playbook
from cloudctl.site.model import Site


@dataclass
class Checked:
    """What the pre-checks found.

    Attributes:
        findings: errors and warnings.
        silent: by node, why it could not be asked.
        nodes: how many were asked.
    """

    findings: list[Finding] = field(default_factory=list)
    silent: dict[str, CloudctlError] = field(default_factory=dict)
    nodes: int = 0

    @property
    def errors(self) -> list[CloudctlError]:
        """The errors; the first one's exit code counts, so that mere unreachability comes last."""
        found = [finding.as_error() for finding in judge.merge(self.findings) if not finding.warning]
        return [*found, *sorted(merge_nodes(self.silent.values()), key=lambda error: error.exit_code)]

    @property
    def warnings(self) -> list[Finding]:
        """What a deploy would survive."""
        return [finding for finding in judge.merge(self.findings) if finding.warning]


def check(site: Site) -> Checked:
    """Ask all nodes and judge what they tell. Changes nothing."""
    renderer = Renderer(site)
    received: dict[str, float] = {}
    guard = threading.Lock()

    def on_event(event: Mapping[str, Any]) -> None:
        data = event.get("event_data") or {}
        if event.get("event") == "runner_on_ok" and "cloudctl_check" in (
            (data.get("res") or {}).get("ansible_facts") or {}
        ):
            with guard:
                received.setdefault(str(data.get("host")), time.time())

    wanted_images = images(renderer)
    with ThreadPoolExecutor(max_workers=1) as pool:
        registry = pool.submit(missing, {name: ref for name, ref in wanted_images.items() if ref})
        result = run_playbook(
            site.path,
            "check",
            {
                "cloudctl_checks": questions(renderer),
                "cloudctl_pairs": pairs(site.nodes, site.networks),
                "cloudctl_ceph_fsid": site.secrets.get("ceph_fsid", ""),
                "cloudctl_journal": {
                    "size": site.get("ceph.journal.size") or 0,
                    "minimum": site.get("ceph.journal.minimum"),
                },
            },
            on_event=on_event,
        )
        absent, registry_silent = registry.result()
    facts = facts_of(result, "cloudctl_check")
    checked = Checked(silent=silent_nodes(result), nodes=len(facts))
    if not facts and not checked.silent:
        result.raise_for_failure()
    for host, known in facts.items():
        known["clock"]["received"] = received.get(host)

    findings = checked.findings
    for name, node in site.nodes.items():
        if name in facts:
            findings += judge.judge_node(node, facts[name], ports(renderer, node))
        for answer in result.facts.get(name, {}).values():
            findings += judge.judge_devices(name, answer.get("devices") or [])
    vips = {name: str(site.get(f"vip.{name}")) for name in ("internal", "external")}
    controllers = [node.name for node in site.group("control")]
    findings += judge.judge_vips(vips, facts, list(checked.silent), holders=controllers)
    findings += judge.judge_pings(
        {
            host: [peer for peer in peers if peer["node"] not in checked.silent]
            for host, peers in facts_of(result, "cloudctl_ping").items()
        },
        list(findings),
    )
    # That the nodes do not reach the registry says it already.
    if any(finding.ref == "registry-silent" for finding in findings):
        registry_silent = ""
    findings += judge.judge_images(wanted_images, absent, registry_silent)
    return checked
