"""Maildirs with create=no: recipients without a Maildir, and the directories that are created."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.mail import a_mail
from support.maildirs import delivered_to, stored
from support.server import greeted
from support.sinks import MESSAGE

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from pathlib import Path


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


async def test_a_maildir_that_is_removed_after_rcpt_gets_550(tmp_path: Path) -> None:
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


async def test_missing_subdirectories_are_created_even_with_create_no(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    maildir = Maildir(tmp_path / "{user}", create=False)
    assert str(await maildir.deliver(a_mail()))[:3] == "250"
    assert len(stored(tmp_path / "b")) == 1
    await maildir.close()


async def test_an_error_in_the_lookup_of_a_recipient_is_temporary(
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


async def test_an_empty_root_is_a_temporary_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lost+found").mkdir()
    async with greeted(Maildir(tmp_path / "{user}", create=False)) as client:
        await client.say("MAIL FROM:<a@example.com>")
        assert (await client.say("RCPT TO:<b@example.com>")).code == 451
    assert f"{tmp_path} is empty: is its file system mounted?" in caplog.text


def test_with_create_no_a_missing_root_is_an_error_at_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "x" / "{user}", tmp_path / "x"):
        maildir = Maildir(path, create=False)
        for call in (maildir.check, maildir.prepare):
            with pytest.raises(CannotCreateError, match=r"x does not exist .*: create=no"):
                call()
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_created_and_a_file_instead_of_it_is_an_error(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path / "a" / "b" / "{user}")
    maildir.check()
    assert list(tmp_path.iterdir()) == []
    maildir.prepare()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match=r"the directory of Maildirs .*file cannot be"):
        Maildir(tmp_path / "file" / "{user}").check()


def test_create_no_works_under_aiosmtpds_controller(tmp_path: Path) -> None:
    an_existing_one(tmp_path, "b")
    with client_of_aiosmtpd(Maildir(tmp_path / "{user}", create=False)) as client:
        refused = client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)
    assert {name: reply[0] for name, reply in refused.items()} == {"c@example.com": 550}
    assert len(stored(tmp_path / "b")) == 1
