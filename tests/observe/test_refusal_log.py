"""Refusals in the log: the first immediately, further ones in summaries, with limited memory."""

from __future__ import annotations

import pytest

from smtpd_fork.gate import Full, Refusal, RefusalLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(host: str = "192.0.2.1", count: int = 7) -> Refusal:
    return Refusal("max_from_ip", host, count, 5)


def test_the_first_refusal_of_a_client_is_logged_immediately_with_limit_and_count(
    clock: Clock,
) -> None:
    log = RefusalLog(clock=clock)
    assert log.note(refusal()) == "refused 192.0.2.1: max_from_ip (7 > 5)"
    assert log.note(refusal("192.0.2.2")) == "refused 192.0.2.2: max_from_ip (7 > 5)"


def test_a_flood_from_one_client_is_one_line_immediately_and_one_per_period(clock: Clock) -> None:
    log = RefusalLog(clock=clock, seconds=5)
    lines = [line for _ in range(1000) if (line := log.note(refusal()))]
    assert len(lines) == 1
    assert log.flush() == []
    clock.now += 5
    assert [line.text for line in log.flush()] == [
        "refused 192.0.2.1: max_from_ip (7 > 5); 999 more in 5 s"
    ]
    assert log.flush() == []


def test_a_client_that_returns_after_a_quiet_period_is_logged_immediately(
    clock: Clock,
) -> None:
    log = RefusalLog(clock=clock, seconds=5)
    log.note(refusal())
    clock.now += 5
    assert log.flush() == []
    assert not log.pending
    assert log.note(refusal()) is not None


def test_clients_beyond_the_limit_of_the_table_share_a_summary(clock: Clock) -> None:
    log = RefusalLog(clock=clock, seconds=5, max_clients=10)
    lines = [line for n in range(1000) if (line := log.note(refusal(f"192.0.2.{n}")))]
    assert len(lines) == 11
    assert len(log._clients) == 11
    clock.now += 5
    assert [line.text for line in log.flush()] == ["refused other clients; 989 more in 5 s"]


def test_refusals_without_a_free_slot_share_a_summary(clock: Clock) -> None:
    log = RefusalLog(clock=clock)
    assert log.note(Full(101, 100)) == "connection limit reached (100)"
    assert log.note(Full(101, 100)) is None


def test_at_the_end_all_counts_are_logged(clock: Clock) -> None:
    log = RefusalLog(clock=clock)
    log.note(refusal())
    log.note(refusal(count=9))
    (line,) = log.flush(everything=True)
    assert line.text == "refused 192.0.2.1: max_from_ip (9 > 5); 1 more in 0 s"
    assert (line.last, line.more) == (refusal(count=9), 1)
