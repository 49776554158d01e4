"""ClientLine: a log line about one client, of a kind that a client can cause many times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from smtpd_fork.config import IPV6_PREFIX
from smtpd_fork.gate.client import Client
from smtpd_fork.peer_address import describe

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from smtpd_fork.peer_address import Peer

__all__ = ["ClientLine"]


class ClientLine(NamedTuple):
    """A log line about a client, created by :meth:`of`.

    :ivar key: identifies the client (an IPv6 client by its /64) and the kind of line; lines with
        the same key are summarised
    :ivar text: the line
    :ivar logger: the logger that writes it
    :ivar level: of :mod:`logging`
    :ivar extra: the fields of the log entry
    """

    key: str
    text: str
    logger: logging.Logger
    level: int
    extra: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        logger: logging.Logger,
        level: int,
        peer: Peer,
        what: str,
        reason: str = "",
        *,
        kind: str = "",
        **fields: str,
    ) -> Self:
        """Return the line ``[SESSION] CLIENT: WHAT: REASON``; without a session, without its id.

        :param what: the event; a constant text, as it is a part of the key
        :param reason: the cause; any text
        :param kind: distinguishes lines with the same *what* that are summarised separately
        :param fields: more fields of the log entry, such as ``session``
        """
        client = describe(peer)
        fields = {name: value for name, value in fields.items() if value}
        session = fields.get("session")
        text = f"[{session}] {client}: {what}" if session else f"{client}: {what}"
        if reason:
            text += f": {reason}"
        extra = {"client": client, **fields, "reason": reason or what}
        return cls(cls.key_of(peer, what, kind), text, logger, level, extra)

    @staticmethod
    def key_of(peer: Peer, what: str, kind: str) -> str:
        """Return the key of a line; see :meth:`of` for the parameters."""
        return f"{Client(peer, IPV6_PREFIX).key} {what} {kind}"

    def __str__(self) -> str:
        return self.text
