"""Limits divided among processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.supervisor.shares import divided, share_of


@given(st.integers(1, 64), st.integers(0, 5000))
def test_the_shares_of_a_number_add_up_to_it(of: int, more: int) -> None:
    total = of + more
    shares = [share_of("limit_connections", total, number, of) for number in range(1, of + 1)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_zero_stays_zero_and_a_rate_is_rounded_up() -> None:
    assert share_of("max_buffered", 0, 1, 3) == 0
    assert share_of("max_buffered_from_ip", None, 1, 3) is None
    assert share_of("tls_failure_rate", "300/m", 2, 7) == "43/m"
    assert share_of("tls_failure_rate", "0", 2, 7) == "0"


def test_only_limits_of_all_clients_together_are_divided() -> None:
    config = DaemonConfig.build({"limit_connections": 11, "reserve": 2, "exempt": "192.0.2.1"})
    second = divided(config, 2, 2)
    assert (second.limit_connections, second.reserve) == (5, 1)
    assert second.max_buffered == config.max_buffered // 2
    assert second.max_recipients == config.max_recipients


@pytest.mark.parametrize(
    "settings", [{"limit_connections": 3}, {"reserve": 2, "exempt": "192.0.2.1"}]
)
def test_each_process_needs_a_slot(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="each process needs a "):
        DaemonConfig.build({"processes": 4, "max_from_ip": 0, **settings})
