"""Status by HTTP: health and readiness, and that nobody who asks can hold up mail."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from support.client import PATIENCE, Client
from support.daemon import LOCAL, Daemon, run
from support.daemon import until as until_told
from support.dialogue import begin_data, connect
from support.handlers import Collect
from support.peers import needs_ipv6, proc
from support.place import only_line
from support.server import until
from support.status import ask, get, watched

from smtpd_fork.cli import metrics_listener
from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.observe import http
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path
    from signal import Signals

PATHS = ("/", "/status.json", "/metrics", "/healthz", "/readyz")


# -- what is told ----------------------------------------------------------------------------------


async def test_health_and_readiness_are_told() -> None:
    async with watched(Discard()) as seen:
        assert (await seen.get("/healthz"))[::2] == (200, "ok\n")
        assert (await seen.get("/readyz"))[::2] == (200, "serving\n")


async def test_a_gate_that_is_paused_is_not_ready_and_lives() -> None:
    async with watched(Discard()) as seen:
        seen.server.gate.pause()
        assert (await seen.get("/readyz"))[::2] == (503, "paused\n")
        assert (await seen.get("/healthz")).status == 200
        assert "smtpd_fork_ready 0.0" in (await seen.get("/metrics")).body
        seen.server.gate.resume()
        assert (await seen.get("/readyz")).status == 200


async def test_from_the_first_moment_of_the_stop_it_is_not_ready() -> None:
    async with watched(Discard()) as seen:
        await seen.status.stopping()
        assert (await seen.get("/readyz"))[::2] == (503, "stopping\n")
        assert seen.server.sessions == 0  # and it has not begun to stop even
        async with await Client.to(seen.server.addresses[0]) as client:
            await client.greet()


async def test_before_it_serves_it_is_not_ready() -> None:
    async with watched(Discard()) as seen:
        seen.status._lookout.state = "starting"
        assert (await seen.get("/readyz"))[::2] == (503, "starting\n")


async def test_the_facts_are_told_as_json() -> None:
    async with watched(Discard(), backlog=9, limit_connections=77) as seen:
        async with await Client.to(seen.server.addresses[0]) as client:
            await client.greet("client.example")
            await client.deliver()
            page = await seen.get("/status.json")
            assert page.headers["content-type"] == "application/json"
            facts = json.loads(page.body)
            (one,) = facts.pop("oldest_sessions")
            assert one.pop("seconds") >= 0
            assert one.pop("client").startswith("127.0.0.1:")
            place = str(seen.server.listeners[0])
            assert one == {
                "id": one["id"],
                "proxy": None,
                "helo": "client.example",
                "listener": place,
                "state": "command",
                "tls": False,
                "messages": 1,
            }
            assert facts["states"]["command"] == facts["sessions"] == facts["sources"] == 1
            assert facts["top_sources"] == [{"source": "127.0.0.1", "sessions": 1}]
            assert facts["listeners"] == [{"address": place, "waiting": 0, "at_most": 9}]
            assert (facts["hostname"], facts["limit"], facts["admitted"], facts["refused"]) == (
                *("mx.example.com", 77, 1, {}),
            )
            assert len(facts["refused_by_minute"]) == 60


@pytest.mark.parametrize("path", PATHS)
async def test_every_page_is_told_to_get_and_head_alone(path: str) -> None:
    async with watched(Discard()) as seen:
        page = await seen.get(path)
        head = await seen.get(path, method="HEAD")
        assert (page.status, head.status, head.body) == (200, 200, "")
        assert page.headers["connection"] == "close"
        assert int(head.headers["content-length"]) > 0
        assert "evil.example" not in page.body
        for word in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            other = await seen.get(path, method=word)
            assert (other.status, other.headers["allow"]) == (405, "get, head")


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_safe_in_a_browser(path: str) -> None:
    async with watched(Discard()) as seen:
        headers = (await seen.get(path)).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == (
            *("nosniff", "no-store"),
        )
        assert "aiohttp" not in str(headers)


async def test_another_path_is_not_found() -> None:
    async with watched(Discard()) as seen:
        for path in ("/metrics/", "/../etc/passwd", "/%00", "//", "/x" * 400):
            assert (await seen.get(path)).status == 404
        assert (await seen.get("/readyz?a=b#c")).status == 200


async def test_a_page_that_fails_says_so_and_the_log_has_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched(Discard()) as seen:

        async def fails(_: Any) -> Any:
            raise RuntimeError("a fault of ours")

        seen.status._front._pages = {"/": fails}
        page = await seen.get("/")
        assert (page.status, "fault" in page.body) == (500, False)
        assert "a fault of ours" in caplog.text


async def test_it_is_served_on_a_unix_socket(tmp_path: Path) -> None:
    async with watched(Discard(), at=f"unix:{tmp_path}/status") as seen:
        assert seen.address == str(tmp_path / "status")
        assert (await seen.get("/readyz")).status == 200
        assert (tmp_path / "status").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "status").exists()


async def test_it_is_served_by_ipv6() -> None:
    needs_ipv6()
    async with watched(Discard(), at="[::1]:0") as seen:
        assert (await seen.get("/readyz")).status == 200


# -- who asks too much -----------------------------------------------------------------------------


async def mail_goes_through(server: Any) -> None:
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 250


async def test_so_many_are_answered_at_once_and_the_others_wait_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST", 3)
    async with watched(Discard()) as seen:
        front = seen.status._front
        go_on = asyncio.Event()

        async def slow(_: Any) -> http.Answer:
            await go_on.wait()
            return http.Answer(b"at last")

        front._pages = {**front._pages, "/slow": slow}
        first = [asyncio.create_task(seen.get("/slow")) for _ in range(6)]
        await until(lambda: len(front._open) == 3)
        late = asyncio.create_task(seen.get("/healthz"))
        await mail_goes_through(seen.server)
        await asyncio.sleep(2 * http.IDLE_SECONDS)
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
async def test_slow_clients_do_not_hold_up_metrics(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty of them, from one address or many, that come again at once when they are ended."""
    monkeypatch.setattr(http, "LONGEST_SECONDS", PATIENCE)
    monkeypatch.setattr(http, "REQUEST_SECONDS", PATIENCE)

    async def large(_: Any) -> http.Answer:
        return http.Answer(bytes(1 << 24))

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
        seen.status._front._pages = {**seen.status._front._pages, "/large": large}
        slow = [asyncio.create_task(slow_client(n)) for n in range(60)]
        await until(lambda: len(seen.status._front._open) == http.MOST)
        async with asyncio.timeout(5):
            assert (await seen.get("/metrics")).status == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)


