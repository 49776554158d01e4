"""Lmtp and Relay with a hop that fails: a clear reply in time, and no reuse of bad connections."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.mail import a_mail, large
from support.next_hop import Fault, Hop, a_hop, closing, phases
from support.server import greeted, until
from support.sinks import open_sockets

from smtpd_fork.hops.connection import Phase
from smtpd_fork.message.results import per_recipient
from smtpd_fork.observe.logs.fields import fields_of
from smtpd_fork.sinks.base import TOO_SLOW, deliver_in_time
from smtpd_fork.sinks.lmtp import Lmtp
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    from support.next_hop import Answer
    from support.tls import Certificates

    from smtpd_fork.message import Mail
    from smtpd_fork.sinks.next_hop import NextHop

STEPS = ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"]

FAULTS: dict[str, Answer] = {
    "421": "421 4.3.2 Closing",
    "closes": Fault.CLOSE,
    "resets": Fault.RESET,
    "garbage": b"\x16\x03\x01 hello\xff\r\n",
    "endless": Fault.ENDLESS,
    "1 MB": b"250-" + b"x" * 1_000_000 + b"\r\n250 OK\r\n",
    "3yz": "399 Go on?",
    "silent": Fault.SILENT,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try a hop that is down again without a pause."""
    monkeypatch.setattr("smtpd_fork.hops.pool.RETRY_SECONDS", 0.0)


async def give_up(sink: NextHop, hop: Hop, step: str) -> str:
    """Deliver a message, and cancel it when the hop has reached a step, as a time limit does."""
    delivering = asyncio.ensure_future(sink.deliver(a_mail()))
    if step == "GREETING":
        await until(lambda: hop.greeted)
    elif step == "END":
        await until(lambda: hop.messages)
    else:
        await until(lambda: any(line.startswith(step) for line in hop.commands))
    delivering.cancel()
    (result,) = await asyncio.gather(delivering, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    return TOO_SLOW


async def deliver(sink: NextHop, mail: Mail | None = None) -> list[str]:
    mail = mail or a_mail()
    return per_recipient(await deliver_in_time(sink, mail), len(mail.recipients))


def is_down(sink: NextHop) -> bool:
    return sink.status.down_since is not None


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
async def test_an_error_at_any_step_gets_451_and_the_next_message_is_delivered(
    step: str, fault: str, lmtp: bool
) -> None:
    async with a_hop(lmtp=lmtp) as hop:
        sink = Lmtp(hop.address) if lmtp else Relay(hop.address)
        async with closing(sink):
            key = "LHLO" if lmtp and step == "EHLO" else step
            hop.answers[key] = FAULTS[fault]
            if fault == "silent":
                reply = await give_up(sink, hop, key)
            else:
                (reply,) = await deliver(sink)
            assert reply[:6] == "451 4."
            assert sink.status.busy == 0
            taken = len(hop.messages)
            assert taken == (step == "END")
            hop.answers.clear()
            assert (await deliver(sink))[0][:3] == "250"
            assert len(hop.messages) == taken + 1


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "END"])
@pytest.mark.parametrize("code", [450, 552])
async def test_a_refusal_is_passed_on_and_the_connection_reused(step: str, code: int) -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers[step] = f"{code} {code // 100}.7.1 No"
        assert await deliver(relay) == [f"{code} {code // 100}.7.1 No"]
        hop.answers.clear()
        await until(lambda: phases(relay) == {Phase.READY})
        assert (await deliver(relay))[0][:3] == "250"
        assert hop.greeted == 1


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
async def test_4yz_for_one_of_three_recipients_concerns_only_this_one(lmtp: bool) -> None:
    async with a_hop(lmtp=lmtp) as hop:
        async with closing(Lmtp(hop.address) if lmtp else Relay(hop.address)) as sink:
            hop.answers["RCPT TO:<c@x>"] = "452 4.2.2 Full"
            replies = await deliver(sink, a_mail("b@x", "c@x", "d@x"))
            assert [reply[:3] for reply in replies] == ["250", "452", "250"]
            assert hop.messages[0][1] == ["b@x", "d@x"]


async def test_lmtp_replies_received_before_the_connection_ended_are_used() -> None:
    async with a_hop(lmtp=True) as hop, closing(Lmtp(hop.address)) as lmtp:
        hop.answers["END c@x"] = Fault.RESET
        replies = await deliver(lmtp, a_mail("b@x", "c@x", "d@x"))
        assert [reply[:3] for reply in replies] == ["250", "451", "451"]


async def test_a_message_is_not_sent_again_if_the_connection_is_lost_after_its_end() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        await deliver(relay)
        hop.answers["END"] = [Fault.RESET]
        assert (await deliver(relay))[0][:3] == "451"
        assert len(hop.messages) == 2


