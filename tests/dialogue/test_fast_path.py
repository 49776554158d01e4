"""The fast path, the general path, and input in packets: all give the same dialogue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.cuts import Result, cut, dialogue

from smtpd_fork.dialogue import Limits
from smtpd_fork.dialogue.content import BareNewline
from smtpd_fork.dialogue.fast_path import EVENTS_A_TURN, LONGEST, frequent
from smtpd_fork.dialogue.framer import Framer
from smtpd_fork.dialogue.params import parse_params
from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.usefixtures("one_session_id")  # replies have it

LINES = st.sampled_from([
    b"EHLO x.example", b"HELO x", b"HELO [127.0.0.1]", b"EHLO", b"ehlo x", b"LHLO x",
    b"MAIL FROM:<a@b.example>", b"MAIL FROM:<a@b.example> SIZE=10", b"MAIL FROM:<>",
    b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME", b"MAIL FROM:<a@b.example> BODY=BINARYMIME",
    b"MAIL FROM:<a@b.example> BODY=7BIT SIZE=9", b"MAIL FROM:<a@b.example> SIZE=999999",
    b"MAIL FROM:<a@b.example> ", b"MAIL FROM: <a@b.example>", b"mail from:<a@b.example>",
    b"MAIL FROM:<raise@b.example>", b"MAIL FROM:<@b.example>", b"MAIL FROM:<a@b..example>",
    b"MAIL FROM:<" + b"a" * 240 + b"@b.example>", b"MAIL FROM:<a@" + b"b" * 260 + b">",
    b"RCPT TO:<c@d.example>", b"RCPT TO:<c@d.example> NOTIFY=NEVER", b"RCPT TO:<no@d.example>",
    b"RCPT TO:<>", b"RCPT TO:<raise@d.example>", b"RCPT TO:<c@d.example", b"RCPT TO:c@d.example",
    b"MAIL FROM:a@b.example SIZE=10", b"MAIL FROM:\ta@b.example\tSIZE=10",
    b"RCPT TO: <no@d.example>", b"RCPT TO:\tc@d.example ",
    b"MAIL FROM:<a@" + b"b" * 63 + b">", b"MAIL FROM:<a@" + b"b" * 64 + b">",
    b"RCPT TO:<c@d." + b"e" * 64 + b".f>", b"MAIL\tFROM:<a@b.example>",
    b"EHLO \xe9t\xe9", b'EHLO a"b',
    b"MAIL FROM:<postmaster>", b"RCPT TO:<postmaster>", b"RCPT TO:c@d.example x@y.example",
    b"DATA", b"data", b"DATA x", b"BDAT 3", b"BDAT 2 LAST", b"RSET", b"NOOP", b"NOOP x", b"QUIT",
    b"VRFY x", b"XYZZY", b"", b".", b"..", b".x", b"Subject: x", b"text", b"x" * 600,
    b"AUTH PLAIN", b"STARTTLS", b"GET / HTTP/1.0",
])  # fmt: skip
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\0\r\n", b"", b"\r\n.\r\n", b"\r\n.\r\n"])
ROUTINE = st.sampled_from([
    b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
    b"HELO x\r\nMAIL FROM:<a@b.example> SIZE=3\r\n",
    b"x\r\n.\r\nQUIT\r\n",
])  # fmt: skip
STREAMS = st.lists(
    st.one_of(st.tuples(LINES, ENDS).map(b"".join), ROUTINE, st.binary(max_size=4)), max_size=14
).map(b"".join)


class OnlyData:
    """A handler with only the hook for messages."""

    supports_dsn = supports_binarymime = True

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.mail_from, tuple(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 Taken"


class AtOnce(OnlyData):
    """A handler with hooks that never wait."""

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address.startswith("raise"):
            raise ValueError(address)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Sender ok"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address.startswith("raise"):
            raise ValueError(address)
        if address.startswith("no"):
            return "550 5.7.1 No"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Recipient ok"


class Waiting(AtOnce):
    """The same handler, but each hook waits."""

    async def handle_MAIL(self, *args: Any) -> str:
        await asyncio.sleep(0)
        return await super().handle_MAIL(*args)

    async def handle_RCPT(self, *args: Any) -> str:
        await asyncio.sleep(0)
        return await super().handle_RCPT(*args)

    async def handle_DATA(self, *args: Any) -> str:
        await asyncio.sleep(0)
        return await super().handle_DATA(*args)


async def talk(handler: Any, packets: Sequence[bytes], *, fast: bool = True) -> Result:
    """Return the result of a dialogue.

    :param fast: False: only the general path is used
    """
    session = SMTP(
        handler,
        hostname="mx.example",
        data_size_limit=5000,
        limits=Limits(errors=5),
        enhanced=True,
        enable_SMTPUTF8=True,
        bare_newline=BareNewline.NORMALIZE,
    )
    session.connection.dialogue.fast &= fast
    return await dialogue(session, packets)


@pytest.fixture(scope="module")
def runner() -> Any:
    with asyncio.Runner() as running:
        yield running


@pytest.mark.parametrize("handler", [OnlyData, AtOnce, Waiting])
@given(stream=STREAMS, places=st.lists(st.integers(0, 10_000), max_size=6))
@example(stream=b"NOOP\nMAIL FROM:<a@b.example>\r\nVRFY x\r\n", places=[5])
@example(stream=b"HELO x\r\nMAIL FROM:<raise@b.example>\r\nRSET\r\nNOOP\r\n", places=[])
@example(stream=b"NOOP\r\n" * (3 * EVENTS_A_TURN) + b"QUIT\r\nNOOP\r\n", places=[])
@settings(deadline=None)
def test_fast_path_general_path_and_any_packets_give_the_same_dialogue(
    runner: asyncio.Runner, handler: Any, stream: bytes, places: list[int]
) -> None:
    expected = runner.run(talk(handler(), [stream], fast=False))
    for packets in ([stream], cut(stream, places)):
        assert runner.run(talk(handler(), packets)) == expected
    assert runner.run(talk(handler(), cut(stream, places), fast=False)) == expected


@given(
    line=st.one_of(
        LINES,
        st.from_regex(rb"(?:MAIL FROM|RCPT TO):<[a-c.@+\"-]{0,12}>[ A-Z=0-9]{0,9}", fullmatch=True),
        st.binary(max_size=30),
    )
)
@example(line=b"QUIT")
@example(line=b"MAIL FROM:<a@" + b"b" * 63 + b">")
@example(line=b"RCPT TO:<a@" + b"b" * 32 + b"." + b"c" * 31 + b">")
@example(line=b"RCPT TO:<a@b." + b"c" * 64 + b">")
def test_the_general_path_reads_commands_of_the_fast_path_alike(line: bytes) -> None:
    assume(b"\r\n" not in line)  # it is one line
    match = frequent(line + b"\r\n")
    if match is None or match.end() > LONGEST:
        return
    framer = Framer(BareNewline.REJECT)
    framer.feed(line + b"\r\n")
    assert framer.next() == line
    assert framer.idle
    word, _, rest = line.decode("ascii").partition(" ")
    address = match[1] or match[3]
    if address is not None:
        path = rest.partition(":")[2]
        parsed = parse_path(path, strict=True, postmaster=False)
        assert parsed is not None
        assert parse_path(path) == parsed
        assert parsed[0] == address.decode()
        assert parse_params(parsed[1]) == parse_params((match[2] or b"").decode()) is not None
    elif match[4] is not None:
        assert (word, rest) == (match[4].decode(), "")
    else:
        assert (word, rest) == (match[5].decode(), match[6].decode())


def test_a_session_uses_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would compare the general path with itself."""
    monkeypatch.setattr(Framer, "feed", None)
    packets = [
        b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
        b"text\r\n.\r\n", b"QUIT\r\n",
    ]  # fmt: skip
    sent, closed, got = asyncio.run(talk(OnlyData(), packets))
    assert closed
    assert len(got) == 1
    assert sent.endswith(b"221 2.0.0 Bye\r\n")
