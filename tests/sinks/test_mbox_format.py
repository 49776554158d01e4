"""The format mboxrd: a reader finds the same messages, and can reverse the quoting."""

from __future__ import annotations

import mailbox
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_fork.message.lines import spans, unix_lines
from smtpd_fork.sinks import mbox_format
from smtpd_fork.sinks.mbox_format import from_line, mbox_pieces

NOW = datetime(2026, 11, 7, 5, 4, 3, tzinfo=UTC)
FIRST = from_line("a@example.org", NOW)
HEAD = b"Return-Path: <a@example.org>\r\n"

any_lines = st.lists(
    st.sampled_from(
        [b"From x", b">From y", b">>From ", b"From: z", b"", b"x", b" From ", b">", b"\r"]
    )
    | st.binary(max_size=5),
    max_size=12,
)
any_content = st.builds(
    lambda parts, end: b"\r\n".join(parts) + end, any_lines, st.sampled_from([b"", b"\r\n"])
)


def unquoted(text: bytes) -> bytes:
    return re.sub(rb"(?m)^>(>*From )", rb"\1", text)


@given(st.lists(any_content, min_size=1, max_size=4))
@example([b"From x\r\n", b"\r\nFrom y"])
def test_python_reads_the_original_messages(contents: list[bytes]) -> None:
    headed = [b"Subject: x\r\n\r\n" + content for content in contents]
    with TemporaryDirectory() as directory:
        path = Path(directory, "mbox")
        path.write_bytes(b"".join(b"".join(mbox_pieces(FIRST, HEAD, each)) for each in headed))
        box = mailbox.mbox(path, create=False)
        read = [unquoted(box.get_bytes(key)) for key in box.keys()]  # noqa: SIM118 - not a dict
        box.close()
    expected = []
    for each in headed:
        text = (HEAD + each).replace(b"\r\n", b"\n")
        expected.append(text if text.endswith(b"\n") else text + b"\n")
    assert read == expected


@given(any_content, st.integers(2, 40))
@example(b"x" * 10 + b"\r\nFrom y", 5)
@example(b">" * 10 + b"From y\r\n", 4)
def test_the_pieces_do_not_change_the_result(content: bytes, size: int) -> None:
    whole = b"".join(mbox_pieces(FIRST, HEAD, content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mbox_format, "PIECE_BYTES", size)
        assert b"".join(mbox_pieces(FIRST, HEAD, content)) == whole


@pytest.mark.parametrize("line", [b"From x\r\n", b">From x\r\n", b"x" * 300_000 + b"\r\n"])
def test_no_piece_blocks_the_event_loop_for_too_long(line: bytes) -> None:
    content = line * (1_000_000 // len(line))
    assert max(map(len, mbox_pieces(FIRST, HEAD, content))) <= 100_000


@given(st.binary() | any_content, st.integers(2, 40))
def test_the_result_does_not_depend_on_the_size_of_the_pieces(content: bytes, size: int) -> None:
    assert b"".join(content[a:b] for a, b in spans(content, size)) == content
    assert all(0 < b - a <= size for a, b in spans(content, size))
    assert b"".join(unix_lines(content, size)) == content.replace(b"\r\n", b"\n")


@settings(max_examples=20)
@given(st.text(max_size=20))
def test_the_line_above_a_message_is_one_line_of_five_words_and_a_sender(sender: str) -> None:
    line = from_line(sender, NOW)
    assert re.fullmatch(rb"From [!-~]+ Sat Nov  7 05:04:03 2026\n", line)


def test_the_null_sender_is_mailer_daemon_and_the_time_is_utc() -> None:
    when = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert from_line("", when) == b"From MAILER-DAEMON Wed Dec 31 23:30:00 2025\n"


def test_a_message_without_content_ends_with_an_empty_line() -> None:
    assert b"".join(mbox_pieces(b"From x\n", b"A: b\r\n", b"")) == b"From x\nA: b\n\n"


def test_a_large_message_of_one_line_takes_linear_time() -> None:
    content = b"From " + b"x" * 5_000_000
    assert b"".join(mbox_pieces(FIRST, HEAD, content)).endswith(b"\n>" + content + b"\n\n")
