"""The gate's settings: errors name the value and the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_fork import Config, Gate, Limits, Refusal, SettingError, SmtpdForkError, Ticket
from smtpd_fork.gate import GATE_SETTINGS, limits_of
from smtpd_fork.gate.networks import NetworkTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(("setting", "value", "reason"), [
    ("max_from_net", "5", "N/PREFIX"), ("max_from_net", "0/24", "N must be 1 to"),
    ("max_from_net", "5/129", "prefix"), ("max_from_net", "5/4:8", "prefix"),
    ("max_from_net", "0%/24", "N must be 1 to 100"), ("max_from_net", "101%/24", "1 to 100"),
    ("max_from_net", "x/24", "N/PREFIX"), ("max_from_net", "5/", "prefix"),
    ("rate", "5", "N/PERIOD"), ("rate", "0/m", "N: must be 1 to"), ("rate", "5/x", "not a period"),
    ("rate", "5/0s", "more than 0"), ("rate", "5/", "N/PERIOD"), ("rate", "5/25h", "a day"),
    ("rate_net", "5/m", "N/PERIOD/PREFIX"), ("rate_net", "5/m/x", "prefix"),
    ("deny", "192.0.2.1/24", "host bits"), ("deny", "192.0.2.300", "address"),
    ("allow", "2001:db8::x", "address"), ("exempt", "/no/such/file", "cannot read the file"),
    ("reserve", 5, "needs --exempt"), ("reserve", 5000, "less than"),
    ("ipv6_prefix", 0, ">= 1"), ("ipv6_prefix", 129, "<= 128"), ("refuse_first", -1, ">= 0"),
])  # fmt: skip
def test_the_error_names_a_wrong_value_and_the_reason(
    setting: str, value: object, reason: str
) -> None:
    with pytest.raises(SmtpdForkError, match=setting) as caught:
        limits_of(Config.build({setting: value, "limit_connections": 100}))
    assert reason in str(caught.value)
    assert repr(value) in str(caught.value)


@settings(max_examples=300)
@given(st.text(max_size=12))
def test_any_text_is_a_setting_or_an_error_that_names_the_setting(text: str) -> None:
    for setting in ("max_from_net", "rate", "rate_net", "allow", "exempt"):
        try:
            limits_of(Config.build({setting: text}))
        except SmtpdForkError as error:
            assert setting in str(error)  # noqa: PT017 - there may be no error


OF_A_GATE: dict[str, Any] = {
    "limit_connections": 99, "max_from_ip": 3, "ipv6_prefix": 56, "rate": "30/m",
    "max_from_net": ["25%/24", "9/48"], "rate_net": ("100/m/24",), "tls_failure_rate": "0",
    "allow": "192.0.2.1", "deny": ["192.0.2.0/24", "2001:db8::/32"], "exempt": ["10.0.0.0/8"],
    "reserve": 5, "fair_share": True, "refuse_first": 1, "refuse_every": 2, "max_loop_lag": "500ms",
}  # fmt: skip


@pytest.mark.parametrize("make", [lambda **kw: Gate(**kw).limits, Limits], ids=["Gate", "Limits"])
def test_a_gate_reads_its_limits_as_a_server_does(make: Callable[..., Limits]) -> None:
    expected = limits_of(Config.build(OF_A_GATE))
    for name in GATE_SETTINGS:
        value = OF_A_GATE.get(name, getattr(Config(), name))
        base = {"limit_connections": 9, "exempt": OF_A_GATE["exempt"]}
        got = getattr(make(**{**base, name: value}), name)
        wanted = getattr(expected, name)
        if isinstance(wanted, NetworkTable):
            got, wanted = list(got.values()), list(wanted.values())
        assert got == wanted, name
    assert make() == Limits()


def test_a_changed_copy_of_limits_does_not_read_files_again(tmp_path: Path) -> None:
    listed = tmp_path / "bad.list"
    listed.write_text("192.0.2.1\n")
    limits = Limits(deny=str(listed), rate=["5/m", "9/h"])
    listed.unlink()
    changed = replace(limits, max_from_ip=7)
    assert (changed.deny, changed.rate, changed.max_from_ip) == (limits.deny, limits.rate, 7)
    gate = Gate(limits=changed)
    assert isinstance(gate.admit("192.0.2.1"), Refusal)
    assert isinstance(gate.admit("192.0.2.2"), Ticket)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"rates": "5/m"},
            "rates '5/m': unknown setting: did you mean rate, or rate_net?",
        ),
        ({"access": []}, "unknown setting: did you mean allow, or deny?"),
        (
            {"max_from_ipp": 3},
            "max_from_ipp 3: unknown setting; did you mean max_from_ip?",
        ),
        ({"timeout": 5}, "timeout 5: unknown setting"),
        ({"rate": 5}, "rate 5: "),
        ({"max_from_ip": "lots"}, "max_from_ip 'lots': expected a whole number"),
        ({"limit_connections": 3, "reserve": 3}, "reserve 3: must be less than limit_connections"),
        ({"reserve": 3}, "reserve 3: needs --exempt"),
        ({"deny": "./no/such.list"}, "deny './no/such.list': cannot read the file"),
    ],
)
def test_the_error_of_an_unknown_limit_names_the_right_one(
    settings: dict[str, Any], says: str
) -> None:
    for make in (Gate, Limits):
        with pytest.raises(SettingError) as caught:
            make(**settings)
        assert says in str(caught.value)
    with pytest.raises(TypeError, match="either limits or settings"):
        Gate(limits=Limits(), **settings)


def test_limits_of_another_type_are_a_type_error_and_change_nothing() -> None:
    settings: Any = {"max_from_ip": 3}
    with pytest.raises(TypeError, match="limits must be a Limits, not dict"):
        Gate(limits=settings)
    gate = Gate(max_from_ip=5)
    with pytest.raises(TypeError, match="limits must be a Limits, not dict"):
        gate.limits = settings
    assert gate.limits.max_from_ip == 5
