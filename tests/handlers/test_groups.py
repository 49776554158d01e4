"""Messages that wait are written together, but each is stored or fails separately."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
from support.daemon import PATIENCE
from support.filesystem import small_file_system
from support.handlers import a_session, an_envelope
from support.server import until

from smtpd_fork.sinks import Maildir, maildir_writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from aiosmtpd.smtp import Envelope
    from support.disk import Disk, Hang

SERVER = type("Server", (), {"hostname": "mx.example.com"})()


@pytest.fixture
async def maildir(tmp_path: Path) -> AsyncIterator[Maildir]:
    """A Maildir with one thread: messages that arrive while it writes are its next group."""
    sink = Maildir(tmp_path / "M", writers=1)
    sink.prepare()
    yield sink
    await sink.close()


async def deliver(maildir: Maildir, text: str = "hello") -> str:
    envelope: Envelope = an_envelope("a@example.com", "b@example.com")
    envelope.original_content = f"Subject: x\r\n\r\n{text}\r\n".encode()
    return str(await maildir.handle_DATA(SERVER, a_session(), envelope))


async def group(maildir: Maildir, hang: Hang, *texts: str) -> list[asyncio.Task[str]]:
    """Deliver a message, and others while the disk hangs; return the tasks of these."""
    first = asyncio.create_task(deliver(maildir, "first"))
    await until(lambda: hang.begun)
    tasks = [asyncio.create_task(deliver(maildir, text)) for text in texts]
    await asyncio.sleep(0)
    assert not first.done()
    return tasks


async def codes(tasks: list[asyncio.Task[str]]) -> list[str]:
    return [reply[:3] for reply in await asyncio.gather(*tasks)]


def stored(maildir: Maildir) -> list[str]:
    """Return the last lines of the messages in ``new/``; check that there are no other files."""
    assert list((maildir.path / "tmp").iterdir()) == []
    files = (maildir.path / "new").iterdir()
    return sorted(path.read_text().splitlines()[-1] for path in files)


async def test_waiting_messages_are_written_with_one_sync_of_the_directory(
    maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abcde")
        disk.works()
    assert await codes(tasks) == ["250"] * 5
    assert disk.steps.count("sync directory") == 2
    assert disk.steps.count("sync file") == 6
    assert stored(maildir) == ["a", "b", "c", "d", "e", "first"]


async def test_every_file_of_a_group_is_synced_before_the_first_is_renamed(
    maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abc")
        disk.works()
        disk.steps.clear()
    assert await codes(tasks) == ["250"] * 3
    assert disk.steps == [
        *("create", "write") * 3,
        *("sync file", "close file") * 3,
        *("open directory", "rename", "rename", "rename", "sync directory", "close directory"),
    ]


@pytest.mark.parametrize("step", ["create", "write", "sync file", "close file", "rename"])
async def test_an_error_of_one_message_does_not_affect_the_others(
    step: str, maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abc")
        disk.fails(step, errno.EPERM, once=True)
    assert await codes(tasks) == ["451", "250", "250"]
    assert stored(maildir) == ["b", "c", "first"]


@pytest.mark.parametrize("step", ["open directory", "sync directory", "close directory"])
async def test_a_directory_that_cannot_be_synced_fails_all_of_the_group(
    step: str, maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abc")
        disk.fails(step, errno.EIO)
    assert await codes(tasks) == ["451"] * 3
    disk.works()
    assert (await deliver(maildir, "later"))[:3] == "250"
    assert stored(maildir) == ["first", "later"]


async def test_a_cancelled_message_does_not_affect_the_others(maildir: Maildir, disk: Disk) -> None:
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abc")
        again = disk.hangs("sync file")
        hang.release()
        with again:
            await until(lambda: again.begun)
            tasks[1].cancel()
            await asyncio.wait({tasks[1]}, timeout=PATIENCE)
            assert tasks[1].cancelled()
            assert not tasks[0].done()
            disk.works()
    assert await codes([tasks[0], tasks[2]]) == ["250", "250"]
    assert disk.steps.count("rename") == 3
    assert stored(maildir) == ["a", "c", "first"]


async def test_a_message_cancelled_before_its_group_begins_is_freed(
    maildir: Maildir, disk: Disk
) -> None:
    """It is not kept until the disk works again, as it may be large."""
    with disk.hangs("sync file") as hang:
        (task,) = await group(maildir, hang, "a")
        assert maildir._writer is not None
        assert len(maildir._writer._waiting) == 1
        task.cancel()
        await asyncio.wait({task})
        assert len(maildir._writer._waiting) == 0
        disk.works()
    assert disk.steps.count("create") == 1


async def test_the_size_of_a_group_is_limited(
    maildir: Maildir, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maildir_writer, "GROUP_MESSAGES", 4)
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abcdefghij")
        disk.works()
    assert await codes(tasks) == ["250"] * 10
    assert disk.steps.count("sync directory") == 1 + 3


async def test_a_small_message_does_not_wait_for_several_large_ones(
    maildir: Maildir, disk: Disk
) -> None:
    large = "x" * maildir_writer.GROUP_BYTES
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, "a", large, "b", large, "c")
        disk.works()
    assert await codes(tasks) == ["250"] * 5
    assert disk.steps.count("sync directory") == 1 + 3


async def test_waiting_messages_are_stored_before_the_end(maildir: Maildir, disk: Disk) -> None:
    with disk.hangs("sync file") as hang:
        tasks = await group(maildir, hang, *"abc")
        end = asyncio.create_task(maildir.close())
        disk.works()
    await end
    assert stored(maildir) == ["a", "b", "c", "first"]
    assert await codes(tasks) == ["250"] * 3


async def test_during_a_slow_sync_other_files_of_the_group_are_synced(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir = Maildir(tmp_path / "M", writers=3)
    maildir.prepare()
    monkeypatch.setattr(maildir_writer, "GROUPS", 1)
    monkeypatch.setattr(maildir_writer, "SLOW_SYNC_SECONDS", 0.0)
    together = threading.Barrier(3, timeout=PATIENCE)
    fsync, count = os.fsync, 0

    def slow(descriptor: int) -> None:
        nonlocal count
        fsync(descriptor)
        count += 1
        if 4 <= count <= 6:  # the second group without the first two, which are synced alone
            together.wait()

    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, *"abcde")
        monkeypatch.setattr(os, "fsync", slow)
        count = 1
        disk.works()
    assert await codes(tasks) == ["250"] * 5
    await maildir.close()
    assert not together.broken


async def test_two_event_loops_may_use_one_maildir(maildir: Maildir, disk: Disk) -> None:
    replies: list[str] = []
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, "a", "b")
        other = threading.Thread(target=lambda: replies.append(asyncio.run(deliver(maildir, "c"))))
        other.start()
        assert maildir._writer is not None
        waiting = maildir._writer._waiting
        await until(lambda: len(waiting) == 3)
        disk.works()
    assert await codes(tasks) == ["250", "250"]
    await asyncio.to_thread(other.join, PATIENCE)
    assert [reply[:3] for reply in replies] == ["250"]
    assert disk.steps.count("sync directory") == 2


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    with small_file_system(tmp_path / "disk", "64k") as place:
        yield place


async def test_a_message_that_fills_the_disk_does_not_affect_the_others(
    tiny_disk: Path, disk: Disk
) -> None:
    maildir = Maildir(tiny_disk, writers=1)
    maildir.prepare()
    with disk.hangs("close directory") as hang:
        tasks = await group(maildir, hang, "a", "x" * 100_000, "b")
        disk.works()
    assert await codes(tasks) == ["250", "452", "250"]
    await maildir.close()
    assert stored(maildir) == ["a", "b", "first"]
