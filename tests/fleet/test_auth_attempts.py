"""Attempts to authenticate are counted on all nodes together, for a limited time."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.auth import RIGHT, check, plain
from support.client import Client
from support.fleet import Taker, in_state, nodes, until
from support.redis_server import RedisServer

from smtpd_fork.filters import Auth
from smtpd_fork.fleet import State
from smtpd_fork.fleet.auth_attempt_ledger import MOST_NAMES, AuthAttemptLedger, AuthAttemptState
from smtpd_fork.fleet.auth_attempts import (
    MOST_ATTEMPTS,
    AuthAttempt,
    AuthCount,
    send_auth_attempt,
)
from smtpd_fork.fleet.redis_link import QUESTIONS
from smtpd_fork.fleet.sync import FleetError, Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis as redis_py

    from smtpd_fork import Server

prefixes = count(1)

KEY, ANOTHER = bytes(range(16)), bytes(range(1, 17))
"""Of the hash of attempts."""

COUNT = AuthCount("client", 3, 60)


def attempt_of(guess: str, most: int, period: int, key: bytes = KEY) -> AuthAttempt:
    return AuthAttempt(guess, most, period, key.hex())


@pytest.fixture(scope="module")
def client() -> Iterator[redis_py.Redis]:
    with RedisServer() as server, server.client() as client:
        yield client


def limited(**options: Any) -> Callable[[], list[Any]]:
    """Return a factory of a node's handlers: each process has counts of its own."""
    return lambda: [Auth(authenticator=check, require_tls="never", **options), Taker()]


async def attempt(server: Server, line: str, source: str = "127.0.0.1") -> int:
    """Return the code of the reply to an AUTH of a new session; that of the greeting if refused."""
    async with await Client.to(server.addresses[0], source=source) as client:
        greeting = await client.reply()
        if greeting.code != 220:
            return greeting.code
        await client.say("EHLO x")
        return (await client.say(line)).code


def wrong(number: int) -> str:
    return plain("bob", f"guess {number}")


async def test_a_client_has_as_many_attempts_on_all_nodes_together_as_on_one(
    redis: RedisServer,
) -> None:
    make = limited(max_failures=3)
    async with nodes(2, f"unix:{redis.path}", handler=make) as (here, there):
        for number, server in enumerate((here, there, here)):
            assert await attempt(server, wrong(number)) == 535
        assert await attempt(here, RIGHT) == 421
        assert await attempt(there, wrong(3)) == 535, (
            "the answer to this attempt contains the others"
        )
        assert await attempt(there, RIGHT) == 421
        assert await attempt(there, RIGHT, "127.0.0.2") == 235


async def test_a_repeated_password_is_one_failure_on_all_nodes(redis: RedisServer) -> None:
    make = limited(max_failures=2)
    async with nodes(2, f"unix:{redis.path}", handler=make) as servers:
        for server in (*servers, *servers):
            assert await attempt(server, wrong(0)) == 535
        assert await attempt(servers[0], RIGHT) == 235


async def test_the_node_that_sees_the_last_failure_has_all_nodes_deny_the_client(
    redis: RedisServer,
) -> None:
    make = limited(max_failures=2, deny=60.0)
    async with nodes(2, f"unix:{redis.path}", handler=make) as (here, there):
        assert await attempt(here, wrong(0)) == 535
        assert await attempt(there, wrong(1)) == 535
        await until(lambda: len(here.gate.denials) == len(there.gate.denials) == 1)
        assert await attempt(here, RIGHT) == 554


async def test_a_node_without_its_fleet_counts_alone(redis: RedisServer) -> None:
    make = limited(max_failures=2)
    async with nodes(2, f"unix:{redis.path}", handler=make) as (here, there):
        assert await attempt(there, wrong(0)) == 535
        redis.kill()
        await in_state((here, there), State.DOWN)
        assert await attempt(here, wrong(1)) == 535
        assert await attempt(here, wrong(2)) == 535
        assert await attempt(here, RIGHT) == 421
        assert await attempt(there, RIGHT) == 235


