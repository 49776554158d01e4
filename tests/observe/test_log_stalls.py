"""A log target that blocks: mail is accepted, memory is limited, and the daemon can end."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import subprocess
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.daemon import COMMAND, PATIENCE, clean_environment, until
from support.logs import bound, logging_with
from support.server import serve

from smtpd_fork.observe.logs import LogQueue, setup
from smtpd_fork.observe.logs.formats import JsonFormat, TextFormat, for_stream
from smtpd_fork.observe.logs.log_targets import FileTarget, StreamTarget
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = for_stream(TextFormat("%(levelname)s %(message)s"))

log = logging.getLogger("handler.of.a.test")


class Pipe:
    """A pipe, and a reader that reads only on request."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.size = fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, 4096)

    def drain(self, log_queue: LogQueue) -> bytes:
        """Read until the queue is empty."""
        os.set_blocking(self.read, False)
        heard = b""

        def drained() -> bool:
            nonlocal heard
            try:
                heard += os.read(self.read, 1 << 16)
            except BlockingIOError:
                return (
                    log_queue._put_bytes == log_queue._taken_bytes
                    and log_queue._reported == log_queue._dropped + log_queue._failed
                )
            return False

        until(drained, "all is written")
        return heard


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for descriptor in (pipe.read, pipe.write):
        with suppress(OSError):  # a test may have closed it
            os.close(descriptor)


