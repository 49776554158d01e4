"""A Maildir for each recipient: each gets the message once, and its own reply."""

from __future__ import annotations

import asyncio
import os
from email import message_from_bytes
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
from support.killing import load_until_killed
from support.mail import a_mail
from support.maildirs import delivered_to, stored
from support.server import greeted, serve, until
from support.sinks import MESSAGE

from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.maildir_directory import STALE_SECONDS
from smtpd_fork.testing import check_sink

if TYPE_CHECKING:
    from support.disk import Disk


async def test_each_recipient_gets_the_message_in_its_own_maildir(maildirs: Maildir) -> None:
    mail = a_mail("One@example.com", "two@example.com", "one+list@EXAMPLE.com", "one@example.net")
    replies = await maildirs.deliver(mail)
    assert [reply[:3] for reply in replies] == ["250"] * 4
    root = maildirs.path
    (one,), (two,), (net,) = (
        stored(root / name) for name in ("example.com/one", "example.com/two", "example.net/one")
    )
    assert delivered_to(one) == ["One@example.com", "one+list@EXAMPLE.com"]
    assert delivered_to(two) == ["two@example.com"]
    assert delivered_to(net) == ["one@example.net"]
    assert two.splitlines()[0] == "Return-Path: <a@example.org>"
    assert two.endswith("\n\tnow\nSubject: hello\n\nhello\n")
    assert (root / "example.com/one/cur").is_dir()
    assert (root / "example.com/one").stat().st_mode & 0o777 == 0o700


async def test_recipients_of_the_same_maildir_have_one_reply(maildirs: Maildir) -> None:
    assert isinstance(await maildirs.deliver(a_mail("a@example.com", "a+b@example.com")), str)


