"""Mailbox and SmtpServer: store the messages of an application for its tests."""

from __future__ import annotations

import asyncio
import smtplib
import threading
from typing import TYPE_CHECKING, Any

import aiosmtplib
import pytest
import uvloop

from smtpd_fork import Server
from smtpd_fork.testing import Mailbox, Message, SmtpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tls import Certificates


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[SmtpServer]:
    with SmtpServer(loop_factory=request.param) as server:
        yield server


def send(server: SmtpServer, text: str = "Subject: hello\r\n\r\nText\r\n", *to: str) -> Any:
    with smtplib.SMTP(server.host, server.port) as client:
        return client.sendmail("a@example.org", to or ["b@example.com"], text)


def test_a_message_has_its_envelope_and_its_content(server: SmtpServer) -> None:
    send(server, "Subject: hello\r\n\r\nText\r\n", "b@example.com", "c@example.com")
    [message] = server.messages
    assert message.mail_from == "a@example.org"
    assert message.rcpt_tos == ["b@example.com", "c@example.com"]
    assert message.content == b"Subject: hello\r\n\r\nText\r\n"
    assert message.mail_options == ["SIZE=24"]
    assert message.peer[0] == server.host == "127.0.0.1"
    assert not message.tls


def test_a_message_is_parsed(server: SmtpServer) -> None:
    send(server, "Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\nText\r\n")
    [message] = server.messages
    assert message.email["Subject"] == "café"
    assert message.email.get_content() == "Text\n"
    assert str(message) == "a@example.org to b@example.com: café"


def test_messages_is_a_copy(server: SmtpServer) -> None:
    before = server.messages
    send(server)
    assert before == []
    assert len(server.messages) == 1


def test_a_message_has_the_attribute_tls(certificates: Certificates) -> None:
    with SmtpServer(tls_context=certificates.server) as server:
        with smtplib.SMTP(server.host, server.port) as client:
            client.starttls(context=certificates.client)
            client.sendmail("a@example.org", ["b@example.com"], "Subject: hello\r\n")
        assert server.messages[0].tls


def test_a_recipient_is_refused_and_the_others_are_not(server: SmtpServer) -> None:
    server.refuse("B@Example.com", "452 4.2.2 Mailbox full")
    refused = send(server, "Subject: hello\r\n", "b@example.com", "c@example.com")
    assert refused == {"b@example.com": (452, b"4.2.2 Mailbox full")}
    assert server.messages[0].rcpt_tos == ["c@example.com"]


@pytest.mark.parametrize(
    ("address", "command", "error", "code"),
    [
        (None, "CONNECT", smtplib.SMTPConnectError, 554),
        ("a@example.org", "MAIL", smtplib.SMTPSenderRefused, 550),
        (None, "DATA", smtplib.SMTPDataError, 554),
    ],
)
def test_each_command_can_be_refused_a_number_of_times(
    server: SmtpServer, address: Any, command: Any, error: type[smtplib.SMTPException], code: int
) -> None:
    server.refuse(address, command=command, times=1)
    with pytest.raises(error) as raised:
        send(server)
    assert raised.value.args[0] == code
    send(server)
    assert len(server.messages) == 1


def test_the_last_matching_refusal_applies(server: SmtpServer) -> None:
    server.refuse(reply="550 5.7.1 Nobody")
    server.refuse("b@example.com", "450 4.7.1 Later")
    with pytest.raises(smtplib.SMTPRecipientsRefused) as raised:
        send(server, "Subject: hello\r\n", "b@example.com", "c@example.com")
    assert [code for code, _ in raised.value.recipients.values()] == [450, 550]


def test_clear_forgets_messages_and_refusals(server: SmtpServer) -> None:
    send(server)
    server.refuse()
    server.clear()
    assert server.messages == []
    send(server)
    assert len(server.wait_for(1, timeout=0)) == 1


@pytest.mark.parametrize(
    ("address", "options", "text"),
    [
        (None, {"reply": "250 Ok"}, "expected a code of 4yz or 5yz"),
        (None, {"reply": "no"}, "no"),
        (None, {"command": "RCTP"}, "expected one of CONNECT, MAIL, RCPT, DATA"),
        ("b@example.com", {"command": "DATA"}, "DATA has no address"),
    ],
)
def test_an_invalid_refusal_is_an_error(address: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Mailbox().refuse(address, **options)


def test_it_waits_for_messages_of_another_thread(server: SmtpServer) -> None:
    sending = [threading.Thread(target=send, args=[server]) for _ in range(3)]
    for each in sending:
        each.start()
    assert len(server.wait_for(3)) == 3
    for each in sending:
        each.join()


def test_a_timeout_says_that_no_client_has_connected(server: SmtpServer) -> None:
    with pytest.raises(
        TimeoutError, match=r"^0 of 1 messages within 0 s; no client has connected$"
    ):
        server.wait_for(timeout=0)


def test_a_timeout_lists_received_and_rejected_messages(server: SmtpServer) -> None:
    send(server)
    server.refuse(command="DATA")
    with pytest.raises(smtplib.SMTPDataError):
        send(server)
    with pytest.raises(TimeoutError) as raised:
        server.wait_for(2, timeout=0.01)
    assert str(raised.value) == (
        "1 of 2 messages within 0.01 s; received: a@example.org to b@example.com: hello; "
        "refused: DATA (554 5.7.1 Message refused)"
    )


def test_a_timeout_counts_clients_that_sent_nothing(server: SmtpServer) -> None:
    smtplib.SMTP(server.host, server.port).quit()
    with pytest.raises(TimeoutError, match="clients that connected: 1; none has sent a message"):
        server.wait_for(timeout=0)


async def test_a_wait_that_blocks_the_loop_gets_a_hint() -> None:
    with pytest.raises(TimeoutError, match="in a coroutine, await wait_for_async"):
        Mailbox().wait_for(timeout=0)


async def send_async(host: str, port: int) -> None:
    await aiosmtplib.send(
        b"Subject: hello\r\n", hostname=host, port=port, sender="a@x.org", recipients=["b@x.org"]
    )


async def test_a_coroutine_waits_for_messages_of_a_server_in_a_thread(server: SmtpServer) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(server.wait_for_async(2))
        group.create_task(send_async(server.host, server.port))
        group.create_task(send_async(server.host, server.port))
    assert [message.mail_from for message in waiting.result()] == ["a@x.org"] * 2


async def test_a_coroutine_waits_for_messages_of_a_server_in_its_own_loop() -> None:
    mailbox = Mailbox()
    async with Server(mailbox, listen="127.0.0.1:0") as server, asyncio.TaskGroup() as group:
        waiting = group.create_task(mailbox.wait_for_async())
        group.create_task(send_async("127.0.0.1", server.port))
    assert waiting.result() == mailbox.messages


async def test_a_coroutine_that_waits_times_out_and_can_be_cancelled() -> None:
    mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.wait_for_async())
    with pytest.raises(TimeoutError, match="no client has connected"):
        await mailbox.wait_for_async(timeout=0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_bounce_has_an_empty_sender() -> None:
    assert str(Message("", ["b@example.com"], b"")) == "<> to b@example.com: no subject"
