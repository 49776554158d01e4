"""ThreadedServer: a Server in a thread with its own event loop, for programs that have none."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from smtpd_fork.server.arguments import grace_period
from smtpd_fork.server.server import Server
from smtpd_fork.settings import Settings

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.dialogue import Tally
    from smtpd_fork.gate import Gate, Limits
    from smtpd_fork.handlers.hooks import Handler
    from smtpd_fork.listeners import Listener
    from smtpd_fork.peer_address import SocketAddress
    from smtpd_fork.settings import GateSettings
    from smtpd_fork.smtp import SMTP

__all__ = ["ThreadedServer"]

log = logging.getLogger("smtpd_fork.server")

T = TypeVar("T")

CUT_SECONDS = 2.0
"""Time after the grace period for cutting sessions and closing handlers."""

LEFTOVER_SECONDS = 1.0
"""Time limit for tasks, and then for threads, that handlers have left running."""


class ServerOptions(Settings, total=False):
    """The keywords of :class:`smtpd_fork.Server`."""

    gate: Gate | None
    limits: Limits | None
    config: Config | None
    sockets: Sequence[socket.socket] | None
    listeners: Sequence[Listener]
    tls_context: ssl.SSLContext | None
    session_class: type[SMTP]
    session_options: Mapping[str, Any] | None
    tally: Tally | None


class ThreadedServer:
    """A :class:`smtpd_fork.Server` in a thread, for tests and for programs without an event loop.

    ::

        with ThreadedServer(handler, listen="127.0.0.1:0") as server:
            smtplib.SMTP("127.0.0.1", server.port)

    The handler's hooks run in that thread. The methods and attributes of this class are for other
    threads.

    :param handler: as for :class:`smtpd_fork.Server`
    :param loop_factory: creates the event loop, such as ``uvloop.new_event_loop``
    :param options: the keywords of :class:`smtpd_fork.Server`, which raises the same errors
    """

    def __init__(
        self,
        handler: Handler | Sequence[Handler],
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        **options: Unpack[ServerOptions],
    ) -> None:
        self._server = Server(handler, **options)
        self._loop_factory = loop_factory or asyncio.new_event_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started: Future[None] = Future()
        self._ended: Future[int] = Future()
        self._grace = math.inf
        self._stopping: asyncio.Task[int] | None = None

    # -- for the caller's thread ---------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, and return when the server accepts clients.

        :raises SmtpdForkError: an address cannot be bound, or a sink cannot be created
        :raises RuntimeError: the server was started before
        """
        if self._thread is not None:
            raise RuntimeError(
                "this ThreadedServer was started before: create a new ThreadedServer to serve again"
            )
        self._loop = loop = self._loop_factory()
        self._stop_wanted: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=[loop], name="smtpd-fork", daemon=True
        )
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._stop_thread(0)
            raise

    def stop(self, timeout: float | None = None) -> int:
        """Stop as :meth:`smtpd_fork.Server.stop` does, and wait until the thread has ended.

        A handler that hangs is cancelled after *timeout*. If the wait is interrupted
        (KeyboardInterrupt), all sessions are cut immediately. The method may be called more than
        once.

        :param timeout: seconds for the messages in progress; default: ``shutdown_timeout``
        :returns: number of sessions that were cut
        :raises TimeoutError: a handler blocks the thread, so that it cannot be ended
        :raises RuntimeError: a handler called it, or ended the event loop
        """
        if self._thread is None:
            self._server.close()
            return 0
        if threading.current_thread() is self._thread:
            raise RuntimeError("a handler called stop(), which waits for the handler's own thread")
        seconds = grace_period(timeout, self._server.config.shutdown_timeout)
        try:
            return self._stop_thread(seconds)
        except KeyboardInterrupt:
            self._stop_thread(0)
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        except (RuntimeError, TimeoutError) as error:
            if kind is None:
                raise
            log.error("%s", error)  # noqa: TRY400 - the exception of the block is raised

    @property
    def port(self) -> int:
        """The port of the first address that has one.

        :raises LookupError: nothing is bound, or only unix sockets
        """
        return self._server.port

    @property
    def addresses(self) -> list[SocketAddress | str]:
        """The bound addresses, in order: ``(host, port, ...)``, or the path of a unix socket."""
        return self._server.addresses

    @property
    def sessions(self) -> int:
        """Number of current sessions."""
        return self._server.sessions

    @property
    def gate(self) -> Gate:
        """The gate; its methods may be called from any thread."""
        return self._server.gate

    @property
    def limits(self) -> Limits:
        """The limits of the gate; may be set at any time, and apply to new clients."""
        return self._server.gate.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._server.gate.limits = limits

    def reload(
        self,
        config: Config | None = None,
        *,
        handler: Handler | Sequence[Handler] | None = None,
    ) -> list[str]:
        """Apply other settings, or read files again, as :meth:`smtpd_fork.Server.reload` does.

        :returns: a line for each setting that has changed
        :raises SmtpdForkError: a file cannot be read, or an address cannot be bound; then nothing
            has changed
        :raises RuntimeError: the server does not run, or a handler called this method
        """
        return self._run_in_thread(self._server.reload(config, handler=handler))

    def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits until the next reload, as :meth:`smtpd_fork.Server.set_limits` does.

        :returns: a warning; empty if there is none
        :raises SettingError: a setting cannot be changed at run time, or its value is invalid
        :raises RuntimeError: the server does not run, or a handler called this method
        """
        return self._run_in_thread(self._server.set_limits(**settings))

    def deny(self, network: str, text: str = "", *, seconds: float | None = None) -> None:
        """Refuse new clients of *network*, as :meth:`smtpd_fork.Server.deny` does."""
        self._server.deny(network, text, seconds=seconds)

    def undeny(self, network: str) -> bool:
        """Admit clients of *network* again; return whether :meth:`deny` had refused them."""
        return self._server.undeny(network)

    def __repr__(self) -> str:
        return repr(self._server).replace("<", "<Threaded", 1)

    def _run_in_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's thread, and return its result."""
        if self._loop is None or self._ended.done():
            coroutine.close()
            raise RuntimeError("this ThreadedServer does not run")
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a handler called this, which waits for the handler's own thread")
        done = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        ends: set[Future[Any]] = {done, self._ended}
        wait(ends, return_when=FIRST_COMPLETED)
        if not done.done() or done.cancelled():
            raise RuntimeError("this ThreadedServer has stopped meanwhile")
        return done.result()

    def _stop_thread(self, seconds: float) -> int:
        """Stop the server, and wait for the end of the thread.

        The wait is limited to *seconds* plus the times of the constants above.
        """
        assert self._loop is not None
        assert self._thread is not None
        with suppress(RuntimeError):  # the loop is closed, so the thread is ending
            self._loop.call_soon_threadsafe(self._request_stop, seconds)
        try:
            cut = self._ended.result(seconds + 2 * CUT_SECONDS + 3 * LEFTOVER_SECONDS)
        except TimeoutError:
            if self._ended.done():
                raise
            raise TimeoutError(
                f"the thread of {self!r} does not end: {_blocking_function(self._thread)}"
            ) from None
        self._thread.join()
        return cut

    # -- the thread ----------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        executor = ThreadPoolExecutor(thread_name_prefix="smtpd-fork")
        loop.set_default_executor(executor)
        serving = loop.create_task(self._serve())
        error: BaseException | None = None
        try:
            loop.run_until_complete(serving)
        except BaseException as raised:  # noqa: BLE001 - raised again in the caller's thread
            error = raised
            if not serving.done():
                error = RuntimeError(f"a task of a handler ended the event loop: {raised!r}")
                self._request_stop(0)
                with suppress(BaseException):
                    loop.run_until_complete(serving)
        _join_threads(executor)
        loop.close()
        if not self._started.done():
            self._started.set_exception(error or RuntimeError("the start was interrupted"))
            self._ended.set_result(0)
        elif error is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(serving.result())

    async def _serve(self) -> int:
        starting = asyncio.create_task(self._server.start())
        either: list[asyncio.Future[Any]] = [starting, self._stop_wanted]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                self._started.set_result(None)
            await self._stop_wanted
            return await self._stop()
        finally:
            await _end_tasks()

    async def _stop(self) -> int:
        for _ in range(2):  # a second time if the first stop was interrupted, or took too long
            grace = self._grace
            self._grace = 0
            self._stopping = asyncio.create_task(self._server.stop(grace))
            await asyncio.wait({self._stopping}, timeout=grace + CUT_SECONDS)
            if self._stopping.done() and not self._stopping.cancelled():
                return self._stopping.result()
        raise TimeoutError("the server did not stop: a handler's close() hangs")

    def _request_stop(self, seconds: float) -> None:
        self._grace = min(self._grace, seconds)
        if not self._stop_wanted.done():
            self._stop_wanted.set_result(None)
        elif not seconds and self._stopping is not None:
            self._stopping.cancel()  # Server.stop() cuts the sessions then


async def _end_tasks() -> None:
    """Cancel the tasks that handlers have left running."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LEFTOVER_SECONDS)
    with suppress(TimeoutError):
        async with asyncio.timeout(LEFTOVER_SECONDS):
            await asyncio.get_running_loop().shutdown_asyncgens()


def _join_threads(executor: ThreadPoolExecutor) -> None:
    """Wait for the threads of an executor, for a limited time as one may hang."""
    executor.shutdown(wait=False, cancel_futures=True)
    waiter = threading.Thread(target=executor.shutdown, daemon=True)
    waiter.start()
    waiter.join(LEFTOVER_SECONDS)


def _blocking_function(thread: threading.Thread) -> str:
    """Return the function of a handler that blocks *thread*, for an error message."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - it is documented
    last = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("smtpd_fork.", "asyncio.")):
            break
        last, frame = frame, frame.f_back
    if last is None:
        return "it is busy"
    code = last.f_code
    return f"{code.co_qualname} blocks it, {code.co_filename}:{last.f_lineno}"
