"""A fleet of real processes: killed, stopped, resumed, upgraded and ended under load."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask
from support.daemon import PATIENCE, Daemon, messages, until
from support.dialogue import begin_data
from support.fleet import sessions_in
from support.peers import peer
from support.upgrades import Load, Successors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.redis_server import RedisServer

LEASE = 2.0
ONE = "c:127.0.0.1"
SLOTS = "{smtpd-fork}:1:slots"


on_loops = pytest.mark.parametrize(
    "loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.peers)]
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Node(Daemon):
    """A daemon in a fleet; its clients are connections that were greeted."""

    def __init__(self, redis: RedisServer, folder: Path, name: str, *options: str) -> None:
        (folder / name).mkdir()
        fleet = ("--fleet", f"unix:{redis.path}", "--fleet-node", name)
        # On a busy machine an answer may take a while, and this is not about that.
        more = ("--fleet-lease", f"{LEASE:g}", "--fleet-timeout", "5", "--max-from-net", "0")
        self.clients: list[socket.socket] = []
        local = ("-l", "127.0.0.1:0", "--handler", "maildir:M", "--stress-timeout", "0")
        super().__init__(*local, *fleet, *more, *options, cwd=folder / name)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def greets(self) -> bool:
        """Connect a client; return whether it was greeted."""
        client = self.connect()
        if client.recv(4) == b"220 ":
            self.clients.append(client)
            return True
        client.close()
        return False

    def leave(self, number: int) -> None:
        """Disconnect clients."""
        for _ in range(number):
            self.clients.pop().close()

    def __exit__(self, *_: object) -> None:
        self.leave(len(self.clients))
        super().__exit__()


def slots_in(redis: RedisServer) -> list[tuple[int, int]]:
    """Return the slots and the sessions of each node, as Redis has them."""
    with redis.client() as client:
        pairs = [value.split() for value in client.hgetall(SLOTS).values()]
    return [(int(slots), int(sessions)) for slots, sessions in pairs]


@on_loops
def test_the_slots_of_a_killed_node_are_free_after_its_lease(
    redis: RedisServer, tmp_path: Path, stack: ExitStack, loop: str
) -> None:
    options = ("-m", "6", "--fleet-connections", "8", "--loop", loop)
    here = stack.enter_context(Node(redis, tmp_path, "mx1", *options))
    there = stack.enter_context(Node(redis, tmp_path, "mx2", *options))
    assert [here.greets() for _ in range(5)] == [True] * 5
    assert there.greets()
    assert not there.greets()
    began = time.monotonic()
    here.signal(signal.SIGKILL)
    until(there.greets, "the counts of the killed node end")
    assert time.monotonic() - began < LEASE + 1 + 2  # 2 for a busy machine
    until(lambda: len(there.clients) == 6 or not there.greets(), "the client has its maximum")
    assert len(there.clients) == 6
    with redis.client() as client:
        assert sessions_in(client, ONE) == 6
    until(lambda: len(slots_in(redis)) == 1, "the slots of the killed node are free")


def stopped_and_resumed(
    redis: RedisServer, tmp_path: Path, stack: ExitStack, seconds: float
) -> None:
    options = ("-m", "0", "--fleet-connections", "12", "-c", "100", "--fleet-timeout", "200ms")
    here = stack.enter_context(Node(redis, tmp_path, "mx1", *options))
    there = stack.enter_context(Node(redis, tmp_path, "mx2", *options))
    assert [here.greets() for _ in range(3)] == [True] * 3
    here.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert [there.greets() for _ in range(12)] == [True] * 12, "it has all slots, after the lease"
    waiting = [stack.enter_context(closing(here.connect())) for _ in range(3)]
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    here.signal(signal.SIGCONT)
    until(lambda: sorted(slots_in(redis)) == [(3, 3), (12, 12)], "both have sent their slots")
    for client in waiting:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(4)
        client.settimeout(PATIENCE)
    there.leave(6)
    assert [client.recv(4) for client in waiting] == [b"220 "] * 3
    until(lambda: min(slots_in(redis))[1] == 6, "the fleet is at its limit")
    assert sum(sessions for _, sessions in slots_in(redis)) == 12
    for client in here.clients:
        client.sendall(b"NOOP\r\n")
        client.settimeout(PATIENCE)
        text = b""
        while b"250 " not in text:
            text += client.recv(512)
    assert "out of reach" not in here.log + there.log


def test_a_node_suspended_for_longer_than_its_lease_uses_no_slot_before_an_answer(
    redis: RedisServer, tmp_path: Path, stack: ExitStack
) -> None:
    stopped_and_resumed(redis, tmp_path, stack, LEASE + 0.5)


@pytest.mark.peers
@pytest.mark.timeout(120)
def test_a_node_suspended_for_half_a_minute_uses_no_slot_before_an_answer(
    redis: RedisServer, tmp_path: Path, stack: ExitStack
) -> None:
    stopped_and_resumed(redis, tmp_path, stack, 30)


@on_loops
def test_an_upgrade_under_load_in_a_fleet_loses_no_message_and_leaves_no_count(
    redis: RedisServer, tmp_path: Path, stack: ExitStack, loop: str
) -> None:
    options = ("-m", "60", "--fleet-connections", "70", "--rate", "100000/h", "--loop", loop)
    daemon = stack.enter_context(Node(redis, tmp_path, "mx1", *options))
    assert [daemon.greets() for _ in range(3)] == [True] * 3
    with Load(daemon.port) as load, Successors(daemon) as successors:
        for _ in range(2):
            successors.upgrade()
        until(lambda: load.sent >= Load.ROUND, "data was sent")
        load.finish()
        assert load.faults == []
        until(lambda: (3, 3) in slots_in(redis), "the first has given up its spare slots")
        daemon.leave(3)
        assert daemon.process.wait(PATIENCE) == 0
        with redis.client() as client:
            until(lambda: sessions_in(client, ONE) == 0, "all clients have disconnected")
            until(lambda: client.zcard("{smtpd-fork}:1:nodes") == 1, "of three one is left")
    with redis.client() as client:
        assert client.keys("*}:1:[^r]*") == []
    assert "out of reach" not in daemon.log


@pytest.mark.parametrize("how", ["stop", "drain"])
def test_a_stop_under_load_in_a_fleet_loses_no_message_and_leaves_no_count(
    redis: RedisServer, tmp_path: Path, stack: ExitStack, how: str
) -> None:
    options = ("-m", "10", "--fleet-connections", "20", *CONTROL)
    here = stack.enter_context(Node(redis, tmp_path, "mx1", *options))
    there = stack.enter_context(Node(redis, tmp_path, "mx2", *options))
    client = here.smtp()
    begin_data(client)
    assert [there.greets() for _ in range(2)] == [True] * 2
    if how == "stop":
        here.signal(signal.SIGTERM)
    else:
        ask(tmp_path / "mx1", "drain")
    here.wait_for("stopping:" if how == "stop" else "draining:")
    client.send(b"Subject: last\r\n\r\nthe last\r\n.\r\n")
    assert client.getreply()[0] == 250
    client.quit()
    assert here.process.wait(PATIENCE) == 0
    assert len(messages(tmp_path / "mx1" / "M")) == 1
    with redis.client() as redis_client:
        assert redis_client.zcard("{smtpd-fork}:1:nodes") == 1, "it has left at once"
        assert sessions_in(redis_client, ONE) == 2
    there.leave(2)
    assert there.stop() == 0
    with redis.client() as redis_client:
        assert redis_client.keys("*}:1:[^r]*") == []


@pytest.mark.peers
def test_four_nodes_loaded_by_smtp_source_accept_every_message_and_leave_no_count(
    redis: RedisServer, tmp_path: Path, stack: ExitStack
) -> None:
    options = ("-m", "100", "--fleet-connections", "100", "--rate", "100000/h")
    fleet = [stack.enter_context(Node(redis, tmp_path, f"mx{n}", *options)) for n in range(4)]
    source = [peer("smtp-source"), "-s", "10", "-m", "1000", "-l", "500", "-d"]
    sources = [subprocess.Popen([*source, f"inet:127.0.0.1:{each.port}"]) for each in fleet]
    assert [each.wait(PATIENCE * 2) for each in sources] == [0] * 4
    with redis.client() as client:
        until(lambda: sessions_in(client, ONE) == 0, "all clients have disconnected")
        until(lambda: {sessions for _, sessions in slots_in(redis)} == {0}, "and no slot is in use")
    assert all("out of reach" not in each.log for each in fleet)
