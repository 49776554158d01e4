"""Mbox: messages, recipients, the files of mailboxes, and real servers."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import Daemon
from support.killing import load_until_killed
from support.mail import a_mail
from support.mbox import subjects
from support.peers import needs_root
from support.server import greeted, serve

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MESSAGE = "Subject: x\r\n\r\nhello\r\n"


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


async def test_each_recipient_gets_the_message_in_its_own_file(tmp_path: Path) -> None:
    mbox = Mbox(tmp_path / "{domain}" / "{user}")
    replies = await mbox.deliver(a_mail("a@x.example", "b@x.example", "a+c@x.example"))
    await mbox.close()
    assert [reply[:3] for reply in replies] == ["250"] * 3
    assert (tmp_path / "x.example/a").read_text().count("Delivered-To") == 2
    assert (tmp_path / "x.example/b").read_text().count("Delivered-To: b@x.example\n") == 1


async def test_many_concurrent_messages_are_all_stored(tmp_path: Path, mbox: Mbox) -> None:
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


async def test_the_event_loop_is_not_blocked(mbox: Mbox) -> None:
    blockbuster = BlockBuster()
    async with greeted(mbox) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver()).code == 250
        finally:
            blockbuster.deactivate()


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
async def test_a_mailbox_has_to_be_a_regular_file_without_links(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    target = tmp_path / "target"
    target.write_text("other's")
    plant(tmp_path / "m" / "b", target)
    mbox = Mbox(tmp_path / "m" / "{user}", lock_timeout=0.1)
    assert str(await mbox.deliver(a_mail()))[:9] == "451 4.3.0"
    assert target.read_text() == "other's"
    with pytest.raises(CannotCreateError, match="expected a regular file without other hard links"):
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


def test_a_directory_that_cannot_be_created_or_written_to_is_an_error(tmp_path: Path) -> None:
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


def test_after_kill_9_under_load_every_accepted_message_is_stored(
    tmp_path: Path,
) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "mbox:box")
    with Daemon(*options, cwd=tmp_path) as daemon:
        text = f"Subject: {{}}\r\n\r\n{'x' * 5000}\r\n".format
        answered = load_until_killed(daemon, text=text)
    with Daemon(*options, cwd=tmp_path) as daemon:  # the remaining lock file is stale
        daemon.deliver("Subject: last\r\n\r\nx\r\n")
    assert set(answered) | {"last"} <= set(subjects(tmp_path / "box"))
    assert not (tmp_path / "box.lock").exists()
