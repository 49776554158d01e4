"""The locks of an mbox: fcntl and a lock file, held while a message is written."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.mail import a_mail
from support.mbox import a_message, subjects

from smtpd_fork.sinks import mbox_file
from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert holder.stdin is not None
        with holder.stdin:
            yield


@contextmanager
def with_a_lock_file(path: Path, text: str | None = None) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text(f"{os.getpid()}\n" if text is None else text)
    try:
        yield
    finally:
        lock.unlink()


@pytest.mark.parametrize("held", [locked_by_another_process, with_a_lock_file])
async def test_a_mailbox_locked_until_the_timeout_gets_451(
    held: Any, tmp_path: Path, mbox: Mbox, caplog: pytest.LogCaptureFixture
) -> None:
    with held(tmp_path / "box"):
        assert (await mbox.deliver(a_mail()))[:9] == "451 4.2.0"
        assert (tmp_path / "box").stat().st_size == 0
    assert f"not written: {tmp_path}/box: [Errno" in caplog.text
    assert (await mbox.deliver(a_mail()))[:3] == "250"


@pytest.mark.parametrize("held", [locked_by_another_process, with_a_lock_file])
async def test_a_mailbox_that_is_unlocked_in_time_gets_the_message(
    held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mbox = Mbox(tmp_path / "box", lock_timeout=30)
    tried = threading.Event()
    sleep = time.sleep

    def note(seconds: float) -> None:
        tried.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", note)
    with held(tmp_path / "box"):
        task = asyncio.create_task(mbox.deliver(a_mail()))
        await asyncio.to_thread(tried.wait)
        assert not task.done()
    assert str(await task)[:3] == "250"
    await mbox.close()


async def test_both_locks_are_held_while_a_message_is_written(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    fsync = os.fsync
    asks = (
        "import fcntl, sys\n"
        "try: fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: print('locked')\n"
    )

    def note(descriptor: int) -> None:
        if not seen:
            seen.append((tmp_path / "box.lock").read_text() == f"{os.getpid()}\n")
            command = [sys.executable, "-c", asks, str(tmp_path / "box")]
            seen.append(subprocess.run(command, capture_output=True, check=True).stdout)
            with (
                tmp_path / "box"
            ).open() as other:  # closing this descriptor must not release the lock
                assert other.readable()
            seen.append(subprocess.run(command, capture_output=True, check=True).stdout)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await mbox.deliver(a_mail())
    assert seen == [True, b"locked\n", b"locked\n"]


def without_hard_links(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    number = getattr(errno, error)
    monkeypatch.setattr(os, "link", fail)


@pytest.mark.parametrize("error", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
async def test_a_file_system_without_hard_links_has_a_lock_file_as_well(
    error: str, tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hard_links(monkeypatch, error)
    locks: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        locks.append((tmp_path / "box.lock").read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert str(await mbox.deliver(a_mail()))[:3] == "250"
    assert set(locks) == {f"{os.getpid()}\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    with with_a_lock_file(tmp_path / "box"):
        assert str(await mbox.deliver(a_mail()))[:9] == "451 4.2.0"
    (tmp_path / "box.lock").write_text(f"{a_dead_process()}\n")
    assert str(await mbox.deliver(a_mail()))[:3] == "250"


@pytest.mark.parametrize(("error", "reply"), [("EIO", "451 4.3.0"), ("ENOSPC", "452 4.3.1")])
async def test_an_error_creating_the_lock_file_is_temporary_and_leaves_no_file(
    error: str, reply: str, tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hard_links(monkeypatch, error)
    assert str(await mbox.deliver(a_mail()))[:9] == reply
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def a_dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


@pytest.mark.parametrize(
    ("text", "age", "stale"),
    [
        (lambda: f"{a_dead_process()}\n", 0, True),
        (lambda: f"{a_dead_process()}", 0, True),
        (lambda: "1\n", 0, False),
        (lambda: f"{os.getpid()}\n", 0, False),
        (lambda: f"{os.getpid()}\n", 200_000, True),  # of a former process with our process ID
        (lambda: "0", 0, False),
        (lambda: "", 0, False),
        (lambda: "99999999999999999999", 0, False),
        (lambda: "what?\0", 0, False),
        (lambda: "0", 301, True),
        (lambda: "", 301, True),
        (lambda: "1\n", 301, True),
    ],
)
async def test_only_a_stale_lock_file_is_removed(
    text: Callable[[], str], age: int, stale: bool, tmp_path: Path, mbox: Mbox
) -> None:
    lock = tmp_path / "box.lock"
    lock.write_text(text())
    then = time.time() - age
    os.utime(lock, (then, then))
    assert str(await mbox.deliver(a_mail()))[:3] == ("250" if stale else "451")
    assert lock.exists() is not stale


async def test_a_lock_file_of_a_killed_process_with_our_process_id_is_stale(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box.lock").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(mbox_file, "_STARTED", time.time() + 10)
    assert str(await mbox.deliver(a_mail()))[:3] == "250"


async def test_a_lock_file_that_another_program_has_replaced_is_not_removed(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def take_over(descriptor: int) -> None:
        (tmp_path / "box.lock").unlink()
        (tmp_path / "box.lock").write_text("1\n")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", take_over)
    await mbox.deliver(a_mail())
    assert (tmp_path / "box.lock").read_text() == "1\n"


async def test_a_mailbox_that_a_mail_reader_has_replaced_is_opened_again(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mbox.deliver(a_mail(content=a_message("one")))
    lock = fcntl.fcntl
    replaced: list[bool] = []

    def replace(descriptor: int, command: int, *args: Any) -> Any:
        if command == fcntl.F_OFD_SETLK and not replaced:
            replaced.append(True)
            (tmp_path / "box").rename(tmp_path / "old")
            (tmp_path / "box").write_bytes((tmp_path / "old").read_bytes())
        return lock(descriptor, command, *args)

    monkeypatch.setattr(fcntl, "fcntl", replace)
    await mbox.deliver(a_mail(content=a_message("two")))
    assert subjects(tmp_path / "box") == ["one", "two"]
    assert subjects(tmp_path / "old") == ["one"]
