"""Framing: the same events however the bytes are split, compared with a simple implementation."""

from __future__ import annotations

import re
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.framing import MODES, SMALL_LINE, STREAMS, TOKENS, Limits

from smtpd_fork.dialogue import framer as framer_module
from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.content import BareNewline, BodyFault, Content
from smtpd_fork.dialogue.framer import LINE_LIMIT, Chunk, CommandFault, Framer


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
def test_a_line_near_the_limit_is_the_same_however_it_is_split(
    bare: BareNewline, length: int, ending: bytes
) -> None:
    data = b"x" * length + ending + b"NOOP\r\n"
    whole = events(data, [], Limits(bare=bare))
    for cut in range(length - 2, len(data)):
        assert events(data, [cut], Limits(bare=bare)) == whole, cut
    assert events(data, list(range(length - 3, len(data))), Limits(bare=bare)) == whole


# -- compared with a simple implementation -----------------------------------------------------


class Naive(NamedTuple):
    """The expected result of a Body."""

    fault: BodyFault | None
    content: bytes
    rest: bytes


def judged(content: bytes, limits: Limits) -> tuple[BodyFault | None, bytes]:
    """Return the error of *content*, checked octet by octet, and the converted content."""
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
    """Read a message line by line, by RFC 5321; None if it has no end."""
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
def test_octets_in_chunks_have_the_same_result_as_in_a_body(
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
def test_a_body_has_the_same_result_as_a_line_by_line_reader(
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
def test_a_cr_before_cr_lf_does_not_add_a_line(sent: bytes, content: bytes) -> None:
    """Programs that put a CR before each LF turn CR LF into CR CR LF."""
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
