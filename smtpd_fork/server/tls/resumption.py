"""Resumption of TLS sessions when client certificates are verified.

OpenSSL resumes sessions by default: in TLS 1.3 by a ticket (RFC 8446 2.2), in TLS 1.2 by a ticket
(RFC 5077) or by a session id. The key of the tickets and the cache of ids belong to one SSLContext.
A reload creates a new context, so that no session can be resumed after a change of a certificate or
a CA certificate.

A resumed session keeps the client certificate, and OpenSSL does not verify it again. In TLS 1.3
each resumption provides a ticket for two more hours, without an end, so tickets are disabled.
Python's ssl module cannot disable the resumption of TLS 1.2, which is possible for two hours after
the full handshake: there the expiry date of the client certificate is checked each time.
"""

from __future__ import annotations

import ssl
import time

__all__ = ["restrict_resumption"]


def restrict_resumption(context: ssl.SSLContext) -> None:
    """Refuse to resume sessions whose client certificate has expired."""
    context.num_tickets = 0
    context.sslobject_class = _DatedSession


class _DatedSession(ssl.SSLObject):
    """Fails the handshake that resumes a session whose client certificate has expired."""

    def do_handshake(self) -> None:
        super().do_handshake()
        certificate = self.getpeercert() if self.session_reused else None
        if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
            raise ssl.SSLCertVerificationError("the client certificate of the session has expired")
