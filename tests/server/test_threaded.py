"""ThreadedServer: a server for programs without an event loop; its thread always ends."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import socket
import sys
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support.handlers import Collect

from smtpd_fork import Gate, HandlerError, Limits, SettingError, SmtpdForkError, ThreadedServer
from smtpd_fork.server import threaded

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = "127.0.0.1:0"
PATIENCE = 10.0

on_both_loops = pytest.mark.parametrize(
    "loop_factory", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Check that no thread of smtpd-fork is left after a test."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("smtpd-fork"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread


def send(server: ThreadedServer) -> None:
    with smtplib.SMTP("127.0.0.1", server.port) as client:
        client.sendmail("a@example.org", ["b@example.com"], "Subject: hello\r\n")


class Hangs:
    """A handler whose hook reports its call, and then hangs; subclasses hang in other ways."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.release = threading.Event()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.called.set()
        await self.hang()
        return "250 2.0.0 Ok"

    async def hang(self) -> None:
        await asyncio.Event().wait()


class HangsInAThread(Hangs):
    async def hang(self) -> None:
        await asyncio.to_thread(self.release.wait, PATIENCE)


class IgnoresThatItIsCancelled(Hangs):
    async def hang(self) -> None:
        task: Any = asyncio.current_task()
        # It is destroyed while pending; pytest has closed the output for that warning.
        task._log_destroy_pending = False
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class BlocksTheLoop(Hangs):
    async def hang(self) -> None:
        self.release.wait(PATIENCE)


class EndsTheLoop(Hangs):
    async def hang(self) -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await asyncio.Event().wait()


@contextmanager
def message_in_progress(server: ThreadedServer, handler: Hangs) -> Iterator[None]:
    """Send a message, and return when the handler has received it."""
    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) as client:
        with client.makefile("rwb") as file:
            for line in ("EHLO x", "MAIL FROM:<a@x.example>", "RCPT TO:<b@x.example>", "DATA"):
                file.write(f"{line}\r\n".encode())
            file.flush()
            while not file.readline().startswith(b"354"):
                pass
            file.write(b"hello\r\n.\r\n")
            file.flush()
            assert handler.called.wait(PATIENCE)
            yield


