"""Persistent connections to an HTTP server: valid and invalid answers, and the end."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raw_server import raw_server, says
from support.server import until

from smtpd_fork.hops import http_connection
from smtpd_fork.hops.http import WebServer
from smtpd_fork.hops.http_connection import (
    LARGE,
    MOST_HEAD_BYTES,
    ConnectionEndedError,
    HttpAnswer,
    HttpConnection,
    HttpError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

ANSWERS = {
    "length": PLAIN,
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    "provisional": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + PLAIN,
    "closes": PLAIN.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
    "http 1.0": PLAIN.replace(b"1.1", b"1.0"),
    "to the end": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello",
}
KEPT = {"length", "no body", "chunks", "provisional"}


class Transport:
    """A transport that records what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


async def _answered(stream: bytes, cuts: Iterable[int] = ()) -> tuple[Any, bool]:
    """Return the result of a request, and whether its connection is kept."""
    connection, transport = HttpConnection(lambda _: None), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type] # has all methods that are used
    asked = asyncio.create_task(connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"", 100))
    await asyncio.sleep(0)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        connection.data_received(stream[start:end])
    usable = connection.usable
    connection.eof_received()
    try:
        return await asked, usable
    except HttpError as error:
        return type(error), False


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read_completely_with_any_framing(name: str) -> None:
    answer, kept = await _answered(ANSWERS[name])
    assert answer == (HttpAnswer(204, b"") if name == "no body" else HttpAnswer(200, b"hello"))
    assert kept == (name in KEPT or name == "to the end")  # known only at the end


@given(
    st.sampled_from(
        [*ANSWERS.values(), PLAIN * 2, PLAIN[:-1], b"HTTP/1.1 2", b"220 mx\r\n", b"x" * 999]
    ),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_an_answer_does_not_depend_on_how_it_is_split(stream: bytes, cuts: list[int]) -> None:
    assert asyncio.run(_answered(stream, cuts))[0] == asyncio.run(_answered(stream))[0]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX: ", CHUNKED + b"0\r\nX: ", CHUNKED + b"1;a="]
)
async def test_headers_and_chunk_framing_are_bounded(begin: bytes) -> None:
    connection, transport = HttpConnection(lambda _: None), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type] # see above
    asked = asyncio.create_task(connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"", 1 << 20))
    await asyncio.sleep(0)
    connection.data_received(begin)
    for _ in range(MOST_HEAD_BYTES // 1000 + 1):
        assert connection.usable
        connection.data_received(b"a" * 1000)
    with pytest.raises(HttpError, match="more than 65536 bytes"):
        await asked
    assert transport.aborted


async def test_a_body_in_chunks_of_one_byte_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "MOST_HEAD_BYTES", 100)
    chunks = CHUNKED + b"1\r\na\r\n" * 99 + b"0\r\n\r\n"
    assert await _answered(chunks) == (HttpAnswer(200, b"a" * 100), True)


@pytest.mark.parametrize("more", [PLAIN, b"x", b"HTTP/1.1 408 Timeout\r\n\r\n"])
async def test_data_without_a_request_closes_the_connection(more: bytes) -> None:
    assert await _answered(PLAIN + more) == (HttpAnswer(200, b"hello"), False)
    connection, transport = HttpConnection(lambda _: None), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type] # see above
    connection.data_received(more)
    assert transport.aborted
    with pytest.raises(ConnectionEndedError):
        await connection.ask(b"", b"", 100)


async def test_requests_share_a_connection() -> None:
    connections, requests = [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while request := await reader.readuntil(b"\r\n\r\n"):
            requests.append(request)
            writer.write(PLAIN)

    async with raw_server(serve) as port:
        web = _web(f"http://127.0.0.1:{port}/a b?c=%20d")
        for _ in range(3):
            assert await web.ask([("X", "y")], b"", 5) == HttpAnswer(200, b"hello")
        assert len(connections) == len(web._idle) == 1
        await web.close()
        await until(lambda: not web._open)
    assert set(requests) == {
        b"POST /a%%20b?c=%%20d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: smtpd-fork\r\n"
        b"Accept: */*\r\nAccept-Encoding: identity\r\nX: y\r\nContent-Length: 0\r\n\r\n" % port
    }


async def test_an_answer_before_the_end_of_the_request_is_the_answer() -> None:
    async with raw_server(says(PLAIN.replace(b"200 OK", b"413 Too Large"))) as port:
        web = _web(f"http://127.0.0.1:{port}/")
        assert (await web.ask([], b"x" * (100 * LARGE), 5)).status == 413
        assert not web._idle
        await web.close()
        await until(lambda: not web._open)


async def test_when_an_idle_connection_has_ended_the_others_are_closed() -> None:
    answering = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answering.wait()
        writer.write(PLAIN)
        await reader.read(1)  # of the next request

    async with raw_server(serve) as port:
        web = _web(f"http://127.0.0.1:{port}/")
        both = [asyncio.create_task(web.ask([], b"", 5)) for _ in range(2)]
        await until(lambda: len(web._open) == 2)
        answering.set()
        await asyncio.gather(*both)
        with pytest.raises(ConnectionEndedError):
            await web.ask([], b"", 5)
        await until(lambda: not web._open)
        assert (await web.ask([], b"", 5)).status == 200
        await web.close()


@pytest.mark.parametrize("value", ["a\r\nX: z", "a\nb", "a\rb", "a\0b"])
async def test_a_header_value_cannot_inject_a_field(value: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        await _web("http://127.0.0.1:1/").ask([("X", value)], b"", 5)


def _web(url: str) -> WebServer:
    return WebServer(url, connections=9, ca_file=None, extra="rspamd")
