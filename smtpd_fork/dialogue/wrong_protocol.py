"""Mistakes: detects the first packet of another protocol, and logs a warning."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue

__all__ = ["HTTP_METHODS", "warn_of_wrong_protocol"]

HTTP_METHODS = (b"CONNECT", b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT")

_PROXY_HEADER = (
    "a PROXY header was received on a listener without +proxy",
    "add +proxy to its --listen-address, or disable it in the load balancer",
)
_TLS_HANDSHAKE = (
    "a TLS handshake was received on a plaintext port",
    "the client needs STARTTLS, or the listener smtps: in its --listen-address",
)
_HTTP_REQUEST = (
    "an HTTP request was received on an SMTP port",
    "the client uses a wrong address or port",
)

WRONG_PROTOCOLS = {
    b"PROXY ": _PROXY_HEADER,
    b"\r\n\r\n\0\r\nQUIT\n": _PROXY_HEADER,  # version 2
    b"\x16\x03": _TLS_HANDSHAKE,  # a record of a handshake, SSL 3.0 or newer (RFC 8446 5.1)
    **{method + b" ": _HTTP_REQUEST for method in HTTP_METHODS},
}
"""The text and the advice, by the first bytes of the packet."""

_LONGEST = max(map(len, WRONG_PROTOCOLS))


def warn_of_wrong_protocol(dialogue: Dialogue, data: bytes) -> None:
    """Log a warning if the first packet of a session belongs to another protocol."""
    if dialogue.state != State.HELLO or dialogue.events or dialogue.tls:
        return
    for start, (event, advice) in WRONG_PROTOCOLS.items():
        if data[:_LONGEST].startswith(start):
            dialogue.report(logging.WARNING, event, advice)
            return
