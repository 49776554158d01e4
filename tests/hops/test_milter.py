"""The milter protocol without a socket: frames, options, changes of a message."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_fork.hops.milter.codec import (
    LONGEST_FRAME,
    FrameReader,
    MilterGarbageError,
    frame,
    parse_options,
    texts,
)
from smtpd_fork.hops.milter.edited import MOST_FIELDS, HeaderTooLargeError, Parts
from smtpd_fork.hops.milter.verdict import Edit, reply_of
from smtpd_fork.testing import MESSAGES

FRAMES = st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=40)), max_size=8)
VALUES = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b""))


@given(FRAMES, st.lists(st.integers(0, 400), max_size=6))
def test_any_split_of_a_stream_gives_the_same_frames(
    frames: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(*each) for each in frames)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    reader = FrameReader()
    got: list[tuple[bytes, bytes]] = []
    for start, end in itertools.pairwise(edges):
        got += reader.feed(stream[start:end])
    assert got == frames
    assert reader.held == 0


@pytest.mark.parametrize("length", [0, LONGEST_FRAME + 1, 0xFFFFFFFF])
def test_a_frame_has_a_command_and_a_bounded_length(length: int) -> None:
    with pytest.raises(MilterGarbageError):
        list(FrameReader(1 << 40).feed(struct.pack(">I", length)))


@given(st.binary(max_size=60))
def test_options_are_understood_or_refused(data: bytes) -> None:
    try:
        options = parse_options(data)
    except MilterGarbageError:
        return
    assert 2 <= options.version <= 6


@given(st.binary(max_size=40))
def test_texts_are_as_many_as_wanted(data: bytes) -> None:
    try:
        found = texts(data, 1, 2)
    except MilterGarbageError:
        return
    assert 1 <= len(found) <= 2
    assert b"\0" not in b"".join(found)


@given(st.binary(max_size=200))
def test_a_reply_of_a_milter_is_a_refusal_on_one_line(data: bytes) -> None:
    reply = reply_of(data)
    assert reply[0] in "45"
    assert reply.isascii()
    assert reply.isprintable()
    assert len(reply) < 450


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_told_in_parts_that_are_all_of_it(name: str) -> None:
    content = MESSAGES[name]
    parts = Parts(content)
    found = list(parts.names_and_values)
    header = b"".join(n + b":" + v + b"\r\n" for n, v in found)
    assert parts.edited([], leading_space=True) is content
    if found:
        told = header + b"\r\n" + content[parts.body :]
        front = content[: content.index(found[0][0] + b":")]
        assert front + told in {content, content + b"\r\n", content + b"\r\n\r\n"}


@pytest.mark.parametrize("name", MESSAGES)
@settings(max_examples=10)
@given(value=VALUES)
def test_a_field_that_is_added_and_deleted_leaves_the_message_as_it_was(
    name: str, value: bytes
) -> None:
    content = MESSAGES[name]
    added = Edit(b"h", 0, b"X-Added", b" v" + value)
    once = Parts(content).edited([added], leading_space=True)
    fields = [n for n, _ in Parts(once).names_and_values]
    assert fields == [*(n for n, _ in Parts(content).names_and_values), b"X-Added"]
    assert Parts(once).body - Parts(content).body + len(content) == len(once)
    assert once[Parts(once).body :] == content[Parts(content).body :]
    again = Parts(once).edited([Edit(b"m", 1, b"x-added", b"")], leading_space=True)
    assert again[Parts(again).body :] == content[Parts(content).body :]


def test_a_header_has_a_limit() -> None:
    Parts(b"a:\r\n" * MOST_FIELDS)
    with pytest.raises(HeaderTooLargeError):
        Parts(b"a:\r\n" * (MOST_FIELDS + 1))
    with pytest.raises(HeaderTooLargeError):
        Parts(b"a: " + b"x" * (1 << 20) + b"\r\n\r\n")


def test_a_binary_body_is_replaced_as_it_is() -> None:
    edits = [Edit(b"b", value=b"a\nb\rc\0")]
    assert Parts(b"A: b\r\n\r\nx").edited(edits, leading_space=True, binary=True) == (
        b"A: b\r\n\r\na\nb\rc\0"
    )
