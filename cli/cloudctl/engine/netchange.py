"""How a change of a node's network ended: decisions of the controller. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudctl.errors import ApplyFailed, CheckFailed, CloudctlError, Unreachable

UNDO_AFTER = 35
"""Seconds after which a node puts its old network back: with the time that takes, less than a minute."""

GIVE_UP_AFTER = 120
"""Seconds until a node that answers neither way is given up."""

PAUSE = 1.5
"""Seconds between two attempts to connect anew; the change begins a second after it was ordered."""

WATCHED = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3 -o ConnectTimeout=5"
"""Options of SSH for a connection that may be cut at any moment."""

_PRECHECKS = frozenset({"network-backend-refused", "network-backend-missing", "network-port-name"})
"""Reasons that a node finds before it changes anything."""


def is_end(answer: Mapping[str, Any]) -> bool:
    """Whether a node's answer tells how the change ended."""
    if answer.get("state") == "undone":
        return bool(answer.get("ended", True))
    return answer.get("state") in ("confirmed", "unknown")


def ran_out(answer: Mapping[str, Any] | None) -> bool:
    """Whether a change was taken back because its time was over, not because of what it was."""
    return (answer or {}).get("state") == "undone" and (answer or {}).get("reason") == "timer"


def judge(node: str, answer: Mapping[str, Any] | None, seconds: float) -> CloudctlError | None:
    """Return the error for how a change ended, None where it was confirmed.

    Args:
        node: its name.
        answer: the node's last one; None where it was silent since the change.
        seconds: since the change was ordered.
    """
    state = (answer or {}).get("state")
    if state == "confirmed":
        return None
    if answer is None or state in ("pending", "unknown"):
        return Unreachable(
            "network-lost",
            f"the node has not answered for {seconds:.0f} s since its network was changed, though it should "
            "have its old network back by now",
            where=node,
            hint="look at it from its console: /var/lib/cloudctl/network/undone has the log; "
            "`sh /var/lib/cloudctl/network/pending/undo hand`, if it is there, puts the old files back",
        )
    reason, why = str(answer.get("reason") or ""), str(answer.get("why") or "")
    log = str(answer.get("log") or "").strip()
    if reason in ("failed", "refused"):
        detail = why or (log.splitlines()[-1] if log else "a command failed")
        return ApplyFailed(
            "network-not-applied",
            f"the new network could not be taken up ({detail}); the node has its old network back",
            where=node,
            hint="correct networks.yml or the inventory; logs: /var/lib/cloudctl/network/undone on the node",
        )
    return ApplyFailed(
        "network-rolled-back",
        "the new network cut the management connection; nobody confirmed it, so the node put its old network "
        f"back and answers again ({seconds:.0f} s after the change)",
        where=node,
        hint="compare its management port, address, MAC and gateway in networks.yml and the inventory with "
        "the machine's; nothing else of the deploy was undone",
    )


def with_error(node: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a failed answer of the node-side module with the error that it named, for the operator."""
    named = answer.get("network_error")
    if not isinstance(named, Mapping):
        return dict(answer)
    details = str(answer.get("details") or "").strip()
    text = f"{answer.get('msg')}" + (f"\n{details}" if details else "")
    kind = CheckFailed if named["ref"] in _PRECHECKS else ApplyFailed
    error = kind(str(named["ref"]), text, where=node, hint=str(named.get("hint") or "") or None)
    return {**answer, "cloudctl_error": error.as_dict()}
