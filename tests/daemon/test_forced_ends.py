"""The end of a process in which a handler hangs: it ends in time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import COMMAND, PATIENCE, Daemon, Detached, until
from support.peers import namespaces, proc
from support.server import serve
from support.server import until as until_async
from support.upgrades import Successors

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANGS = """\
import asyncio, ctypes, threading, time
from pathlib import Path

FOREVER = 1000

async def thread():
    await asyncio.to_thread(time.sleep, FOREVER)

async def other_thread():
    threading.Thread(target=time.sleep, args=[FOREVER], name="mine").start()

async def deaf():
    while True:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            pass

async def sleep():
    time.sleep(FOREVER)

async def busy():
    while True: pass

async def c():
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    while True: lock(mutex)  # without Python's lock; a signal does not end it, as it does sleep(3)

class Handler:
    def __init__(self, kind):
        self.hang = globals()[kind]

    async def handle_DATA(self, server, session, envelope):
        Path(__file__).with_name("hangs").touch()
        await self.hang()
        return "250 OK"
"""

KINDS = {
    "thread": "_0 at ",
    "other_thread": "mine at ",
    "deaf": "",
    "sleep": "MainThread at {folder}/hang.py:20 in sleep",
    "busy": "MainThread at {folder}/hang.py:23 in busy",
    "c": "MainThread at {folder}/hang.py:27 in c",
}
"""The text that the log shows for the code that still runs."""


def options(kind: str, *more: str) -> tuple[str, ...]:
    """Return the options of a daemon that hangs with the first message."""
    handler = ("--handler", f"hang:Handler:{kind}")
    files = ("--pid-file", "daemon.pid", "-l", "unix:smtp.sock")
    return ("-l", "127.0.0.1:0", *handler, *files, *more)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return can_hang(tmp_path)


def can_hang(folder: Path) -> dict[str, str]:
    """Return the environment of a daemon whose handlers hang in *folder*, a directory."""
    folder.mkdir(exist_ok=True)
    (folder / "hang.py").write_text(HANGS)
    return {"PYTHONPATH": str(folder)}


@contextmanager
def all_hang(folder: Path, timeout: str, *kinds: str) -> Iterator[list[tuple[Daemon, Path]]]:
    """Run a daemon for each of *kinds*, all during a message; yield them with their directories.

    They run concurrently, as the end of each takes seconds.
    """
    with ExitStack() as stack:
        hanging = []
        for number, kind in enumerate(kinds):
            place = folder / kind
            more = options(
                kind, "--shutdown-timeout", timeout, "--loop", ("uvloop", "asyncio")[number % 2]
            )
            daemon = Daemon(*more, cwd=place, environment=can_hang(place))
            stack.enter_context(daemon)
            stack.enter_context(hang(daemon.port))
            hanging.append((daemon, place))
        for _, place in hanging:
            is_hanging(place)
        yield hanging


def hang(port: int) -> socket.socket:
    """Send a message; its handler does not return."""
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    file = client.makefile("rb")
    for line in ("HELO c", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
        file.readline()
        client.sendall(f"{line}\r\n".encode())
    assert file.readline().startswith(b"354")
    client.sendall(b"hello\r\n.\r\n")
    return client


def is_hanging(folder: Path) -> None:
    until((folder / "hangs").exists, "the handler is called")


def nothing_is_left(folder: Path) -> None:
    assert not (folder / "daemon.pid").exists()
    assert not (folder / "smtp.sock").exists()


def test_a_second_signal_ends_the_daemon_even_if_a_handler_hangs(tmp_path: Path) -> None:
    with all_hang(tmp_path, "1h", *KINDS) as hanging:
        for number in (signal.SIGTERM, signal.SIGINT):  # two of a kind might be one
            for daemon, _ in hanging:
                daemon.signal(number)
        for daemon, place in hanging:
            assert daemon.process.wait(PATIENCE) == os.EX_TEMPFAIL, place.name
            nothing_is_left(place)
            daemon.wait_for("still running: .*" + KINDS[place.name].format(folder=place))


def test_one_signal_ends_the_daemon_after_the_shutdown_timeout(tmp_path: Path) -> None:
    with all_hang(tmp_path, "10ms", "thread", "sleep") as hanging:
        for daemon, _ in hanging:
            daemon.signal(signal.SIGTERM)
        for daemon, place in hanging:
            assert daemon.process.wait(PATIENCE) == os.EX_TEMPFAIL, place.name
            nothing_is_left(place)


def test_a_detached_daemon_ends_even_if_a_handler_hangs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    more = options("sleep", "--shutdown-timeout", "1h")
    with Detached(*more, cwd=tmp_path, environment=environment) as daemon:
        with hang(daemon.port):
            is_hanging(tmp_path)
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.stop(signal.SIGINT)  # two of a kind might be one
        assert "still running: MainThread" in daemon.text
    nothing_is_left(tmp_path)


def test_an_old_process_ends_and_removes_nothing_of_the_new_one(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    more = options("thread", "--shutdown-timeout", "1h")
    with (
        Daemon(*more, cwd=tmp_path, environment=environment) as daemon,
        Successors(daemon) as successors,
        hang(daemon.port) as client,
    ):
        is_hanging(tmp_path)
        new = successors.upgrade()
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == os.EX_TEMPFAIL
        assert (tmp_path / "daemon.pid").read_text() == f"{new}\n"
        with daemon.smtp() as other:
            assert other.noop()[0] == 250
        client.close()


def test_pid_1_of_a_container_ends_with_a_daemon_that_hangs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    first = [*namespaces("--pid", "--fork", "--kill-child", "--mount-proc"), *COMMAND]
    more = options("sleep", "--shutdown-timeout", "1h")
    with (
        Daemon(*more, cwd=tmp_path, environment=environment, command=first) as daemon,
        hang(daemon.port),
    ):
        is_hanging(tmp_path)
        shell = daemon.process.pid
        init = int(proc(shell, "task", shell, "children").read_text())
        os.kill(init, signal.SIGTERM)
        os.kill(init, signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == os.EX_TEMPFAIL
    nothing_is_left(tmp_path)


async def test_the_stop_of_an_embedded_server_has_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smtpd_fork.server.handler_chains.CLOSE_SECONDS", 0.05)
    called, let_go = asyncio.Event(), threading.Event()

    class Hanging(Discard):
        async def handle_DATA(self, *_: Any) -> str:
            called.set()
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.to_thread(let_go.wait)
                    return "250 OK"

        async def close(self) -> None:
            await asyncio.to_thread(let_go.wait)

    async with serve(Hanging()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("hello\r\n.\r\n")
        await called.wait()
        assert await server.stop(0.01) == 1
        assert server.gate.count == 0
        let_go.set()
        await until_async(lambda: len(asyncio.all_tasks()) == 1)
    assert "the handlers did not close within 0.05 s" in caplog.text
