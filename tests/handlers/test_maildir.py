"""The Maildir: a message is complete or absent, and 250 means that it is on the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from datetime import UTC, datetime
from email import message_from_string
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import Daemon, messages
from support.filesystem import small_file_system
from support.killing import load_until_killed
from support.server import greeted, serve

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.message.trace import above
from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockbuster import BlockBuster
    from support.tls import Certificates


async def test_a_message_is_stored_in_new_with_its_trace_and_unix_line_ends(
    tmp_path: Path,
) -> None:
    async with (
        serve(Maildir(tmp_path / "M")) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet("client.example")
        reply = await client.deliver("Subject: x\r\n\r\nhello\r\n..dot\r\n")
    assert reply.code == 250
    queue_id = re.fullmatch(r"2\.0\.0 Ok: queued as (\S+)", reply.text)
    assert queue_id is not None
    (text,) = messages(tmp_path / "M")
    assert "\r" not in text
    assert text.endswith("Subject: x\n\nhello\n.dot\n")
    head = text.partition("Subject: x")[0].splitlines()
    assert head[:5] == [
        "Return-Path: <a@example.com>",
        "Delivered-To: b@example.com",
        "Received: from client.example ([127.0.0.1])",
        f"\tby mx.example.com (smtpd-fork) with ESMTP id {queue_id[1]}",
        "\tfor <b@example.com>;",
    ]
    when = parsedate_to_datetime(head[5])
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60
    assert list((tmp_path / "M" / "tmp").iterdir()) == []


async def test_received_names_tls_and_the_cipher(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with greeted(Maildir(tmp_path), tls_context=certificates.server) as client:
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        await client.deliver()
    (text,) = messages(tmp_path)
    assert " with ESMTPS id " in text
    assert re.search(r"\n\t\(TLSv1\.\d cipher \S+ bits \d+\)\n", text)


async def test_files_are_private_and_named_by_the_rules_of_maildir(tmp_path: Path) -> None:
    async with greeted(Maildir(tmp_path / "M")) as client:
        await client.deliver()
    (path,) = (tmp_path / "M" / "new").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "M").stat().st_mode) == 0o700
    assert re.fullmatch(r"\d+\.M\d+P\d+Q\d+\.[\w.-]+", path.name)


async def test_many_concurrent_messages_are_all_stored(tmp_path: Path) -> None:
    async def one(address: Any, number: int) -> None:
        async with await Client.to(address) as client:
            await client.greet()
            assert (await client.deliver(f"Subject: {number}\r\n\r\nx\r\n")).code == 250

    async with serve(Maildir(tmp_path), max_from_ip=0) as server:
        await asyncio.gather(*(one(server.addresses[0], number) for number in range(200)))
    subjects = {re.search(r"Subject: (\d+)", text)[1] for text in messages(tmp_path)}  # type: ignore[index]
    assert subjects == {str(number) for number in range(200)}


async def test_nothing_blocks_the_loop(tmp_path: Path, blockbuster: BlockBuster) -> None:
    async with greeted(Maildir(tmp_path)) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver()).code == 250
        finally:
            blockbuster.deactivate()


@pytest.fixture
def blockbuster() -> BlockBuster:
    from blockbuster import BlockBuster

    return BlockBuster()


# -- errors of the disk ------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    with small_file_system(tmp_path / "disk", "64k") as place:
        yield place


async def test_a_full_disk_is_452_and_leaves_no_partial_file(tiny_disk: Path) -> None:
    async with greeted(Maildir(tiny_disk)) as client:
        reply = await client.deliver("x" * 70 + "\r\n" + ("y" * 70 + "\r\n") * 2000)
        assert (reply.code, reply.text[:5]) == (452, "4.3.1")
        assert list((tiny_disk / "new").iterdir()) == []
        assert list((tiny_disk / "tmp").iterdir()) == []
        assert (await client.deliver()).code == 250
    assert len(messages(tiny_disk)) == 1


def test_the_error_names_a_maildir_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match=re.escape(str(tmp_path / "file" / "M"))):
        Maildir(tmp_path / "file" / "M").prepare()


# -- contents of messages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "From a@b Thu Nov 26 08:00:00 2026\r\n",
        "From x\r\n",
        ">From a@b Thu Nov 26 08:00:00 2026\r\n",
        "From a@b Thu\r\n>From c@d Fri\r\n",
    ],
)
async def test_an_mbox_line_above_the_header_becomes_a_field(lines: str, tmp_path: Path) -> None:
    async with greeted(Maildir(tmp_path)) as client:
        await client.deliver(f"{lines}Subject: x\r\nX-Two: 2\r\n\r\nFrom here on\r\n")
    (text,) = messages(tmp_path)
    message = message_from_string(text)
    assert message.keys()[:3] == ["Return-Path", "Delivered-To", "Received"]
    assert message.get_all("Mailbox-Line") == lines.split("\r\n")[:-1]
    assert message.keys()[-2:] == ["Subject", "X-Two"]
    assert message.get_payload() == "From here on\n"


@pytest.mark.parametrize(
    ("message", "below"),
    [
        (b"From x\nTo: y\n\nz\n", b"Mailbox-Line: From x\nTo: y\n\nz\n"),
        (b"From x\r\nTo: y\r\n", b"Mailbox-Line: From x\r\nTo: y\r\n"),
        (b"From now on at 5.\n\nBye\n", b"\nFrom now on at 5.\n\nBye\n"),
        (b"From x\n", b"\nFrom x\n"),
        (b"Fromage\nTo: y\n", b"\nFromage\nTo: y\n"),
        (b"From: x\n\nz\n", b"From: x\n\nz\n"),
        (b"From : x\n\nz\n", b"From : x\n\nz\n"),  # as RFC 822 allowed it
        (b"To: y\nFrom x\n", b"To: y\nFrom x\n"),
        (b"", b""),
    ],
)
def test_only_a_line_of_mbox_above_a_header_is_one(message: bytes, below: bytes) -> None:
    assert b"".join(above(b"A: b\n", message)) == b"A: b\n" + below


def test_a_message_of_mbox_lines_alone_takes_linear_time() -> None:
    lines = b"From x\n" * 300_000
    assert above(b"A: b\n", lines) == (b"A: b\n\n", lines)
    assert above(b"A: b\n", b"x" * 5_000_000)[0] == b"A: b\n\n"


async def test_binary_content_is_stored_unchanged(tmp_path: Path) -> None:
    data = b"Subject: x\r\n\r\n" + bytes(range(256)) + b"\r\r\n\n\r\n\n\r"
    async with serve(Maildir(tmp_path)) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert "BINARYMIME" in (await client.greet()).lines
            await client.say("MAIL FROM:<a@b.example> BODY=BINARYMIME", "RCPT TO:<c@d.example>")
            client.send(b"BDAT %d LAST\r\n" % len(data) + data)
            assert (await client.reply()).code == 250
    (path,) = (tmp_path / "new").iterdir()
    stored = path.read_bytes()
    assert stored.endswith(data)
    head = stored[: -len(data)]
    assert head.startswith(b"Return-Path: <a@b.example>\r\n")
    assert head.count(b"\n") == head.count(b"\r\n") > 4


async def test_a_bare_cr_and_nul_are_stored_unchanged(tmp_path: Path) -> None:
    async with greeted(Maildir(tmp_path), bare_newline="accept") as client:
        await client.deliver("Subject: x\r\n\r\na\rb\0c\r\r\nd\ne\r\n")
    (path,) = (tmp_path / "new").iterdir()
    assert path.read_bytes().endswith(b"Subject: x\n\na\rb\0c\r\nd\ne\n")


# -- kill -9 -----------------------------------------------------------------------------------


def test_after_kill_9_under_load_every_message_that_was_answered_250_is_whole(
    tmp_path: Path,
) -> None:
    body = "".join(f"line {n}: {'x' * 60}\r\n" for n in range(300))
    with Daemon("-l", "127.0.0.1:0", "--handler", "maildir:M", cwd=tmp_path) as daemon:
        template = f"Subject: {{0}}\r\n\r\n{body}end of {{0}}\r\n"
        answered = load_until_killed(daemon, text=template.format)
    found = {}
    for text in messages(tmp_path / "M"):
        message = message_from_string(text)
        key = message["Subject"]
        payload = message.get_payload()
        assert payload == body.replace("\r\n", "\n") + f"end of {key}\n"
        found[key] = True
    assert len(answered) > 150
    assert set(answered) <= set(found)


@pytest.mark.parametrize("body", ["no header at all\r\n", ".\r\n", " continued\r\n"])
async def test_a_message_without_a_header_does_not_extend_the_trace_fields(
    body: str, tmp_path: Path
) -> None:
    async with greeted(Maildir(tmp_path)) as client:
        await client.deliver(body.replace(".", ".."))
    (text,) = messages(tmp_path)
    message = message_from_string(text)
    assert message.get_payload() == body.replace("\r\n", "\n")
    assert "no header" not in str(message["Received"])


def test_a_maildir_of_another_user_is_an_error_with_the_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    mine = f"{os.geteuid()}:{os.getegid()}"
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CannotCreateError, match=rf"denied .*: chown -R {mine} {tmp_path}$"):
        Maildir(tmp_path).prepare()
    owner = f"-o {os.geteuid()} -g {os.getegid()}"
    with pytest.raises(CannotCreateError, match=rf"as root: install -d .* {owner} {tmp_path}/M$"):
        Maildir(tmp_path / "M").prepare()


def test_a_check_names_the_directory_that_its_user_may_not_look_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    seen = {tmp_path, *tmp_path.parents}
    monkeypatch.setattr(os, "access", lambda path, mode: path in seen and mode == os.F_OK)
    said = rf"cannot be created by user .*: Permission denied \({tmp_path}/tmp\); give it to"
    with pytest.raises(CannotCreateError, match=said):
        Maildir(tmp_path).check()


def test_the_page_of_the_container_quotes_the_error_of_a_directory_of_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.maildir.user_name", lambda: "smtpd-fork")  # Dockerfile's
    monkeypatch.setattr(os, "access", lambda path, _: path == Path("/"))
    page = (Path(__file__).parents[2] / "docs/container.md").read_text()
    with pytest.raises(CannotCreateError) as caught:
        Maildir("/var/mail/smtpd-fork").check()
    quoted = str(caught.value).partition(" (")[0]
    assert f"`{quoted} (...); give it" in " ".join(page.split())
