"""Framing: the same events however the bytes are cut, by the same rules as the naive way."""

from __future__ import annotations

import re
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_fork.smtp import framer as framer_module
from smtpd_fork.smtp.body import BareNewline, Body, BodyFault
from smtpd_fork.smtp.framer import LINE_LIMIT, Chunk, CommandFault, Framer

SMALL_LINE = 24
"""A limit for command lines that random input passes often enough."""

MODES = list(BareNewline)


class Limits(NamedTuple):
    """What a Body of the test gets."""

    size: int = 200
    line: int = 50
    bare: BareNewline = BareNewline.REJECT


def events(data: bytes, cuts: list[int], limits: Limits) -> list[object]:
    """Return all events of *data*, in packets that end at *cuts*."""
    framer = Framer(limits.bare)
    seen: list[object] = []
    position = 0
    for cut in [*cuts, len(data)]:
        framer.feed(data[position:cut])
        position = cut
        while (event := framer.next()) is not None:
            if isinstance(event, Body):
                seen.append((event.fault, event.size, event.content()))
            elif isinstance(event, Chunk):
                seen.append(bytes(event.data))
            else:
                seen.append(event)
            if event == b"DATA":
                framer.expect(Body(*limits))
            elif isinstance(event, bytes) and re.fullmatch(rb"BDAT [1-9]", event):
                framer.expect(Chunk(int(event[5:]), keep=True))
    return seen


TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"..",
    b"\0",
    b"\r\n.\r\n",
    b"\n.\n",
    b"DATA\r\n",
    b"BDAT 7\r\n",
    b"BDAT 1\r\n",
    b"NOOP\r\n",
    b"DATA\n",
    b"x",
    b"x" * 20,
    b"y" * (SMALL_LINE - 1),
    b"y" * SMALL_LINE,
    b"z" * 60,
    b"w" * 201,
]

STREAMS = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=16).map(b"".join)
BODIES = st.lists(
    st.sampled_from([t for t in TOKENS if t != b"\r\n.\r\n"]) | st.binary(max_size=4), max_size=16
).map(b"".join)
LIMITS = st.builds(
    Limits,
    size=st.sampled_from([0, 1, 40, 200]),
    line=st.sampled_from([0, 3, 21, 50]),
    bare=st.sampled_from(MODES),
)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    data = draw(STREAMS)
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=8))
    return data, sorted(cuts)


@settings(max_examples=600, deadline=None)
@given(stream=cut_streams(), limits=LIMITS)
def test_any_split_into_packets_gives_the_events_of_the_whole(
    stream: tuple[bytes, list[int]], limits: Limits
) -> None:
    data, cuts = stream
    with patch.object(framer_module, "LINE_LIMIT", SMALL_LINE):
        whole = events(data, [], limits)
        assert events(data, cuts, limits) == whole
        assert events(data, list(range(1, len(data))), limits) == whole


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("length", range(LINE_LIMIT - 3, LINE_LIMIT + 4))
@pytest.mark.parametrize("ending", [b"\r\n", b"\n", b"\r\r\n", b"\0\r\n", b"\nx\r\n"])
def test_a_line_about_the_limit_is_the_same_however_it_comes(
    bare: BareNewline, length: int, ending: bytes
) -> None:
    data = b"x" * length + ending + b"NOOP\r\n"
    whole = events(data, [], Limits(bare=bare))
    for cut in range(length - 2, len(data)):
        assert events(data, [cut], Limits(bare=bare)) == whole, cut
    assert events(data, list(range(length - 3, len(data))), Limits(bare=bare)) == whole


# -- against the naive way ---------------------------------------------------------------------


class Naive(NamedTuple):
    """What one Body should come to."""

    fault: BodyFault | None
    size: int
    content: bytes
    rest: bytes


def naive(data: bytes, limits: Limits) -> Naive | None:
    """Read a message line by line, as RFC 5321 tells it; None if it does not end."""
    size, long, bare, kept = 0, False, False, b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        if line == b".":
            break
        size += len(line) + 2
        long = long or 0 < limits.line < len(line) + 2
        bare = bare or any(byte in line for byte in (b"\r", b"\n", b"\0"))
        kept += line.removeprefix(b".") + b"\r\n"
    fault = None
    if bare and limits.bare is BareNewline.REJECT:
        fault = BodyFault.BARE
    if 0 < limits.size < size:
        fault = BodyFault.TOO_MUCH
    if long:
        fault = BodyFault.TOO_LONG
    if limits.bare is BareNewline.NORMALIZE:
        kept = re.sub(rb"\r\n|\r|\n", b"\r\n", kept.replace(b"\0", b""))
    return Naive(fault, size, b"" if fault else kept, data)


def read(data: bytes, limits: Limits, packet: int) -> Naive | None:
    body = Body(*limits)
    for position in range(0, len(data), packet):
        rest = body.feed(data[position : position + packet])
        if rest is not None:
            rest += data[position + packet :]
            return Naive(body.fault, body.size, body.content(), rest)
    return None