async def test_one_client_keeps_half_of_the_slots_idle_at_most() -> None:
    async with watched(Discard()) as seen, AsyncExitStack() as stack:
        front = seen.status._front
        count = http.MOST_OF_ONE + 4
        for _ in range(count):
            _, writer = await asyncio.open_connection(*seen.address[:2])
            stack.callback(writer.close)
        await until(lambda: len(front._idle()) == count)
        assert (await seen.get("/healthz")).status == 200
        await until(lambda: len(front._open) < http.MOST_OF_ONE)


async def test_so_many_are_accepted_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_A_SECOND", 5)
    async with watched(Discard()) as seen:
        front = seen.status._front
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


async def test_a_slow_client_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_SECONDS", 0.05)
    async with watched(Discard()) as seen:
        for begun in (b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            page = await ask(seen.address, begun)
            assert page.status in {0, 408}
        await until(lambda: not seen.status._front._open)


async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_SECONDS", 0.2)
    async with watched(Discard()) as seen:

        async def large(_: Any) -> http.Answer:
            return http.Answer(bytes(1 << 24))

        seen.status._front._pages = {"/": large}
        with closing(await asyncio.to_thread(connect, seen.address[:2])) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            front = seen.status._front
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
async def test_garbage_is_answered_or_cut_and_nobody_hears_of_it(
    request_: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LONGEST_SECONDS", 0.5)
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
        await until(lambda: not seen.status._front._open)


async def test_a_body_is_not_read() -> None:
    async with watched(Discard()) as seen:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        page = await ask(seen.address, head + b"x" * 1000)
        assert page.status == 405
        await until(lambda: not seen.status._front._open)


async def test_many_who_ask_and_mail_at_the_same_time() -> None:
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


async def test_at_the_stop_whoever_is_connected_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched(Discard()) as seen, AsyncExitStack() as stack:
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*seen.address[:2])
            stack.callback(writer.close)
            writer.write(b"GET / HT")
            readers.append(reader)
        await until(lambda: len(seen.status._front._open) == 3)
        await seen.status.stop()
        for reader in readers:
            assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await seen.get("/healthz")


async def test_without_descriptors_mail_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_A_SECOND", 5)
    async with watched(Discard()) as seen:
        (listener,) = seen.status._front._listeners
        accept = listener.accept
        failed = 0

        def fails() -> Any:
            nonlocal failed
            failed += 1
            if failed == 1:
                raise OSError(24, "Too many open files")
            return accept()

        monkeypatch.setattr(listener, "accept", fails)
        assert (await seen.get("/healthz")).status == 200  # in the next second
        assert failed == 2


# -- the daemon ------------------------------------------------------------------------------------


def fetch(place: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{place}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_daemon_tells_how_it_is_and_that_it_stops(tmp_path: Path, loop: str) -> None:
    options = ("--metrics", "127.0.0.1:0", "--loop", loop)
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        place = daemon.wait_for(r"metrics on (\S+)$")[1]
        assert fetch(place, "/readyz") == (200, "serving\n")
        daemon.deliver()
        told = fetch(place, "/metrics")[1]
        assert 'smtpd_fork_messages_total{outcome="accepted"} 1.0' in told
        assert 'smtpd_fork_sink_seconds_count{sink="discard"} 1.0' in told
        with daemon.smtp() as client:
            begin_data(client)
            daemon.signal(_sigterm())
            daemon.wait_for("stopping: ")
            assert fetch(place, "/readyz") == (503, "stopping\n")
            until_told(lambda: '"data":1' in fetch(place, "/status.json")[1], "DATA in the status")
            assert '"state":"stopping"' in fetch(place, "/status.json")[1]
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            client.close()  # 421 comes next, and smtplib would complain of it
        assert daemon.process.wait(20) == 0  # not stop(): a second signal may be its last
        assert "Traceback" not in daemon.log


def _sigterm() -> Signals:
    from signal import SIGTERM

    return SIGTERM


def test_without_the_option_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        maps = proc(daemon.process.pid, "maps").read_text()
        assert "aiohttp" not in maps
        assert "metrics on" not in daemon.log


@pytest.mark.parametrize(
    ("where", "status", "word"),
    [
        ("127.0.0.1", os.EX_USAGE, "write HOST:PORT"),
        ("127.0.0.1:x", os.EX_USAGE, "not a port"),
        ("smtps:127.0.0.1:1", os.EX_USAGE, "HTTP is spoken there"),
        ("smtp:127.0.0.1:1", os.EX_USAGE, "HTTP is spoken there"),
        ("unix:", os.EX_USAGE, "a path has to follow"),
        ("no-such.invalid:1", os.EX_CONFIG, "cannot listen on"),
        ("unix:none/socket", os.EX_CANTCREAT, "directory does not exist"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(
    tmp_path: Path, where: str, status: int, word: str
) -> None:
    ended = run(*LOCAL, "--metrics", where, cwd=tmp_path)
    assert ended.returncode == status
    line = only_line(ended)
    assert word in line
    assert "--metrics" in line


def test_an_address_that_is_taken_is_one_line(tmp_path: Path, taken: int) -> None:
    ended = run(*LOCAL, "--metrics", f"127.0.0.1:{taken}", cwd=tmp_path)
    assert ended.returncode == os.EX_OSERR
    assert "in use" in only_line(ended)
    ended = run(*LOCAL, "--metrics", f"127.0.0.1:{taken}", "-d", cwd=tmp_path)
    assert (ended.returncode, "in use" in only_line(ended)) == (os.EX_OSERR, True)


def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--metrics", "unix:status.sock", cwd=tmp_path) as daemon:
        page = asyncio.run(get(str(tmp_path / "status.sock"), "/healthz"))
        assert page.status == 200
        assert daemon.stop() == 0
    assert not (tmp_path / "status.sock").exists()


def test_without_the_libraries_a_start_is_one_clear_line(
    command_for_nobody: list[str], tmp_path: Path
) -> None:
    ended = run(*LOCAL, "--metrics", "127.0.0.1:0", cwd=tmp_path, command=command_for_nobody)
    assert ended.returncode == os.EX_CONFIG
    line = only_line(ended)
    assert "aiohttp and prometheus_client: pip install 'smtpd-fork[metrics]'" in line
    assert "--metrics" in line


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_listener, "LIBRARIES", ("aiohttp", "no_such_library"))
    config = DaemonConfig.build({"metrics": "127.0.0.1:0"})
    with pytest.raises(ConfigError, match="need no_such_library: "):
        metrics_listener.open_metrics(config, print)


@pytest.mark.parametrize("text", ["127.0.0.1:9125", "[::1]:9125", "unix:/run/x", "localhost:1"])
def test_addresses_are_read_as_listeners_are(text: str) -> None:
    assert str(metrics_listener.metrics_address(text)) == text
    with pytest.raises(SettingError, match="metrics"):
        metrics_listener.metrics_address("+" + text)
