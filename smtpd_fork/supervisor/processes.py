"""Processes: the server of ``--processes``: N processes on the same listening sockets.

The daemon uses it like a :class:`smtpd_fork.Server`: start, accept, reload, drain, withdraw, stop.
The supervisor keeps the listening sockets open. So a client in the backlog is not affected when a
process ends, or is replaced in an upgrade.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.dialogue import Tally
from smtpd_fork.gate import Gate
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.handlers import Chain
from smtpd_fork.listeners.accepted_client import close
from smtpd_fork.sinks import Discard
from smtpd_fork.supervisor.answers import ANSWER_SECONDS, answers_of
from smtpd_fork.supervisor.keeper import Keeper
from smtpd_fork.supervisor.process_settings import ProcessSettings
from smtpd_fork.supervisor.serving_process import Start
from smtpd_fork.supervisor.upgrades import Upgrades

if TYPE_CHECKING:
    import socket

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import Invocation
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.gate import Limits
    from smtpd_fork.listeners import Listener
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["Processes"]

log = logging.getLogger("smtpd_fork.daemon")

END_SECONDS = 12.0
"""Seconds after --shutdown-timeout until a process is killed. By itself it ends within 10 s; see
StopWatchdog."""

ABORT_SECONDS = 4.0
"""Seconds until a process is killed that was ordered to end at once."""


class Processes(ProcessSettings):
    """The serving processes of a supervisor.

    :param directory: the current directory of each process; None: that of the supervisor
    :param old: the channel to the old supervisor, whose processes these replace one by one
    :ivar gate: keeps the limits of all processes together and the networks denied at run time; it
        admits no clients
    :ivar replaced: how many processes were restarted
    :ivar upgrades: the connections to other supervisors
    """

    def __init__(
        self,
        config: DaemonConfig,
        limits: Limits,
        listeners: Sequence[Listener],
        invocation: Invocation,
        directory: str | None,
        old: socket.socket | None = None,
    ) -> None:
        super().__init__(config)
        self.gate = Gate(limits=limits)
        self.fleet: Fleet | None = None  # each process is a node of its own
        self.listeners = list(listeners)
        self.tally = Tally()
        self.zones: Mapping[str, bool] = {}
        self.chain = Chain.of(Discard())  # gets no message: each process has its own chain
        self.replaced = 0
        self._keepers: list[Keeper] = []
        self.upgrades = Upgrades(self._keepers, old)
        start = Start(
            *(invocation, self.listeners, self.gate.denials, directory, config.processes),
            self.upgrades.answer,
        )
        self._keepers += (Keeper(number, start, self) for number in range(1, self._of + 1))
        self._cut = 0

    @property
    def current(self) -> list[ServingProcess]:
        """The running processes, in the order of their numbers."""
        return [keeper.process for keeper in self._keepers if keeper.process is not None]

    @property
    def accepting(self) -> int:
        """The number of processes that accept clients."""
        return sum(keeper.accepts for keeper in self._keepers)

    @property
    def sessions(self) -> int:
        """The number of sessions of all processes, at most some seconds old."""
        return sum(process.sessions for process in self.current)

    @property
    def count(self) -> int:
        """The number of sessions, for the service manager."""
        return self.sessions

    # -- start and stop ------------------------------------------------------------------------

    async def start(self, *, accept: bool = True) -> None:
        """Start the processes: first one alone, so that an error in all is reported only once.

        In an upgrade, start only the first one; :meth:`Upgrades.replace` starts the others.

        :raises SmtpdForkError: a process cannot start; the others were killed
        """
        first, *others = self._keepers
        if await self.upgrades.join():
            others = []
        await first.start()
        results = await asyncio.gather(*(each.start() for each in others), return_exceptions=True)
        for result in results:
            if result is not None:
                await self._kill()
                raise result
        if accept:
            self.accept()

    def accept(self) -> None:
        """Make all processes accept clients."""
        for listener in self.listeners:
            log.info("listening on %s", listener.description, extra={"address": str(listener)})
        for process in self.current:
            self.send_changes(process)
        for keeper in self._keepers:
            keeper.serve()

    async def drain(self) -> None:
        """Stop accepting clients, and wait until the last session of all processes has ended."""
        self._end("drain")
        self._close()
        await self.leave()

    def withdraw(self) -> None:
        """Stop accepting clients: another supervisor's processes do, on the same sockets."""
        self._end("leave")
        self.upgrades.hand_over_ledger()
        for listener in self.listeners:
            listener.hand_over()
            listener.close()

    async def leave(self) -> None:
        """Wait until the last session has ended, also of supervisors that use this ledger."""
        await self._all_ended(None)
        await self.upgrades.wait_for_others()

    async def stop(self) -> int:
        """Stop all processes; return how many had to cut off sessions, or were killed."""
        await self._end_all("stop", self._config.shutdown_timeout + END_SECONDS)
        return self._cut

    async def abort(self) -> None:
        """Stop all processes at once."""
        await self._end_all("abort", ABORT_SECONDS)

    async def _end_all(self, order: str, seconds: float) -> None:
        self._end(order)
        await asyncio.gather(self._all_ended(seconds), self.upgrades.end_others(order, seconds))
        await self._kill()
        self._close()

    def _end(self, order: str) -> None:
        """Order all processes to end; none is restarted."""
        for keeper in self._keepers:
            keeper.end(order)

    async def _all_ended(self, seconds: float | None) -> None:
        await asyncio.gather(*(keeper.done(seconds) for keeper in self._keepers))

    async def _kill(self) -> None:
        """Kill the processes that have not ended."""
        await asyncio.gather(*(keeper.kill() for keeper in self._keepers))

    def _close(self) -> None:
        """Close the listeners; waiting clients get 421, unless the socket was handed over."""
        for listener in self.listeners:
            close(listener, shutdown_reply(self._config.hostname))

    # -- one process ---------------------------------------------------------------------------

    def process_replaced(self, process: ServingProcess) -> None:
        """Handle the start of a process that replaces one that has ended (Watcher)."""
        self.replaced += 1
        self.upgrades.announce_free_slots()
        self.send_changes(process)

    def process_ended(self, process: ServingProcess, status: int) -> bool:
        """Handle the end of a process (Watcher)."""
        self._cut += process.leaving and status != 0
        return self.upgrades.process_ended(process, status)

    async def ask_all(
        self, kind: str, body: Any = None, seconds: float | None = ANSWER_SECONDS
    ) -> dict[ServingProcess, Any]:
        """Send a request to all processes, and return their answers; see :func:`answers_of`.

        :raises RequestError: a process cannot carry out the request
        """
        answers = await answers_of(self.current, kind, body, seconds)
        for answer in answers.values():
            if isinstance(answer, RequestError):
                raise answer
        return answers
