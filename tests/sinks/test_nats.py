"""NATS: each message is stored once in a stream, and acknowledged."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, given, settings
from nats.protocol.command import hpub_cmd
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import on_both_loops
from support.killing import assert_once, deliver_and_kill
from support.mail import CONTENT, contents, large, mail
from support.nats_server import NatsServer, run
from support.server import serve
from support.sinks import DELIVERED, DOWN, closing

from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.nats import Nats
from smtpd_fork.sinks.nats_connection import Pieces

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

peers = pytest.mark.peers


def test_the_client_library_does_not_copy_the_payload() -> None:
    head, content = b"Received: x\r\n", bytes(100)
    payload: Any = Pieces(head, content)
    command: Any = hpub_cmd("mail", "inbox", bytearray(b"NATS/1.0\r\n\r\n"), payload)
    assert isinstance(command, Pieces)
    whole = b"HPUB mail inbox 12 125\r\nNATS/1.0\r\n\r\n" + head + content + b"\r\n"
    assert b"".join(command.parts) == whole
    assert len(command) == len(whole)
    assert any(part is content for part in command.parts)


@peers
async def test_a_worker_finds_the_message_and_its_envelope(nats_server: NatsServer) -> None:
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url)) as sink:
        async with serve(sink) as smtp, await Client.to(smtp.addresses[0]) as client:
            await client.greet("client.example")
            reply = await client.deliver("Subject: x\r\n\r\n..dot\r\n")
    assert reply.code == 250
    (found,) = await nats_server.messages()
    envelope = json.loads(found.headers["Mail-Envelope"])
    assert reply.text == f"2.0.0 Ok: queued as {envelope['id']}"
    assert envelope["recipients"] == ["b@example.com"]
    assert found.headers["Mail-Version"] == "1"
    assert found.headers["Nats-Msg-Id"] == envelope["key"]
    assert found.data.startswith(b"Received: from client.example ([127.0.0.1])\r\n")
    assert found.data.endswith(b"\r\nSubject: x\r\n\r\n.dot\r\n")


@peers
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
async def test_every_byte_arrives(nats_server: NatsServer, content: bytes) -> None:
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url)) as sink:
        assert await sink.deliver(mail(content)) == DELIVERED
    (found,) = await nats_server.messages()
    assert found.data == b"".join(mail(content).relayed())


@peers
async def test_a_message_that_is_sent_again_is_stored_once(nats_server: NatsServer) -> None:
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url)) as sink:
        assert [await sink.deliver(mail()) for _ in range(3)] == [DELIVERED] * 3
    async with closing(Nats(nats_server.url)) as sink:
        assert await sink.deliver(mail()) == DELIVERED
    assert len(await nats_server.messages()) == 1


@peers
async def test_recipients_that_do_not_fit_into_the_header_get_452_and_are_sent_next(
    nats_server: NatsServer,
) -> None:
    await nats_server.new_stream()
    names = [f"{'x' * 200}{number}@example.com" for number in range(500)]
    async with closing(Nats(nats_server.url)) as sink:
        async with serve(sink) as smtp, await Client.to(smtp.addresses[0]) as client:
            await client.greet()
            while names:
                await client.say("MAIL FROM:<a@example.com>")
                taken = 0
                while names[taken:]:
                    code = (await client.say(f"RCPT TO:<{names[taken]}>")).code
                    if code == 452:
                        break
                    taken += 1
                await client.say("DATA")
                client.send("Subject: x\r\n\r\n.\r\n")
                assert (await client.reply()).code == 250
                names = names[taken:]
    found = [json.loads(each.headers["Mail-Envelope"]) for each in await nats_server.messages()]
    assert sum(len(each["recipients"]) for each in found) == 500
    assert len(found) == 3


@peers
async def test_a_message_that_exceeds_the_limit_of_the_server_is_refused_permanently() -> None:
    with NatsServer("max_payload: 100000") as server:
        await server.add_stream()
        async with closing(Nats(server.url)) as sink:
            assert str(await sink.deliver(mail(large(100_000)))).startswith("552 5.3.4 ")
            assert await sink.deliver(mail(large(99_000))) == DELIVERED
            assert sink.status.down_since is None


@peers
async def test_a_message_that_exceeds_the_limit_of_the_stream_is_refused_permanently(
    nats_server: NatsServer,
) -> None:
    await nats_server.new_stream(max_msg_size=10_000)
    async with closing(Nats(nats_server.url)) as sink:
        assert str(await sink.deliver(mail(large(10_000)))).startswith("552 5.3.4 ")
        assert await sink.deliver(mail(large(9_000))) == DELIVERED
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url)) as sink:
        assert await sink.deliver(mail()) == DELIVERED
        await nats_server.new_stream(max_msg_size=10_000)  # without the sink's knowledge
        assert str(await sink.deliver(mail(large(10_000)))).startswith("552 5.3.4 ")


@peers
async def test_a_message_of_8_megabytes_arrives_without_blocking_the_event_loop() -> None:
    with NatsServer("max_payload: 60000000\nmax_pending: 120000000") as server:
        await server.add_stream()
        each = mail(large(8_000_000))
        async with closing(Nats(server.url)) as sink:
            blockbuster = BlockBuster()
            blockbuster.activate()
            try:
                assert await sink.deliver(each) == DELIVERED
            finally:
                blockbuster.deactivate()
        (found,) = await server.messages()
        assert found.data == b"".join(each.relayed())


@peers
async def test_many_messages_share_a_connection(nats_server: NatsServer) -> None:
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url, connections=20)) as sink:
        many = [sink.deliver(mail(b"%d" % number)) for number in range(300)]
        assert set(await asyncio.gather(*many)) == {DELIVERED}
    assert len(await nats_server.messages()) == 300


@peers
async def test_passwords_and_tokens_are_used_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    users = 'authorization { user: bob, password: "hunter2" }'
    shown = ""
    with NatsServer(users, login="bob:hunter2@") as server:
        await server.add_stream()
        in_url = server.url.replace("://", "://bob:hunter2@")
        for sink in (Nats(in_url), Nats(server.url, username="bob", password="hunter2")):
            async with closing(sink):
                assert await sink.deliver(mail()) == DELIVERED
                shown += f"{sink!r} {sink.destination}"
        for wrong in (Nats(server.url), Nats(server.url, username="bob", password="hunter3")):
            async with closing(wrong):
                assert await wrong.deliver(mail()) == DOWN
                assert "uthorization" in wrong.status.reason
                shown += f"{wrong!r} {wrong.status}"
    with NatsServer("authorization { token: hunter2 }", login="hunter2@") as server:
        await server.add_stream()
        async with closing(Nats(server.url, token="hunter2")) as sink:
            assert await sink.deliver(mail()) == DELIVERED
    assert "hunter" not in shown + caplog.text


@peers
async def test_tls_is_verified_and_no_password_is_sent_without_it(
    certificates: Certificates, nats_server: NatsServer
) -> None:
    files = f'cert_file: "{certificates.cert}", key_file: "{certificates.key}"'
    ca = str(certificates.ca)
    with NatsServer(f"tls {{ {files} }}") as server:
        url = server.url.replace("nats:", "tls:")
        async with closing(Nats(url, ca_file=ca)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "no stream has the subject" in sink.status.reason
        async with closing(Nats(url)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "certificate verify failed" in sink.status.reason
    url = nats_server.url.replace("nats:", "tls:")
    async with closing(Nats(url, ca_file=ca, username="bob", password="hunter2")) as sink:
        assert await sink.deliver(mail()) == DOWN
        assert "SecureConnWantedError" in sink.status.reason


@peers
@on_both_loops
def test_a_killed_daemon_loses_nothing_and_stores_nothing_twice(
    nats_server: NatsServer, tmp_path: Path, loop: str
) -> None:
    run(nats_server.new_stream())
    handler = f"smtpd_fork.sinks.nats:Nats:{nats_server.url}"
    names = deliver_and_kill("--handler", handler, "--loop", loop, cwd=tmp_path)
    assert_once(names, [each.data for each in run(nats_server.messages())])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://bob:hunter2@x"}, r"url '\*\*\*': write nats://"),
        ({"url": "nats://bob:hunter2@"}, "write nats://"),
        ({"url": "nats://x/hunter2"}, "write nats://"),
        ({"url": "nats://x:hunter2"}, "write nats://"),
        ({"url": "nats://hunter2@x"}, "write the token as the key token"),
        ({"subject": "mail.>"}, "subject 'mail.>': expected words separated by dots"),
        ({"subject": "mail..x"}, "expected words separated by dots"),
        ({"require": "aof"}, "require 'aof': expected nothing or file"),
    ],
)
def test_a_bad_value_is_an_error_that_shows_no_secret(options: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Nats(**{"url": "nats://127.0.0.1", **options})
    assert "hunter2" not in str(caught.value)


@peers
def test_it_runs_under_aiosmtpd(nats_server: NatsServer) -> None:
    run(nats_server.new_stream())
    with client_of_aiosmtpd(Nats(nats_server.url)) as client:
        client.sendmail("a@example.com", ["b@example.com"], CONTENT)
    (found,) = run(nats_server.messages())
    assert found.data.endswith(CONTENT)
