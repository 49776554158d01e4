"""``smtpd-fork check`` with the Redis of a fleet, and the ACL in the manual."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, says
from support.daemon import LOCAL, Daemon, run
from support.fleet import arrivals, close_all, nodes, until
from support.page import read
from support.redis_server import RedisServer

from smtpd_fork.config import Config
from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.fleet.probe import probe
from smtpd_fork.fleet.redis_link import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def checked(folder: Path, *options: str) -> list[str]:
    """Return the output of check, which must succeed."""
    ended = run("check", *LOCAL, *options, cwd=folder)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout.splitlines()


def acl() -> list[str]:
    """Return the words of the ACL in the manual, without the name."""
    found = re.search(r"^user smtpd-fork (.+)$", read("docs/fleet.md"), re.MULTILINE)
    assert found
    return found[1].split()


def make_user(redis: RedisServer, words: list[str]) -> None:
    with redis.client() as client:
        client.execute_command("ACL", "SETUSER", "smtpd-fork", "reset", *words)


def test_check_describes_the_fleet_and_leaves_nothing_in_redis(
    redis: RedisServer, tmp_path: Path
) -> None:
    with redis.client() as client:
        client.flushall()
    found, ok = checked(tmp_path, "--fleet", f"unix:{redis.path}")
    assert re.match(r"fleet: unix:\S+: Redis \d+\.\d+\.\d+, 0 nodes, round trip \d+\.\d ms$", found)
    assert ok == "configuration OK"
    with redis.client() as client:
        (layout,) = client.keys()
        assert client.pttl(layout) > 0


def test_an_error_of_redis_is_only_a_warning_as_the_daemon_starts_nevertheless(
    redis: RedisServer, tmp_path: Path
) -> None:
    url = f"unix:{redis.path}"
    (warning, _) = checked(tmp_path, "--fleet", "unix:/nosuch")
    assert warning.startswith(
        "warning: fleet out of reach, the limits of this node apply: unix:/nosuch: ConnectionError"
    )
    (warning, _) = checked(tmp_path, "--fleet", "unix:/nosuch", "--when-fleet-down", "refuse")
    assert "new clients get 421 (--when-fleet-down refuse)" in warning
    with redis.client() as client:
        client.set("{a}:layout", "7")
        client.set("{b}:1:slots", "not a hash")
        client.config_set("maxmemory-policy", "allkeys-lru")
    (warning, _) = checked(tmp_path, "--fleet", url, "--fleet-prefix", "a")
    assert "the fleet has layout 7, this node has 1" in warning
    (warning, _) = checked(tmp_path, "--fleet", url, "--fleet-prefix", "b")
    assert "a key of the fleet has another type: another program uses it" in warning
    (_, warning, _) = checked(tmp_path, "--fleet", url)
    assert "maxmemory-policy allkeys-lru Redis may evict the counts of the nodes" in warning
    with redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
    (_, warning, _) = checked(tmp_path, "--fleet", url, "-m", "local:5", "--max-from-net", "9%/24")
    assert warning.startswith("warning: --fleet has no effect on limits: ")


def test_check_names_the_commands_that_the_acl_refuses(redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET\n")
    options = ("--fleet-secret", "secret")
    url = f"redis://smtpd-fork@127.0.0.1:{redis.port}"
    make_user(redis, acl())
    (found, _) = checked(tmp_path, "--fleet", url, *options)
    assert "Redis, 0 nodes" in found, "it may not read the version"
    make_user(redis, [*acl(), "-zadd", "-publish"])
    (warning, _) = checked(tmp_path, "--fleet", url, *options)
    assert warning.endswith("the ACL of Redis refuses commands that a node needs: publish, zadd")
    (tmp_path / "secret").write_text("wrong\n")
    (warning, _) = checked(tmp_path, "--fleet", url, *options)
    assert "AuthenticationError: invalid username-password pair" in warning


def test_the_acl_in_the_manual_allows_only_commands_that_are_used() -> None:
    commands = {word[1:] for word in acl() if word.startswith("+")}
    beside = {"evalsha", "script|load", "subscribe"}
    assert commands == {command.lower() for command in COMMANDS} | beside


async def test_a_fleet_works_with_the_acl_in_the_manual(redis: RedisServer, tmp_path: Path) -> None:
    make_user(redis, acl())
    (tmp_path / "secret").write_text("SECRET\n")
    url = f"redis://smtpd-fork@127.0.0.1:{redis.port}"
    secret = str(tmp_path / "secret")
    limits = {"max_from_ip": 5, "max_from_net": ["9/24"], "rate": ["30/h"], "fleet_connections": 9}
    async with nodes(2, url, fleet_secret=secret, **limits) as servers:
        admitted, refused = await arrivals(servers, 8)
        assert (len(admitted), len(refused)) == (5, 3)
        here, there = servers
        here.deny("192.0.2.1", seconds=60)
        await until(lambda: len(there.gate.denials))
        there.undeny("192.0.2.1")
        await until(lambda: not len(here.gate.denials))
        assert here.fleet is not None
        assert len((await here.fleet.view()).nodes) == 2
        assert here.fleet.episodes.count == 0
        await close_all(admitted)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smtpd_fork.fleet.redis_link", None)
    with pytest.raises(MissingLibraryError, match=r"redis.*smtpd-fork\[fleet\]"):
        probe(Config(fleet="unix:/x"))


def test_the_daemon_logs_the_same_text_as_check(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "--fleet", "unix:/nosuch", cwd=tmp_path) as daemon:
        daemon.wait_for("fleet out of reach, the limits of this node apply: unix:/nosuch: Connect")
        assert re.search(r"^fleet +down for ", says(tmp_path, "status"), re.MULTILINE)