async def test_a_user_has_as_many_attempts_on_all_nodes_together_as_on_one(
    redis: RedisServer,
) -> None:
    make = limited(max_failures=0, max_user_failures=3)
    async with nodes(2, f"unix:{redis.path}", handler=make) as (here, there):
        assert await attempt(there, RIGHT, "127.0.0.9") == 235
        for number, server in enumerate((here, there, here)):
            assert await attempt(server, wrong(number), f"127.0.0.{number + 2}") == 535
        assert await attempt(here, RIGHT) == 454
        assert await attempt(there, wrong(3)) == 535, (
            "the answer to this attempt contains the others"
        )
        assert await attempt(there, RIGHT) == 454
        assert await attempt(here, plain("carol", "guess")) == 535
        for server in (here, there):
            assert await attempt(server, RIGHT, "127.0.0.9") == 235, (
                "a client that has logged in at one node"
            )


async def test_a_node_without_its_fleet_counts_the_failures_of_a_user_alone(
    redis: RedisServer,
) -> None:
    make = limited(max_failures=0, max_user_failures=2)
    async with nodes(2, f"unix:{redis.path}", handler=make) as (here, there):
        assert await attempt(there, wrong(0)) == 535
        redis.kill()
        await in_state((here, there), State.DOWN)
        for number in (1, 2):
            assert await attempt(here, wrong(number)) == 535
        assert await attempt(here, RIGHT) == 454
        assert await attempt(there, RIGHT) == 235


async def test_redis_gets_only_hashes_of_names_and_they_expire(redis: RedisServer) -> None:
    async with nodes(1, f"unix:{redis.path}", handler=limited()) as (server,):
        assert await attempt(server, RIGHT, "127.0.0.8") == 235
        assert await attempt(server, plain("bob" * 80, "guess"), "127.0.0.9") == 535
        with redis.client() as client:
            kept = client.keys("*:a:*")
            assert len(kept) == 6, "names and hash keys: of a client, a user and a log-in"
            assert all(len(each) < 80 for each in kept)
            assert not any(word in each for each in kept for word in (b"bob", b"127.0.0"))
            assert all(client.pttl(each) > 0 for each in kept)


class Answers:
    """A link whose answers are arbitrary."""

    description = "hostile"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        *(None, 7, b"", b"\xff", msgspec.msgpack.encode({"a": 1})),
        msgspec.msgpack.encode([KEY.hex(), [["no hexadecimal", 1]]]),
        msgspec.msgpack.encode([KEY.hex(), [["00", "1"]]]),
        msgspec.msgpack.encode(["no hexadecimal", [["00", 1]]]),
        msgspec.msgpack.encode(["", [["00", 1]]]),
        msgspec.msgpack.encode([["00", 1]]),
    ],
)
async def test_an_invalid_answer_is_a_fleet_error(answer: object) -> None:
    link: Any = Answers(answer)
    with pytest.raises(FleetError, match=r"cannot be read|has no key"):
        await send_auth_attempt(link, COUNT, b"name", b"\0\1", KEY)


async def test_a_hostile_answer_is_bounded() -> None:
    many = [[f"{number:04x}", 1 << 62] for number in range(3 * MOST_ATTEMPTS)]
    hostile = [["ffff", -1], ["fffe", 0], *many]
    link: Any = Answers(msgspec.msgpack.encode([KEY.hex(), hostile]))
    _, guesses = await send_auth_attempt(link, COUNT, b"name", b"\0\1", KEY)
    assert len(guesses) == MOST_ATTEMPTS
    assert set(guesses.values()) == {60}


# -- the script and the ledger -----------------------------------------------------------------

OF_HASH = "hash"
CLIENTS = ["192.0.2.1", "2001:db8::/64"]


class Counts:
    """The failures of a fleet in Redis, and those in a ledger, with the same messages."""

    def __init__(self, client: redis_py.Redis) -> None:
        self.client = client
        self.keys = Keys(f"failures{next(prefixes)}")
        self.ledger = AuthAttemptLedger()

    def send(self, host: str, message: AuthAttempt, now: int) -> list[dict[str, int]]:
        names = [*self.keys.fixed, self.keys.of(host), self.keys.of(OF_HASH)]
        data = msgspec.msgpack.encode(message)
        script = QUESTIONS["auth_attempts"]
        found = self.client.eval(script, len(names), *names, data, self.keys.channel)
        by_redis = msgspec.msgpack.decode(found, type=tuple[str, list[tuple[str, int]]])
        handed = msgspec.msgpack.encode(self.ledger.state())  # as in an upgrade
        self.ledger = AuthAttemptLedger.of_state(
            msgspec.msgpack.decode(handed, type=AuthAttemptState)
        )
        by_ledger = self.ledger.count([host, OF_HASH], message, now)
        assert by_redis[0] == by_ledger[0]
        return [dict(by_redis[1]), dict(by_ledger[1])]


