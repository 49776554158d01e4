"""Session: aiosmtpd's, with an id that all log lines and replies share."""

from __future__ import annotations

import hashlib
import re
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

from smtpd_fork.peer_address import host_of, plain_peer

if TYPE_CHECKING:
    from smtpd_fork.peer_address import Peer, SocketAddress

__all__ = ["Session", "current_session", "is_on_unix_socket"]

current_session: ContextVar[str | None] = ContextVar("smtpd_fork_session", default=None)
"""The id of the session whose hook runs, for its log lines; None outside of all hooks."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_on_unix_socket(session: Any) -> bool:
    """Whether the client is a program of this machine, on a unix socket.

    One that XCLIENT names, and whose address is not known, may be anybody.
    """
    return host_of(session.peer) is None and not getattr(session, "_named", False)


class Session(aiosmtpd.smtp.Session):
    """The state of one client's session, for handlers.

    :ivar peer: the client's address, ``(host, port, ...)`` with IPv4 as IPv4; of a unix socket, ""
    :ivar id: the id of the session in the log, in ``Received:`` and in the reply to DATA
    :ivar lmtp: whether the protocol is LMTP, not SMTP
    :ivar ssl: data of TLS, None without it: ``sslcontext``, ``ssl_object``, ``peercert``,
        ``cipher``, ``compression``
    :ivar host_name_dns: the client's reverse DNS name, with ``--rdns``; None if it has none that
        resolves back to its address
    :ivar tarpit: seconds by which each reply is delayed, up to a minute; a handler may set it
    :ivar auth_mechanism: the mechanism of the client's last AUTH; empty without one
    :ivar auth_user: the user that the client claimed to be in it, or is, for the log
    """

    host_name_dns: str | None = None
    auth_mechanism = ""
    auth_user = ""
    tarpit: float = 0.0
    _destination: Peer = None  # as XCLIENT names it, or once it was asked for
    _named = False  # whether XCLIENT has named it
    peer: SocketAddress | str  # type: ignore[assignment]  # aiosmtpd's hint is str alone
    auth_data: Any  # aiosmtpd's hint is None alone

    def __init__(self, loop: Any, session_id: str) -> None:
        super().__init__(loop)
        self.id = session_id
        self.lmtp = False
        self._transport: Any = None

    @cached_property
    def notes(self) -> dict[str, Any]:
        """What handlers note of the client, also of what it said before STARTTLS."""
        return {}

    @property
    def local(self) -> Peer:
        """The address that the client connected to, by XCLIENT's DESTADDR if it came that way.

        None once the session has ended.
        """
        if self._transport is None:
            return None
        if self._destination is None:
            self._destination = plain_peer(self._transport.get_extra_info("sockname"))
        return self._destination

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's certificate, as :meth:`ssl.SSLSocket.getpeercert` has it.

        None if it showed none, or was not asked (``--tls-client-ca``). Whatever is here was
        verified: a client that shows another one never gets this far.
        """
        return (self.ssl or {}).get("peercert") or None

    @property
    def peer_subject(self) -> str | None:
        """The subject of the client certificate in the form of RFC 4514: ``CN=relay,O=Example``.

        Control characters are hexadecimal in it, so that it is safe in a reply or a log.
        """
        der = self._peer_der()
        if der is None:
            return None
        # Imported when it is asked for: a server without TLS does not need it.
        from cryptography import x509  # noqa: PLC0415 - see above

        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
        return _CONTROL.sub(lambda found: f"\\{ord(found[0]):02X}", subject)

    @property
    def peer_fingerprint(self) -> str | None:
        """SHA-256 of the client certificate, in lower-case hexadecimal without colons.

        ``openssl x509 -noout -fingerprint -sha256`` prints the same, with colons.
        """
        der = self._peer_der()
        return None if der is None else hashlib.sha256(der).hexdigest()

    def _peer_der(self) -> bytes | None:
        if self.ssl is None or self.peer_certificate is None:
            return None
        der: bytes = self.ssl["ssl_object"].getpeercert(binary_form=True)
        return der
