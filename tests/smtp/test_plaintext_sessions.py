"""Plaintext sessions of a server use a SocketTransport until STARTTLS."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from support.client import Client
from support.handlers import Collect
from support.server import running, serve, until

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp.socket_poll import LoopPoll
from smtpd_fork.smtp.socket_transport import SocketTransport

if TYPE_CHECKING:
    import pytest
    from support.tls import Certificates


async def test_plaintext_sessions_use_a_socket_transport_and_inherit_nodelay() -> None:
    async with (
        serve(Discard()) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        ((connection, _),) = running(server).sessions.all()
        assert type(connection.transport) is SocketTransport
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_without_epoll_the_loop_watches(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    monkeypatch.delattr(select, "epoll")
    handler = Collect()
    async with serve(handler, tls_context=certificates.server) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert type(running(server).sessions._poll) is LoopPoll
            assert (await client.deliver()).code == 250
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.start_tls(certificates.client)
            await client.say("EHLO x")
            assert (await client.deliver()).code == 250


async def test_a_missing_descriptor_for_the_epoll_is_logged_and_the_next_client_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serve(Discard()) as server:
        with monkeypatch.context() as patch:

            def fail() -> None:
                raise OSError(24, "Too many open files")

            patch.setattr(select, "epoll", fail)
            async with await Client.to(server.addresses[0]) as client:
                assert await client.ended()
        assert "no session: [Errno 24] Too many open files" in caplog.text
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()


async def test_unread_replies_are_sent_before_the_handshake(
    certificates: Certificates,
) -> None:
    async with (
        serve(Discard(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        ((connection, _),) = running(server).sessions.all()
        plain = connection.transport
        for each, option in (
            (plain.get_extra_info("socket"), socket.SO_SNDBUF),
            (client.writer.get_extra_info("socket"), socket.SO_RCVBUF),
        ):
            each.setsockopt(socket.SOL_SOCKET, option, 1)  # as little as there can be
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's
        client.send(b"EHLO x\r\n" * 150 + b"STARTTLS\r\n")
        await until(lambda: connection.phase == "handshake" and connection.transport is not plain)
        assert connection.transport.get_write_buffer_size() > 0
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        for _ in range(150):
            assert (await client.reply()).code == 250
        assert (await client.reply()).code == 220
        await client.writer.start_tls(certificates.client, server_hostname="localhost")
        await client.say("EHLO x")
        assert (await client.deliver()).code == 250
