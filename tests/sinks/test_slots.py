"""Slots: the number of slots is never exceeded, and none is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from smtpd_fork.sinks.slots import Slots


async def test_a_released_slot_goes_to_the_longest_waiting_task() -> None:
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


async def test_the_wait_has_a_timeout() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    assert not await slots.acquire(0.01)
    slots.release()
    assert await slots.acquire(1)


async def test_a_slot_granted_to_a_cancelled_task_is_released() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    task = asyncio.create_task(slots.acquire(10))
    await asyncio.sleep(0)
    slots.release()  # the slot is granted to the task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots._free == 1


async def test_a_closed_event_loop_gets_no_slot() -> None:
    slots = Slots(1)
    assert await slots.acquire(1)
    loops: list[asyncio.AbstractEventLoop] = []

    def wait_and_leave() -> None:
        loop = asyncio.new_event_loop()
        loops.append(loop)
        waiting = loop.create_task(slots.acquire(10))
        loop.run_until_complete(asyncio.sleep(0))
        # As in a program that closes its loop without ending its tasks.
        slots._waiting.append((loop, loop.create_future()))
        waiting.cancel()
        loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
        loop.close()

    other = threading.Thread(target=wait_and_leave)
    other.start()
    await asyncio.to_thread(other.join)
    slots.release()
    assert slots._free == 1
