"""Envelope: aiosmtpd's, with the parameters as the client wrote them."""

from __future__ import annotations

from functools import cached_property
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

if TYPE_CHECKING:
    from smtpd_fork.dialogue.params import Params

__all__ = ["Envelope", "weight"]

BARE = 144
"""Bytes of memory that a recipient takes besides the octets of its address: the heads of a string
and of a dict, and a place in each of two lists."""


class Envelope(aiosmtpd.smtp.Envelope):
    """One mail transaction.

    aiosmtpd upper-cases the parameters and mixes those of all recipients, which spoils ENVID and
    ORCPT (RFC 3461). Its attributes are as they were; beside them stand:

    :ivar mail_params: parameters of MAIL: name in capitals, value as it came (True if none)
    :ivar rcpt_params: the same of each recipient, in the order of ``rcpt_tos``
    :ivar body: ``7BIT``, ``8BITMIME`` or ``BINARYMIME``
    :ivar recipients_changed: a handler has changed the recipients of a message: they are no longer
        those that the client waits for the replies of, in LMTP
    :ivar quarantine: why a filter has put the message aside (:func:`smtpd_fork.quarantine`); empty
        if none has
    :ivar xforward: attributes of the client that a relaying host had the message of, by XFORWARD
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
        """What handlers note of the message; gone with the transaction."""
        return {}


def weight(address: str, params: Params) -> int:
    """Return about how many bytes of memory a recipient takes, the copies in capitals included."""
    if not params and address.isascii():
        return len(address) + BARE
    # A parameter is there as it came, and as "NAME=VALUE" in capitals (see Envelope).
    values = sum(
        getsizeof(name) + 2 * (getsizeof(value) + len(name)) for name, value in params.items()
    )
    return getsizeof(address) + getsizeof(params) + BARE + values
