"""Lmtp and Relay with pass-client: the client is described to the next hop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.handlers import Collect
from support.mail import a_mail
from support.next_hop import Fault, Hop, a_hop, closing
from support.server import greeted, serve

from smtpd_fork import SettingError
from smtpd_fork.filters import Accept
from smtpd_fork.message import MailClient
from smtpd_fork.sinks import Discard, Lmtp, Relay
from smtpd_fork.sinks.base import deliver_in_time

OFFERS = ("PIPELINING", "XCLIENT NAME ADDR PORT HELO", "XFORWARD NAME ADDR HELO IDENT SOURCE")


def said(hop: Hop, *verbs: str) -> list[str]:
    """Return the commands with some verbs that a hop has received."""
    return [each for each in hop.commands if each.split()[0] in verbs]


async def test_xclient_is_sent_once_for_consecutive_messages_of_a_client() -> None:
    hosts = ["192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.7"]
    async with a_hop(offers=OFFERS) as hop:
        hop.answers["XCLI"] = "220 hop.example"
        async with closing(Relay(hop.address, pass_client="xclient")) as relay:
            for host in hosts:
                await relay.deliver(a_mail(client=MailClient((host, 25), f"of.{host[-1]}.example")))
        assert len(hop.messages) == 4
        assert hop.greeted == 1
        assert said(hop, "XCLIENT", "EHLO")[1:] == [
            "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=25 HELO=of.7.example",
            "EHLO of.7.example",
            "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.8 PORT=25 HELO=of.8.example",
            "EHLO of.8.example",
            "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=25 HELO=of.7.example",
            "EHLO of.7.example",
        ]


async def test_concurrent_messages_are_each_sent_with_their_own_client() -> None:
    kept = Collect()
    seen: list[tuple[str, str]] = []

    class Sees(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            seen.append((session.peer[0], envelope.mail_from))
            return await kept.handle_DATA(server, session, envelope)

    trust = {"xclient_trust": ["127.0.0.1"], "max_from_ip": 3}
    async with serve(Sees(), **trust) as server:
        address = f"127.0.0.1:{server.port}"
        async with closing(Relay(address, pass_client="xclient", connections=5)) as relay:
            mails = [
                a_mail(client=MailClient((f"192.0.2.{n % 7}", n)), sender=f"a{n % 7}@x")
                for n in range(60)
            ]
            replies = await asyncio.gather(*map(relay.deliver, mails))
        taken = [reply for reply in replies if reply[0][0] == "2"]
    assert len(seen) == len(taken) > 20
    assert all(host[-1] == sender[1] for host, sender in seen)


async def test_a_refusal_of_a_client_does_not_affect_other_clients() -> None:
    trust = {"xclient_trust": ["127.0.0.1"], "deny": ["192.0.2.7"]}
    async with serve(Discard(), **trust) as server:
        address = f"127.0.0.1:{server.port}"
        async with closing(Relay(address, pass_client="xclient")) as relay:
            for host, code in {"192.0.2.8": "250", "192.0.2.7": "554", "192.0.2.9": "250"}.items():
                replies = await relay.deliver(a_mail(client=MailClient((host, 25))))
                reply = replies if isinstance(replies, str) else replies[0]
                assert reply[:3] == code, reply
        assert server.gate.stats()["refused_deny"] == 1


async def test_a_hop_that_does_not_trust_this_host_is_down(caplog: Any) -> None:
    async with a_hop() as hop, closing(Relay(hop.address, pass_client="xclient")) as relay:
        replies = await relay.deliver(a_mail())
        assert str(replies).startswith("451 4.7.0")
        assert relay.status.reason.endswith("the hop does not offer XCLIENT to this host")
        assert hop.messages == []


async def test_recipients_are_verified_and_cached_per_client() -> None:
    accept = Accept(["a.example"], relay_from=["192.0.2.7"])
    trust = {"xclient_trust": ["127.0.0.1"]}
    async with serve([accept, Discard()], **trust) as hop:
        relay = Relay(f"127.0.0.1:{hop.port}", pass_client="xclient")
        async with greeted(relay, **trust) as client:
            for host, code in {"192.0.2.7": 250, "192.0.2.8": 550, "192.0.2.9": 550}.items():
                for _ in range(2):
                    await client.say(f"XCLIENT ADDR={host}")
                    await client.say("EHLO x", "MAIL FROM:<a@b.example>")
                    reply = await client.say("RCPT TO:<c@elsewhere.example>")
                    assert reply.code == code, host
                    await client.say("RSET")


@pytest.mark.parametrize("lmtp", [False, True])
async def test_xforward_is_sent_with_each_message(lmtp: bool) -> None:
    async with a_hop(lmtp=lmtp, offers=OFFERS) as hop:
        kind: Any = Lmtp if lmtp else Relay
        async with closing(kind(hop.address, pass_client="xforward")) as sink:
            hop.answers["XFOR"] = ["250 OK", "501 5.5.4 No"]
            for _ in range(2):
                await sink.deliver(a_mail(client=MailClient(("192.0.2.7", 25), "x.example")))
        assert len(hop.messages) == 2
        assert said(hop, "XFORWARD", "XCLIENT") == 2 * [
            "XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.7",
            "XFORWARD HELO=x.example IDENT=77-1-1 SOURCE=REMOTE",
        ]


async def test_missing_xforward_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_hop() as hop, closing(Relay(hop.address, pass_client="xforward")) as relay:
        for _ in range(3):
            await relay.deliver(a_mail())
        assert (len(hop.messages), said(hop, "XFORWARD")) == (3, [])
        assert caplog.messages == [f"{hop.address} does not offer XFORWARD to this host"]


async def test_the_origin_is_passed_on_through_several_servers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "smtpd_fork.sinks")
    kept = Collect()
    trust = {"xforward_trust": ["127.0.0.1"]}
    async with serve(kept, **trust) as last:
        relay = Relay(f"127.0.0.1:{last.port}", pass_client="xforward", verify=False)
        async with greeted(relay, **trust) as client:
            await client.say("XFORWARD ADDR=198.51.100.7 PORT=40312 HELO=x IDENT=4F3C")
            assert (await client.deliver()).code == 250
            assert (await client.deliver()).code == 250
    first, second = (each.xforward for each in kept.envelopes)
    assert first == {"ADDR": "198.51.100.7", "PORT": "40312", "HELO": "x", "IDENT": "4F3C"}
    assert (second["ADDR"], second["SOURCE"]) == ("127.0.0.1", "REMOTE")
    lines = [each.getMessage() for each in caplog.records if "delivered to" in each.getMessage()]
    assert " orig_client=198.51.100.7:40312 orig_queue_id=4F3C: 250 " in lines[0]
    assert "orig_" not in lines[1]


def test_a_password_and_xclient_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="pass-client"):
        Relay("127.0.0.1:25", user="u", password="p", pass_client="xclient")


async def test_xclient_is_sent_again_on_a_new_connection() -> None:
    async with a_hop(offers=OFFERS) as hop:
        hop.answers["XCLI"] = "220 hop.example"
        async with closing(Relay(hop.address, pass_client="xclient")) as relay:
            mail = a_mail(client=MailClient(("192.0.2.7", 25), "x.example"))
            assert str(await relay.deliver(mail))[2:5] == "250"
            for writer in list(hop.writers):
                writer.transport.abort()
            assert str(await relay.deliver(mail))[2:5] == "250"
        assert len(said(hop, "XCLIENT")) == 2
        assert hop.greeted == 2


async def test_silence_after_xclient_is_limited_by_the_timeout_of_the_message() -> None:
    async with a_hop(offers=OFFERS) as hop:
        hop.answers["XCLI"] = Fault.SILENT
        async with closing(Relay(hop.address, pass_client="xclient", timeout=0.2)) as relay:
            assert (await deliver_in_time(relay, a_mail()))[:9] == "451 4.3.0"
            assert relay.status.connections == 0
