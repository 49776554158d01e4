"""check_sink: checks that a sink stores every message that it answers with 250."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from smtpd_fork.handlers.check import check_handler
from smtpd_fork.message import Mail
from smtpd_fork.message.results import per_recipient
from smtpd_fork.testing.fault_proxy import FAULTS, FaultProxy
from smtpd_fork.testing.messages import MESSAGES, make_mail

if TYPE_CHECKING:
    from smtpd_fork.sinks import Sink

__all__ = ["Stored", "check_sink"]

Stored: TypeAlias = Callable[[], Sequence[bytes] | Awaitable[Sequence[bytes]]]
"""A function, or coroutine function, that returns the messages that a sink has stored."""

AT_ONCE = 20
"""Concurrent messages; more than any pool has connections."""

CANCELLED = 20
"""Messages whose delivery is cancelled."""

_inside: ContextVar[bool] = ContextVar("smtpd_fork_sink_check", default=False)
"""Whether code of a sink runs; the tasks that it starts inherit the value."""

RECOVERY_SECONDS = 5.0
"""Seconds during which a sink may answer 4yz after its server works again."""


async def check_sink(
    make: Callable[[], Sink],
    stored: Stored,
    *,
    proxy: FaultProxy | None = None,
    messages: Collection[bytes] = tuple(MESSAGES.values()),
    time_limit: float = 3.0,
) -> None:
    """Deliver messages one by one, concurrently, with cancellation and with a broken server.

    Each message that was answered with 2yz must be stored, and its content unchanged but for line
    ends and header fields at the top. While the server is broken, messages must be answered with
    4yz within the time limit, and never with 5yz: the sender would get a bounce for an error of
    your system.

    :param make: returns a sink for the same storage; it may be called several times
    :param stored: returns all messages that were stored so far, as bytes
    :param proxy: the proxy between the sink and its server; without it no connection is broken
    :param messages: the contents to deliver
    :param time_limit: seconds for a message while the server is broken
    :raises HandlerError: the object is not a sink, or has an invalid method; the text says which
    :raises AssertionError: the sink loses or changes a message, or gives a wrong reply; the text
        has the details
    """
    sink = make()
    check_handler(sink)
    sink.check()
    sink.prepare()
    run = _Run(sink, stored)
    with _recorded_tasks() as tasks:
        await _try(run, messages, proxy, time_limit)
    left = [task for task in tasks if not task.done()]
    assert not left, f"close() leaves tasks: {left}"


async def _try(
    run: _Run, messages: Collection[bytes], proxy: FaultProxy | None, time_limit: float
) -> None:
    try:
        for content in messages:
            await run.deliver(make_mail(content))
        await run.assert_nothing_is_lost("one after another")
        await asyncio.gather(*(run.deliver(make_mail(run.new())) for _ in range(AT_ONCE)))
        await run.assert_nothing_is_lost("at the same time")
        await _cancel_some(run)
        if proxy is not None:
            for fault in FAULTS:
                await _break(run, proxy, fault, time_limit)
    finally:
        await run.sink.close()


@contextmanager
def _recorded_tasks() -> Iterator[Collection[asyncio.Future[Any]]]:
    """Yield the tasks that the sink starts, but not those of other code in the same loop."""
    loop, tasks = asyncio.get_running_loop(), WeakSet[asyncio.Future[Any]]()
    before = loop.get_task_factory()

    def start(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        task = asyncio.Task(coro, loop=loop, **options) if before is None else before(loop, coro)
        if _inside.get():
            tasks.add(task)
        return task

    loop.set_task_factory(start)
    try:
        yield tasks
    finally:
        loop.set_task_factory(before)


class _Run:
    """A sink under test, and the messages that it has answered with 2yz."""

    def __init__(self, sink: Sink, stored: Stored) -> None:
        self.sink = sink
        self._stored = stored
        self._accepted: list[Mail] = []
        self._number = 0

    def new(self) -> bytes:
        """Return a content that differs from those of all other messages."""
        self._number += 1
        return b"Subject: %d\r\n\r\nmessage %d %x\r\n" % (
            *(self._number, self._number, random.getrandbits(64)),
        )

    async def deliver(self, mail: Mail) -> str:
        """Deliver a message; return the reply for its recipient."""
        context = _inside.set(True)
        try:
            answer = await self.sink.deliver(mail)
        finally:
            _inside.reset(context)
        [reply] = per_recipient(answer, 1)
        if reply[:1] == "2":
            self._accepted.append(mail)
        return reply

    async def assert_nothing_is_lost(self, when: str) -> None:
        """Check that every message that was answered with 2yz is stored."""
        contents = self._stored()
        if inspect.isawaitable(contents):
            contents = await contents
        found = [_with_plain_line_ends(each) for each in contents]
        for mail in self._accepted:
            wanted = _with_plain_line_ends(mail.content)
            assert any(_holds(each, wanted) for each in found), (
                f"delivered {when}: message {mail.id} was answered 2yz and is not stored, or was "
                f"changed: {mail.content[:200]!r}"
            )


def _with_plain_line_ends(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").rstrip(b"\n")


def _holds(stored: bytes, content: bytes) -> bool:
    """Return whether *stored* is *content*, perhaps with more fields at the top.

    A sink may have changed an mbox line of *content* to a field, so this line is not compared.
    """
    if content.startswith(b"From "):
        content = content.partition(b"\n")[2]
    return stored.endswith(content)


async def _cancel_some(run: _Run) -> None:
    """Cancel deliveries after different times."""
    begun = time.monotonic()
    await run.deliver(make_mail(run.new()))
    usual = time.monotonic() - begun
    for number in range(CANCELLED):
        task = asyncio.ensure_future(run.deliver(make_mail(run.new())))
        await asyncio.wait([task], timeout=usual * number / CANCELLED)
        task.cancel()
        await asyncio.wait([task])
    reply = await run.deliver(make_mail(run.new()))
    assert reply[:1] == "2", f"after messages that were cancelled the sink answers {reply}"
    await run.assert_nothing_is_lost("beside messages that were cancelled")


async def _break(run: _Run, proxy: FaultProxy, fault: str, time_limit: float) -> None:
    await proxy.set_fault(fault)  # type: ignore[arg-type] # of FAULTS
    run.sink.time_limit = time_limit
    for _ in range(2):
        begun = time.monotonic()
        try:
            async with asyncio.timeout(time_limit):
                reply = await run.deliver(make_mail(run.new()))
        except TimeoutError:
            reply = "451 4.3.0 cancelled by its time limit"
        seconds = time.monotonic() - begun
        assert reply[:1] != "5", f"while the server is broken ({fault}) the sink answers {reply}"
        assert seconds < time_limit + 1, f"{fault}: the sink took {seconds:.1f} s to be cancelled"
    await proxy.set_fault("none")
    end = time.monotonic() + RECOVERY_SECONDS
    while (reply := await run.deliver(make_mail(run.new())))[:1] != "2":
        assert time.monotonic() < end, f"{fault}: the server is back, and the sink answers {reply}"
        await asyncio.sleep(0.05)
    await run.assert_nothing_is_lost(f"with a broken server ({fault})")
