"""Pipe: pipe each message to a command, such as maildrop or a script.

250 means that the command has ended with exit status 0. Some statuses of sysexits.h refuse the
message permanently; any other result, including a signal, is a temporary failure, so that the
client sends the message again. No shell is used, and no part of an address can become an option or
another command.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal

from aiosmtpd.smtp import MISSING

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.message import Mail, Recipient, Replies, unix_lines
from smtpd_fork.safe_open import user_name
from smtpd_fork.setting_types import Count, Seconds, SecondsOrZero, SettingError, Size, Text
from smtpd_fork.sinks.base import FAILED
from smtpd_fork.sinks.final_delivery import (
    LONGEST_LOGGED,
    NO_MAILBOX,
    FinalSink,
    copies,
    in_parallel,
    log_stored,
    loggable,
)
from smtpd_fork.sinks.pipe_command import DEFAULT_PATH, AddressRefusedError, PipeCommand
from smtpd_fork.sinks.pipe_process import Ended, PipeProcess
from smtpd_fork.sinks.slots import Slots

__all__ = ["Pipe"]

TERM_SECONDS = 1.0
"""Seconds between SIGTERM and SIGKILL."""

KILL_SECONDS = 1.0
"""Seconds that the reply to the client waits for the end of a process after SIGKILL."""

BUSY = "451 4.3.2 Too many deliveries at a time, try again later"

_REPLIES = {
    os.EX_NOUSER: NO_MAILBOX,
    os.EX_DATAERR: "554 5.6.0 The message was refused",
    os.EX_NOPERM: "550 5.7.1 The delivery is not permitted",
}

_NAMES = {
    value: name.removeprefix("EX_")
    for name, value in vars(os).items()
    if name.startswith("EX_") and value
}


class Pipe(FinalSink):
    """Pipes messages to a command.

    :param command: program and arguments, split as by a shell; ``{user}``, ``{domain}``, ``{ext}``,
        ``{recipient}`` and ``{sender}`` are replaced by words of the envelope. With a word of the
        recipient the command runs once for each recipient, otherwise once for the message
    :param timeout: seconds for the delivery of a message, after which the command is killed, and
        its recipients get 451
    :param max_processes: maximum concurrent runs
    :param wait: seconds that a message waits for the end of other runs, before it gets 451
    :param line_ends: line ends of the message
    :param max_memory: bytes of address space of each process (RLIMIT_AS); 0: no limit
    :param max_cpu: seconds of CPU time of each process (RLIMIT_CPU); 0: no limit
    :param delimiter: the delimiter of ``{user}`` and ``{ext}``; empty: there are no extensions
    """

    supports_binarymime = True
    log = logging.getLogger("smtpd_fork.pipe")

    def __init__(
        self,
        command: Text,
        *,
        timeout: Seconds = 120.0,
        max_processes: Count = 8,
        wait: Seconds = 30.0,
        line_ends: Literal["lf", "crlf"] = "lf",
        max_memory: Size = 0,
        max_cpu: SecondsOrZero = 0.0,
        delimiter: str = "+",
    ) -> None:
        super().__init__()
        self._command = PipeCommand(command, delimiter=delimiter)
        self.time_limit = timeout
        self._processes = max_processes
        self._wait = wait
        self._unix = line_ends == "lf"
        self._limits = {
            number: limit
            for number, limit in (
                (resource.RLIMIT_AS, max_memory),
                (resource.RLIMIT_CPU, math.ceil(max_cpu)),
            )
            if limit
        }
        if self._limits and not hasattr(resource, "prlimit"):
            key, value = ("max_memory", max_memory) if max_memory else ("max_cpu", max_cpu)
            raise SettingError(key, value, "this system cannot limit another process (prlimit(2))")
        self._slots = Slots(max_processes)
        self._pool: ThreadPoolExecutor | None = None
        if self._command.depends:
            self.handle_RCPT = self._refuse_unusable

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return f"the command {self._command.program}"

    def check(self) -> None:
        """Check that the program exists.

        :raises CannotCreateError: it does not exist, or cannot be executed
        """
        program = self._command.program
        if shutil.which(program, path=os.environ.get("PATH", DEFAULT_PATH)) is None:
            reason = "is not in PATH"
            if "/" in program:
                there = os.access(program, os.F_OK)
                reason = f"cannot be executed by {user_name()}" if there else "does not exist"
            raise CannotCreateError(f"pipe: the command {program} {reason}")

    def prepare(self) -> None:
        """Check that the program exists.

        :raises CannotCreateError: it does not exist, or cannot be executed
        """
        self.check()

    async def close(self) -> None:
        """Wait until all runs have ended."""
        await super().close()
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    async def _refuse_unusable(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        """Refuse an address that cannot be an argument; used as ``handle_RCPT``."""
        sender = envelope.mail_from or ""
        try:
            self._command.arguments("" if sender == "<>" else sender, address)
        except AddressRefusedError as error:
            return error.reply
        return MISSING

    async def deliver_here(self, mail: Mail) -> Replies:
        """Run the command, and return the replies that its exit status means."""
        runs: list[Sequence[Recipient]] = [mail.recipients]
        if self._command.for_each:
            runs = [(each,) for each in mail.recipients]
        heads, content = copies(mail, [[each.address for each in run] for run in runs])
        replies = await in_parallel(
            [
                self._deliver_to(run, mail, self._pieces(head, content, mail))
                for run, head in zip(runs, heads, strict=True)
            ]
        )
        return replies if self._command.for_each else replies[0]

    def _pieces(self, head: bytes, content: bytes, mail: Mail) -> Iterator[bytes]:
        if self._unix and not mail.binary:
            return chain((head.replace(b"\r\n", b"\n"),), unix_lines(content))
        return iter((head, content))

    async def _deliver_to(
        self, recipients: Sequence[Recipient], mail: Mail, pieces: Iterator[bytes]
    ) -> str:
        """Run the command once for some recipients; return the reply for them."""
        try:
            arguments = self._command.arguments(mail.sender, recipients[0].address)
        except AddressRefusedError as error:
            return error.reply
        environment = self._command.environment(mail, recipients)
        process = PipeProcess(arguments, environment, pieces, self._limits)
        try:
            if not await self._slots.acquire(self._wait):
                self.report(
                    mail, "not delivered", f"max-processes: {self._processes} commands are running"
                )
                return BUSY
            ended = await self._run(process)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "")
            self.report(mail, "not delivered", f"{self._command.program}: {error}", kind=kind)
            return FAILED
        if ended.status == 0:
            log_stored(self.log, mail, ended.size, len(recipients), "delivered")
            return f"250 2.0.0 Ok: delivered as {mail.id}"
        self.report(mail, "not delivered", self._reason(ended), kind=str(ended.status))
        return FAILED if ended.status is None else _REPLIES.get(ended.status, FAILED)

    def _reason(self, ended: Ended) -> str:
        """Return a text about the end of a run, for the log."""
        if ended.status is None:
            how = "exit status unknown: another part of this process waits for all children"
        elif ended.status < 0:
            how = f"ended by {_signal_name(-ended.status)}"
        else:
            name = _NAMES.get(ended.status)
            how = f"exit status {ended.status}" + (f" ({name})" if name else "")
        line = loggable(ended.line)[:LONGEST_LOGGED]
        return f"{self._command.program}: {how}" + (f": {line}" if line else "")

    async def _run(self, process: PipeProcess) -> Ended:
        """Run a process in a thread, and release the slot when it has ended.

        :raises OSError: the process could not be started
        :raises asyncio.CancelledError: the process was killed because of a cancellation
        """
        if self._pool is None:
            # Not made earlier, because threads do not survive the fork of a daemon.
            self._pool = ThreadPoolExecutor(self._processes, thread_name_prefix="pipe")
        try:
            future = self._pool.submit(process.run)
        except RuntimeError as error:
            process.kill(signal.SIGKILL)  # the pool keeps the call in its queue
            self._slots.release()
            raise OSError(errno.EAGAIN, str(error)) from None
        future.add_done_callback(lambda _: self._slots.release())
        running = asyncio.wrap_future(future)
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            if process.kill(signal.SIGTERM):
                try:
                    await asyncio.wait({running}, timeout=TERM_SECONDS)
                finally:
                    process.kill(signal.SIGKILL)
                await asyncio.wait({running}, timeout=KILL_SECONDS)
                running.add_done_callback(_forget)
                raise
            # The process had ended before: the client has to get the result.
            await asyncio.wait({running})
        return running.result()


def _forget(running: asyncio.Future[Ended]) -> None:
    if not running.cancelled():
        running.exception()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
