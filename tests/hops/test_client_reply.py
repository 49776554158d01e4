"""The conversion of a hop's reply to ours, and the cache of replies to RCPT."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.dialogue.reply import is_plain
from smtpd_fork.hops.client_reply import client_reply
from smtpd_fork.hops.recipient_cache import RecipientCache
from smtpd_fork.hops.replies import HopReply


@pytest.mark.parametrize(
    ("code", "lines", "ours"),
    [
        (250, ["2.0.0 Ok: queued as 1"], "250 2.0.0 Ok: queued as 1"),
        (250, ["OK"], "250 2.0.0 OK"),
        (250, [""], "250 2.0.0 Ok"),
        (252, ["2.1.5 Perhaps"], "250 2.1.5 Perhaps"),
        (550, ["5.1.1 <b@x> No such user"], "550 5.1.1 <b@x> No such user"),
        (550, ["5.7.1 No.", "5.7.1 See the list"], "550 5.7.1 No. See the list"),
        (450, ["5.1.1 Contradicts"], "450 4.0.0 Contradicts"),
        (550, ["4.1.1 Contradicts"], "550 5.0.0 Contradicts"),
        (421, ["4.3.2 Closing"], "451 4.3.2 Closing"),
        (354, ["Go on"], "451 4.0.0 Go on"),
        (530, ["5.7.0 Must issue STARTTLS"], "451 4.7.0 Must issue STARTTLS"),
        (554, ["\x1b[31mred\x00\xe4"], "554 5.0.0 ?[31mred?"),
        (554, ["x" * 2000], "554 5.0.0 " + "x" * 400),
        (452, ["4.2.2"], "452 4.2.2 Refused"),
    ],
)
def test_a_reply_is_converted_cleaned_and_cut(code: int, lines: list[str], ours: str) -> None:
    assert client_reply(HopReply(code, tuple(lines))) == ours


@given(st.integers(200, 599), st.lists(st.text(max_size=600), min_size=1, max_size=5))
def test_any_reply_becomes_one_valid_line(code: int, lines: list[str]) -> None:
    ours = client_reply(HopReply(code, tuple(lines)))
    assert is_plain(ours)
    assert ours[0] == ours[4]
    assert (ours[0] == "2") == (code < 300)
    assert (ours[0] == "5") <= (code >= 500)


def test_replies_are_cached_for_a_time_that_depends_on_their_class() -> None:
    known = RecipientCache()
    for address, reply in [("a", "250 Yes"), ("b", "550 No"), ("c", "450 Later")]:
        known.put(address, reply, 0.0)
    for now, expected in [(9.9, "abc"), (10.1, "ab"), (60.1, "a"), (600.1, "")]:
        assert "".join(each for each in "abc" if known.get(each, now)) == expected


def test_the_oldest_reply_is_removed_first() -> None:
    known = RecipientCache(2)
    for address in "abac":
        known.put(address, "250 Yes", 0.0)
    assert [known.get(each, 1.0) is not None for each in "abc"] == [True, False, True]
    assert len(known) == 2


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}"])
def test_long_addresses_and_replies_do_not_exceed_the_memory_limit(
    letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.hops.recipient_cache.MOST_BYTES", 1_000_000)
    known = RecipientCache()
    tracemalloc.start()
    try:
        for number in range(5000):
            known.put(f"{letter * 250}{number}@x", f"550 5.1.1 {number}{'y' * 400}", 0.0)
            known.put("again@x", "550 5.1.1 no", 0.0)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 1_300_000
    assert known.get("again@x", 1.0) == "550 5.1.1 no"
    assert known.get(f"{letter * 250}4999@x", 1.0) is not None
    assert known.get(f"{letter * 250}0@x", 1.0) is None
