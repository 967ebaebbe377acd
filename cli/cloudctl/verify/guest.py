"""Reaching into the guest over its floating IP: ping, HTTP and SSH."""

from __future__ import annotations

import contextlib
import io
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloudctl.verify.steps import StepFailed

if TYPE_CHECKING:
    import paramiko


def make_keypair() -> tuple[str, str]:
    """Return a new ed25519 key pair as (private key, public key) in OpenSSH's format."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def ping(address: str) -> bool:
    """Tell whether the address answers one ping within a second."""
    command = ["ping", "-n", "-c", "1", "-W", "1", address]
    try:
        return (
            subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5, check=False
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def http_get(address: str, path: str, *, timeout: float = 3) -> str:
    """Return the body of ``http://address/path``.

    Raises:
        OSError: no connection, or an answer other than 200.
    """
    # A proxy of the deploy node's environment has no business with guests.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=timeout) as answer:
            body: bytes = answer.read(65536)
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code} for {path}") from error
    return body.decode(errors="replace").strip()


def accepts(address: str, port: int, *, timeout: float = 2) -> bool:
    """Tell whether a TCP connection can be opened."""
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def ssh(
    address: str, private_key: str, *, user: str = "root", timeout: float = 10
) -> Iterator[paramiko.SSHClient]:
    """Yield an SSH client that is logged in to the guest.

    Raises:
        OSError, paramiko.SSHException: no connection, or the key is refused.
    """
    import paramiko

    client = paramiko.SSHClient()
    # The guest was made a moment ago: nobody can know its host key.
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    try:
        client.connect(
            address,
            username=user,
            pkey=paramiko.Ed25519Key.from_private_key(io.StringIO(private_key)),
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            allow_agent=False,
            look_for_keys=False,
        )
        yield client
    finally:
        client.close()


def run(client: paramiko.SSHClient, command: str, *, timeout: float = 60) -> str:
    """Run a shell command in the guest and return what it printed.

    Raises:
        StepFailed: it ended with another code than 0.
    """
    # One shell, both streams together: dropbear and busybox need no more.
    _stdin, stdout, _stderr = client.exec_command(f"sh -c {shlex.quote(command)} 2>&1", timeout=timeout)
    text = stdout.read().decode(errors="replace").strip()
    code = stdout.channel.recv_exit_status()
    if code != 0:
        raise StepFailed(f"in the guest, '{command.splitlines()[0]}' ended with {code}: {text[-300:]}")
    return text


def disk_script(device: str, token: str) -> str:
    """Return the shell script that makes a filesystem on ``device``, writes ``token`` and reads it back.

    It unmounts in between, so that what is read comes from the volume and not from the guest's memory.
    """
    return f"""set -e
test -b {device}
for make in mkfs.ext4 mke2fs mkfs.ext2 mkfs.vfat; do
  command -v $make >/dev/null || continue
  case $make in mkfs.vfat) force= ;; *) force=-F ;; esac
  $make $force {device} >/dev/null && made=$make && break
done
test -n "$made" || {{ echo "no program to make a filesystem"; exit 1; }}
directory=/tmp/cloudctl-verify
mkdir -p $directory
mount {device} $directory
echo {token} > $directory/token
dd if=/dev/urandom of=$directory/data bs=65536 count=64 2>/dev/null
sum=$(md5sum < $directory/data)
sync
umount $directory
echo 3 > /proc/sys/vm/drop_caches || true
mount {device} $directory
test "$(cat $directory/token)" = {token}
test "$(md5sum < $directory/data)" = "$sum"
umount $directory
echo $made"""


def new_disk(before: list[str], after: list[str]) -> str:
    """Return the device that appeared between two lists of block devices.

    Raises:
        StepFailed: none or several appeared.
    """
    new = sorted(set(after) - set(before))
    if len(new) != 1:
        raise StepFailed(f"expected one new disk in the guest, found {', '.join(new) or 'none'}")
    return f"/dev/{new[0]}"
