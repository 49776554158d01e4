"""ClientLine: a line of the log about one client, which may be one of very many like it."""

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
    """One line about a client. Make it with :meth:`of`.

    :ivar key: of the client (an IPv6 client by its /64) and the kind of line: lines of one key are
        gathered
    :ivar text: the line
    :ivar logger: writes it
    :ivar level: logging's
    :ivar extra: the fields of the entry
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

        :param what: what happened; constant, as lines are gathered by it
        :param reason: why; may be anything
        :param kind: lines with the same *what* that are gathered apart
        :param fields: more fields of the entry, ``session`` among them
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
        """Return the key of a client's line; the parameters are those of :meth:`of`."""
        return f"{Client(peer, IPV6_PREFIX).key} {what} {kind}"

    def __str__(self) -> str:
        return self.text
