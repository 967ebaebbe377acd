"""A dead monitor's host leaves Ceph and comes back: what is to be asked and done, from the answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cloudctl.errors import CheckFailed

Step = dict[str, Any]
Answer = Mapping[str, Any]

_KEPT = ("fsid", "image", "mons", "mgrs", "public_network", "cluster_network")


def trimmed(full: Mapping[str, Any], host: str, leader: str) -> dict[str, Any]:
    """Return of a wanted cluster what concerns one host: itself, monitors and managers; no secret.

    Args:
        full: as ``cloudctl.ceph.desired.build`` returns it.
        host: the node.
        leader: monitor's node that works on it: the first one of the list is asked.
    """
    kept = {key: value if key in _KEPT else type(value)() for key, value in full.items()}
    return {
        **kept,
        "mons": sorted(full["mons"], key=lambda mon: bool(mon["name"] != leader)),
        "hosts": [entry for entry in full["hosts"] if entry["name"] == host],
    }


def question() -> list[Step]:
    """Return what is asked to know how far a host has left."""
    return [
        _step("mon dump"),
        _step("orch host ls", to="mgr"),
        _step("orch ls", to="mgr", export=True),
        _step("osd tree"),
    ]


def leaving(host: str, answers: Sequence[Answer], *, patient: bool = False) -> tuple[list[Step], list[str]]:
    """Return what is left to do until a dead host is gone.

    Its monitor would count in the majority, and the orchestrator would wait for its daemons, or make them
    again as soon as the new machine answers, in the middle of its installation.

    Args:
        host: its name.
        answers: to ``question``.
        patient: where the orchestrator takes the host for alive, let it look first: it removes the daemons of
            a host only that it knows to be off.

    Returns:
        Steps, in order, and what they do in words; empty: it is gone.

    Raises:
        CheckFailed: it has OSDs.
    """
    monmap, hosts, services, tree = (_read(answer) for answer in answers)
    osds = sorted(
        str(child)
        for node in (tree or {}).get("nodes") or ()
        if node.get("type") == "host" and node.get("name") == host
        for child in node.get("children") or ()
    )
    if osds:
        raise CheckFailed(
            "node-has-osds", f"Ceph has OSDs on {host}: {', '.join(osds)}", where=host,
            hint="cloudctl osd remove takes them out first: their data is rebuilt from the others",
        )  # fmt: skip
    steps: list[Step] = []
    words: list[str] = []
    known = next((entry for entry in hosts or () if entry.get("hostname") == host), None)
    if known is not None:
        offline = "offline" in str(known.get("status") or "").lower()
        if patient and not offline:
            return [_step("cephadm check-host", to="mgr", may_fail=True, host=host)], []
        specs = [spec for service in services or () if (spec := _without(service, host)) is not None]
        if specs:
            text = "\n---\n".join(json.dumps(spec) for spec in specs)
            steps.append(_step("orch apply", to="mgr", inbuf=text, timeout=120))
            words.append(f"{' and '.join(str(spec['service_type']) for spec in specs)} placed elsewhere")
        told: dict[str, Any] = {"offline": True} if offline else {}
        steps.append(_step("orch host rm", to="mgr", timeout=180, hostname=host, force=True, **told))
        words.append(f"host {host} removed")
    elif any(entry.get("name") == host for entry in (monmap or {}).get("mons") or ()):
        # The orchestrator takes a monitor out with its host; this one was left behind.
        steps.append(_step("mon remove", name=host))
        words.append(f"monitor {host} removed")
    return steps, words


def _without(service: Mapping[str, Any], host: str) -> dict[str, Any] | None:
    """Return the specification of a service without a host; None where it does not name it."""
    if service.get("service_type") not in ("mon", "mgr"):
        return None
    hosts = [
        entry if isinstance(entry, str) else str(entry.get("hostname", ""))
        for entry in (service.get("placement") or {}).get("hosts") or ()
    ]
    if host not in hosts:
        return None
    left = [name for name in hosts if name != host]
    return {"service_type": service["service_type"], "placement": {"hosts": left}} if left else None


def _read(answer: Answer) -> Any:
    try:
        return json.loads(str(answer["out"]))
    except ValueError:
        return None


def _step(
    prefix: str,
    to: str = "mon",
    inbuf: str = "",
    timeout: int = 30,
    may_fail: bool = False,
    **arguments: Any,
) -> Step:
    return {
        "to": to,
        "cmd": {"prefix": prefix, "format": "json", **arguments},
        "in": inbuf,
        "timeout": timeout,
        "may_fail": may_fail,
    }
