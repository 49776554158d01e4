"""Debug: print every message to standard output, to develop and test handlers."""

from __future__ import annotations

import sys
from typing import TextIO

from smtpd_fork.message import Mail, Replies
from smtpd_fork.peer_address import describe
from smtpd_fork.sinks.base import Sink

__all__ = ["Debug"]


class Debug(Sink):
    """Prints envelope and message, and discards the message.

    :param stream: the stream to print to; default: ``sys.stdout`` at the time of each message
    """

    supports_binarymime = True
    destination = "standard output"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    async def deliver(self, mail: Mail) -> Replies:
        """Print a message."""
        stream = self._stream or sys.stdout
        lines = [
            f"---------- message {mail.id} ----------",
            f"peer: {describe(mail.client.peer)}  helo: {_printable(mail.client.helo)}",
            f"from: {_printable(mail.sender)}  to: "
            + ", ".join(_printable(each.address) for each in mail.recipients),
            "",
            *map(_printable, mail.content.decode("utf-8", "replace").splitlines()),
            "---------- end ----------",
        ]
        text = "\n".join(lines) + "\n"
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # Escape characters that the encoding of the stream lacks, instead of refusing the message.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
        return "250 2.0.0 Ok: printed"


def _printable(line: str) -> str:
    """Return *line* without control characters, by which a client could control the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
