"""First contact with servers that have only an operating system.

Everything is looked at before anything is changed: a server that is refused is as it was, and so is the site.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudctl.checks.judge import CLOCK_ERROR, CLOCK_WARNING, judge_os
from cloudctl.errors import (
    ApplyFailed,
    CheckFailed,
    CloudctlError,
    ConfigError,
    MultiError,
    Unreachable,
    UsageError,
)
from cloudctl.node import arp, journal
from cloudctl.node.future import refuse_invalid
from cloudctl.node.inventory import ROLES, WAITING, read_text, remember_empty, write_text
from cloudctl.paths import data_root
from cloudctl.runs.record import write_atomically
from cloudctl.site.document import Problems, parse_document
from cloudctl.site.edit_inventory import add_host, group_names
from cloudctl.site.model import Site
from cloudctl.site.schema import schema

if TYPE_CHECKING:
    import paramiko

TIMEOUT = 15.0
PATIENCE = 60.0
"""Seconds that a login or a command may take; all of them are short."""
KNOWN_HOSTS = "known_hosts"
_ANSIBLES_OWN = {"all", "ungrouped", "localhost"}
_KEY_ONLY = "/etc/ssh/sshd_config.d/60-cloudctl.conf"
_FIRST = "/etc/ssh/sshd_config.d/00-cloudctl-key-only.conf"
"""Read before anybody else's: sshd takes the first value that it finds."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """A server that is to be enrolled.

    Attributes:
        name, address: as the inventory will have them.
        role: compute or storage; empty when it is not known yet.
        user: account of the first login; empty: the one that Ansible uses.
        password: of that account; None: the deploy key is installed already.
        fingerprint: of the host key, as an operator read it on the server's console; empty: he is asked.
        port: of SSH.
    """

    name: str
    address: str
    role: str = ""
    user: str = ""
    password: str | None = field(default=None, repr=False)
    fingerprint: str = ""
    port: int = 22


@dataclass
class Contact:
    """A server that was reached: an SSH connection before any login."""

    request: Request
    transport: Any
    key_type: str
    key_data: str

    @property
    def fingerprint(self) -> str:
        """The host key's, as OpenSSH shows it."""
        return fingerprint(self.key_data)

    @property
    def line(self) -> str:
        """The line of known_hosts."""
        request = self.request
        names = [known_name(host, request.port) for host in (request.address, request.name)]
        return f"{','.join(names)} {self.key_type} {self.key_data}"

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(Exception):
            self.transport.close()


# -- what is asked for ---------------------------------------------------------------------------


