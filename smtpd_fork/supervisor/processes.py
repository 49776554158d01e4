"""Processes: the server of ``--processes``: N processes on the same listening sockets.

It has what the daemon asks of a :class:`smtpd_fork.Server`: to start, accept, reload, drain,
withdraw and stop. Clients in the backlog notice nothing of a process that ends, or that an upgrade
replaces, as the supervisor holds the sockets.
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
"""Beyond --shutdown-timeout: a process ends by itself within ten; see StopWatchdog."""

ABORT_SECONDS = 4.0
"""For processes that were ordered to end at once."""


class Processes(ProcessSettings):
    """The processes that serve.

    :param directory: the current directory of each; None: that of the supervisor
    :param old: the line to the old supervisor, whose processes these replace one by one
    :ivar gate: the limits of all, and the networks that are denied at run time; no client goes
        through it
    :ivar replaced: how many processes were replaced
    :ivar upgrades: what it shares with other supervisors
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
        self.chain = Chain.of(Discard())  # takes no message: each process has its own
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
        """The processes that there are, in the order of their numbers."""
        return [keeper.process for keeper in self._keepers if keeper.process is not None]

    @property
    def accepting(self) -> int:
        """How many of them accept clients."""
        return sum(keeper.accepts for keeper in self._keepers)

    @property
    def sessions(self) -> int:
        """How many sessions there are, as of some seconds ago."""
        return sum(process.sessions for process in self.current)

    @property
    def count(self) -> int:
        """The same, for the service manager."""
        return self.sessions

    # -- life ----------------------------------------------------------------------------------

    async def start(self, *, accept: bool = True) -> None:
        """Start them; the first one alone, so that there is one reason if they cannot start.

        In an upgrade it is only the first one: :meth:`Upgrades.replace` starts the others.

        :raises SmtpdForkError: one cannot start; none is left
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
        """Have them accept clients, those that do not yet."""
        for listener in self.listeners:
            log.info("listening on %s", listener.described, extra={"address": str(listener)})
        for keeper in self._keepers:
            keeper.serve()

    async def drain(self) -> None:
        """Accept no more, and wait until the last session of all has ended."""
        self._end("drain")
        self._close()
        await self.leave()

    def withdraw(self) -> None:
        """Accept no more: the processes of another supervisor do, on the same sockets."""
        self._end("leave")
        self.upgrades.hand_over()
        for listener in self.listeners:
            listener.hand_over()
            listener.close()

    async def leave(self) -> None:
        """Wait until the sessions that there were at that time have ended, here and in others."""
        await self._all_ended(None)
        await self.upgrades.others_ended()

    async def stop(self) -> int:
        """Stop them; return how many had to cut sessions, or were killed."""
        await self._end_all("stop", self._config.shutdown_timeout + END_SECONDS)
        return self._cut

    async def abort(self) -> None:
        """Stop them at once."""
        await self._end_all("abort", ABORT_SECONDS)

    async def _end_all(self, word: str, seconds: float) -> None:
        self._end(word)
        await asyncio.gather(self._all_ended(seconds), self.upgrades.end_others(word, seconds))
        await self._kill()
        self._close()

    def _end(self, word: str) -> None:
        """Tell all to end; none is replaced any more."""
        for keeper in self._keepers:
            keeper.end(word)

    async def _all_ended(self, seconds: float | None) -> None:
        await asyncio.gather(*(keeper.done(seconds) for keeper in self._keepers))

    async def _kill(self) -> None:
        """End those that are left."""
        await asyncio.gather(*(keeper.kill() for keeper in self._keepers))

    def _close(self) -> None:
        """Close the listeners; clients in the backlog get 421, unless it is another's."""
        for listener in self.listeners:
            close(listener, shutdown_reply(self._config.hostname))

    # -- one process ---------------------------------------------------------------------------

    def begins(self, process: ServingProcess) -> None:
        """Take note that a process serves in place of another one."""
        self.replaced += 1
        self.upgrades.note_accepting()
        self.tell_changes(process)

    def ended(self, process: ServingProcess, status: int) -> bool:
        """Take note of an end; return whether to replace it, unless the end was ordered."""
        self._cut += process.leaving and status != 0
        return self.upgrades.ended(process, status)

    async def ask_all(
        self, word: str, body: Any = None, seconds: float | None = ANSWER_SECONDS
    ) -> dict[ServingProcess, Any]:
        """Return the answers of all; see :func:`answers_of`.

        :raises RequestError: one cannot carry it out
        """
        answers = await answers_of(self.current, word, body, seconds)
        for answer in answers.values():
            if isinstance(answer, RequestError):
                raise answer
        return answers
