"""The same bytes give the same result however they are split.

They are cut at every byte, in every mode, with DATA, BDAT and LMTP, around AUTH, PROXY and TLS;
without a socket, and over the wire.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.cuts import Result, all_cuts, another, cut, dialogue, replies_to, replies_under_tls
from support.handlers import Keep, Trusts, check_password
from support.proxy import BROKEN_V1, V1, V2
from support.server import serve

from smtpd_fork.dialogue import BareNewline, Limits
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tls import Certificates

MODES = list(BareNewline)
LINE_LIMITS = [0, 20]

HELLO = b"EHLO x\r\n"
MAIL = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
AFTER = b"MAIL FROM:<next@b.example>\r\nQUIT\r\n"

TEXTS = [
    b"",
    b"\r\n",
    b"\r\nSubject: body, not header\r\n",
    b"Subject: x\r\n\r\nhello\r\n",
    b".\r\n..\r\n.x\r\nx.\r\n",
    b"\rhello\r\n",
    b"\nhello\n\n\r\n",
    b"x\n.\nMAIL FROM:<evil@b.example>\r\n",
    b"x\n.\r\nx\r.\r\nMAIL FROM:<evil@b.example>\r\n",
    b"x\r\n.\ny\r\n.\rz\r\r\n\r\r\n",
    b"\0\r\nx\0\r\n",
    b"1234567890123456789\r\n12345678901234567\r\n",
    b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\r\n",
    b"x" * 81 + b"\r\n",  # too large
    b"\n" * 60 + b"\r\n",  # too large once it is normalized
    b"12345678901234567890\r\n" * 4,  # too long before it is too large
]


def by_data(text: bytes) -> bytes:
    """Return *text* as sent after DATA, with doubled dots by the lines of RFC 5321."""
    stuffed = b"\r\n".join(
        b"." + line if line.startswith(b".") else line for line in text.split(b"\r\n")
    )
    return b"DATA\r\n" + stuffed + b".\r\n"


def by_bdat(text: bytes) -> bytes:
    """Return *text* in chunks of BDAT that are cut within its line ends."""
    half = len(text) // 2 + 1
    parts = [text[:1], text[1:half], text[half:]]
    last = b"BDAT %d LAST\r\n" % len(parts[-1])
    return b"".join(b"BDAT %d\r\n%b" % (len(p), p) for p in parts[:-1]) + last + parts[-1]


def new_session(bare: BareNewline, line: int, handler: Keep, **options: Any) -> SMTP:
    return SMTP(
        handler,
        hostname="mx.example",
        data_size_limit=80,
        limits=Limits(line=line),
        bare_newline=bare,
        enhanced=True,
        **options,
    )


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


def differing(
    runner: asyncio.Runner,
    stream: bytes,
    bare: BareNewline,
    line: int = 0,
    *,
    start: int = 0,
    after: bytes = b"QUIT\r\n",
    **options: Any,
) -> list[tuple[list[bytes], Result]]:
    """Return the packets of a stream whose result differs from that of the whole in one packet.

    :param stream: the stream to cut
    :param start: the first offset of a cut
    :param after: ends the session, in the last packet of the stream or in a separate one
    """

    async def results() -> list[tuple[list[bytes], Result]]:
        models = [new_session(bare, line, handler, **options) for handler in (Keep(), Trusts())]
        expected = await dialogue(another(models[0]), [stream + after])
        assert expected.closed, "the stream ends its session"
        found = []
        apart = ([*packets, after] for packets in all_cuts(stream, near=2, start=start))
        joined = all_cuts(stream + after, near=1, start=start)
        for model, cuts in zip(models, (apart, joined), strict=True):
            # The next packet is received before a slow handler has answered.
            patient = type(model.event_handler) is Keep
            for packets in cuts:
                model.event_handler.got = []
                result = await dialogue(another(model), packets, patient=patient)
                if result != expected:
                    found.append((packets, result))
        return found

    return runner.run(results())


@pytest.mark.parametrize("line", LINE_LIMITS)
@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("carried", [by_data, by_bdat])
def test_a_message_is_the_same_however_its_stream_is_cut(
    runner: asyncio.Runner, carried: Any, bare: BareNewline, line: int
) -> None:
    before = HELLO + MAIL
    for text in TEXTS:
        stream = before + carried(text)
        start = len(before) + 4
        assert not differing(runner, stream, bare, line, start=start, after=AFTER), text


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("carried", [by_data, by_bdat])
def test_consecutive_messages_are_the_same_however_their_stream_is_cut(
    runner: asyncio.Runner, carried: Any, bare: BareNewline
) -> None:
    """A missed end would turn the commands after it into text."""
    for texts in ([b"", b"x\r\n"], [b"", b"\r\n", b"x\r\n"]):
        stream = HELLO + b"".join(MAIL + carried(text) for text in texts)
        assert not differing(runner, stream, bare), texts


@pytest.mark.parametrize("line", LINE_LIMITS)
@pytest.mark.parametrize("bare", MODES)
def test_a_message_is_the_same_by_data_and_by_bdat(
    runner: asyncio.Runner, bare: BareNewline, line: int
) -> None:
    async def answer(carried: bytes) -> tuple[Any, bytes]:
        session = new_session(bare, line, Keep())
        result = await dialogue(session, [HELLO, MAIL, carried])
        return result.messages, result.sent.splitlines()[-1]

    for text in TEXTS:
        assert runner.run(answer(by_data(text))) == runner.run(answer(by_bdat(text))), text


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("carried", [by_data, by_bdat])
def test_lmtp_is_the_same_however_its_stream_is_cut(
    runner: asyncio.Runner, carried: Any, bare: BareNewline
) -> None:
    two = MAIL + b"RCPT TO:<e@f.example>\r\n"
    for text in (TEXTS[2], TEXTS[8], TEXTS[13]):
        stream = b"LHLO x\r\n" + two + carried(text)
        assert not differing(runner, stream, bare, start=len(two) + 4, lmtp=True), text


COMMANDS = [
    b"NOOP\nNOOP\r\nRSET\n\nQUIT\r\n",
    b"NOOP\rNOOP\r\nNOOP\r\r\nNO\0OP\r\nQUIT\r\n",
    HELLO + MAIL + b"RSET\nNOOP\n\rNOOP\r\nMAIL FROM:<a@b.example>\nDATA\r\nQUIT\r\n",
    HELLO + MAIL + b"DATA\n.\r\nNOOP\nQUIT\r\n",
    HELLO + MAIL + b"BDAT 3\n\r\n.BDAT 2 LAST\n\r\nNOOP\r\nQUIT\r\n",
    HELLO + MAIL + b"BDAT 1\r\n\rBDAT 1 LAST\r\n\nQUIT\r\n",
    HELLO + b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\nRCPT TO:<c@d.example>\r\n"
    b"BDAT 9 LAST\r\n\n\r\0\r\n.\r\n\rQUIT\r\n",
    HELLO + b"BDAT 4\r\nQUITBDAT 4 LAST\r\nQUIT" + MAIL + b"DATA\r\nx\r\n.\r\nQUIT\r\n",
]


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("stream", COMMANDS)
def test_commands_are_the_same_however_they_are_cut(
    runner: asyncio.Runner, stream: bytes, bare: BareNewline
) -> None:
    assert not differing(runner, stream + b"\r\n", bare)


AUTH = [
    b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n",
    b"AUTH PLAIN\r\nAHVzZXIAcGFzcw==\r\n",
    b"AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\n",
    b"AUTH LOGIN dXNlcg==\nd3Jvbmc=\n",
    b"AUTH LOGIN\r\n*\r\nAUTH PLAIN\r\n\r\nAUTH PLAIN =\r\nAUTH PLAIN\r\nA\rB\r\n",
]


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("exchange", AUTH)
def test_auth_is_the_same_however_it_is_cut(
    runner: asyncio.Runner, exchange: bytes, bare: BareNewline
) -> None:
    options: dict[str, Any] = {"authenticator": check_password, "auth_require_tls": False}
    assert not differing(runner, HELLO + exchange + b"\r\n", bare, **options)


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("header", [V1, V2, BROKEN_V1])
def test_a_proxy_header_of_a_session_is_the_same_however_it_is_cut(
    runner: asyncio.Runner, header: bytes, bare: BareNewline
) -> None:
    async def result(packets: list[bytes]) -> Result:
        session = new_session(bare, 0, Trusts(), proxy_protocol_timeout=5)
        return await dialogue(session, packets)

    stream = header + HELLO + MAIL + by_data(TEXTS[2]) + b"QUIT\r\n"
    expected = runner.run(result([stream]))
    assert expected.closed
    for packets in all_cuts(stream, near=1):
        assert runner.run(result(packets)) == expected


# -- over the wire ---------------------------------------------------------------------------------

PLACES = 12
"""Number of cuts of a stream over the wire, besides single bytes."""


def sampled(stream: bytes) -> list[list[int] | None]:
    """Return the offsets of cuts: around the message's text first, and then each byte."""
    text = max(stream.find(b"DATA\r\n"), stream.find(b"LAST\r\n")) + 6
    end = stream.index(AFTER)
    spread = range(1, len(stream), max(1, len(stream) // 8))
    places = [*range(text, text + 4), *spread][:PLACES]
    return [[], None, *([place, end] for place in places)]


WIRE = [
    HELLO + MAIL + by_data(b"") + MAIL + by_data(TEXTS[2]) + AFTER,
    HELLO + MAIL + by_data(TEXTS[9]) + AFTER,
    HELLO + MAIL + by_bdat(TEXTS[8]) + AFTER,
    HELLO + AUTH[2] + MAIL + by_data(b"") + AFTER,
]


@pytest.mark.parametrize("bare", MODES)
async def test_streams_over_the_wire_are_the_same_however_they_are_cut(bare: BareNewline) -> None:
    handler = Keep()
    options = {"authenticator": check_password, "auth_require_tls": False}
    async with serve(handler, bare_newline=bare.value, session_options=options) as server:
        for stream in WIRE:
            expected = None
            for places in sampled(stream):
                handler.got.clear()
                result = (await replies_to(server, stream, places), list(handler.got))
                expected = expected or result
                assert result == expected, (stream, places)


@pytest.mark.parametrize("header", [V1, V2])
async def test_proxy_headers_over_the_wire_are_the_same_however_they_are_cut(header: bytes) -> None:
    handler = Keep()
    where = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.0/8"]}
    async with serve(handler, **where) as server:
        stream = header + HELLO + MAIL + by_data(TEXTS[2]) + AFTER
        expected = None
        for places in [*sampled(stream), *([place] for place in range(len(header) + 2))]:
            handler.got.clear()
            result = (await replies_to(server, stream, places), list(handler.got))
            expected = expected or result
            assert len(result[1]) == 1
            assert result == expected, places


@pytest.mark.parametrize(
    ("listen", "before"),
    [
        pytest.param("smtp:127.0.0.1:0", HELLO + b"STARTTLS\r\n", id="STARTTLS"),
        pytest.param("smtps:127.0.0.1:0", b"", id="implicit"),
        pytest.param("smtps+proxy:127.0.0.1:0", V2, id="PROXY"),
    ],
)
async def test_sessions_under_tls_are_the_same_however_their_records_are_cut(
    certificates: Certificates, listen: str, before: bytes
) -> None:
    """The ClientHello may be in the packet of the bytes before it."""
    handler = Keep()
    stream = HELLO + MAIL + by_data(TEXTS[2]) + AFTER
    tls = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    trust = {"proxy_trust": ["127.0.0.0/8"]}
    async with serve(handler, listen=[listen], **tls, **trust) as server:
        expected = None
        for places in ([], None, *([place] for place in (*range(1, 40, 3), *range(40, 900, 43)))):
            handler.got.clear()
            heard = await replies_under_tls(server, certificates.client, before, stream, places)
            result = (heard, list(handler.got))
            expected = expected or result
            assert len(result[1]) == 1
            assert result == expected, places


@pytest.mark.parametrize("places", [[], [18], None], ids=["one packet", "two", "single bytes"])
async def test_plaintext_after_starttls_ends_the_session_however_it_is_cut(
    certificates: Certificates, places: list[int] | None
) -> None:
    """CVE-2011-0411: it must not be carried out, nor count as input under TLS."""
    handler = Keep()
    stream = HELLO + b"STARTTLS\r\n" + HELLO + MAIL + by_data(b"injected\r\n") + b"QUIT\r\n"
    assert cut(stream, [18])[1].startswith(HELLO)
    async with serve(handler, tls_context=certificates.server) as server:
        heard = await replies_to(server, stream, places)
    plain, _, rest = heard.partition(b"Ready to start TLS\r\n")
    assert plain.endswith(b"220 2.0.0 ")
    assert b"250" not in rest  # an alert of TLS
    assert handler.got == []
