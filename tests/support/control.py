"""A control client that sends exactly the given bytes, and the subcommands as processes."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from support.daemon import PATIENCE, run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SOCKET = "control.sock"
CONTROL = ("--control", SOCKET)
STATUS = b'{"v":1,"command":"status"}\n'


def connect(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(str(folder / SOCKET))
    except BaseException:
        sock.close()
        raise
    return sock


def ask(folder: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Return the reply to one request on a connection of its own."""
    return raw(folder, json.dumps({"v": 1, "command": command, **fields}).encode() + b"\n")


def raw(folder: Path, request: bytes) -> dict[str, Any]:
    with connect(folder) as sock:
        sock.sendall(request)
        return line(sock)


def line(sock: socket.socket) -> dict[str, Any]:
    """Return the next reply; an empty one at the end of the connection."""
    received = b""
    while not received.endswith(b"\n"):
        chunk = sock.recv(1)
        if not chunk:
            return {}
        received += chunk
    reply: dict[str, Any] = json.loads(received)
    return reply


def says(folder: Path, *words: str) -> str:
    """Return the output of a command, which has to succeed."""
    ended = command(folder, *words)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(*words, *CONTROL, cwd=folder)
