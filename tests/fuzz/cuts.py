"""The second invariant of the fuzzer: the result does not depend on how the bytes are cut.

A stream is fed to sessions with the same settings, whole and then cut in each way that this module
knows. The replies, the end of the session and the accepted messages must be the same. Most streams
use no socket; some are sent over a socket, also under TLS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.cuts import another, cut, dialogue, replies_to, replies_under_tls
from support.handlers import Keep, KeepSlowly, Trusts, check_password
from support.proxy import V1

from smtpd_fork import Server
from smtpd_fork.dialogue import BareNewline, Limits
from smtpd_fork.dialogue.trusted_commands import NAMES
from smtpd_fork.gate import TrustedHosts
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Iterator
    from contextlib import AsyncExitStack

    from support.tls import Certificates

WAYS = 12
"""Number of ways in which a stream is cut, besides single bytes."""

LONGEST = 1500
"""Size of the longest stream that is also cut at each byte, bytes."""

_PIECES = [
    *(b"\r\n", b"\r\n", b"\r", b"\n", b"\0", b".", b"..", b"\r\n.", b"\n.\n", b"\n.\r\n", b"x"),
    *(b"\r.\r\n", b"\r\n.\n", b"Subject: x\r\n", b"some text", b"y" * 30, b"z" * 1001, b"\xff"),
    *(b"MAIL FROM:<evil@b.example>\r\n", b"QUIT\r\n"),
]
_HELLO = (b"EHLO x\r\n", b"HELO x\r\n", b"LHLO x\r\n", b"EHLO x\n", b"ehlo x\r\n")
_AUTH = (
    *(b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n", b"AUTH PLAIN\r\nAHVzZXIAcGFzcw==\r\n"),
    *(b"AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\n", b"AUTH LOGIN\r\n*\r\n", b"AUTH PLAIN\nAA\rA\n"),
)
_NAMED = (
    *(b"XCLIENT ADDR=192.0.2.7 PORT=25\r\n", b"XCLIENT ADDR=IPV6:::1 HELO=y PROTO=ESMTP\r\n"),
    *(b"XCLIENT LOGIN=bob HELO=y\r\nAUTH PLAIN\r\n", b"XCLIENT ADDR=[UNAVAILABLE]\r\nEHLO y\r\n"),
    *(b"XCLIENT NAME=\r\n", b"XFORWARD ADDR=192.0.2.7 IDENT=+34F\r\n", b"xforward HELO=+0A\r\n"),
)
_MAIL = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
_BINARY = b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\nRCPT TO:<c@d.example>\r\n"


class CutError(AssertionError):
    """The invariant was violated."""


def well_formed(chance: random.Random) -> bytes:
    """Return a stream of transactions with DATA and BDAT and random text, which ends with QUIT."""
    parts = [chance.choice(_HELLO[:2]) if chance.random() < 0.8 else chance.choice(_HELLO)]
    if chance.random() < 0.3:
        parts.append(chance.choice(_AUTH))
    for _ in range(chance.choice([1, 1, 2, 3])):
        if chance.random() < 0.2:
            parts.append(chance.choice(_NAMED))
        text = b"".join(chance.choices(_PIECES, k=chance.choice([0, 1, 2, 5, 20])))
        if chance.random() < 0.5:
            lines = text.split(b"\r\n")
            stuffed = b"\r\n".join(b"." + line if line[:1] == b"." else line for line in lines)
            stuffed += b"" if text.endswith(b"\r\n") or not text else b"\r\n"
            parts += [_MAIL, b"DATA\r\n", stuffed, b".\r\n"]
            continue
        parts.append(chance.choice([_MAIL, _MAIL, _BINARY]))
        chunks = cut(text, chance.choices(range(len(text) + 1), k=chance.choice([0, 1, 4])))
        for chunk in chunks:
            parts.append(b"BDAT %d\r\n%b" % (len(chunk), chunk))
        parts.append(b"BDAT 0 LAST\r\n")
    return b"".join(parts) + b"QUIT\r\n"


def ways(chance: random.Random, length: int) -> Iterator[list[int]]:
    """Return lists of offsets at which to cut *length* bytes."""
    yield list(range(length))
    for _ in range(WAYS):
        first = chance.randrange(length + 1)
        count = chance.choice([1, 1, 2, 3, 10])
        if chance.random() < 0.5:  # Offsets that are near to each other.
            yield [first + chance.randrange(8) for _ in range(count)]
        else:
            yield [first, *(chance.randrange(length + 1) for _ in range(count - 1))]


class Cuts:
    """Cuts streams.

    :ivar count: number of compared results
    :ivar commands: number of replies in them
    """

    def __init__(self) -> None:
        self.count = 0
        self.commands = 0
        self._servers: list[tuple[Server, Keep, bool]] = []
        self._client: ssl.SSLContext | None = None

    async def serve(self, stack: AsyncExitStack, certificates: Certificates) -> None:
        """Start the servers for the streams that are sent over a socket."""
        self._client = certificates.client
        tls = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
        trust = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.0/8"]}
        for mode in BareNewline:
            for options in (
                {},
                {"max_line_length": 1000},
                trust,
                {"listen": ["smtps:127.0.0.1:0"]},
            ):
                handler = KeepSlowly()
                server = Server(
                    handler,
                    hostname="mx.example.com",
                    bare_newline=mode.value,
                    max_message_size=4000,
                    tls_handshake_timeout=300,
                    proxy_timeout=300,
                    session_options={"authenticator": check_password, "auth_require_tls": False},
                    xclient_trust=["127.0.0.1"],
                    xforward_trust=["127.0.0.1"],
                    **({"listen": ["127.0.0.1:0"]} | tls | options),
                )
                await stack.enter_async_context(server)
                self._servers.append((server, handler, "proxy_trust" in options))

    @property
    def servers(self) -> list[Server]:
        """The servers."""
        return [server for server, _, _ in self._servers]

    async def offline(self, chance: random.Random, stream: bytes) -> None:
        """Cut *stream* for sessions without a socket.

        :raises CutError: a result differs; the message contains the bytes and the packets
        """
        bare, line = chance.choice(list(BareNewline)), chance.choice([0, 0, 20, 1000])
        lmtp, proxied = chance.random() < 0.2, chance.random() < 0.1
        options: dict[str, Any] = {"lmtp": lmtp}
        if chance.random() < 0.5:
            options |= {"authenticator": check_password, "auth_require_tls": False}
        if proxied:
            options["proxy_protocol_timeout"] = 5.0
            stream = V1 + stream
        handlers: list[Keep] = [Trusts()] if proxied else [Keep(), KeepSlowly()]
        models = [
            SMTP(
                handler,
                hostname="mx.example.com",
                data_size_limit=chance.choice([80, 4000]),
                limits=Limits(line=line, errors=10),
                bare_newline=bare,
                enhanced=True,
                enable_SMTPUTF8=True,
                **options,
            )
            for handler in handlers
        ]
        stream = stream[:LONGEST]
        trusted = TrustedHosts.of("xclient_trust", ["192.0.2.1"])
        for model in models:
            model.connection.shared.trust(dict.fromkeys(NAMES, trusted))
            whole = await self._result(model, [stream], patient=True)
            for places in ways(chance, len(stream)):
                packets = cut(stream, places)
                patient = chance.random() < 0.7
                result = await self._result(model, packets, patient=patient)
                if result != whole:
                    settings = (
                        bare.value,
                        line,
                        sorted(options),
                        type(model.event_handler).__name__,
                    )
                    raise CutError(f"{settings}: {packets!r} gives {result}, and whole {whole}")

    async def _result(self, model: SMTP, packets: list[bytes], *, patient: bool) -> Any:
        model.event_handler.got = []
        result = await dialogue(another(model), packets, patient=patient)
        self.count += 1
        self.commands += result.sent.count(b"\r\n")
        return result

    async def over_the_wire(self, chance: random.Random) -> None:
        """Cut a stream that ends its session, and send it to a server.

        :raises CutError: as in :meth:`offline`
        """
        assert self._client is not None
        server, handler, proxied = chance.choice(self._servers)
        stream = well_formed(chance)
        starttls = not proxied and chance.random() < 0.3
        implicit = "smtps" in str(server.config.listen[0])
        before = b"EHLO x\r\nSTARTTLS\r\n" if starttls and not implicit else b""
        whole: Any = None
        for places in ([], None, *list(ways(chance, len(stream)))[1:3]):
            handler.got = []
            if implicit or before:
                heard = await replies_under_tls(server, self._client, before, stream, places)
            else:
                sent = V1 + stream if proxied else stream
                heard = await replies_to(server, sent, places)
            result = heard, handler.got
            self.count += 1
            self.commands += heard.count(b"\r\n")
            whole = whole or result
            if result != whole:
                about = f"{server.config.listen} {server.config.bare_newline} {places}"
                raise CutError(f"{about}: {before!r}, {stream!r} gives {result}, and whole {whole}")
