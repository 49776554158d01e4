"""History: the refusals of each minute of the last hour."""

from __future__ import annotations

from smtpd_fork.observe.refusal_history import MINUTES, History


def stats(**refused: int) -> dict[str, int]:
    counts = {f"refused_{rule}": count for rule, count in refused.items()}
    return {"admitted": 7, "refused": sum(refused.values()), **counts}


def test_the_current_minute_is_the_last_one() -> None:
    history = History(stats(deny=5))
    assert history.minutes(stats(deny=7, rate=1)) == [*[{}] * (MINUTES - 1), {"deny": 2, "rate": 1}]


def test_a_minute_has_its_refusals() -> None:
    history = History(stats())
    history.end_minute(stats(deny=2))
    history.end_minute(stats(deny=2))
    history.end_minute(stats(deny=3, rate=4))
    assert history.minutes(stats(deny=3, rate=5))[-4:] == [
        {"deny": 2},
        {},
        {"deny": 1, "rate": 4},
        {"rate": 1},
    ]


def test_refusals_before_the_last_hour_are_removed() -> None:
    history = History(stats())
    for minute in range(1, 3 * MINUTES):
        history.end_minute(stats(deny=minute))
    minutes = history.minutes(stats(deny=3 * MINUTES - 1))
    assert minutes == [*[{"deny": 1}] * (MINUTES - 1), {}]