@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 4), st.integers(1, 3))))
def test_redis_and_the_ledger_count_the_same_failures(
    client: redis_py.Redis, steps: list[tuple[str, int, int]]
) -> None:
    counts = Counts(client)
    for host, guess, most in steps:
        answers = counts.send(host, attempt_of(f"{guess:04x}", most, 3_600_000), 1000)
        assert answers[0].keys() == answers[1].keys()
        assert all(3_500_000 < left <= 3_600_000 for each in answers for left in each.values())
        assert 0 < client.pttl(counts.keys.of(host)) <= 3_600_000


def test_expired_failures_are_removed(client: redis_py.Redis) -> None:
    counts, host, hour = Counts(client), CLIENTS[0], 3_600_000
    counts.send(host, attempt_of("0001", 2, 1), 1000)
    counts.send(host, attempt_of("0002", 2, hour), 1000)
    while "0003" not in counts.send(host, attempt_of("0003", 2, hour), 1001)[0]:
        pass  # it is not added before the first one has expired
    answers = counts.send(host, attempt_of("0004", 2, hour), 1001)
    assert [each.keys() for each in answers] == [{"0002", "0003"}] * 2
    assert set(client.hkeys(counts.keys.of(host))) == {b"0002", b"0003"}


def test_failures_expire_although_the_clock_was_set_back(
    client: redis_py.Redis,
) -> None:
    counts, host = Counts(client), CLIENTS[0]
    client.hset(counts.keys.of(host), "0001", 1 << 52)
    assert counts.send(host, attempt_of("0002", 2, 60_000), 1000)[0].keys() == {"0002"}


def test_an_attempt_with_another_hash_key_is_not_counted_and_the_answer_has_the_key(
    client: redis_py.Redis,
) -> None:
    counts, host = Counts(client), CLIENTS[0]
    counts.send(host, attempt_of("0001", 3, 60_000), 1000)
    assert counts.send(host, attempt_of("0002", 3, 60_000, ANOTHER), 1000) == [{}, {}]
    assert client.get(counts.keys.of(OF_HASH)) == KEY.hex().encode()
    assert 0 < client.pttl(counts.keys.of(OF_HASH)) <= 60_000
    assert counts.send(host, attempt_of("0003", 3, 60_000), 1000)[0].keys() == {"0001", "0003"}


def test_a_message_that_only_reads_adds_nothing(client: redis_py.Redis) -> None:
    counts, host = Counts(client), CLIENTS[0]
    assert counts.send(host, attempt_of("", 3, 60_000), 1000) == [{}, {}]
    counts.send(host, attempt_of("0001", 3, 60_000), 1000)
    answers = counts.send(host, attempt_of("", 3, 60_000), 1000)
    assert [each.keys() for each in answers] == [{"0001"}] * 2


def test_a_repeated_attempt_counts_from_its_last_time(client: redis_py.Redis) -> None:
    counts, host = Counts(client), CLIENTS[0]
    counts.send(host, attempt_of("0001", 1, 60_000), 1000)
    answers = counts.send(host, attempt_of("0001", 1, 3_600_000), 1000)
    assert all(each["0001"] > 3_500_000 for each in answers)


def test_the_ledger_keeps_a_limited_number_of_names_for_each_count() -> None:
    ledger = AuthAttemptLedger()
    for number in range(MOST_NAMES + 5):
        ledger.count([f"client {number}", OF_HASH], attempt_of("0000", 2, 60_000), 0)
        ledger.count(["a user", "another hash"], attempt_of(f"{number:04x}", 2, 60_000), 0)
    assert len(ledger.count(["a user", "another hash"], attempt_of("", 2, 60_000), 0)[1]) == 2
    for name, known in {"client 0": 1, "client 9": 2}.items():
        _, guesses = ledger.count([name, OF_HASH], attempt_of("0001", 2, 60_000), 0)
        assert len(guesses) == known
