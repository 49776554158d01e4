"""Maildirs of several recipients on a disk that is full, fails or hangs: each has its own reply."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from support.client import Client
from support.mail import a_mail
from support.maildirs import stored
from support.peers import proc
from support.server import serve, until
from support.sinks import MESSAGE

from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from support.disk import Disk


async def test_a_group_syncs_each_of_its_directories_once(tmp_path: Path, disk: Disk) -> None:
    maildir = Maildir(tmp_path / "{user}", writers=1)
    maildir.prepare()
    await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    with disk.hangs("create") as hang:
        first = asyncio.create_task(maildir.deliver(a_mail("a@example.com")))
        await until(lambda: hang.begun)
        disk.steps.clear()
        more = [
            asyncio.create_task(maildir.deliver(a_mail("a@example.com", "b@example.com")))
            for _ in range(5)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        disk.works()
    await asyncio.gather(first, *more)
    await maildir.close()
    assert disk.steps.count("sync file") == 11
    assert disk.steps.count("sync directory") == 1 + 2
    assert len(stored(tmp_path / "a")) == 7


async def test_a_new_maildir_is_synced_before_its_first_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc()
    maildir = Maildir(tmp_path / "{domain}" / "{user}")
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(path.removeprefix(str(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await maildir.deliver(a_mail())
    await maildir.close()
    assert synced[:4] == ["", "/example.com", "/example.com/b", "/example.com/b"]
    assert synced[4].startswith("/example.com/b/tmp/")
    assert synced[5:] == ["/example.com/b/new"]


async def test_a_directory_that_cannot_be_synced_does_not_affect_the_others(
    maildirs: Maildir, disk: Disk
) -> None:
    await maildirs.deliver(a_mail("a@example.com", "b@example.com"))
    disk.fails("sync directory", errno.EDQUOT, once=True)
    replies = await maildirs.deliver(a_mail("a@example.com", "b@example.com"))
    assert sorted(reply[:9] for reply in replies) == ["250 2.0.0", "452 4.3.1"]
    counts = [len(stored(maildirs.path / "example.com" / name)) for name in "ab"]
    assert sorted(counts) == [1, 2]


async def test_a_full_disk_of_one_recipient_does_not_affect_another(
    tmp_path: Path, small_disk: Path
) -> None:
    maildir = Maildir(tmp_path / "{user}")
    content = b"x" * 70 + (b"y" * 70 + b"\r\n") * 2000
    replies = await maildir.deliver(a_mail("disk@a.example", "b@a.example", content=content))
    assert [reply[:9] for reply in replies] == ["452 4.3.1", "250 2.0.0"]
    assert stored(small_disk) == []
    assert len(stored(tmp_path / "b")) == 1
    await maildir.close()


async def test_a_hanging_disk_gets_451_only_for_its_recipient(
    maildirs: Maildir, disk: Disk
) -> None:
    maildirs.time_limit = 0.2
    await maildirs.deliver(a_mail("a@example.com", "b@example.com"))
    async with serve(maildirs, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x", "MAIL FROM:<s@example.org>")
            await client.say("RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            with disk.hangs("sync directory"):
                client.send(MESSAGE + ".\r\n")
                codes = [(await client.reply()).code for _ in range(2)]
    assert codes == [451, 451]
    assert len(stored(maildirs.path / "example.com/a")) == 1


async def test_deliveries_that_finished_in_time_keep_their_250(tmp_path: Path, disk: Disk) -> None:
    maildir = Maildir(tmp_path / "{user}", writers=1)
    await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    large = b"x" * (1 << 20)  # a group of its own
    with disk.hangs("sync directory") as hang:
        task = asyncio.create_task(
            maildir.deliver(a_mail("a@example.com", "b@example.com", content=large))
        )
        await until(lambda: hang.begun)
        # Now the message of a is being stored, and that of b waits.
        disk.works()
        again = disk.hangs("create")
        hang.release()
        with again:
            await until(lambda: again.begun)
            task.cancel()
            replies = await task
    await maildir.close()
    assert [reply[:3] for reply in replies] == ["250", "451"]
    assert len(stored(tmp_path / "a")) == 2
    assert len(stored(tmp_path / "b")) == 1
