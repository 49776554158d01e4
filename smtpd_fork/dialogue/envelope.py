"""Envelope: aiosmtpd's class, with the parameters as the client sent them."""

from __future__ import annotations

from functools import cached_property
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

if TYPE_CHECKING:
    from smtpd_fork.dialogue.params import Params

__all__ = ["Envelope", "recipient_memory"]

BARE = 144
"""Bytes of memory of a recipient besides its address: the headers of a string and a dict, and an
element in each of two lists."""


class Envelope(aiosmtpd.smtp.Envelope):
    """A mail transaction.

    It has the attributes of aiosmtpd's envelope. These have parameters in upper case, and those of
    all recipients together, which is wrong for ENVID and ORCPT (RFC 3461). So there are more
    attributes:

    :ivar mail_params: the parameters of MAIL: name in capitals, value as received (True if it has
        none)
    :ivar rcpt_params: the parameters of each recipient, in the order of ``rcpt_tos``
    :ivar body: ``7BIT``, ``8BITMIME`` or ``BINARYMIME``
    :ivar recipients_changed: whether a handler has changed the recipients. In LMTP the client
        expects a reply for each recipient that it sent, so that the replies can no longer be
        assigned
    :ivar quarantine: the reason why a filter quarantined the message
        (:func:`smtpd_fork.quarantine`); empty if none did
    :ivar xforward: attributes of XFORWARD: the client from which a relaying host received the
        message
    :ivar queue_id: the id of the message, if a filter needed one; see :class:`smtpd_fork.Mail`
    """

    recipients_changed = False
    quarantine = ""
    xforward: dict[str, str] | None = None
    queue_id: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.mail_params: dict[str, str | bool] = {}
        self.rcpt_params: list[dict[str, str | bool]] = []
        self.body = "7BIT"

    @cached_property
    def notes(self) -> dict[str, Any]:
        """Notes of handlers about the message; they are removed with the transaction."""
        return {}


def recipient_memory(address: str, params: Params) -> int:
    """Return the approximate bytes of memory of a recipient, with the copies in capitals."""
    if not params and address.isascii():
        return len(address) + BARE
    # A parameter is stored as received, and as "NAME=VALUE" in capitals (see Envelope).
    values = sum(
        getsizeof(name) + 2 * (getsizeof(value) + len(name)) for name, value in params.items()
    )
    return getsizeof(address) + getsizeof(params) + BARE + values