def read_requests(path: Path, defaults: Request) -> list[Request]:
    """Read a file that names many servers: a list, or a mapping by name.

    ``[{name: compute03, address: 10.10.10.23, role: compute, fingerprint: "SHA256:…"}]``. No passwords: all
    servers of a file have the same one, given by the command.

    Args:
        path: of the YAML file.
        defaults: role, user and password where an entry has none.

    Raises:
        ConfigError: the file is no such list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "file-unreadable", f"{path} cannot be read: {error.strerror}", where=str(path),
            hint="a lab's commands run on its deploy node: the file must be in the site's directory",
        ) from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise ConfigError("file-unreadable", f"{path} is no text in UTF-8", where=str(path)) from error
    problems = Problems()
    document = parse_document(str(path), text, problems)
    if problems:
        raise problems[0] if len(problems) == 1 else MultiError(problems)
    data = document.data if document is not None else None
    if isinstance(data, Mapping) and isinstance(data.get("nodes"), list | Mapping):
        data = data["nodes"]
    if isinstance(data, Mapping):
        # An entry that is no mapping is told below.
        data = [
            {"name": name, **entry} if isinstance(entry, Mapping) else entry for name, entry in data.items()
        ]
    if not isinstance(data, list) or not data:
        raise ConfigError(
            "nodes-format",
            "the file must be a list of nodes",
            where=str(path),
            hint="- {name: compute03, address: 10.10.10.23, role: compute}",
        )
    found: list[Request] = []
    keys = ("name", "address", "role", "user", "fingerprint")
    for number, entry in enumerate(data, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, Mapping) or not entry.get("name") or not entry.get("address"):
            raise ConfigError(
                "nodes-format", "each node needs a name and an address", where=where,
                hint="- {name: compute03, address: 10.10.10.23, role: compute}",
            )  # fmt: skip
        if str(entry["name"]) in (other.name for other in found):
            raise ConfigError(
                "nodes-format", f"{entry['name']} is named twice", where=where,
                hint="give each node a name of its own",
            )  # fmt: skip
        if unknown := sorted(set(map(str, entry)) - {*keys, "port"}):
            raise ConfigError(
                "unknown-key", f"unknown: {', '.join(unknown)}", where=where, hint=f"known: {', '.join(keys)}"
            )
        if entry.get("role", "") not in ("", *ROLES):
            raise ConfigError(
                "wrong-value", f"role must be one of {', '.join(ROLES)}, not {entry['role']}", where=where
            )
        if type(entry.get("port", 22)) is not int or not 0 < entry.get("port", 22) < 65536:
            raise ConfigError("wrong-value", f"port must be a number, not {entry['port']}", where=where)
        found.append(
            Request(
                name=str(entry["name"]),
                address=str(entry["address"]),
                role=str(entry.get("role") or defaults.role),
                user=str(entry.get("user") or defaults.user),
                password=defaults.password,
                fingerprint=str(entry.get("fingerprint") or ""),
                port=int(entry.get("port", 22)),
            )
        )
    return found


def planned_inventory(
    site: Site, text: str, requests: Sequence[Request], chosen: Sequence[Request] = ()
) -> str:
    """Return the inventory with the servers in ``newnodes``. Pure.

    Args:
        site: the loaded site.
        text: the inventory.
        requests: the servers.
        chosen: others that are in the text already, but not in the site.

    Raises:
        UsageError: a name or an address is taken, or cannot be one.
    """
    reserved = group_names(text) | set(schema()["interfaces"]) | _ANSIBLES_OWN
    taken = {node.address: node.name for node in site.nodes.values()}
    for node in site.nodes.values():
        for port in node.interfaces.values():
            if port.address:
                taken.setdefault(port.address, node.name)
    for name in ("internal", "external"):
        if vip := site.get(f"vip.{name}", None):
            taken.setdefault(str(vip), f"the {name} virtual address")
    taken |= {request.address: request.name for request in chosen}
    for request in requests:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", request.name):
            raise UsageError(
                "node-name",
                f"{request.name!r} cannot be a host name",
                hint="lower-case letters, digits and hyphens",
            )
        if request.name in reserved:
            raise UsageError(
                "node-name", f"{request.name} cannot be a host name: it is a group's, or a word of Ansible's",
                where="inventory/hosts.yml", hint="call it differently",
            )  # fmt: skip
        if not canonical(request.address):
            raise UsageError(
                "address-malformed", f"{request.address!r} is no IPv4 address", where=request.name,
                hint="its address on the management network, as in 10.10.10.23",
            )  # fmt: skip
        if request.name in site.nodes:
            groups = ", ".join(site.nodes[request.name].groups)
            raise UsageError(
                "node-exists", f"{request.name} is in the inventory already ({groups})",
                where="inventory/hosts.yml",
            )  # fmt: skip
        if (owner := taken.get(request.address)) is not None:
            raise UsageError(
                "address-in-use", f"{request.address} is the address of {owner}", where="inventory/hosts.yml"
            )
        taken[request.address] = request.name
        variables: dict[str, Any] = {"ansible_host": request.address}
        if request.port != 22:
            variables["ansible_port"] = request.port
        if request.role:
            variables["role"] = request.role
        text = add_host(text, WAITING, request.name, variables)
    return text


def canonical(address: str) -> bool:
    """Tell whether it is an IPv4 address in the one spelling that can be compared. Pure."""
    try:
        return str(ipaddress.IPv4Address(address)) == address
    except ValueError:
        return False


# -- host keys -----------------------------------------------------------------------------------


def fingerprint(key_data: str) -> str:
    """Return a host key's fingerprint as OpenSSH shows it. Pure."""
    digest = hashlib.sha256(base64.b64decode(key_data)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def same_fingerprint(given: str, found: str) -> bool:
    """Tell whether a fingerprint that was typed is the found one; ``SHA256:`` and padding may lack. Pure."""
    return given.strip().removeprefix("SHA256:").rstrip("=") == found.removeprefix("SHA256:")


def known_name(host: str, port: int) -> str:
    """Return the name under which OpenSSH looks for a host's key in known_hosts. Pure."""
    return host if port == 22 else f"[{host}]:{port}"


def known_names(hosts: Collection[str], port: int) -> set[str]:
    """Return all names under which a host's key may be pinned, with and without its port. Pure."""
    return {*hosts, *(f"[{host}]:{port}" for host in hosts)}


def check_host_key(known: str, request: Request, key_data: str) -> None:
    """Refuse a host key that is another machine's, and one that is not the pinned one. Pure.

    Args:
        known: text of known_hosts.
        request: the new server.
        key_data: its host key, base64.

    Raises:
        CheckFailed: the key belongs to another name or address; or these have another key.
    """
    ours = known_names((request.name, request.address), request.port)
    stale: list[int] = []
    right = False
    for number, line in enumerate(known.splitlines(), start=1):
        words = line.split()
        if len(words) < 3 or line.startswith(("#", "@")):
            continue
        names, key = set(words[0].split(",")), words[2]
        if key == key_data and not names & ours:
            raise CheckFailed(
                "host-key-known",
                f"{request.address} answers with the host key of {words[0].split(',')[-1]}",
                where=request.name,
                hint="the address is that machine's, or the new one was cloned from it: make it a host key "
                "of its own (rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh)",
            )
        if names & ours:
            right = right or key == key_data
            if key != key_data:
                stale.append(number)
    if stale and not right:
        raise CheckFailed(
            "host-key-changed",
            f"known_hosts has another key for {request.name} ({request.address})",
            where=f"{KNOWN_HOSTS}:{stale[0]}",
            hint="if the machine was installed anew, remove these lines; else somebody stands in between",
        )


def pinned(known: str, contacts: Sequence[Contact]) -> str:
    """Return known_hosts with the servers' keys; other lines stay. Pure."""
    lines = known.splitlines()
    lines += [contact.line for contact in contacts if contact.line not in lines]
    return "".join(f"{line}\n" for line in lines)


# -- contact -------------------------------------------------------------------------------------


def reach(request: Request) -> Contact:
    """Open an SSH connection and take the host key; nobody logs in.

    Raises:
        Unreachable: nothing answers, or it is no SSH server.
    """
    import paramiko

    try:
        connection = socket.create_connection((request.address, request.port), TIMEOUT)
        transport = paramiko.Transport(connection)
        transport.banner_timeout = TIMEOUT
        transport.auth_timeout = PATIENCE
        # ed25519 first, as OpenSSH prefers it: what is pinned is what it will be shown.
        kinds = tuple(transport.get_security_options().key_types)
        transport.get_security_options().key_types = sorted(kinds, key=lambda kind: "ed25519" not in kind)
        transport.start_client(timeout=TIMEOUT)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise Unreachable(
            "node-unreachable", f"no SSH server answers at {request.address}: {error}", where=request.name,
            hint="check its power, its cable and its address; its SSH server must run",
        ) from error  # fmt: skip
    key = transport.get_remote_server_key()
    return Contact(request, transport, key.get_name(), key.get_base64())


class Session:
    """A login.

    Args:
        transport: authenticated.
        user: who is logged in.
        password: for sudo; None: sudo asks for none.
    """

    def __init__(self, transport: paramiko.Transport, user: str, password: str | None) -> None:
        self._transport = transport
        self._user = user
        self._password = password

    def run(self, command: str, *, root: bool = False, check: bool = True) -> str:
        """Run a shell command; return what it printed.

        Raises:
            ApplyFailed: it failed and ``check`` is set.
            Unreachable: the connection broke, or the server went silent.
        """
        stdin = ""
        full = f"sh -c {shlex.quote(command)}"
        if root and self._user != "root":
            # The password goes by standard input; it is no argument anywhere.
            full = f"sudo -S -p '' {full}" if self._password is not None else f"sudo -n {full}"
            stdin = f"{self._password}\n" if self._password is not None else ""
        import paramiko

        silent = threading.Event()

        def hang_up() -> None:
            silent.set()
            self._transport.close()

        # It ends every wait below; some of them know no time limit.
        guard = threading.Timer(PATIENCE, hang_up)
        guard.daemon = True
        guard.start()
        try:
            channel = self._transport.open_session(timeout=TIMEOUT)
            channel.exec_command(full)
            if stdin:
                channel.sendall(stdin.encode())
            channel.shutdown_write()
            out = _read(channel.recv)
            err = _read(channel.recv_stderr)
            code = channel.recv_exit_status()
            if code < 0:
                raise EOFError("it ended before the command did")
            channel.close()
        except (OSError, EOFError, paramiko.SSHException) as error:
            why = f"the server was silent for {PATIENCE:.0f} s" if silent.is_set() else str(error)
            raise Unreachable("connection-lost", f"the SSH connection broke: {why}") from error
        finally:
            guard.cancel()
        if check and code != 0:
            reason = (err or out).strip().splitlines()
            raise ApplyFailed("enroll-command-failed", (reason or [f"it ended with {code}"])[-1])
        return out


def _read(receive: Callable[[int], bytes]) -> str:
    parts = []
    while part := receive(65536):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def log_in(contact: Contact, user: str, key: Path) -> Session:
    """Log in with the password (one try), or with the deploy key where none was given.

    Raises:
        CheckFailed: refused.
    """
    import paramiko

    request, transport = contact.request, contact.transport
    try:
        if request.password is None:
            transport.auth_publickey(user, private_key(key))
        else:
            transport.auth_password(user, request.password)
    except paramiko.BadAuthenticationType as error:
        offered = ", ".join(error.allowed_types)
        raise CheckFailed(
            "password-login-off", f"the server lets {user} log in by {offered} only", where=request.name,
            hint="allow PasswordAuthentication there, or install the site's ssh/id_ed25519.pub by hand and "
            "enroll without a password",
        ) from error  # fmt: skip
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error):
            raise Unreachable(
                "login-failed", f"the login failed: the server was silent for {PATIENCE:.0f} s",
                where=request.name, hint="look at its console: is it up, and its disk well?",
            ) from error  # fmt: skip
        if request.password is None:
            raise CheckFailed(
                "deploy-key-refused", f"the server does not know the deploy key for {user}",
                where=request.name, hint="--user USER --ask-password installs it",
            ) from error  # fmt: skip
        raise CheckFailed(
            "password-refused",
            f"the server refuses {user}'s password; it was tried once, and nothing was changed",
            where=request.name, hint="check user and password on the server's console",
        ) from error  # fmt: skip
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise Unreachable("login-failed", f"the login failed: {error}", where=request.name) from error
    return Session(transport, user, request.password)


