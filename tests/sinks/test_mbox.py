"""Mbox: appended under both locks, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mailbox
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import Daemon
from support.filesystem import small_file_system
from support.killing import load_until_killed
from support.mail import a_mail
from support.peers import needs_root
from support.server import greeted, serve, until

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks import mbox_file
from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

MESSAGE = "Subject: x\r\n\r\nhello\r\n"


@pytest.fixture
async def mbox(tmp_path: Path) -> AsyncIterator[Mbox]:
    sink = Mbox(tmp_path / "box", lock_timeout=0.3)
    sink.prepare()
    yield sink
    await sink.close()


def subjects(path: Path) -> list[str]:
    box = mailbox.mbox(path, create=False)
    try:
        return [str(message["Subject"]) for message in box]
    finally:
        box.close()


def a_message(subject: str, body: bytes = b"hello\r\n") -> bytes:
    return b"Subject: %b\r\n\r\n%b" % (subject.encode(), body)


async def test_a_message_is_appended_with_its_trace_and_the_lock_is_gone(tmp_path: Path) -> None:
    async with greeted(Mbox(tmp_path / "box")) as client:
        reply = await client.deliver("Subject: x\r\n\r\nFrom here\r\n..dot\r\n")
    assert re.fullmatch(r"2\.0\.0 Ok: queued as \S+", reply.text)
    text = (tmp_path / "box").read_text()
    assert re.match(
        r"From a@example\.com \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n"
        r"Return-Path: <a@example.com>\nDelivered-To: b@example.com\nReceived: from ",
        text,
    )
    assert text.endswith("\nSubject: x\n\n>From here\n.dot\n\n")
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o600


async def test_each_recipient_has_the_message_in_a_file_of_its_own(tmp_path: Path) -> None:
    mbox = Mbox(tmp_path / "{domain}" / "{user}")
    replies = await mbox.deliver(a_mail("a@x.example", "b@x.example", "a+c@x.example"))
    await mbox.close()
    assert [reply[:3] for reply in replies] == ["250"] * 3
    assert (tmp_path / "x.example/a").read_text().count("Delivered-To") == 2
    assert (tmp_path / "x.example/b").read_text().count("Delivered-To: b@x.example\n") == 1


async def test_many_messages_at_once_are_all_there(tmp_path: Path, mbox: Mbox) -> None:
    async def one(address: Any, number: int) -> None:
        async with await Client.to(address) as client:
            await client.greet()
            assert (await client.deliver(f"Subject: {number}\r\n\r\nx\r\n")).code == 250

    async with serve(mbox, max_from_ip=0) as server:
        await asyncio.gather(*(one(server.addresses[0], number) for number in range(100)))
    assert sorted(map(int, subjects(tmp_path / "box"))) == list(range(100))


async def test_binarymime_is_not_offered(mbox: Mbox) -> None:
    async with serve(mbox) as server, await Client.to(server.addresses[0]) as client:
        assert "BINARYMIME" not in (await client.greet()).lines


async def test_a_mail_loop_is_not_delivered(mbox: Mbox) -> None:
    content = b"Delivered-To: b@example.com\r\n\r\n"
    assert str(await mbox.deliver(a_mail(content=content)))[:9] == "554 5.4.6"


async def test_nothing_blocks_the_loop(mbox: Mbox) -> None:
    blockbuster = BlockBuster()
    async with greeted(mbox) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver()).code == 250
        finally:
            blockbuster.deactivate()


# -- locks -------------------------------------------------------------------------------------

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
        yield
        assert holder.stdin is not None
        holder.stdin.close()


@contextmanager
def with_a_lock_file(path: Path, text: str | None = None) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text(f"{os.getpid()}\n" if text is None else text)
    yield
    lock.unlink()


@pytest.mark.parametrize("held", [locked_by_another_process, with_a_lock_file])
async def test_a_mailbox_that_is_locked_for_too_long_is_451(
    held: Any, tmp_path: Path, mbox: Mbox, caplog: pytest.LogCaptureFixture
) -> None:
    with held(tmp_path / "box"):
        assert (await mbox.deliver(a_mail()))[:9] == "451 4.2.0"
        assert (tmp_path / "box").stat().st_size == 0
    assert f"not written: {tmp_path}/box: [Errno" in caplog.text
    assert (await mbox.deliver(a_mail()))[:3] == "250"


@pytest.mark.parametrize("held", [locked_by_another_process, with_a_lock_file])
async def test_a_mailbox_that_becomes_free_in_time_gets_the_message(
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
            with (tmp_path / "box").open() as other:  # closing it must not release the lock
                assert other.readable()
            seen.append(subprocess.run(command, capture_output=True, check=True).stdout)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await mbox.deliver(a_mail())
    assert seen == [True, b"locked\n", b"locked\n"]


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
        (lambda: f"{os.getpid()}\n", 200_000, True),  # of a former process with our number
        (lambda: "0", 0, False),
        (lambda: "", 0, False),
        (lambda: "99999999999999999999", 0, False),
        (lambda: "what?\0", 0, False),
        (lambda: "0", 301, True),
        (lambda: "", 301, True),
        (lambda: "1\n", 301, True),
    ],
)
async def test_a_stale_lock_file_is_removed_and_no_other(
    text: Callable[[], str], age: int, stale: bool, tmp_path: Path, mbox: Mbox
) -> None:
    lock = tmp_path / "box.lock"
    lock.write_text(text())
    then = time.time() - age
    os.utime(lock, (then, then))
    assert str(await mbox.deliver(a_mail()))[:3] == ("250" if stale else "451")
    assert lock.exists() is not stale


async def test_a_lock_of_a_process_that_was_killed_with_our_number_is_stale(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box.lock").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(mbox_file, "_STARTED", time.time() + 10)
    assert str(await mbox.deliver(a_mail()))[:3] == "250"


async def test_a_lock_that_another_took_for_stale_is_not_removed(
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


async def test_a_mailbox_that_a_reader_replaces_meanwhile_is_opened_again(
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


# -- the disk ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", "64k") as path:
        yield path


async def test_a_full_disk_is_452_and_the_file_is_as_it_was(tiny_disk: Path) -> None:
    mbox = Mbox(tiny_disk / "box")
    assert str(await mbox.deliver(a_mail(content=a_message("one"))))[:3] == "250"
    before = (tiny_disk / "box").read_bytes()
    large = a_mail(content=a_message("large", b"x" * 100_000))
    assert str(await mbox.deliver(large))[:9] == "452 4.3.1"
    assert (tiny_disk / "box").read_bytes() == before
    assert str(await mbox.deliver(a_mail(content=a_message("two"))))[:3] == "250"
    assert subjects(tiny_disk / "box") == ["one", "two"]
    assert [path.name for path in tiny_disk.iterdir()] == ["box"]
    await mbox.close()


class Group:
    """Messages that are one group: they wait while the disk hangs in the first one's sync."""

    def __init__(self, mbox: Mbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self._mbox = mbox
        self._go, self._begun = threading.Event(), threading.Event()
        self.faults: list[Callable[[int], None]] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        if not self._begun.is_set():
            self._begun.set()
            self._go.wait()
        elif self.faults:
            self.faults.pop(0)(descriptor)
        self._fsync(descriptor)

    async def begin(self, *subjects: str, body: bytes = b"x\r\n") -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(self._mbox.deliver(a_mail(content=a_message("first"))))]
        await until(self._begun.is_set)
        for subject in subjects:
            content = a_message(subject, b"x" * 100_000 if subject == "large" else body)
            tasks.append(asyncio.create_task(self._mbox.deliver(a_mail(content=content))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    def go(self) -> None:
        self._go.set()


async def test_what_waits_is_one_group_with_one_sync(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(mbox, monkeypatch)
    tasks = await group.begin(*"abc")
    synced: list[int] = []
    group.faults = [synced.append] * 9
    group.go()
    assert [reply[:3] for reply in await asyncio.gather(*tasks)] == ["250"] * 4
    assert subjects(tmp_path / "box") == ["first", "a", "b", "c"]
    assert len(synced) == 2  # the directory of the first one, and the group


async def test_one_that_fills_the_disk_leaves_it_to_the_others(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mbox = Mbox(tiny_disk / "box")
    group = Group(mbox, monkeypatch)
    tasks = await group.begin("a", "large", "b")
    group.go()
    assert [reply[:3] for reply in await asyncio.gather(*tasks)] == ["250", "250", "452", "250"]
    assert subjects(tiny_disk / "box") == ["first", "a", "b"]
    await mbox.close()


async def test_a_file_that_cannot_be_synced_is_cut_back(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    group = Group(mbox, monkeypatch)
    tasks = await group.begin(*"ab")
    group.faults = [lambda _: None, fail]
    group.go()
    assert [reply[:3] for reply in await asyncio.gather(*tasks)] == ["250", "451", "451"]
    assert subjects(tmp_path / "box") == ["first"]


async def test_a_file_that_can_be_neither_synced_nor_cut_back_is_named_in_the_log(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        assert str(await mbox.deliver(a_mail()))[:3] == "451"
    said = f"cannot cut {tmp_path}/box to the 0 bytes before an unacknowledged message"
    assert said in caplog.text
    assert not (tmp_path / "box.lock").exists()


async def test_one_that_was_given_up_while_it_was_written_is_taken_out(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(mbox, monkeypatch)
    tasks = await group.begin(*"abc")
    syncing, go = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        syncing.set()
        go.wait()

    group.faults = [lambda _: None, hang]
    group.go()
    await until(syncing.is_set)
    tasks[2].cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    replies = await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert [reply[:3] for reply in replies] == ["250"] * 3
    assert subjects(tmp_path / "box") == ["first", "a", "c"]


async def test_one_that_waits_and_is_given_up_is_never_written(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(mbox, monkeypatch)
    tasks = await group.begin(*"ab")
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    assert mbox._writer is not None
    assert [len(queue) for queue in mbox._writer._waiting.values()] == [1]
    group.go()
    await asyncio.gather(tasks[0], tasks[2])
    assert subjects(tmp_path / "box") == ["first", "b"]


async def test_a_disk_that_hangs_is_451_and_nothing_stays(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.mbox.REMOVE_SECONDS", 0.05)
    mbox.time_limit = 0.1
    group = Group(mbox, monkeypatch)
    async with greeted(mbox) as client:
        assert (await client.deliver()).code == 451
        group.go()
        await mbox.close()
        assert (tmp_path / "box").read_bytes() == b""
        assert (await client.deliver()).code == 250
    assert len(subjects(tmp_path / "box")) == 1


async def test_a_message_for_which_no_thread_can_be_started_is_451(
    mbox: Mbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert str(await mbox.deliver(a_mail()))[:3] == "451"
    assert str(await mbox.deliver(a_mail()))[:3] == "250"
    assert len(subjects(tmp_path / "box")) == 1


@pytest.mark.parametrize("end", [b"From a\nhalf a mess", b"From a\nx\n", b"From a\nx\n\n"])
async def test_a_message_that_another_program_left_half_written_ends_before_the_next(
    end: bytes, tmp_path: Path, mbox: Mbox
) -> None:
    (tmp_path / "box").write_bytes(end)
    await mbox.deliver(a_mail(content=a_message("new")))
    text = (tmp_path / "box").read_bytes()
    assert b"\n\nFrom a@example.org " in text
    assert subjects(tmp_path / "box")[1:] == ["new"]


# -- links and other files ---------------------------------------------------------------------


def a_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


@pytest.mark.parametrize(
    "plant",
    [
        a_link,
        lambda path, target: path.hardlink_to(target),
        lambda path, _: os.mkfifo(path),
        lambda path, _: path.mkdir(),
    ],
    ids=["symbolic link", "hard link", "fifo", "directory"],
)
async def test_only_a_file_of_its_own_is_a_mailbox(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    target = tmp_path / "target"
    target.write_text("other's")
    plant(tmp_path / "m" / "b", target)
    mbox = Mbox(tmp_path / "m" / "{user}", lock_timeout=0.1)
    assert str(await mbox.deliver(a_mail()))[:9] == "451 4.3.0"
    assert target.read_text() == "other's"
    with pytest.raises(CannotCreateError, match="expected a file with one name, and no link"):
        Mbox(tmp_path / "m" / "b").check()
    await mbox.close()


async def test_a_symbolic_link_to_a_directory_below_the_root_is_not_followed(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.example").symlink_to(tmp_path / "etc")
    mbox = Mbox(tmp_path / "m" / "{domain}" / "{user}")
    assert str(await mbox.deliver(a_mail("b@x.example")))[:3] == "451"
    assert list((tmp_path / "etc").iterdir()) == []
    await mbox.close()


def test_a_directory_that_cannot_be_made_or_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "box", tmp_path / "file" / "{user}"):
        for look in (Mbox(path).check, Mbox(path).prepare):
            with pytest.raises(CannotCreateError, match=r"cannot write to the mbox .*file"):
                look()


def test_a_directory_of_another_user_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_root()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CannotCreateError, match="user root cannot write to it"):
        Mbox(tmp_path / "box").check()


# -- real servers ------------------------------------------------------------------------------


def test_it_runs_under_aiosmtpds_controller(tmp_path: Path) -> None:
    with client_of_aiosmtpd(Mbox(tmp_path / "{user}")) as client:
        client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)
    assert subjects(tmp_path / "b") == subjects(tmp_path / "c") == ["x"]


def test_after_kill_9_under_load_every_message_that_was_answered_250_is_there(
    tmp_path: Path,
) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "mbox:box")
    with Daemon(*options, cwd=tmp_path) as daemon:
        text = f"Subject: {{}}\r\n\r\n{'x' * 5000}\r\n".format
        answered = load_until_killed(daemon, text=text)
    with Daemon(*options, cwd=tmp_path) as daemon:  # a lock file that was left is stale
        daemon.deliver("Subject: last\r\n\r\nx\r\n")
    assert set(answered) | {"last"} <= set(subjects(tmp_path / "box"))
    assert not (tmp_path / "box.lock").exists()
