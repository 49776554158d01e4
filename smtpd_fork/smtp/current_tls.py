"""CurrentTls: the TLS context of the handshakes that begin from now on."""

from __future__ import annotations

import ssl
from typing import Self

__all__ = ["CurrentTls"]


class CurrentTls:
    """Holds a context; another may be put in its place at any time.

    Sessions keep this, not the context: one that came before its certificate was renewed, and
    says STARTTLS after it, is shown the new one.

    :ivar context: for the next handshake
    """

    __slots__ = ("context",)

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    @classmethod
    def of(cls, context: ssl.SSLContext | Self | None) -> Self | None:
        """Return what holds *context*, if it is no such thing itself."""
        return cls(context) if isinstance(context, ssl.SSLContext) else context
