"""Networks that are denied at run time on one node are denied on all nodes."""

from __future__ import annotations

from itertools import count, cycle
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.client import Client
from support.fleet import Taker, arrivals, close_all, nodes, until
from support.proxy import V1
from support.redis_server import DURABLE, RedisServer
from support.server import serve

import smtpd_fork.control_protocol as protocol
from smtpd_fork import Gate
from smtpd_fork.fleet import State, denials
from smtpd_fork.fleet.denial_ledger import DenialLedger, DenialState
from smtpd_fork.fleet.denial_message import (
    DENIAL_KEYS,
    PAGE,
    Changes,
    DenialAnswer,
    ReceivedDenial,
    SentDenial,
    decode_denials,
    encode_denials,
)
from smtpd_fork.fleet.denials import MOST_TURNS, FleetDenials
from smtpd_fork.fleet.redis_link import QUESTIONS
from smtpd_fork.fleet.sync import FleetError, Keys
from smtpd_fork.observe.control import Administration

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis as redis_py

    from smtpd_fork import Server
    from smtpd_fork.gate import Denial

NET = "127.0.0.2/31"
EMPTY = ("", "", "", 1 << 62, 1 << 62)
prefixes = count(1)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(*DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
def client() -> Iterator[redis_py.Redis]:
    with RedisServer() as server, server.client() as client:
        yield client


def denied(server: Server) -> list[Denial]:
    return [denial for denial, _ in server.gate.denials.page()]


def networks(server: Server) -> set[str]:
    return {denial.written for denial in denied(server)}


async def asked(server: Server, request: protocol.Request) -> dict[str, Any]:
    return await Administration(server, lambda _: None).answer(request, "uid 0")


async def test_a_denial_reaches_all_nodes_and_any_node_can_remove_it(redis: RedisServer) -> None:
    async with nodes(3, f"unix:{redis.path}") as servers:
        here, there, third = servers
        reply = await asked(here, protocol.Deny(v=1, network=NET, text="Spam", seconds=3600))
        assert reply["untold"] is None
        await until(lambda: all(networks(server) == {NET} for server in servers))
        ((denial, left),) = there.gate.denials.page()
        assert 3590 < left <= 3600
        assert (denial.text, denial.node) == ("Spam", "mx0")
        assert denial.origin.startswith("denied at run time by uid 0 on mx0 at 20")
        _, (refused,) = await arrivals([there], 1, source="127.0.0.2")
        assert refused.startswith("554 5.7.1 mx.example.com Spam [")
        listed = (await asked(third, protocol.Denials(v=1)))["denials"]
        assert [(each["network"], each["node"]) for each in listed] == [(NET, "mx0")]
        assert (await asked(third, protocol.Undeny(v=1, network=NET)))["untold"] is None
        await until(lambda: not any(map(denied, servers)))
        admitted, _ = await arrivals([there], 1, source="127.0.0.2")
        await close_all(admitted)


async def test_short_denials_do_not_accumulate_while_the_fleet_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Down:
        async def ask(self, question: str, keys: list[str], message: bytes) -> object:
            raise FleetError("it is down")

    monkeypatch.setattr(denials, "MOST_UNSENT", 10)
    now = 1000.0
    gate = Gate(clock=lambda: now)
    link: Any = Down()
    here = FleetDenials(gate.denials, link, "mx")
    here.start()
    gate.denials.add("198.51.100.7")
    for number in range(100):
        gate.denials.add(f"192.0.2.{number}", seconds=1.0, automatic=True)
        now += 1.0
    assert len(here._unsent) <= 10
    assert "198.51.100.7" in map(str, here._unsent)
    await here.stop()


async def test_a_denial_by_a_program_begins_and_ends_on_all_nodes(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}") as (here, there):
        here.deny("192.0.2.1", seconds=1.0)
        there.deny("192.0.2.1", seconds=0.5)  # the later one counts, if it is later at the fleet
        await until(lambda: denied(there))
        await until(lambda: not denied(here) and not denied(there))


class Trap(Taker):
    """Denies clients that write to an address that does not exist."""

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        server.deny(session.peer[0], "Trapped", seconds=60, by="the trap")
        return "550 5.1.1 No such user"


async def test_a_denial_by_a_handler_applies_on_all_nodes(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}", handler=Trap()) as (here, there):
        client = await Client.to(here.addresses[0], source="127.0.0.2")
        await client.greet()
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<trap@example.com>")
        await until(lambda: denied(there))
        assert denied(there)[0].origin.startswith("denied at run time by the trap on mx0")
        _, (refused,) = await arrivals([there], 1, source="127.0.0.2")
        assert "Trapped" in refused
        await client.close()


async def test_an_early_talker_of_one_node_is_denied_on_all(redis: RedisServer) -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
    pause = {"greet_pause": 60, "greet_pause_deny": "1h"}
    async with nodes(2, f"unix:{redis.path}", **options, **pause) as (here, there):
        for server, data, text in (
            (here, V1 + b"EHLO x\r\n", "5.5.1 mx.example.com Wait for the greeting ["),
            (there, V1, "5.7.1 mx.example.com Sent data before the greeting ["),
        ):
            async with await Client.to(server.addresses[0]) as client:
                client.send(data)
                code, (line,) = await client.reply()
                assert (code, line[: len(text)]) == (554, text)
            await until(lambda: denied(there))
        assert denied(there)[0].origin.startswith("denied at run time by greet_pause on mx0 at 20")


async def test_denials_survive_a_restart_of_all_nodes_and_of_redis(redis: RedisServer) -> None:
    many = {f"192.0.2.{number}" for number in range(2 * PAGE + 9)}
    async with nodes(1, f"unix:{redis.path}") as (server,):
        fleet = server.fleet
        assert fleet is not None
        for network in many:
            server.deny(network, "No")
        assert await fleet.denials.wait_until_sent() == ""
    redis.stop()
    redis.start()
    async with nodes(1, f"unix:{redis.path}") as (server,):
        assert networks(server) == many, "they are known before the first client"
        assert {denial.text for denial in denied(server)} == {"No"}


@pytest.mark.peers
async def test_denials_made_during_an_outage_are_sent_after_it(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}") as servers:
        here, there = servers
        here.deny("198.51.100.1")
        await until(lambda: denied(there))
        redis.kill()
        await until(lambda: all(s.fleet and s.fleet.state is State.DOWN for s in servers))
        reply = await asked(here, protocol.Deny(v=1, network=NET))
        assert "Connection" in reply["untold"] or "refused" in reply["untold"]
        assert (await asked(there, protocol.Undeny(v=1, network="198.51.100.1")))["untold"]
        assert (networks(here), networks(there)) == ({NET, "198.51.100.1"}, set())
        redis.start()
        await until(lambda: networks(here) == networks(there) == {NET})


async def test_a_redis_that_has_lost_its_data_gets_the_denials_again(
    redis: RedisServer,
) -> None:
    async with nodes(2, f"unix:{redis.path}") as (here, there):
        here.deny(NET, "Spam", seconds=3600)
        await until(lambda: denied(there))
        with redis.client() as client:
            client.flushall()
        there.deny("198.51.100.1")
        await until(lambda: networks(here) == networks(there) == {NET, "198.51.100.1"})
        async with serve(Taker(), fleet=f"unix:{redis.path}", fleet_node="mx9") as late:
            ((old, left),) = (each for each in late.gate.denials.page() if each[1] < 3601)
            assert (old.text, old.node) == ("Spam", "mx0")
            assert 3590 < left <= 3600


async def test_a_redis_that_was_flushed_gets_the_denials_again_with_one_line_of_the_log(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(1, f"unix:{redis.path}", fleet_lease=2) as (server,):
        server.deny(NET)
        assert server.fleet is not None
        assert await server.fleet.denials.wait_until_sent() == ""
        with redis.client() as client:
            client.flushall()
            await until(lambda: client.keys("*:1:denials"))
        assert await server.fleet.denials.synchronize() == ""
        lines = [line for line in caplog.messages if "has lost its denials" in line]
        assert lines == ["the fleet has lost its denials: sending 1 network again"]


async def test_a_redis_restored_to_an_older_state_gets_the_missing_denials(
    redis: RedisServer,
) -> None:
    async with nodes(1, f"unix:{redis.path}", fleet_lease=2) as (server,):
        server.deny(NET)
        assert server.fleet is not None
        assert await server.fleet.denials.wait_until_sent() == ""
        with redis.client() as client:
            (name,) = client.keys("*:1:denials")
            client.hdel(name, NET)
            client.zrem(name + b":order", NET)
            client.hset(name, "version", 1)
            await until(lambda: client.hexists(name, NET))
        assert networks(server) == {NET}


class Hostile:
    """A link whose answers are arbitrary."""

    description = "hostile"

    def __init__(self, *answers: DenialAnswer) -> None:
        self.answers = cycle(answers)
        self.asked = 0

    async def ask(self, question: str, keys: list[str], message: bytes) -> bytes:
        self.asked += 1
        return msgspec.msgpack.encode(next(self.answers))


@pytest.mark.parametrize(
    "answers",
    [
        [DenialAnswer(n, n, True, True, n, 0, []) for n in (1, 2, 3)],
        [DenialAnswer(n, n, False, False, n, 9, []) for n in (1, 2, 3)],
        [
            DenialAnswer(
                *(1, 1, True, True, 1, 0),
                [
                    ReceivedDenial("x" * 99, "\n", "\x1b", "", 1 << 62, -(1 << 62)),
                    ReceivedDenial("::/0", *EMPTY),
                ],
            )
        ],
    ],
)
async def test_an_exchange_with_nonsensical_answers_ends_and_does_no_harm(
    answers: list[DenialAnswer],
) -> None:
    gate = Gate()
    gate.denials.add("192.0.2.1", seconds=60)
    link: Any = Hostile(*answers)
    denials = FleetDenials(gate.denials, link, "mx0")
    denials.start()
    await denials.synchronize()
    assert link.asked < 3 * MOST_TURNS**2
    for denial, _ in gate.denials.page():
        assert denial.origin.isprintable()
    await denials.stop()


# -- the script and the ledger -----------------------------------------------------------------


class Lists:
    """The list of a fleet in Redis, and one in a ledger, with the same messages."""

    def __init__(self, client: redis_py.Redis) -> None:
        self.client = client
        self.keys = Keys(f"denials{next(prefixes)}")
        self.ledger = DenialLedger()
        self.now = 1_000_000
        self.known = [[0, 0], [0, 0]]

    def exchange(
        self, add: list[SentDenial], remove: list[str]
    ) -> tuple[DenialAnswer, DenialAnswer]:
        names = [*self.keys.fixed, *map(self.keys.of, DENIAL_KEYS)]
        self.now += 1
        messages = [
            Changes(version, created, add=add, remove=remove) for version, created in self.known
        ]
        data = encode_denials(messages[0])
        by_redis = decode_denials(
            self.client.eval(QUESTIONS["denials"], len(names), *names, data, self.keys.channel)
        )
        by_ledger, _ = self.ledger.exchange(messages[1], self.now)
        return by_redis, by_ledger


def plain(answer: DenialAnswer) -> tuple[Any, ...]:
    """Return an answer without its times."""
    page = [(each.network, each.text, each.left > 0) for each in answer.page]
    return answer.version > 0, answer.created > 0, answer.complete, answer.more, answer.full, page


NETWORKS = [f"192.0.2.{number}" for number in range(4)]
denials_to_send = st.builds(
    SentDenial,
    *(st.sampled_from(NETWORKS), st.sampled_from(["", "No"]), st.just("x"), st.just("mx")),
    *(st.just(1), st.just(0), st.sampled_from([0, 3_600_000]), st.booleans()),
)
steps = st.tuples(
    st.lists(denials_to_send, max_size=3),
    st.lists(st.sampled_from(NETWORKS), max_size=2),
    st.booleans(),
)


@given(st.lists(steps, max_size=8))
@settings(max_examples=60, deadline=None)
def test_redis_and_the_ledger_have_the_same_denials(
    client: redis_py.Redis, some: list[tuple[list[SentDenial], list[str], bool]]
) -> None:
    lists = Lists(client)
    for add, remove, notes in some:
        answers = lists.exchange(add, remove)
        assert plain(answers[0]) == plain(answers[1])
        if notes:
            lists.known = [[answer.version, answer.created] for answer in answers]
            handed = msgspec.msgpack.encode(lists.ledger.state())
            lists.ledger = DenialLedger.of_state(msgspec.msgpack.decode(handed, type=DenialState))


def test_an_expired_denial_leaves_nothing_behind(client: redis_py.Redis) -> None:
    lists = Lists(client)
    lists.exchange([SentDenial("192.0.2.1", "", "x", "mx", 1, 0, 1, only_new=False)], [])
    while lists.exchange([], [])[0].page:
        pass
    lists.exchange([], [])
    names = [lists.keys.of("denials"), *map(lists.keys.of, DENIAL_KEYS)]
    assert client.hkeys(names[0]) != []
    assert client.exists(*names[1:]) == 0


def test_a_full_list_accepts_no_more_denials(client: redis_py.Redis) -> None:
    lists = Lists(client)
    lists.exchange([SentDenial("192.0.2.1", "", "x", "mx", 1, 0, 0, only_new=False)], [])
    client.zadd(lists.keys.of("denials:order"), {f"x{n}": n for n in range(10_000)})
    add = [SentDenial(f"192.0.2.{n}", "", "x", "mx", 1, 0, 0, only_new=False) for n in (1, 2)]
    assert lists.exchange(add, [])[0].full == 1
    client.delete(lists.keys.of("denials:order"))


def test_the_largest_answer_is_within_the_limit(client: redis_py.Redis) -> None:
    lists = Lists(client)
    longest = "2001:db8:ffff:ffff:ffff:ffff:ffff:{:x}/128"
    for first in range(0, PAGE, 50):
        add = [
            SentDenial(longest.format(n), "t" * 200, "b" * 100, "n" * 64, 1, 0, 0, only_new=False)
            for n in range(first, first + 50)
        ]
        answer, _ = lists.exchange(add, [])
    assert len(answer.page) == PAGE
    assert len(msgspec.msgpack.encode(answer)) < 1 << 16
