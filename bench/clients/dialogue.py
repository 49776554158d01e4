"""Code that the clients share: messages to the parent process, and SMTP lines to a server."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

__all__ = ["HOST", "TIMEOUT", "answer", "connect", "options", "read_reply"]

HOST = "127.0.0.1"

TIMEOUT = 60.0
"""Seconds to wait for any reply of a server."""


def options() -> dict[str, Any]:
    """Return the keyword arguments from the command line."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def answer(**figures: float) -> None:
    """Send a line to the parent process."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def connect(port: int, source: str) -> socket.socket:
    """Return a connection with *source* as the local address."""
    sock = unconnected(source)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def unconnected(source: str) -> socket.socket:
    """Return a socket with a local address and no port; connect(2) then selects the port.

    bind(2) would select a port that no other connection can use, whatever its peer; with many
    connections no port would be left.
    """
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))
    return sock


def read_reply(sock: socket.socket) -> bytes:
    """Return a complete reply of one or more lines.

    :raises ConnectionError: the server closed the connection first
    """
    reply = b""
    while not _is_whole(reply):
        some = sock.recv(65536)
        if not some:
            raise ConnectionError(f"closed by the server after {reply!r}")
        reply += some
    return reply


def _is_whole(reply: bytes) -> bool:
    if not reply.endswith(b"\r\n"):
        return False
    last = reply[:-2].rpartition(b"\r\n")[2]
    return last[3:4] != b"-"
