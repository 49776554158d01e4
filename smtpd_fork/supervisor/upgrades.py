"""Upgrades: a supervisor's part in them, first as the new one, later as the old one.

The processes are replaced one by one: the new supervisor starts one, and when that serves, the old
one has one of its own rest. When all serve, the new supervisor takes everything over. If one cannot
start, or ends meanwhile, the old processes accept again, and the new ones end with their last
sessions. :mod:`smtpd_fork.supervisor.other_supervisor` has the messages.
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
from smtpd_fork.supervisor.elsewhere import FullProcesses
from smtpd_fork.supervisor.line import LineClosedError
from smtpd_fork.supervisor.other_supervisor import OtherSupervisor
from smtpd_fork.supervisor.serving_process import START_SECONDS, ProcessError, described
from smtpd_fork.supervisor.shared_limits import SharedLimits

if TYPE_CHECKING:
    from smtpd_fork.supervisor.keeper import Keeper
    from smtpd_fork.supervisor.serving_process import ServingProcess
    from smtpd_fork.supervisor.shared_limits import Teller

__all__ = ["Upgrades"]

log = logging.getLogger("smtpd_fork.daemon")


class Upgrades:
    """The supervisors of upgrades, old and new, and what all their processes share.

    :param keepers: of the processes of this one
    :param old: the line to the old supervisor, if there is one
    :ivar end_as_well: is called if the old supervisor stops, with ``stop`` or ``abort``
    """

    def __init__(self, keepers: Sequence[Keeper], old: socket.socket | None) -> None:
        self._keepers = keepers
        self._shared = SharedLimits(self.hint)
        self._full = FullProcesses()
        self._old = None if old is None else OtherSupervisor(old, self)
        self._new: OtherSupervisor | None = None
        self._others: dict[OtherSupervisor, asyncio.Task[None]] = {}
        self._fault: asyncio.Future[ProcessError] | None = None
        self._cancelled = False
        self.end_as_well: Callable[[str], object] = lambda _: None

    @property
    def _processes(self) -> list[ServingProcess]:
        return [keeper.process for keeper in self._keepers if keeper.process is not None]

    # -- other supervisors -----------------------------------------------------------------------

    async def _meet(self, other: OtherSupervisor) -> None:
        await other.start()
        self._others[other] = asyncio.ensure_future(self._watch(other))
        self._full.introduce(other)

    async def _watch(self, other: OtherSupervisor) -> None:
        await other.ended()
        other.close()
        del self._others[other]
        self._shared.lose(other)
        self.note_full(other, full=True)

    @property
    def _following(self) -> list[OtherSupervisor]:
        """Those whose processes share limits by way of this supervisor."""
        return [other for other in self._others if other is not self._shared.counted_by]

    async def others_ended(self) -> None:
        """Wait for the end of those that share limits by way of this one."""
        for other in self._following:
            await other.ended()

    async def end_others(self, word: str, seconds: float) -> None:
        """Have those end, and wait for that."""
        others = self._following
        for other in others:
            other.tell(word)
        await asyncio.gather(*(other.ended(seconds) for other in others))

    # -- the new supervisor ----------------------------------------------------------------------

    async def join(self) -> bool:
        """Begin to talk to the old supervisor; return whether there is one."""
        if self._old is None:
            return False
        self.note_accepting()
        self._shared.let_count(self._old)
        await self._meet(self._old)
        return True

    async def replace(self) -> None:
        """Have processes serve, one by one, in place of those of the old supervisor.

        :raises SmtpdForkError: one cannot start, or has ended
        """
        if self._old is None:
            return
        self._fault = asyncio.get_running_loop().create_future()
        if self._cancelled:
            self.cancelled()
        try:
            for keeper in self._keepers:
                if keeper.process is None:
                    await self._unless_one_ends(self._start(keeper))
                await self._unless_one_ends(self._serve(keeper, self._old))
        except LineClosedError:
            log.error("the old supervisor has ended: its processes drain, and these serve")  # noqa: TRY400 - one line
        finally:
            self._fault = None

    async def _start(self, keeper: Keeper) -> None:
        try:
            await keeper.start()
        except SmtpdForkError as error:
            of = len(self._keepers)
            reason = f"process {keeper.number} of {of} cannot start: {error}"
            raise ProcessError(reason, error.exit_status) from None

    async def _serve(self, keeper: Keeper, old: OtherSupervisor) -> None:
        assert keeper.process is not None
        assert self._fault is not None
        keeper.serve()
        try:
            await keeper.process.ask("serves", seconds=START_SECONDS)
        except LineClosedError:
            raise await asyncio.shield(self._fault) from None
        except TimeoutError:
            text = f"{keeper.process} did not serve within {START_SECONDS:g} s"
            raise ProcessError(text) from None
        self.note_accepting()
        await old.ask("serves", (keeper.number, len(self._keepers)))

    async def _unless_one_ends(self, step: Awaitable[Any]) -> None:
        assert self._fault is not None
        task = asyncio.ensure_future(step)
        try:
            await asyncio.wait([task, self._fault], return_when=asyncio.FIRST_COMPLETED)
            if self._fault.done():
                raise self._fault.result()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def cancelled(self) -> None:
        """Take note that the old supervisor has cancelled the upgrade."""
        self._cancelled = True
        if self._fault is not None and not self._fault.done():
            self._fault.set_result(ProcessError("the old process has cancelled the upgrade"))

    @property
    def serves(self) -> bool:
        """Whether one of the new processes serves."""
        return any(keeper.accepts for keeper in self._keepers)

    # -- the old supervisor ----------------------------------------------------------------------

    async def expect(self, stepped: Callable[[], object]) -> socket.socket:
        """Return the end of the line for a new supervisor.

        :param stepped: called for each of its processes that serves
        """
        try:
            ours, its = socket.socketpair()
        except OSError as error:
            raise OperatingSystemError(f"cannot upgrade: {error.strerror}") from None
        self._new = OtherSupervisor(ours, self, stepped)
        await self._meet(self._new)
        return its

    def make_way(self, served: int, of: int) -> None:
        """Have old processes rest, as so many new ones serve, of so many."""
        for keeper in self._keepers[: len(self._keepers) * served // of]:
            keeper.rest()
        self.note_accepting()
        left = sum(not keeper.rests for keeper in self._keepers)
        text = "upgrade: %d of %d new processes serve, and %d of %d old ones"
        log.info(text, served, of, left, len(self._keepers))

    @property
    def replaces(self) -> bool:
        """Whether a process of the new supervisor has begun to serve."""
        return self._new is not None and self._new.served > 0

    def cancel(self) -> asyncio.Task[None] | None:
        """Have the new supervisor give up; return a task that ends with it, if it lives."""
        new, self._new = self._new, None
        if new is None:
            return None
        new.tell("cancel")
        return self._others.get(new)

    async def resume(self) -> None:
        """Have all processes accept again: the upgrade has failed."""
        await asyncio.gather(*(keeper.resume() for keeper in self._keepers))
        self.note_accepting()

    def hand_over(self) -> None:
        """Hand over what all processes share: the new supervisor has everything now."""
        if self._new is not None:
            self._shared.hand_over(self._new)

    # -- what they share -------------------------------------------------------------------------

    def answer(self, process: ServingProcess, word: str, body: Any) -> Any:
        """Answer a process: what it tells of the limits that all share, and asks."""
        if word == "full":
            return self.note_full(process, full=body)
        return self._shared.answer(process, word, body)

    def ended(self, process: ServingProcess, status: int) -> bool:
        """Take note of an end; return whether the process is to be replaced by another one."""
        self._shared.leave(process)
        self.note_full(process, full=False)
        fault = self._fault
        if fault is None or process.leaving:
            return True
        if not fault.done():
            fault.set_result(ProcessError(f"{process} ended {described(status)}"))
        return False

    def count(self, teller: OtherSupervisor, word: str, body: Any) -> Any:
        """Answer what a process of another supervisor tells and asks of shared limits."""
        return self._shared.answer(teller, word, body)

    def forget_nodes(self, teller: OtherSupervisor, nodes: Collection[str]) -> None:
        """Take note that processes of another supervisor have ended."""
        self._shared.leave(teller, nodes)

    def take_ledger(self, ledger: bytes) -> None:
        """Count from now on."""
        self._shared.take(ledger)

    def hint(self, hint: str, but: Teller) -> None:
        """Tell all processes of this supervisor and of others, but for one."""
        concerned: list[Teller] = [*self._processes, *self._others]
        for each in concerned:
            if each is not but:
                each.tell("hint", hint)

    def note_full(self, who: ServingProcess | OtherSupervisor, *, full: bool) -> None:
        """Take note that a process, or all of another supervisor, have no free slot."""
        self._full.note(who, full=full)
        self.note_accepting()

    def note_accepting(self) -> None:
        """Take note that other processes accept than before."""
        accepting = [each.process for each in self._keepers if each.process and each.accepts]
        self._full.tell(self._processes, accepting, self._others)

    async def answers(self, word: str, body: Any) -> dict[int, Any]:
        """Return the answers of the processes of other supervisors, by their pids.

        Those that cannot carry it out have none.
        """
        return await self._answers_behind(None, word, body)

    async def all_answers(self, asks: OtherSupervisor, word: str, body: Any) -> dict[int, Any]:
        """Return the answers of all processes but those of the supervisor that asks."""
        own = await answers_of(self._processes, word, body)
        found = {process.pid: answer for process, answer in own.items()}
        given = {pid: each for pid, each in found.items() if not isinstance(each, RequestError)}
        return given | await self._answers_behind(asks, word, body)

    async def _answers_behind(
        self, but: OtherSupervisor | None, word: str, body: Any
    ) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for other in [each for each in self._others if each is not but]:
            found |= await other.answers(word, body)
        return found