_FACTS = (
    "date +time=%s.%N; cat /etc/os-release 2>/dev/null | sed 's/^/os./'; "
    "echo host=$(hostname); echo python=$(command -v python3); echo sudo=$(command -v sudo); "
    "echo systemd=$([ -d /run/systemd/system ] && echo yes)"
)


def parse_facts(text: str) -> dict[str, str]:
    """Return what the server says about itself. Pure."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _equals, value in pairs}


def judge_facts(request: Request, facts: Mapping[str, str], asked: float, answered: float) -> list[str]:
    """Refuse a system on which nodes do not work, and a wrong clock. Pure.

    Args:
        facts: as returned by ``parse_facts``.
        asked, answered: seconds since 1970 here, before and after.

    Returns:
        Warnings.

    Raises:
        CheckFailed: why it cannot be a node.
    """
    system = {
        "id": facts.get("os.ID", ""),
        "version": facts.get("os.VERSION_ID", ""),
        "name": facts.get("os.PRETTY_NAME", ""),
    }
    for finding in judge_os(request.name, system):
        raise finding.as_error()
    if not facts.get("python"):
        raise CheckFailed(
            "python-missing", "the server has no Python 3", where=request.name, hint="install python3 on it"
        )
    if not facts.get("systemd"):
        raise CheckFailed("systemd-missing", "the server was not started by systemd", where=request.name)
    theirs = float(facts.get("time") or 0)
    off = theirs - answered if theirs > answered else theirs - asked if theirs < asked else 0.0
    direction = "ahead of" if off > 0 else "behind"
    text = f"the clock is {abs(off):.1f} s {direction} the deploy node's"
    if abs(off) >= CLOCK_ERROR:
        raise CheckFailed(
            "clock-skew", text, where=request.name, hint="set it (date -s, or its time daemon), then again"
        )
    return [text] if abs(off) >= CLOCK_WARNING else []


_BECOME = "id -u"

_INSTALL = r"""
set -e
user={user}; key={key}
home=$(getent passwd "$user" | cut -d: -f6)
if [ -z "$home" ]; then echo "there is no account $user" >&2; exit 66; fi
umask 077
[ -d "$home/.ssh" ] || {{ mkdir -p "$home/.ssh"; chown "$user:" "$home/.ssh"; }}
file="$home/.ssh/authorized_keys"
if [ -f "$file" ] && grep -qxF "$key" "$file"; then echo present; exit 0; fi
[ ! -s "$file" ] || [ -z "$(tail -c1 "$file")" ] || echo >> "$file"
printf '%s\n' "$key" >> "$file"
chown "$user:" "$file"
echo added
"""

_REMOVE = r"""
user={user}; key={key}
file="$(getent passwd "$user" | cut -d: -f6)/.ssh/authorized_keys"
[ -f "$file" ] || exit 0
grep -vxF "$key" "$file" > "$file.new"; cat "$file.new" > "$file"; rm -f "$file.new"
[ -s "$file" ] || rm -f "$file"
"""

_CLOSE = r"""
set -e
printf '%s' {text} > {path}
chmod 644 {path}
sshd=$(command -v sshd || echo /usr/sbin/sshd)
closed() {{ ! "$sshd" -T | grep -qiE '^(password|kbdinteractive)authentication yes'; }}
closed || printf 'PasswordAuthentication no\nKbdInteractiveAuthentication no\n' > {first}
"$sshd" -t
closed || {{ echo "its configuration still lets passwords in" >&2; exit 1; }}
systemctl reload ssh 2>/dev/null || systemctl reload sshd
"""

_OPEN = "rm -f {path} {first}; systemctl reload ssh 2>/dev/null || systemctl reload sshd"


@dataclass
class Deploy:
    """The deploy side: who logs in later, and with which key.

    Attributes:
        user: Ansible's.
        key: path of the private key.
        public: the public key, one line.
    """

    user: str
    key: Path
    public: str


def private_key(path: Path) -> paramiko.PKey:
    """Read a private key of any kind that OpenSSH makes.

    Raises:
        ConfigError: it is none, or has a passphrase.
    """
    import paramiko

    try:
        return paramiko.PKey.from_path(path)
    except Exception as error:  # each kind of key has errors of its own
        raise ConfigError(
            "deploy-key-unusable", f"{path} cannot be used as the deploy key: {error}", where=str(path),
            hint="a private key of OpenSSH without a passphrase: ed25519, ECDSA or RSA",
        ) from error  # fmt: skip


def deploy_side(site: Site) -> Deploy:
    """Return what the inventory says of Ansible's logins.

    Raises:
        ConfigError: the site's key is missing, or cannot be used.
    """
    settings = next((node.vars for node in site.group("control")), {})
    named = str(settings.get("ansible_ssh_private_key_file") or "")
    key = Path(named).expanduser() if named and "{{" not in named else site.path / "ssh" / "id_ed25519"
    public = Path(f"{key}.pub")
    if not key.is_file() or not public.is_file():
        raise ConfigError(
            "deploy-key-missing", f"there is no {key} with its public half", where=str(key),
            hint=f"ssh-keygen -t ed25519 -N '' -f {key}",
        )  # fmt: skip
    private_key(key)
    user = str(settings.get("ansible_user") or "root")
    return Deploy(user, key, public.read_text(encoding="utf-8").strip())


@dataclass
class Enrolled:
    """A server that is ready to be added."""

    contact: Contact
    system: str = ""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--output json``."""
        request = self.contact.request
        return {
            "name": request.name,
            "address": request.address,
            "role": request.role or None,
            "fingerprint": self.contact.fingerprint,
            "system": self.system,
            "warnings": self.warnings,
        }


