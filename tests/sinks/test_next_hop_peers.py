"""Lmtp and Relay with real servers: Dovecot, Postfix, smtp-sink, and this server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from peers.postfix import instance
from support.client import Client
from support.daemon import PATIENCE, end
from support.dovecot import Dovecot, dovecot
from support.handlers import Collect
from support.mail import TRACE, a_mail, large
from support.next_hop import closing, phases
from support.peers import peer
from support.ports import free_port
from support.server import greeted, serve, until

from smtpd_fork.hops.connection import Phase
from smtpd_fork.message.results import per_recipient
from smtpd_fork.sinks.base import deliver_in_time
from smtpd_fork.sinks.lmtp import Lmtp
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.tls import Certificates

    from smtpd_fork.message import Mail
    from smtpd_fork.sinks.next_hop import NextHop

DIFFICULT = {
    "dots": b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n\r\n..\r\n.",
    "8 bit": b"Subject: x\r\n\r\n" + bytes(range(128, 256)) + b"\r\n",
    "no end": b"Subject: x\r\n\r\nno end",
    "no text": b"Subject: x\r\n",
    "long lines": b"Subject: x\r\n\r\n" + b"x" * 900 + b"\r\n" + b" " * 990 + b"\r\n",
    "dot at the edge": b"Subject: x\r\n\r\n" + b".\r\n" * 700_000,
    "25 MB": large(),
}


async def deliver(sink: NextHop, mail: Mail) -> list[str]:
    return per_recipient(await deliver_in_time(sink, mail), len(mail.recipients))


# -- Dovecot -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def a_dovecot() -> Iterator[Dovecot]:
    with dovecot() as running:
        yield running


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_dovecot_replies_for_each_recipient(a_dovecot: Dovecot, kind: str) -> None:
    address = a_dovecot.address if kind == "tcp" else a_dovecot.unix
    async with closing(Lmtp(address)) as lmtp:
        text = b"Subject: x\r\n\r\n" + b"text\r\n" * 1000
        names = [f"{name}@example.com" for name in ("b", "nobody", "full", "c")]
        replies = await deliver(lmtp, a_mail(*names, content=text))
        assert [reply[:9] for reply in replies] == [
            "250 2.0.0",
            "550 5.1.1",
            "552 5.2.2",
            "250 2.0.0",
        ]
        refused = await deliver(lmtp, a_mail("nobody@example.com"))
        assert refused[0][:9] == "550 5.1.1"
        assert (await deliver(lmtp, a_mail("b@example.com")))[0][:3] == "250"


@pytest.mark.peers
@pytest.mark.parametrize("name", DIFFICULT)
async def test_dovecot_gets_the_message_byte_for_byte(a_dovecot: Dovecot, name: str) -> None:
    content = DIFFICULT[name]
    async with closing(Lmtp(a_dovecot.unix)) as lmtp:
        mail = a_mail("c@example.com", content=content, body="8BITMIME")
        assert (await deliver(lmtp, mail))[0][:3] == "250"
    assert a_dovecot.messages("c@example.com")[-1].endswith(b"now\r\n" + content)


@pytest.mark.peers
async def test_unknown_mailboxes_of_dovecot_are_refused_at_rcpt(a_dovecot: Dovecot) -> None:
    lmtp = Lmtp(a_dovecot.unix)
    async with greeted(lmtp) as client:
        await client.say("MAIL FROM:<a@example.com>")
        reply = await client.say("RCPT TO:<nobody@example.com>")
        assert (reply.code, reply.text[:5]) == (550, "5.1.1")
        await client.say("RSET")
        assert (await client.deliver(to="b@example.com")).code == 250
    await lmtp.close()


# -- Postfix -----------------------------------------------------------------------------------


@contextmanager
def postfix(settings: str) -> Iterator[int]:
    """Run Postfix; yield the port of its server."""
    folder = Path(tempfile.mkdtemp(prefix="postfix-", dir="/tmp"))
    folder.chmod(0o755)
    port = free_port("127.0.0.1")
    service = f"127.0.0.1:{port} inet n - n - - smtpd\n"
    service += "tlsmgr unix - - n 1000? 1 tlsmgr\n"
    try:
        with instance(folder, settings, service):
            yield port
    finally:
        shutil.rmtree(folder)


@pytest.mark.peers
async def test_postfix_accepts_messages_and_its_refusals_are_passed_on_at_rcpt(
    certificates: Certificates,
) -> None:
    behind = Collect()
    async with serve(behind) as server:
        settings = (
            "relay_domains = example.com\n"
            f"relay_transport = smtp:[127.0.0.1]:{server.addresses[0][1]}\n"
            "relay_recipient_maps = inline:{b@example.com=x}\n"
            "smtp_tls_security_level = none\nlocal_header_rewrite_clients =\n"
            "smtpd_tls_security_level = may\n"
            "smtpd_relay_restrictions = reject_unauth_destination\n"
            f"smtpd_tls_cert_file = {certificates.cert}\nsmtpd_tls_key_file = {certificates.key}\n"
        )
        with postfix(settings) as port:
            relay = Relay(
                f"localhost:{port}", tls="starttls", ca_file=str(certificates.ca), dsn=True
            )
            async with serve(relay) as front, await Client.to(front.addresses[0]) as client:
                extensions = (await client.greet()).lines
                assert "DSN" in extensions
                await client.say("MAIL FROM:<a@example.org> BODY=8BITMIME RET=HDRS ENVID=e1")
                unknown = await client.say("RCPT TO:<c@example.com>")
                assert (unknown.code, unknown.text[:5]) == (550, "5.1.1")
                elsewhere = await client.say("RCPT TO:<c@example.net>")
                assert (elsewhere.code, elsewhere.text[:5]) == (554, "5.7.1")
                await client.say("RCPT TO:<b@example.com> NOTIFY=NEVER")
                await client.say("DATA")
                client.send("Subject: \xe4\r\n\r\n..\r\n..x\r\n.\r\n")
                reply = await client.reply()
                assert (reply.code, reply.text[:20]) == (250, "2.0.0 Ok: queued as ")
                assert relay._pool is not None
                (connection,) = relay._pool._open
                assert connection.client.secure
                assert "DSN" in connection.client.offered
            async with asyncio.timeout(PATIENCE):
                while not behind.envelopes:
                    await asyncio.sleep(0.02)
            await relay.close()
        assert behind.messages[0].endswith("Subject: \xe4\r\n\r\n.\r\n.x\r\n".encode())
        assert "NOTIFY=NEVER" in behind.envelopes[0].rcpt_options


@pytest.mark.peers
async def test_replies_without_accepted_recipients_are_read_before_the_next_message() -> None:
    with postfix("relay_domains = example.com\nrelay_transport = discard\n") as port:
        async with closing(Relay(f"127.0.0.1:{port}")) as relay:
            for _ in range(3):
                (reply,) = await deliver(relay, a_mail("b@example.net"))
                assert reply[:9] == "454 4.7.1"
                await until(lambda: phases(relay) == {Phase.READY})
            assert (await deliver(relay, a_mail("b@example.com")))[0][:3] == "250"
            assert relay.status.connections == 1


# -- smtp-sink ---------------------------------------------------------------------------------


@contextmanager
def smtp_sink(*options: str) -> Iterator[str]:
    port = free_port("127.0.0.1")
    command = [peer("smtp-sink"), "-u", "nobody", *options, f"127.0.0.1:{port}", "100"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ([], "250"),
        (["-L"], "250 250"),
        (["-p"], "250"),
        (["-8", "-p"], "250"),
        (["-e"], "250"),
        (["-w", "1"], "250"),
        (["-r", "rcpt"], "450"),
        (["-f", "rcpt"], "500"),
        (["-f", "mail"], "500"),
        (["-r", "data"], "450"),
        (["-f", "."], "500"),
        (["-r", "."], "450"),
        (["-L", "-f", "."], "500 500"),
        (["-f", "ehlo"], "250"),
        (["-r", "connect"], "451"),
        (["-q", "rcpt"], "451"),
        (["-q", "data"], "451"),
        (["-q", "."], "451"),
        (["-Q", "rcpt"], "451"),
        (["-Q", "."], "451"),
        (["-f", "rset"], "250"),
    ],
)
async def test_errors_of_smtp_sink_get_replies_and_leave_no_connection(
    options: list[str], codes: str
) -> None:
    lmtp = "-L" in options
    with smtp_sink(*options) as address:
        sink = Lmtp(address) if lmtp else Relay(address)
        async with closing(sink):
            for _ in range(2):
                replies = await deliver(sink, a_mail("b@example.com", "c@example.com"))
                assert {reply[:3] for reply in replies} == set(codes.split())


# -- this server as the hop --------------------------------------------------------------------


class Login:
    """A handler that accepts one user."""

    def __call__(
        self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any
    ) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"u", b"secret"), handled=False)


@asynccontextmanager
async def hop_with_auth(certificates: Certificates, **more: Any) -> AsyncIterator[tuple[str, Any]]:
    handler = Collect()
    options: dict[str, Any] = {
        "tls_cert": str(certificates.cert),
        "tls_key": str(certificates.key),
        "session_options": {"authenticator": Login()},
        **more,
    }
    async with serve(handler, **options) as server:
        yield f"localhost:{server.addresses[0][1]}", handler


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_the_certificate_is_verified_before_the_password_is_sent(
    certificates: Certificates, tls: Any
) -> None:
    listen = ["smtps:127.0.0.1:0" if tls == "implicit" else "127.0.0.1:0"]
    async with hop_with_auth(certificates, listen=listen) as (address, handler):
        facts: dict[str, Any] = {"tls": tls, "user": "u", "ca_file": str(certificates.ca)}
        async with closing(Relay(address, password="secret", **facts)) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:3] == "250"
            assert handler.messages == [TRACE + a_mail().content]
        async with closing(Relay(address, password="wrong", **facts)) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:9] == "451 4.7.0"
            assert "AUTH was answered 535" in relay.status.reason
            assert "wrong" not in relay.status.reason


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_hop_with_an_untrusted_certificate_gets_no_message(
    certificates: Certificates, tls: Any
) -> None:
    listen = ["smtps:127.0.0.1:0" if tls == "implicit" else "127.0.0.1:0"]
    async with hop_with_auth(certificates, listen=listen) as (address, handler):
        async with closing(Relay(address, tls=tls)) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:9] == "451 4.7.0"
            assert "certificate" in relay.status.reason
        assert handler.messages == []


async def test_the_error_reports_a_port_without_implicit_tls(certificates: Certificates) -> None:
    async with hop_with_auth(certificates) as (address, _):
        async with closing(Relay(address, tls="implicit")) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:9] == "451 4.7.0"
            assert "no implicit TLS on this port" in relay.status.reason


async def test_opportunistic_tls_accepts_any_certificate(
    certificates: Certificates,
) -> None:
    async with hop_with_auth(certificates) as (address, _):
        async with closing(Relay(address)) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:3] == "250"
            assert relay._pool is not None
            assert [each.client.secure for each in relay._pool._open] == [True]


async def test_a_hop_without_required_starttls_gets_no_message() -> None:
    async with serve(Collect()) as server:
        address = f"127.0.0.1:{server.addresses[0][1]}"
        async with closing(Relay(address, tls="starttls")) as relay:
            (reply,) = await deliver(relay, a_mail())
            assert reply[:9] == "451 4.7.0"


@pytest.mark.parametrize("name", DIFFICULT)
async def test_this_server_as_the_hop_gets_the_message_byte_for_byte(name: str) -> None:
    handler = Collect()
    async with serve(handler) as server:
        async with closing(Relay(f"127.0.0.1:{server.addresses[0][1]}")) as relay:
            mail = a_mail(content=DIFFICULT[name], body="8BITMIME")
            assert (await deliver(relay, mail))[0][:3] == "250"
    assert handler.messages == [TRACE + DIFFICULT[name]]


async def test_binary_content_and_utf8_addresses_are_passed_on() -> None:
    handler = Collect()
    binary = b"Subject: x\r\n\r\n\0\n.\n\r.\r\n" + bytes(range(256))
    async with serve(handler) as server:
        async with closing(Relay(f"127.0.0.1:{server.addresses[0][1]}", binarymime=True)) as relay:
            mail = a_mail("\xfc@example.com", content=binary, body="BINARYMIME", utf8=True)
            assert (await deliver(relay, mail))[0][:3] == "250"
    assert handler.messages == [TRACE + binary]
    assert handler.envelopes[0].rcpt_tos == ["\xfc@example.com"]
    assert handler.envelopes[0].smtp_utf8
