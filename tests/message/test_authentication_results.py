"""Authentication-Results: fields with this server's name are found, and all else is unchanged."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.message.authentication_results import (
    authserv_id,
    authserv_key,
    has_results,
    without_results,
)

OURS = frozenset({"mx.example.com"})
FORGED = b"Authentication-Results: mx.example.com; dkim=pass header.d=bank.example\r\n"
REST = b"From: a@example.org\r\nSubject: x\r\n\r\nAuthentication-Results: mx.example.com; x\r\n"


def without(header: bytes) -> bytes:
    return without_results(header, OURS)


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.com; dkim=pass",
        b"mx.example.com;dkim=pass",
        b" MX.Example.COM; none",
        b" mx.example.com. ; none",
        b" mx.example.com 1; spf=pass",
        b" mx.example.com/1; spf=pass",
        b" mx.example.com",
        b" mx.example.com (a comment); none",
        b" (a comment) mx.example.com; none",
        b"((nested) \\( escaped)\tmx.example.com; none",
        b"\r\n\tmx.example.com; none",
        b"\r\n (a\r\n b)\r\n mx.example.com\r\n ; none",
        b' "mx.example.com"; none',
        b' "mx\\.example.com"; none',
        b"\x0b\xc2\xa0mx.example.com; none",
        b"\xe2\x80\x8bmx.example.com; none",
        "\N{FULLWIDTH LATIN SMALL LETTER M}x.example.com; none".encode(),
        b" =?utf-8?q?mx.example.com?=; dkim=pass",
        b" (open mx.example.com; dkim=pass",
        b' "mx.example.com; dkim=pass',
        b" (" + b"x" * 3000 + b") mx.example.com; dkim=pass",
        b" (" + b"x" * 1985 + b") mx.example.com; dkim=pass",
    ],
)
@pytest.mark.parametrize("name", [b"Authentication-Results", b"authentication-RESULTS \t"])
def test_a_field_in_the_name_of_this_server_is_removed(name: bytes, value: bytes) -> None:
    field = name + b":" + value + b"\r\n"
    assert has_results(field + REST)
    assert without(field + REST) == REST
    assert without(b"To: b\r\n\tc\r\n" + field + field + REST) == b"To: b\r\n\tc\r\n" + REST
    assert without(b"To: b\r\n" + field) == b"To: b\r\n"


@pytest.mark.parametrize(
    "field",
    [
        b"Authentication-Results: mx.example.org; dkim=pass\r\n",
        b"Authentication-Results: mx.example.com.evil.example; dkim=pass\r\n",
        b"Authentication-Results: amx.example.com; dkim=pass\r\n",
        b"Authentication-Results: (mx.example.com) mx.example.org; dkim=pass\r\n",
        b"Authentication-Results: other;\r\n\tmx.example.com; dkim=pass\r\n",
        b"Authentication-Results: spf=pass (sender is mx.example.com)\r\n",
        b"Authentication-Results:\r\n",
        b"Authentication-Results: (open\r\n",
        b"Authentication-Results mx.example.com; dkim=pass\r\n",
        b"Authentication-Results-X: mx.example.com; dkim=pass\r\n",
        b"ARC-Authentication-Results: i=1; mx.example.com; dkim=pass\r\n",
        b"X: Authentication-Results: mx.example.com; dkim=pass\r\n",
        b"X: y\r\n Authentication-Results: mx.example.com; dkim=pass\r\n",
    ],
)
def test_any_other_field_remains(field: bytes) -> None:
    content = field + REST
    assert without(content) is content
    assert without(field + FORGED + REST) == content
    assert without(FORGED + field + REST) == content


def test_a_message_without_such_a_field_is_the_same_object() -> None:
    for content in (REST, b"", b"text", b"Subject: x"):
        assert without(content) is content
        assert not has_results(content)
    for content in (b"\r\n" + FORGED, b"\n" + FORGED):
        assert without(content) is content


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_text_after_the_empty_line_is_not_changed(end: bytes) -> None:
    header = b"Subject: x" + end
    text = end + FORGED + b"\r\n\n\r\n" + FORGED
    assert without(header + text) == header + text
    assert without(header + FORGED + text) == header + text


def test_a_line_that_is_not_a_field_does_not_hide_one() -> None:
    assert without(b"Subject: x\r\nno field\r\n" + FORGED + REST) == (
        b"Subject: x\r\nno field\r\n" + REST
    )


def test_a_bare_carriage_return_does_not_hide_one() -> None:
    hidden = b"Subject: x\r" + FORGED
    assert without(hidden + REST) == b"Subject: x\r\n" + REST
    other = FORGED.replace(b"mx.example.com", b"mx.example.org").strip()
    assert without(other + b"\r" + FORGED + REST) == other + b"\r\n" + REST


def test_an_international_id_is_compared_in_either_form() -> None:
    ids = {authserv_key("mx.bücher.example")}
    for name in ("mx.bücher.example", "MX.BÜCHER.example", "mx.xn--bcher-kva.example"):
        field = f"Authentication-Results: {name}; dkim=pass\r\n".encode()
        assert without_results(field + REST, ids) == REST


@pytest.mark.parametrize("at", [0, 65_500, 65_520, 65_535, 65_536, 65_560, 200_000, 2_000_000])
def test_a_field_is_found_anywhere_in_a_large_header(at: int) -> None:
    line = b"X-Filler: " + b"y" * 60 + b"\r\n"
    filler = (line * (at // len(line) + 1))[:at]
    before = filler + b"\r\n" * (not filler.endswith(b"\n")) if filler else b""
    assert without(before + FORGED + REST) == before + REST


@pytest.mark.parametrize(
    "unit",
    [
        b"a", b"\n ", b"\r", b"A:b\n", b"Authentication-Results", b"\rAuthentication-Results:(",
        b"Authentication-Results:(\n",
        b"Authentication-Results:\n", b"(", b"\\", b'"', b" ", b"Authentication-Results \n",
    ],
)  # fmt: skip
def test_a_hostile_header_takes_linear_time(unit: bytes) -> None:
    # Otherwise it would exceed the time limit of the test.
    content = b"Authentication-Results: (" + unit * (3_000_000 // len(unit))
    assert len(without(content)) <= len(content)


parts = st.sampled_from(
    [
        b"Authentication-Results", b"authentication-results", b":", b" ", b"\t", b"mx.example.com",
        b"mx.example.org", b";", b"(", b")", b'"', b"\\", b"\r\n", b"\n", b"\r", b"\r\n ", b"x",
        b"\r\n\r\n", b"=?utf-8?q?mx.example.com?=", b"\xc3", b"\0", b"dkim=pass", FORGED,
    ]
)  # fmt: skip


@given(content=st.lists(parts, max_size=30).map(b"".join))
def test_the_parsers_of_python_find_no_remaining_field_of_this_server(content: bytes) -> None:
    cleaned = without(content)
    assert has_results(content) or cleaned is content
    assert without(cleaned) is cleaned
    assert len(cleaned) <= len(content)
    message = email.message_from_bytes(cleaned)  # its lines end at a bare CR as well
    for value in message.get_all("Authentication-Results", []):
        found = authserv_id(str(value).encode("utf-8", "replace"))
        assert found is None or authserv_key(found) not in OURS, cleaned


@given(value=st.binary(max_size=60))
def test_any_value_has_an_id_or_none(value: bytes) -> None:
    found = authserv_id(value)
    assert found is None or authserv_key(found) == authserv_key(authserv_key(found))
