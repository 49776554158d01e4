"""Access to the fleet's Redis: passwords, users, TLS, unix sockets and Sentinel."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from support.daemon import LOCAL, Daemon
from support.fleet import (
    arrivals,
    close_all,
    fleet,
    nodes,
    outage_lines,
    until,
    wait_until_all_sent,
)
from support.peers import proc
from support.redis_server import RedisServer
from support.tls import Certificates

from smtpd_fork.fleet import State
from smtpd_fork.fleet.address import FleetAddress
from smtpd_fork.setting_types import SettingError

pytestmark = pytest.mark.usefixtures("soon")

OPTIONS: dict[str, Any] = {"max_from_ip": 5, "fleet_timeout": 1, "fleet_lease": 2}
SECRET = "correct horse battery"
PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
RIGHTS = re.findall(r"^user smtpd-fork on >SECRET (.*)$", PAGE.read_text(), re.MULTILINE)
"""The minimal rights of a node, as on the page."""


@pytest.fixture
def secret(tmp_path: Path) -> str:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    return str(file)


async def one_limit_holds(url: str, **options: Any) -> None:
    """Check that two nodes share a limit."""
    async with nodes(2, url, **{**OPTIONS, **options}) as servers:
        assert {fleet(server).state for server in servers} == {State.UP}
        admitted, refused = await arrivals(servers, 12)
        assert (len(admitted), len(refused)) == (5, 7)
        await close_all(admitted)


async def trouble(caplog: pytest.LogCaptureFixture, url: str, **options: Any) -> str:
    """Return the log line of a node that cannot reach its fleet, and serves nevertheless."""
    async with nodes(1, url, **{**OPTIONS, **options}) as servers:
        admitted, refused = await arrivals(servers, 7)
        assert (len(admitted), len(refused)) == (5, 2)
        await until(lambda: outage_lines(caplog))
        await close_all(admitted)
    lines = outage_lines(caplog)
    assert len(lines) == 1, lines
    assert SECRET not in caplog.text
    return lines[0]


async def test_the_password_is_read_from_a_file_and_a_wrong_one_causes_a_clear_line(
    caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    with RedisServer("--requirepass", SECRET) as redis:
        await one_limit_holds(f"unix:{redis.path}", fleet_secret=secret)
        assert "Authentication required" in await trouble(caplog, f"unix:{redis.path}")
        caplog.clear()
        Path(secret).write_text("another\n")
        line = await trouble(caplog, f"unix:{redis.path}", fleet_secret=secret)
        assert re.search("invalid username-password pair|WRONGPASS", line)


async def test_a_user_with_the_minimal_rights_suffices_and_fewer_cause_a_clear_line(
    caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    Path(secret).write_text(SECRET.replace(" ", "-"))
    user = ("--user", "node", "on", f">{SECRET.replace(' ', '-')}", *RIGHTS[0].split())
    with RedisServer(*user) as redis:
        url = f"redis://node@127.0.0.1:{redis.port}"
        await one_limit_holds(url, fleet_secret=secret, fleet_connections=20, rate=["100/h"])
        with redis.client() as client:
            for denied in ("evalsha", "script|load", "subscribe", "zadd"):
                client.acl_setuser("node", enabled=True, commands=[f"-{denied}"])
                caplog.clear()
                line = await trouble(caplog, url, fleet_secret=secret)
                assert "the ACL of Redis refuses" in line
                assert denied in line.lower()
                client.acl_setuser("node", enabled=True, commands=[f"+{denied}"])


async def test_the_certificate_is_verified_with_the_configured_ca(
    caplog: pytest.LogCaptureFixture, certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    with RedisServer(certificates=certificates) as redis:
        url = f"rediss://localhost:{redis.port}"
        await one_limit_holds(url, fleet_tls_ca=str(certificates.ca))
        line = await trouble(caplog, url, fleet_tls_ca=str(other.ca))
        assert "certificate verify failed" in line.lower()
        caplog.clear()
        line = await trouble(caplog, url)
        assert "certificate verify failed" in line.lower()
        caplog.clear()
        plain = f"redis://localhost:{redis.port}"
        assert plain in await trouble(caplog, plain)


async def test_a_certificate_for_another_name_is_refused(
    caplog: pytest.LogCaptureFixture, certificates: Certificates
) -> None:
    with RedisServer(certificates=certificates) as redis:
        url = f"rediss://127.0.0.2:{redis.port}"
        line = await trouble(caplog, url, fleet_tls_ca=str(certificates.ca))
        assert "127.0.0.2" in line


def test_no_password_is_in_the_log_the_configuration_or_the_list_of_processes(
    tmp_path: Path, secret: str
) -> None:
    processes = proc()
    with RedisServer("--requirepass", SECRET) as redis:
        options = [*LOCAL, "--fleet", f"unix:{redis.path}", "--fleet-secret", secret]
        with Daemon(*options, "--log-level", "debug", cwd=tmp_path) as daemon:
            daemon.wait_for("joined the fleet")
            redis.kill()
            daemon.wait_for("fleet out of reach")
            command = (processes / f"{daemon.process.pid}/cmdline").read_bytes()
            assert SECRET.encode() not in command
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reload")
            assert SECRET not in daemon.log


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:pw-pw@h", "redis://:pw-pw@h", "redis://u:x/pw-pw@h", "redis://u:x@pw-pw@h",
        "redis://h/x?password=pw-pw", "sentinel://u:pw-pw@h,h2/n", "rediss://u:pw-pw#@h:1/2",
    ],
)  # fmt: skip
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingError) as error:
        FleetAddress.parse(url)
    assert "pw-pw" not in str(error.value)


@pytest.fixture
def sentinel(tmp_path: Path) -> Any:
    """A primary, a replica, and a Sentinel that monitors them."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer())
        follows = ("--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(RedisServer(*follows))
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\n"
            "sentinel failover-timeout mymaster 2000\n"
        )
        watches = stack.enter_context(RedisServer(sentinel=config))
        yield primary, replica, watches