def examine(contact: Contact, deploy: Deploy) -> tuple[Session, Enrolled]:
    """Log in and look; nothing is changed.

    Raises:
        CheckFailed: the login is refused, or the server cannot be a node.
    """
    request = contact.request
    session = log_in(contact, request.user or deploy.user, deploy.key)
    asked = time.time()
    facts = parse_facts(session.run(_FACTS))
    warnings = judge_facts(request, facts, asked, time.time())
    try:
        identity = session.run(_BECOME, root=True).strip()
    except ApplyFailed as error:
        identity = error.message
    if identity != "0":
        raise CheckFailed(
            "become-failed", f"{request.user or deploy.user} may not become root: {identity}",
            where=request.name, hint="give an account that may use sudo, or root's",
        )  # fmt: skip
    return session, Enrolled(contact, facts.get("os.PRETTY_NAME", ""), warnings)


def examine_or_resume(contact: Contact, deploy: Deploy) -> tuple[Session, Enrolled]:
    """As ``examine``; a server in which an interrupted run has switched passwords off is entered by its key.

    Raises:
        CheckFailed: the login is refused, or the server cannot be a node.
    """
    try:
        return examine(contact, deploy)
    except CheckFailed as error:
        if error.ref != "password-login-off" or contact.request.password is None:
            raise
        refused = error
    contact.close()
    contact.transport = _again(contact).transport
    contact.request = replace(contact.request, user="", password=None)
    try:
        return examine(contact, deploy)
    except CheckFailed as error:
        raise refused if error.ref in ("deploy-key-refused", "password-login-off") else error from None


