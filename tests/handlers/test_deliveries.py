"""Deliveries to a Maildir when the disk fails or hangs, or a delivery is cancelled.

After 250, the message is in new/ exactly once. After any other reply it is not there, and at most a
file in tmp/ remains, which is removed when it is old.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.daemon import messages
from support.disk import STEPS, Disk, left
from support.filesystem import remount, small_file_system
from support.handlers import a_session, an_envelope
from support.server import greeted, serve, until

from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiosmtpd.smtp import Envelope

SERVER = type("Server", (), {"hostname": "mx.example.com"})()


async def test_a_message_is_synced_before_it_is_answered(maildir: Maildir, disk: Disk) -> None:
    async with greeted(maildir) as client:
        await client.deliver()
    assert [step for step in disk.steps if step != "write"] == [s for s in STEPS if s != "write"]


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        *((step, errno.EIO, 451) for step in STEPS),
        ("create", errno.EMFILE, 451),
        ("create", errno.EDQUOT, 452),
        ("write", errno.ENOSPC, 452),
        ("sync file", errno.ENOSPC, 452),
    ],
)
async def test_no_file_remains_after_a_failed_step(
    step: str, number: int, code: int, maildir: Maildir, disk: Disk
) -> None:
    async with greeted(maildir) as client:
        disk.fails(step, number)
        reply = await client.deliver()
        assert reply.code == code
        assert os.strerror(number) not in reply.text
        assert left(maildir) == []
        disk.works()
        assert (await client.deliver()).code == 250
    assert len(left(maildir)) == 1


async def test_a_rename_that_reports_an_error_but_was_done_leaves_no_file(
    maildir: Maildir, disk: Disk
) -> None:
    """As with NFS, if the reply to it is lost."""
    async with greeted(maildir) as client:
        disk.fails("rename", errno.EIO, after=True)
        assert (await client.deliver()).code == 451
    assert left(maildir) == []


async def test_a_file_that_can_neither_be_stored_nor_removed_is_logged(
    maildir: Maildir,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    async with greeted(maildir) as client:
        disk.fails("sync directory", errno.EIO)
        monkeypatch.setattr(os, "unlink", fail)
        assert (await client.deliver()).code == 451
    (name,) = left(maildir)
    assert f"cannot remove the unacknowledged message {maildir.path / name}:" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    with small_file_system(tmp_path / "disk", "1m") as place:
        yield place


async def test_each_message_is_stored_once_after_a_disk_was_read_only(small_disk: Path) -> None:
    maildir = Maildir(small_disk / "M")
    async with greeted(maildir) as client:
        assert (await client.deliver("Subject: 1\r\n\r\n")).code == 250
        remount(small_disk, "ro")
        assert (await client.deliver("Subject: 2\r\n\r\n")).code == 451
        remount(small_disk, "rw")
        assert (await client.deliver("Subject: 2\r\n\r\n")).code == 250
    assert [text[-12:] for text in messages(maildir.path)] == ["Subject: 1\n\n", "Subject: 2\n\n"]
    assert len(left(maildir)) == 2


# -- a disk that hangs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "after"),
    [*((step, False) for step in STEPS), ("rename", True), ("sync directory", True)],
)
async def test_a_message_that_took_too_long_is_not_stored_after_its_451(
    step: str, after: bool, maildir: Maildir, disk: Disk
) -> None:
    async with greeted(maildir, handler_timeout=0.5) as client:
        with disk.hangs(step, after=after) as hang:
            while not hang.begun:  # at once, unless the real disk is slow as well
                reply = await client.deliver()
                assert (reply.code, reply.text[:5]) == (451, "4.3.0")
            assert [name for name in left(maildir) if name.startswith("new/")] == []
            disk.works()
        while (await client.deliver()).code != 250:
            pass
    # The server has stopped, so the thread that hung has ended.
    assert len(left(maildir)) == 1


async def test_a_message_is_removed_when_the_disk_works_again(
    maildir: Maildir, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unlink(2) hangs as well: the reply waits for it at most a second."""
    async with greeted(maildir, handler_timeout=0.1) as client:
        with disk.hangs("sync directory", after=True) as hang:
            unlink = os.unlink

            def hanging(path: str) -> None:
                hang()
                unlink(path)

            monkeypatch.setattr(os, "unlink", hanging)
            assert (await client.deliver()).code == 451
    assert left(maildir) == []


