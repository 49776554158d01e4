"""Processes: the server of ``--processes``: N processes on the same listening sockets.

It has what the daemon asks of a :class:`smtpd_fork.Server`: to start, accept, reload, drain,
withdraw and stop. A process that ends without an order is replaced: at once, or after a pause
that grows while one after another ends right after its start. Clients in the backlog notice
nothing, as the supervisor holds the sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from smtpd_fork.config import Config, SettingError
from smtpd_fork.control_protocol import RequestError
from smtpd_fork.dialogue import Tally
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.gate import GATE_SETTINGS, Gate, limits_of
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.handlers import Chain
from smtpd_fork.listeners.accepted_client import close
from smtpd_fork.server.run_time_changes import RunTimeChanges
from smtpd_fork.server.setting_changes import change_line
from smtpd_fork.sinks import Discard
from smtpd_fork.supervisor.elsewhere import FullProcesses
from smtpd_fork.supervisor.line import LineClosedError
from smtpd_fork.supervisor.serving_process import (
    ProcessError,
    ServingProcess,
    Start,
    described,
)
from smtpd_fork.supervisor.shared_limits import SharedLimits
from smtpd_fork.supervisor.shares import DIVIDED, share_of

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import Invocation
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.gate import Limits
    from smtpd_fork.listeners import Listener
    from smtpd_fork.settings import GateSettings

__all__ = ["Processes"]

log = logging.getLogger("smtpd_fork.daemon")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
"""Before another process is started, if the one before it ended soon after its start."""

SOON_SECONDS = 10.0

END_SECONDS = 12.0
"""Beyond --shutdown-timeout: a process ends by itself within ten; see StopWatchdog."""

ABORT_SECONDS = 4.0
"""For processes that were ordered to end at once."""

ANSWER_SECONDS = 10.0
"""For the answer of a process; one that takes longer is left out."""


class Processes(RunTimeChanges):
    """The processes that serve.

    :param directory: the current directory of each; None: that of the supervisor
    :ivar gate: the limits of all, and the networks that are denied at run time; no client goes
        through it
    :ivar replaced: how many processes were replaced
    """

    def __init__(
        self,
        config: DaemonConfig,
        limits: Limits,
        listeners: Sequence[Listener],
        invocation: Invocation,
        directory: str | None,
    ) -> None:
        self.gate = Gate(limits=limits)
        self.fleet: Fleet | None = None  # each process is a node of its own
        self.listeners = list(listeners)
        self.tally = Tally()
        self.zones: Mapping[str, bool] = {}
        self.chain = Chain.of(Discard())  # takes no message: each process has its own
        self.replaced = 0
        self._config = config
        self._running = None
        self._start = Start(
            *(invocation, self.listeners, self.gate.denials, directory, config.processes),
            self._answer,
        )
        self._shared = SharedLimits()
        self._full = FullProcesses()
        self._current: dict[int, ServingProcess] = {}
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._cut = 0

    @property
    def config(self) -> DaemonConfig:
        """The settings in force."""
        return self._config

    @property
    def current(self) -> list[ServingProcess]:
        """The processes that serve, in the order of their numbers."""
        return [process for _, process in sorted(self._current.items())]

    @property
    def sessions(self) -> int:
        """How many sessions there are, as of some seconds ago."""
        return sum(process.sessions for process in self._current.values())

    @property
    def count(self) -> int:
        """The same, for the service manager."""
        return self.sessions

    @property
    def limits(self) -> Limits:
        """The limits of all."""
        return self.gate.limits

    # -- life ----------------------------------------------------------------------------------

    async def start(self, *, accept: bool = True) -> None:
        """Start them; the first one alone, so that there is one reason if they cannot start.

        :raises SmtpdForkError: one cannot start; none is left
        """
        self._current[1] = await ServingProcess.start(1, self._start)
        numbers = range(2, self._start.of + 1)
        starts = [ServingProcess.start(number, self._start) for number in numbers]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, ServingProcess):
                self._current[number] = result
        for result in results:
            if isinstance(result, BaseException):
                await self._kill()
                raise result
        if accept:
            self.accept()

    def accept(self) -> None:
        """Have them accept clients."""
        for listener in self.listeners:
            log.info("listening on %s", listener.described, extra={"address": str(listener)})
        for number, process in self._current.items():
            process.serve()
            self._keepers[number] = asyncio.ensure_future(self._keep(process))

    async def drain(self) -> None:
        """Accept no more, and wait until the last session of all has ended."""
        self._end("drain")
        self._close()
        await self._all_ended(None)

    def withdraw(self) -> None:
        """Accept no more: the processes of another supervisor do, on the same sockets."""
        self._end("leave")
        for listener in self.listeners:
            listener.let_go()
            listener.close()

    async def leave(self) -> None:
        """Wait until the sessions that there were at that time have ended."""
        await self._all_ended(None)

    async def stop(self) -> int:
        """Stop them; return how many had to cut sessions, or were killed."""
        self._end("stop")
        await self._all_ended(self._config.shutdown_timeout + END_SECONDS)
        await self._kill()
        self._close()
        return self._cut

    async def abort(self) -> None:
        """Stop them at once."""
        self._end("abort")
        await self._all_ended(ABORT_SECONDS)
        await self._kill()
        self._close()

    def _end(self, word: str) -> None:
        """Tell all to end; none is replaced any more."""
        for process in self._current.values():
            process.end(word)
        for number, keeper in self._keepers.items():
            if number not in self._current:  # another process is being started
                keeper.cancel()

    async def _all_ended(self, seconds: float | None) -> None:
        if self._keepers:
            await asyncio.wait(self._keepers.values(), timeout=seconds)

    async def _kill(self) -> None:
        """End those that are left."""
        for process in self._current.values():
            process.kill()
        await asyncio.gather(*(process.ended() for process in self.current))
        await self._all_ended(None)
        self._current.clear()

    def _close(self) -> None:
        """Close the listeners; clients in the backlog get 421, unless it is another's."""
        for listener in self.listeners:
            close(listener, shutdown_reply(self._config.hostname))

    # -- replacement ---------------------------------------------------------------------------

    async def _keep(self, process: ServingProcess) -> None:
        """Replace *process*, and those after it, until they are ordered to end."""
        pause = 0.0
        while True:
            status = await process.ended()
            del self._current[process.number]
            self._shared.leave(process)
            self._note_full(process, full=False)
            if process.leaving:
                self._cut += status != 0
                return
            log.error("%s ended %s: starting another one", process, described(status))
            soon = asyncio.get_running_loop().time() - process.began < SOON_SECONDS
            pause = _longer(pause) if soon else 0.0
            process = await self._another(process.number, pause)

    async def _another(self, number: int, pause: float) -> ServingProcess:
        while True:
            await asyncio.sleep(pause)
            try:
                process = await ServingProcess.start(number, self._start)
            except SmtpdForkError as error:
                pause = _longer(pause)
                text = "process %d cannot start: %s; trying again in %g s"
                log.error(text, number, error, pause)  # noqa: TRY400 - one line
                continue
            self.replaced += 1
            self._current[number] = process
            self._full.tell(self.current)
            process.serve()
            if self.gate.paused:
                process.tell("pause", True)
            if self.changed_limits:
                process.tell("limits", self._shares(process, self.changed_limits))
            return process

    # -- requests ------------------------------------------------------------------------------

    def _answer(self, process: ServingProcess, word: str, body: Any) -> Any:
        """Answer a process: what it tells of the limits that all share, and asks."""
        if word == "full":
            return self._note_full(process, full=body)
        answer, hints = self._shared.answer(process, word, body)
        for hint in hints:
            for other in self.current:
                if other is not process:
                    other.tell("hint", hint)
        return answer

    def _note_full(self, process: ServingProcess, *, full: bool) -> None:
        self._full.note(process, full=full)
        self._full.tell(self.current)

    async def ask_all(
        self, word: str, body: Any = None, seconds: float | None = ANSWER_SECONDS
    ) -> dict[ServingProcess, Any]:
        """Return the answers of all, in order; those that end meanwhile have none.

        :param seconds: those that take longer have none either; None: no limit
        :raises RequestError: one cannot carry it out
        """
        processes = self.current
        answers = await asyncio.gather(
            *(process.ask(word, body, seconds=seconds) for process in processes),
            return_exceptions=True,
        )
        found = {}
        for process, answer in zip(processes, answers, strict=True):
            if isinstance(answer, (LineClosedError, TimeoutError)):
                log.debug("%s does not answer %s: %r", process, word, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[process] = answer
        return found

    def tell_all(self, word: str, body: Any) -> None:
        """Tell all."""
        for process in self.current:
            process.tell(word, body)

    async def reload(self, config: DaemonConfig, by: str) -> list[str]:
        """Have them read the settings again: the first one alone, and then the others.

        :param config: the settings, as the supervisor has read them
        :param by: who asked, for the log
        :returns: a line for each change
        :raises SmtpdForkError: one cannot use them; if it is the first, nothing has changed
        """
        limits = await asyncio.to_thread(limits_of, config)
        lines: list[str] = []
        for number, process in enumerate(self.current):
            try:
                changes = await process.ask("reload", by)
            except LineClosedError:
                continue  # the next one reads the new settings
            except RequestError as error:
                where = f"{process}: " if number else ""
                raise ProcessError(f"{where}{error.text}", error.status or 0) from None
            lines = lines or changes
        before, self._config, self.gate.limits = self._config, config, limits
        changed = [line for line in lines if line.partition(" ")[0] not in DIVIDED]
        return changed + [
            change_line(name, old, new)
            for name in DIVIDED
            if (old := getattr(before, name)) != (new := getattr(config, name))
        ]

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits of all; see :meth:`RunTimeChanges.set_limits`."""
        if "limit_connections" in settings:
            self._check(Config.build({"limit_connections": settings["limit_connections"]}))
        await super().set_limits(**settings)
        values = {name: getattr(self._config, name) for name in GATE_SETTINGS}
        values |= self.changed_limits
        values = {name: values[name] for name in settings}
        answers = await asyncio.gather(
            *(each.ask("limits", self._shares(each, values)) for each in self.current),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, RequestError):
                raise answer
        return next((text for text in answers if isinstance(text, str) and text), "")

    def _check(self, config: Config) -> None:
        if (wanted := config.limit_connections) < (of := self._start.of):
            reason = f"each of {of} processes needs a connection"
            raise SettingError("limit_connections", wanted, reason)

    def _shares(self, process: ServingProcess, values: Mapping[str, Any]) -> dict[str, Any]:
        of = self._start.of
        return {
            name: share_of(name, value, process.number, of) if name in DIVIDED else value
            for name, value in values.items()
        }


def _longer(pause: float) -> float:
    return min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