def convert(session: Session, contact: Contact, deploy: Deploy, say: Say) -> None:
    """Install the deploy key, try it, switch passwords off and try that; take it back when it does not work.

    Raises:
        ApplyFailed: it did not work; what was changed was taken back, or the error says why not.
    """
    request = contact.request
    quoted = {"user": shlex.quote(deploy.user), "key": shlex.quote(deploy.public)}
    text = (data_root() / "roles" / "node" / "templates" / "sshd.conf.j2").read_text(encoding="utf-8")
    paths = {"path": _KEY_ONLY, "first": _FIRST}
    added = False
    try:
        added = session.run(_INSTALL.format(**quoted), root=True).strip() == "added"
        _try_key(contact, deploy)
        say(f"{request.name}: the deploy key works for {deploy.user}")
        session.run(_CLOSE.format(text=shlex.quote(text), **paths), root=True)
        _try_passwords(contact, deploy)
        say(f"{request.name}: passwords are switched off")
    except BaseException as error:
        told, hint = "what was changed was taken back", None
        try:
            # In this order: a server that lets no password in must keep the key.
            session.run(_OPEN.format(**paths), root=True)
            if added:
                session.run(_REMOVE.format(**quoted), root=True)
        except Exception as left:
            told = f"what was changed could not be taken back: {left}"
            hint = "the same command again: it goes on, with the deploy key where passwords are off already"
        if isinstance(error, CloudctlError):
            raise ApplyFailed(
                "enroll-failed", f"{error.message}; {told}", where=request.name, hint=hint
            ) from error
        raise


