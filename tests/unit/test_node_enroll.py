"""First contact with a new server: what is refused, and that nothing is changed then."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import paramiko
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from site_support import make_site

from cloudctl.errors import CheckFailed, ConfigError, Unreachable, UsageError
from cloudctl.node import arp, enroll, journal
from cloudctl.node.enroll import Request
from cloudctl.node.inventory import read_text, write_text
from cloudctl.operations.steps import DONE
from cloudctl.site.edit_inventory import add_host
from cloudctl.site.load import load_site
from cloudctl.site.model import Site

PASSWORD = "right-horse-battery"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    path = make_site(tmp_path)
    monkeypatch.setattr(enroll.arp, "ask", lambda addresses, others: {})
    connect = socket.create_connection
    # Every address of the management network is this machine's.
    monkeypatch.setattr(
        enroll.socket, "create_connection", lambda to, timeout: connect(("127.0.0.1", to[1]), timeout)
    )
    (path / "ssh").mkdir(exist_ok=True)
    key = path / "ssh" / "id_ed25519"
    if not key.exists():
        from cloudctl.verify.guest import make_keypair

        private, public = make_keypair()
        key.write_text(private)
        key.with_suffix(".pub").write_text(public + "\n")
    return load_site(path, with_secrets=False)


# -- the inventory -------------------------------------------------------------------------------


def plan(site: Site, *requests: Request) -> str:
    return enroll.planned_inventory(site, (site.path / "inventory/hosts.yml").read_text(), requests)


def test_a_server_comes_into_newnodes_and_all_else_stays(site: Site) -> None:
    before = (site.path / "inventory/hosts.yml").read_text()
    after = plan(site, Request("compute09", "10.10.10.29", "compute"))
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line.strip() for line in added][-1] == "compute09: {ansible_host: 10.10.10.29, role: compute}"
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in after.splitlines() if "#" in line
    ]
    hosts = yaml.safe_load(after)["all"]["children"]["newnodes"]["hosts"]
    assert hosts == {"compute09": {"ansible_host": "10.10.10.29", "role": "compute"}}


@pytest.mark.parametrize(
    ("request_", "ref"),
    [
        (Request("ctl01", "10.10.10.99"), "node-exists"),
        (Request("compute09", "10.10.10.11"), "address-in-use"),
        (Request("compute09", "10.10.10.250"), "address-in-use"),  # a virtual address
        (Request("compute09", "10.10.20.11"), "address-in-use"),  # a controller's on another network
        (Request("Compute_9", "10.10.10.99"), "node-name"),
        (Request("mons", "10.10.10.99"), "node-name"),  # a group of the inventory
        (Request("all", "10.10.10.99"), "node-name"),
        (Request("localhost", "10.10.10.99"), "node-name"),
        *[
            (Request("compute09", address), "address-malformed")
            for address in (
                "",
                "10.10.10.023",
                "10.10.2582",
                "0xa.10.10.22",
                "10..10.10.22",
                "fd00::29",
                "c9.lan",
                "10.10.10.29 ",
            )
        ],
    ],
)
def test_what_is_taken_is_refused(site: Site, request_: Request, ref: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(site, request_)
    assert caught.value.ref == ref


def test_two_of_a_file_with_one_address_are_refused(site: Site) -> None:
    with pytest.raises(UsageError, match=r"10\.10\.10\.29 is the address of compute09"):
        plan(site, Request("compute09", "10.10.10.29"), Request("compute10", "10.10.10.29"))


@pytest.mark.parametrize("address", ["10.10.11.29", "10.10.10.0", "10.10.10.255"])
def test_an_address_with_which_the_site_would_break_is_refused_before_contact(
    site: Site, server: Server, address: str
) -> None:
    before = read_text(site.path)
    (error,) = enrolled(site, replace(request_to(server), address=address)).failed.values()
    assert (error.ref, error.where, error.exit_code) == ("site-would-break", "compute09", 3)
    assert address in error.message
    assert server.log == []
    assert read_text(site.path) == before


def test_a_file_of_many(tmp_path: Path) -> None:
    path = tmp_path / "new.yml"
    path.write_text(
        "nodes:\n  compute09: {address: 10.10.10.29}\n"
        "  osd09: {address: 10.10.10.219, role: storage, user: root}\n"
    )
    found = enroll.read_requests(path, Request("", "", "compute", "me", "secret"))
    assert [(r.name, r.role, r.user, r.password) for r in found] == [
        ("compute09", "compute", "me", "secret"),
        ("osd09", "storage", "root", "secret"),
    ]
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "[]",
        "[{name: x}]",
        "[{name: x, address: 1.2.3.4, rolle: compute}]",
        "[{name: x, address: 1.2.3.4, role: control}]",
        "x: 1.2.3.4",
        "[{name: x, address: 1.2.3.4, port: true}]",
        "[{name: x, address: 1.2.3.4, port: 0}]",
        "[{name: x, address: 1.2.3.4}, {name: x, address: 1.2.3.5}]",
        "x: {address: 1.2.3.4}\nx: {address: 1.2.3.5}",
        "# gr\xfcn\n[{name: x, address: 1.2.3.4}]",
    ],
)
def test_a_file_that_is_no_list_of_nodes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "new.yml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        enroll.read_requests(path, Request("", ""))
    assert str(caught.value.where).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        enroll.read_requests(tmp_path / "new.yml", Request("", ""))
    assert "in the site's directory" in str(caught.value.hint)


# -- whose machine is it -------------------------------------------------------------------------

KNOWN = "10.10.10.11,ctl01 ssh-ed25519 AAAA1\n10.10.10.29,compute09 ssh-ed25519 AAAA2\n"


def test_the_host_key_of_a_known_node_is_refused() -> None:
    with pytest.raises(CheckFailed, match="the host key of ctl01"):
        enroll.check_host_key(KNOWN, Request("compute10", "10.10.10.30"), "AAAA1")


def test_another_key_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(CheckFailed) as caught:
        enroll.check_host_key(KNOWN, Request("compute09", "10.10.10.29"), "AAAA3")
    assert caught.value.ref == "host-key-changed"
    assert caught.value.where == "known_hosts:2"


def test_a_new_key_and_the_pinned_one_are_good() -> None:
    enroll.check_host_key(KNOWN, Request("compute10", "10.10.10.30"), "AAAA3")
    enroll.check_host_key(KNOWN, Request("compute09", "10.10.10.29"), "AAAA2")


def test_a_host_key_is_pinned_where_openssh_looks_for_it() -> None:
    usual = enroll.Contact(Request("compute09", "10.10.10.29"), None, "ssh-ed25519", "AAAA")
    assert usual.line == "10.10.10.29,compute09 ssh-ed25519 AAAA"
    other = replace(usual, request=Request("compute09", "10.10.10.29", port=2222))
    assert other.line == "[10.10.10.29]:2222,[compute09]:2222 ssh-ed25519 AAAA"
    # Any of these names is the server itself.
    for line in (usual.line, other.line, "[compute09]:2222 ssh-ed25519 AAAA"):
        enroll.check_host_key(line, other.request, "AAAA")


def test_fingerprints_as_people_copy_them() -> None:
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
    # As ssh-keygen -lf shows this key.
    shown = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
    assert enroll.fingerprint(key) == shown
    assert enroll.same_fingerprint(shown.removeprefix("SHA256:") + "=", shown)
    assert not enroll.same_fingerprint("SHA256:" + "A" * 43, shown)


def test_two_machines_at_one_address() -> None:
    with pytest.raises(CheckFailed) as caught:
        arp.judge("n", "10.0.0.9", {"10.0.0.9": {"02:00:00:00:00:01", "02:00:00:00:00:02"}}, {})
    assert caught.value.ref == "address-duplicate"


def test_an_address_that_a_known_node_answers() -> None:
    answers = {"10.0.0.9": {"02:00:00:00:00:01"}, "10.0.0.1": {"02:00:00:00:00:01"}}
    with pytest.raises(CheckFailed, match="answered by ctl01"):
        arp.judge("n", "10.0.0.9", answers, {"ctl01": "10.0.0.1"})
    arp.judge("n", "10.0.0.9", {**answers, "10.0.0.1": {"02:00:00:00:00:03"}}, {"ctl01": "10.0.0.1"})


def test_every_address_is_asked_for_on_its_own_link(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"10.0.0.9": ("eth1", "10.0.0.2"), "10.0.1.9": ("eth2", "10.0.1.2")}
    asked: list[tuple[str, ...]] = []

    def ask_on(device: str, own: str, wanted: Sequence[str]) -> arp.Answers:
        asked.append((device, own, *wanted))
        return {address: {device} for address in wanted}

    monkeypatch.setattr(arp, "_route", routes.get)
    monkeypatch.setattr(arp, "_ask_on", ask_on)
    # The first one is behind a router.
    found = arp.ask(["192.0.2.9", "10.0.0.9", "10.0.1.9"], ["10.0.0.1"])
    assert asked == [
        ("eth1", "10.0.0.2", "10.0.0.9", "10.0.0.1"),
        ("eth2", "10.0.1.2", "10.0.1.9", "10.0.0.1"),
    ]
    assert found == {"10.0.0.9": {"eth1"}, "10.0.1.9": {"eth2"}, "10.0.0.1": {"eth1", "eth2"}}
    assert arp.ask(["192.0.2.9"]) is None


def test_an_arp_reply_is_read_and_a_question_is_not() -> None:
    mac = bytes.fromhex("020000000001")
    question = arp.request(mac, "10.0.0.2", "10.0.0.9")
    assert arp.parse(question) is None
    reply = question[:20] + b"\0\2" + question[22:]
    assert arp.parse(reply) == ("10.0.0.2", "02:00:00:00:00:01")
    assert arp.parse(b"short") is None


# -- system and clock ----------------------------------------------------------------------------

FACTS = """time=1000.0
os.ID=debian
os.VERSION_ID="13"
os.PRETTY_NAME="Debian"
python=/usr/bin/python3
systemd=yes
"""


def judge(text: str, asked: float = 999.9, answered: float = 1000.1) -> list[str]:
    return enroll.judge_facts(Request("n", "10.0.0.9"), enroll.parse_facts(text), asked, answered)


def test_a_good_server() -> None:
    assert judge(FACTS) == []


@pytest.mark.parametrize(
    ("old", "new", "ref"),
    [
        ("os.ID=debian", "os.ID=centos", "os-unsupported"),
        ('"13"', '"11"', "os-unsupported"),
        ("python=/usr/bin/python3", "python=", "python-missing"),
        ("systemd=yes", "systemd=", "systemd-missing"),
        ("time=1000.0", "time=1060.0", "clock-skew"),
        ("time=1000.0", "time=940.0", "clock-skew"),
    ],
)
def test_what_keeps_a_server_from_being_a_node(old: str, new: str, ref: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        judge(FACTS.replace(old, new))
    assert caught.value.ref == ref


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert judge(FACTS, asked=940.0, answered=1060.0) == []
    assert "3.0 s ahead" in judge(FACTS.replace("1000.0", "1003.1"))[0]


# -- the first login, against an SSH server ------------------------------------------------------


class Server(paramiko.ServerInterface):
    def __init__(self, log: list[str], *, passwords: bool = True) -> None:
        self.log = log
        self.passwords = passwords

    def get_allowed_auths(self, username: str) -> str:
        return "password" if self.passwords else "publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        self.log.append(f"password of {username}")
        good = self.passwords and password == PASSWORD
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED


S = TypeVar("S", bound=Server)


class Machine(Server):
    """A whole server: what enrolling runs is played.

    Attributes:
        known: whether the deploy key is installed.
        breaks: connections end when passwords were just switched off.
        silent_at: from which moment on it says nothing: login, request or command.
        on_undo: exit code of what takes back.
    """

    known = False
    breaks = False
    silent_at = ""
    on_undo = 0

    def __init__(self, log: list[str], public: str) -> None:
        super().__init__(log)
        self.public = public
        self.transports: list[paramiko.Transport] = []
        self.over = threading.Event()

    def check_auth_password(self, username: str, password: str) -> int:
        if self.silent_at == "login":
            self.over.wait(20)
        return super().check_auth_password(username, password)

    def get_allowed_auths(self, username: str) -> str:
        return "password,publickey" if self.passwords else "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = self.known and key.get_base64() == self.public.split()[1]
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.silent_at == "request":
            self.over.wait(20)
        if not self.silent_at:
            threading.Thread(target=self.answer, args=(channel, command.decode()), daemon=True).start()
        return True

    def answer(self, channel: paramiko.Channel, command: str) -> None:
        while channel.recv(1024):
            pass  # the client ends its input once it knows that the command runs
        out, code = "", 0
        if "os-release" in command:
            out = FACTS.replace("time=1000.0", f"time={time.time()}")
        elif "id -u" in command:
            out = "0"
        elif "echo added" in command:
            out, self.known = "present" if self.known else "added", True
        elif "closed()" in command:
            self.passwords = False
            if self.breaks:
                for transport in self.transports:
                    transport.close()
                return
        elif "rm -f /etc/ssh" in command:
            code = self.on_undo
            self.passwords = self.passwords or not code
        elif "grep -vxF" in command:
            self.known = False
        channel.sendall(out.encode())
        channel.send_exit_status(code)
        channel.close()


@pytest.fixture
def machine(site: Site) -> Iterator[Machine]:
    found = Machine([], (site.path / "ssh/id_ed25519.pub").read_text())
    yield from serve(found)
    found.over.set()


@pytest.fixture
def server() -> Iterator[Server]:
    """An SSH server on this machine; ``log`` says what clients tried."""
    yield from serve(Server([]))


def serve(found: S) -> Iterator[S]:
    listener = socket.create_server(("127.0.0.1", 0))
    found.port = listener.getsockname()[1]  # type: ignore[attr-defined]
    key = paramiko.ECDSAKey.generate()

    def accept() -> None:
        while True:
            try:
                connection, _peer = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            if isinstance(found, Machine):
                found.transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=found)

    threading.Thread(target=accept, daemon=True).start()
    yield found
    listener.close()


def enrolled(site: Site, *requests: Request) -> enroll.Result:
    return enroll.enroll(site, requests, confirm=lambda contact: True, say=lambda text: None)


def request_to(server: Server, **options: object) -> Request:
    values = {"user": "me", "password": PASSWORD, "port": server.port, **options}  # type: ignore[attr-defined]
    return Request("compute09", "10.10.10.29", "compute", **values)  # type: ignore[arg-type]


def test_a_wrong_password_is_tried_once(site: Site, server: Server) -> None:
    files = {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}
    result = enroll.enroll(
        site, [request_to(server, password="wrong")], confirm=lambda contact: True, say=lambda text: None
    )
    assert [error.ref for error in result.failed.values()] == ["password-refused"]
    assert server.log == ["password of me"]
    assert files == {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}


def test_a_server_without_password_logins_is_not_tried(site: Site, server: Server) -> None:
    server.passwords = False
    result = enroll.enroll(site, [request_to(server)], confirm=lambda contact: True, say=lambda text: None)
    assert [error.ref for error in result.failed.values()] == ["password-login-off"]


@pytest.mark.parametrize("given", ["", "SHA256:" + "A" * 43])
def test_without_the_right_fingerprint_no_password_is_sent(site: Site, server: Server, given: str) -> None:
    result = enroll.enroll(
        site, [request_to(server, fingerprint=given)], confirm=lambda contact: False, say=lambda text: None
    )
    (error,) = result.failed.values()
    assert error.ref == ("fingerprint-differs" if given else "fingerprint-refused")
    assert server.log == []


def test_two_servers_with_one_host_key_are_refused(site: Site, server: Server) -> None:
    clone = Request(**{**vars(request_to(server)), "name": "compute10", "address": "10.10.10.30"})
    result = enroll.enroll(
        site, [request_to(server), clone], confirm=lambda contact: True, say=lambda text: None
    )
    assert [error.ref for error in result.failed.values()] == ["host-key-twice"] * 2
    assert server.log == []


def test_a_connection_that_breaks_after_the_login_is_no_crash(site: Site, server: Server) -> None:
    result = enroll.enroll(site, [request_to(server)], confirm=lambda contact: True, say=lambda text: None)
    (error,) = result.failed.values()
    assert (error.ref, error.where) == ("connection-lost", "compute09")


def hosts(site: Site) -> str:
    return read_text(site.path)


def test_a_server_is_enrolled(site: Site, machine: Machine) -> None:
    result = enrolled(site, request_to(machine))
    assert (len(result.done), result.failed) == (1, {})
    assert (machine.passwords, machine.known, machine.log) == (False, True, ["password of me"])
    assert "compute09: {ansible_host: 10.10.10.29" in hosts(site)
    assert "10.10.10.29" in (site.path / "known_hosts").read_text()
    load_site(site.path, with_secrets=False)


def test_those_that_cannot_come_are_named_and_the_others_come(site: Site, machine: Machine) -> None:
    good = request_to(machine)
    bad = {
        "ctl01": "10.10.10.30",
        "compute11": "10.10.10.29",
        "compute12": "c12.lan",
        "compute13": "10.10.11.1",
    }
    others = [replace(good, name=name, address=address) for name, address in bad.items()]
    result = enrolled(site, others[0], good, *others[1:])
    assert [entry.contact.request.name for entry in result.done] == ["compute09"]
    assert {name: error.ref for name, error in result.failed.items()} == {
        "ctl01": "node-exists",
        "compute11": "address-in-use",  # the first one's of the file
        "compute12": "address-malformed",
        "compute13": "site-would-break",
    }
    assert machine.log == ["password of me"]
    assert [name for name in bad if f"{name}:" in hosts(site).partition("newnodes:")[2]] == []


def test_a_server_of_a_name_that_was_joining_once_begins_anew(site: Site, machine: Machine) -> None:
    journal.begin(site.path, journal.ADD, {"compute09": "compute"}).mark("register", DONE)
    assert enrolled(site, request_to(machine)).failed == {}
    assert journal.joining(load_site(site.path, with_secrets=False)) == {}
    assert journal.begin(site.path, journal.ADD, {"compute09": "compute"}).state("register") is None


def test_what_an_interrupted_run_left_is_gone_on_with_by_its_key(site: Site, machine: Machine) -> None:
    machine.passwords, machine.known = False, True
    assert enrolled(site, request_to(machine)).failed == {}
    assert machine.log == ["password of me"]  # and not once more
    assert "compute09:" in hosts(site)


def test_a_server_without_passwords_that_does_not_know_the_key_is_refused(
    site: Site, machine: Machine
) -> None:
    machine.passwords = False
    (error,) = enrolled(site, request_to(machine)).failed.values()
    assert (error.ref, machine.log) == ("password-login-off", ["password of me"])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as on a terminal; a shell's background job would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_servers_are_converted_leaves_none_unwritten(site: Site, machine: Machine) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "deploy key works" in text:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        enroll.enroll(site, [request_to(machine)], confirm=lambda contact: True, say=say)
    assert not machine.passwords
    assert "compute09:" in hosts(site) and "10.10.10.29" in (site.path / "known_hosts").read_text()
    assert said[-1] == "compute09: enrolled before it broke off; it is in newnodes"


def make_key(path: Path, kind: str, passphrase: bytes = b"") -> None:
    """Make a key pair as ssh-keygen writes it."""
    key: Any = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, lock)
    path.write_bytes(text)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    Path(f"{path}.pub").write_bytes(public + b"\n")


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_a_deploy_key_of_any_kind_that_the_inventory_names(
    site: Site, machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = site.path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    make_key(home / "key", kind)
    control = site.group("control")[0]
    control.vars["ansible_ssh_private_key_file"] = "~/key"  # type: ignore[index]
    machine.public = (home / "key.pub").read_text()
    assert enrolled(site, request_to(machine)).failed == {}


def test_a_deploy_key_with_a_passphrase_is_told_before_anything_is_done(site: Site, machine: Machine) -> None:
    key = site.path / "ssh/id_ed25519"
    make_key(key, "ed25519", b"secret")
    with pytest.raises(ConfigError) as caught:
        enrolled(site, request_to(machine))
    assert (caught.value.ref, caught.value.where, machine.log) == ("deploy-key-unusable", str(key), [])


def test_what_did_not_work_is_taken_back(
    site: Site, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise CheckFailed("password-login-on", "the server still offers password")

    monkeypatch.setattr(enroll, "_try_passwords", fail)
    (error,) = enrolled(site, request_to(machine)).failed.values()
    assert error.message == "the server still offers password; what was changed was taken back"
    assert (machine.passwords, machine.known) == (True, False)
    machine.on_undo = 1
    (error,) = enrolled(site, request_to(machine)).failed.values()
    assert "could not be taken back: it ended with 1" in error.message and not machine.passwords


def test_a_lost_connection_is_not_told_as_taken_back(site: Site, machine: Machine) -> None:
    machine.breaks = True
    (error,) = enrolled(site, request_to(machine)).failed.values()
    assert (error.ref, error.exit_code) == ("enroll-failed", 6)
    assert "could not be taken back" in error.message and not machine.passwords
    assert "compute09:" not in hosts(site)
    machine.breaks = False
    assert enrolled(site, request_to(machine)).failed == {}
    assert "compute09:" in hosts(site)


def test_an_inventory_that_was_edited_meanwhile_keeps_no_server_unpinned(
    site: Site, machine: Machine
) -> None:
    before = hosts(site)

    def say(text: str) -> None:
        if "switched off" in text:
            write_text(site.path, add_host(before, "compute", "compute09", {"ansible_host": "10.10.10.30"}))

    result = enroll.enroll(site, [request_to(machine)], confirm=lambda contact: True, say=say)
    (error,) = result.failed.values()
    assert (result.done, error.ref, error.exit_code) == ([], "enroll-unwritten", 6)
    assert "10.10.10.29" in (site.path / "known_hosts").read_text()
    write_text(site.path, before)
    assert enrolled(site, request_to(machine)).failed == {}
    assert "compute09:" in hosts(site)


@pytest.mark.parametrize(
    ("moment", "ref"),
    [("login", "login-failed"), ("request", "connection-lost"), ("command", "connection-lost")],
)
def test_a_server_that_goes_silent_is_not_waited_for_without_end(
    site: Site, machine: Machine, monkeypatch: pytest.MonkeyPatch, moment: str, ref: str
) -> None:
    monkeypatch.setattr(enroll, "PATIENCE", 1.0)
    machine.silent_at = moment
    began = time.monotonic()
    (error,) = enrolled(site, request_to(machine)).failed.values()
    machine.over.set()
    assert (error.ref, error.where, error.exit_code) == (ref, "compute09", 5)
    assert "silent for 1 s" in error.message
    assert time.monotonic() - began < 15


def test_a_server_does_not_wait_for_a_login_while_people_compare_fingerprints(
    site: Site, machine: Machine
) -> None:
    def confirm(contact: enroll.Contact) -> bool:
        assert not contact.transport.is_active()
        return True

    result = enroll.enroll(site, [request_to(machine)], confirm=confirm, say=lambda text: None)
    assert (len(result.done), machine.log) == (1, ["password of me"])


def test_a_host_key_that_changes_after_it_was_accepted_is_refused(
    site: Site, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = enroll.reach

    def another(request: Request) -> enroll.Contact:
        return replace(reach(request), key_data="AAAA")

    def confirm(contact: enroll.Contact) -> bool:
        monkeypatch.setattr(enroll, "reach", another)
        return True

    result = enroll.enroll(site, [request_to(machine)], confirm=confirm, say=lambda text: None)
    assert [error.ref for error in result.failed.values()] == ["host-key-changed"]
    assert machine.log == []


def test_nobody_answers(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    result = enroll.enroll(
        site,
        [Request("compute09", "10.10.10.29", port=port)],
        confirm=lambda contact: True,
        say=lambda text: None,
    )
    (error,) = result.failed.values()
    assert isinstance(error, Unreachable)


def test_a_moment_in_which_nobody_listens_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [Unreachable("node-unreachable", "refused"), "password", "publickey"]

    class Transport:
        def __init__(self, allowed: str) -> None:
            self.allowed = allowed

        def auth_none(self, user: str) -> None:
            raise paramiko.BadAuthenticationType("no", [self.allowed])

        def close(self) -> None:
            pass

    request = Request("compute09", "10.0.0.9", user="me")

    def reach(request: Request) -> enroll.Contact:
        answer = answers.pop(0)
        if isinstance(answer, Unreachable):
            raise answer
        return enroll.Contact(request, Transport(str(answer)), "ssh-ed25519", "AAAA")

    monkeypatch.setattr(enroll, "reach", reach)
    monkeypatch.setattr(enroll.time, "sleep", lambda seconds: None)
    enroll._try_passwords(
        enroll.Contact(request, None, "ssh-ed25519", "AAAA"), enroll.Deploy("root", Path(), "")
    )
    assert answers == []
