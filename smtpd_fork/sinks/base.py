"""Sink: a handler that takes every message it is given, or says why not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["Sink"]


class Sink(ABC):
    """A handler at the end of a chain.

    :cvar supports_dsn: whether it passes on what a client asks for by DSN (RFC 3461: RET, ENVID,
        NOTIFY, ORCPT), or sends the notifications itself; else DSN is not offered
    :cvar supports_binarymime: whether it keeps every octet of a message with BODY=BINARYMIME
        (RFC 3030), which is not made of lines; else BINARYMIME is not offered
    """

    supports_dsn = False
    supports_binarymime = False

    def prepare(self) -> None:  # noqa: B027 - most sinks need nothing
        """Make what the sink needs; called before the first message, and after privileges fell.

        :raises CannotCreateError: it cannot be made
        """

    async def close(self) -> None:  # noqa: B027 - see prepare
        """Finish what is in hand; called after the last message."""

    @abstractmethod
    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Take a message.

        :returns: 250 once it is safe, else 4xx or 5xx
        """
