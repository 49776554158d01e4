"""Idle sessions are ended while memory is low: the largest first, with 421."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.memory import HELLO, LONG_RCPT, TEXT, UTF8_MAIL, Slow, holder
from support.server import serve, until

from smtpd_fork.dialogue import Budget
from smtpd_fork.dialogue import budget as budget_module
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.peer_address import Peer


class Loop:
    """A loop with a clock that tests set, and timers that they run."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.timers.append(partial(call, *args))

    def after(self, seconds: float) -> None:
        """Advance the clock, and run the timers that are due."""
        self.now += seconds
        due, self.timers = self.timers, []
        for call in due:
            call()


class Holder:
    """A session that holds memory, for the budget."""

    def __init__(self, budget: Budget, loop: Loop, host: str, *, busy: bool = False) -> None:
        self.budget = budget
        self.loop: Any = loop
        self.peer: Peer = (host, 25)
        self.busy = busy
        self.ended = False

    def hold(self, held: int) -> bool:
        return self.budget.hold(self, held)

    def end_for_memory(self, held: int) -> bool:
        if self.busy:
            return False
        self.ended = True
        self.budget.hold(self, 0)
        return True


def holders(budget: Budget, loop: Loop, *sizes: int) -> list[Holder]:
    """Return sessions of different clients, each with so much memory."""
    found = [Holder(budget, loop, f"192.0.2.{n}") for n in range(len(sizes))]
    for each, size in zip(found, sizes, strict=True):
        assert each.hold(size)
    return found


def test_a_session_that_makes_progress_is_not_ended() -> None:
    budget, loop = Budget(1000), Loop()
    goes_on, idle = holders(budget, loop, 500, 200)
    for size in (550, 610, 680):
        loop.after(20)
        assert goes_on.hold(size)
    assert idle.ended
    assert not goes_on.ended
    loop.after(20)
    assert goes_on.hold(690)  # not a tenth
    loop.after(20)
    loop.after(20)
    assert not goes_on.ended  # there is room enough for others now
    holders(budget, loop, 100)
    loop.after(1)
    assert goes_on.ended


def test_a_session_whose_handler_runs_is_not_ended() -> None:
    budget, loop = Budget(1000), Loop()
    busy = Holder(budget, loop, "192.0.2.9", busy=True)
    busy.hold(700)
    small, large = holders(budget, loop, 40, 60)
    loop.after(30)
    assert (busy.ended, large.ended, small.ended) == (False, True, False)


def test_as_few_sessions_as_possible_are_ended() -> None:
    budget, loop = Budget(1000), Loop()
    sessions = holders(budget, loop, 100, 400, 300, 200)
    loop.after(29)
    assert not any(each.ended for each in sessions)
    loop.after(1)
    assert [each.ended for each in sessions] == [False, True, False, False]
    assert budget.used == 600


def test_idle_sessions_are_not_searched_while_memory_is_left() -> None:
    budget, loop = Budget(1000), Loop()
    holders(budget, loop, 700)
    assert loop.timers == []
    (other,) = holders(budget, loop, 100)
    assert len(loop.timers) == 1
    other.hold(0)
    loop.after(1)
    assert loop.timers == []


def test_memory_above_the_limit_is_refused_and_released_memory_is_available() -> None:
    budget, loop = Budget(1000, 600), Loop()
    (first,) = holders(budget, loop, 500)
    same = Holder(budget, loop, "192.0.2.0")
    assert not same.hold(200)
    assert same.hold(100)
    assert not budget.has_room(same, 1)
    other = Holder(budget, loop, "192.0.2.7")
    assert other.hold(400)
    assert not other.hold(401)
    for each in (first, same, other):
        each.hold(0)
    assert budget.used == budget.used_by("192.0.2.0") == 0
    assert budget.has_room(same, 600)


@pytest.fixture
def idle_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let sessions be idle after *seconds*; until then none is."""
    monkeypatch.setattr(budget_module, "CHECK_SECONDS", 0.02)

    def seconds(value: float) -> None:
        monkeypatch.setattr(budget_module, "IDLE_SECONDS", value)

    seconds(math.inf)
    return seconds


async def says_noop_until_it_is_ended(client: Client) -> None:
    """Keep a session that holds memory, until the server ends it."""
    while (reply := await client.say("NOOP")).code == 250:
        await asyncio.sleep(0.02)
    assert code_and_enhanced(reply) == (421, "4.3.1")
    await client.close()


async def test_idle_sessions_that_hold_memory_are_ended_the_largest_first(
    idle_after: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serve(Discard(), max_buffered=1_000_000) as server:
        sizes = {"127.0.0.2": 300_000, "127.0.0.3": 400_000, "127.0.0.4": 350_000}
        clients = {
            source: await holder(server, size, source=source) for source, size in sizes.items()
        }
        # 854,000 bytes are charged: more than three quarters, less than all.
        idle_after(0)
        await says_noop_until_it_is_ended(clients.pop("127.0.0.3"))
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:160_000].decode())).code == 250
        for client in clients.values():
            client.send(b"BDAT 0 LAST\r\n")
            assert (await client.reply()).code == 250
            await client.close()
    told = [text for text in caplog.messages if "ended to free resources" in text]
    assert len(told) == 1
    assert " 127.0.0.3:" in told[0]
    assert "memory is low, it was idle and held 33" in told[0]


async def test_clients_that_hold_all_memory_do_not_block_others(
    idle_after: Callable[[float], None],
) -> None:
    """Idle sessions are ended even if no session requests memory."""
    async with serve(Discard(), max_buffered=1_000_000) as server:
        clients = [await holder(server, 390_000, source=f"127.0.0.{n}") for n in (2, 3, 4)]
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:200_000].decode())).code == 452
            assert (await other.deliver()).code == 250
        idle_after(0)
        ends = [asyncio.ensure_future(says_noop_until_it_is_ended(each)) for each in clients]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:200_000].decode())).code == 250
        for each, client in zip(ends, clients, strict=True):
            each.cancel()
            await client.close()


async def test_a_session_that_only_holds_an_envelope_is_idle(
    idle_after: Callable[[float], None],
) -> None:
    async with (
        serve(Slow(), max_buffered=800_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        client.send(HELLO + UTF8_MAIL + LONG_RCPT * 420)
        assert {(await client.reply()).code for _ in range(422)} == {250}
        idle_after(0)
        await says_noop_until_it_is_ended(client)


async def test_a_session_that_sends_a_message_very_slowly_is_idle(
    idle_after: Callable[[float], None],
) -> None:
    async with (
        serve(Discard(), max_buffered=400_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT, "DATA")
        client.send(TEXT[:384_000])
        await until(lambda: server._budget.used > 300_000)
        idle_after(0.1)
        reply = asyncio.ensure_future(client.reply())
        while not reply.done():
            client.send(b"x\r\n")
            await asyncio.sleep(0.02)
        assert code_and_enhanced(await reply) == (421, "4.3.1")


async def test_the_largest_idle_session_of_a_client_above_its_share_is_ended(
    idle_after: Callable[[float], None],
) -> None:
    async with serve(Discard(), max_buffered_from_ip=500_000) as server:
        idle = await holder(server, 400_000, source="127.0.0.2")
        other = await holder(server, 450_000, source="127.0.0.3")
        idle_after(0)
        next_one = await holder(server, 300_000, source="127.0.0.2")
        assert code_and_enhanced(await idle.reply()) == (421, "4.3.1")
        assert (await other.say("NOOP")).code == 250
        for client in (idle, other, next_one):
            await client.close()
