"""Status by HTTP: health, readiness, and the option --metrics of the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon, on_both_loops, run
from support.daemon import until as until_told
from support.dialogue import begin_data
from support.peers import needs_ipv6, proc
from support.place import only_line
from support.status import PATHS, get, watched

from smtpd_fork.cli import metrics_listener
from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path


# -- pages ----------------------------------------------------------------------------------------


async def test_health_and_readiness_are_reported() -> None:
    async with watched(Discard()) as seen:
        assert (await seen.get("/healthz"))[::2] == (200, "ok\n")
        assert (await seen.get("/readyz"))[::2] == (200, "serving\n")


async def test_a_paused_gate_is_healthy_but_not_ready() -> None:
    async with watched(Discard()) as seen:
        seen.server.gate.pause()
        assert (await seen.get("/readyz"))[::2] == (503, "paused\n")
        assert (await seen.get("/healthz")).status == 200
        assert "smtpd_fork_ready 0.0" in (await seen.get("/metrics")).body
        seen.server.gate.resume()
        assert (await seen.get("/readyz")).status == 200


async def test_a_stopping_server_is_not_ready() -> None:
    async with watched(Discard()) as seen:
        await seen.status.stopping()
        assert (await seen.get("/readyz"))[::2] == (503, "stopping\n")
        assert seen.server.sessions == 0  # the stop itself has not begun yet
        async with await Client.to(seen.server.addresses[0]) as client:
            await client.greet()


async def test_a_server_that_does_not_serve_yet_is_not_ready() -> None:
    async with watched(Discard()) as seen:
        seen.status._snapshots.state = "starting"
        assert (await seen.get("/readyz"))[::2] == (503, "starting\n")


async def test_the_state_is_available_as_json() -> None:
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
            assert facts["states"]["command"] == facts["sessions"] == facts["clients"] == 1
            assert facts["top_clients"] == [{"client": "127.0.0.1", "sessions": 1}]
            assert facts["listeners"] == [{"address": place, "waiting": 0, "at_most": 9}]
            assert (facts["hostname"], facts["limit"], facts["admitted"], facts["refused"]) == (
                *("mx.example.com", 77, 1, {}),
            )
            assert len(facts["refused_by_minute"]) == 60


@pytest.mark.parametrize("path", PATHS)
async def test_all_pages_support_only_get_and_head(path: str) -> None:
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
async def test_every_answer_has_security_header_fields(path: str) -> None:
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


async def test_an_unknown_path_is_not_found() -> None:
    async with watched(Discard()) as seen:
        for path in ("/metrics/", "/../etc/passwd", "/%00", "//", "/x" * 400):
            assert (await seen.get(path)).status == 404
        assert (await seen.get("/readyz?a=b#c")).status == 200


async def test_a_page_that_fails_gets_500_and_a_log_entry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched(Discard()) as seen:

        async def fails(_: Any) -> Any:
            raise RuntimeError("a fault of ours")

        seen.http._pages = {"/": fails}
        page = await seen.get("/")
        assert (page.status, "fault" in page.body) == (500, False)
        assert "a fault of ours" in caplog.text


async def test_the_pages_are_served_on_a_unix_socket(tmp_path: Path) -> None:
    async with watched(Discard(), at=f"unix:{tmp_path}/status") as seen:
        assert seen.address == str(tmp_path / "status")
        assert (await seen.get("/readyz")).status == 200
        assert (tmp_path / "status").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "status").exists()


async def test_the_pages_are_served_over_ipv6() -> None:
    needs_ipv6()
    async with watched(Discard(), at="[::1]:0") as seen:
        assert (await seen.get("/readyz")).status == 200


# -- the daemon ------------------------------------------------------------------------------------


def fetch(place: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{place}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@on_both_loops
def test_a_daemon_reports_its_state_and_its_stop(tmp_path: Path, loop: str) -> None:
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
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("stopping: ")
            assert fetch(place, "/readyz") == (503, "stopping\n")
            until_told(lambda: '"data":1' in fetch(place, "/status.json")[1], "DATA in the status")
            assert '"state":"stopping"' in fetch(place, "/status.json")[1]
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            client.close()  # the next reply is 421, for which smtplib would raise an error
        assert daemon.process.wait(20) == 0  # not stop(), as a second signal may cut the sessions
        assert "Traceback" not in daemon.log


def test_without_the_option_no_http_library_is_loaded(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        maps = proc(daemon.process.pid, "maps").read_text()
        assert "aiohttp" not in maps
        assert "metrics on" not in daemon.log


@pytest.mark.parametrize(
    ("where", "status", "word"),
    [
        ("127.0.0.1", os.EX_USAGE, "write HOST:PORT"),
        ("127.0.0.1:x", os.EX_USAGE, "not a port"),
        ("smtps:127.0.0.1:1", os.EX_USAGE, "this address serves HTTP only"),
        ("smtp:127.0.0.1:1", os.EX_USAGE, "this address serves HTTP only"),
        ("unix:", os.EX_USAGE, "unix: needs a path"),
        ("no-such.invalid:1", os.EX_CONFIG, "cannot listen on"),
        ("unix:none/socket", os.EX_CANTCREAT, "directory does not exist"),
    ],
)
def test_an_unusable_address_is_an_error_in_one_line(
    tmp_path: Path, where: str, status: int, word: str
) -> None:
    ended = run(*LOCAL, "--metrics", where, cwd=tmp_path)
    assert ended.returncode == status
    line = only_line(ended)
    assert word in line
    assert "--metrics" in line


def test_an_address_in_use_is_an_error_in_one_line(tmp_path: Path, taken: int) -> None:
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


def test_without_the_libraries_a_start_fails_with_one_clear_line(
    command_for_nobody: list[str], tmp_path: Path
) -> None:
    ended = run(*LOCAL, "--metrics", "127.0.0.1:0", cwd=tmp_path, command=command_for_nobody)
    assert ended.returncode == os.EX_CONFIG
    line = only_line(ended)
    assert "aiohttp and prometheus_client: pip install 'smtpd-fork[metrics]'" in line
    assert "--metrics" in line


def test_the_error_names_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_listener, "LIBRARIES", ("aiohttp", "no_such_library"))
    config = DaemonConfig.build({"metrics": "127.0.0.1:0"})
    with pytest.raises(ConfigError, match="needs no_such_library: "):
        metrics_listener.open_metrics(config, print)


@pytest.mark.parametrize("text", ["127.0.0.1:9125", "[::1]:9125", "unix:/run/x", "localhost:1"])
def test_addresses_have_the_syntax_of_listeners(text: str) -> None:
    assert str(metrics_listener.metrics_address(text)) == text
    with pytest.raises(SettingError, match="metrics"):
        metrics_listener.metrics_address("+" + text)
