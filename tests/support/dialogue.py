"""What a client says to a daemon and hears from it, a line at a time."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from support.daemon import PATIENCE

if TYPE_CHECKING:
    import smtplib


def connect(address: Any, *, source: str | None = None) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    local = (source, 0) if source else None
    return socket.create_connection(address, timeout=PATIENCE, source_address=local)


def first_line(address: Any, *, source: str | None = None) -> str:
    """Return the first line that a server says there, perhaps to another loopback address."""
    with connect(address, source=source) as sock, sock.makefile("rb") as lines:
        return lines.readline().decode()


def is_refused(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return False
    return True


def ehlo(client: smtplib.SMTP) -> dict[str, str]:
    """Return what the server offers."""
    code, _ = client.ehlo()
    assert code == 250
    return dict(client.esmtp_features)


def begin(client: smtplib.SMTP) -> None:
    """Say all that comes before a message's text."""
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    assert client.docmd("DATA")[0] == 354


def begin_data(client: smtplib.SMTP) -> None:
    """Bring a session into the middle of a message."""
    begin(client)
    client.send(b"Subject: half\r\n\r\nand half")


def last_word(client: smtplib.SMTP) -> tuple[int, bytes]:
    """Return the reply that comes unasked, and see that the connection ends with it."""
    code, text = client.getreply()
    assert client.file is not None
    assert client.file.read() == b""
    client.close()
    return code, text[:5]
