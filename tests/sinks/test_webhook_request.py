"""The request of a webhook, without a socket: fields, body and signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Standard
from support.mail import CONTENT, TRACE, contents, large, mail

from smtpd_fork.message import MailClient
from smtpd_fork.sinks import mail_json
from smtpd_fork.sinks.mail_json import delivery_key, envelope_json, header_list, pieces
from smtpd_fork.sinks.webhook_request import (
    Body,
    addresses,
    envelope_fields,
    read_secrets,
    signature_fields,
)  # fmt: skip

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def read(body: Body) -> bytes:
    return b"".join(body)


@given(contents)
def test_a_raw_body_is_the_message_below_its_trace(content: bytes) -> None:
    each = mail(content)
    body = Body.raw(each)
    assert read(body) == b"".join(each.relayed())
    assert body.size == len(read(body))


@given(contents)
def test_a_json_body_contains_every_byte_of_the_message(content: bytes) -> None:
    each = mail(content)
    body = Body.json(each, "key")
    found = json.loads(read(body))
    assert base64.b64decode(found["content"]) == b"".join(each.relayed())
    assert body.size == len(read(body))


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 7))
def test_pieces_have_the_same_size_and_are_the_whole_message(parts: list[bytes], n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mail_json, "PIECE_BYTES", 3 * n)
        found = [bytes(piece) for piece in pieces(*parts)]
    assert b"".join(found) == b"".join(parts)
    assert all(len(piece) == 3 * n for piece in found[:-1])
    assert all(found)


def test_the_json_schema_is_as_documented() -> None:
    client = MailClient(("192.0.2.7", 4711), "client.example", "mx.example.net", "bob", tls=True)
    each = mail(CONTENT, "b@example.com", "c@example.com", client=client, utf8=True)
    found: dict[str, Any] = json.loads(read(Body.json(each, "k")))
    datetime.fromisoformat(found.pop("received"))
    assert found == {
        "version": 1,
        "id": "77-1-1",
        "key": "k",
        "sender": "a@example.org",
        "recipients": ["b@example.com", "c@example.com"],
        "body": "7BIT",
        "utf8": True,
        "client": {
            "address": "192.0.2.7",
            "helo": "client.example",
            "name": "mx.example.net",
            "login": "bob",
            "tls": True,
        },
        "origin": None,
        "headers": [["Subject", "hello"]],
        "content": base64.b64encode(TRACE + CONTENT).decode(),
    }


def test_the_json_object_has_the_origin_of_a_message() -> None:
    named = {"ADDR": "2001:db8::7", "PORT": "25", "HELO": "hé", "IDENT": "B77", "SOURCE": "REMOTE"}
    each = mail(CONTENT, client=MailClient(("192.0.2.7", 4711)), xforward=named)
    found: dict[str, Any] = json.loads(envelope_json(each, "k"))
    assert found["client"]["address"] == "192.0.2.7"
    assert found["origin"] == {
        "address": "2001:db8::7",
        "port": 25,
        "helo": "hé",
        "name": None,
        "protocol": None,
        "queue_id": "B77",
        "source": "REMOTE",
    }
    fields = envelope_fields(each)
    assert (fields["X-Mail-Client"], fields["X-Mail-Origin"]) == ("192.0.2.7", "2001:db8::7")
    assert "X-Mail-Origin" not in envelope_fields(mail(CONTENT, xforward={"IDENT": "B77"}))


class LoginPassword:
    login = b"bob"
    password = b"hunter2"


@pytest.mark.parametrize("login", [LoginPassword(), (b"bob", b"hunter2"), b"hunter2"])
def test_a_password_of_auth_is_not_in_the_envelope(login: object) -> None:
    client = MailClient(("192.0.2.7", 4711), login=login)
    assert b"hunter2" not in envelope_json(mail(client=client), "k")


@given(st.text(), st.text())
def test_fields_are_printable_ascii_whatever_the_client_says(sender: str, helo: str) -> None:
    helo = helo.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    sender = sender.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    each = mail(CONTENT, sender, sender=sender, client=MailClient("", helo))
    for value in envelope_fields(each).values():
        assert value.isascii()
        assert value.isprintable()
    json.loads(envelope_json(each, "k"))


def test_a_comma_in_an_address_is_encoded() -> None:
    assert addresses(['"a, b"@example.com', "c%d@example.com", "ü@example.com"]) == (
        "%22a%2C%20b%22@example.com, c%25d@example.com, %C3%BC@example.com"
    )


@given(st.text(st.characters(codec="utf-8"), max_size=100))
async def test_the_standards_library_verifies_the_signature(text: str) -> None:
    body = Body.json(mail(text.encode()), "k")
    now = int(datetime.now(UTC).timestamp())
    fields = await signature_fields("k", now, body, read_secrets(SECRET))
    assert Standard(SECRET).verify(read(body), fields)["id"] == "77-1-1"


async def test_during_a_change_of_keys_the_request_is_signed_with_both() -> None:
    other = "whsec_" + base64.b64encode(b"n" * 32).decode()
    body = Body.json(mail(), "k")
    now = int(datetime.now(UTC).timestamp())
    fields = await signature_fields("k", now, body, read_secrets(f"{SECRET} {other}"))
    assert len(fields["webhook-signature"].split()) == 2
    for secret in (SECRET, other):
        assert Standard(secret).verify(read(body), fields)


async def test_a_large_message_is_signed_like_a_small_one() -> None:
    body = Body.raw(mail(large(1_000_000)))
    fields = await signature_fields("k", 1, body, [b"secret"])
    digest = hmac.new(b"secret", b"k.1." + read(body), hashlib.sha256).digest()
    assert fields["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


@pytest.mark.parametrize(
    "text", ["hunter2", "whsec_", "whsec_*", "whsec_MfKQ", f"{SECRET} hunter2", SECRET + "A"]
)
def test_an_invalid_secret_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and 24 to 64"):
        read_secrets(text)


async def test_a_subset_of_the_recipients_has_its_own_key() -> None:
    whole = mail(CONTENT, "b@example.com", "c@example.com")
    one, other = (whole.to([each]) for each in whole.recipients)
    keys = {await delivery_key(each) for each in (whole, one, other)}
    assert len(keys) == 3
    assert await delivery_key(whole) == whole.key


@pytest.mark.parametrize("field", [b"A:\r\n", b"Received: x\r\n" + b" y\r\n" * 9])
def test_the_list_of_header_fields_is_bounded(field: bytes) -> None:
    found = header_list(field * 1_000_000)
    assert 0 < len(found) <= 1000
    assert found == header_list(field * 1000)[: len(found)]
