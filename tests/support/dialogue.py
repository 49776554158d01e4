"""Commands of a client and replies of a daemon, a line at a time."""

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
    """Return the first line that a server sends, perhaps at another loopback address."""
    with connect(address, source=source) as sock, sock.makefile("rb") as lines:
        return lines.readline().decode()


def is_refused(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return False
    return True


def ehlo(client: smtplib.SMTP) -> dict[str, str]:
    """Return the extensions that the server offers."""
    code, _ = client.ehlo()
    assert code == 250
    return dict(client.esmtp_features)


def begin(client: smtplib.SMTP) -> None:
    """Send all commands up to the content of a message."""
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    assert client.docmd("DATA")[0] == 354


def begin_data(client: smtplib.SMTP) -> None:
    """Leave a session in the middle of a message."""
    begin(client)
    client.send(b"Subject: half\r\n\r\nand half")


def last_word(client: smtplib.SMTP) -> tuple[int, bytes]:
    """Read the reply that the server sends unasked, and check that it closes the connection."""
    code, text = client.getreply()
    assert client.file is not None
    assert client.file.read() == b""
    client.close()
    return code, text[:5]
