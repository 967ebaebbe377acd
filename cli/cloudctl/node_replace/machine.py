"""The machine at a dead node's address: is it the old one, and how the new one becomes a node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cloudctl.engine.render import CONFIG_ROOT
from cloudctl.errors import CheckFailed, CloudctlError, Unreachable
from cloudctl.node import arp, enroll
from cloudctl.node.enroll import Contact, Request, Session
from cloudctl.node_replace import decide
from cloudctl.node_replace.decide import ITSELF, NEW, SILENT
from cloudctl.runs.record import write_atomically
from cloudctl.site.model import Node, Site

# What it says goes into errors of our own; its threads would print their tracebacks between the lines.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

PENALTY = 60.0
"""Seconds for which an SSH server may refuse one who came a few times without logging in."""

CARRIED = (CONFIG_ROOT, "/var/lib/docker/volumes/*/", "/var/lib/ceph/????????-????-????-????-????????????")
"""Shell patterns: configuration, volumes, Ceph's daemons. The engine and Ceph's packages alone make none."""

Say = Callable[[str], None]
Confirm = Callable[[Contact], bool]


@dataclass(frozen=True)
class Found:
    """What answers at the address.

    Attributes:
        state: ``SILENT``, ``ITSELF`` or ``NEW``.
        fingerprint: of the host key; empty where nothing answers.
        error: why nothing answers.
    """

    state: str
    fingerprint: str = ""
    error: Unreachable | None = None


def own_names(node: Node) -> set[str]:
    """Return the names under which a node's host key is pinned."""
    return enroll.known_names((node.name, node.address), int(node.vars.get("ansible_port") or 22))


def own_keys(known: str, node: Node) -> set[str]:
    """Return the pinned keys of a node, from the text of known_hosts. Pure."""
    return {
        words[2]
        for line in known.splitlines()
        if len(words := line.split()) > 2
        and not line.startswith(("#", "@"))
        and set(words[0].split(",")) & own_names(node)
    }


def repinned(known: str, node: Node, line: str = "") -> str:
    """Return known_hosts with a node's new line, if any, in the place of its old ones. Pure.

    Other lines stay; one that names other machines, too, keeps these.
    """
    result: list[str] = []
    done = False
    for old in known.splitlines():
        words = old.split()
        names = words[0].split(",") if len(words) > 2 and not old.startswith(("#", "@")) else []
        rest = [name for name in names if name not in own_names(node)]
        if len(rest) == len(names):
            result.append(old)
            continue
        if line and not done:
            result.append(line)
            done = True
        if rest:
            result.append(" ".join([",".join(rest), *words[1:]]))
    if line and not done:
        result.append(line)
    return "".join(f"{text}\n" for text in result)


def request_of(node: Node, *, user: str = "", password: str | None = None, fingerprint: str = "") -> Request:
    """Return how the machine is contacted."""
    port = int(node.vars.get("ansible_port") or 22)
    return Request(node.name, node.address, "", user, password, fingerprint, port)


def find(site: Site, node: Node) -> Found:
    """Look what answers at a node's address; nobody logs in."""
    try:
        contact = _reach(request_of(node))
    except Unreachable as error:
        return Found(SILENT, error=error)
    try:
        pinned = contact.key_data in own_keys(_known_hosts(site), node)
        return Found(ITSELF if pinned else NEW, contact.fingerprint)
    finally:
        contact.close()


