"""The milter protocol without a socket: frames, options, changes of a message."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mail import Counted

from smtpd_fork.hops.milter import verdict
from smtpd_fork.hops.milter.codec import (
    LONGEST_FRAME,
    FrameReader,
    MilterGarbageError,
    frame,
    texts,
)
from smtpd_fork.hops.milter.conversation import WRITE_BYTES, Conversation, State
from smtpd_fork.hops.milter.edited import MOST_FIELDS, MOST_HEADER_BYTES, HeaderTooLargeError, Parts
from smtpd_fork.hops.milter.events import CONNECT, END, MAIL, RCPT, Step, body_steps, header_step
from smtpd_fork.hops.milter.options import parse_options
from smtpd_fork.hops.milter.verdict import LONGEST_REPLY, Edit, reply_of
from smtpd_fork.testing import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FRAMES = st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=40)), max_size=8)
VALUES = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b""))


@given(FRAMES, st.lists(st.integers(0, 400), max_size=6))
def test_the_frames_do_not_depend_on_how_the_stream_is_split(
    frames: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(*each) for each in frames)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    reader = FrameReader()
    got: list[tuple[bytes, bytes]] = []
    for start, end in itertools.pairwise(edges):
        got += reader.feed(stream[start:end])
    assert got == frames
    assert reader.buffered == 0


@pytest.mark.parametrize("length", [0, LONGEST_FRAME + 1, 0xFFFFFFFF])
def test_a_frame_has_a_command_and_a_bounded_length(length: int) -> None:
    with pytest.raises(MilterGarbageError):
        list(FrameReader(1 << 40).feed(struct.pack(">I", length)))


@given(st.binary(max_size=60))
def test_options_are_accepted_or_refused(data: bytes) -> None:
    try:
        options = parse_options(data)
    except MilterGarbageError:
        return
    assert 2 <= options.version <= 6


@given(st.binary(max_size=40))
def test_the_number_of_texts_of_a_frame_is_checked(data: bytes) -> None:
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


def test_only_a_limited_part_of_a_reply_is_parsed() -> None:
    lines = b"550-5.7.1 x\r\n" * (LONGEST_REPLY // 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "client_reply", lambda reply: str(len(reply.lines)))
        assert reply_of(lines) == str(LONGEST_REPLY // 13 + 1)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_events_of_a_message_are_the_whole_message(name: str) -> None:
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
def test_adding_and_deleting_a_field_leaves_the_message_unchanged(name: str, value: bytes) -> None:
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
    folded = Counted(b"Subject: x\r\n" + b" y\r\n" * (MOST_HEADER_BYTES // 2))
    with pytest.raises(HeaderTooLargeError):
        Parts(folded)
    assert folded.looks < MOST_HEADER_BYTES // 3
    with pytest.raises(HeaderTooLargeError):
        Parts(b"a:\r\n" * (MOST_FIELDS + 1))
    with pytest.raises(HeaderTooLargeError):
        Parts(b"a: " + b"x" * (1 << 20) + b"\r\n\r\n")


def test_a_new_binary_body_is_not_converted() -> None:
    edits = [Edit(b"b", value=b"a\nb\rc\0")]
    assert Parts(b"A: b\r\n\r\nx").edited(edits, leading_space=True, binary=True) == (
        b"A: b\r\n\r\na\nb\rc\0"
    )


# -- a conversation --------------------------------------------------------------------------------

ANSWERS = st.sampled_from([b"c", b"c", b"c", b"p", b"a", b"r", b"t", b"d", b"s", b"yx", b"h", b"Z"])


def _events(conversation: Conversation) -> Iterator[Step]:
    yield Step(CONNECT, b"x\0U", {"j": "x"})
    yield Step(MAIL, b"<a@x>\0", {"i": "1"})
    yield Step(RCPT, b"<b@x>\0")
    yield header_step([(b"A", b"b")], leading_space=True)
    yield from body_steps(b"x" * 70_000, 0)
    yield Step(END)


def _options(protocol: int) -> bytes:
    return frame(b"O", struct.pack(">III", 6, 0x1FF, protocol))


def _said_by(answers: Sequence[bytes], protocol: int, cuts: Sequence[int]) -> tuple[Any, ...]:
    """Return the result of a conversation whose milter sends *answers*, in pieces."""
    conversation = Conversation(1000)
    conversation.send(_events(conversation))
    conversation.receive(_options(protocol))
    sent = conversation.data_to_send()
    stream = b"".join(frame(each[:1], each[1:]) for each in answers)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        conversation.receive(stream[start:end])
    while data := conversation.data_to_send():
        sent += data
    return conversation.state, conversation.verdict, conversation.fault, conversation.settled, sent


@given(
    st.lists(ANSWERS, max_size=8),
    st.sampled_from([0, 0x400, 0xFF080, 0x100000, 0x1FF7FF]),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_the_result_of_any_answers_does_not_depend_on_how_they_are_split(
    answers: list[bytes], protocol: int, cuts: list[int]
) -> None:
    assert _said_by(answers, protocol, cuts)[:3] == _said_by(answers, protocol, [])[:3]
    state, verdict, fault, settled, _ = _said_by(answers, protocol, cuts)
    assert (state is State.ENDED) == bool(fault)
    assert settled or (verdict is None and not fault)


def test_thousands_of_recipients_are_sent_in_several_writes() -> None:
    conversation, sizes = Conversation(1000), []
    conversation.receive(_options(0))
    conversation.data_to_send()
    macros = {"i": "1", "{rcpt_addr}": "b@x.example", "{rcpt_mailer}": "esmtp"}
    conversation.send(Step(RCPT, b"<b@x.example>\0", macros) for _ in range(8000))
    while data := conversation.data_to_send():
        sizes.append(len(data))
    assert sum(sizes) > 2 * WRITE_BYTES
    assert max(sizes) < 1.5 * WRITE_BYTES
    conversation.receive(frame(b"c") * 8000)
    assert conversation.reusable


def _running(protocol: int = 0) -> Conversation:
    conversation = Conversation(1000)
    conversation.receive(_options(protocol))
    conversation.data_to_send()
    return conversation


def test_events_are_sent_together_and_answered_in_order() -> None:
    conversation = _running()
    conversation.send(_events(conversation))
    sent = conversation.data_to_send()
    assert [command for command, _ in FrameReader().feed(sent) if command != b"D"] == [
        *(bytes([each]) for each in b"CMRLBBE")
    ]
    conversation.receive(frame(b"c") * 6)
    assert not conversation.settled
    conversation.receive(frame(b"h", b"X\0y\0") + frame(b"a"))
    assert conversation.reusable
    assert conversation.verdict is not None
    assert [edit.name for edit in conversation.verdict.edits] == [b"X"]


def test_with_skip_each_chunk_of_the_body_waits_for_its_answer() -> None:
    conversation = _running(0x400)
    conversation.send(_events(conversation))
    conversation.data_to_send()
    conversation.receive(frame(b"c") * 4)
    assert conversation.data_to_send() == b""
    conversation.receive(frame(b"s"))
    assert conversation.data_to_send().endswith(frame(b"E"))


def test_a_conversation_is_reusable_after_a_verdict_only_when_all_events_are_answered() -> None:
    conversation = _running()
    conversation.send(_events(conversation))
    conversation.data_to_send()
    conversation.receive(frame(b"c") + frame(b"r"))
    assert conversation.verdict is not None
    assert conversation.decided_at is MAIL
    assert conversation.settled
    assert not conversation.reusable
    conversation.receive(frame(b"c") * 5)
    assert conversation.reusable


def test_an_unfinished_transaction_is_aborted_before_the_next() -> None:
    conversation = _running()
    conversation.send([Step(CONNECT, b"x\0U", {"j": "x"}), Step(MAIL, b"<a@x>\0", {"i": "1"})])
    conversation.data_to_send()
    conversation.receive(frame(b"c") * 2)
    conversation.begin()
    assert conversation.data_to_send() == frame(b"A")
    conversation.send([Step(MAIL, b"<a@x>\0", {"i": "2"}), Step(END)])
    assert conversation.data_to_send().startswith(frame(b"D", b"Mi\0002\0"))
    conversation.receive(frame(b"c") * 2)
    conversation.begin()
    assert conversation.data_to_send() == b""


def test_macros_of_a_transaction_are_removed_and_those_of_the_session_kept() -> None:
    conversation = _running()
    conversation.send([Step(CONNECT, b"x\0U", {"client_addr": "::1"})])
    conversation.data_to_send()
    conversation.send([Step(MAIL, b"<a@x>\0", {"auth_authen": "bob"}), Step(END)])
    conversation.data_to_send()
    conversation.receive(frame(b"c") * 3)
    conversation.begin()
    assert conversation._macros.values == {"client_addr": "::1"}


def test_a_refusal_can_concern_a_single_recipient() -> None:
    conversation = _running()
    conversation.send([Step(RCPT, b"<b@x>\0")], each_recipient=True)
    conversation.data_to_send()
    conversation.receive(frame(b"y", b"550 5.1.1 no\0"))
    assert (conversation.refused, conversation.verdict) == ("550 5.1.1 no", None)
    conversation.send([Step(RCPT, b"<c@x>\0")])
    conversation.data_to_send()
    conversation.receive(frame(b"r"))
    assert conversation.refused == ""
    assert conversation.verdict is not None
