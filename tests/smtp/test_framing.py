"""Framing: the same events however the bytes are cut, by the same rules as the naive way."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_fork.dialogue import framer as framer_module
from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.content import BareNewline, BodyFault, Content
from smtpd_fork.dialogue.framer import LINE_LIMIT, Chunk, CommandFault, Framer

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
    content = Content(*limits)
    seen: list[object] = []
    position = 0
    for cut in [*cuts, len(data)]:
        framer.feed(data[position:cut])
        position = cut
        while (event := framer.next()) is not None:
            if isinstance(event, Body):
                seen.append((event.fault, not event.fault and event.size, event.take()))
            elif isinstance(event, Chunk):
                seen.append(content.take())
            else:
                seen.append(event)
            if event == b"DATA":
                framer.expect(Body(*limits))
            elif isinstance(event, bytes) and re.fullmatch(rb"BDAT [1-9]", event):
                content = Content(*limits)
                framer.expect(Chunk(int(event[5:]), content))
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
    content: bytes
    rest: bytes


def judged(content: bytes, limits: Limits) -> tuple[BodyFault | None, bytes]:
    """Return what is wrong with *content*, octet by octet, and what it becomes."""
    bare = b"\0" in content or re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None
    if limits.bare is BareNewline.NORMALIZE:
        content = re.sub(rb"\r{1,3}\n|\r|\n", b"\r\n", content)
    line = 0
    for size, octet in enumerate(content, 1):
        line += 1
        if 0 < limits.size < size:
            return BodyFault.TOO_MUCH, b""
        if 0 < limits.line < line:
            return BodyFault.TOO_LONG, b""
        line = 0 if octet == ord("\n") else line
    if bare and limits.bare is BareNewline.REJECT:
        return BodyFault.BARE, b""
    return None, content


def naive(data: bytes, limits: Limits) -> Naive | None:
    """Read a message line by line, as RFC 5321 tells it; None if it does not end."""
    kept = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        if line == b".":
            break
        kept += line.removeprefix(b".") + b"\r\n"
    return Naive(*judged(kept, limits), data)


def read(data: bytes, limits: Limits, packet: int) -> Naive | None:
    body = Body(*limits)
    for position in range(0, len(data), packet):
        end = body.feed(data[: position + packet], position)
        if end is not None:
            content = body.take()
            assert body.fault or body.size == len(content)
            return Naive(body.fault, content, data[end:])
    return None


@settings(max_examples=600, deadline=None)
@given(data=BODIES, limits=LIMITS, part=st.integers(1, 40))
@example(data=b"abc\r", limits=Limits(size=3), part=1)
@example(data=b"x" * 30 + b"\r\n\r\n", limits=Limits(33, 20, BareNewline.REJECT), part=31)
def test_the_same_octets_in_chunks_are_judged_as_those_of_a_body(
    data: bytes, limits: Limits, part: int
) -> None:
    content = Content(*limits)
    for position in range(0, len(data), part):
        content.add(data[position : position + part])
    content.finish()
    assert (content.fault, content.take()) == judged(data, limits)


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
        assert read(sent, Limits(), packet) == Naive(None, content, b"")


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        (b"a\r\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\r\r\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\r\r\r\r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\r\n\r\r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\rb\r\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\n\r\nb\r\n", b"a\r\n\r\nb\r\n"),
    ],
)
def test_cr_before_cr_lf_makes_no_line_of_its_own(sent: bytes, content: bytes) -> None:
    """CR CR LF is what becomes of CR LF in programs that make CR LF of each LF."""
    for packet in range(1, len(sent) + 1):
        assert read(sent + b".\r\n", Limits(bare=BareNewline.NORMALIZE), packet) == Naive(
            None, content, b""
        )


@pytest.mark.parametrize("limit", [998, 1000])
def test_a_line_is_measured_with_its_crlf(limit: int) -> None:
    fits = b"x" * (limit - 2) + b"\r\n.\r\n"
    for packet in (1, 7, 999, len(fits) + 1):
        for line, fault in ((fits, None), (b"x" + fits, BodyFault.TOO_LONG)):
            got = read(b"first\r\n" + line, Limits(0, limit), packet)
            assert got is not None
            assert got.fault is fault


# -- memory ------------------------------------------------------------------------------------


def in_memory(size: int) -> int:
    """Return what a buffer of *size* octets takes at most: it grows by an eighth in advance."""
    return size + size // 8 + 256


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
        end = body.feed(packet)
        assert body.held <= in_memory(size)
        if end is not None:
            break


@pytest.mark.parametrize("packet", [b"x" * 4096, b"\r\n" * 2048, b"\n" * 4096, b"\r\n.." * 1024])
@pytest.mark.parametrize("bare", MODES)
def test_a_flood_into_a_body_is_not_held(packet: bytes, bare: BareNewline) -> None:
    body = Body(100_000, 0, bare)
    for _ in range(1000):
        assert body.feed(packet) is None
        assert body.held <= in_memory(100_000)
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
    chunk = Chunk(1_000_000, None)
    for _ in range(99):
        assert chunk.feed(b"x" * 10_000) is None
        assert chunk.held == 0
    assert chunk.feed(b"x" * 10_000 + b"rest") == 10_000


def test_a_chunk_is_ended_by_its_size_and_by_nothing_else() -> None:
    framer = Framer(BareNewline.REJECT)
    content = Content(*Limits(bare=BareNewline.ACCEPT))
    chunk = Chunk(12, content)
    framer.expect(chunk)
    framer.feed(b"\r\n.\r\nNOOP\r\n\0NOOP\r\n")
    assert framer.next() is chunk
    assert content.take() == b"\r\n.\r\nNOOP\r\n\0"
    assert framer.next() == b"NOOP"


# -- time ------------------------------------------------------------------------------------------


class Counted(bytes):
    """Counts the bytes that are searched and copied, of itself and of what is cut from it."""

    work = 0

    def find(self, mark: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(mark, start, end)
        Counted.work += (len(self) if found < 0 else found) - start
        return found

    def rfind(self, mark: Any, start: Any = 0, end: Any = None) -> int:
        found = super().rfind(mark, start, end)
        Counted.work += len(self[slice(start, end)]) - max(found - start, 0)
        return found

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if isinstance(part, int):
            return part
        Counted.work += len(part)
        return Counted(part)

    def __add__(self, other: Any) -> Counted:
        Counted.work += len(self) + len(other)
        return Counted(super().__add__(other))


def work(packets: list[bytes], bare: BareNewline, *, at_once: bool) -> int:
    """Return how many bytes are searched and copied for *packets*.

    :param at_once: whether all come before the first event is asked for
    """
    framer = Framer(bare)
    Counted.work = 0
    for number, packet in enumerate(packets):
        framer.feed(Counted(packet))
        if at_once and number < len(packets) - 1:
            continue
        while (event := framer.next()) is not None:
            if event == b"DATA":
                framer.expect(Body(0, 1000, bare))
            elif isinstance(event, bytes) and event.startswith(b"BDAT "):
                framer.expect(Chunk(int(event[5:]), Content(0, 1000, bare)))
    return Counted.work


MUCH = {
    "commands that LF ends": b"NOOP\n",
    "commands that CR LF ends": b"NOOP\r\n",
    "chunks": b"BDAT 1\r\nx",
    "messages": b"DATA\r\nx\r\n.\r\n",
    "messages with dots": b"DATA\r\n..\r\n.\r\n",
    "no line end": b"x",
    "CR": b"\r",
}


@pytest.mark.parametrize("bare", MODES)
@pytest.mark.parametrize("before", [b"", b"DATA\r\n", b"BDAT 99999999\r\n"])
@pytest.mark.parametrize("what", MUCH)
def test_the_work_grows_as_the_stream_does_however_it_comes(
    what: str, before: bytes, bare: BareNewline
) -> None:
    def ways(count: int) -> list[tuple[list[bytes], bool]]:
        stream = before + MUCH[what] * count
        single = [bytes([byte]) for byte in stream]
        return [([stream], False), (single, False), (single, True)]

    for (few, at_once), (many, _) in zip(ways(400), ways(2000), strict=True):
        assert work(many, bare, at_once=at_once) <= 6 * work(few, bare, at_once=at_once) + 50_000


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
