"""Health: whether the daemon in this container answers; for HEALTHCHECK and exec probes.

::

    python -m smtpd_fork.cli.health

It reads the command line of pid 1 and its own environment as the daemon did, connects to the first
listen address of the daemon, waits for the greeting and sends QUIT. The status is 0 after a
greeting, or after a 4xx: a daemon without a free connection slot is healthy. Otherwise it
is 1, with one line that says why.
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
"""For the whole of it; less than the image's --timeout, so that the reason is shown."""

MAX_GREETING = 1024
"""Bytes; a line of a reply has 512 (RFC 5321 4.5.3.1.5)."""

_NO_ADDRESS = b"PROXY UNKNOWN\r\n"
"""A PROXY header of a health check, without a client."""

_LOOPBACK = {ANY: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared only


def main() -> int:
    """Return 0 if the daemon is well, else 1."""
    try:
        address = _address(daemon_arguments(_first_command_line()))
        reply = probe(address)
    except (OSError, SmtpdForkError, click.ClickException) as error:
        sys.stdout.write(f"not well: {error}\n")
        return 1
    well = reply[:1] in {"2", "4"}
    sys.stdout.write(f"{'well' if well else 'not well'}: {address}: {reply or 'no greeting'}\n")
    return 0 if well else 1


def _first_command_line() -> bytes:
    try:
        return Path("/proc/1/cmdline").read_bytes()
    except FileNotFoundError:  # no /proc, or none of other users' processes in it
        return b""


def daemon_arguments(command_line: bytes) -> list[str]:
    """Return what stands behind the daemon's name on a command line as /proc shows it.

    Before the name there may be an interpreter, or an init with words of its own. Where pid 1 is
    something else altogether there is nothing: then the environment alone counts.
    """
    words = command_line.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    for index, word in enumerate(words):
        if Path(word).name == PROGRAM:
            return words[index + 1 :]
    return []


def _address(arguments: Sequence[str]) -> Address:
    """Return the first address that the daemon listens on; TCP before a unix socket.

    :raises click.ClickException: the arguments cannot be read
    :raises SmtpdForkError: a setting cannot
    """
    given = SettingSources.of(command.make_context(PROGRAM, list(arguments))).values
    config = DaemonConfig.build({name: given.get(name) for name in ("listen", "port")})
    return min(
        wanted_addresses(config), key=lambda address: (address.path is not None, address.proxy)
    )


def probe(address: Address, seconds: float = SECONDS) -> str:
    """Connect to *address*, say QUIT, and return the greeting; empty if there was none.

    :raises OSError: no daemon answers there, or not in time
    """
    with _connect(address, seconds) as sock:
        if address.proxy:
            sock.sendall(_NO_ADDRESS)
        with _secured(sock) if address.tls else sock as line:
            greeting = _greeting(line)
            if greeting.startswith("2"):
                # And see it leave: else its place is taken a moment longer than need be.
                line.sendall(b"QUIT\r\n")
                while line.recv(MAX_GREETING):
                    pass
    return greeting


def _greeting(line: socket.socket) -> str:
    heard = b""
    while b"\n" not in heard and len(heard) < MAX_GREETING and (chunk := line.recv(MAX_GREETING)):
        heard += chunk
    return heard.partition(b"\n")[0].decode("ascii", "replace").strip()


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


def _secured(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    # Whose certificate it is, is not the question here.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


if __name__ == "__main__":
    sys.exit(main())
