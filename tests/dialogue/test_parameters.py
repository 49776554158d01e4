"""Parameters of MAIL and RCPT: their syntax, invalid values, and the replies to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import PIECES

from smtpd_fork.dialogue.params import invalid_value, parse_params


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("", {}),
        ("  ", {}),
        ("SIZE=1", {"SIZE": "1"}),
        (" size=1  body=8BitMime ", {"SIZE": "1", "BODY": "8BitMime"}),
        ("SMTPUTF8", {"SMTPUTF8": True}),
        ("ENVID=aBc+2B", {"ENVID": "aBc+2B"}),
        ("ORCPT=rfc822;a@b", {"ORCPT": "rfc822;a@b"}),
        ("X-ODD-1=x", {"X-ODD-1": "x"}),
        ("9=x", {"9": "x"}),
        ("AUTH=<>", {"AUTH": "<>"}),
        ("ORCPT=utf-8;ä@b", {"ORCPT": "utf-8;ä@b"}),
        ("SIZE=", None),
        ("=1", None),
        ("SIZE=1 size=2", None),
        ("SIZE SIZE", None),
        ("SIZE=1=2", None),
        ("-SIZE=1", None),
        ("SI_ZE=1", None),
        ("<x>", None),
        ("SIZE =1", None),
        ("SIZE= 1", None),
        ("ENVID=a\x7f", None),
        ("ENVID=a\0", None),
        ("SÏZE=1", None),
        # RFC 5321 4.1.1.11 has a space between parameters, and no other blank
        ("SIZE=1\tBODY=7BIT", None),
        ("SIZE=1\x0bBODY=7BIT", None),
        ("SIZE=1\x1cBODY=7BIT", None),
        ("SIZE=1\x85BODY=7BIT", None),
        ("SIZE=1\u2028BODY=7BIT", None),
    ],
)
def test_parameters(text: str, params: dict[str, str | bool] | None) -> None:
    assert parse_params(text) == params


@settings(max_examples=1000)
@given(text=st.text() | PIECES)
def test_any_text_is_parameters_or_none(text: str) -> None:
    params = parse_params(text)
    if params is not None:
        words = [name if value is True else f"{name}={value}" for name, value in params.items()]
        assert parse_params(" ".join(words)) == params
        invalid_value(params)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("RET=FULL", None),
        ("RET=hdrs", None),
        ("RET=NONE", "RET"),
        ("RET", "RET"),
        ("ENVID=QQ314159", None),
        ("ENVID=+2B+3D", None),
        ("ENVID=+2b", "ENVID"),
        ("ENVID=+G0", "ENVID"),
        ("ENVID=a+", "ENVID"),
        ("ENVID=ä", "ENVID"),
        ("ENVID", "ENVID"),
        ("ENVID=" + "x" * 100, None),
        ("ENVID=" + "x" * 101, "ENVID"),
        ("AUTH=<>", None),
        ("AUTH=a+2Bb@c", None),
        ("AUTH=<a>", None),
        ("AUTH=+", "AUTH"),
        ("AUTH", "AUTH"),
    ],
)
def test_values_of_mail(text: str, fault: str | None) -> None:
    params = parse_params(text)
    assert params is not None
    assert invalid_value(params) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("NOTIFY=NEVER", None),
        ("NOTIFY=success,Failure,DELAY", None),
        ("NOTIFY=NEVER,SUCCESS", "NOTIFY"),
        ("NOTIFY=SUCCESS,", "NOTIFY"),
        ("NOTIFY=,", "NOTIFY"),
        ("NOTIFY=MAYBE", "NOTIFY"),
        ("NOTIFY=\u017fUCCESS", "NOTIFY"),
        ("NOTIFY", "NOTIFY"),
        ("ORCPT=rfc822;A.b@C", None),
        ("ORCPT=rfc822;" + "x" * 493, None),
        ("ORCPT=rfc822;" + "x" * 494, "ORCPT"),
        ("ORCPT=a@b", "ORCPT"),
        ("ORCPT=rfc822;", "ORCPT"),
        ("ORCPT=;a@b", "ORCPT"),
        ("ORCPT", "ORCPT"),
    ],
)
def test_values_of_rcpt(text: str, fault: str | None) -> None:
    params = parse_params(text)
    assert params is not None
    assert invalid_value(params) == fault
