"""Dovecot's authentication protocol without a socket: requests and answers."""

from __future__ import annotations

import itertools
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dovecot_auth import OPENING

from smtpd_fork.hops.dovecot.conversation import (
    LONGEST_CHALLENGE,
    LONGEST_LINE,
    MOST_LINES,
    MOST_MECHANISMS,
    Answer,
    Conversation,
    DovecotGarbageError,
    Kind,
    Mechanism,
    begin,
    cancel,
    respond,
)

WORDS = st.sampled_from(
    [b"OK", b"FAIL", b"CONT", b"AUTH", b"1", b"2", b"99999999999", b"user=a", b"temp", b"YWJj",
     b"=", b"user=a\x01tb", b"code=authz", b"DONE", b"VERSION", b"", b"\xff", b"x" * 300]
)  # fmt: skip
LINES = st.lists(st.lists(WORDS, max_size=5).map(b"\t".join), max_size=12)


def opened() -> Conversation:
    conversation = Conversation(7)
    assert list(conversation.receive(OPENING.encode())) == []
    assert conversation.ready
    return conversation


def results_of(stream: bytes, cuts: list[int]) -> tuple[object, ...]:
    """Return the results of a conversation for a stream that is received in pieces."""
    conversation, answers, garbage = Conversation(7), [], ""
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    try:
        for start, end in itertools.pairwise(edges):
            for answer in conversation.receive(stream[start:end]):
                answers.append(answer)  # noqa: PERF402 - those before an error are kept
            assert conversation.buffered <= LONGEST_LINE
    except DovecotGarbageError as error:
        garbage = str(error)
    return answers, garbage, conversation.ready, conversation.mechanisms


@given(LINES, st.lists(st.integers(0, 2000), max_size=8), st.booleans())
def test_the_answers_do_not_depend_on_how_the_stream_is_split(
    lines: list[bytes], cuts: list[int], opening: bool
) -> None:
    stream = (OPENING.encode() if opening else b"") + b"".join(line + b"\n" for line in lines)
    assert results_of(stream, cuts) == results_of(stream, [])


def test_the_opening_lists_the_mechanisms_and_whether_they_reveal_the_password() -> None:
    conversation = opened()
    assert conversation.greeting == b"VERSION\t1\t2\nCPID\t7\n"
    assert conversation.mechanisms == [
        Mechanism("PLAIN", plaintext=True),
        Mechanism("LOGIN", plaintext=True),
        Mechanism("CRAM-MD5"),
        Mechanism("ANONYMOUS"),
        Mechanism("SCRAM-SHA-256-PLUS"),
    ]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"OK\t1\tuser=b@example.com\tx", Answer(Kind.OK, b"", {"user": "b@example.com", "x": ""})),
        (b"OK\t1\tuser=a\x01tb\x010c\x011", Answer(Kind.OK, b"", {"user": "a\tb\0c\x01"})),
        (b"FAIL\t1\tuser=b\ttemp", Answer(Kind.FAIL, b"", {"user": "b", "temp": ""})),
        (b"CONT\t1\tYWJj", Answer(Kind.CONTINUE, b"abc")),
        (b"CONT\t1\t", Answer(Kind.CONTINUE)),
        (b"CONT\t1", Answer(Kind.CONTINUE)),
    ],
)
def test_answers_are_parsed(line: bytes, answer: Answer) -> None:
    assert list(opened().receive(line + b"\n")) == [(1, answer)]


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"temp": ""}, "temp"),
        ({"code": "temp_fail"}, "temp"),
        ({"code": "authz_fail"}, "authz"),
        ({"user_disabled": ""}, "user_disabled"),
        ({"code": "user_disabled"}, "user_disabled"),
    ],
)
def test_the_kind_of_a_failure_is_a_word_or_a_code(parameters: dict[str, str], word: str) -> None:
    answer = Answer(Kind.FAIL, b"", parameters)
    assert [each for each in ("temp", "authz", "user_disabled") if answer.has_code(each)] == [word]


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        (b"", b"220 mx.example.com ESMTP\r\n"),
        (b"", b"VERSION\t2\t0\n"),
        (b"", b"VERSION\n"),
        (b"", b"x" * (LONGEST_LINE + 1)),
        (b"", b"x" * (LONGEST_LINE + 1) + b"\n"),
        (b"", b"VERSION\t1\t2\n" + b"MECH\tA\n" * (MOST_MECHANISMS + 1)),
        (b"", b"VERSION\t1\t2\n" + b"SPID\t1\n" * (MOST_LINES + 1)),
        (OPENING.encode(), b"x\n" * (MOST_LINES + 1)),
        (OPENING.encode(), b"OK\n"),
        (OPENING.encode(), b"OK\tx\tuser=a\n"),
        (OPENING.encode(), b"CONT\t1\tnot base64\n"),
        (OPENING.encode(), b"CONT\t1\t" + b64encode(b"x" * (LONGEST_CHALLENGE + 1)) + b"\n"),
    ],
)
def test_a_protocol_violation_is_an_error(opening: bytes, said: bytes) -> None:
    conversation = Conversation(7)
    list(conversation.receive(opening))
    with pytest.raises(DovecotGarbageError):
        list(conversation.receive(said))


def test_ignored_lines_are_counted_between_answers() -> None:
    conversation = opened()
    for _ in range(3):
        assert len(list(conversation.receive(b"x\n" * MOST_LINES + b"OK\t1\tuser=a\n"))) == 1


@given(st.text(max_size=20), st.binary(max_size=30) | st.none())
def test_a_client_cannot_inject_a_line_or_a_parameter(word: str, response: bytes | None) -> None:
    line = begin(3, "PLAIN", {"service": "smtp", "nologin": "", "session": word}, response)
    assert line.endswith(b"\n")
    words = line[:-1].split(b"\t")
    assert words[:5] == [b"AUTH", b"3", b"PLAIN", b"service=smtp", b"nologin"]
    assert len(words) == (6 if response is None else 7)
    assert not set(line[:-1]) & set(b"\n\r\0")


def test_the_response_is_the_last_parameter_even_if_it_is_empty() -> None:
    assert begin(1, "PLAIN", {}, b"").endswith(b"\tresp=\n")
    assert respond(1, b"") == b"CONT\t1\t\n"
    assert respond(1, b"abc") == b"CONT\t1\tYWJj\n"
    assert cancel(1) == b"CANCEL\t1\n"