@settings(max_examples=600, deadline=None)
@given(data=BODIES, limits=LIMITS, packet=st.integers(1, 40), tail=st.binary(max_size=8))
@example(data=b"", limits=Limits(), packet=1, tail=b"")
@example(data=b".", limits=Limits(), packet=1, tail=b".\r\n")
@example(data=b"..\r\n.x\r\n\r\n..\r\n", limits=Limits(), packet=2, tail=b"NOOP\r\n")
def test_a_body_is_what_a_line_by_line_reader_makes_of_it(
    data: bytes, limits: Limits, packet: int, tail: bytes
) -> None:
    for ending in (b"\r\n.\r\n", b".\r\n"):
        stream = data + ending + tail
        assert read(stream, limits, packet) == naive(stream, limits)
        assert read(stream, limits, len(stream)) == naive(stream, limits)


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b".x\r\n.\r\n", b"x\r\n"),
        (b"...\r\n.\r\n", b"..\r\n"),
        (b"x\r\n..\r\n..\r\n.\r\n", b"x\r\n.\r\n.\r\n"),
        (b"x..\r\n.\r\n", b"x..\r\n"),
    ],
)
def test_dots_are_unstuffed(sent: bytes, content: bytes) -> None:
    for packet in range(1, len(sent) + 1):
        assert read(sent, Limits(), packet) == Naive(None, len(sent) - 3, content, b"")


@pytest.mark.parametrize("limit", [998, 1000])
def test_a_line_is_measured_with_its_crlf(limit: int) -> None:
    fits = b"x" * (limit - 2) + b"\r\n.\r\n"
    for packet in (1, 7, 999, len(fits) + 1):
        for line, fault in ((fits, None), (b"x" + fits, BodyFault.TOO_LONG)):
            got = read(b"first\r\n" + line, Limits(0, limit), packet)
            assert got is not None
            assert got.fault is fault


# -- memory ------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    packets=st.lists(STREAMS, max_size=30),
    bare=st.sampled_from(MODES),
    size=st.sampled_from([1, 40, 200]),
)
def test_a_body_holds_no_more_than_its_limit(
    packets: list[bytes], bare: BareNewline, size: int
) -> None:
    body = Body(size, 0, bare)
    for packet in packets:
        rest = body.feed(packet)
        assert body.held <= size
        if rest is not None:
            break


@pytest.mark.parametrize("packet", [b"x" * 4096, b"\r\n" * 2048, b"\n" * 4096, b"\r\n.." * 1024])
@pytest.mark.parametrize("bare", MODES)
def test_a_flood_into_a_body_is_not_held(packet: bytes, bare: BareNewline) -> None:
    body = Body(100_000, 0, bare)
    for _ in range(1000):
        assert body.feed(packet) is None
        assert body.held <= 100_000
    assert body.fault is BodyFault.TOO_MUCH
    assert body.held == 0
    assert len(body._held) <= 4


@pytest.mark.parametrize("packet", [b"x" * 4096, b"\r" * 4096, b"\n\r" * 2048, b"\0" * 4096])
@pytest.mark.parametrize("bare", MODES)
def test_a_flood_of_no_commands_is_not_held(packet: bytes, bare: BareNewline) -> None:
    framer = Framer(bare)
    for _ in range(1000):
        framer.feed(packet)
        assert framer.pending <= LINE_LIMIT + 1 + len(packet)
        while framer.next() is not None:
            pass
        assert framer.pending <= LINE_LIMIT + 1


@settings(max_examples=300, deadline=None)
@given(packets=st.lists(STREAMS, max_size=30), bare=st.sampled_from(MODES))
def test_a_framer_holds_no_more_than_a_line_and_a_packet(
    packets: list[bytes], bare: BareNewline
) -> None:
    with patch.object(framer_module, "LINE_LIMIT", SMALL_LINE):
        framer = Framer(bare)
        for packet in packets:
            framer.feed(packet)
            assert framer.pending <= SMALL_LINE + 1 + len(packet)
            while framer.next() is not None:
                pass
            assert framer.pending <= SMALL_LINE + 1  # and the CR of its end


def test_a_chunk_that_is_not_wanted_is_not_held() -> None:
    chunk = Chunk(1_000_000, keep=False)
    for _ in range(99):
        assert chunk.feed(b"x" * 10_000) is None
        assert chunk.held == 0
    assert chunk.feed(b"x" * 10_000 + b"rest") == b"rest"


def test_a_chunk_is_ended_by_its_size_and_by_nothing_else() -> None:
    framer = Framer(BareNewline.REJECT)
    chunk = Chunk(12, keep=True)
    framer.expect(chunk)
    framer.feed(b"\r\n.\r\nNOOP\r\n\0NOOP\r\n")
    assert framer.next() is chunk
    assert bytes(chunk.data) == b"\r\n.\r\nNOOP\r\n\0"
    assert framer.next() == b"NOOP"


# -- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"NOOP\r\n", [b"NOOP"]),
        (b"\r\n", [b""]),
        (b"A\r\nB\r\n", [b"A", b"B"]),
        (b"A\nB\r\nC\r\n", [CommandFault.BARE, b"C"]),
        (b"A\rB\r\nC\r\n", [CommandFault.BARE, b"C"]),
        (b"A\r\r\nC\r\n", [CommandFault.BARE, b"C"]),
        (b"A\0\r\nC\r\n", [CommandFault.BARE, b"C"]),
        (b"x" * 20_000 + b"\r\nC\r\n", [CommandFault.TOO_LONG, b"C"]),
    ],
)
def test_commands_end_at_crlf(sent: bytes, expected: list[object]) -> None:
    for packet in (1, 2, 3, len(sent)):
        cuts = list(range(packet, len(sent), packet))
        assert events(sent, cuts, Limits()) == expected
