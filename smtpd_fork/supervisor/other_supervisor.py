"""OtherSupervisor: the other supervisor of an upgrade, as this one sees it.

The new supervisor starts its processes one by one, and reports each that serves; then the old one
makes as many of its own processes drain. If the upgrade fails, the old processes accept clients
again, and the new ones end with their last sessions. Only one of the two supervisors keeps the
ledger of the limits that all processes share (see ``shared_limits.py``): the old one, until all
new processes serve. The two have a channel, as a supervisor has to each process (``channel.py``),
with these kinds of requests and notifications:

=================  =======================================================================
``serves``         new to old: N of M processes serve; answered once old ones drain
``sync, fleet``    the message of a process about the shared limits, forwarded
``left``           processes that have ended, by their names as nodes
``hint``           a hint about the shared limits, for all processes
``ledger``         old to new: the ledger, which the new supervisor keeps from now on
``full``           whether all processes that accept clients are full
``all``            a request to all processes: status, sessions, kick
``cancel``         old to new: the upgrade is cancelled
``stop, abort``    from the supervisor that keeps the ledger: end, as this supervisor does
=================  =======================================================================
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.supervisor.channel import Channel, ChannelClosedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Mapping

__all__ = ["ALL_SECONDS", "PROTOCOL", "OtherSupervisor"]

PROTOCOL = 1
"""Version of the messages on a channel, those of processes included. If an old supervisor has
another version, nothing is shared with it, and its processes are not replaced one by one."""

ALL_SECONDS = 5.0
"""Timeout for the answers of the other supervisor's processes; they are left out if it hangs."""


class UpgradeRequests(Protocol):
    """Carries out the requests of the other supervisor."""

    def replace_processes(self, sender: OtherSupervisor, serving: int, of: int) -> None:
        """Make old processes drain, in proportion to the new ones: *serving* of *of* serve."""

    def share_limits(self, sender: OtherSupervisor, kind: str, body: Any) -> Any:
        """Return the answer to a message of the other supervisor's process about shared limits."""

    def remove_nodes(self, sender: OtherSupervisor, nodes: Collection[str]) -> None:
        """Remove the counts of nodes that have ended."""

    def send_hint(self, hint: str, exclude: OtherSupervisor) -> None:
        """Send a hint to all processes, and to all other supervisors except one."""

    def cancelled(self) -> None:
        """Handle the cancellation of the upgrade by the old supervisor."""

    def receive_ledger(self, ledger: bytes) -> None:
        """Keep the ledger from now on."""

    def set_full(self, sender: OtherSupervisor, *, full: bool) -> None:
        """Record whether all processes of the other supervisor are full."""

    async def answers_except(
        self, exclude: OtherSupervisor, kind: str, body: Any
    ) -> dict[int, Any]:
        """Return the answers of all processes, except those of one supervisor."""

    on_end_order: Callable[[str], object]
    """Called with ``stop`` or ``abort`` when the other supervisor orders this one to end."""


class OtherSupervisor:
    """The other supervisor.

    :param sock: this end of the channel, which closes it
    :param requests: carries out the requests of the other supervisor
    :param on_progress: called after each new process that serves
    :ivar serving: how many of the other supervisor's processes serve, if it is the new one
    :ivar nodes: its processes, by their names as nodes
    """

    def __init__(
        self,
        sock: socket.socket,
        requests: UpgradeRequests,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self._requests = requests
        self.on_progress = on_progress
        self.serving = 0
        self.nodes: set[str] = set()
        self._channel = Channel(sock, ["full"])
        self._channel.answer = self._answer
        self._functions: Mapping[str, Callable[[Any], Any]] = {
            "serves": self._serves,
            "left": self._left,
            "hint": lambda body: requests.send_hint(body, self),
            "ledger": requests.receive_ledger,
            "full": lambda body: requests.set_full(self, full=body),
            "cancel": lambda _: requests.cancelled(),
            "all": lambda body: requests.answers_except(self, *body),
            "stop": lambda _: requests.on_end_order("stop"),
            "abort": lambda _: requests.on_end_order("abort"),
        }

    def _answer(self, kind: str, body: Any) -> Any:
        if kind in {"sync", "fleet"}:
            return self._requests.share_limits(self, kind, body)
        return self._functions[kind](body)

    async def _left(self, body: Any) -> None:
        # A coroutine, as for forwarded messages: it runs after the messages of these nodes.
        self._requests.remove_nodes(self, body)

    def _serves(self, body: Any) -> None:
        self.serving, of = body
        self._requests.replace_processes(self, self.serving, of)
        self.on_progress()

    async def start(self) -> None:
        """Start the channel; a second call has no effect."""
        await self._channel.start()

    async def ask(self, kind: str, body: Any = None) -> Any:
        """Send a request; see :meth:`Channel.ask`."""
        return await self._channel.ask(kind, body)

    def notify(self, kind: str, body: Any = None) -> None:
        """Send a notification; see :meth:`Channel.notify`."""
        self._channel.notify(kind, body)

    async def answers(self, kind: str, body: Any, seconds: float = ALL_SECONDS) -> dict[int, Any]:
        """Return the answers of its processes by process id; empty if it does not answer."""
        found: dict[int, Any] = {}
        with suppress(ChannelClosedError, TimeoutError, RequestError):
            found = await self._channel.ask("all", (kind, body), seconds=seconds)
        return found

    async def ended(self, seconds: float | None = None) -> None:
        """Wait until the other supervisor has ended, at most for *seconds*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._channel.ended()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
