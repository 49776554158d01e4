"""Resumption of TLS sessions where the certificates of clients are verified.

OpenSSL resumes sessions by default: in TLS 1.3 by a ticket (RFC 8446 2.2), in TLS 1.2 by a ticket
(RFC 5077) or by the id of a session. The key of the tickets and the cache of ids belong to one
SSLContext. A reload makes a new context, so no session outlives a change of a certificate or a CA.

A resumed session keeps the client's certificate, and OpenSSL does not verify it again. In TLS 1.3
each resumption brings a ticket for two more hours, without end: tickets are switched off. Python's
ssl cannot switch off the resumption of TLS 1.2, which ends two hours after the full handshake; here
the date of the certificate is checked each time.
"""

from __future__ import annotations

import ssl
import time

__all__ = ["restrict_resumption"]


def restrict_resumption(context: ssl.SSLContext) -> None:
    """Resume no session whose client certificate would fail a full handshake."""
    context.num_tickets = 0
    context.sslobject_class = _DatedSession


class _DatedSession(ssl.SSLObject):
    """Fails the handshake that resumes a session whose client certificate has expired."""

    def do_handshake(self) -> None:
        super().do_handshake()
        certificate = self.getpeercert() if self.session_reused else None
        if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
            raise ssl.SSLCertVerificationError("the client certificate of the session has expired")
