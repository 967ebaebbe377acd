"""Messages in a quorum queue: which ones the bus confirmed, and whether they are still there.

with Bus() as bus:              # publishes until the block ends, by whichever member takes it
    bus.wait_for(50)
    ...the outage, the reset...
bus.check()
bus.drop()
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import threading
import time
from types import TracebackType

from conftest import PREFIX, lab_nodes, podman, run_on

CLIENT = "keystone"
"""A container with a client's library; it shares its node's network."""
PROGRAM = """
import sys, time, amqp
action, name, password, *hosts = sys.argv[1:]
def connect():
    while True:
        for host in hosts:
            try:
                link = amqp.Connection(
                    f"{host}:5672", userid=name, password=password, virtual_host=name,
                    confirm_publish=True, connect_timeout=3, read_timeout=15, write_timeout=15,
                )
                link.connect()
                return link, link.channel()
            except (OSError, amqp.exceptions.AMQPError):
                continue
        time.sleep(0.2)
link, channel = connect()
channel.queue_declare(name, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
number = 0
while action == "publish":
    number += 1
    message = amqp.Message(str(number), delivery_mode=2)
    while True:
        try:
            channel.basic_publish(message, routing_key=name, mandatory=True)
            break
        except (OSError, amqp.exceptions.AMQPError) as error:
            # Not confirmed: it is sent again, so that it may be there twice.
            print(f"# {type(error).__name__} {error}", file=sys.stderr, flush=True)
            link, channel = connect()
    print(number, flush=True)
    time.sleep(0.05)
while (message := channel.basic_get(name, no_ack=True)) is not None:
    print(message.body)
"""


def ctl(node: str, *words: str) -> str:
    """Run the bus's command line on a node."""
    return run_on(node, f"docker exec --user rabbitmq rabbitmq rabbitmqctl --quiet {' '.join(words)}")


class Bus:
    """A publisher of its own account, vhost and queue."""

    def __init__(self) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self.confirmed: list[str] = []
        self.nodes = [name for name, role in lab_nodes().items() if role == "control"]
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[str] | None = None

    def _command(self, action: str, node: str) -> list[str]:
        show = "ip -4 -o addr show eth0 | awk '{print $4}'"
        hosts = [run_on(member, show).split()[0].partition("/")[0] for member in self.nodes]
        base = [
            *podman(),
            "exec",
            "-i",
            PREFIX + node,
            "docker",
            "exec",
            "-i",
            CLIENT,
            "python3",
            "-c",
            PROGRAM,
        ]
        return [*base, action, self.name, self._password, *hosts]

    def __enter__(self) -> Bus:
        first = self.nodes[0]
        ctl(first, "add_vhost", self.name, "--default-queue-type", "quorum")
        ctl(first, "add_user", self.name, self._password)
        ctl(first, "set_permissions", "-p", self.name, self.name, "'.*'", "'.*'", "'.*'")
        self._process = subprocess.Popen(
            self._command("publish", first),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self.confirmed.append(line.strip())

    def wait_for(self, more: int, seconds: float = 60) -> None:
        """Wait until that many more messages were confirmed."""
        wanted = len(self.confirmed) + more
        deadline = time.monotonic() + seconds
        while len(self.confirmed) < wanted:
            assert time.monotonic() < deadline, (
                f"{len(self.confirmed)} of {wanted} messages after {seconds} s"
            )
            time.sleep(0.1)

    def stop(self) -> None:
        """End the publisher."""
        run_on(self.nodes[0], f"pkill -f '[p]ublish {self.name}'", check=False)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self._process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Read every message: all that were confirmed are there."""
        done = subprocess.run(
            self._command("read", self.nodes[1]), capture_output=True, text=True, timeout=120, check=True
        )
        lost = set(self.confirmed) - set(done.stdout.split())
        assert self.confirmed and not lost, f"{len(lost)} of {len(self.confirmed)} lost: {sorted(lost)[:10]}"

    def drop(self) -> None:
        """Remove the account and its vhost."""
        ctl(self.nodes[1], "delete_vhost", self.name)
        ctl(self.nodes[1], "delete_user", self.name)