def entry(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": 20, "levelname": "INFO"})


def test_entries_that_do_not_fit_are_dropped_and_their_number_is_logged(pipe: Pipe) -> None:
    with closing(LogQueue(StreamTarget(pipe.write), TEXT, queue_bytes=50_000)) as log_queue:
        log_queue.begin()
        for number in range(10_000):
            log_queue.handle(entry(f"line {number}"))
        assert log_queue._put_bytes - log_queue._taken_bytes < 50_000 + 200
        heard = pipe.drain(log_queue).decode()
    logged = [int(m[1]) for m in re.finditer(r"WARNING (\d+) log entries were lost", heard)]
    # The thread may begin to write meanwhile, so that later entries fit.
    kept = [int(m[1]) for m in re.finditer(r"^INFO line (\d+)$", heard, re.MULTILINE)]
    in_order = sorted(set(kept)) == kept
    assert in_order
    assert 0 < len(kept) < 10_000
    assert len(kept) + sum(logged) == 10_000


def test_the_end_does_not_wait_for_a_pipe_without_a_reader(pipe: Pipe) -> None:
    log_queue = LogQueue(StreamTarget(pipe.write), TEXT)
    log_queue.begin()
    for _ in range(1000):
        log_queue.handle(entry("x" * 100))
    thread = log_queue._thread
    assert thread is not None
    log_queue.end(0.05)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    log_queue.handle(entry("after the end"))  # without waiting
    log_queue.close()
    os.set_blocking(pipe.read, False)
    assert len(os.read(pipe.read, 1 << 20)) <= pipe.size


def test_the_end_writes_the_queued_entries(pipe: Pipe) -> None:
    log_queue = LogQueue(StreamTarget(pipe.write), TEXT)
    log_queue.begin()
    heard: list[str] = []
    for number in range(3000):
        log_queue.handle(entry(f"line {number}"))
    reader = threading.Thread(target=lambda: heard.extend(read_to_end(pipe.read)))
    reader.start()
    log_queue.end(PATIENCE)
    log_queue.handle(entry("after the end"))
    os.close(pipe.write)
    reader.join(PATIENCE)
    assert heard == [*(f"INFO line {number}" for number in range(3000)), "INFO after the end"]
    log_queue.close()


def read_to_end(descriptor: int) -> list[str]:
    with open(descriptor, encoding="utf-8", closefd=False) as file:
        return file.read().splitlines()


def test_a_full_disk_loses_entries_without_mixing_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incomplete line on a full disk is ended before the next line begins."""
    real, room = os.write, [25]

    def write(descriptor: int, data: bytes) -> int:
        if descriptor != target._descriptor:
            return real(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        written = real(descriptor, bytes(data)[: room[0]])
        room[0] -= written
        return written

    target = FileTarget(tmp_path / "log")
    monkeypatch.setattr(os, "write", write)
    with closing(LogQueue(target, TEXT)) as log_queue:
        for number in range(4):
            log_queue.handle(
                entry(f"number {number}")
            )  # 14 bytes each: one entry, and most of another
        assert log_queue._failed == 3
        room[0] = 1000
        log_queue.begin()
        log_queue.handle(entry("room again"))
        until(lambda: log_queue._reported == 3, "the report")
    logged = "WARNING 3 log entries were lost: they could not be written"
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["INFO number 0", "INFO number", "INFO room again", logged]


def test_only_the_thread_waits_for_a_journald_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "JOURNALD", str(tmp_path / "socket"))
    with bound(tmp_path / "socket") as sock, logging_with(log_to="journald") as log_queue:
        log_queue.begin()
        for number in range(2000):  # more than a socket's queue holds (max_dgram_qlen)
            log.info("line %d", number)
        assert log_queue._put_bytes > log_queue._taken_bytes
        heard = [sock.recv(4096).partition(b"\n")[0] for _ in range(2000)]
    assert heard == [b"MESSAGE=line %d" % number for number in range(2000)]


async def test_mail_is_accepted_while_the_log_is_blocked(pipe: Pipe) -> None:
    log_queue = LogQueue(StreamTarget(pipe.write), for_stream(JsonFormat()), queue_bytes=50_000)
    root = logging.getLogger()
    level = root.level
    root.addHandler(log_queue)
    root.setLevel("DEBUG")
    log_queue.begin()
    try:
        async with serve(Discard()) as server:
            for _ in range(100):
                async with await Client.to(server.addresses[0]) as client:
                    await client.greet()
                    assert (await client.deliver()).code == 250
            assert log_queue._put_bytes > log_queue._taken_bytes
            assert log_queue._dropped > 0
        for line in pipe.drain(log_queue).decode().splitlines():
            json.loads(line)
    finally:
        root.setLevel(level)
        root.removeHandler(log_queue)
        log_queue.close()


def test_a_daemon_with_a_blocked_standard_error_accepts_mail_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    options = ("-l", f"unix:{path}", "--handler", "discard", "--log-level", "debug")
    process = subprocess.Popen(
        [*COMMAND, *options], cwd=tmp_path, env=clean_environment(), stderr=write
    )
    try:
        os.close(write)
        until(path.exists, "the socket")
        for _ in range(200):
            session(path)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert all(re.match(r"\d{4}-|$", line) for line in read_to_end(read))
    os.close(read)


def session(path: Path) -> None:
    """Deliver one message."""
    import socket

    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        while sock.connect_ex(str(path)):
            assert time.monotonic() < deadline
        with sock.makefile("rwb") as file:
            assert file.readline().startswith(b"220 ")
            for line in (b"HELO x", b"MAIL FROM:<a@b.c>", b"RCPT TO:<d@e.f>", b"DATA", b"hi\r\n."):
                file.write(line + b"\r\n")
                file.flush()
                assert file.readline()[:1] in b"23"


def test_a_child_process_of_a_handler_writes_its_own_entries(tmp_path: Path) -> None:
    with logging_with(log_to=str(tmp_path / "log")) as log_queue:
        log_queue.begin()
        log.info("of the parent")
        log_queue.end()
        log_queue.begin()
        pid = os.fork()
        if not pid:
            log.info("of the child")
            os._exit(0)
        os.waitpid(pid, 0)
    text = (tmp_path / "log").read_text()
    assert text.count("of the parent") == 1
    assert text.count("of the child") == 1


def test_an_object_that_logs_while_it_is_formatted_causes_no_deadlock(tmp_path: Path) -> None:
    """``__str__`` of an object may log, and so may finalizers, which run at any time."""
    with closing(LogQueue(FileTarget(tmp_path / "log"), TEXT)) as log_queue:
        log_queue.begin()

        class Talks:
            def __str__(self) -> str:
                log_queue.handle(entry("inner"))
                return "outer"

        for _ in range(100):
            log_queue.handle(
                logging.makeLogRecord({"levelname": "INFO", "msg": "%s", "args": (Talks(),)})
            )
    assert (tmp_path / "log").read_text().splitlines() == ["INFO inner", "INFO outer"] * 100


class Counting:
    """A target that counts its writes."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.writes = 0

    def write(self, entries: list[bytes], _late: object) -> int:
        self.writes += 1
        self.entries += entries
        return len(entries)

    def close(self) -> None:
        """Do nothing, as nothing is open."""


def test_successive_entries_are_written_in_batches() -> None:
    target = Counting()
    with closing(LogQueue(target, TEXT)) as log_queue:  # type: ignore[arg-type]
        log_queue.begin()
        log_queue.emit(entry("first"))
        until(lambda: target.entries, "an entry that comes alone is written")
        for number in range(1000):
            log_queue.emit(entry(str(number)))
            time.sleep(0)  # the thread could run
    assert len(target.entries) == 1001
    assert target.writes < 500
