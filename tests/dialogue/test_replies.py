"""The client gets exactly one well-formed reply to each command, whatever a handler returns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.replies import assert_well_formed, texts

from smtpd_fork import Refusal
from smtpd_fork.dialogue import Reply
from smtpd_fork.dialogue.reply import LONGEST_TEXT, MOST_LINES, answer_of, replies_of, sendable

# -- the type ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("250 Ok", "250 Ok"),
        ("250", "250"),
        ("250 ", "250"),
        ("250 Ok\r\n", "250 Ok"),
        ("250 Ok\n\n", "250 Ok"),
        ("550 a\nb", "550-a\r\n550 b"),
        ("550 a\r\nb", "550-a\r\n550 b"),
        ("550 a\rb", "550-a\r\n550 b"),
        ("550 a\n\nb", "550-a\r\n550-\r\n550 b"),
        ("550-a\r\n550 b", "550-a\r\n550 b"),
        ("550 a\r\n550 b", "550-a\r\n550 b"),
        ("550-a\n550-b", "550-a\r\n550 b"),
        ("550-", "550"),
        ("550-a", "550 a"),
        ("550 5.7.1 a\nb", "550-5.7.1 a\r\n550 5.7.1 b"),
        ("550-5.7.1 a\r\n550 5.7.2 b", "550-5.7.1 a\r\n550 5.7.2 b"),
        ("550 a\n192 addresses", "550-a\r\n550 192 addresses"),
        ("550 a\0b\x1b[2J", "550 a?b?[2J"),
        ("550 gr\u00fc\u00dfe \ud800", "550 gr\u00fc\u00dfe ?"),
        (b"250 gr\xfc", "250 gr\ufffd"),
    ],
)
def test_a_text_with_a_clear_meaning_becomes_a_reply(text: Any, reply: str) -> None:
    assert Reply(text) == reply
    assert Reply(Reply(text)) == reply


@pytest.mark.parametrize(
    "text",
    [
        *("", "ok", " 250 ok", "\r\n250 ok", "25 ok", "2500 ok", "250ok", "250_ok"),
        *("150 a", "650 a", "\u0662\u0665\u0660 ok", "250 a\r\n550 b", "550-a\n551 b"),
    ],
)
def test_a_text_without_a_code_or_with_several_is_not_a_reply(text: str) -> None:
    with pytest.raises(ValueError, match="reply"):
        Reply(text)
    with pytest.raises(TypeError, match="X must return a reply"):
        answer_of("X", text)


def test_a_reply_has_its_code_and_lines() -> None:
    reply = Reply("550 5.7.1 No\nSee the list")
    assert (reply.code, reply.lines) == (550, ["5.7.1 No", "5.7.1 See the list"])
    assert isinstance(reply, str)


def test_a_long_line_continues_on_the_next_one() -> None:
    reply = Reply("550 5.7.1 " + "word " * 300)
    assert len(reply.lines) == 3
    assert all(line.startswith("5.7.1 word") for line in reply.lines)
    assert " ".join(line.removeprefix("5.7.1 ") for line in reply.lines).split() == ["word"] * 300
    assert_well_formed(reply.encode() + b"\r\n")
    octets = Reply("550 " + "\u00fc" * 600)
    assert "".join(octets.lines) == "\u00fc" * 600
    assert_well_formed(octets.encode() + b"\r\n")


@pytest.mark.parametrize("text", ["x" * 10_000_000, "x\n" * 5_000_000, "x " * 5_000_000])
def test_the_size_of_a_reply_is_limited(text: str) -> None:
    reply = Reply("550 " + text)
    assert len(reply.lines) <= MOST_LINES
    assert len(reply.encode()) <= MOST_LINES * (LONGEST_TEXT + 6)


@pytest.mark.parametrize("code", ["334", "354"])
def test_a_hook_cannot_return_a_3yz_reply(code: str) -> None:
    with pytest.raises(TypeError, match="X must return a reply"):
        answer_of("X", f"{code} go on")


@given(texts | texts.map(lambda text: "250 " + text) | st.binary(max_size=30))
def test_whatever_a_hook_answers_is_one_reply_or_an_error(status: str | bytes) -> None:
    try:
        answer = answer_of("X", status)
    except TypeError:
        return
    assert_well_formed(answer.encode() + b"\r\n")
    assert answer_of("X", answer) == answer
    assert answer[:3] == (status.decode("latin-1") if isinstance(status, bytes) else status)[:3]


@given(st.lists(st.sampled_from(["250 a", "550-a\r\n550 b", "450"]), min_size=1, max_size=9))
def test_joined_replies_are_separated(replies: list[str]) -> None:
    assert replies_of("\r\n".join(replies)) == replies


@given(texts.map(lambda text: "250-" + text))
def test_pushed_text_is_complete_lines_with_one_code(status: str) -> None:
    try:
        lines = sendable(status).encode()
    except ValueError:
        return
    more_follow = lines.split(b"\r\n")[-1][3:4] == b"-"
    assert_well_formed(lines + b"\r\n250 end\r\n", 1 if more_follow else 2)


@given(texts, texts)
def test_a_refusal_of_the_gate_is_one_line_whatever_its_text(text: str, key: str) -> None:
    refusal = Refusal("rule", key, 2, 1, text=text + "{key}")
    assert_well_formed(refusal.reply("mx.example.com"))
    assert refusal.reply("mx.example.com").count(b"\r\n") == 1