@on_both_loops
def test_it_serves_a_program_without_a_loop(loop_factory: Any) -> None:
    handler = Collect()
    with ThreadedServer(handler, listen=LOCAL, loop_factory=loop_factory) as server:
        port = server.port
        assert server.addresses == [("127.0.0.1", port)]
        send(server)
    assert [message.strip() for message in handler.messages] == [b"Subject: hello"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_keywords_are_those_of_server() -> None:
    gate = Gate(limit_connections=3)
    with ThreadedServer([Collect()], listen=LOCAL, gate=gate, timeout="5m") as server:
        assert server.gate is gate


@pytest.mark.parametrize(
    ("handler", "options", "error"),
    [
        (Collect(), {"max_from_ipp": 3}, SettingError),
        (object(), {}, HandlerError),
        (Collect(), {"session_options": {"foo": 1}}, TypeError),
    ],
)
def test_invalid_arguments_are_errors_of_the_constructor(
    handler: Any, options: Any, error: Any
) -> None:
    with pytest.raises(error):
        ThreadedServer(handler, **options)


@on_both_loops
def test_an_error_of_the_start_is_raised_in_the_with_statement(
    taken: int, loop_factory: Any
) -> None:
    server = ThreadedServer(Collect(), listen=f"127.0.0.1:{taken}", loop_factory=loop_factory)
    with pytest.raises(SmtpdForkError, match=str(taken)), server:
        pytest.fail("it was entered")
    assert server.stop() == 0


def test_it_can_be_started_only_once() -> None:
    with ThreadedServer(Collect(), listen=LOCAL) as server:
        with pytest.raises(RuntimeError, match="create a new ThreadedServer"):
            server.start()
    with pytest.raises(RuntimeError, match="create a new ThreadedServer"), server:
        pytest.fail("it was entered again")


def test_a_stop_without_a_start_and_a_second_one_do_nothing() -> None:
    server = ThreadedServer(Collect(), listen=LOCAL)
    assert server.stop() == 0
    server.start()
    send(server)
    assert server.stop() == server.stop() == 0


def test_limits_can_be_changed_while_it_serves() -> None:
    with ThreadedServer(Collect(), listen=LOCAL, when_full="refuse") as server:
        with smtplib.SMTP("127.0.0.1", server.port):
            assert (server.sessions, server.gate.count) == (1, 1)
            server.limits = Limits(max_from_ip=1)
            with pytest.raises(smtplib.SMTPConnectError, match="Too many connections"):
                smtplib.SMTP("127.0.0.1", server.port)
        assert server.limits.max_from_ip == 1


@on_both_loops
def test_a_waiting_client_is_admitted_when_the_limits_are_raised(loop_factory: Any) -> None:
    options: Any = {"listen": LOCAL, "limit_connections": 1, "loop_factory": loop_factory}
    with ThreadedServer(Collect(), **options) as server:
        with smtplib.SMTP("127.0.0.1", server.port):
            with closing(socket.create_connection(("127.0.0.1", server.port))) as waits:
                server.limits = Limits(limit_connections=2)
                waits.settimeout(PATIENCE)
                assert waits.recv(100).startswith(b"220")


@on_both_loops
@pytest.mark.parametrize("kind", [Hangs, HangsInAThread, IgnoresThatItIsCancelled])
def test_its_thread_ends_even_if_a_handler_hangs(
    kind: type[Hangs], loop_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "LEFTOVER_SECONDS", 0.05)
    handler = kind()
    options: Any = {"listen": LOCAL, "loop_factory": loop_factory}
    with ThreadedServer(handler, **options) as server, message_in_progress(server, handler):
        assert server.stop(timeout=0.01) == 1
        assert server._thread is not None
        assert not server._thread.is_alive()
        handler.release.set()


@on_both_loops
def test_the_error_names_a_handler_that_blocks_the_thread(
    loop_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "CUT_SECONDS", 0.05)
    monkeypatch.setattr(threaded, "LEFTOVER_SECONDS", 0.05)
    handler = BlocksTheLoop()
    with pytest.raises(TimeoutError, match=r"Hangs\.handle_DATA blocks it, .*:\d+"):
        with ThreadedServer(
            handler, listen=LOCAL, loop_factory=loop_factory, shutdown_timeout=0.01
        ) as server:
            with message_in_progress(server, handler):
                pass
    handler.release.set()


@on_both_loops
def test_a_handler_that_ends_the_loop_is_reported_at_the_stop(loop_factory: Any) -> None:
    handler = EndsTheLoop()
    with pytest.raises(RuntimeError, match=r"ended the event loop: SystemExit\(3\)"):
        with ThreadedServer(handler, listen=LOCAL, loop_factory=loop_factory) as server:
            with message_in_progress(server, handler):
                pass


def test_a_handler_must_not_stop_its_own_thread() -> None:
    raised: list[BaseException] = []

    class Stops(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            try:
                own.stop()
            except RuntimeError as error:
                raised.append(error)
            return "250 2.0.0 Ok"

    own = ThreadedServer(Stops(), listen=LOCAL)
    with own:
        send(own)
    assert "a handler called stop()" in str(raised[0])


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, ValueError])
def test_it_stops_and_keeps_the_exception_when_its_block_raises(
    raised: type[BaseException],
) -> None:
    with pytest.raises(raised):
        with ThreadedServer(Collect(), listen=LOCAL) as server:
            raise raised
    assert server._thread is not None
    assert not server._thread.is_alive()


def test_a_handler_that_blocks_does_not_hide_the_exception_of_the_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threaded, "CUT_SECONDS", 0.05)
    monkeypatch.setattr(threaded, "LEFTOVER_SECONDS", 0.05)
    handler = BlocksTheLoop()
    with pytest.raises(KeyboardInterrupt):
        with ThreadedServer(handler, listen=LOCAL, shutdown_timeout=0.01) as server:
            with message_in_progress(server, handler):
                raise KeyboardInterrupt
    assert "handle_DATA blocks it" in caplog.text
    handler.release.set()


@on_both_loops
def test_an_interrupt_ends_a_stop_that_waits_for_a_handler(loop_factory: Any) -> None:
    class Interrupts(Hangs):
        async def hang(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.release.set()

    handler = Interrupts()
    server = ThreadedServer(
        handler, listen=LOCAL, loop_factory=loop_factory, shutdown_timeout=PATIENCE * 10
    )
    with pytest.raises(KeyboardInterrupt), server, message_in_progress(server, handler):
        # The stop has begun when the listening socket is closed.
        threading.Thread(target=interrupt_when_it_refuses, args=[server.port]).start()
        server.stop()
    assert handler.release.is_set()


def interrupt_when_it_refuses(port: int) -> None:
    try:
        while True:
            socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        os.kill(os.getpid(), signal.SIGINT)
