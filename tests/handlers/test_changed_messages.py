"""Messages that a handler enlarges, and the memory limits."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import greeted, serve
from support.sinks import Keeps, send

from smtpd_fork.message.fields import replace_content

if TYPE_CHECKING:
    from smtpd_fork.message import Mail

KIB = 1024


class Enlarges:
    """Enlarges a message to a given size."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        replace_content(envelope, b"x" * self.size)
        return MISSING


@pytest.mark.parametrize(("size", "code"), [(150 * KIB, "250"), (400 * KIB, "452")])
async def test_a_message_is_charged_with_its_size_after_a_handler(size: int, code: str) -> None:
    used = []

    class Looks(Keeps):
        async def deliver(self, mail: Mail) -> Any:
            used.append(budget.used)
            return await super().deliver(mail)

    sink = Looks()
    async with serve([Enlarges(size), sink], max_buffered=200 * KIB) as server:
        budget = server._budget
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            replies = await send(client, "x@a.example")
            assert replies[-1][:3] == code
            assert budget.used == 0
            assert (await client.say("NOOP")).code == 250
    assert len(sink.mails) == (code == "250")
    if used:
        assert size - 64 * KIB <= used[0] <= size


async def test_a_message_that_a_handler_makes_smaller_is_charged_for_less() -> None:
    async with greeted([Enlarges(10), Keeps()], max_buffered=200 * KIB) as client:
        body = "X: y\r\n\r\n" + ("z" * 70 + "\r\n") * 2500
        assert (await send(client, "x@a.example", body=body))[-1][:3] == "250"


async def test_replaced_content_is_freed_before_the_next_handler_is_called() -> None:
    size = 4 * KIB * KIB
    async with greeted([*(Enlarges(size) for _ in range(4)), Keeps()]) as client:
        body = "X: y\r\n\r\n" + ("z" * 70 + "\r\n") * (size // 72)
        tracemalloc.start()
        try:
            assert (await send(client, "x@a.example", body=body))[-1][:3] == "250"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2.5 * size
