"""The log lines of episodes: one at the beginning, one at the end, and a limited number in all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_fork.fleet.episodes import Episodes

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def outage_lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def news() -> list[str]:
        lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return lines

    return news


def test_an_episode_is_logged_at_its_beginning_and_at_its_end(
    outage_lines: Callable[[], list[str]],
) -> None:
    episodes = Episodes()
    for second in range(3):
        episodes.begin("it hangs" if second else "it is late", 1000.0 + second)
    episodes.admitted()
    episodes.admitted()
    episodes.end(1004.2, 4)
    assert outage_lines() == [
        "ERROR fleet out of reach, the limits of this node apply: it is late",
        "WARNING fleet in reach again after 4.2 s: 4 nodes, 2 clients admitted meanwhile",
    ]
    assert (episodes.count, episodes.reason) == (1, "")


def test_the_line_says_that_clients_are_refused_meanwhile(
    outage_lines: Callable[[], list[str]],
) -> None:
    episodes = Episodes("refuse")
    episodes.begin("it is late", 1000.0)
    assert outage_lines() == [
        "ERROR fleet out of reach, new clients get 421 (--when-fleet-down refuse): it is late"
    ]


def test_an_end_without_a_beginning_has_no_effect(outage_lines: Callable[[], list[str]]) -> None:
    episodes = Episodes()
    episodes.end(1.0, 1)
    assert (outage_lines(), episodes.count) == ([], 0)


def test_episodes_within_a_minute_are_counted_in_the_next_line(
    outage_lines: Callable[[], list[str]],
) -> None:
    episodes = Episodes()
    for second in range(1000, 1030, 10):
        episodes.begin("late", second)
        episodes.end(second + 1, 2)
    assert len(outage_lines()) == 2
    episodes.begin("late", 1070)
    episodes.end(1071, 2)
    begin, end = outage_lines()
    assert begin.startswith("ERROR fleet out of reach")
    assert end.startswith("WARNING fleet in reach again after 1.0 s, the last of 3 times: 2 nodes")
    assert episodes.count == 4


def test_an_episode_soon_after_another_is_logged_only_if_it_lasts(
    outage_lines: Callable[[], list[str]],
) -> None:
    episodes = Episodes()
    episodes.begin("killed", 1000)
    episodes.end(1001, 2)
    assert len(outage_lines()) == 2
    episodes.begin("Redis was killed", 1010)
    episodes.begin("Redis was killed", 1060)
    assert outage_lines() == []
    episodes.begin("Redis was killed", 1061)
    episodes.begin("Redis was killed", 1200)
    assert outage_lines() == [
        "ERROR fleet out of reach, the limits of this node apply: Redis was killed"
    ]
    episodes.end(1300, 2)
    assert outage_lines()[0].startswith("WARNING fleet in reach again after 290.0 s: 2 nodes")


def test_another_reason_is_logged_after_a_minute(outage_lines: Callable[[], list[str]]) -> None:
    episodes = Episodes()
    episodes.begin("refused", 1000)
    episodes.begin("no password", 1030)
    episodes.begin("no password", 1060)
    episodes.begin("no password", 1130)
    assert outage_lines() == [
        "ERROR fleet out of reach, the limits of this node apply: refused",
        "ERROR fleet still out of reach, the limits of this node apply: no password",
    ]
    assert episodes.reason == "no password"
