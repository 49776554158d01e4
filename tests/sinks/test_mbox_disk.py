"""Mbox on a disk that is full, fails or hangs: a message is stored completely or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.mail import a_mail
from support.mbox import a_message, subjects
from support.server import greeted, until

from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def test_a_full_disk_gets_452_and_the_file_is_unchanged(small_disk: Path) -> None:
    mbox = Mbox(small_disk / "box")
    assert str(await mbox.deliver(a_mail(content=a_message("one"))))[:3] == "250"
    before = (small_disk / "box").read_bytes()
    large = a_mail(content=a_message("large", b"x" * 100_000))
    assert str(await mbox.deliver(large))[:9] == "452 4.3.1"
    assert (small_disk / "box").read_bytes() == before
    assert str(await mbox.deliver(a_mail(content=a_message("two"))))[:3] == "250"
    assert subjects(small_disk / "box") == ["one", "two"]
    assert [path.name for path in small_disk.iterdir()] == ["box"]
    await mbox.close()


class Group:
    """Messages of one group: they wait while the disk hangs in the sync of the first message."""

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


async def test_waiting_messages_form_one_group_with_one_sync(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(mbox, monkeypatch)
    tasks = await group.begin(*"abc")
    synced: list[int] = []
    group.faults = [synced.append] * 9
    group.go()
    assert [reply[:3] for reply in await asyncio.gather(*tasks)] == ["250"] * 4
    assert subjects(tmp_path / "box") == ["first", "a", "b", "c"]
    assert len(synced) == 2  # of the directory for the first message, and of the group


async def test_a_message_that_fills_the_disk_does_not_affect_the_others(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mbox = Mbox(small_disk / "box")
    group = Group(mbox, monkeypatch)
    tasks = await group.begin("a", "large", "b")
    group.go()
    assert [reply[:3] for reply in await asyncio.gather(*tasks)] == ["250", "250", "452", "250"]
    assert subjects(small_disk / "box") == ["first", "a", "b"]
    await mbox.close()


async def test_a_file_that_cannot_be_synced_is_truncated(
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


async def test_a_file_that_can_be_neither_synced_nor_truncated_is_logged(
    tmp_path: Path, mbox: Mbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        assert str(await mbox.deliver(a_mail()))[:3] == "451"
    said = f"cannot truncate {tmp_path}/box to the 0 bytes before an unacknowledged message"
    assert said in caplog.text
    assert not (tmp_path / "box.lock").exists()


async def test_a_message_that_is_given_up_while_it_is_written_is_removed(
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


async def test_a_waiting_message_that_is_given_up_is_never_written(
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


async def test_a_hanging_disk_gets_451_and_the_message_is_removed(
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


async def test_a_message_gets_451_if_no_thread_can_be_started(
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
async def test_an_incomplete_message_of_another_program_is_ended_before_the_next(
    end: bytes, tmp_path: Path, mbox: Mbox
) -> None:
    (tmp_path / "box").write_bytes(end)
    await mbox.deliver(a_mail(content=a_message("new")))
    text = (tmp_path / "box").read_bytes()
    assert b"\n\nFrom a@example.org " in text
    assert subjects(tmp_path / "box")[1:] == ["new"]
