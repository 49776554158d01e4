"""The script in a real Redis and the ledger in Python answer the same messages alike."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError
from support.redis_server import RedisServer

from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.redis_link import QUESTIONS, SCRIPT
from smtpd_fork.fleet.sync import Answer, Keys, Sync, decode, encode
from smtpd_fork.fleet.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

HOUR = 3_600_000_000
prefixes = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[redis.Redis]:
    with RedisServer() as server, server.client() as client:
        yield client


class Fleet:
    """A fleet in Redis and one in a ledger, which get the same messages."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.keys = Keys(f"fleet{next(prefixes)}")
        self.ledger = Ledger()
        self.now = 1_000_000

    def sync(self, keys: list[str], message: Sync) -> tuple[Answer, Answer]:
        names = [*self.keys.fixed, *map(self.keys.of, keys)]
        data = self.client.eval(SCRIPT, len(names), *names, encode(message), self.keys.channel)
        self.now += 1
        return decode(data, len(message.clients)), self.ledger.sync(keys, message, self.now)

    def view(self, keys: list[str]) -> tuple[View, View]:
        """Return what each shows, without the times."""
        names = [*self.keys.fixed, *map(self.keys.of, keys)]
        rates = [key.startswith("r") for key in keys]
        message = msgspec.msgpack.encode((0, rates))
        data = self.client.eval(QUESTIONS["view"], len(names), *names, message, "")
        views = [
            msgspec.msgpack.decode(data, type=View),
            msgspec.convert(self.ledger.ask("view", keys, message, self.now), View),
        ]
        for view in views:
            view.nodes.sort(key=lambda node: node.node)
            view.held = [sorted(each) for each in view.held]
            view.ahead = [round(each * 100 / HOUR) for each in view.ahead]
            for node in view.nodes:
                node.lease = round(node.lease / 1000)
        return views[0], views[1]


KEYS = ["c:192.0.2.1", "c:192.0.2.2", "n:192.0.2.0/24", "r:3/3600:192.0.2.1", "r:3/3600:192.0.2.2"]
COUNTED = 3


@st.composite
def messages(draw: st.DrawFn) -> Sync:
    counts: list[int] = []
    for key in range(1, COUNTED + 1):
        counts += key, draw(st.integers(0, 3))
    clients = []
    for _ in range(draw(st.integers(0, 4))):
        client = draw(st.integers(1, 2))
        checks = [client, 3, 0, 0, 3, 5, 0, 0]
        if draw(st.booleans()):
            checks += COUNTED + client, 3, HOUR // 3, HOUR - HOUR // 3
        clients.append(checks)
    sessions = draw(st.integers(0, 5))
    return Sync(
        node=draw(st.sampled_from(["a", "b", "c"])),
        lease=60_000,
        keep=90_000,
        limit=draw(st.sampled_from([0, 8])),
        sessions=sessions,
        want=sessions + draw(st.integers(0, 4)),
        survey=draw(st.booleans()),
        waits=draw(st.booleans()),
        leaves=draw(st.booleans()) and draw(st.booleans()),
        counts=counts,
        clients=clients,
    )


@given(st.lists(st.tuples(messages(), st.booleans()), max_size=12))
@settings(max_examples=100, deadline=None)
def test_redis_a_ledger_and_one_that_was_handed_over_give_the_same_answers(
    server: redis.Redis, sent: list[tuple[Sync, bool]]
) -> None:
    fleet = Fleet(server)
    for message, handed_over in sent:
        if handed_over:
            fleet.ledger = Ledger.of_snapshot(fleet.ledger.snapshot())
        by_redis, by_ledger = fleet.sync(KEYS, message)
        assert by_redis == by_ledger
    in_redis, in_ledger = fleet.view(KEYS)
    assert in_redis == in_ledger


def test_a_key_of_another_type_is_an_error_and_nothing_is_written(
    server: redis.Redis,
) -> None:
    fleet = Fleet(server)
    message = Sync("a", 6000, 90_000, 0, 1, 0, counts=[1, 1, 2, 1], clients=[[2, 3, 0, 0]])
    server.set(fleet.keys.of(KEYS[1]), "not a hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        fleet.sync(KEYS[:2], message)
    assert server.keys(f"*{fleet.keys.of('')}*") == [fleet.keys.of(KEYS[1]).encode()]


def test_a_fleet_of_another_layout_is_not_changed(server: redis.Redis) -> None:
    fleet = Fleet(server)
    server.set(fleet.keys.fixed[0], "2")
    with pytest.raises(ResponseError, match="the fleet has layout 2, this node has 1"):
        fleet.sync([], Sync("a", 6000, 90_000, 0, 0, 0))
    assert not server.exists(*fleet.keys.fixed[1:])


def test_every_key_that_a_node_writes_expires(server: redis.Redis) -> None:
    fleet = Fleet(server)
    rate = [2, 3, HOUR // 3, HOUR - HOUR // 3]
    clients = [[1, 3, 0, 0, *rate]]
    keys = [KEYS[0], KEYS[3]]
    fleet.sync(keys, Sync("a", 6000, 90_000, 5, 1, 1, True, True, False, "{}", [1, 0], clients))
    written = server.keys(f"{{{fleet.keys.fixed[0][1:].partition('}')[0]}}}*")
    assert len(written) == 7
    assert all(0 < server.pttl(name) <= HOUR // 1000 for name in written)


def test_a_lease_that_ends_too_late_is_shortened_after_the_clock_was_set_back(
    server: redis.Redis,
) -> None:
    fleet = Fleet(server)
    nodes = fleet.keys.of("nodes")
    fleet.sync([], Sync("dead", 6000, 90_000, 0, 0, 0))
    server.zadd(nodes, {"dead": float(server.zscore(nodes, "dead") or 0) + 3_600_000})
    fleet.sync([], Sync("alive", 6000, 90_000, 0, 0, 0))
    dead, alive = server.zscore(nodes, "dead"), server.zscore(nodes, "alive")
    assert dead == alive


def test_a_rate_is_due_no_later_than_possible_after_the_clock_was_set_back(
    server: redis.Redis,
) -> None:
    fleet = Fleet(server)
    rate = fleet.keys.of(KEYS[3])
    clients = [[1, 3, HOUR // 3, HOUR - HOUR // 3]]
    seconds, us = server.time()
    server.set(rate, (seconds + 7 * 3600) * 1_000_000 + us)
    answer, _ = fleet.sync([KEYS[3]], Sync("a", 6000, 90_000, 0, 1, 0, clients=clients))
    assert answer.verdicts[0] == 1
    assert 0 < server.pttl(rate) <= HOUR // 1000
    assert int(server.get(rate) or 0) <= (seconds + 3600 + 60) * 1_000_000
