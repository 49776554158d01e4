"""Answers of rspamd, and the changes that they make to a message, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.mail import mail

from smtpd_fork.hops.milter.edited import Parts
from smtpd_fork.hops.rspamd import edits
from smtpd_fork.hops.rspamd.answer import Answer, RspamdGarbageError, parse_answer
from smtpd_fork.hops.rspamd.edits import changes_of
from smtpd_fork.hops.rspamd.request import MOST_RECIPIENT_BYTES, request_fields
from smtpd_fork.message import MailClient, fields

MESSAGE = b"A: 1\r\nB: 1\r\nb: 2\r\nB: 3\r\nSubject:  old\r\n\tfolded\r\n\r\nbody\r\n"


def an_answer(**keys: Any) -> Answer:
    return parse_answer(json.dumps({"action": "no action", **keys}).encode())


def changed(answer: Answer, content: bytes = MESSAGE, *, utf8: bool = False) -> bytes:
    parts = Parts(content)
    changes = changes_of(answer, (name for name, _ in parts.names_and_values), utf8=utf8)
    return parts.edited(changes.edits, leading_space=False, removed=changes.removed)


def lines(**keys: Any) -> list[str]:
    """Return the lines of the header after the changes of a milter block."""
    header = changed(an_answer(milter=keys)).partition(b"\r\n\r\n")[0]
    return header.decode().split("\r\n")


OLD = ["Subject:  old", "\tfolded"]


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (0, []),
        (1, ["b: 2", "B: 3"]),
        (2, ["B: 1", "B: 3"]),
        (3, ["B: 1", "b: 2"]),
        (4, ["B: 1", "b: 2", "B: 3"]),
        (-1, ["B: 1", "b: 2"]),
        (-3, ["b: 2", "B: 3"]),
        (-4, ["B: 1", "b: 2", "B: 3"]),
        ([1, 3], ["b: 2"]),
        ([1, 1, -3], ["b: 2", "B: 3"]),
        ([], ["B: 1", "b: 2", "B: 3"]),
        (1.0, ["b: 2", "B: 3"]),
        (1e300, ["B: 1", "b: 2", "B: 3"]),
    ],
)
def test_the_nth_field_of_a_name_is_removed_and_0_removes_all(which: Any, left: list[str]) -> None:
    assert lines(remove_headers={"B": which}) == ["A: 1", *left, *OLD]


def test_fields_are_removed_before_others_of_their_name_are_added() -> None:
    added = lines(add_headers={"b": "new"}, remove_headers={"b": 0})
    assert added == ["A: 1", *OLD, "b: new"]


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("x", ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: x"]),
        (5, ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: 5"]),
        (["x", "y"], ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: x", "X: y"]),
        ({"value": "x", "order": 0}, ["X: x", "A: 1", "B: 1", "b: 2", "B: 3", *OLD]),
        ({"value": "x", "order": 1}, ["X: x", "A: 1", "B: 1", "b: 2", "B: 3", *OLD]),
        ({"value": "x", "index": 2}, ["A: 1", "X: x", "B: 1", "b: 2", "B: 3", *OLD]),
        ({"value": "x", "order": -1}, ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: x"]),
        ({"value": "x", "order": -2}, ["A: 1", "B: 1", "b: 2", "B: 3", "X: x", *OLD]),
        ({"value": "x", "order": -99}, ["X: x", "A: 1", "B: 1", "b: 2", "B: 3", *OLD]),
        ({"value": "x", "order": 1 << 62}, ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: x"]),
        (
            [{"value": "x", "order": 0}, {"value": "y", "order": 1}],
            ["X: x", "X: y", "A: 1", "B: 1", "b: 2", "B: 3", *OLD],
        ),
        (
            [{"value": "x", "order": 1}, {"value": "y", "order": 0}, {"value": "z", "order": 2}],
            ["X: y", "X: z", "X: x", "A: 1", "B: 1", "b: 2", "B: 3", *OLD],
        ),
        ("a\r\n\tb", ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: a", "\tb"]),
        ("a\nEvil: b\n\nc", ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: a", "\tEvil: b", "\tc"]),
        ("a\rb\0c", ["A: 1", "B: 1", "b: 2", "B: 3", *OLD, "X: a b c"]),
    ],
)
def test_a_field_is_added_at_the_position_that_rspamd_requests(
    value: Any, header: list[str]
) -> None:
    assert lines(add_headers={"X": value}) == header


def test_the_order_of_several_fields_is_kept() -> None:
    assert lines(add_headers={"Z": "1", "Y": ["2", "3"], "X": "4"})[-4:] == [
        *("Z: 1", "Y: 2", "Y: 3", "X: 4"),
    ]


@pytest.mark.parametrize("utf8", [False, True])
def test_a_value_is_encoded_unless_the_message_may_contain_utf8(utf8: bool) -> None:
    made = changed(an_answer(milter={"add_headers": {"X": "grün"}}), utf8=utf8)
    assert ("X: grün\r\n".encode() in made) == utf8
    assert (b"X: =?utf-8?" in made) == (not utf8)


def test_long_lines_are_folded() -> None:
    made = changed(an_answer(milter={"add_headers": {"X": "y" * 5000, "Z": "a b " * 1000}}))
    assert max(map(len, made.split(b"\r\n"))) <= 998


def test_a_rewritten_subject_replaces_the_old_one() -> None:
    answer = an_answer(action="rewrite subject", subject="*** SPAM *** grün")
    made = changed(answer)
    assert made == MESSAGE.replace(
        b"Subject:  old\r\n\tfolded", b"Subject: =?utf-8?q?***_SPAM_***_gr=C3=BCn?="
    )
    assert changed(answer, b"A: 1\r\n\r\n").startswith(b"A: 1\r\nSubject: =?utf-8?")
    assert changed(an_answer(action="rewrite subject")) == MESSAGE


def test_spam_gets_a_field_and_an_existing_one_is_removed() -> None:
    forged = b"X-Spam: No\r\nx-spam: no\r\n" + MESSAGE
    made = changed(an_answer(action="add header"), forged)
    assert made == MESSAGE.replace(b"\r\n\r\n", b"\r\nX-Spam: Yes\r\n\r\n")
    own = {"spam_header": {"X-Junk": "very"}}
    assert changed(an_answer(action="add header", milter=own)).count(b"X-Junk: very\r\n") == 1
    own = {"spam_header": "probably"}  # type: ignore[dict-item] # the other form
    assert b"X-Spam: probably\r\n" in changed(an_answer(action="add header", milter=own))


def test_an_action_that_is_not_carried_out_is_shown_in_a_field() -> None:
    made = changed(an_answer(action="add header", milter={"no_action": True}))
    assert b"X-Rspamd-Action: add header\r\n" in made
    assert b"X-Spam" not in made


def test_a_dkim_signature_is_added_at_the_top() -> None:
    value = "v=1; a=rsa-sha256;\r\n\tb=abc"
    for keys in (value, [value]):
        made = changed(an_answer(**{"dkim-signature": keys}))
        assert made == b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc\r\n" + MESSAGE


def test_the_envelope_is_changed_with_the_message() -> None:
    block = {"change_from": "<>", "add_rcpt": ["c@x"], "del_rcpt": ["<b@x>"]}
    changes = changes_of(an_answer(milter=block), [], utf8=False)
    assert [(edit.command, edit.address) for edit in changes.edits] == [
        *((b"e", ""), (b"+", "c@x"), (b"-", "b@x")),
    ]


@pytest.mark.parametrize(
    "block",
    [
        {"add_rcpt": ["b@x>\r\nDATA"]},
        {"add_rcpt": [""]},
        {"add_rcpt": ["b\ufffd@x"]},
        {"change_from": "a b"},
        {"add_headers": {"X Y": "z"}},
        {"add_headers": {"X:": "z"}},
        {"add_headers": {"": "z"}},
        {"add_headers": {"X": ["z"] * 1001}},
    ],
)
def test_an_impossible_change_is_an_error(block: Any) -> None:
    with pytest.raises(RspamdGarbageError):
        changes_of(an_answer(milter=block), [], utf8=False)


def test_the_number_of_fields_made_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def noted(name: str, value: str) -> bytes:
        made.append(value)
        return b"X: y\r\n"

    monkeypatch.setattr(edits, "encode_field", noted)
    with pytest.raises(RspamdGarbageError, match="more than 1000 changes"):
        changes_of(an_answer(milter={"add_headers": {"X": ["\xfc"] * 5000}}), [], utf8=False)
    assert len(made) == 1001


def test_empty_lists_are_accepted_instead_of_empty_objects() -> None:
    answer = an_answer(milter={"add_headers": [], "remove_headers": []}, messages=[], symbols=[])
    assert changed(answer) == MESSAGE
    assert changed(an_answer(milter=[])) == MESSAGE
    assert answer.smtp_message == ""


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b'"action"', b"{", b'{"action":1}', b'{"action":null}',
        b'{"action":"reject","score":"high"}', b'{"action":"reject","milter":1}',
        b'{"action":"reject","milter":{"add_headers":{"X":{"order":0}}}}',
        b'{"action":"reject","milter":{"add_headers":{"X":[["y"]]}}}',
        b'{"action":"reject","milter":{"remove_headers":{"X":"1"}}}',
        b'{"action":"reject","milter":{"remove_headers":{"X":1e999}}}',
        b'{"action":"reject","milter":{"no_action":"yes"}}',
        b'{"action":"reject"} {"action":"reject"}', b"<html>", b"\xff" * 100,
        b'{"action":' + b"[" * 100_000, b'{"action":"x","symbols":' + b'{"a":' * 100_000,
        b'{"action":"x","y":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"action":"reject","subject":"\\ud800"}',
    ],
)  # fmt: skip
def test_an_invalid_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(RspamdGarbageError, match="its answer is not valid"):
        parse_answer(body)


def test_octets_that_are_not_utf8_do_not_invalidate_an_answer() -> None:
    body = b'{"action":"Rewrite Subject","subject":"\xff\xc3","symbols":{"A\xff":{"o":["\xe9"]}}}'
    answer = parse_answer(body)
    assert answer.action == "rewrite subject"
    assert b"Subject: " in changed(answer)


values = st.one_of(
    st.text(max_size=40), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False)
)
names = st.sampled_from(["B", "X-New", "Subject", "a", "DKIM-Signature"])
added = values | st.fixed_dictionaries({"value": values}, optional={"order": st.integers(-9, 9)})
blocks = st.fixed_dictionaries(
    {},
    optional={
        "remove_headers": st.dictionaries(names, st.integers(-4, 4)),
        "add_headers": st.dictionaries(names, added | st.lists(added, max_size=3)),
        "no_action": st.booleans(),
        "spam_header": st.text(max_size=20),
    },
)


@example(
    block={"remove_headers": {"a": 0, "B": 0}}, subject="", utf8=False, action="rewrite subject"
)
@given(
    block=blocks, subject=st.text(max_size=60), utf8=st.booleans(),
    action=st.sampled_from(["add header", "rewrite subject", "no action"]),
)  # fmt: skip
def test_changes_cannot_split_the_message(
    block: Any, subject: str, utf8: bool, action: str
) -> None:
    made = changed(an_answer(milter=block, subject=subject, action=action), utf8=utf8)
    # Without a field left, the message begins with the empty line.
    header, _, body = (b"\r\n" + made).partition(b"\r\n\r\n")
    assert body == b"body\r\n"
    assert b"\r" not in header.replace(b"\r\n", b"")
    assert b"\n" not in header.replace(b"\r\n", b"")
    assert b"\0" not in header
    assert utf8 or header.isascii()
    assert max((each.end for each in fields(made)), default=0) in {len(header), 0}


# -- requests ----------------------------------------------------------------------------------


def test_a_request_has_the_client_and_the_envelope() -> None:
    client = MailClient(("2001:db8::1", 25), "helo.example", "name.example", "bob", tls=True)
    session = type("Session", (), {"ssl": {"cipher": ("AES", "TLSv1.3", 256)}})()
    made = mail(b"", "b@x", "c@x", sender="a@x", client=client)
    assert list(request_fields(made, session, "mx.example.com")) == [
        ("From", "a@x"), ("Rcpt", "b@x"), ("Rcpt", "c@x"), ("IP", "2001:db8::1"),
        ("Helo", "helo.example"), ("Hostname", "name.example"), ("User", "bob"),
        ("Queue-Id", "77-1-1"), ("MTA-Name", "mx.example.com"), ("TLS-Cipher", "AES"),
        ("TLS-Version", "TLSv1.3"),
    ]  # fmt: skip


def test_unknown_values_are_not_sent_but_the_null_sender_is() -> None:
    made = mail(b"", "b@x", sender="", client=MailClient())
    assert list(request_fields(made, None, "mx")) == [
        ("From", "<>"), ("Rcpt", "b@x"), ("Queue-Id", "77-1-1"), ("MTA-Name", "mx"),
    ]  # fmt: skip


@given(text=st.text(max_size=60))
def test_a_value_cannot_end_its_line(text: str) -> None:
    client = MailClient(("192.0.2.1", 1), text, text, text)
    made = mail(b"", text, sender=text, client=client)
    for name, value in request_fields(made, None, "mx"):
        assert not set("\r\n\0") & set(value)
        assert value.encode().decode() == value
        if text.isprintable() and text and name in {"From", "Helo"}:
            assert value == text  # a percent sign, for example, is not encoded


@pytest.mark.parametrize("letter", ["x", "\u65e5"])
def test_recipients_that_do_not_fit_into_the_header_are_not_sent(letter: str) -> None:
    made = mail(b"", *(f"{letter * 60}{number}@example.com" for number in range(1000)))
    said = [value for name, value in request_fields(made, None, "mx") if name == "Rcpt"]
    assert said == [each.address for each in made.recipients[: len(said)]]
    assert 0 < MOST_RECIPIENT_BYTES - sum(len(each.encode()) + 8 for each in said) < 300
