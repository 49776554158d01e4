"""DeadlineQueue: waiting clients with a time limit, tested with a simulated clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from smtpd_fork.listeners.deadline_queue import DeadlineQueue

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """The clock and the timers of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Any:
        timer = (when, call)
        self.timers.append(timer)

        class Handle:
            def cancel(_) -> None:  # noqa: N805 - the loop is self
                self.timers.remove(timer)

        return Handle()

    def run_until(self, now: float) -> None:
        self.now = now
        while due := [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove(due[0])
            due[0][1]()


def queue(seconds: float) -> tuple[Any, Loop, list[list[str]]]:
    loop, expired = Loop(), list[list[str]]()
    return DeadlineQueue(seconds, loop, expired.append), loop, expired  # type: ignore[arg-type]  # as much of a loop as it needs


def test_clients_expire_in_order_of_their_arrival() -> None:
    waiting, loop, expired = queue(10)
    for now, client in ((0.0, "a"), (0.0, "b"), (5.0, "c")):
        loop.now = now
        waiting.add(client)
    assert list(waiting) == ["a", "b", "c"]
    loop.run_until(10)
    assert expired == [["a", "b"]]
    assert list(waiting) == ["c"]
    loop.run_until(15)
    assert expired == [["a", "b"], ["c"]]
    assert not loop.timers


def test_a_removed_client_does_not_expire() -> None:
    waiting, loop, expired = queue(10)
    waiting.add("a")
    del waiting["a"]
    loop.run_until(10)
    assert expired == []
    assert "a" not in waiting


def test_a_changed_time_limit_applies_to_clients_that_already_wait() -> None:
    waiting, loop, expired = queue(math.inf)
    waiting.add("a")
    assert not loop.timers
    loop.now = 3
    waiting.change(5)
    loop.run_until(5)
    assert expired == [["a"]]


def test_no_client_expires_after_clear() -> None:
    waiting, loop, expired = queue(10)
    waiting.add("a")
    waiting.clear()
    loop.run_until(10)
    assert expired == []
    assert not loop.timers
