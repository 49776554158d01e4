"""Upgrades: the part of a supervisor in upgrades, first as the new one, later as the old one.

The processes are replaced one by one: the new supervisor starts a process, and when it serves, the
old supervisor makes one of its own drain. When all new processes serve, the new supervisor gets the
listening sockets and the ledger. If a new process cannot start, or ends during the upgrade, the old
processes accept clients again, and the new ones end with their last sessions.
:mod:`smtpd_fork.supervisor.other_supervisor` describes the messages.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.errors import OperatingSystemError, SmtpdForkError
from smtpd_fork.supervisor.answers import answers_of
from smtpd_fork.supervisor.channel import ChannelClosedError
from smtpd_fork.supervisor.free_slots import FullProcesses
from smtpd_fork.supervisor.other_supervisor import ALL_SECONDS, OtherSupervisor
from smtpd_fork.supervisor.serving_process import START_SECONDS, ProcessError, describe_exit
from smtpd_fork.supervisor.shared_limits import SharedLimits

if TYPE_CHECKING:
    from smtpd_fork.supervisor.keeper import Keeper
    from smtpd_fork.supervisor.serving_process import ServingProcess
    from smtpd_fork.supervisor.shared_limits import Participant

__all__ = ["Upgrades"]

log = logging.getLogger("smtpd_fork.daemon")

OTHERS_SECONDS = ALL_SECONDS - 1
OWN_SECONDS = ALL_SECONDS - 2
"""Timeouts for the answers of other supervisors' and of own processes, if another supervisor waits
for both: shorter than its own timeout."""


class Upgrades:
    """The connections to the old and new supervisors of upgrades, and the shared limits.

    :param keepers: of this supervisor's processes
    :param old: the channel to the old supervisor, if there is one
    :ivar on_end_order: called with ``stop`` or ``abort`` if the supervisor that keeps the ledger
        stops
    """

    def __init__(self, keepers: Sequence[Keeper], old: socket.socket | None) -> None:
        self._keepers = keepers
        self._limits = SharedLimits(self.send_hint)
        self._full = FullProcesses()
        self._old = None if old is None else OtherSupervisor(old, self)
        self._new: OtherSupervisor | None = None
        self._others: dict[OtherSupervisor, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[ProcessError] | None = None
        self._cancelled = False
        self._failed = False
        self.on_end_order: Callable[[str], object] = lambda _: None

    @property
    def _processes(self) -> list[ServingProcess]:
        return [keeper.process for keeper in self._keepers if keeper.process is not None]

    # -- other supervisors -----------------------------------------------------------------------

    async def _connect(self, other: OtherSupervisor) -> None:
        self._full.add_supervisor(other)  # first: its notifications may be read during the start
        await other.start()
        self._others[other] = asyncio.ensure_future(self._watch(other))
        self._full.notify_supervisor(other)
        self.announce_free_slots()

    async def _watch(self, other: OtherSupervisor) -> None:
        await other.ended()
        other.close()
        del self._others[other]
        self._limits.supervisor_ended(other)
        self.set_full(other, full=False)  # so that no reference to it remains

    @property
    def _dependents(self) -> list[OtherSupervisor]:
        """The other supervisors that reach the ledger through this one."""
        return [other for other in self._others if other is not self._limits.ledger_owner]

    async def wait_for_others(self) -> None:
        """Wait for the end of the supervisors that reach the ledger through this one."""
        for other in self._dependents:
            await other.ended()

    async def end_others(self, order: str, seconds: float) -> None:
        """Order these supervisors to end, and wait for that.

        :param order: ``stop`` or ``abort``
        :param seconds: timeout
        """
        others = self._dependents
        for other in others:
            other.notify(order)
        await asyncio.gather(*(other.ended(seconds) for other in others))

    # -- the new supervisor ----------------------------------------------------------------------

    async def join(self) -> bool:
        """Connect to the old supervisor; return False if there is none."""
        if self._old is None:
            return False
        self.announce_free_slots()
        self._limits.use_ledger_of(self._old)
        await self._connect(self._old)
        return True

    async def replace(self) -> None:
        """Replace the processes of the old supervisor one by one.

        :raises SmtpdForkError: a process cannot start, or has ended
        """
        if self._old is None:
            return
        self._failure = asyncio.get_running_loop().create_future()
        if self._cancelled:
            self.cancelled()
        try:
            for keeper in self._keepers:
                if keeper.process is None:
                    await self._fail_if_process_ends(self._start(keeper))
                await self._fail_if_process_ends(self._serve(keeper, self._old))
        except ChannelClosedError:
            log.error("the old supervisor has ended: its processes drain, and these serve")  # noqa: TRY400 - one line
        finally:
            self._failure = None

    async def _start(self, keeper: Keeper) -> None:
        try:
            await keeper.start()
        except SmtpdForkError as error:
            of = len(self._keepers)
            reason = f"process {keeper.number} of {of} cannot start: {error}"
            raise ProcessError(reason, error.exit_status) from None

    async def _serve(self, keeper: Keeper, old: OtherSupervisor) -> None:
        assert keeper.process is not None
        assert self._failure is not None
        keeper.serve()
        try:
            await keeper.process.ask("serves", seconds=START_SECONDS)
        except ChannelClosedError:
            raise await asyncio.shield(self._failure) from None
        except TimeoutError:
            text = f"{keeper.process} did not serve within {START_SECONDS:g} s"
            raise ProcessError(text) from None
        self.announce_free_slots()
        await old.ask("serves", (keeper.number, len(self._keepers)))

    async def _fail_if_process_ends(self, step: Awaitable[Any]) -> None:
        assert self._failure is not None
        task = asyncio.ensure_future(step)
        try:
            await asyncio.wait([task, self._failure], return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise self._failure.result()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def cancelled(self) -> None:
        """Make :meth:`replace` fail: the old supervisor has cancelled the upgrade."""
        self._cancelled = True
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(ProcessError("the old process has cancelled the upgrade"))

    @property
    def serves(self) -> bool:
        """Whether one of the new processes serves."""
        return any(keeper.accepts for keeper in self._keepers)

    # -- the old supervisor ----------------------------------------------------------------------

    async def connect_new(self, on_progress: Callable[[], object]) -> socket.socket:
        """Create the channel to a new supervisor; return the end to be inherited.

        :param on_progress: called for each process of the new supervisor that serves
        :raises OperatingSystemError: the system has no resources for a channel
        """
        try:
            ours, its = socket.socketpair()
        except OSError as error:
            raise OperatingSystemError(f"cannot upgrade: {error.strerror}") from None
        self._failed = False
        self._new = OtherSupervisor(ours, self, on_progress)
        await self._connect(self._new)
        return its

    def replace_processes(self, sender: OtherSupervisor, serving: int, of: int) -> None:
        """Make old processes drain, in proportion to the new ones: *serving* of *of* serve.

        If the upgrade has failed, this was sent before that: the old processes go on.
        """
        if self._failed or sender is not self._new:
            return
        for keeper in self._keepers[: len(self._keepers) * serving // of]:
            keeper.stop_accepting()
        self.announce_free_slots()
        left = sum(not keeper.draining for keeper in self._keepers)
        text = "upgrade: %d of %d new processes serve, and %d of %d old ones"
        log.info(text, serving, of, left, len(self._keepers))

    @property
    def new_serves(self) -> bool:
        """Whether a process of the new supervisor serves."""
        return self._new is not None and self._new.serving > 0

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the upgrade; return a task that ends with the new supervisor, if it runs."""
        new, self._new = self._new, None
        if new is None:
            return None
        new.notify("cancel")
        return self._others.get(new)

    async def resume(self) -> None:
        """Make all processes accept clients again, after the upgrade has failed."""
        self._failed = True
        await asyncio.gather(*(keeper.resume() for keeper in self._keepers))
        self.announce_free_slots()

    def hand_over_ledger(self) -> None:
        """Hand the ledger over to the new supervisor, all of whose processes serve."""
        if self._new is not None:
            self._limits.hand_over_ledger(self._new)

    # -- requests of processes and of other supervisors ------------------------------------------

    def answer(self, process: ServingProcess, kind: str, body: Any) -> Any:
        """Return the answer to a message of a process about the shared limits."""
        if kind == "full":
            return self.set_full(process, full=body)
        return self._limits.answer(process, kind, body)

    def process_ended(self, process: ServingProcess, status: int) -> bool:
        """Handle the end of a process; return whether to restart it, as Watcher does.

        During an upgrade the end of a new process makes the upgrade fail.
        """
        self._limits.remove(process)
        self.set_full(process, full=False)
        failure = self._failure
        if failure is None or process.leaving:
            return True
        if not failure.done():
            failure.set_result(ProcessError(f"{process} ended {describe_exit(status)}"))
        return False

    def share_limits(self, sender: OtherSupervisor, kind: str, body: Any) -> Any:
        """Return the answer to a message of another supervisor's process about shared limits."""
        return self._limits.answer(sender, kind, body)

    def remove_nodes(self, sender: OtherSupervisor, nodes: Collection[str]) -> None:
        """Remove the counts of another supervisor's processes that have ended."""
        self._limits.remove(sender, nodes)

    def receive_ledger(self, ledger: bytes) -> None:
        """Keep the ledger of the old supervisor from now on."""
        self._limits.receive_ledger(ledger)

    def send_hint(self, hint: str, exclude: Participant) -> None:
        """Send a hint to all processes and all other supervisors, except one."""
        participants: list[Participant] = [*self._processes, *self._others]
        for each in participants:
            if each is not exclude:
                each.notify("hint", hint)

    def set_full(self, sender: ServingProcess | OtherSupervisor, *, full: bool) -> None:
        """Record whether a process, or all processes of another supervisor, are full."""
        self._full.set_full(sender, full=full)
        self.announce_free_slots()

    def announce_free_slots(self) -> None:
        """Notify the processes and supervisors if free slots have appeared or disappeared."""
        accepting = [each.process for each in self._keepers if each.process and each.accepts]
        self._full.announce(self._processes, accepting, self._others)

    async def answers(self, kind: str, body: Any) -> dict[int, Any]:
        """Return the answers of other supervisors' processes, by process id.

        A process that cannot carry out the request is left out.
        """
        return await self._answers_of_others(kind, body, exclude=None)

    async def answers_except(
        self, exclude: OtherSupervisor, kind: str, body: Any
    ) -> dict[int, Any]:
        """Return the answers of all processes, except those of one supervisor."""
        own, others = await asyncio.gather(
            answers_of(self._processes, kind, body, OWN_SECONDS),
            self._answers_of_others(kind, body, exclude=exclude, seconds=OTHERS_SECONDS),
        )
        found = {process.pid: answer for process, answer in own.items()}
        given = {pid: each for pid, each in found.items() if not isinstance(each, RequestError)}
        return {**given, **others}

    async def _answers_of_others(
        self,
        kind: str,
        body: Any,
        *,
        exclude: OtherSupervisor | None,
        seconds: float = ALL_SECONDS,
    ) -> dict[int, Any]:
        others = [each for each in self._others if each is not exclude]
        answers = await asyncio.gather(*(each.answers(kind, body, seconds) for each in others))
        return {pid: answer for found in answers for pid, answer in found.items()}