def is_primary(client: redis_py.Redis) -> bool:
    try:
        return bool(client.info("replication")["role"] == "master")
    except redis_py.ConnectionError:  # it closes all when it becomes one
        return False


async def test_sentinel_names_the_primary(
    sentinel: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    _, _, watches = sentinel
    await one_limit_holds(f"sentinel://127.0.0.1:{watches.port}/mymaster")


@pytest.mark.peers
async def test_after_a_failover_sentinel_names_the_next_primary_and_no_client_waits(
    sentinel: tuple[RedisServer, RedisServer, RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    primary, replica, watches = sentinel
    with watches.client() as client, replica.client() as follower:
        await until(lambda: client.sentinel_masters()["mymaster"]["num-slaves"] == 1)
        await until(lambda: follower.info("replication")["master_link_status"] == "up")
        url = f"sentinel://127.0.0.1:{watches.port}/mymaster"
        async with nodes(2, url, **OPTIONS) as servers:
            assert {fleet(server).state for server in servers} == {State.UP}
            admitted, _ = await arrivals(servers, 12)
            assert len(admitted) == 5
            os.kill(primary.process.pid, signal.SIGKILL)
            while not is_primary(follower):  # no client waits for longer than the timeout
                began = time.monotonic()
                more, _ = await arrivals(servers, 2, source="127.0.0.9")
                assert len(more) == 2
                assert time.monotonic() - began < OPTIONS["fleet_timeout"] + 2
                await close_all(more)
            await until(lambda: sum("in reach again" in line for line in outage_lines(caplog)) == 2)
            await wait_until_all_sent(servers)
            assert (await arrivals(servers, 6))[0] == []
            assert [line.split()[0] for line in outage_lines(caplog)].count("ERROR") <= 2
            await close_all(admitted)
