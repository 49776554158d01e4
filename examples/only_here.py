r"""A handler that accepts mail only for some domains, and logs connections.

Run, in the directory above this one::

    smtpd-fork --handler examples.only_here:OnlyHere:example.com,example.org \
        --handler maildir:/var/mail/in
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope, Session

log = logging.getLogger(__name__)


class OnlyHere:
    """Rejects recipients of other domains.

    :param domains: domains to accept
    """

    def __init__(self, *domains: str) -> None:
        if not domains:
            raise ValueError("name at least one domain")
        self.domains = {domain.lower() for domain in domains}

    async def handle_CONNECT(self, server: Any, session: Session) -> Any:
        """Log a new connection; a 4xx or 5xx reply would refuse it."""
        log.info("%s connected", session.peer)
        return MISSING

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Check a recipient."""
        if address.rpartition("@")[2].lower() in self.domains:
            return MISSING
        return "550 5.7.1 We do not relay"

    async def handle_DISCONNECT(self, server: Any, session: Session) -> None:
        """Log the end of the connection."""
        log.info("%s disconnected", session.peer)
