r"""A handler for the command line: mail for some domains only, and a word on who comes and goes.

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
    """Refuses recipients of other domains; has no opinion on those of ours.

    :param domains: ours
    """

    def __init__(self, *domains: str) -> None:
        if not domains:
            raise ValueError("name at least one domain")
        self.domains = {domain.lower() for domain in domains}

    async def handle_CONNECT(self, server: Any, session: Session) -> Any:
        """Hear of a client before it is greeted; a reply of 4xx or 5xx would turn it away."""
        log.info("%s comes", session.peer)
        return MISSING

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Judge a recipient."""
        if address.rpartition("@")[2].lower() in self.domains:
            return MISSING
        return "550 5.7.1 We do not relay"

    async def handle_DISCONNECT(self, server: Any, session: Session) -> None:
        """Hear that a client is gone."""
        log.info("%s is gone", session.peer)
