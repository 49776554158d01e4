"""The policy delegation protocol without a socket: requests, and valid and invalid answers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_fork.filters.policy_action import parse_action
from smtpd_fork.hops.errors import ConnectionLostError
from smtpd_fork.hops.hop_client import State
from smtpd_fork.hops.policy import LONGEST_ANSWER, PolicyClient, PolicyRequest, encode_request

WORDS = [b"action=DUNNO", b"action=", b"x=y", b"\n", b"\n\n", b"\r\n", b"\r", b"action=550 no\n\n"]
ANSWERS = st.lists(st.sampled_from(WORDS) | st.binary(max_size=8), max_size=8).map(b"".join)


def asked() -> tuple[PolicyClient, PolicyRequest]:
    client, question = PolicyClient(), PolicyRequest(b"request=x\n\n")
    client.begin(question)
    assert client.data_to_send() == b"request=x\n\n"
    assert client.data_to_send() == b""
    return client, question


def result_of(answer: bytes, cuts: list[int]) -> tuple[State, str | None, str]:
    """Return the result of an answer that is received in pieces."""
    client, question = asked()
    edges = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        client.receive(answer[start:end])
        assert len(client._received) <= LONGEST_ANSWER + 100
    assert (client.state is State.BROKEN) == (client.fault is not None)
    return client.state, question.action, client.fault.reason if client.fault else ""


@given(ANSWERS, st.lists(st.integers(0, 100), max_size=6))
@example(b"action=OK\r\n\r\n", [10, 11, 12])
@example(b"\n", [])
@example(b"\r\n", [1])
def test_an_answer_does_not_depend_on_how_it_is_split(answer: bytes, cuts: list[int]) -> None:
    assert result_of(answer, cuts) == result_of(answer, [])


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        (b"action=DUNNO\n\n", "DUNNO"),
        (b"action=550 5.1.1 no = yes\r\n\r\n", "550 5.1.1 no = yes"),
        (b"x=y\naction= PREPEND X: y \nz\n\n", "PREPEND X: y"),
        (b"action=\n\n", ""),
        (b"action=\xff\n\n", "�"),
    ],
)
def test_the_action_is_one_of_the_lines(answer: bytes, action: str) -> None:
    client, question = asked()
    client.receive(answer)
    assert question.action == action
    assert client.state is State.READY


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\n", "an answer without a valid action: ''"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an answer without a valid action: 'HTTP/1.1 400"),
        (b"x=y\n\n", "an answer without a valid action: 'x=y'"),
        (b"x" * 9000, "an answer has more than 8192 octets"),
        (b"action=" + b"x" * 9000 + b"\n\n", "an answer has more than 8192 octets"),
        (b"\r" * 9000, "an answer has more than 8192 octets"),
    ],
)
def test_an_invalid_answer_breaks_the_connection(answer: bytes, reason: str) -> None:
    for cuts in ([], [1], [8192], [8193], [8194], list(range(0, 9000, 100))):
        state, action, fault = result_of(answer, cuts)
        assert (state, action) == (State.BROKEN, None)
        assert fault.startswith(reason)


def test_an_answer_of_the_maximum_length_is_accepted_and_a_longer_one_is_not() -> None:
    for more, taken in ((0, True), (1, False)):
        answer = b"action=" + b"x" * (LONGEST_ANSWER - 7 + more)
        for end in (b"\n\n", b"\r\n\r\n"):
            for cuts in ([], [8190], [8191], [8192], [8193], [8194], [8195], [8196]):
                state, _, _ = result_of(answer + end, cuts)
                assert (state is State.READY) == taken


def test_unexpected_data_is_not_used_for_the_next_request() -> None:
    client, question = asked()
    client.receive(b"action=OK\n\naction=REJECT\n\n")
    assert question.action == "OK"
    assert client.state is State.BROKEN
    client, _ = asked()
    client.receive(b"action=OK\n\n")
    client.receive(b"\n")
    assert client.state is State.BROKEN


def test_has_answered_shows_whether_a_closed_connection_had_begun_an_answer() -> None:
    for half, heard in ((b"", False), (b"action=OK\n", True)):
        client, _ = asked()
        if half:
            client.receive(half)
        client.fail("the policy server closed the connection")
        assert isinstance(client.fault, ConnectionLostError)
        assert client.fault.has_answered is heard


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(), max_size=5))
def test_a_value_cannot_end_its_line_or_the_request(values: dict[str, str]) -> None:
    lines = encode_request(values).split(b"\n")
    assert lines[-2:] == [b"", b""]
    names = [line.partition(b"=")[0].decode() for line in lines[:-2]]
    assert names == list(values)
    assert not any(c < 32 or c == 127 for line in lines for c in line)


# -- actions -------------------------------------------------------------------------------------

REPLIES = {
    "REJECT": "554 5.7.1 Access denied",
    "reject Not here": "554 5.7.1 Not here",
    "REJECT 5.1.1 Nobody": "554 5.1.1 Nobody",
    "REJECT 4.1.1 Nobody": "554 5.7.1 Nobody",
    "REJECT\t5.1.1": "554 5.1.1 Access denied",
    "DEFER": "450 4.7.1 Not accepted now, try again later",
    "DEFER_IF_PERMIT Greylisted, see http://a.example/%r": "450 4.7.1 Greylisted, see http://a.example/%r",
    "defer_if_reject x": "450 4.7.1 x",
    "550 5.7.23 SPF": "550 5.7.23 SPF",
    "450 later": "450 4.7.1 later",
    "451": "451 4.7.1 Not accepted now, try again later",
    "421 4.7.0 Go away": "421 4.7.0 Go away",
    "521 closed": "521 5.7.1 closed",
    "550 \x1b[31mred\x07": "550 5.7.1 ?[31mred?",
    "550 grün": "550 5.7.1 gr?n",
}  # fmt: skip


@pytest.mark.parametrize("text", REPLIES)
def test_an_action_that_refuses_has_a_reply(text: str) -> None:
    action = parse_action(text)
    assert action is not None
    assert action.reply == REPLIES[text]


def test_a_long_text_is_cut_to_one_line() -> None:
    action = parse_action("550 " + "x" * 8000)
    assert action is not None
    assert len(action.reply) < 450


@pytest.mark.parametrize("text", ["OK", "ok", "DUNNO", "dunno nothing", "1234567890", "PERMIT"])
def test_an_action_that_accepts_has_none(text: str) -> None:
    action = parse_action(text)
    assert action is not None
    assert (action.name, action.reply) == ("OK", "")


@pytest.mark.parametrize("text", ["", "?", "-", "\ufffd", "a:b c", "250 ok", "4 x"])
def test_an_invalid_action_is_none(text: str) -> None:
    assert parse_action(text) is None


@given(st.text())
def test_any_action_has_a_reply_on_one_line_or_none(text: str) -> None:
    action = parse_action(text)
    if action is not None and action.reply:
        assert action.reply[0] in "45"
        assert action.reply.isascii()
        assert action.reply.isprintable()
        assert action.reply[3] == " "
