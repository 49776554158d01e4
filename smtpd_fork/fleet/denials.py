"""FleetDenials: makes all nodes deny the networks that one node denies at run time.

A denial of this node is sent to the fleet, and the denials of the fleet are added to the gate's
table. Denials that could not be sent are kept until the fleet can be reached again. If the fleet
has lost its data, all denials are sent again.
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
    ReceivedDenial,
    SentDenial,
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

MOST_SENT = 50
"""Maximum number of networks in one message."""

SEND_SECONDS = 2.5
"""How long the command of an administrator waits until the fleet has the denial."""

MOST_TURNS = MOST_DENIALS // MOST_SENT + 10
"""Maximum number of messages of one exchange, and of pages of one answer; more are an error."""

OLDER_ANSWERS = 2
"""So many consecutive answers with an older version mean that Redis has an older state again. A
single one may only be late."""

LATEST = 1 << 42
"""The latest time that is accepted, in milliseconds since the epoch: the year 2109."""

PAUSE_SECONDS = 1.0
"""Delay after an error."""

MOST_UNSENT = 2 * MOST_DENIALS
"""Number of unsent changes above which denials that have expired are dropped."""

LONGEST_NODE = 64
"""Maximum length of the name of a node, in characters."""


class _Change(NamedTuple):
    """A change that was not sent yet.

    :ivar denial: the new denial; None: the denial was removed
    :ivar at: when it was added or removed, in seconds of the monotonic clock
    :ivar only_new: whether to keep the fleet's own denial of this network, if there is one
    """

    denial: Denial | None
    at: float
    only_new: bool


class FleetDenials:
    """Exchanges the denials of one node with the fleet.

    :param table: the denials of the gate
    :param link: to the fleet
    :param node: the name of this node
    """

    def __init__(self, table: Denials, link: Link, node: str) -> None:
        self._table = table
        self._link = link
        self._node = node[:LONGEST_NODE]
        self._lock = threading.Lock()
        self._unsent: dict[Network, _Change] = {}
        self._version = self._created = self._behind = 0
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[str]] = []
        self._failure, self._failure_logged = "", False

    def start(self) -> None:
        """Start the exchange of denials, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._table.on_change = self._changed
        self._not_before = self._loop.time()
        self._queue_all()
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Stop the exchange of denials."""
        task, self._task = self._task, None
        if task is not None:
            self._table.on_change = None
            task.cancel()  # redis-py may swallow it; then the task sees that self._task is None
            await asyncio.wait([task])
            self._answer_all("the node has left the fleet")

    # -- changes ---------------------------------------------------------------------------------

    def check_version(self, version: int) -> None:
        """Start an exchange if the fleet has another version; called after each of its answers."""
        self._behind = self._behind + 1 if version < self._version else 0
        news = version > self._version or self._behind >= OLDER_ANSWERS or self._unsent
        if news and self._loop.time() >= self._not_before:
            # The fleet answers other messages, or this method would not be called.
            if self._failure and not self._failure_logged:
                self._failure_logged = True
                text = "the fleet cannot be asked about networks denied at run time: %s"
                log.warning(text, self._failure)
            self._wake.set()

    async def wait_until_sent(self) -> str:
        """Wait until all changes were sent to the fleet; return why that failed, or ""."""
        if not self._unsent or self._task is None:
            return ""
        return await self.synchronize()

    async def synchronize(self) -> str:
        """Exchange the changes with the fleet; return why that failed, or ""."""
        future: asyncio.Future[str] = self._loop.create_future()
        self._waiting.append(future)
        self._wake.set()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                return await future
        except TimeoutError:
            return f"no answer within {SEND_SECONDS:g} s"

    def _changed(self, network: Network, denial: Denial | None, known: bool) -> None:
        """Queue a change of the table; the table calls it, in any thread.

        :param denial: None: the denial was removed
        :param known: whether an earlier process of this node has denied the network
        """
        with self._lock:
            self._unsent[network] = _Change(denial, time.monotonic(), known)
            if len(self._unsent) > MOST_UNSENT:
                self._drop_expired()
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self._wake.set)

    def _drop_expired(self) -> None:
        """Drop denials that have expired: clients may cause many short ones in a long outage."""
        now = self._table.end(0.0)
        self._unsent = {
            network: change
            for network, change in self._unsent.items()
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
                self._on_failure(str(error))
            except Exception as error:
                log.exception("internal error")
                self._on_failure(f"{type(error).__name__}: {error}")
            else:
                self._failure, self._failure_logged = "", False

    def _on_failure(self, reason: str) -> None:
        self._not_before = self._loop.time() + PAUSE_SECONDS
        self._failure = reason
        self._answer_all(reason)

    def _answer_all(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(reason)

    async def _exchange(self) -> str:
        """Send the unsent changes, and read the changes of the fleet.

        :returns: why some denials were not accepted; empty if all were
        :raises FleetError: the fleet does not answer
        """
        full = 0
        again = self._behind >= OLDER_ANSWERS
        if again:
            self._resend_all()
        for turn in range(MOST_TURNS):
            some = self._next_unsent()
            answer = await self._send(self._message(some))
            full += answer.full
            if self._created and answer.created != self._created and not turn and not again:
                self._resend_all()
            version, complete = answer.version, answer.complete
            found = self._read(answer)
            for _ in range(MOST_TURNS):
                if not answer.more or len(found) >= MOST_DENIALS:
                    break
                answer = await self._send(Changes(answer.last, answer.created, next_page=True))
                found |= self._read(answer)
            self._mark_sent(some)
            self._merge(found, complete=complete)
            self._version, self._created, self._behind = version, answer.created, 0
            if not self._unsent:
                break
        if not full:
            return ""
        log.error(
            "the fleet denies %d networks already: %d more are denied on this node only",
            MOST_DENIALS,
            full,
        )
        return f"the fleet denies {counted(MOST_DENIALS, 'network')} already"

    async def _send(self, message: Changes) -> DenialAnswer:
        data = await self._link.ask("denials", DENIAL_KEYS, encode_denials(message))
        return decode_denials(data)

    def _next_unsent(self) -> dict[Network, _Change]:
        with self._lock:
            return dict(list(self._unsent.items())[:MOST_SENT])

    def _message(self, some: dict[Network, _Change]) -> Changes:
        add = [self._entry(each.denial, each) for each in some.values() if each.denial is not None]
        remove = [str(network) for network, each in some.items() if each.denial is None]
        return Changes(self._version, self._created, add=add, remove=remove)

    def _entry(self, denial: Denial, change: _Change) -> SentDenial:
        left = self._table.left(denial)
        return SentDenial(
            network=str(denial.network),
            text=denial.text,
            by=denial.by,
            node=denial.node or self._node,
            since=round(denial.since * 1000),
            age=round((time.monotonic() - change.at) * 1000),
            left=0 if left is None else max(1, round(left * 1000)),
            only_new=change.only_new,
        )

    def _mark_sent(self, some: dict[Network, _Change]) -> None:
        with self._lock:
            for network, change in some.items():
                if self._unsent.get(network) is change:
                    del self._unsent[network]

    def _resend_all(self) -> None:
        """Queue all denials of this node, as the fleet has lost its data."""
        if count := self._queue_all():
            networks = counted(count, "network")
            log.warning("the fleet has lost its denials: sending %s again", networks)

    def _queue_all(self) -> int:
        """Queue all denials of the table; return their number."""
        known = [denial for denial, _ in self._table.page()]
        with self._lock:
            for denial in known:
                change = _Change(denial, time.monotonic(), only_new=True)
                self._unsent.setdefault(denial.network, change)
        return len(known)

    def _read(self, answer: DenialAnswer) -> dict[Network, Denial]:
        read = map(self._denial, answer.page)
        return {denial.network: denial for denial in read if denial is not None}

    def _merge(self, found: dict[Network, Denial], *, complete: bool) -> None:
        """Apply the denials of the fleet to the table, except where a change was not sent yet.

        :param complete: whether *found* is the complete list of the fleet
        """
        with self._lock:
            kept = self._unsent.keys()
            add = [denial for network, denial in found.items() if network not in kept]
            gone: list[Network] = []
            if complete:
                here = [denial.network for denial, _ in self._table.page()]
                gone = [each for each in here if each not in found and each not in kept]
        if add or gone:
            self._table.merge(add, gone)

    def _denial(self, found: ReceivedDenial) -> Denial | None:
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
