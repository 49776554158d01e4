"""Header edits on bytes: all other bytes are unchanged."""

from __future__ import annotations

import email
import tracemalloc
from email.policy import SMTP as POLICY

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.handlers import an_envelope
from support.mail import Counted

from smtpd_fork.message.fields import (
    encode_field,
    fields,
    insert_field,
    prepend,
    prepend_all,
    remove_fields,
)

NAMES = st.sampled_from(["Subject", "X-A", "x-a", "Received", "DKIM-Signature"])
BODIES = st.binary(max_size=60).filter(lambda text: b"\n" not in text)
VALUES = st.sampled_from([b" x", b"", b" a\r\n b", b"\tx\r\n\t\r\n y", b" \xff\xfe", b" a: b"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(
    lambda pairs: b"".join(b"%b:%b\r\n" % (name.encode(), value) for name, value in pairs)
)
MESSAGES = st.builds(lambda head, body: head + b"\r\n" + body, HEADERS, BODIES) | st.binary()


@given(MESSAGES)
@example(b"")
@example(b"Subject: x")
@example(b"Subject: x\r\n folded")
@example(b"Subject: x\n\nbare newlines\n")
@example(b"From a@b Fri\r\nSubject: x\r\n\r\n")
def test_the_fields_are_the_beginning_of_the_message_without_a_gap(content: bytes) -> None:
    end = 0
    for field in fields(content):
        assert field.start == end
        end = field.end
        text = content[field.start : field.end]
        assert text.startswith(field.name)
        assert field.value in text
        assert text.count(b"\n") - field.value.count(b"\n") <= 1


@given(MESSAGES, st.integers(0, 8))
def test_adding_and_removing_a_field_restores_the_message(content: bytes, before: int) -> None:
    added = insert_field(content, "X-Added", "one two", before=before)
    assert [each.value for each in fields(added) if each.name == b"X-Added"] == [b" one two"]
    others = [each.value for each in fields(added) if each.name != b"X-Added"]
    assert others == [each.value for each in fields(content)]
    without = remove_fields(added, "x-added")
    # A text without a header got an empty line, and a last line its end.
    assert without in {content, b"\r\n" + content, content + b"\r\n"}


@given(MESSAGES, NAMES)
def test_removing_a_name_removes_these_fields_and_no_other_byte(content: bytes, name: str) -> None:
    left = remove_fields(content, name)
    kept = [each for each in fields(content) if each.name.lower() != name.lower().encode()]
    rest = content[max([0, *(each.end for each in fields(content))]) :]
    assert left == b"".join(content[each.start : each.end] for each in kept) + rest


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("yes", b"X-A: yes\r\n"),
        ("", b"X-A: \r\n"),
        ("a\nb", b"X-A: a\r\n\tb\r\n"),
        ("a\r\n  b\n\nc", b"X-A: a\r\n\tb\r\n\tc\r\n"),
        ("Grüße", b"X-A: =?utf-8?b?R3LDvMOfZQ==?=\r\n"),
    ],
)
def test_a_value_is_encoded_and_folded(value: str, line: bytes) -> None:
    assert encode_field("X-A", value) == line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X A", "x"),
        ("X:", "x"),
        ("", "x"),
        ("X-Ä", "x"),
        ("X\r\nY", "x"),
        ("X", "a\0b"),
        ("X", "a\rb"),
    ],
)
def test_a_value_that_would_break_the_header_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode_field(name, value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=3000))
def test_any_value_is_one_field_whose_lines_are_short_enough(value: str) -> None:
    field = encode_field("X-Long", value)
    assert max(map(len, field.split(b"\r\n"))) <= 998
    message = email.message_from_bytes(field + b"Subject: after\r\n\r\nbody", policy=POLICY)
    assert message["Subject"] == "after"
    assert len(list(fields(field + b"\r\n"))) == 1


@pytest.mark.parametrize("text", [False, True], ids=["bytes", "text"])
def test_prepend_changes_both_contents_of_an_envelope(text: bool) -> None:
    envelope = an_envelope("a@example.org", "b@example.com")
    original = b"Subject: x\r\n\r\n\xfc\r\n"
    envelope.original_content = original
    envelope.content = original.decode("utf-8", "surrogateescape") if text else original
    prepend(envelope, "X-Checked", "yes")
    wanted = b"X-Checked: yes\r\n" + original
    assert envelope.original_content == wanted
    expected = wanted.decode("utf-8", "surrogateescape") if text else wanted
    assert envelope.content == expected


def test_a_line_of_an_mbox_file_does_not_end_the_header_that_is_changed() -> None:
    envelope = an_envelope("a@example.org", "b@example.com")
    mbox, rest = b"From a@example.org Fri Nov 27 2026\r\n", b"Subject: x\r\n\r\ntext\r\n"
    envelope.original_content = mbox + rest
    prepend_all(envelope, [("X-A", "1"), ("X-B", "2")])
    added = envelope.original_content
    assert added == mbox + b"X-A: 1\r\nX-B: 2\r\n" + rest
    assert remove_fields(remove_fields(added, "X-A"), "X-B") == mbox + rest
    assert insert_field(mbox + rest, "X-C", "3", before=1).startswith(mbox + b"Subject: x\r\nX-C")


def test_a_long_value_is_folded_in_linear_time() -> None:
    lines = encode_field("X-Long", "word " * 2_000_000).split(b"\r\n")
    assert b"".join(lines).count(b"word") == 2_000_000


def test_a_header_of_many_fields_takes_time_in_proportion() -> None:
    content = b"X-A: y\r\n" * 100_000
    assert sum(1 for _ in fields(content)) == 100_000
    assert remove_fields(content, "X-A") == b""


@pytest.mark.parametrize("line", [b" y\r\n", b" \r\n", b"\t" + b"x" * 500_000 + b"\r\n"])
def test_a_field_of_any_number_of_lines_takes_no_memory_but_its_own(line: bytes) -> None:
    content = b"Subject: x\r\n" + line * (1_000_000 // len(line))
    tracemalloc.start()
    try:
        (field,) = fields(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert field.value == content[len("Subject:") : -len("\r\n")]
    assert peak < 1.1 * len(content)


def test_a_name_longer_than_a_line_does_not_begin_a_field() -> None:
    assert [each.name for each in fields(b"x" * 998 + b": y")] == [b"x" * 998]
    assert not list(fields(b"x" * 999 + b": y"))


def test_adding_a_field_at_the_top_reads_no_other_field() -> None:
    content = Counted(b"Subject: x\r\n" + b" y\r\n" * 1000)
    assert insert_field(content, "X", "z") == b"X: z\r\n" + content
    assert content.looks == 0


def test_a_header_is_read_up_to_the_limit() -> None:
    content = Counted(b"Subject: x\r\n" + b" y\r\n" * 1000 + b"X: z\r\n")
    assert [each.end for each in fields(content, limit=40)] == [44]
    assert content.looks < 20
    assert [each.name for each in fields(content, limit=5000)] == [b"Subject", b"X"]


@given(
    MESSAGES, st.lists(st.tuples(NAMES, st.sampled_from(["", "x", "y z"])), min_size=1, max_size=5)
)
def test_several_fields_are_added_as_if_one_by_one(
    content: bytes, added: list[tuple[str, str]]
) -> None:
    together, each = (
        an_envelope("a@b.example", "c@d.example"),
        an_envelope("a@b.example", "c@d.example"),
    )
    together.original_content = together.content = each.original_content = each.content = content
    prepend_all(together, added)
    for name, value in reversed(added):
        prepend(each, name, value)
    assert together.original_content == each.original_content
    assert together.content == each.content