def take_in(site: Site, node: Node, request: Request, *, confirm: Confirm, say: Say, ours: str = "") -> str:
    """Make the deploy key the machine's only way in, and pin its host key in place of the old one.

    A machine that is refused stays as it was; one that was taken in before is only looked at.

    Args:
        site: the site.
        node: the node whose place it takes.
        request: account, password and fingerprint.
        confirm: asked about a host key that comes without a fingerprint and is not pinned yet.
        say: told what happens.
        ours: fingerprint of the machine that an earlier run has taken in: what lies on it is ours.

    Returns:
        The fingerprint of its host key.

    Raises:
        CloudctlError: it is no machine for this, or it cannot be reached.
    """
    deploy = enroll.deploy_side(site)
    known = _known_hosts(site)
    others = {name: other.address for name, other in site.nodes.items() if name != node.name}
    answers = arp.ask([node.address], others.values())
    arp.judge(node.name, node.address, answers or {}, others)
    contact = _reach(request, say)
    try:
        pinned = contact.key_data in own_keys(known, node)
        if not pinned:
            enroll.check_host_key(repinned(known, node, contact.line), request, contact.key_data)
            say(f"{node.name}: {node.address} has the {contact.key_type} host key {contact.fingerprint}")
            _judge_fingerprint(contact, confirm)
        if pinned:
            if (session := _by_deploy_key(contact, deploy)) is not None:
                if contact.fingerprint != ours:
                    _judge_fresh(node, session)
                return contact.fingerprint
            contact.close()
            contact = _reach(request, say)
        try:
            session, found = enroll.examine(contact, deploy)
        except CheckFailed as error:
            if error.ref != "password-login-off":
                raise
            # An earlier run was killed after it had switched passwords off and before it pinned the host key.
            contact.close()
            contact = _reach(replace(request, user="", password=None), say)
            session, found = enroll.examine(contact, deploy)
        for warning in found.warnings:
            say(f"{node.name}: warning: {warning}")
        _judge_identity(node, session)
        if contact.fingerprint != ours:
            _judge_fresh(node, session)
        enroll.convert(session, contact, deploy, say)
        path = site.path / enroll.KNOWN_HOSTS
        write_atomically(path, repinned(_known_hosts(site), node, contact.line), mode=0o644)
        return contact.fingerprint
    finally:
        contact.close()


def _reach(request: Request, say: Say = lambda line: None) -> Contact:
    """Open an SSH connection; a server that hangs up at once may do so for a while only.

    Raises:
        Unreachable: nothing answers, or it goes on hanging up.
    """
    end = time.monotonic() + PENALTY
    told = False
    while True:
        try:
            return enroll.reach(request)
        except Unreachable as error:
            if "banner" not in error.message or time.monotonic() > end:
                raise
        if not told:
            told = True
            say(f"{request.name}: its SSH server hangs up for now (it has seen too many attempts): waiting")
        time.sleep(5)


def _judge_fingerprint(contact: Contact, confirm: Confirm) -> None:
    given = contact.request.fingerprint
    if given and not enroll.same_fingerprint(given, contact.fingerprint):
        raise CheckFailed(
            "fingerprint-differs", f"the host key is {contact.fingerprint}, given was {given}",
            where=contact.request.name,
            hint="another machine answers at this address, or the fingerprint is of another key: "
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the machine's console",
        )  # fmt: skip
    if not given and not confirm(contact):
        raise CheckFailed("fingerprint-refused", "the host key was not accepted", where=contact.request.name)


def _by_deploy_key(contact: Contact, deploy: enroll.Deploy) -> Session | None:
    """Log in with the deploy key; return None where the machine does not know it."""
    keyed = replace(contact, request=replace(contact.request, password=None))
    try:
        return enroll.log_in(keyed, deploy.user, deploy.key)
    except CloudctlError:
        return None


def _judge_fresh(node: Node, session: Session) -> None:
    """Refuse a machine that carries what a machine with nothing but its operating system does not."""
    command = f'for path in {" ".join(CARRIED)}; do [ ! -e "$path" ] || echo "$path"; done'
    decide.check_fresh(node.name, node.address, session.run(command, root=True).splitlines())


def _judge_identity(node: Node, session: Session) -> None:
    """Refuse a machine with another host name, and one without a port that the site knows by its MAC.

    Raises:
        CheckFailed: it is not installed as this node.
    """
    name = session.run("hostname").strip().partition(".")[0]
    if name != node.name:
        raise CheckFailed(
            "hostname-differs", f"the machine is called {name!r}", where=node.name,
            hint=f"hostnamectl set-hostname {node.name}, on it: members of clusters are known by their names",
        )  # fmt: skip
    found = set(session.run("cat /sys/class/net/*/address").lower().split())
    wanted = {port.name: port.mac for port in node.interfaces.values() if port.mac and port.mac not in found}
    if wanted:
        listed = ", ".join(f"{port} {mac}" for port, mac in wanted.items())
        raise CheckFailed(
            "mac-differs", f"the machine has no port with the MAC address of {listed}", where=node.name,
            hint="the inventory knows the old machine's ports: write the new one's addresses there "
            f"({', '.join(sorted(found - {'00:00:00:00:00:00'}))})",
        )  # fmt: skip


def _known_hosts(site: Site) -> str:
    path = site.path / enroll.KNOWN_HOSTS
    return path.read_text(encoding="utf-8") if path.exists() else ""
