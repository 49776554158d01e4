"""Slots: never more are taken than there are, and none is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from smtpd_fork.sinks.slots import Slots


async def test_a_slot_that_is_given_back_goes_to_whoever_waits_longest() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    order = []

    async def take(name: str) -> None:
        assert await slots.acquire(10)
        order.append(name)
        slots.release()

    tasks = [asyncio.create_task(take(name)) for name in "abc"]
    await asyncio.sleep(0)
    slots.release()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]
    assert slots._free == 1


async def test_a_wait_has_an_end() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    assert not await slots.acquire(0.01)
    slots.release()
    assert await slots.acquire(1)


async def test_a_slot_that_was_given_to_one_who_gave_up_goes_back() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    task = asyncio.create_task(slots.acquire(10))
    await asyncio.sleep(0)
    slots.release()  # it is the task's
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots._free == 1


async def test_a_loop_that_is_closed_is_given_no_slot() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    loops: list[asyncio.AbstractEventLoop] = []

    def wait_and_leave() -> None:
        loop = asyncio.new_event_loop()
        loops.append(loop)
        waiting = loop.create_task(slots.acquire(10))
        loop.run_until_complete(asyncio.sleep(0))
        # As a program that ends its loop without an end of its tasks.
        slots._waiting.append((loop, loop.create_future()))
        waiting.cancel()
        loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
        loop.close()

    other = threading.Thread(target=wait_and_leave)
    other.start()
    await asyncio.to_thread(other.join)
    slots.release()
    assert slots._free == 1
