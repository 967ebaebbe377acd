"""The SSH connections that a run leaves behind are told to end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from cloudctl.runner import end_connections


def test_every_master_is_told_to_end(tmp_path: Path) -> None:
    got: list[bytes] = []

    def master(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x04")
            got.append(peer.recv(100))

    servers = []
    for name in ("a", "b"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / name))
        server.listen()
        servers.append(server)
        threading.Thread(target=master, args=(server,), daemon=True).start()
    (tmp_path / "no-socket").write_text("")
    end_connections(tmp_path)
    assert got == [b"\0\0\0\x08\0\0\0\x01\0\0\0\x04\0\0\0\x08\x10\0\0\x05\0\0\0\0"] * 2
    for server in servers:
        server.close()


def test_no_directory_is_no_error(tmp_path: Path) -> None:
    end_connections(tmp_path / "absent")
