"""A Maildir for each recipient: each has the message once, and an answer of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from contextlib import suppress
from email import message_from_bytes, message_from_string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster
from hypothesis import given
from hypothesis import strategies as st
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import Daemon
from support.disk import Disk
from support.filesystem import small_file_system
from support.killing import load_until_killed
from support.mail import a_mail
from support.peers import proc
from support.server import greeted, serve, until

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.maildir_directory import STALE_SECONDS
from smtpd_fork.testing import check_sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MESSAGE = "Subject: x\r\n\r\nhello\r\n"


@pytest.fixture
async def maildir(tmp_path: Path) -> AsyncIterator[Maildir]:
    sink = Maildir(tmp_path / "mail" / "{domain}" / "{user}")
    sink.prepare()
    yield sink
    await sink.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def stored(path: Path) -> list[str]:
    """Return the messages of one Maildir."""
    with suppress(FileNotFoundError):
        assert list((path / "tmp").iterdir()) == []
        return [each.read_text() for each in sorted((path / "new").iterdir())]
    return []


def delivered_to(text: str) -> list[str]:
    return message_from_string(text).get_all("Delivered-To", [])


async def test_each_recipient_has_the_message_in_a_maildir_of_its_own(maildir: Maildir) -> None:
    mail = a_mail("One@example.com", "two@example.com", "one+list@EXAMPLE.com", "one@example.net")
    replies = await maildir.deliver(mail)
    assert [reply[:3] for reply in replies] == ["250"] * 4
    root = maildir.path
    (one,), (two,), (net,) = (
        stored(root / name) for name in ("example.com/one", "example.com/two", "example.net/one")
    )
    assert delivered_to(one) == ["One@example.com", "one+list@EXAMPLE.com"]
    assert delivered_to(two) == ["two@example.com"]
    assert delivered_to(net) == ["one@example.net"]
    assert two.splitlines()[0] == "Return-Path: <a@example.org>"
    assert two.endswith("\n\tnow\nSubject: x\n\nhello\n")
    assert (root / "example.com/one/cur").is_dir()
    assert (root / "example.com/one").stat().st_mode & 0o777 == 0o700


async def test_one_reply_for_recipients_of_one_maildir(maildir: Maildir) -> None:
    assert isinstance(await maildir.deliver(a_mail("a@example.com", "a+b@example.com")), str)


async def test_lmtp_has_a_reply_for_each_recipient(maildir: Maildir, disk: Disk) -> None:
    async with serve(maildir, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x")
            (maildir.path / "example.com").mkdir()
            (maildir.path / "example.com" / "b").touch()
            await client.say(
                *("MAIL FROM:<s@example.org>", "RCPT TO:<a@example.com>"),
                *("RCPT TO:<b@example.com>", "DATA"),
            )
            client.send(MESSAGE + ".\r\n")
            codes = [(await client.reply()).code for _ in range(2)]
    assert codes == [250, 451]


async def test_smtp_has_the_worst_reply_and_the_others_have_the_message(maildir: Maildir) -> None:
    (maildir.path / "example.com").mkdir()
    (maildir.path / "example.com" / "b").touch()
    async with greeted(maildir) as client:
        await client.say("MAIL FROM:<s@example.org>", "RCPT TO:<a@example.com>")
        await client.say("RCPT TO:<b@example.com>", "DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 451
    assert len(stored(maildir.path / "example.com/a")) == 1


# -- what strangers send, and owners plant -----------------------------------------------------


@pytest.mark.parametrize(
    "user",
    [
        *('"../x"', '"/etc/x"', '"."', '".."', '""', '"a/b"', '"a\\\\b"', "tmp", "new"),
        *("%2e%2e", "é", "x" * 250, "é" * 80, '" "'),
    ],
)
async def test_every_address_has_a_maildir_of_its_own_below_the_root(
    user: str, maildir: Maildir, tmp_path: Path
) -> None:
    async with greeted(maildir) as client:
        await client.say("MAIL FROM:<a@example.com> SMTPUTF8")
        assert (await client.say(f"RCPT TO:<{user}@example.com>")).code == 250
        await client.say("DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 250
    assert [path.name for path in tmp_path.iterdir()] == ["mail"]
    (folder,) = (maildir.path / "example.com").iterdir()
    assert {path.name for path in folder.iterdir()} == {"tmp", "new", "cur"}
    assert len(stored(folder)) == 1


@pytest.mark.parametrize("link", ["example.com", "example.com/b", "example.com/b/new"])
async def test_a_symbolic_link_below_the_root_is_not_followed(
    link: str, maildir: Maildir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    for name in ("tmp", "new", "cur", "b/tmp", "b/new", "b/cur"):
        (elsewhere / name).mkdir(parents=True)
    path = maildir.path / link
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "cur"):
        if link.endswith("new"):
            (path.parent / name).mkdir()
    path.symlink_to(elsewhere)
    assert str(await maildir.deliver(a_mail()))[:3] == "451"
    assert [each for each in elsewhere.rglob("*") if each.is_file()] == []
    assert f"not written: {maildir.path}/example.com/b: [Errno" in caplog.text


async def test_a_symbolic_link_that_the_administrator_names_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    maildir = Maildir(tmp_path / "link" / "{user}")
    maildir.prepare()
    assert str(await maildir.deliver(a_mail()))[:3] == "250"
    assert len(stored(tmp_path / "real" / "b")) == 1
    await maildir.close()


async def test_a_message_that_was_in_the_mailbox_before_is_a_loop_for_its_recipient_alone(
    maildir: Maildir, caplog: pytest.LogCaptureFixture
) -> None:
    content = b"Received: by x\r\nDELIVERED-TO: B@example.com\r\nSubject: x\r\n\r\n"
    replies = await maildir.deliver(a_mail("a@example.com", "b@example.com", content=content))
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "554 5.4.6"]
    assert stored(maildir.path / "example.com/b") == []
    assert len(stored(maildir.path / "example.com/a")) == 1
    assert str(await maildir.deliver(a_mail(content=content)))[:9] == "554 5.4.6"
    assert "192.0.2.1:4025: mail loop: Delivered-To b@example.com" in caplog.text


async def test_a_loop_is_found_on_the_first_line_and_not_in_the_text(maildir: Maildir) -> None:
    first = b"Delivered-To: b@example.com\r\n\r\nx\r\n"
    assert str(await maildir.deliver(a_mail(content=first)))[:3] == "554"
    quoted = b"Subject: x\r\n\r\nit had\r\nDelivered-To: b@example.com\r\n"
    assert str(await maildir.deliver(a_mail(content=quoted)))[:3] == "250"
    large = b"Subject: x\r\n" * 20_000 + first
    assert str(await maildir.deliver(a_mail(content=large)))[:3] == "554"


# -- create = no -------------------------------------------------------------------------------


def an_existing_one(root: Path, name: str) -> None:
    for each in ("tmp", "new", "cur"):
        (root / name / each).mkdir(parents=True)


async def test_with_create_no_a_recipient_without_a_maildir_is_refused_at_rcpt(
    tmp_path: Path,
) -> None:
    an_existing_one(tmp_path, "b")
    async with greeted(Maildir(tmp_path / "{user}", create=False)) as client:
        await client.say("MAIL FROM:<a@example.com>")
        assert (await client.say("RCPT TO:<B@example.com>")).code == 250
        refused = await client.say("RCPT TO:<c@example.com>")
        assert (refused.code, refused.text[:5]) == (550, "5.1.1")
        await client.say("DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 250
    assert len(stored(tmp_path / "b")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


async def test_a_maildir_that_is_gone_after_rcpt_is_no_mailbox(tmp_path: Path) -> None:
    an_existing_one(tmp_path, "b")
    maildir = Maildir(tmp_path / "{user}", create=False)
    replies = await maildir.deliver(a_mail("b@example.com", "c@example.com"))
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "550 5.1.1"]
    await maildir.close()


async def test_with_create_no_an_extension_without_a_maildir_goes_to_the_user(
    tmp_path: Path,
) -> None:
    an_existing_one(tmp_path, "b")
    an_existing_one(tmp_path, "b/.lists")
    maildir = Maildir(tmp_path / "{user}" / ".{ext}", create=False)
    async with greeted(maildir) as client:
        await client.say("MAIL FROM:<a@example.com>")
        for user, code in [("b", 250), ("b+lists", 250), ("b+other", 250), ("c+lists", 550)]:
            assert (await client.say(f"RCPT TO:<{user}@example.com>")).code == code
        await client.say("DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 250
    found = [delivered_to(text) for text in stored(tmp_path / "b")]
    assert sorted(found) == [["b+other@example.com"], ["b@example.com"]]
    assert len(stored(tmp_path / "b/.lists")) == 1
    assert not (tmp_path / "b/.other").exists()


async def test_it_keeps_the_promise_of_250(tmp_path: Path) -> None:
    def all_stored() -> list[bytes]:
        return [path.read_bytes() for path in tmp_path.rglob("new/*")]

    await check_sink(lambda: Maildir(tmp_path / "{domain}" / "{user}"), all_stored)


async def test_what_is_missing_in_a_maildir_is_made_even_with_create_no(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    maildir = Maildir(tmp_path / "{user}", create=False)
    assert str(await maildir.deliver(a_mail()))[:3] == "250"
    assert len(stored(tmp_path / "b")) == 1
    await maildir.close()


async def test_a_recipient_that_cannot_be_looked_up_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with greeted(Maildir(tmp_path / "{user}", create=False)) as client:
        await client.say("MAIL FROM:<a@example.com>")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            assert (await client.say("RCPT TO:<b@example.com>")).code == 451
    assert "recipient not looked up: can't start new thread" in caplog.text


async def test_an_empty_root_may_be_a_disk_that_is_not_mounted_and_is_temporary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lost+found").mkdir()
    async with greeted(Maildir(tmp_path / "{user}", create=False)) as client:
        await client.say("MAIL FROM:<a@example.com>")
        assert (await client.say("RCPT TO:<b@example.com>")).code == 451
    assert f"{tmp_path} is empty: is its file system mounted?" in caplog.text


def test_with_create_no_a_root_that_is_not_there_is_an_error_of_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "x" / "{user}", tmp_path / "x"):
        maildir = Maildir(path, create=False)
        for call in (maildir.check, maildir.prepare):
            with pytest.raises(CannotCreateError, match=r"x does not exist .*: create=no"):
                call()
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_made_and_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path / "a" / "b" / "{user}")
    maildir.check()
    assert list(tmp_path.iterdir()) == []
    maildir.prepare()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match=r"the directory of Maildirs .*file cannot be"):
        Maildir(tmp_path / "file" / "{user}").check()


# -- the disk ----------------------------------------------------------------------------------


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


async def test_a_new_maildir_is_on_the_disk_before_its_first_message_is(
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


async def test_one_directory_that_cannot_be_synced_is_no_matter_of_the_others(
    maildir: Maildir, disk: Disk
) -> None:
    await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    disk.fails("sync directory", errno.EDQUOT, once=True)
    replies = await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    assert sorted(reply[:9] for reply in replies) == ["250 2.0.0", "452 4.3.1"]
    counts = [len(stored(maildir.path / "example.com" / name)) for name in "ab"]
    assert sorted(counts) == [1, 2]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB below a large one."""
    with small_file_system(tmp_path / "full", "64k") as path:
        yield path


