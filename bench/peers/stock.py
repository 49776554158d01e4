"""Stock aiosmtpd on uvloop, with an optional limit of sessions per client address."""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, cast

import uvloop
from aiosmtpd.handlers import Mailbox, Sink
from aiosmtpd.smtp import SMTP

if TYPE_CHECKING:
    from typing import Any

BACKLOG = 1024


class LimitedSMTP(SMTP):
    """aiosmtpd's session, with a reply 421 when the address has reached its limit."""

    inside: ClassVar[Counter[str]] = Counter()
    limit: ClassVar[int] = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._address: str | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse the client before the session is set up."""
        # The TLS layer calls this method a second time for the same client.
        if self._address is None:
            address = transport.get_extra_info("peername")[0]
            if self.inside[address] >= self.limit:
                self._refused = True
                stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
                stream.write(b"421 4.7.0 Too many connections, try again later\r\n")
                stream.close()
                return
            self.inside[address] += 1
            self._address = address
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        """Close the transport of a refused client."""
        return False if self._refused else super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Release the connection slot."""
        if self._refused:
            return
        if self._address is not None:
            self.inside[self._address] -= 1
            self._address = None
        super().connection_lost(error)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    context = None
    if arguments.key:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.certificate, arguments.key)
    LimitedSMTP.limit = arguments.limit
    session = LimitedSMTP if arguments.limit else SMTP
    handler = Mailbox(arguments.maildir) if arguments.maildir else Sink()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: session(
            handler,
            hostname="localhost",
            data_size_limit=arguments.largest,
            tls_context=context,
            loop=loop,
        ),
        arguments.host,
        arguments.port,
        backlog=BACKLOG,
    )
    async with server:
        await server.serve_forever()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--largest", type=int, required=True)
    parser.add_argument("--maildir")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
