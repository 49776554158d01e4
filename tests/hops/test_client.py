"""Client: transactions of SMTP and LMTP on the client's side, without a socket."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.hop_client import EHLO, MAIL, RCPTS, Wire

from smtpd_fork.hops.client import State


def test_with_pipelining_a_transaction_is_one_write_and_the_content() -> None:
    wire = Wire().ready()
    wire.send()
    assert wire.take() == MAIL + b"".join(RCPTS) + b"DATA\r\n"
    assert wire.say("250 OK", "250 OK", "250 OK", "354 Go") == b"text\r\n.\r\n"
    wire.say("250 taken")
    assert wire.codes() == [250, 250]
    assert wire.client.state is State.READY


def test_without_pipelining_each_command_waits_for_the_previous_reply() -> None:
    wire = Wire().ready("250 hop")
    wire.send()
    assert wire.take() == MAIL
    assert wire.say("250 OK") == RCPTS[0]
    assert wire.say("250 OK") == RCPTS[1]
    assert wire.say("250 OK") == b"DATA\r\n"
    assert wire.say("354 Go") == b"text\r\n.\r\n"
    wire.say("250 taken")
    assert wire.codes() == [250, 250]


def test_a_refused_recipient_keeps_its_reply() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.say("250 OK", "550 5.1.1 Unknown", "250 OK", "354 Go")
    wire.say("250 taken")
    assert wire.codes() == [550, 250]


def test_lmtp_has_a_reply_for_each_accepted_recipient() -> None:
    wire = Wire(lmtp=True).ready()
    wire.send()
    wire.take()
    wire.say("250 OK", "250 OK", "250 OK", "354 Go")
    wire.say("250 taken", "452 4.2.2 Full")
    assert wire.codes() == [250, 452]
    assert wire.client.state is State.READY


@pytest.mark.parametrize("lmtp", [False, True])
def test_the_reply_to_data_is_read_when_all_recipients_were_refused(lmtp: bool) -> None:
    wire = Wire(lmtp=lmtp).ready()
    wire.send()
    wire.take()
    assert wire.say("250 OK", "550 No", "551 No") == b""
    assert wire.say("503 No recipients") == b"RSET\r\n"
    assert wire.codes() == [550, 551]
    wire.say("250 OK")
    assert wire.client.state is State.READY


def test_a_hop_that_accepts_data_without_recipients_is_disconnected() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    assert wire.say("250 OK", "550 No", "551 No", "354 Go") == b""
    assert wire.client.state is State.BROKEN
    assert wire.codes() == [550, 551]


def test_the_reply_that_refuses_the_sender_applies_to_all_recipients() -> None:
    wire = Wire().ready()
    order = wire.send()
    wire.take()
    assert wire.say("550 No", "503 MAIL first", "503 so too", "503 so too") == b"RSET\r\n"
    assert wire.codes() == [550, 550]
    assert order.sender_refused


def test_without_pipelining_no_command_follows_a_refused_sender() -> None:
    wire = Wire().ready("250 hop")
    wire.send()
    wire.take()
    assert wire.say("550 No") == b"RSET\r\n"
    assert wire.codes() == [550, 550]


def test_rset_that_is_not_answered_250_breaks_the_connection() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.say("250 OK", "550 No", "551 No", "503 No")
    wire.say("451 Busy")
    assert wire.client.state is State.BROKEN
    assert wire.codes() == [550, 551]


def test_bdat_needs_neither_354_nor_dot_stuffing() -> None:
    wire = Wire().ready("250-hop\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 BINARYMIME")
    wire.send(content=b"BDAT 3 LAST\r\n.\n\0", chunked=True)
    assert wire.take() == MAIL + b"".join(RCPTS)
    assert wire.say("250 OK", "250 OK", "550 No") == b"BDAT 3 LAST\r\n.\n\0"
    wire.say("250 taken")
    assert wire.codes() == [250, 550]


def test_a_verification_of_recipients_ends_with_rset() -> None:
    wire = Wire().ready()
    wire.send(content=None)
    assert wire.take() == MAIL + b"".join(RCPTS) + b"RSET\r\n"
    assert wire.say("250 OK", "250 OK", "450 Later") == b""
    assert wire.codes() == [250, 450]
    wire.say("250 OK")
    assert wire.client.state is State.READY


def test_a_verification_without_pipelining_sends_one_command_at_a_time() -> None:
    wire = Wire().ready("250 hop")
    wire.send(content=None)
    assert wire.take() == MAIL
    assert wire.say("250 OK") == RCPTS[0]
    assert wire.say("550 No") == RCPTS[1]
    assert wire.say("250 OK") == b"RSET\r\n"
    assert wire.codes() == [550, 250]


def test_421_applies_to_all_recipients_without_a_reply() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.say("250 OK", "550 No", "421 Closing")
    assert wire.client.state is State.BROKEN
    assert wire.codes() == [550, 421]


def test_421_to_mail_does_not_count_as_an_answer() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.say("421 Idle for too long")
    assert wire.client.state is State.BROKEN
    assert not wire.client.has_answered


def test_an_early_refusal_of_the_content_is_used_and_the_connection_closed() -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.client.receive(b"250 OK\r\n250 OK\r\n250 OK\r\n354 Go\r\n")
    wire.client.receive(b"552 Too much\r\n")
    assert wire.client.state is State.BROKEN
    assert wire.codes() == [552, 552]


def test_a_positive_reply_that_began_before_the_end_of_the_message_is_an_error() -> None:
    wire = Wire(lmtp=True).ready()
    order = wire.send()
    wire.take()
    wire.client.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 half a re")
    assert wire.take() == b"text\r\n.\r\n"
    wire.client.receive(b"ply\r\n")
    assert wire.client.state is State.BROKEN
    assert order.replies == [None, None]


@pytest.mark.parametrize("early", ["250 taken", "354 Go"])
def test_a_positive_reply_before_the_end_of_the_message_is_an_error(early: str) -> None:
    wire = Wire().ready()
    wire.send()
    wire.take()
    wire.say("250 OK", "250 OK", "250 OK", "354 Go", early)
    assert wire.client.state is State.BROKEN
    assert wire.codes() == [None, None]


@pytest.mark.parametrize("unasked", ["250 OK", "421 Bye", "4", "\0"])
def test_an_unexpected_reply_breaks_the_connection(unasked: str) -> None:
    wire = Wire().ready()
    wire.client.receive(unasked.encode())
    wire.client.receive(b"\r\n")
    assert wire.client.state is State.BROKEN


CODES = st.sampled_from(["250", "250", "250", "354", "550", "450", "421", "334", "299", "700", "x"])
REPLIES = st.lists(st.builds("{}{}text".format, CODES, st.sampled_from(" -")), max_size=4)


@given(
    st.lists(st.tuples(REPLIES, st.lists(st.integers(0, 500), max_size=20)), max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example([(["250 OK"], [3])] * 5, False, True, True)
@example([(["250 text"] * 3, []), (["250 text"] * 4, [175])], False, True, False)
def test_the_result_does_not_depend_on_how_replies_are_split(
    turns: list[tuple[list[str], list[int]]], lmtp: bool, pipelining: bool, content: bool
) -> None:
    def result(*, split: bool) -> object:
        wire = Wire(lmtp=lmtp).ready(EHLO if pipelining else "250 hop")
        wire.send(content=b"text\r\n.\r\n" if content else None)
        wire.take()
        for replies, cuts in turns:
            wire.say(*replies, cuts=tuple(cuts) if split else ())
        client = wire.client
        return wire.sent, client.state, client.has_answered, wire.codes(), repr(client.fault)

    assert result(split=True) == result(split=False)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_any_bytes_leave_the_client_in_a_valid_state(stream: bytes, cuts: list[int]) -> None:
    wire = Wire()
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        wire.client.receive(stream[start:end])
        wire.take()
    assert wire.client.state in State
    assert (wire.client.state is State.BROKEN) == (wire.client.fault is not None)
