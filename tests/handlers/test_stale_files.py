"""Stale files in the tmp/ of a Maildir: those that are removed, and those that are kept."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from support.client import Client
from support.daemon import Daemon, messages
from support.disk import left
from support.peers import needs_root
from support.server import serve, until

from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.maildir_directory import STALE_SECONDS, MaildirDirectory, remove_stale

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def test_files_of_36_hours_are_removed_from_tmp_at_the_start(maildir: Maildir) -> None:
    tmp = maildir.path / "tmp"
    for name, age in [("old", STALE_SECONDS + 60), ("young", STALE_SECONDS - 60)]:
        (tmp / name).write_text("half a mess")
        aged(tmp / name, age)
    (maildir.path / "new" / "mail").touch()
    aged(maildir.path / "new" / "mail", STALE_SECONDS * 10)
    maildir.prepare()
    assert left(maildir) == ["new/mail", "tmp/young"]


def test_an_old_file_that_a_process_reads_or_writes_is_kept(maildir: Maildir) -> None:
    now, then = time.time(), time.time() - 2 * STALE_SECONDS
    for name, times in [("read", (now, then)), ("written", (then, now))]:
        (maildir.path / "tmp" / name).touch()
        os.utime(maildir.path / "tmp" / name, times)
    maildir.prepare()
    assert left(maildir) == ["tmp/read", "tmp/written"]


def test_only_regular_files_are_removed_from_tmp(maildir: Maildir, tmp_path: Path) -> None:
    tmp = maildir.path / "tmp"
    target = tmp_path / "target"
    target.touch()
    (tmp / "link").symlink_to(target)
    (tmp / "directory").mkdir()
    os.mkfifo(tmp / "fifo")
    for path in (target, *tmp.iterdir()):
        aged(path, 2 * STALE_SECONDS)
    maildir.prepare()
    assert {path.name for path in tmp.iterdir()} == {"link", "directory", "fifo"}
    assert target.exists()


def test_files_of_other_users_are_kept(maildir: Maildir) -> None:
    needs_root()
    path = maildir.path / "tmp" / "theirs"
    path.touch()
    os.chown(path, 65534, 65534)
    aged(path, 2 * STALE_SECONDS)
    maildir.prepare()
    assert path.exists()


def test_nothing_is_removed_where_tmp_is_a_symbolic_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "old").touch()
    aged(elsewhere / "old", 2 * STALE_SECONDS)
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "tmp").symlink_to(elsewhere)
    Maildir(tmp_path / "M").prepare()
    assert (elsewhere / "old").exists()


def test_one_cleanup_is_limited_and_the_next_continues(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.maildir_directory.CLEAN_FILES", 3)
    for number in range(5):
        aged_file = maildir.path / "tmp" / str(number)
        aged_file.touch()
        aged(aged_file, 2 * STALE_SECONDS)
    remove_stale(MaildirDirectory(str(maildir.path)))
    assert len(left(maildir)) == 2
    remove_stale(MaildirDirectory(str(maildir.path)))
    assert left(maildir) == []


async def test_a_running_server_removes_stale_files_as_well(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.maildir.CLEAN_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    async with serve(maildir) as server, await Client.to(server.addresses[0]) as client:
        old = maildir.path / "tmp" / "old"
        old.touch()
        aged(old, 2 * STALE_SECONDS)
        maildir._clean_at.clear()
        await client.greet()
        assert (await client.deliver()).code == 250
        await until(lambda: not old.exists())
    assert f"removed 1 stale files from {maildir.path / 'tmp'}" in caplog.text


def test_files_of_a_killed_daemon_are_removed_by_a_later_one(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "maildir:M")
    with Daemon(*options, cwd=tmp_path) as daemon:
        daemon.deliver()
        daemon.process.kill()
    draft = tmp_path / "M" / "tmp" / "1.M2P3Q4.mx"
    draft.touch()
    aged(draft, 2 * STALE_SECONDS)
    with Daemon(*options, cwd=tmp_path):
        assert not draft.exists()
    assert len(messages(tmp_path / "M")) == 1
