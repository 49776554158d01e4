"""A message for a hop that lacks extensions is sent unchanged, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.mail import a_mail

from smtpd_fork.hops.content import facts_of
from smtpd_fork.hops.downgrade import Form, form_of
from smtpd_fork.message import Mail, Recipient

UTF8_HEADER = "Subject: \xe4\r\n\r\ntext\r\n".encode()
UTF8_BODY = "Subject: x\r\n\r\n\xe4\r\n".encode()


def form(mail: Mail, *offered: str, lmtp: bool = False, head: bytes = b"") -> Form | str:
    facts = asyncio.run(facts_of(mail.content))
    return form_of(mail, head, facts, dict.fromkeys(offered, ""), lmtp=lmtp)


def sent(mail: Mail, *offered: str, lmtp: bool = False) -> tuple[str, bool]:
    """Return the parameters of MAIL, and whether BDAT is used."""
    made = form(mail, *offered, lmtp=lmtp)
    assert isinstance(made, Form), made
    return made.sender.decode().strip().partition(">")[2].strip(), made.chunked


def refused(mail: Mail, *offered: str, lmtp: bool = False) -> str:
    made = form(mail, *offered, lmtp=lmtp)
    assert isinstance(made, str)
    return made[:9]


def test_only_offered_extensions_are_declared() -> None:
    mail = a_mail(body="8BITMIME", utf8=True, parameters={"RET": "HDRS", "ENVID": "x"})
    assert sent(mail) == ("", False)


def test_offered_extensions_that_the_client_used_are_declared() -> None:
    parameters = {"RET": "HDRS", "ENVID": "x+2B", "AUTH": "<>", "SIZE": "3"}
    mail = a_mail(body="8BITMIME", utf8=True, parameters=parameters)
    declared, _ = sent(mail, "8BITMIME", "SMTPUTF8", "DSN", "SIZE", "AUTH")
    assert declared == "BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x+2B SIZE=25"


@pytest.mark.parametrize("body", ["7BIT", "8BITMIME"])
def test_8_bit_content_is_declared_regardless_of_the_client(body: str) -> None:
    assert sent(a_mail(content=UTF8_BODY, body=body), "8BITMIME") == ("BODY=8BITMIME", False)


def test_8_bit_content_is_not_sent_to_a_hop_without_8bitmime() -> None:
    assert refused(a_mail(content=UTF8_BODY, body="8BITMIME")) == "554 5.6.3"


@pytest.mark.parametrize(
    "facts", [{"sender": "\xe4@example.com"}, {"to": ["b@example.com", "\xfc@example.com"]}]
)
def test_an_address_that_needs_smtputf8_gets_553_without_it(facts: dict[str, Any]) -> None:
    mail = a_mail(*facts.pop("to", []), utf8=True, **facts)
    made = form(mail, "8BITMIME")
    if isinstance(made, str):
        assert made[:9] == "553 5.6.7"
    else:
        assert [each and each[:9] for each in made.refusals] == [None, "553 5.6.7"]
        assert made.recipients == [b"RCPT TO:<b@example.com>\r\n"]
    assert sent(mail, "SMTPUTF8")[0] == "SMTPUTF8"


def test_without_smtputf8_a_utf8_header_is_sent_only_by_lmtp() -> None:
    mail = a_mail(content=UTF8_HEADER, utf8=True)
    assert refused(mail, "8BITMIME") == "554 5.6.9"
    assert sent(mail, "8BITMIME", lmtp=True) == ("BODY=8BITMIME", False)
    assert sent(mail, "8BITMIME", "SMTPUTF8") == ("BODY=8BITMIME SMTPUTF8", False)


def test_utf8_only_in_the_body_needs_no_smtputf8() -> None:
    assert sent(a_mail(content=UTF8_BODY, utf8=True), "8BITMIME") == ("BODY=8BITMIME", False)


def test_utf8_in_our_own_field_counts_as_a_utf8_header() -> None:
    mail = a_mail(utf8=True)
    made = form(mail, "8BITMIME", head="Received: from \xe4\r\n".encode())
    assert isinstance(made, str)
    assert made[:9] == "554 5.6.9"


@pytest.mark.parametrize("text", [b"a\nb\r\n", b"a\rb\r\n", b"a\r\n.\nb\r\n"])
def test_a_bare_cr_or_lf_is_never_sent_by_data(text: bytes) -> None:
    every = ("8BITMIME", "BINARYMIME", "CHUNKING")
    assert refused(a_mail(content=text), *every) == "554 5.6.0"
    assert sent(a_mail(content=text, body="BINARYMIME"), *every) == ("BODY=BINARYMIME", True)
    for missing in every[1:]:
        offered = set(every) - {missing}
        assert refused(a_mail(content=text, body="BINARYMIME"), *offered) == "554 5.6.3"


def test_a_nul_is_sent_only_by_bdat() -> None:
    text = b"a\0b\r\n"
    assert refused(a_mail(content=text), "CHUNKING", "BINARYMIME") == "554 5.6.0"
    binary = a_mail(content=text, body="BINARYMIME")
    assert sent(binary, "CHUNKING", "BINARYMIME") == ("BODY=BINARYMIME", True)
    assert refused(binary, "8BITMIME") == "554 5.6.3"


def test_binary_content_that_consists_of_lines_is_sent_by_data() -> None:
    assert sent(a_mail(body="BINARYMIME")) == ("", False)
    assert sent(a_mail(content=UTF8_BODY, body="BINARYMIME"), "8BITMIME")[0] == "BODY=8BITMIME"
    assert refused(a_mail(content=b"x" * 999 + b"\r\n", body="BINARYMIME")) == "554 5.6.3"


def test_content_without_a_last_line_end_keeps_its_end_where_chunking_is_offered() -> None:
    mail = a_mail(content=b"Subject: x\r\n\r\nno end")
    assert sent(mail) == ("", False)
    assert sent(mail, "CHUNKING") == ("", True)


def with_notify(value: str, **more: str) -> Mail:
    mail = a_mail()
    recipient = Recipient("b@example.com", {"NOTIFY": value, **more})
    return Mail(mail.id, mail.sender, (recipient,), mail.content)


def test_dsn_is_passed_on_where_it_is_offered() -> None:
    made = form(with_notify("SUCCESS,FAILURE", ORCPT="rfc822;b@example.com"), "DSN")
    assert isinstance(made, Form)
    assert made.recipients == [
        b"RCPT TO:<b@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@example.com\r\n"
    ]


def test_without_dsn_a_notification_of_success_is_451_and_others_are_dropped() -> None:
    assert refused(with_notify("FAILURE,success")) == "451 4.5.4"
    made = form(with_notify("NEVER"))
    assert isinstance(made, Form)
    assert made.recipients == [b"RCPT TO:<b@example.com>\r\n"]


@pytest.mark.parametrize(
    "address",
    ["b@x>\r\nRCPT TO:<c@x", "b@x> SIZE=1", "b\0@x", "b@x\n", "<b@x>", "b @x"],
)
def test_an_address_of_a_handler_cannot_inject_a_command(address: str) -> None:
    made = form(a_mail(address), "SMTPUTF8")
    assert isinstance(made, Form)
    assert made.recipients == []
    assert str(made.refusals[0])[:9] == "553 5.1.3"
    assert refused(a_mail(sender=address)) == "553 5.1.3"


def test_a_quoted_local_part_is_sent_unchanged() -> None:
    made = form(a_mail('"a > b"@example.com'))
    assert isinstance(made, Form)
    assert made.recipients == [b'RCPT TO:<"a > b"@example.com>\r\n']


def test_the_null_sender_is_sent_as_the_null_sender() -> None:
    made = form(a_mail(sender=""))
    assert isinstance(made, Form)
    assert made.sender == b"MAIL FROM:<>\r\n"
