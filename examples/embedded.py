"""An SMTP server inside another asyncio program, which gets the messages from a queue.

Run it with ``python examples/embedded.py``.
"""

from __future__ import annotations

import asyncio
import smtplib
from typing import TYPE_CHECKING, Any

from smtpd_fork import Server

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope, Session


class Inbox:
    """An aiosmtpd handler that puts every message into a queue of the program."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept mail for one domain only."""
        if not address.endswith("@example.com"):
            return "550 5.7.1 We do not relay"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Accept a message."""
        await self.messages.put(envelope.original_content or b"")
        return "250 2.0.0 Ok"


def send(port: int) -> None:
    """Send a message, as another program would."""
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("a@example.org", ["b@example.com"], "Subject: hello\r\n\r\nhello\r\n")


async def main() -> None:
    """Start the server, send it a message, and print its first line."""
    inbox = Inbox()
    async with Server(inbox, listen=["127.0.0.1:0"], limit_connections=100, max_from_ip=10) as s:
        await asyncio.to_thread(send, s.port)
        message = await inbox.messages.get()
        print(message.decode().splitlines()[0])


if __name__ == "__main__":
    asyncio.run(main())