async def test_a_message_that_waits_for_a_hanging_disk_is_never_begun(
    tmp_path: Path, disk: Disk
) -> None:
    maildir = Maildir(tmp_path, writers=1)
    maildir.prepare()
    async with serve(maildir, handler_timeout=0.1) as server:
        async with (
            await Client.to(server.addresses[0]) as first,
            await Client.to(server.addresses[0]) as second,
        ):
            await first.greet()
            await second.greet()
            with disk.hangs("sync file") as hang:
                delivered = asyncio.create_task(first.deliver())
                await until(lambda: hang.begun)
                assert (await second.deliver()).code == 451
                assert (await delivered).code == 451
    assert disk.steps.count("create") == 1
    assert left(maildir) == []


async def test_a_message_for_which_no_thread_can_be_started_is_not_stored_by_another(
    maildir: Maildir, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with serve(maildir) as server:
        async with (
            await Client.to(server.addresses[0]) as first,
            await Client.to(server.addresses[0]) as second,
        ):
            await first.greet()
            await second.greet()
            with disk.hangs("sync file") as hang:
                delivered = asyncio.create_task(first.deliver())
                await until(lambda: hang.begun)
                with monkeypatch.context() as patch:
                    patch.setattr(threading.Thread, "start", fail)
                    reply = await second.deliver()
                assert (reply.code, reply.text[:5]) == (451, "4.3.0")
            assert (await delivered).code == 250
    assert len(left(maildir)) == 1


async def test_a_stop_that_cuts_a_delivery_leaves_nothing_of_it(
    maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs("sync directory", after=True) as hang:
        async with serve(maildir, shutdown_timeout=0.2) as server:
            client = await Client.to(server.addresses[0])
            await client.greet()
            delivered = asyncio.create_task(client.deliver())
            await until(lambda: hang.begun)
            stopped = asyncio.create_task(server.stop())
            assert (await delivered).code in {0, 421}
            hang.release()
            await stopped
            client.writer.close()
    assert left(maildir) == []


# -- races of delivery and cancellation --------------------------------------------------------


def handed_in(maildir: Maildir) -> asyncio.Task[str]:
    envelope: Envelope = an_envelope("a@example.com", "b@example.com")
    envelope.original_content = b"Subject: x\r\n\r\nhello\r\n"
    return asyncio.create_task(maildir.handle_DATA(SERVER, a_session(), envelope))


async def handed_in_and_done(maildir: Maildir) -> asyncio.Task[str]:
    """Deliver a message; the thread has finished it, but the loop has not noticed yet."""
    task = handed_in(maildir)
    await asyncio.sleep(0)
    assert maildir._writer is not None
    maildir._writer._pool.submit(lambda: None).result()
    return task


async def test_a_message_that_was_stored_before_its_cancellation_gets_250(
    tmp_path: Path,
) -> None:
    maildir = Maildir(tmp_path, writers=1)
    maildir.prepare()
    task = await handed_in_and_done(maildir)
    task.cancel()
    assert (await task).startswith("250 ")
    assert len(left(maildir)) == 1
    await maildir.close()


@pytest.mark.parametrize("step", STEPS)
async def test_a_message_that_was_cancelled_before_it_was_stored_is_not_stored(
    step: str, maildir: Maildir, disk: Disk
) -> None:
    with disk.hangs(step) as hang:
        task = handed_in(maildir)
        await until(lambda: hang.begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await maildir.close()
    assert left(maildir) == []


async def test_a_write_that_fails_during_cancellation_is_not_reported_to_the_loop(
    tmp_path: Path, disk: Disk
) -> None:
    maildir = Maildir(tmp_path, writers=1)
    maildir.prepare()
    disk.fails("sync file", errno.EIO)
    task = await handed_in_and_done(maildir)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await maildir.close()
    assert left(maildir) == []


async def test_the_message_of_a_client_that_has_gone_is_stored_once(
    maildir: Maildir, disk: Disk
) -> None:
    """Some clients never wait for the reply; the message that they sent would be lost."""
    async with serve(maildir) as server:
        with disk.hangs("sync file") as hang:
            client = await Client.to(server.addresses[0])
            await client.greet()
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            client.send("Subject: x\r\n\r\nhello\r\n.\r\n")
            await until(lambda: hang.begun)
            client.reset()
    assert len(left(maildir)) == 1


async def test_a_session_continues_after_a_message_stored_at_the_last_moment(
    maildir: Maildir, disk: Disk
) -> None:
    """The expired time limit of the hook is not that of the next command."""

    class Late(Maildir):
        async def _deliver(self, delivery: object) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await super()._deliver(delivery)  # type: ignore[arg-type]  # is one

    async with greeted(Late(maildir.path), handler_timeout=0.1, timeout=1) as client:
        assert (await client.deliver()).code == 250
        assert (await client.reply()).text.startswith("4.4.2")  # the idle timeout's 421
    assert len(left(maildir)) == 1