def _again(contact: Contact) -> Contact:
    """Connect once more; it must be the same machine."""
    fresh = reach(contact.request)
    if fresh.key_data != contact.key_data:
        fresh.close()
        raise CheckFailed("host-key-changed", "the server shows another host key than a moment ago")
    return fresh


def _try_key(contact: Contact, deploy: Deploy) -> None:
    import paramiko

    fresh = _again(contact)
    try:
        fresh.transport.auth_publickey(deploy.user, private_key(deploy.key))
        if deploy.user != "root":
            Session(fresh.transport, deploy.user, None).run("true", root=True)
    except paramiko.SSHException as error:
        raise ApplyFailed("deploy-key-refused", f"the deploy key does not work: {error}") from error
    finally:
        fresh.close()


def _try_passwords(contact: Contact, deploy: Deploy) -> None:
    import paramiko

    end = time.monotonic() + 15
    while True:
        try:
            fresh = _again(contact)
        except Unreachable:  # a reload takes a moment in which nobody listens
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
            continue
        try:
            fresh.transport.auth_none(contact.request.user or deploy.user)
            offered = ["none"]
        except paramiko.BadAuthenticationType as error:
            offered = list(error.allowed_types)
        except (OSError, EOFError, paramiko.SSHException):
            offered = ["password"]  # the connection ended: ask again
        finally:
            fresh.close()
        left = sorted({"none", "password", "keyboard-interactive"} & set(offered))
        if not left:
            return
        if time.monotonic() > end:
            raise ApplyFailed("password-login-on", f"the server still offers {', '.join(left)}")
        time.sleep(0.3)


