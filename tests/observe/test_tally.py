"""The tally: counts of messages by outcome, and measurement of times if it is enabled."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import MAIL, RCPT, Client
from support.server import greeted, serve, until

from smtpd_fork.dialogue.tally import BOUNDS, HOOKS, OUTCOMES, Latency, Tally
from smtpd_fork.dialogue.waiting import never_waits
from smtpd_fork.sinks import Discard, Maildir

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from support.tls import Certificates

    from smtpd_fork import Server


class AnswersWith:
    """A handler that answers each message with a given reply, or raises a given exception."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        if self.answer is None:
            raise RuntimeError("a fault of the handler")
        return self.answer


class Waits:
    """A handler that waits with a message until the session is cut."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


class WithoutDataHook:
    """A handler without a hook for messages."""

    async def handle_VRFY(self, *_: Any) -> Any:
        return MISSING


def counts_of(tally: Tally) -> dict[str, int]:
    return {outcome: count for outcome, count in tally.outcomes().items() if count}


async def deliver(server: Server, body: str = "Subject: hi\r\n\r\nhello\r\n") -> int:
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        return (await client.deliver(body)).code


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        ("250 Ok", "accepted", 250),
        ("550 No", "rejected", 550),
        ("451 Later", "deferred", 451),
        (None, "failed", 451),
        (7, "failed", 451),
    ],
)
async def test_a_message_is_counted_by_the_reply_of_the_handler(
    answer: Any, outcome: str, code: int
) -> None:
    async with serve(AnswersWith(answer)) as server:
        assert await deliver(server) == code
        assert counts_of(server.tally) == {outcome: 1}


async def test_a_message_without_a_handler_is_unclaimed() -> None:
    async with serve(WithoutDataHook()) as server:
        assert await deliver(server) == 451
        assert counts_of(server.tally) == {"unclaimed": 1}


async def test_an_lmtp_message_is_accepted_if_it_was_delivered_to_a_recipient() -> None:
    async with serve(AnswersWith(["550 No", "250 Ok"]), listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO c", MAIL, RCPT, RCPT, "DATA")
            client.send("Subject: hi\r\n\r\nx\r\n.\r\n")
            assert [(await client.reply()).code for _ in range(2)] == [550, 250]
        assert counts_of(server.tally) == {"accepted": 1}


@pytest.mark.parametrize(
    ("body", "outcome", "code"),
    [
        ("x" * 70 + "\r\n" + "y" * 70 + "\r\n", "too_big", 552),
        ("bare\nnewline\r\n", "malformed", 550),
        ("z" * 1001 + "\r\n", "malformed", 500),
    ],
)
async def test_a_message_that_is_too_big_or_malformed_is_counted(
    body: str, outcome: str, code: int
) -> None:
    size = 100 if outcome == "too_big" else 5000
    strict = {"bare_newline": "reject", "max_line_length": 1000}
    async with serve(Discard(), max_message_size=size, **strict) as server:
        assert await deliver(server, body) == code
        assert counts_of(server.tally) == {outcome: 1}


@pytest.mark.parametrize("chunks", [["BDAT 2000 LAST"], ["BDAT 2000", "BDAT 2000 LAST"]])
async def test_a_message_in_chunks_is_counted_once(chunks: list[str]) -> None:
    async with serve(Discard(), max_message_size=1000) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say(MAIL, RCPT)
            for chunk in chunks:
                client.send(f"{chunk}\r\n" + "x" * 2000)
                assert (await client.reply()).code == 552
        assert counts_of(server.tally) == {"too_big": 1}


async def test_a_declared_size_above_the_limit_is_counted() -> None:
    async with serve(Discard(), max_message_size=1000) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await client.say(MAIL + " SIZE=1001")).code == 552
        assert counts_of(server.tally) == {"too_big": 1}


async def test_a_message_beyond_the_memory_limit_is_counted() -> None:
    async with serve(Discard(), max_buffered=1000) as server:
        assert await deliver(server, ("x" * 70 + "\r\n") * 1000) == 452
        assert counts_of(server.tally) == {"no_room": 1}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_message_is_aborted_if_the_client_disconnects_during_it(chunked: bool) -> None:
    async with serve(Discard()) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say(MAIL, RCPT)
            if chunked:
                client.send("BDAT 3\r\nabc")
                assert (await client.reply()).code == 250
            else:
                assert (await client.say("DATA")).code == 354
                client.send("half a line")
        await until(lambda: not server.sessions)
        assert counts_of(server.tally) == {"aborted": 1}


async def test_no_message_is_aborted_if_the_client_disconnects_between_two() -> None:
    async with serve(Discard()) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.deliver()
            await client.say(MAIL, RCPT)
        await until(lambda: not server.sessions)
        assert counts_of(server.tally) == {"accepted": 1}


async def test_a_message_that_is_cut_while_a_handler_runs_is_aborted() -> None:
    handler = Waits()
    async with serve(handler, shutdown_timeout=0.01) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say(MAIL, RCPT, "DATA")
            client.send("Subject: hi\r\n\r\nx\r\n.\r\n")
            await handler.asked.wait()
            assert await server.stop() == 1
    assert counts_of(server.tally) == {"aborted": 1}


async def test_a_handler_that_exceeds_its_timeout_is_counted_as_failed() -> None:
    async with serve(Waits(), handler_timeout=0.05) as server:
        assert await deliver(server) == 451
        assert counts_of(server.tally) == {"failed": 1}


async def test_the_bytes_of_accepted_messages_are_counted() -> None:
    async with serve(Discard()) as server:
        await deliver(server, "Subject: hi\r\n\r\nhello\r\n")
        assert server.tally.content == len("Subject: hi\r\n\r\nhello\r\n")


async def test_without_timing_no_clock_is_read_and_no_bytes_are_counted() -> None:
    handler = Discard()
    async with serve(handler) as server:
        await deliver(server)
        tally = server.tally
        assert (tally.received, tally.hooks, tally.sinks, tally.lag.counts) == (
            *(0, {}, {}),
            [0] * (len(BOUNDS) + 1),
        )
        chain: Any = server.chain
        assert chain.handle_DATA.__wrapped__ == handler.handle_DATA, "nothing else is around it"


async def test_with_timing_hooks_sinks_lag_and_reads_are_measured(tmp_path: Path) -> None:
    tally = Tally(timing=True)
    async with serve([WithoutDataHook(), Maildir(tmp_path / "mail")], tally=tally) as server:
        assert await deliver(server) == 250
        await until(lambda: sum(tally.lag.counts))
    assert sum(tally.hooks["DATA"].counts) == 1
    sink = tally.sinks["maildir"]
    assert (sum(sink.latency.counts), sink.replies) == (1, {50: 1, 52: 0, 53: 0})
    assert 0 < sink.latency.total <= tally.hooks["DATA"].total
    sent = "EHLO client.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    assert tally.received >= len(sent) + len("Subject: hi\r\n\r\nhello\r\n.\r\n")


async def test_a_measured_hook_without_await_needs_no_task() -> None:
    tally = Tally(timing=True)
    hook = Discard().handle_DATA
    assert never_waits(hook)
    assert never_waits(tally.timed_hook("DATA", tally.counted_sink("discard", hook)))
    assert not never_waits(tally.timed_hook("DATA", Waits().handle_DATA))


async def test_only_known_hooks_are_measured() -> None:
    tally = Tally(timing=True)
    hook = Discard().handle_DATA
    assert tally.timed_hook("FOO", hook) == hook
    assert tally.hooks == {}
    assert "FOO" not in HOOKS


async def test_handle_starttls_is_measured_and_is_not_a_coroutine(
    certificates: Certificates,
) -> None:
    class Judge(Discard):
        def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
            return True

    tally = Tally(timing=True)
    timed = tally.timed_hook("STARTTLS", Judge().handle_STARTTLS)
    assert not inspect.iscoroutinefunction(timed)
    assert timed(None, None, None) is True
    assert sum(tally.hooks["STARTTLS"].counts) == 1
    async with greeted(Judge(), tally=tally, tls_context=certificates.server) as client:
        assert (await client.say("STARTTLS")).code == 220
        await client.writer.start_tls(certificates.client, server_hostname="localhost")
        assert (await client.say("EHLO c")).code == 250
    assert (tally.tls_done, tally.tls_failed) == (1, 0)
    assert sum(tally.hooks["STARTTLS"].counts) == 2


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_failed_tls_handshake_is_counted(certificates: Certificates, scheme: str) -> None:
    options: dict[str, Any] = {"tls_context": certificates.server}
    async with serve(Discard(), listen=[f"{scheme}:127.0.0.1:0"], **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            if scheme == "smtp":
                await client.greet()
                assert (await client.say("STARTTLS")).code == 220
            client.send("this is no TLS\r\n" * 100)
            await until(lambda: server.tally.tls_failed)
        await until(lambda: not server.sessions)
        assert (server.tally.tls_done, server.tally.tls_failed) == (0, 1)


async def test_an_implicit_tls_handshake_is_counted(certificates: Certificates) -> None:
    options: dict[str, Any] = {"tls_context": certificates.server}
    context: ssl.SSLContext = certificates.client
    async with serve(Discard(), listen=["smtps:127.0.0.1:0"], **options) as server:
        async with await Client.to(server.addresses[0], tls=context) as client:
            await client.greet()
        assert (server.tally.tls_done, server.tally.tls_failed) == (1, 0)


def test_a_latency_is_counted_in_the_first_bucket_that_includes_it() -> None:
    latency = Latency()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.1, BOUNDS[-1], BOUNDS[-1] + 1):
        latency.observe(seconds)
    assert latency.counts[:2] == [2, 1]
    assert latency.counts[-2:] == [1, 1]
    assert latency.total == pytest.approx(sum((0.0, BOUNDS[0] * 2.1, BOUNDS[-1] * 2 + 1)))


def test_every_outcome_has_its_count() -> None:
    assert set(OUTCOMES) <= set(Tally.__slots__)
    assert set(Tally().outcomes()) == set(OUTCOMES)
