"""Connections to a milter: one for all messages of a session, which is replaced if it is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.milter import TestMilter, frame
from support.milter_door import STORED, door, send
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.filters import Milter, milter_sessions
from smtpd_fork.handlers.route import Route
from smtpd_fork.handlers.when import When
from smtpd_fork.observe.sink_state import filter_states

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_all_messages_of_a_session_use_one_connection() -> None:
    milter = TestMilter()
    async with door(milter) as (client, kept):
        for _ in range(3):
            assert await send(client) == (250, "2.0.0")
        assert milter.commands == b"CHMRTLLLNBE" + b"MRTLLLNBE" * 2
        assert milter.connections == milter.open == 1
        await client.say("QUIT")
        await until(lambda: not milter.open)
        assert milter.commands.endswith(b"EQ")
    assert kept.messages == [STORED] * 3


async def test_a_connection_waits_a_few_seconds_for_the_next_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(milter_sessions, "KEPT_SECONDS", 0.02)
    milter = TestMilter()
    async with door(milter) as (client, _):
        assert await send(client) == (250, "2.0.0")
        await until(lambda: not milter.open)
        assert await send(client) == (250, "2.0.0")
        assert milter.commands.startswith(b"CHMRTLLLNBEQCHMR")


async def test_the_number_of_waiting_connections_is_limited_and_the_oldest_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(milter_sessions, "MOST_KEPT", 1)
    milter, kept = TestMilter(), Collect()
    async with listening(milter), serve([Milter(milter.address), kept]) as server:
        async with (
            await Client.to(server.addresses[0]) as one,
            await Client.to(server.addresses[0]) as two,
        ):
            await one.greet()
            await two.greet()
            assert await send(one) == (250, "2.0.0")
            assert await send(two) == (250, "2.0.0")
            await until(lambda: milter.open == 1)
            assert await send(one) == (250, "2.0.0")
        assert milter.connections == 3


@pytest.mark.parametrize(
    "when", [{"sender": ["a@example.org"]}, {"tls": False}, {"client": ["127.0.0.1"]}]
)
@pytest.mark.parametrize("end", ["quit", "starttls"])
async def test_the_milter_session_ends_even_if_the_conditions_no_longer_match(
    when: dict[str, Any], end: str, certificates: Certificates
) -> None:
    milter = TestMilter()
    options: dict[str, Any] = {"tls_context": certificates.server}
    async with listening(milter):
        judge = Milter(milter.address, stages=["mail"])
        async with serve([Route(judge, when=When.of(when)), Collect()], **options) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                assert await send(client) == (250, "2.0.0")
                if end == "starttls":
                    await client.start_tls(certificates.client)
            await until(lambda: not server.gate.count)
            await until(lambda: not judge.status.connections)


async def test_a_new_connection_is_made_if_the_milter_has_closed_the_kept_one() -> None:
    milter = TestMilter()
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
        milter.stops_at = b"M"  # it reads the next message, and closes without an answer
        milter.heals = True
        assert await send(client) == (250, "2.0.0")
        assert milter.connections == 2
    assert kept.messages == [STORED] * 2


async def test_a_connection_lost_after_an_answer_is_a_failure() -> None:
    milter = TestMilter()
    async with door(milter) as (client, _):
        assert await send(client) == (250, "2.0.0")
        milter.stops_at = b"E"
        assert await send(client) == (451, "4.7.1")
        milter.stops_at = b""
        assert await send(client) == (250, "2.0.0")


async def test_an_early_verdict_closes_a_connection_with_unanswered_events() -> None:
    milter = TestMilter(answers={b"M": frame(b"r")})
    async with door(milter) as (client, kept):
        assert await send(client) == (550, "5.7.1")
        milter.answers = {}
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [STORED]


@pytest.mark.parametrize("at", [b"C", b"H"])
async def test_a_milter_that_accepts_the_client_is_asked_once_per_session(at: bytes) -> None:
    milter = TestMilter(answers={at: frame(b"a")})
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
        assert await send(client) == (250, "2.0.0")
        await until(lambda: not milter.open)
    assert milter.connections == 1
    assert kept.messages == [STORED] * 2


async def test_a_second_ehlo_is_sent_with_its_new_name() -> None:
    milter = TestMilter()
    async with door(milter) as (client, _):
        assert await send(client) == (250, "2.0.0")
        await client.say("EHLO other.example")
        assert await send(client) == (250, "2.0.0")
    assert milter.data(b"H")[-1] == b"other.example\0"
    assert milter.connections == 1


async def test_the_state_of_a_milter_is_in_the_status_of_the_server() -> None:
    milter, kept = TestMilter(), Collect()
    async with listening(milter):
        chain = [Route(Milter(milter.address), name="scan"), kept]
        async with serve(chain) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await send(client) == (250, "2.0.0")
            (state,) = filter_states(server)
            assert (state.name, state.connections, state.busy) == ("scan", 1, 0)
            assert state.down_since is None
            milter.stops_at = b"E"
            assert await send(client) == (451, "4.7.1")
            (state,) = filter_states(server)
            assert (state.connections, state.reason) == (0, "it closed the connection")
            assert state.down_since is not None
            milter.stops_at = b""
            assert await send(client) == (250, "2.0.0")
            (state,) = filter_states(server)
            assert (state.down_since, state.reason) == (None, "")


LOOKS: dict[str, tuple[TestMilter, str]] = {
    "it answers": (TestMilter(), ""),
    "its version is another": (TestMilter(version=7), "it speaks version 7 of the protocol"),
    "it is no milter": (TestMilter(says=b"220 mx.example.com ESMTP\r\n"), "it sends a frame of"),
}


@pytest.mark.parametrize("name", LOOKS)
async def test_check_warns_about_an_unreachable_milter(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    milter, reason = LOOKS[name]
    async with listening(milter, tcp=True):
        judge = Milter(milter.address, when_down="accept")
        await asyncio.to_thread(judge.check)
        assert (reason in caplog.text) if reason else (caplog.text == "")
        address = milter.address
    await asyncio.to_thread(judge.check)
    assert f"milter {address} is not available: Connection refused; when-down=accept" in caplog.text
