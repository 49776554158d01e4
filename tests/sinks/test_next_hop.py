"""Lmtp and Relay with a hop that works correctly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiosmtplib
import pytest
from aiosmtpd.controller import Controller
from support.client import Client
from support.mail import TRACE, a_mail
from support.next_hop import Hop, a_hop, closing
from support.ports import free_port
from support.server import greeted, serve, until

from smtpd_fork.errors import ConfigError
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.lmtp import Lmtp
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_message_is_passed_on_and_the_reply_of_the_hop_returned() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.answers["END"] = "250 2.6.0 kept as 4711"
        assert await relay.deliver(a_mail(content=b"Subject: x\r\n\r\n.dot\r\n..\r\n")) == [
            "250 2.6.0 kept as 4711"
        ]
        sender, recipients, content = hop.messages[0]
        assert (sender, recipients) == ("MAIL FROM:<a@example.org> SIZE=82", ["b@example.com"])
        assert content == TRACE + b"Subject: x\r\n\r\n.dot\r\n..\r\n"


async def test_messages_share_a_connection() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        for _ in range(5):
            await relay.deliver(a_mail())
        assert hop.greeted == 1
        assert len(hop.messages) == 5
        assert relay.status.connections == 1
        assert relay.status.busy == 0


async def test_a_connection_is_used_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.hops.pool.REUSE_SECONDS", 0.0)
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        for _ in range(3):
            await relay.deliver(a_mail())
        assert hop.greeted == 3


async def test_the_number_of_connections_is_limited() -> None:
    async with a_hop() as hop, closing(Relay(hop.address, connections=3)) as relay:
        await asyncio.gather(*(relay.deliver(a_mail()) for _ in range(50)))
        assert len(hop.messages) == 50
        assert hop.greeted == 3


async def test_lmtp_has_a_reply_for_each_recipient() -> None:
    async with a_hop(lmtp=True) as hop, closing(Lmtp(hop.address)) as lmtp:
        hop.answers["RCPT TO:<c@x>"] = "550 5.1.1 Unknown"
        hop.answers["END d@x"] = "452 4.2.2 Full"
        assert await lmtp.deliver(a_mail("b@x", "c@x", "d@x")) == [
            "250 2.0.0 OK",
            "550 5.1.1 Unknown",
            "452 4.2.2 Full",
        ]


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
async def test_a_client_gets_one_reply_in_smtp_and_all_in_lmtp(protocol: str) -> None:
    async with a_hop(lmtp=True) as hop:
        sink = Lmtp(hop.address, verify=False)
        hop.answers["END c@example.com"] = "452 4.2.2 Full"
        async with serve(sink, listen=[f"{protocol}:127.0.0.1:0"]) as server:
            async with await Client.to(server.addresses[0]) as client:
                hello = "LHLO" if protocol == "lmtp" else "EHLO"
                client.send(
                    f"{hello} x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
                    "RCPT TO:<c@example.com>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n"
                )
                said = (await client.reader.read()).decode().split("\r\n")
        after = said[said.index(next(line for line in said if line.startswith("354"))) + 1 : -2]
        expected = ["452 4.2.2 Full"] if protocol == "smtp" else ["250 2.0.0 OK", "452 4.2.2 Full"]
        assert after == expected
        await sink.close()


@pytest.mark.parametrize(("helo", "said"), [(None, "mx.example.com"), ("me.example", "me.example")])
async def test_ehlo_has_the_name_of_this_server(helo: str | None, said: str) -> None:
    async with a_hop() as hop:
        async with greeted(Relay(hop.address, helo=helo)) as client:
            assert (await client.deliver()).code == 250
        assert hop.commands[0] == f"EHLO {said}"


async def test_received_is_added_at_the_top_and_the_rest_is_unchanged() -> None:
    async with a_hop() as hop:
        async with greeted(Relay(hop.address)) as client:
            await client.say("MAIL FROM:<a@example.com> BODY=8BITMIME")
            await client.say("RCPT TO:<b@example.com>")
            await client.say("DATA")
            await client.say("Subject: \xe4\r\n\r\n..\r\n..x\r\n.")
        sender, _, content = hop.messages[0]
        assert sender.startswith("MAIL FROM:<a@example.com> BODY=8BITMIME SIZE=")
        trace, _, rest = content.partition(b"Subject:")
        assert trace.startswith(b"Received: from ")
        assert rest == " \xe4\r\n\r\n.\r\n.x\r\n".encode()


def test_it_runs_under_aiosmtpd() -> None:
    """The controller of aiosmtpd runs an event loop in a thread."""

    async def talk(port: int) -> list[Any]:
        message = b"Subject: x\r\n\r\nx\r\n"
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False)
        async with client:
            with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
                await client.sendmail(
                    "a@example.com", ["no@example.com"], b"Subject: x\r\n\r\nx\r\n"
                )
            _, reply = await client.sendmail("a@example.com", ["b@example.com"], message)
            return [reply]

    async def with_hop() -> None:
        async with a_hop() as hop:
            hop.answers["RCPT TO:<no@example.com>"] = "550 5.1.1 Unknown"
            relay = Relay(hop.address)
            port = free_port()
            controller = Controller(relay, "127.0.0.1", port)
            await asyncio.to_thread(controller.start)
            try:
                assert await talk(port) == ["2.0.0 OK"]
                assert len(hop.messages) == 1
                closed = asyncio.run_coroutine_threadsafe(relay.close(), controller.loop)
                await asyncio.wrap_future(closed)
            finally:
                await asyncio.to_thread(controller.stop)

    asyncio.run(with_hop())


async def test_a_recipient_that_the_hop_refuses_is_refused_at_rcpt() -> None:
    async with a_hop() as hop:
        hop.answers["RCPT TO:<no@example.com>"] = "550 5.1.1 <no@example.com> Unknown"
        relay = Relay(hop.address)
        async with greeted(relay) as client:
            await client.say("MAIL FROM:<a@example.com>")
            reply = await client.say("RCPT TO:<no@example.com>")
            assert (reply.code, reply.text) == (550, "5.1.1 <no@example.com> Unknown")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250
            assert (await client.say("RCPT TO:<no@example.com>")).code == 550
            await until(lambda: hop.commands.count("RSET") == 2)
            asked = [line for line in hop.commands if line.startswith("RCPT")]
            assert asked == ["RCPT TO:<no@example.com>", "RCPT TO:<b@example.com>"]
            assert "MAIL FROM:<>" in hop.commands
            assert relay.status.busy == 0


async def test_recipients_are_accepted_if_the_hop_refuses_the_null_sender() -> None:
    async with a_hop() as hop:
        hop.answers["MAIL FROM:<>"] = "550 5.7.1 No null senders"
        async with greeted(Relay(hop.address)) as client:
            await client.say("MAIL FROM:<a@example.com>")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250


async def test_without_verify_the_hop_is_not_asked_at_rcpt() -> None:
    async with a_hop() as hop:
        async with greeted(Relay(hop.address, verify=False)) as client:
            await client.say("MAIL FROM:<a@example.com>")
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250
        assert hop.greeted == 0


async def test_the_next_hop_is_used_while_the_first_does_not_answer() -> None:
    first = Hop()
    await first.start()
    await first.stop()
    async with a_hop() as second:
        relay = Relay([first.address, second.address])
        async with closing(relay):
            assert (await relay.deliver(a_mail()))[0][:3] == "250"
            assert len(second.messages) == 1


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    path = tmp_path / "lmtp"
    hop = Hop(lmtp=True)
    server = await asyncio.start_unix_server(hop._serve, path)
    async with closing(Lmtp(f"unix:{path}")) as lmtp:
        assert (await lmtp.deliver(a_mail()))[0][:3] == "250"
        assert lmtp.destination == f"LMTP to unix:{path}"
    server.close()
    await asyncio.gather(*hop.tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"address": ""}, "write HOST:PORT"),
        ({"address": "*:25"}, "write HOST:PORT"),
        ({"address": "smtps:mx.example.com:465"}, "write HOST:PORT"),
        ({"address": "mx:"}, "write mx:DOMAIN"),
        ({"address": "mx.example.com", "helo": "a b"}, "not the name of a host"),
        ({"address": "mx.example.com", "user": "u"}, "user requires password"),
        ({"address": "mx.example.com", "user": "u", "password": "hush"}, "a password needs tls"),
        ({"address": "unix:x", "tls": "implicit"}, "needs no TLS"),
        ({"address": "mx.example.com", "ca_file": "x"}, "has no effect"),
        ({"address": "mx.example.com", "dns_server": "x"}, "write ADDRESS"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says) as raised:
        Relay(**arguments)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("address", ["localhost", "mx:example.com"])
def test_lmtp_needs_a_port(address: str) -> None:
    with pytest.raises(SettingError):
        Lmtp(address)


def test_check_reports_a_missing_ca_file(tmp_path: Path) -> None:
    relay = Relay("mx.example.com", tls="starttls", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"none\.pem: No such file"):
        relay.check()


def test_a_password_is_in_no_repr() -> None:
    relay = Relay("mx.example.com", tls="implicit", user="u", password="hush")
    assert "hush" not in repr(relay) + repr(relay.target) + repr(relay.target.terms("mx"))


def test_a_sink_can_be_used_in_one_loop_after_another() -> None:
    port = free_port("127.0.0.1")
    relay = Relay(f"127.0.0.1:{port}")

    async def deliver(*, last: bool) -> str:
        hop = Hop()
        hop.port = port
        await hop.start()
        reply = (await relay.deliver(a_mail()))[0]
        if last:
            await relay.close()
        await hop.stop()
        return reply

    assert asyncio.run(deliver(last=False))[:3] == "250"
    assert asyncio.run(deliver(last=True))[:3] == "250"
