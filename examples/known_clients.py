r"""A handler that accepts mail only from clients with listed client certificates.

Run, in the directory above this one::

    smtpd-fork --tls-cert mx.pem --tls-client-ca clients.pem --require-starttls \
        --handler examples.known_clients:KnownClients:FINGERPRINT,FINGERPRINT \
        --handler maildir:/var/mail/in
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

    from smtpd_fork.dialogue import Session


class KnownClients:
    """Rejects mail from clients without a certificate, or with one that is not listed.

    :param fingerprints: SHA-256 fingerprints, as printed by
        ``openssl x509 -noout -fingerprint -sha256``, but without the colons
    """

    def __init__(self, *fingerprints: str) -> None:
        if not fingerprints:
            raise ValueError("name at least one fingerprint")
        self.fingerprints = {fingerprint.lower() for fingerprint in fingerprints}

    async def handle_MAIL(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Check the certificate of the client that sends MAIL."""
        if session.peer_fingerprint not in self.fingerprints:
            return f"550 5.7.1 We do not know {session.peer_subject or 'you'}"
        return MISSING
