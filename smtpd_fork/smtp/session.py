"""Session: aiosmtpd's, with an id that all log lines and replies share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiosmtpd.smtp

from smtpd_fork.gate.ticket import new_session_id
from smtpd_fork.net import plain_peer

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.net import Peer

__all__ = ["Session", "new_session_id"]


class Session(aiosmtpd.smtp.Session):
    """What is known of one client.

    :ivar id: names the session in the logs, in ``Received:`` and in the reply to DATA
    :ivar lmtp: whether LMTP is spoken, not SMTP
    :ivar host_name_dns: the client's name by the DNS, with ``--rdns``; None if it has none that
        leads back to its address
    """

    host_name_dns: str | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, session_id: str) -> None:
        super().__init__(loop)
        self.id = session_id
        self.lmtp = False
        self._transport: asyncio.BaseTransport | None = None

    @property
    def local(self) -> Peer:
        """The address that the client connected to; asked of the system when it is asked for."""
        if self._transport is None:
            return None
        return plain_peer(self._transport.get_extra_info("sockname"))
