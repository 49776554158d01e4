"""Status by HTTP under load: clients that send many requests, or are slow, cannot delay mail."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AsyncExitStack, closing
from typing import Any

import pytest
from support.client import PATIENCE, Client
from support.dialogue import connect
from support.handlers import Collect
from support.server import until
from support.status import PATHS, ask, watched

from smtpd_fork.observe import http_server
from smtpd_fork.sinks import Discard


async def mail_goes_through(server: Any) -> None:
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 250


async def test_concurrent_connections_are_limited_and_others_wait_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    async with watched(Discard()) as seen:
        front = seen.http
        go_on = asyncio.Event()

        async def slow(_: Any) -> http_server.Answer:
            await go_on.wait()
            return http_server.Answer(b"at last")

        front._pages = {**front._pages, "/slow": slow}
        first = [asyncio.create_task(seen.get("/slow")) for _ in range(6)]
        await until(lambda: len(front._open) == 3)
        late = asyncio.create_task(seen.get("/healthz"))
        await mail_goes_through(seen.server)
        await asyncio.sleep(2 * http_server.IDLE_SECONDS)
        assert not late.done()
        assert len(front._open) == 3
        go_on.set()
        assert (await late).status == 200
        assert [page.body for page in await asyncio.gather(*first)] == ["at last"] * 6


WAYS_TO_BE_SLOW = {
    "nothing": b"",
    "a part of a request": b"GET /metr",
    "an endless header": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
    "an answer that is not read": b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("way", WAYS_TO_BE_SLOW)
async def test_slow_clients_do_not_delay_metrics(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are sixty, from one address or several, which connect again when they are ended."""
    monkeypatch.setattr(http_server, "MAX_SECONDS", PATIENCE)
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", PATIENCE)

    async def large(_: Any) -> http_server.Answer:
        return http_server.Answer(bytes(1 << 24))

    async def slow_client(number: int) -> None:
        while True:
            source = (f"127.0.0.{2 + number % 50}", 0)
            reader, writer = await asyncio.open_connection(*seen.address[:2], local_addr=source)
            try:
                writer.write(WAYS_TO_BE_SLOW[way])
                if way == "an answer that is not read":
                    writer.transport.pause_reading()  # type: ignore[attr-defined]
                    await asyncio.sleep(1)
                else:
                    await reader.read()
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()

    async with watched(Discard()) as seen:
        seen.http._pages = {**seen.http._pages, "/large": large}
        slow = [asyncio.create_task(slow_client(n)) for n in range(60)]
        await until(lambda: len(seen.http._open) == http_server.MAX_CONNECTIONS)
        async with asyncio.timeout(5):
            assert (await seen.get("/metrics")).status == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)


async def test_one_client_can_have_at_most_half_of_the_connections_idle() -> None:
    async with watched(Discard()) as seen, AsyncExitStack() as stack:
        front = seen.http
        count = http_server.MAX_IDLE_PER_CLIENT + 4
        for _ in range(count):
            _, writer = await asyncio.open_connection(*seen.address[:2])
            stack.callback(writer.close)
        await until(lambda: len(front._idle()) == count)
        assert (await seen.get("/healthz")).status == 200
        await until(lambda: len(front._open) < http_server.MAX_IDLE_PER_CLIENT)


async def test_new_connections_per_second_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_ACCEPTED_PER_SECOND", 5)
    async with watched(Discard()) as seen:
        front = seen.http
        asking = [asyncio.create_task(seen.get("/healthz")) for _ in range(12)]
        seconds = []
        turn = front._next_second

        def counted() -> None:
            seconds.append(front._accepted)
            turn()

        monkeypatch.setattr(front, "_next_second", counted)
        assert [page.status for page in await asyncio.gather(*asking)] == [200] * 12
        await until(lambda: sum(seconds) == 12)
        assert max(seconds) <= 5


async def test_a_slow_client_is_cut_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_SECONDS", 0.05)
    async with watched(Discard()) as seen:
        for begun in (b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            page = await ask(seen.address, begun)
            assert page.status in {0, 408}
        await until(lambda: not seen.http._open)


async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_SECONDS", 0.2)
    async with watched(Discard()) as seen:

        async def large(_: Any) -> http_server.Answer:
            return http_server.Answer(bytes(1 << 24))

        seen.http._pages = {"/": large}
        with closing(await asyncio.to_thread(connect, seen.address[:2])) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            front = seen.http
            await until(lambda: front._open)
            await mail_goes_through(seen.server)
            await until(lambda: not front._open)


@pytest.mark.parametrize(
    "request_",
    [
        b"\0\xff" * 100 + b"\r\n\r\n",
        b"EHLO client.example\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" * 3,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_garbage_is_answered_or_cut_without_a_log_line(
    request_: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "MAX_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    async with watched(Discard()) as seen:
        before = len(caplog.records)
        page = await ask(seen.address, request_)
        assert "aiohttp" not in str(page)
        assert len(caplog.records) == before, caplog.text
        await mail_goes_through(seen.server)
        assert (await seen.get("/readyz")).status == 200


@pytest.mark.parametrize("pad", [b"X: " + b"y" * 40_000, b"X: y\r\n" * 10_000])
async def test_a_request_that_is_too_long_is_cut(pad: bytes) -> None:
    async with watched(Discard()) as seen:
        page = await ask(seen.address, b"GET / HTTP/1.1\r\n" + pad)
        assert page.status in {0, 400, 431}
        await until(lambda: not seen.http._open)


async def test_a_body_is_not_read() -> None:
    async with watched(Discard()) as seen:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        page = await ask(seen.address, head + b"x" * 1000)
        assert page.status == 405
        await until(lambda: not seen.http._open)


async def test_many_http_clients_do_not_affect_mail() -> None:
    handler = Collect()
    async with watched(handler, max_from_ip=0) as seen:

        async def session() -> None:
            async with await Client.to(seen.server.addresses[0]) as client:
                await client.greet()
                for _ in range(5):
                    assert (await client.deliver()).code == 250

        asked = [seen.get(PATHS[n % len(PATHS)]) for n in range(40)]
        pages, _ = await asyncio.gather(
            asyncio.gather(*asked), asyncio.gather(*(session() for _ in range(10)))
        )
        assert [page.status for page in pages] == [200] * 40
        assert len(handler.messages) == 50


async def test_a_stop_closes_all_connections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched(Discard()) as seen, AsyncExitStack() as stack:
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*seen.address[:2])
            stack.callback(writer.close)
            writer.write(b"GET / HT")
            readers.append(reader)
        await until(lambda: len(seen.http._open) == 3)
        await seen.status.stop()
        for reader in readers:
            assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await seen.get("/healthz")


async def test_mail_has_precedence_when_descriptors_are_scarce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "MAX_ACCEPTED_PER_SECOND", 5)
    async with watched(Discard()) as seen:
        (listener,) = seen.http._listeners
        accept = listener.accept
        failed = 0

        def fails() -> Any:
            nonlocal failed
            failed += 1
            if failed == 1:
                raise OSError(24, "Too many open files")
            return accept()

        monkeypatch.setattr(listener, "accept", fails)
        assert (await seen.get("/healthz")).status == 200  # accepted in the next second
        assert failed == 2
