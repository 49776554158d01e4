"""Debug: prints every message to standard output, for those who write or try handlers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from smtpd_fork.peer_address import describe
from smtpd_fork.sinks.base import Sink

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["Debug"]


class Debug(Sink):
    """Prints envelope and message, and keeps nothing.

    :param stream: where to; default: standard output, as it is when the message comes
    """

    supports_binarymime = True

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Print a message."""
        stream = self._stream or sys.stdout
        lines = [
            f"---------- message {getattr(session, 'id', '')} ----------",
            f"peer: {describe(session.peer)}  helo: {_printable(session.host_name or '')}",
            f"from: {_printable(envelope.mail_from or '')}  to: "
            + ", ".join(map(_printable, envelope.rcpt_tos)),
            "",
            *map(_printable, _text(envelope.content).splitlines()),
            "---------- end ----------",
        ]
        text = "\n".join(lines) + "\n"
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # A character that standard output does not know is no reason to refuse a message.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
        return "250 2.0.0 Ok: printed"


def _text(content: bytes | str | None) -> str:
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    return content or ""


def _printable(line: str) -> str:
    """Return *line* without what would steer a terminal: it comes from a stranger."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
