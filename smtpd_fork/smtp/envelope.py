"""Envelope: aiosmtpd's, with the parameters as the client wrote them."""

from __future__ import annotations

import aiosmtpd.smtp

__all__ = ["Envelope"]


class Envelope(aiosmtpd.smtp.Envelope):
    """One mail transaction.

    aiosmtpd upper-cases the parameters and mixes those of all recipients, which spoils ENVID and
    ORCPT (RFC 3461). Its attributes are as they were; beside them stand:

    :ivar mail_params: parameters of MAIL: name in capitals, value as it came (True if none)
    :ivar rcpt_params: the same of each recipient, in the order of ``rcpt_tos``
    :ivar body: ``7BIT``, ``8BITMIME`` or ``BINARYMIME``
    """

    def __init__(self) -> None:
        super().__init__()
        self.mail_params: dict[str, str | bool] = {}
        self.rcpt_params: list[dict[str, str | bool]] = []
        self.body = "7BIT"