# -- all together --------------------------------------------------------------------------------

Confirm = Callable[[Contact], bool]


def enroll(site: Site, requests: Sequence[Request], *, confirm: Confirm, say: Say) -> Result:
    """Enrol servers, all at the same time.

    Args:
        site: the loaded site.
        requests: the servers.
        confirm: asked for every host key that comes without a fingerprint.
        say: told what happens.

    Returns:
        Those that are enrolled, and why others are not (they are as they were).

    Raises:
        ConfigError: the site has no deploy key, or an inventory that nobody can read; nothing was done.
    """
    _text, failed = _plan(site, read_text(site.path), requests)
    deploy = deploy_side(site)
    known = _known_hosts(site.path)
    contacts: dict[str, Contact] = {}
    try:
        _judge_addresses(site, [request for request in requests if request.name not in failed], failed)
        left = [request for request in requests if request.name not in failed]
        for request, outcome in _each(reach, left):
            if isinstance(outcome, CloudctlError):
                failed[request.name] = outcome
            else:
                contacts[request.name] = outcome
        reached = dict(contacts)
        asking = any(not contact.request.fingerprint for contact in reached.values())
        if asking:
            # People take their time, and a server waits for a login only so long.
            for contact in reached.values():
                contact.close()
        for name, contact in reached.items():
            try:
                _judge_key(contact, known, reached, confirm, say)
            except CloudctlError as error:
                failed[name] = error
                contacts.pop(name).close()
        if asking:
            for contact, outcome in _each(_again, list(contacts.values())):
                if isinstance(outcome, CloudctlError):
                    failed[contact.request.name] = outcome
                    del contacts[contact.request.name]
                else:
                    contacts[contact.request.name] = outcome
        ready: list[tuple[Session, Enrolled]] = []
        for contact, seen in _each(
            lambda contact: examine_or_resume(contact, deploy), list(contacts.values())
        ):
            if isinstance(seen, CloudctlError):
                failed[contact.request.name] = seen
            else:
                ready.append(seen)
        converted: set[str] = set()

        def work(item: tuple[Session, Enrolled]) -> None:
            convert(item[0], item[1].contact, deploy, say)
            converted.add(item[1].contact.request.name)

        try:
            for (_session, enrolled), answer in _each(work, ready):
                if isinstance(answer, CloudctlError):
                    failed[enrolled.contact.request.name] = answer
        except BaseException:
            for enrolled in _record(site, ready, converted, failed):
                say(f"{enrolled.contact.request.name}: enrolled before it broke off; it is in newnodes")
            raise
        done = _record(site, ready, converted, failed)
    finally:
        for contact in contacts.values():
            contact.close()
    return Result(done, failed)


def _plan(site: Site, text: str, requests: Sequence[Request]) -> tuple[str, dict[str, CloudctlError]]:
    """Return the inventory with the servers that it can take, and by name why it cannot take the others."""

    def added(text: str, requests: Sequence[Request], chosen: Sequence[Request] = ()) -> str:
        text = planned_inventory(site, text, requests, chosen)
        refuse_invalid(site.path, text, ", ".join(request.name for request in requests))
        return text

    with contextlib.suppress(CloudctlError):
        return added(text, requests), {}
    chosen: list[Request] = []
    refused: dict[str, CloudctlError] = {}
    for request in requests:
        try:
            text = added(text, [request], chosen)
            chosen.append(request)
        except CloudctlError as error:
            error.where = error.where or request.name
            refused[request.name] = error
    return text, refused


