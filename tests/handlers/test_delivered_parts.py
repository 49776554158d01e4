"""The memory of recipients that have a message already: limited in time and size."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

from smtpd_fork.handlers.delivered_parts import SECONDS, DeliveredParts

if TYPE_CHECKING:
    import pytest


def test_finished_messages_are_forgotten_at_once_and_others_after_an_hour() -> None:
    now = [0.0]
    memory = DeliveredParts(lambda: now[0])
    memory.remember("k", {"one": frozenset({"a@x", "b@x"}), "two": frozenset()})
    memory.remember("k", {"two": frozenset({"c@x"})}, {"a@x"})
    assert memory.of("k") == {"one": {"b@x"}, "two": {"c@x"}}
    memory.remember("k", {}, {"b@x", "c@x"})
    assert not memory
    memory.remember("k", {"one": frozenset({"a@x"})})
    now[0] = SECONDS
    assert memory.of("k") == {}
    assert memory._bytes == 0


def test_the_memory_for_recipients_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.handlers.delivered_parts.MOST_BYTES", 1_000_000)
    memory = DeliveredParts()
    tracemalloc.start()
    try:
        for number in range(200):
            addresses = frozenset(f"{'x' * 200}{number}-{each}@example.com" for each in range(100))
            memory.remember(str(number), {"one": addresses})
        del addresses
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 1_300_000
    assert memory.of("199")
    assert not memory.of("0")
