"""Addresses: the forms of an address, and the ports on which they are bound."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.config import SettingError
from smtpd_fork.listeners import Address, expand_ports, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", Address(host="127.0.0.1")),
        ("127.0.0.1:25", Address(host="127.0.0.1", port=25)),
        ("localhost:0", Address(host="localhost", port=0)),
        ("*", Address(host="*")),
        ("*:25", Address(host="*", port=25)),
        (":25", Address(host="*", port=25)),
        ("smtp+proxy::2526", Address("smtp+proxy", "*", 2526)),
        ("[::1]", Address(host="::1")),
        ("[::1]:25", Address(host="::1", port=25)),
        ("::1", Address(host="::1")),
        ("fe80::1%lo", Address(host="fe80::1%lo")),
        ("smtps:127.0.0.1:465", Address("smtps", "127.0.0.1", 465)),
        ("smtps:[::1]:465", Address("smtps", "::1", 465)),
        ("unix:/run/x.sock", Address(path=Path("/run/x.sock"))),
        ("smtps:unix:/run/x.sock", Address("smtps", path=Path("/run/x.sock"))),
        ("smtp+proxy:[::]:2526", Address("smtp+proxy", "::", 2526)),
        ("lmtp+no-tls:unix:/run/x+y", Address("lmtp+no-tls", path=Path("/run/x+y"))),
        ("smtps+require-tls:*", Address("smtps+require-tls", "*")),
    ],
)
def test_all_forms_of_an_address_are_parsed(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "smtp:", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536",
        "127.0.0.1:+1",
        "127.0.0.1:1_0", "127.0.0.1: 1", "127.0.0.1:\u0661", "[::1", "::1]", "[::1]25", "[::1]:",
        "[127.0.0.1]:25", "1::2::3", "a b:25", "unix:", "unix:\0", "unix:/" + "x" * 108,
        "host/path", "-dash:25", "smtp+proxy", "smtp+proxy:", "smtp+:*", "+proxy:*", "a+b:25",
    ],
)  # fmt: skip
def test_an_invalid_address_is_named_in_the_error(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_address(text)
    assert caught.value.value == text
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "smtp+proxy+require-tls:[::]:2526",
        "smtp+require-tls+proxy:[::]:2526",
    ],
)
def test_flags_may_be_in_any_order(text: str) -> None:
    address = parse_address(text)
    assert str(address) == "smtp+proxy+require-tls:[::]:2526"
    assert (address.protocol, address.proxy, address.require_tls) == ("smtp", True, True)
    assert (address.tls, address.lmtp, address.no_tls) == (False, False, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smtp+tls:*:25", ["'+tls' is not a flag", "+proxy, +require-tls, +no-tls"]),
        ("smtp+PROXY:*:25", ["'+PROXY' is not a flag"]),
        ("http+proxy:*:25", ["'http' is not a protocol; the protocols are smtp"]),
        ("smtp+proxy+proxy:*:25", ["+proxy is given twice"]),
        ("smtp+no-tls+proxy+require-tls:*", ["+no-tls", "+require-tls", "contradict"]),
        ("smtps+no-tls:*", ["smtps", "+no-tls"]),
    ],
)
def test_an_invalid_flag_is_named_in_the_error(text: str, words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        parse_address(text)
    for word in [text, *words]:
        assert word in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_setting_error(text: str) -> None:
    with suppress(SettingError):
        assert isinstance(parse_address(text), Address)


def test_an_address_without_a_port_is_bound_on_every_port() -> None:
    addresses = [parse_address(text) for text in ("127.0.0.1", "[::1]:25", "unix:/x")]
    assert [str(a) for a in expand_ports(addresses, [2525, 2526])] == [
        "127.0.0.1:2525",
        "127.0.0.1:2526",
        "[::1]:25",
        "unix:/x",
    ]


def test_the_same_address_twice_is_bound_once() -> None:
    addresses = [parse_address("127.0.0.1"), parse_address("127.0.0.1:25")]
    assert len(expand_ports(addresses, [25, 25])) == 1
