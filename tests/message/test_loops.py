"""Mail loops at final delivery: the earlier mailboxes of a message."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.message import earlier_mailboxes, fields, loops
from smtpd_fork.message.loops import has_long_header
from smtpd_fork.message.mailbox import mailbox_of

some_lines = st.lists(
    st.sampled_from(
        [
            b"Delivered-To: a@b",
            b"delivered-TO : C@d ",
            b"Delivered-To:",
            b"X: y",
            b"",
            b" z",
            b"text",
        ]
    ),
    max_size=12,
)


def all_mailboxes(content: bytes) -> set[str]:
    found = (each for each in fields(content) if each.name.lower() == b"delivered-to")
    return {mailbox_of(each.value.strip().decode()).key for each in found}


@given(some_lines, st.sampled_from([b"\r\n", b"\n"]), st.integers(1, 64))
def test_the_quick_search_finds_every_field_of_the_header(
    lines: list[bytes], end: bytes, size: int
) -> None:
    content = b"".join(line + end for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "LONG_HEADER", size)
        assert earlier_mailboxes(content) == all_mailboxes(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", set()),
        (b"Delivered-To: a@b", {"a@b"}),
        (b"DELIVERED-TO: A@b\r\n\r\n", {"a@b"}),
        (b"X: y\r\nDelivered-To:\r\n a@b\r\n", {"a@b"}),
        (b"X: y\r\n\r\nDelivered-To: a@b\r\n", set()),
        (b"X-Delivered-To: a@b\r\n", set()),
        (b"text\r\nDelivered-To: a@b\r\n", set()),
        (b"Delivered-To: \xc3\x89@b.\r\n", {"é@b"}),
        (b"Delivered-To: \xff@b\r\n", {"\N{REPLACEMENT CHARACTER}@b"}),
    ],
)
def test_only_fields_of_the_header_count(content: bytes, found: set[str]) -> None:
    assert earlier_mailboxes(content) == found


def test_a_header_without_an_end_nearby_is_long() -> None:
    line = b"X: y\r\n"
    assert not has_long_header(line + b"\r\n" + b"x" * 1_000_000)
    assert not has_long_header(line * 10)
    assert has_long_header(line * 100_000 + b"\r\n")


def test_only_the_top_of_a_header_is_searched_however_long_it_is() -> None:
    many = b"".join(b"Delivered-To: %d@b\r\n" % number for number in range(100_000))
    tracemalloc.start()
    try:
        found = earlier_mailboxes(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "0@b" in found
    assert "99999@b" not in found
    assert peak < 1.2 * len(many)
