"""Mistakes: what a client sends first if it, or the listener, is set up for another protocol."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue

__all__ = ["HTTP_METHODS", "warn_of_mistake"]

HTTP_METHODS = (b"CONNECT", b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT")

_PROXY_HEADER = (
    "a PROXY header came on a listener without +proxy",
    "add +proxy to its --listen-address, or have the load balancer send none",
)
_TLS_HANDSHAKE = (
    "a TLS handshake came on a plaintext port",
    "the client needs STARTTLS, or the listener smtps: in its --listen-address",
)
_HTTP_REQUEST = ("an HTTP request came on an SMTP port", "the client has a wrong address or port")

MISTAKES = {
    b"PROXY ": _PROXY_HEADER,
    b"\r\n\r\n\0\r\nQUIT\n": _PROXY_HEADER,  # version 2
    b"\x16\x03": _TLS_HANDSHAKE,  # a record of a handshake, SSL 3.0 or newer (RFC 8446 5.1)
    **{method + b" ": _HTTP_REQUEST for method in HTTP_METHODS},
}
"""By how it begins."""

_LONGEST = max(map(len, MISTAKES))


def warn_of_mistake(dialogue: Dialogue, data: bytes) -> None:
    """Log a warning if the first packet of a session belongs to another protocol."""
    if dialogue.state != State.HELLO or dialogue.events or dialogue.tls:
        return
    for start, (what, cure) in MISTAKES.items():
        if data[:_LONGEST].startswith(start):
            dialogue.report(logging.WARNING, what, cure)
            return