@pytest.mark.parametrize("fault", ["421", "closes", "resets"])
async def test_an_idle_connection_that_ends_at_mail_is_replaced_once(fault: str) -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        await deliver(relay)
        hop.answers["MAIL"] = [FAULTS[fault]]
        assert (await deliver(relay))[0][:3] == "250"
        assert hop.greeted == 2
        hop.answers["MAIL"] = [FAULTS[fault], FAULTS[fault]]
        assert (await deliver(relay))[0][:3] == "451"


@pytest.mark.parametrize("words", [b"421 Idle\r\n", b"250 OK\r\n", b"x", b"\0" * 100_000])
async def test_a_connection_with_an_unexpected_reply_is_closed(words: bytes) -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        await deliver(relay)
        hop.say(words)
        await until(lambda: relay.status.connections == 0)
        assert (await deliver(relay))[0][:3] == "250"
        assert hop.greeted == 2


async def test_a_connection_whose_rset_is_refused_is_not_lent() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers |= {"RCPT": "550 5.1.1 Unknown", "RSET": "451 4.0.0 Not now"}
        assert (await deliver(relay))[0][:3] == "550"
        await until(lambda: relay.status.connections == 0)
        hop.answers.clear()
        assert (await deliver(relay))[0][:3] == "250"
        assert hop.greeted == 2


async def test_a_connection_is_not_lent_before_its_rset_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.hops.pool.RESET_SECONDS", 0.05)
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers |= {"RCPT": "550 5.1.1 Unknown", "RSET": Fault.SILENT}
        assert (await deliver(relay))[0][:3] == "550"
        assert phases(relay) == {Phase.RESETTING}
        await until(lambda: "RSET" in hop.commands)
        hop.answers.clear()
        assert (await deliver(relay))[0][:3] == "250"
        assert hop.greeted == 2
        await until(lambda: relay.status.connections == 1)


async def test_a_late_reply_is_not_attributed_to_another_message() -> None:
    async with a_hop() as hop, closing(Relay(hop.address, connections=1)) as relay:
        hop.answers["END"] = [Fault.SILENT]
        await give_up(relay, hop, "END")
        hop.say(b"250 2.0.0 Late\r\n")
        hop.answers["END"] = ["452 4.3.1 Full"]
        assert await deliver(relay) == ["452 4.3.1 Full"]


async def test_a_hop_that_does_not_read_a_large_message_times_out() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.read_content = False
        relay.time_limit = 0.3
        assert await deliver(relay, a_mail(content=large())) == [TOO_SLOW]
        assert relay.status.connections == 0


async def test_messages_that_wait_too_long_for_a_connection_get_451() -> None:
    async with a_hop() as hop, closing(Relay(hop.address, connections=2, wait=0.05)) as relay:
        hop.answers["END"] = [Fault.SILENT, Fault.SILENT]
        slow = [asyncio.ensure_future(deliver(relay)) for _ in range(2)]
        await until(lambda: len(hop.messages) == 2)
        assert relay.status.busy == 2
        assert (await deliver(relay))[0][:9] == "451 4.3.2"
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def test_a_waiting_message_makes_a_connection_when_another_ends() -> None:
    async with a_hop() as hop, closing(Relay(hop.address, connections=1)) as relay:
        hop.answers["END"] = [Fault.SILENT]
        first = asyncio.ensure_future(deliver(relay))
        await until(lambda: hop.messages)
        others = [asyncio.ensure_future(deliver(relay)) for _ in range(3)]
        await until(lambda: relay.status.waiting == 3)
        first.cancel()
        assert [(await each)[0][:3] for each in others] == ["250"] * 3


