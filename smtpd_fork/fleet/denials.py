"""FleetDenials: networks that are denied at run time on one node are denied on all.

The gate's table has those of the fleet as well. A denial of this node is sent to the fleet; one
that could not be sent is kept, and sent when the fleet is back. A fleet that has lost its memory
gets all of them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.fleet.denial_message import (
    DENIAL_KEYS,
    MOST_DENIALS,
    Changes,
    Found,
    Told,
    decode_denials,
    encode_denials,
)
from smtpd_fork.fleet.sync import FleetError
from smtpd_fork.gate.denials import LONGEST_DENIAL, Denial
from smtpd_fork.gate.networks import Network
from smtpd_fork.gate.rules.access import LONGEST_TEXT, printable_text
from smtpd_fork.sanitizer import printable
from smtpd_fork.units import counted

if TYPE_CHECKING:
    from smtpd_fork.fleet.denial_message import DenialAnswer
    from smtpd_fork.fleet.link import Link
    from smtpd_fork.gate.denials import Denials

__all__ = ["FleetDenials"]

log = logging.getLogger("smtpd_fork.fleet")

MOST_TOLD = 50
"""Networks in one message."""

TOLD_SECONDS = 2.5
"""How long an administrator waits until the fleet has a denial."""

MOST_TURNS = MOST_DENIALS // MOST_TOLD + 10
"""Messages of one exchange, and pages of one answer; a fleet that sends more is none."""

BACK_AFTER = 2
"""Answers with an older version than before, one after another. The first may be late; after two,
Redis has gone back to an older state."""

LATEST = 1 << 42
"""Milliseconds of the epoch: the year 2109."""

PAUSE_SECONDS = 1.0
"""After a failure."""

MOST_UNTOLD = 2 * MOST_DENIALS
"""Changes that wait for the fleet; past it denials that have ended meanwhile are forgotten."""

LONGEST_NODE = 64
"""Characters of the name of a node."""


class _Change(NamedTuple):
    """A change that the fleet does not have yet.

    :ivar denial: None: it is denied no longer
    :ivar at: when it was denied, or denied no longer, in seconds
    :ivar only_new: whether the fleet's own stays
    """

    denial: Denial | None
    at: float
    only_new: bool


class FleetDenials:
    """The denials of one node.

    :param table: of the gate
    :param node: name of this node
    """

    def __init__(self, table: Denials, link: Link, node: str) -> None:
        self._table = table
        self._link = link
        self._node = node[:LONGEST_NODE]
        self._lock = threading.Lock()
        self._untold: dict[Network, _Change] = {}
        self._version = self._born = self._behind = 0
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[str]] = []
        self._failure, self._failure_logged = "", False

    def start(self) -> None:
        """Begin, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._table.told = self._changed
        self._not_before = self._loop.time()
        self._queue_all()
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """End."""
        task, self._task = self._task, None
        if task is not None:
            self._table.told = None
            task.cancel()  # may be lost in a call of redis-py: the task looks for itself
            await asyncio.wait([task])
            self._answer_all("the node has left the fleet")

    # -- what happens ----------------------------------------------------------------------------

    def seen(self, version: int) -> None:
        """Take note of the version that the fleet has; after each of its answers."""
        self._behind = self._behind + 1 if version < self._version else 0
        news = version > self._version or self._behind >= BACK_AFTER or self._untold
        if news and self._loop.time() >= self._not_before:
            if self._failure and not self._failure_logged:  # though the fleet is in reach
                self._failure_logged = True
                text = "the fleet cannot be asked about networks denied at run time: %s"
                log.warning(text, self._failure)
            self._wake.set()

    async def told(self) -> str:
        """Wait until the fleet knows all that was denied here; return why it does not, or ""."""
        if not self._untold or self._task is None:
            return ""
        return await self.read()

    async def read(self) -> str:
        """Exchange the changes with the fleet; return why that failed, or ""."""
        future: asyncio.Future[str] = self._loop.create_future()
        self._waiting.append(future)
        self._wake.set()
        try:
            async with asyncio.timeout(TOLD_SECONDS):
                return await future
        except TimeoutError:
            return f"no answer within {TOLD_SECONDS:g} s"

    def _changed(self, network: Network, denial: Denial | None, known: bool) -> None:
        """Take note that *network* is denied here, or no longer; the table calls it, in any thread.

        :param known: whether an older process of this node has denied it
        """
        with self._lock:
            self._untold[network] = _Change(denial, time.monotonic(), known)
            if len(self._untold) > MOST_UNTOLD:
                self._forget_ended()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    def _forget_ended(self) -> None:
        """Forget denials that have ended: clients may cause many short ones in a long outage."""
        now = self._table.end(0.0)
        self._untold = {
            network: change
            for network, change in self._untold.items()
            if change.denial is None or change.denial.until > now
        }

    # -- the exchange ----------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._task is not None:
            await self._wake.wait()
            self._wake.clear()
            try:
                self._answer_all(await self._exchange())
            except FleetError as error:
                self._failed(str(error))
            except Exception as error:
                log.exception("internal error")
                self._failed(f"{type(error).__name__}: {error}")
            else:
                self._failure, self._failure_logged = "", False

    def _failed(self, reason: str) -> None:
        self._not_before = self._loop.time() + PAUSE_SECONDS
        self._failure = reason
        self._answer_all(reason)

    def _answer_all(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(reason)

    async def _exchange(self) -> str:
        """Send the changes that the fleet does not have, and read its own.

        :returns: why not all could be sent; empty if all were
        :raises FleetError: the fleet is out of reach
        """
        full = 0
        again = self._behind >= BACK_AFTER
        if again:
            self._tell_all_again()
        for turn in range(MOST_TURNS):
            some = self._some_untold()
            answer = await self._send(self._message(some))
            full += answer.full
            if self._born and answer.born != self._born and not turn and not again:
                self._tell_all_again()
            version, whole = answer.version, answer.whole
            found = self._read(answer)
            for _ in range(MOST_TURNS):
                if not answer.more or len(found) >= MOST_DENIALS:
                    break
                answer = await self._send(Changes(answer.last, answer.born, goes_on=True))
                found |= self._read(answer)
            self._told(some)
            self._merge(found, whole=whole)
            self._version, self._born, self._behind = version, answer.born, 0
            if not self._untold:
                break
        if not full:
            return ""
        log.error("the fleet denies %d networks already: %d more only here", MOST_DENIALS, full)
        return f"the fleet denies {counted(MOST_DENIALS, 'network')} already"

    async def _send(self, message: Changes) -> DenialAnswer:
        data = await self._link.ask("denials", DENIAL_KEYS, encode_denials(message))
        return decode_denials(data)

    def _some_untold(self) -> dict[Network, _Change]:
        with self._lock:
            return dict(list(self._untold.items())[:MOST_TOLD])

    def _message(self, some: dict[Network, _Change]) -> Changes:
        add = [self._entry(each.denial, each) for each in some.values() if each.denial is not None]
        remove = [str(network) for network, each in some.items() if each.denial is None]
        return Changes(self._version, self._born, add=add, remove=remove)

    def _entry(self, denial: Denial, change: _Change) -> Told:
        left = self._table.left(denial)
        return Told(
            network=str(denial.network),
            text=denial.text,
            by=denial.by,
            node=denial.node or self._node,
            since=round(denial.since * 1000),
            age=round((time.monotonic() - change.at) * 1000),
            left=0 if left is None else max(1, round(left * 1000)),
            only_new=change.only_new,
        )

    def _told(self, some: dict[Network, _Change]) -> None:
        with self._lock:
            for network, change in some.items():
                if self._untold.get(network) is change:
                    del self._untold[network]

    def _tell_all_again(self) -> None:
        """Send all that is known here: the fleet has lost its memory."""
        if count := self._queue_all():
            networks = counted(count, "network")
            log.warning("the fleet has lost its denials: sending %s again", networks)

    def _queue_all(self) -> int:
        """Queue what the fleet may not have; return how many there are."""
        known = [denial for denial, _ in self._table.page()]
        with self._lock:
            for denial in known:
                change = _Change(denial, time.monotonic(), only_new=True)
                self._untold.setdefault(denial.network, change)
        return len(known)

    def _read(self, answer: DenialAnswer) -> dict[Network, Denial]:
        read = map(self._denial, answer.page)
        return {denial.network: denial for denial in read if denial is not None}

    def _merge(self, found: dict[Network, Denial], *, whole: bool) -> None:
        """Have the table as the fleet has it, except for changes that are not sent yet."""
        with self._lock:
            kept = self._untold.keys()
            add = [denial for network, denial in found.items() if network not in kept]
            gone: list[Network] = []
            if whole:
                here = [denial.network for denial, _ in self._table.page()]
                gone = [each for each in here if each not in found and each not in kept]
        if add or gone:
            self._table.merge(add, gone)

    def _denial(self, found: Found) -> Denial | None:
        try:
            network = Network.parse(found.network)
        except ValueError:
            return None
        left = min(max(found.left, 0) / 1000, LONGEST_DENIAL)
        return Denial(
            network,
            found.network,
            printable_text(found.text)[:LONGEST_TEXT],
            printable(found.by, 100),
            min(max(found.since, 0), LATEST) / 1000,
            self._table.end(left if found.left else None),
            node=printable(found.node, LONGEST_NODE),
        )
