"""A VM's console as a browser opens it: the page, the websocket, and the first words of the VNC server."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
import urllib.parse
from pathlib import Path

from cloudctl.verify.steps import StepFailed

_WEBSOCKET_KEY_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # fixed by RFC 6455


def websocket_target(url: str) -> str:
    """Return what the console page asks the websocket for, from the page's URL.

    >>> websocket_target("https://10.0.0.1:6080/vnc_lite.html?path=%3Ftoken%3Dabc")
    '/?token=abc'
    """
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    if "path" in query:
        return "/" + query["path"][0].lstrip("/")
    if "token" in query:
        return "/websockify?token=" + query["token"][0]
    raise StepFailed("the console's URL carries no token")


def parse_frame(data: bytes) -> tuple[int, bytes] | None:
    """Return the first websocket frame in ``data`` as (opcode, payload), None while it is incomplete."""
    if len(data) < 2:
        return None
    opcode, length, offset = data[0] & 0x0F, data[1] & 0x7F, 2
    if length == 126:
        if len(data) < 4:
            return None
        length, offset = struct.unpack(">H", data[2:4])[0], 4
    elif length == 127:
        if len(data) < 10:
            return None
        length, offset = struct.unpack(">Q", data[2:10])[0], 10
    payload = data[offset : offset + length]
    return (opcode, payload) if len(payload) == length else None


def try_console(url: str, ca: Path | None, *, timeout: float = 20) -> str:
    """Open a console's page and its websocket.

    Args:
        url: as Nova gives it.
        ca: certificate of the CA to trust; None for the system's.
        timeout: seconds for each answer.

    Returns:
        The VNC server's banner.

    Raises:
        StepFailed: one of them does not answer as it should.
    """
    parts = urllib.parse.urlsplit(url)
    status = _page(parts, ca, timeout)
    if status != 200:
        raise StepFailed(
            f"the console's page answers {status} at {parts.scheme}://{parts.netloc}{parts.path}"
        )
    return _banner(parts, websocket_target(url), ca, timeout)


def _connect(parts: urllib.parse.SplitResult, ca: Path | None, timeout: float) -> socket.socket:
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    try:
        plain = socket.create_connection((host, parts.port or (443 if secure else 80)), timeout)
        if not secure:
            return plain
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        return context.wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise StepFailed(f"no connection to the console at {parts.netloc}: {error}") from error


def _page(parts: urllib.parse.SplitResult, ca: Path | None, timeout: float) -> int:
    with _connect(parts, ca, timeout) as connection:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        line = _until(connection, b"\r\n", timeout).split(b"\r\n")[0].split()
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else 0


def _banner(parts: urllib.parse.SplitResult, target: str, ca: Path | None, timeout: float) -> str:
    key = base64.b64encode(os.urandom(16)).decode()
    expected = base64.b64encode(hashlib.sha1((key + _WEBSOCKET_KEY_SUFFIX).encode()).digest())
    with _connect(parts, ca, timeout) as connection:
        connection.sendall(
            (
                f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nOrigin: {parts.scheme}://{parts.netloc}\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: binary\r\n\r\n"
            ).encode()
        )
        head, _separator, data = _until(connection, b"\r\n\r\n", timeout).partition(b"\r\n\r\n")
        first = head.split(b"\r\n")[0].decode(errors="replace")
        if " 101 " not in f"{first} " or expected.lower() not in head.lower():
            raise StepFailed(f"the console refuses the websocket: {first}")
        received = b""
        while True:
            frame = parse_frame(data)
            if frame is None:
                data += _receive(connection, timeout)
                continue
            opcode, payload = frame
            header = 2 + (0 if len(payload) < 126 else 2 if len(payload) < 65536 else 8)
            data = data[header + len(payload) :]
            if opcode == 8:
                raise StepFailed(f"the console closed the websocket: {payload[2:].decode(errors='replace')}")
            if opcode in (0, 1, 2):
                received += payload
            if len(received) >= 12:
                break
    if not received.startswith(b"RFB "):
        raise StepFailed(f"the console does not speak VNC: {received[:20]!r}")
    return received[:12].decode(errors="replace").strip()


def _receive(connection: socket.socket, timeout: float) -> bytes:
    connection.settimeout(timeout)
    try:
        data = connection.recv(65536)
    except TimeoutError as error:
        raise StepFailed(f"the console says nothing for {timeout:.0f} s") from error
    except OSError as error:
        raise StepFailed(f"the console broke the connection: {error}") from error
    if not data:
        raise StepFailed("the console closed the connection")
    return data


def _until(connection: socket.socket, mark: bytes, timeout: float) -> bytes:
    data = b""
    while mark not in data:
        data += _receive(connection, timeout)
        if len(data) > 1 << 20:
            raise StepFailed("the console answers endlessly")
    return data
