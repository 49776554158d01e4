"""Health check of the daemon in this container; for HEALTHCHECK and exec probes.

::

    python -m smtpd_fork.cli.health

It reads the command line of process 1 and its own environment as the daemon does, connects to the
first listen address of the daemon, waits for the greeting and sends QUIT. The exit status is 0
after a greeting or a 4yz reply: a daemon without a free connection slot is healthy. Otherwise it is
1, with the reason in one line.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from smtpd_fork.cli.command import command
from smtpd_fork.cli.names import PROGRAM
from smtpd_fork.cli.setting_sources import SettingSources
from smtpd_fork.config import DaemonConfig
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.listeners import ANY, Address
from smtpd_fork.listeners.bind import wanted_addresses

__all__ = ["daemon_arguments", "main", "probe"]

SECONDS = 4.0
"""Time limit of the health check; less than the image's --timeout, so that the reason is
printed."""

MAX_GREETING = 1024
"""Bytes; a line of a reply has 512 (RFC 5321 4.5.3.1.5)."""

_NO_ADDRESS = b"PROXY UNKNOWN\r\n"
"""A PROXY header of a health check, without a client."""

_LOOPBACK = {ANY: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared only


def main() -> int:
    """Return 0 if the daemon is healthy, else 1."""
    try:
        address = _address(daemon_arguments(_first_command_line()))
        reply = probe(address)
    except (OSError, SmtpdForkError, click.ClickException) as error:
        sys.stdout.write(f"unhealthy: {error}\n")
        return 1
    healthy = reply[:1] in {"2", "4"}
    state = "healthy" if healthy else "unhealthy"
    sys.stdout.write(f"{state}: {address}: {reply or 'no greeting'}\n")
    return 0 if healthy else 1


def _first_command_line() -> bytes:
    try:
        return Path("/proc/1/cmdline").read_bytes()
    except FileNotFoundError:  # /proc is not mounted, or hides processes of other users
        return b""


def daemon_arguments(command_line: bytes) -> list[str]:
    """Return the arguments of the daemon on a command line in the form of /proc.

    Before the name of the daemon there may be an interpreter, or an init with its arguments. If
    process 1 is another program, the result is empty, and only the environment is used.
    """
    words = command_line.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    for index, word in enumerate(words):
        if Path(word).name == PROGRAM:
            return words[index + 1 :]
    return []


def _address(arguments: Sequence[str]) -> Address:
    """Return the first address that the daemon listens on; a TCP address before a unix socket.

    :raises click.ClickException: the arguments cannot be read
    :raises SmtpdForkError: a setting cannot be read
    """
    given = SettingSources.of(command.make_context(PROGRAM, list(arguments))).values
    config = DaemonConfig.build({name: given.get(name) for name in ("listen", "port")})
    return min(
        wanted_addresses(config), key=lambda address: (address.path is not None, address.proxy)
    )


def probe(address: Address, seconds: float = SECONDS) -> str:
    """Connect to *address*, send QUIT, and return the greeting; empty if there was none.

    :raises OSError: no daemon answers, or not in time
    """
    with _connect(address, seconds) as sock:
        if address.proxy:
            sock.sendall(_NO_ADDRESS)
        with _with_tls(sock) if address.tls else sock as line:
            greeting = _greeting(line)
            if greeting.startswith("2"):
                # Wait until the daemon has closed, so that its connection slot is free again.
                line.sendall(b"QUIT\r\n")
                while line.recv(MAX_GREETING):
                    pass
    return greeting


def _greeting(line: socket.socket) -> str:
    received = b""
    while b"\n" not in received and len(received) < MAX_GREETING:
        if not (chunk := line.recv(MAX_GREETING)):
            break
        received += chunk
    return received.partition(b"\n")[0].decode("ascii", "replace").strip()


def _connect(address: Address, seconds: float) -> socket.socket:
    if address.path is None:
        host = _LOOPBACK.get(address.host, address.host)
        return socket.create_connection((host, address.port), timeout=seconds)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(seconds)
        sock.connect(str(address.path))
    except BaseException:
        sock.close()
        raise
    return sock


def _with_tls(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    # The probe checks whether the daemon answers, not its certificate.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


if __name__ == "__main__":
    sys.exit(main())