async def test_while_a_hop_is_down_one_message_tries_it_and_the_others_fail_immediately(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smtpd_fork.hops.pool.RETRY_SECONDS", 60.0)
    caplog.set_level(logging.INFO, "smtpd_fork")
    hop = Hop()
    await hop.start()
    await hop.stop()
    async with closing(Relay(hop.address)) as relay:
        assert (await deliver(relay))[0][:9] == "451 4.4.1"
        await hop.start()
        assert (await deliver(relay))[0][:9] == "451 4.4.1"
        assert hop.greeted == 0
        assert is_down(relay)
        assert relay.status.reason == f"{hop.address}: Connection refused"
        assert relay._pool is not None
        relay._pool._dial_at = 0.0  # half a second later
        hop.answers["GREETING"] = [Fault.CLOSE, "220 hop"]
        probe = asyncio.ensure_future(deliver(relay))
        await until(lambda: hop.greeted == 1)
        assert (await deliver(relay))[0][:9] == "451 4.4.1"
        assert (await probe)[0][:9] == "451 4.4.1"
        relay._pool._dial_at = 0.0
        assert (await deliver(relay))[0][:3] == "250"
        assert not is_down(relay)
    await hop.stop()
    lines = [record.getMessage() for record in caplog.records if record.name == "smtpd_fork.hops"]
    assert lines == [
        f"the next hop {hop.address} is down: {hop.address}: Connection refused; messages get 451",
        f"the next hop {hop.address} is up again, after 0 s",
    ]


async def test_a_hop_that_limits_connections_is_not_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.hops.pool.RETRY_SECONDS", 60.0)
    async with a_hop() as hop, closing(Relay(hop.address, connections=5)) as relay:
        hop.answers["GREETING"] = ["220 hop", *["421 4.7.0 Too many connections"] * 100]
        replies = await asyncio.gather(*(deliver(relay) for _ in range(20)))
        assert {reply[:3] for (reply,) in replies} == {"250"}
        assert not is_down(relay)
        assert relay.status.connections == 1


async def test_a_recipient_that_cannot_be_verified_gets_451() -> None:
    hop = Hop()
    await hop.start()
    await hop.stop()
    async with greeted(Relay(hop.address)) as client:
        await client.say("MAIL FROM:<a@example.com>")
        reply = await client.say("RCPT TO:<b@example.com>")
        assert (reply.code, reply.text[:5]) == (451, "4.4.1")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
async def test_an_error_during_a_verification_gets_451(
    step: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "silent":
        monkeypatch.setattr("smtpd_fork.sinks.next_hop.VERIFY_SECONDS", 0.1)
    async with a_hop() as hop:
        hop.answers[step] = FAULTS[fault]
        sink = Relay(hop.address)
        async with greeted(sink) as client:
            await client.say("MAIL FROM:<a@example.com>")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 451
            hop.answers.clear()
            monkeypatch.setattr("smtpd_fork.sinks.next_hop.VERIFY_SECONDS", 30.0)
            assert (await client.say("RCPT TO:<c@example.com>")).code == 250
        await sink.close()


async def test_a_failure_is_logged_with_client_queue_id_hop_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers["END"] = "552 5.2.2 Full"
        await deliver(relay)
    (line,) = [each for each in caplog.records if each.name == "smtpd_fork.sinks"]
    assert line.getMessage() == (
        f"[77-1] 192.0.2.7:4711: not delivered: <b@example.com>: {hop.address}: 552 5.2.2 Full"
    )
    assert line.__dict__["queue_id"] == "77-1-1"


async def test_a_delivery_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smtpd_fork.sinks")
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        await deliver(relay)
    (line,) = [each for each in caplog.records if each.name == "smtpd_fork.sinks"]
    assert line.getMessage() == (
        f"[77-1-1] delivered to {hop.address}: from=<a@example.org> to=1 size=25 "
        "client=192.0.2.7:4711: 250 2.0.0 OK"
    )
    fields = fields_of(line)
    assert fields["server"] == hop.address
    assert "extra" not in fields, "a sink's own fields are listed"


@pytest.mark.parametrize("step", ["GREETING", "EHLO"])
async def test_a_hanging_hop_is_left_early_and_then_avoided_if_there_is_another(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SWITCH_SECONDS", "AVOID_SECONDS"):
        monkeypatch.setattr(f"smtpd_fork.hops.dial.{name}", 0.6)
    async with a_hop() as hop, a_hop() as other:
        hop.answers[step] = Fault.SILENT
        async with closing(Relay([hop.address, other.address])) as relay:
            assert (await deliver(relay))[0][:3] == "250"
            for writer in list(other.writers):
                writer.transport.abort()
            await until(lambda: relay.status.connections == 0)
            assert (await deliver(relay))[0][:3] == "250"
        assert (hop.greeted, other.greeted) == (1, 2)
        for writer in list(hop.writers):
            writer.transport.abort()  # it does not notice the end of the client


@pytest.mark.parametrize("step", ["GREETING", "EHLO"])
async def test_a_hop_that_exceeds_the_opening_timeout_is_down(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.hops.dial.OPENING_SECONDS", 0.05)
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers[step] = Fault.SILENT
        assert (await deliver(relay))[0][:9] == "451 4.4.1"
        assert relay.status.reason == f"{hop.address}: no answer in time"


async def test_closing_does_not_wait_for_a_hop_that_does_not_end_tls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_sockets()  # skips the test without /proc, before anything is open
    monkeypatch.setattr("smtpd_fork.hops.connection.QUIT_SECONDS", 0.05)
    hop = Hop()
    server = await asyncio.start_server(hop._serve, "127.0.0.1", 0, ssl=certificates.server)
    address = f"localhost:{server.sockets[0].getsockname()[1]}"
    relay = Relay(address, tls="implicit", ca_file=str(certificates.ca), verify=False)
    assert (await relay.deliver(a_mail()))[0][:3] == "250"
    for writer in hop.writers:
        transport: Any = writer.transport
        transport.pause_reading()  # and so receives no close_notify
    sockets = len(open_sockets())
    await relay.close()
    await until(lambda: len(open_sockets()) < sockets)
    server.close()
    for writer in list(hop.writers):
        writer.transport.abort()
    await until(lambda: not hop.tasks)
