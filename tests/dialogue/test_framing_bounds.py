"""Framing is limited in memory, and its work is linear in the size of the stream."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.framing import MODES, SMALL_LINE, STREAMS, Limits

from smtpd_fork.dialogue import framer as framer_module
from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.content import BareNewline, BodyFault, Content
from smtpd_fork.dialogue.framer import LINE_LIMIT, Chunk, Framer


def in_memory(size: int) -> int:
    """Return the maximum memory of a buffer of *size* octets: it grows by an eighth in advance."""
    return size + size // 8 + 256


@settings(max_examples=300, deadline=None)
@given(
    packets=st.lists(STREAMS, max_size=30),
    bare=st.sampled_from(MODES),
    size=st.sampled_from([1, 40, 200]),
)
def test_the_memory_of_a_body_is_limited(
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
def test_a_flood_into_a_body_is_not_stored(packet: bytes, bare: BareNewline) -> None:
    body = Body(100_000, 0, bare)
    for _ in range(1000):
        assert body.feed(packet) is None
        assert body.held <= in_memory(100_000)
    assert body.fault is BodyFault.TOO_MUCH
    assert body.held == 0
    assert len(body._held) <= 4


@pytest.mark.parametrize("packet", [b"x" * 4096, b"\r" * 4096, b"\n\r" * 2048, b"\0" * 4096])
@pytest.mark.parametrize("bare", MODES)
def test_a_flood_without_line_ends_is_not_stored(packet: bytes, bare: BareNewline) -> None:
    framer = Framer(bare)
    for _ in range(1000):
        framer.feed(packet)
        assert framer.pending <= LINE_LIMIT + 1 + len(packet)
        while framer.next() is not None:
            pass
        assert framer.pending <= LINE_LIMIT + 1


@settings(max_examples=300, deadline=None)
@given(packets=st.lists(STREAMS, max_size=30), bare=st.sampled_from(MODES))
def test_a_framer_stores_at_most_a_line_and_a_packet(
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


def test_a_rejected_chunk_is_not_stored() -> None:
    chunk = Chunk(1_000_000, None)
    for _ in range(99):
        assert chunk.feed(b"x" * 10_000) is None
        assert chunk.held == 0
    assert chunk.feed(b"x" * 10_000 + b"rest") == 10_000


def test_only_its_size_ends_a_chunk() -> None:
    framer = Framer(BareNewline.REJECT)
    content = Content(*Limits(bare=BareNewline.ACCEPT))
    chunk = Chunk(12, content)
    framer.expect(chunk)
    framer.feed(b"\r\n.\r\nNOOP\r\n\0NOOP\r\n")
    assert framer.next() is chunk
    assert content.take() == b"\r\n.\r\nNOOP\r\n\0"
    assert framer.next() == b"NOOP"


class Counted(bytes):
    """Counts the bytes that are searched and copied in it and in its slices."""

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

    :param at_once: whether all packets are added before the first event is requested
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
def test_the_work_is_linear_however_the_stream_is_split(
    what: str, before: bytes, bare: BareNewline
) -> None:
    def ways(count: int) -> list[tuple[list[bytes], bool]]:
        stream = before + MUCH[what] * count
        single = [bytes([byte]) for byte in stream]
        return [([stream], False), (single, False), (single, True)]

    for (few, at_once), (many, _) in zip(ways(400), ways(2000), strict=True):
        assert work(many, bare, at_once=at_once) <= 6 * work(few, bare, at_once=at_once) + 50_000
