"""Session: aiosmtpd's class, with an id that is in all log lines and replies of the session."""

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
"""The id of the session whose hook runs, for its log lines; None outside of hooks."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_on_unix_socket(session: Any) -> bool:
    """Return whether the client is a program of this machine, connected to a unix socket.

    A client without an address that XCLIENT has named is not: it may be on another machine.
    """
    return host_of(session.peer) is None and not getattr(session, "_named", False)


class Session(aiosmtpd.smtp.Session):
    """The state of a client's session, for handlers.

    :ivar peer: the client's address, ``(host, port, ...)``, an IPv4-mapped address as IPv4; "" for
        a unix socket
    :ivar id: the id of the session in the log, in ``Received:`` and in the reply to DATA
    :ivar lmtp: whether the protocol is LMTP instead of SMTP
    :ivar ssl: data of TLS, None without it: ``sslcontext``, ``ssl_object``, ``peercert``,
        ``cipher``, ``compression``
    :ivar host_name_dns: the client's reverse DNS name, with ``--rdns``; None if it has no name that
        resolves to its address
    :ivar tarpit: seconds by which each reply is delayed, at most 60; handlers may set it
    :ivar auth_mechanism: the mechanism of the client's last AUTH; empty without one
    :ivar auth_user: the user name of the client's last AUTH, whether it succeeded or not, for the
        log
    """

    host_name_dns: str | None = None
    auth_mechanism = ""
    auth_user = ""
    tarpit: float = 0.0
    _destination: Peer = None  # set by XCLIENT, or when `local` is read for the first time
    _named = False  # whether XCLIENT has set attributes of the client
    peer: SocketAddress | str  # type: ignore[assignment]  # aiosmtpd declares str
    auth_data: Any  # aiosmtpd declares None

    def __init__(self, loop: Any, session_id: str) -> None:
        super().__init__(loop)
        self.id = session_id
        self.lmtp = False
        self._transport: Any = None

    @cached_property
    def notes(self) -> dict[str, Any]:
        """Notes of handlers about the client; they remain after STARTTLS."""
        return {}

    @property
    def local(self) -> Peer:
        """The address that the client connected to, or the one of XCLIENT's DESTADDR.

        None once the session has ended.
        """
        if self._transport is None:
            return None
        if self._destination is None:
            self._destination = plain_peer(self._transport.get_extra_info("sockname"))
        return self._destination

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's certificate, in the form of :meth:`ssl.SSLSocket.getpeercert`.

        None if the client sent none, or was not asked for one (``--tls-client-ca``). The
        certificate is always verified: the handshake fails with an invalid one.
        """
        return (self.ssl or {}).get("peercert") or None

    @property
    def peer_subject(self) -> str | None:
        """The subject of the client certificate in the form of RFC 4514: ``CN=relay,O=Example``.

        Control characters in it are escaped as hexadecimal digits, so that replies and log lines
        may contain it.
        """
        der = self._peer_der()
        if der is None:
            return None
        # Not imported at the top: a server without TLS does not need it.
        from cryptography import x509  # noqa: PLC0415 - see above

        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
        return _CONTROL.sub(lambda found: f"\\{ord(found[0]):02X}", subject)

    @property
    def peer_fingerprint(self) -> str | None:
        """The SHA-256 of the client certificate, in lower-case hexadecimal without colons.

        ``openssl x509 -noout -fingerprint -sha256`` prints the same with colons.
        """
        der = self._peer_der()
        return None if der is None else hashlib.sha256(der).hexdigest()

    def _peer_der(self) -> bytes | None:
        if self.ssl is None or self.peer_certificate is None:
            return None
        der: bytes = self.ssl["ssl_object"].getpeercert(binary_form=True)
        return der