async def test_a_full_disk_of_one_recipient_does_not_lose_the_mail_of_another(
    tmp_path: Path, full: Path
) -> None:
    maildir = Maildir(tmp_path / "{user}")
    content = b"x" * 70 + (b"y" * 70 + b"\r\n") * 2000
    replies = await maildir.deliver(a_mail("full@a.example", "b@a.example", content=content))
    assert [reply[:9] for reply in replies] == ["452 4.3.1", "250 2.0.0"]
    assert stored(full) == []
    assert len(stored(tmp_path / "b")) == 1
    await maildir.close()


async def test_a_disk_that_hangs_for_one_is_451_for_that_one(maildir: Maildir, disk: Disk) -> None:
    maildir.time_limit = 0.2
    await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    async with serve(maildir, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x", "MAIL FROM:<s@example.org>")
            await client.say("RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            with disk.hangs("sync directory"):
                client.send(MESSAGE + ".\r\n")
                codes = [(await client.reply()).code for _ in range(2)]
    assert codes == [451, 451]
    assert len(stored(maildir.path / "example.com/a")) == 1


async def test_what_was_stored_in_time_stays_when_the_rest_was_not(
    tmp_path: Path, disk: Disk
) -> None:
    maildir = Maildir(tmp_path / "{user}", writers=1)
    await maildir.deliver(a_mail("a@example.com", "b@example.com"))
    large = b"x" * (1 << 20)  # a group of its own
    with disk.hangs("sync directory") as hang:
        task = asyncio.create_task(
            maildir.deliver(a_mail("a@example.com", "b@example.com", content=large))
        )
        await until(lambda: hang.begun)
        # Now a's message is being stored, and b's waits.
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


async def test_nothing_blocks_the_loop(maildir: Maildir) -> None:
    blockbuster = BlockBuster()
    async with greeted(maildir) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver()).code == 250
        finally:
            blockbuster.deactivate()


async def test_stale_files_of_a_recipient_are_removed_when_mail_comes(maildir: Maildir) -> None:
    await maildir.deliver(a_mail())
    old = maildir.path / "example.com/b/tmp/old"
    old.touch()
    os.utime(old, (old.stat().st_atime - 2 * STALE_SECONDS,) * 2)
    maildir._clean_at.clear()
    await maildir.deliver(a_mail())
    await until(lambda: not old.exists())


async def test_memory_does_not_grow_with_the_maildirs(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.maildir.CLEAN_MAILDIRS", 3)
    await maildir.deliver(a_mail(*(f"{n}@example.com" for n in range(20))))
    assert len(maildir._clean_at) <= 3


@given(st.binary(max_size=300), st.booleans())
def test_what_came_is_what_is_stored(content: bytes, binary: bool) -> None:
    async def deliver(path: Path) -> None:
        maildir = Maildir(path / "{user}")
        mail = a_mail(content=b"X: y\r\n" + content, body="BINARYMIME" if binary else "8BITMIME")
        assert str(await maildir.deliver(mail))[:3] == "250"
        await maildir.close()

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as directory:
        path = Path(directory)
        patch.setattr(os, "fsync", lambda _: None)
        asyncio.run(deliver(path))
        (file,) = (path / "b" / "new").iterdir()
        came = b"X: y\r\n" + content
        expected = came if binary else came.replace(b"\r\n", b"\n")
        assert file.read_bytes().endswith(b"now\r\n" + expected if binary else b"now\n" + expected)


# -- real servers ------------------------------------------------------------------------------


def test_it_runs_under_aiosmtpds_controller(tmp_path: Path) -> None:
    with client_of_aiosmtpd(Maildir(tmp_path / "{domain}" / "{user}")) as client:
        client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)
    assert len(stored(tmp_path / "example.com/b")) == 1
    assert len(stored(tmp_path / "example.com/c")) == 1


def test_create_no_works_under_aiosmtpds_controller(tmp_path: Path) -> None:
    an_existing_one(tmp_path, "b")
    with client_of_aiosmtpd(Maildir(tmp_path / "{user}", create=False)) as client:
        refused = client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)
    assert {name: reply[0] for name, reply in refused.items()} == {"c@example.com": 550}
    assert len(stored(tmp_path / "b")) == 1


def test_after_kill_9_under_load_each_recipient_has_every_message_that_was_answered_250(
    tmp_path: Path,
) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "maildir:M/{domain}/{user}")
    with Daemon(*options, cwd=tmp_path) as daemon:
        answered = load_until_killed(
            daemon, to=lambda client: ["shared@example.com", f"user{client}@example.com"]
        )
    found: dict[str, set[str]] = {}
    for folder in (tmp_path / "M" / "example.com").iterdir():
        files = [path.read_bytes() for path in (folder / "new").iterdir()]
        assert all(data.endswith(b"\n\nx\n") for data in files)
        found[folder.name] = {str(message_from_bytes(data)["Subject"]) for data in files}
    assert set(answered) <= found.pop("shared")
    for key in answered:
        assert key in found[f"user{key.partition('-')[0]}"]
