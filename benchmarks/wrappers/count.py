"""SSH's ProxyCommand for a benchmark: carries one connection and counts its bytes, both ways.

usage: count.py DIRECTORY HOST PORT

The numbers are on disk after every piece, so that a connection that is killed is counted too.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys


def main() -> None:
    """Carry standard input to the host and back until one side ends."""
    directory, host, port = sys.argv[1:]
    peer = socket.create_connection((host, int(port)), 10)
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    record = os.open(f"{directory}/bytes.{host}.{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
    sent = received = 0
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(peer, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                data = os.read(0, 65536)
                peer.sendall(data)
                sent += len(data)
            else:
                data = peer.recv(65536)
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(1, rest) :]
                received += len(data)
            os.pwrite(record, f"{sent:20d} {received:20d}\n".encode(), 0)
            if not data:
                return


if __name__ == "__main__":
    main()
