"""The content of a message: its properties, and the pieces in which it is sent."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.hops import content
from smtpd_fork.hops.content import Facts, bdat_pieces, data_pieces, facts_of, has_long_lines

TEXTS = st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\n", b"\r", b"\0", b"\xff"])).map(b"".join)


def undotted(sent: bytes) -> bytes:
    """Return the content that a server receives (RFC 5321 4.5.2)."""
    *lines, end, rest = sent.split(b"\r\n")
    assert (end, rest) == (b".", b"")
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


@given(TEXTS, TEXTS, st.integers(1, 5), st.sampled_from([0, 1000]))
def test_dot_stuffing_is_correct_for_any_content(
    head: bytes, text: bytes, piece: int, small: int
) -> None:
    head, text = (re.sub(rb"\r?\n|\r", b"\r\n", part) for part in (head, text))
    whole = head + text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "PIECE", piece)
        patch.setattr(content, "SMALL", small)
        sent = b"".join(data_pieces(head, text))
    assert undotted(sent) == whole + (b"" if whole.endswith(b"\r\n") or not whole else b"\r\n")


@given(TEXTS, TEXTS, st.integers(1, 5))
def test_bdat_sends_every_octet(head: bytes, text: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "PIECE", piece)
        sent = b"".join(bdat_pieces(head, text))
    command, _, rest = sent.partition(b"\r\n")
    assert command == b"BDAT %d LAST" % len(rest)
    assert rest == head + text


@given(TEXTS, st.integers(1, 5))
def test_the_properties_do_not_depend_on_the_size_of_the_pieces(text: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "PIECE", piece)
        facts = asyncio.run(facts_of(text))
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", text) is not None
    assert facts == Facts(text.isascii(), bare, b"\0" in text)


@pytest.mark.parametrize(
    ("text", "long"),
    [
        (b"x" * 998, False),
        (b"x" * 999, True),
        (b"x" * 998 + b"\r\n" + b"x" * 998 + b"\r\n", False),
        (b"x" * 10 + b"\r\n" + b"x" * 999 + b"\r\n", True),
        (b"x\r\n" * 10_000, False),
        (b"", False),
    ],
)
def test_lines_of_more_than_998_octets_are_long(text: bytes, long: bool) -> None:
    assert has_long_lines(text) is long


async def test_other_tasks_run_while_a_large_message_is_examined() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await facts_of(b"x\r\n" * 3_000_000)
    counting.cancel()
    assert turns >= 5