async def test_lmtp_has_a_reply_for_each_recipient(maildirs: Maildir, disk: Disk) -> None:
    async with serve(maildirs, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x")
            (maildirs.path / "example.com").mkdir()
            (maildirs.path / "example.com" / "b").touch()
            await client.say(
                *("MAIL FROM:<s@example.org>", "RCPT TO:<a@example.com>"),
                *("RCPT TO:<b@example.com>", "DATA"),
            )
            client.send(MESSAGE + ".\r\n")
            codes = [(await client.reply()).code for _ in range(2)]
    assert codes == [250, 451]


async def test_smtp_has_the_worst_reply_and_the_other_recipients_get_the_message(
    maildirs: Maildir,
) -> None:
    (maildirs.path / "example.com").mkdir()
    (maildirs.path / "example.com" / "b").touch()
    async with greeted(maildirs) as client:
        await client.say("MAIL FROM:<s@example.org>", "RCPT TO:<a@example.com>")
        await client.say("RCPT TO:<b@example.com>", "DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 451
    assert len(stored(maildirs.path / "example.com/a")) == 1


# -- hostile addresses, and links in Maildirs --------------------------------------------------


@pytest.mark.parametrize(
    "user",
    [
        *('"../x"', '"/etc/x"', '"."', '".."', '""', '"a/b"', '"a\\\\b"', "tmp", "new"),
        *("%2e%2e", "é", "x" * 250, "é" * 80, '" "'),
    ],
)
async def test_every_address_has_its_own_maildir_below_the_root(
    user: str, maildirs: Maildir, tmp_path: Path
) -> None:
    async with greeted(maildirs) as client:
        await client.say("MAIL FROM:<a@example.com> SMTPUTF8")
        assert (await client.say(f"RCPT TO:<{user}@example.com>")).code == 250
        await client.say("DATA")
        client.send(MESSAGE + ".\r\n")
        assert (await client.reply()).code == 250
    assert [path.name for path in tmp_path.iterdir()] == ["mail"]
    (folder,) = (maildirs.path / "example.com").iterdir()
    assert {path.name for path in folder.iterdir()} == {"tmp", "new", "cur"}
    assert len(stored(folder)) == 1


@pytest.mark.parametrize("link", ["example.com", "example.com/b", "example.com/b/new"])
async def test_a_symbolic_link_below_the_root_is_not_followed(
    link: str, maildirs: Maildir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    for name in ("tmp", "new", "cur", "b/tmp", "b/new", "b/cur"):
        (elsewhere / name).mkdir(parents=True)
    path = maildirs.path / link
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "cur"):
        if link.endswith("new"):
            (path.parent / name).mkdir()
    path.symlink_to(elsewhere)
    assert str(await maildirs.deliver(a_mail()))[:3] == "451"
    assert [each for each in elsewhere.rglob("*") if each.is_file()] == []
    assert f"not written: {maildirs.path}/example.com/b: [Errno" in caplog.text


async def test_a_symbolic_link_in_the_configured_path_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    maildir = Maildir(tmp_path / "link" / "{user}")
    maildir.prepare()
    assert str(await maildir.deliver(a_mail()))[:3] == "250"
    assert len(stored(tmp_path / "real" / "b")) == 1
    await maildir.close()


async def test_a_mail_loop_concerns_only_its_recipient(
    maildirs: Maildir, caplog: pytest.LogCaptureFixture
) -> None:
    content = b"Received: by x\r\nDELIVERED-TO: B@example.com\r\nSubject: x\r\n\r\n"
    replies = await maildirs.deliver(a_mail("a@example.com", "b@example.com", content=content))
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "554 5.4.6"]
    assert stored(maildirs.path / "example.com/b") == []
    assert len(stored(maildirs.path / "example.com/a")) == 1
    assert str(await maildirs.deliver(a_mail(content=content)))[:9] == "554 5.4.6"
    assert "192.0.2.7:4711: mail loop: Delivered-To b@example.com" in caplog.text


async def test_a_mail_loop_is_found_in_the_first_line_but_not_in_the_body(
    maildirs: Maildir,
) -> None:
    first = b"Delivered-To: b@example.com\r\n\r\nx\r\n"
    assert str(await maildirs.deliver(a_mail(content=first)))[:3] == "554"
    quoted = b"Subject: x\r\n\r\nit had\r\nDelivered-To: b@example.com\r\n"
    assert str(await maildirs.deliver(a_mail(content=quoted)))[:3] == "250"
    large = b"Subject: x\r\n" * 20_000 + first
    assert str(await maildirs.deliver(a_mail(content=large)))[:3] == "554"


async def test_a_message_is_safe_after_250(tmp_path: Path) -> None:
    def all_stored() -> list[bytes]:
        return [path.read_bytes() for path in tmp_path.rglob("new/*")]

    await check_sink(lambda: Maildir(tmp_path / "{domain}" / "{user}"), all_stored)


async def test_the_event_loop_is_not_blocked(maildirs: Maildir) -> None:
    blockbuster = BlockBuster()
    async with greeted(maildirs) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver()).code == 250
        finally:
            blockbuster.deactivate()


async def test_stale_files_of_a_recipient_are_removed_at_a_delivery(maildirs: Maildir) -> None:
    await maildirs.deliver(a_mail())
    old = maildirs.path / "example.com/b/tmp/old"
    old.touch()
    os.utime(old, (old.stat().st_atime - 2 * STALE_SECONDS,) * 2)
    maildirs._clean_at.clear()
    await maildirs.deliver(a_mail())
    await until(lambda: not old.exists())


async def test_memory_does_not_grow_with_the_number_of_maildirs(
    maildirs: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.maildir.CLEAN_MAILDIRS", 3)
    await maildirs.deliver(a_mail(*(f"{n}@example.com" for n in range(20))))
    assert len(maildirs._clean_at) <= 3


@given(st.binary(max_size=300), st.booleans())
def test_the_stored_message_is_the_received_one(content: bytes, binary: bool) -> None:
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


def test_after_kill_9_under_load_each_recipient_has_every_accepted_message(
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
