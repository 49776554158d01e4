"""The gate's settings: what cannot be read is named."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_fork import Config, Gate, Refusal, SmtpdForkError, Ticket
from smtpd_fork.gate import Limits, limits_of
from smtpd_fork.gate.rules import Rate


@pytest.mark.parametrize(("setting", "value", "reason"), [
    ("max_from_net", "5", "N/PREFIX"), ("max_from_net", "0/24", "N must be 1 to"),
    ("max_from_net", "5/129", "prefix"), ("max_from_net", "5/4:8", "prefix"),
    ("max_from_net", "0%/24", "N must be 1 to 100"), ("max_from_net", "101%/24", "1 to 100"),
    ("max_from_net", "x/24", "N/PREFIX"), ("max_from_net", "5/", "prefix"),
    ("rate", "5", "N/PERIOD"), ("rate", "0/m", "N must be 1 to"), ("rate", "5/x", "duration"),
    ("rate", "5/0s", "more than 0"), ("rate", "5/", "N/PERIOD"), ("rate", "5/25h", "a day"),
    ("rate_net", "5/m", "N/PERIOD/PREFIX"), ("rate_net", "5/m/x", "prefix"),
    ("deny", "192.0.2.1/24", "host bits"), ("deny", "192.0.2.300", "address"),
    ("allow", "2001:db8::x", "address"), ("exempt", "/no/such/file", "cannot read the file"),
    ("reserve", 5, "nobody is exempt"), ("reserve", 5000, "less than"),
    ("ipv6_prefix", 0, ">= 1"), ("ipv6_prefix", 129, "<= 128"), ("refuse_first", -1, ">= 0"),
])  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_reason(
    setting: str, value: object, reason: str
) -> None:
    with pytest.raises(SmtpdForkError, match=setting) as caught:
        limits_of(Config.build({setting: value, "limit_connections": 100}))
    assert reason in str(caught.value)
    assert repr(value) in str(caught.value)


@settings(max_examples=300)
@given(st.text(max_size=12))
def test_whatever_is_written_is_a_setting_or_a_named_fault(text: str) -> None:
    for setting in ("max_from_net", "rate", "rate_net", "allow", "exempt"):
        try:
            limits_of(Config.build({setting: text}))
        except SmtpdForkError as error:
            assert setting in str(error)  # noqa: PT017 - it need not be raised


def test_limits_can_be_given_by_embedders_as_plain_data() -> None:
    door = Gate(limits=Limits(limit_connections=3, rates=(Rate(1, 60.0),)))
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    with pytest.raises(ValueError, match="reserve must be less"):
        Limits(limit_connections=3, reserve=3)
