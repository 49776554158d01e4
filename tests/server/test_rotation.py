"""Rotation: certificates are reloaded while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.authority import KEPT, RENEWED, Authority, Issued, Volume, copy
from support.client import Client
from support.server import serve, until

from smtpd_fork.server.tls import Rotation, TlsFiles, rotation
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smtpd_fork import Server

BOTH = ["127.0.0.1:0", "smtps:127.0.0.1:0"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the server check the files all the time."""
    monkeypatch.setattr(rotation, "WATCH_SECONDS", 0.005)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make only the test check the files."""
    monkeypatch.setattr(rotation, "WATCH_SECONDS", 3600)


def settings(issued: Issued, **more: Any) -> dict[str, Any]:
    return {"listen": BOTH, "tls_cert": str(issued.cert), "tls_key": str(issued.key), **more}


def shown(client: Client) -> str:
    """Return the serial number of the certificate that a client got."""
    return str(client.writer.get_extra_info("peercert")["serialNumber"]).lstrip("0")


async def serials(server: Server, authority: Authority) -> set[str]:
    """Do a handshake on both listeners; return the serial numbers of the certificates."""
    context = authority.client()
    async with await Client.to(server.addresses[0]) as plain:
        await plain.greet()
        await plain.start_tls(context)
        async with await Client.to(server.addresses[1], tls=context) as client:
            return {shown(plain), shown(client)}


async def test_a_reload_renews_the_certificate_for_new_handshakes_only(
    authority: Authority, old: Issued, new: Issued, never: None
) -> None:
    context, was = authority.client(), old.serial
    async with serve(Discard(), **settings(old)) as server:
        async with (
            await Client.to(server.addresses[1], tls=context) as running,
            await Client.to(server.addresses[0]) as came_before,
        ):
            await running.greet()
            await came_before.greet()
            await running.say("MAIL FROM:<a@example.com>")
            copy(new, old)
            assert await serials(server, authority) == {was}
            await server.reload()
            assert await serials(server, authority) == {new.serial}
            assert (await running.say("RCPT TO:<b@example.com>")).code == 250
            assert shown(running) == was
            await came_before.start_tls(context)
            assert shown(came_before) == new.serial
            await came_before.say("EHLO x")
            assert (await came_before.deliver()).code == 250


def rename_over(old: Issued, new: Issued) -> None:
    """Renew as most programs do: by renaming; the key a moment later."""
    new.cert.rename(old.cert)
    new.key.rename(old.key)


def swap_links(old: Issued, new: Issued) -> None:
    """Renew as certbot does: by replacing symbolic links."""
    for path, target in [(old.cert, new.cert), (old.key, new.key)]:
        link = path.with_suffix(".link")
        link.symlink_to(target)
        link.rename(path)


@pytest.mark.parametrize("renew", [copy, rename_over, swap_links])
async def test_changed_files_are_read_again(
    authority: Authority,
    old: Issued,
    new: Issued,
    quick: None,
    renew: Callable[[Issued, Issued], None],
) -> None:
    renewed = new.serial
    async with serve(Discard(), **settings(old)) as server:
        if renew is copy:
            copy(new, old)
        else:
            renew(old, new)
        await until(lambda: server.certificates[0].names[-1] == "renewed.example")
        assert await serials(server, authority) == {renewed}


async def test_a_changed_link_within_the_path_is_detected(
    tmp_path: Path, authority: Authority, old: Issued, new: Issued, quick: None
) -> None:
    volume = Volume(tmp_path / "volume", old)
    _, cert, _, key = volume.options
    async with serve(Discard(), listen=BOTH, tls_cert=cert, tls_key=key) as server:
        volume.put(new)
        await until(lambda: server.certificates[0].names[-1] == "renewed.example")
        assert await serials(server, authority) == {new.serial}


async def test_further_certificates_and_the_client_ca_are_watched_as_well(
    tmp_path: Path, authority: Authority, old: Issued, new: Issued, quick: None
) -> None:
    second = authority.issue("second", "second.example")
    ca = tmp_path / "clients.pem"
    shutil.copy(authority.ca, ca)
    options = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_cert": [str(old.cert), str(second.cert)],
        "tls_key": [str(old.key), str(second.key)],
        "tls_client_ca": str(ca),
    }
    other = Authority(tmp_path, "other")
    relay = other.issue("relay", "relay.example")
    context = authority.client(relay)
    async with serve(Discard(), **options) as server:
        copy(new, second)
        await until(lambda: "renewed.example" in server.certificates[1].names)
        async with await Client.to(server.addresses[0], tls=context) as client:
            assert (await client.reply()).code == 0  # issued by another CA
        assert server._tls._rotation is not None
        before = server._tls._rotation.current.context
        shutil.copy(other.ca, ca)
        current = server._tls._rotation.current
        await until(lambda: current.context is not before)
        async with await Client.to(server.addresses[0], tls=context) as client:
            assert (await client.greet()).code == 250


# -- unusable files ----------------------------------------------------------------------------


def other_key(old: Issued, new: Issued) -> None:
    old.key.write_bytes(new.key.read_bytes())


def cut(old: Issued, _: Issued) -> None:
    old.cert.write_bytes(old.cert.read_bytes()[:300])


def emptied(old: Issued, _: Issued) -> None:
    old.cert.write_bytes(b"")


def removed(old: Issued, _: Issued) -> None:
    old.cert.unlink()


def a_pipe(old: Issued, _: Issued) -> None:
    old.key.unlink()
    os.mkfifo(old.key)


def a_loop(old: Issued, _: Issued) -> None:
    old.cert.unlink()
    old.cert.symlink_to(old.cert)


@pytest.mark.parametrize("spoil", [other_key, cut, emptied, removed, a_pipe, a_loop])
async def test_unusable_files_are_logged_once_and_the_old_certificate_is_kept(
    authority: Authority,
    old: Issued,
    new: Issued,
    quick: None,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Issued, Issued], None],
) -> None:
    was, looks = old.serial, 0
    options = settings(old)

    def said() -> list[str]:
        return [text for text in caplog.messages if text.startswith(KEPT)]

    with caplog.at_level(logging.INFO, "smtpd_fork"):
        async with serve(Discard(), **options) as server:
            assert server._tls._rotation is not None
            check_files = server._tls._rotation.check_files

            async def counted() -> None:
                nonlocal looks
                await check_files()
                looks += 1

            server._tls._rotation.check_files = counted  # type: ignore[method-assign]
            spoil(old, new)
            await until(said)
            enough = looks + 10
            await until(lambda: looks > enough)
            assert len(said()) == 1
            assert str(old.cert) in said()[0] or str(old.key) in said()[0]
            assert "\n" not in said()[0]
            await server.reload()
            assert len(said()) == 1  # nothing has changed since then
            assert await serials(server, authority) == {was}
            for path in (old.cert, old.key):
                path.unlink(missing_ok=True)
            copy(new, old)
            await until(lambda: server.certificates[0].names[-1] == "renewed.example")
            assert await serials(server, authority) == {new.serial}


async def test_an_incomplete_file_is_not_read_until_it_is_complete(
    authority: Authority, old: Issued, new: Issued, never: None, caplog: pytest.LogCaptureFixture
) -> None:
    whole, was = new.cert.read_bytes(), old.serial
    with caplog.at_level(logging.INFO, "smtpd_fork"):
        async with serve(Discard(), **settings(old)) as server:
            assert server._tls._rotation is not None
            old.key.write_bytes(new.key.read_bytes())
            for end in (0, 100, len(whole) // 2, len(whole) - 1, len(whole)):
                await server._tls._rotation.check_files()
                assert await serials(server, authority) == {was}
                old.cert.write_bytes(whole[:end])
            await server._tls._rotation.check_files()
            assert await serials(server, authority) == {was}
            await server._tls._rotation.check_files()  # the second check without a change
            assert await serials(server, authority) == {new.serial}
    assert KEPT not in caplog.text
    assert caplog.text.count(RENEWED) == 1


async def test_files_that_a_reload_has_read_are_not_read_again_by_the_watch(
    old: Issued, new: Issued, never: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "smtpd_fork"):
        async with serve(Discard(), **settings(old)) as server:
            assert server._tls._rotation is not None
            copy(new, old)
            await asyncio.gather(
                server.reload(), server._tls._rotation.check_files(), server.reload()
            )
            for _ in range(3):
                await server._tls._rotation.check_files()
    assert caplog.text.count(RENEWED) == 1


async def test_an_exception_during_a_check_does_not_end_the_watch(
    old: Issued,
    new: Issued,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    signature, fails = TlsFiles.signature, [True]

    def flaky(self: TlsFiles) -> Any:
        if fails:
            raise MemoryError
        return signature(self)

    async with serve(Discard(), **settings(old)) as server:
        monkeypatch.setattr(TlsFiles, "signature", flaky)
        await until(lambda: "cannot check the TLS files for changes" in caplog.text)
        fails.clear()
        copy(new, old)
        await until(lambda: server.certificates[0].names[-1] == "renewed.example")


async def test_a_certificate_that_expires_soon_is_logged_every_day(
    authority: Authority, never: None, caplog: pytest.LogCaptureFixture
) -> None:
    soon = authority.issue("soon", "localhost", ends=timedelta(days=3))
    async with serve(Discard(), **settings(soon)) as server:
        assert server._tls._rotation is not None
        caplog.clear()
        await server._tls._rotation.check_files()
        assert caplog.messages == []
        server._tls._rotation._reminded -= rotation.REMINDER
        await server._tls._rotation.check_files()
        await server._tls._rotation.check_files()
    assert len([text for text in caplog.messages if "expires in 2 days" in text]) == 1


async def test_a_stopped_server_does_not_watch_the_files(old: Issued, quick: None) -> None:
    async with serve(Discard(), **settings(old)) as server:
        assert isinstance(server._tls._rotation, Rotation)
        task = server._tls._rotation._watching
        assert task is not None
        assert not task.done()
    assert task.done()