def _record(
    site: Site,
    ready: Sequence[tuple[Session, Enrolled]],
    converted: Collection[str],
    failed: dict[str, CloudctlError],
) -> list[Enrolled]:
    """Pin the host keys of the servers that were converted and write them into the inventory; return those.

    Args:
        site: the loaded site.
        ready: all servers.
        converted: names of those that were converted.
        failed: gets those that the inventory cannot take.
    """
    done = [enrolled for _session, enrolled in ready if enrolled.contact.request.name in converted]
    if not done:
        return []
    write_atomically(
        site.path / KNOWN_HOSTS,
        pinned(_known_hosts(site.path), [entry.contact for entry in done]),
        mode=0o644,
    )
    # Read again: an editor may have been at work meanwhile.
    before = read_text(site.path)
    text, refused = _plan(site, before, [entry.contact.request for entry in done])
    for name, error in refused.items():
        failed[name] = ApplyFailed(
            "enroll-unwritten",
            f"passwords are off and the deploy key is installed, but the inventory cannot take it: "
            f"{error.message}",
            where=name, hint="mend that, then the same command again: it goes on with the deploy key",
        )  # fmt: skip
    done = [entry for entry in done if entry.contact.request.name not in refused]
    if done:
        remember_empty(site, before)
        write_text(site.path, text)
        for entry in done:
            # Another machine of this name may have been taken out by hand while it was joining.
            journal.drop(site.path, journal.ADD, entry.contact.request.name)
    return done


@dataclass
class Result:
    """How enrolling ended."""

    done: list[Enrolled]
    failed: dict[str, CloudctlError]


def _known_hosts(site: Path) -> str:
    path = site / KNOWN_HOSTS
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _judge_addresses(site: Site, requests: Sequence[Request], failed: dict[str, CloudctlError]) -> None:
    known = {node.name: node.address for node in site.nodes.values()}
    answers = arp.ask([request.address for request in requests], known.values())
    for request in requests:
        try:
            arp.judge(request.name, request.address, answers or {}, known)
        except CheckFailed as error:
            failed[request.name] = error


def _judge_key(
    contact: Contact, known: str, contacts: Mapping[str, Contact], confirm: Confirm, say: Say
) -> None:
    request = contact.request
    check_host_key(known, request, contact.key_data)
    for other in contacts.values():
        if other is not contact and other.key_data == contact.key_data:
            raise CheckFailed(
                "host-key-twice", f"{other.request.name} has the same host key", where=request.name,
                hint="one was cloned from the other: make a host key of its own on one of them",
            )  # fmt: skip
    say(f"{request.name}: {request.address} has the {contact.key_type} host key {contact.fingerprint}")
    if request.fingerprint:
        if not same_fingerprint(request.fingerprint, contact.fingerprint):
            raise CheckFailed(
                "fingerprint-differs",
                f"the host key is {contact.fingerprint}, given was {request.fingerprint}",
                where=request.name,
                hint="another machine answers at this address, or the fingerprint is of another key: "
                "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the server's console",
            )
    elif not confirm(contact):
        raise CheckFailed("fingerprint-refused", "the host key was not accepted", where=request.name)


def _name_of(item: Any) -> str | None:
    """Return the name of the server that an item of ``_each`` is about."""
    if isinstance(item, tuple):
        item = item[1].contact
    request = item if isinstance(item, Request) else getattr(item, "request", None)
    return request.name if request is not None else None


def _each(work: Callable[[Any], Any], items: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Do it to all at the same time; return each with its result, or with the error it ended with."""

    def attempt(item: Any) -> tuple[Any, Any]:
        try:
            return item, work(item)
        except CloudctlError as error:
            error.where = error.where or _name_of(item)
            return item, error

    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(items))) as pool:
        return list(pool.map(attempt, items))
