"""The filter policy with a server that is down, slow, broken or hostile; its connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.policy import TestPolicy, door, recipient, send
from support.ports import free_port
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.filters import Policy
from smtpd_fork.hops.policy import LONGEST_ANSWER

if TYPE_CHECKING:
    from pathlib import Path

WHEN_DOWN = [("defer", (451, "4.7.1")), ("refuse", (554, "5.3.0")), ("accept", (250, "2.1.5"))]


@pytest.mark.parametrize(("when", "expected"), WHEN_DOWN)
@pytest.mark.parametrize("where", ["unix", "tcp"])
async def test_when_down_defers_refuses_or_accepts_recipients(
    when: str, expected: tuple[int, str], where: str,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    address = f"unix:{tmp_path}/none" if where == "unix" else f"127.0.0.1:{free_port('127.0.0.1')}"
    policy = Policy(address, when_down=when)  # type: ignore[arg-type]
    async with serve([policy, Collect()]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await recipient(client) == expected
            assert await recipient(client) == expected
    lines = [each.getMessage() for each in caplog.records]
    down, failed = [line for line in lines if "policy server" in line][:2]
    assert down.startswith(f"the policy server {address} is down: ")
    assert down.endswith(f"; when-down={when}")
    assert f"policy server {address} has failed: " in failed
    assert failed.startswith("[")


BROKEN: dict[str, bytes] = {
    "an empty answer": b"\n",
    "an answer without an action": b"x=y\n\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nX: y\r\n\r\n",
    "an endless line": b"action=" + b"x" * (LONGEST_ANSWER + 10),
    "endless lines": b"x=y\n" * LONGEST_ANSWER,
    "nonsense": b"action=?!\n\n",
    "no action": b"action=\n\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_server_counts_as_down(name: str) -> None:
    policy = TestPolicy(says=BROKEN[name])
    async with door(policy) as (client, _):
        assert await recipient(client) == (451, "4.7.1")
        policy.says = None
        assert await recipient(client) == (250, "2.1.5")


async def test_an_unexpected_answer_is_not_used_for_the_next_request() -> None:
    policy = TestPolicy(says=b"action=OK\n\naction=OK\n\n")
    async with door(policy) as (client, _):
        assert await recipient(client) == (250, "2.1.5")
        policy.says, policy.action = None, "REJECT"
        assert await recipient(client) == (554, "5.7.1")
    assert policy.connections == 2


async def test_a_silent_server_times_out_and_its_late_answer_is_ignored() -> None:
    late = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await policy.next_request(reader)
        await late.wait()
        writer.write(b"action=OK\n\n")
        await reader.read()

    policy = TestPolicy(talk=slow)
    async with door(policy, timeout=0.05) as (client, _):
        assert await recipient(client) == (451, "4.7.1")
        policy.talk, policy.action = None, "REJECT"
        late.set()
        assert await recipient(client) == (554, "5.7.1")


@pytest.mark.parametrize("half", [b"", b"action=OK\n"])
async def test_a_server_that_dies_during_an_answer_has_failed(half: bytes) -> None:
    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await policy.next_request(reader)
        writer.write(half)

    policy = TestPolicy(talk=dies)
    async with door(policy) as (client, _):
        assert await recipient(client) == (451, "4.7.1")
        assert policy.connections == 1


# -- connections -----------------------------------------------------------------------------------


async def test_requests_of_all_sessions_share_connections() -> None:
    policy = TestPolicy()
    async with door(policy, stages=["mail", "rcpt", "end-of-message"]) as (client, kept):
        for _ in range(5):
            assert await send(client) == (250, "2.0.0")
    assert len(kept.messages) == 5
    assert policy.connections == 1


async def test_an_idle_connection_that_the_server_closed_is_replaced_once() -> None:
    policy = TestPolicy()
    async with door(policy) as (client, _):
        assert await recipient(client) == (250, "2.1.5")
        policy.hang_up()
        assert await recipient(client) == (250, "2.1.5")
        assert policy.connections == 2


async def test_a_connection_that_is_closed_at_the_request_is_replaced_once() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await policy.next_request(reader)
        writer.write(b"action=OK\n\n")
        await policy.next_request(reader)

    policy = TestPolicy(talk=once)
    async with door(policy) as (client, _):
        for number in range(3):
            assert await recipient(client) == (250, "2.1.5")
            assert policy.connections == number + 1


async def test_more_requests_than_connections_wait_for_one() -> None:
    go = asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await policy.next_request(reader)
            await go.wait()
            writer.write(b"action=OK\n\n")

    policy = TestPolicy(talk=held)
    async with listening(policy):
        async with serve([Policy(policy.address, connections=2), Collect()]) as server:
            clients = [await Client.to(server.addresses[0]) for _ in range(6)]
            asked = []
            for client in clients:
                await client.greet()
                asked.append(asyncio.create_task(recipient(client)))
            await until(lambda: len(policy.requests) == 2)
            go.set()
            assert await asyncio.gather(*asked) == [(250, "2.1.5")] * 6
            assert policy.connections == 2
            for client in clients:
                await client.close()


async def test_an_idle_session_has_no_connection_and_no_task() -> None:
    policy = TestPolicy()
    async with door(policy, stages=["mail", "rcpt", "data"]) as (client, _):
        before = len(asyncio.all_tasks())
        await client.say("NOOP")
        assert policy.connections == 0
        assert len(asyncio.all_tasks()) == before


async def test_a_disconnected_client_leaves_no_request_behind() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    policy = TestPolicy(talk=deaf)
    async with door(policy) as (client, _):
        await client.say("MAIL FROM:<a@example.org>")
        client.send("RCPT TO:<b@example.com>\r\n")
        await until(lambda: policy.open)
        client.reset()
        await until(lambda: not policy.open)


async def test_the_next_server_is_used_while_the_first_is_down(tmp_path: Path) -> None:
    policy, kept = TestPolicy("REJECT"), Collect()
    async with listening(policy):
        chain: list[Any] = [Policy(f"unix:{tmp_path}/none {policy.address}"), kept]
        async with serve(chain) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await recipient(client) == (554, "5.7.1")


async def test_the_status_shows_connections_and_outages() -> None:
    policy, states = TestPolicy(), []
    async with listening(policy):
        asks = Policy(policy.address)
        async with serve([asks, Collect()]) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                for says in (None, b"nonsense\n\n", None):
                    policy.says = says
                    await recipient(client)
                    states.append(asks.status)
    assert [each.down_since is None for each in states] == [True, False, True]
    assert [each.reason for each in states] == [
        "",
        "an answer without a valid action: 'nonsense'",
        "",
    ]
    assert [(each.connections, each.busy) for each in states] == [(1, 0), (0, 0), (1, 0)]


# -- check -----------------------------------------------------------------------------------------


async def test_check_warns_about_an_unreachable_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(TestPolicy()) as policy:
        await asyncio.to_thread(Policy(policy.address).check)
        await until(lambda: policy.connections and not policy.open)
        assert caplog.text == ""
    Policy(f"unix:{tmp_path}/none").check()
    text = f"the policy server unix:{tmp_path}/none is not available: No such file or directory"
    assert text in caplog.text
