"""Each command and message with a reply 4yz or 5yz is logged, with client, reply and reason."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client
from support.handlers import check_password
from support.server import greeted, serve, until

from smtpd_fork.dialogue.rejections import (
    BY_HANDLER,
    REASONS,
    Rejection,
    line_of,
    rejection_of,
)
from smtpd_fork.gate import client_reporter
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.tls import Certificates

ID = r"[0-9a-f]+-[0-9a-f]+"


class Refuses(Discard):
    """Has a hook for each command, which rejects arguments with "no"."""

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        if name == "no":
            return ["550 5.7.1 No such name here"]
        session.host_name = name
        return replies

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("no"):
            return "550 5.7.1 We do not like the sender"
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("no"):
            return "550 5.7.1 We do not relay"
        if address.startswith("fail"):
            raise ValueError(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if b"virus" in envelope.content:
            return "554 5.7.1 It has a virus"
        return await super().handle_DATA(server, session, envelope)


SAID: dict[str, tuple[Sequence[str], str, str]] = {
    "HELO by us": (["HELO"], "HELO", "501 5.5.4 Syntax: HELO hostname; helo=<client.example>"),
    "HELO by a handler": (
        ["EHLO no"],
        "EHLO",
        "550 5.7.1 No such name here; helo=<client.example>",
    ),
    "a sender by a handler": (
        ["MAIL FROM:<no@a.example>"],
        "MAIL",
        "550 5.7.1 We do not like the sender; from=<no@a.example> helo=<client.example>",
    ),
    "a sender by us": (
        ["MAIL FROM:<a@b..example>"],
        "MAIL",
        r"553 5.1.7 Error: malformed address [ID]; from=<<a@b..example>> helo=<client.example>",
    ),
    "a recipient by a handler": (
        [MAIL, "RCPT TO:<no@d.example>"],
        "RCPT",
        "550 5.7.1 We do not relay; from=<a@example.com> to=<no@d.example> helo=<client.example>",
    ),
    "a recipient by us": (
        [MAIL, "RCPT TO:<c@d.example> FOO=BAR"],
        "RCPT",
        "555 5.5.4 RCPT TO parameters not recognized or not implemented; from=<a@example.com> to=",
    ),
    "a recipient at which a handler fails": (
        [MAIL, "RCPT TO:<fail@d.example>"],
        "RCPT",
        "451 4.3.0 Local error in processing, try again later [ID]; from=<a@example.com> to=<fail@",
    ),
    "DATA out of place": (["DATA"], "DATA", "503 5.5.1 Error: need RCPT command; helo="),
    "a message by a handler": (
        [MAIL, RCPT, "RCPT TO:<e@f.example>", "DATA", "virus\r\n."],
        "DATA",
        "554 5.7.1 It has a virus; from=<a@example.com> to=<b@example.com> recipients=2 helo=",
    ),
    "a message by us": (
        [MAIL, RCPT, "DATA", "x" * 2000 + "\r\n."],
        "DATA",
        "552 5.3.4 Error: Too much mail data [ID]; from=<a@example.com> to=<b@example.com> helo=",
    ),
    "AUTH by us": (["AUTH PLAIN AGEAYg=="], "AUTH", "535 5.7.8 Authentication credentials invalid"),
    "an unknown command": (
        ["c2VjcmV0IHBhc3N3b3Jk"],
        "command",
        "500 5.5.1 Error: command not recognized; helo=<client.example>",
    ),
}


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("case", SAID)
async def test_a_rejection_is_one_log_line_with_client_session_reply_and_addresses(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines, command, rest = SAID[case]
    caplog.set_level(logging.INFO, logger="smtpd_fork.session")
    options = {"authenticator": check_password, "auth_require_tls": False}
    async with (
        serve(Refuses(), max_message_size=1000, session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet("client.example")
        for line in lines:
            reply = await client.say(line)
        assert reply.code >= 400
    (record,) = (each for each in caplog.records if "rejected" in each.getMessage())
    text = record.getMessage()
    match = re.fullmatch(rf"rejected {command} from 127\.0\.0\.1 \[({ID})\]: (.*)", text)
    assert match, text
    session = match[1]
    assert match[2].startswith(rest.replace("[ID]", f"[{session}]")), text
    assert record.levelno == logging.INFO
    assert record.__dict__["session"] == session
    assert record.__dict__["client"].startswith("127.0.0.1:")
    assert record.__dict__["command"] == command
    assert record.__dict__["reply"][:3] == str(reply.code)
    assert "secret" not in caplog.text
    assert "c2VjcmV0" not in caplog.text
    (remembered,) = server.tally.rejections.of_session(session)
    assert str(remembered) == text
    assert server.tally.rejections.counts == {remembered.reason: 1}
    assert server.tally.replies[command if command != "command" else "other"][
        ord(str(reply.code)[0])
    ]


async def test_a_rejection_that_concerns_more_than_the_protocol_has_the_session_id() -> None:
    async with greeted(Refuses(), max_message_size=1000) as client:
        too_much = await client.deliver("x" * 2000 + "\r\n")
        assert re.fullmatch(rf"5.3.4 Error: Too much mail data \[{ID}\]", too_much.text)
        assert (await client.say("DATA")).text == "5.5.1 Error: need RCPT command"
        await client.say(MAIL)
        assert (await client.say("RCPT TO:<no@d.example>")).text == "5.7.1 We do not relay"


async def test_many_rejections_of_a_client_are_one_line_and_a_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="smtpd_fork.session")
    async with serve(Refuses()) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say(MAIL)
            for n in range(50):
                await client.say(f"RCPT TO:<no{n}@d.example>")
        assert server.tally.rejections.counts == {BY_HANDLER: 50}
    first, count = (text for text in caplog.messages if "rejected" in text)
    assert "to=<no0@d.example>" in first
    assert "to=<no49@d.example>" in count
    assert "; 49 more in " in count


async def test_at_debug_the_replies_are_logged_beside_the_commands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="smtpd_fork.session")
    async with greeted(Refuses()) as client:
        await client.deliver("x\r\n")
        await client.say("QUIT")
    lines = [text for text in caplog.messages if re.search(": (>>|<<) ", text)]
    said = [re.sub(r"^\[.*?: ", "", line) for line in lines]
    assert said[0].startswith("<< '220 ")
    assert said[-2:] == [">> 'QUIT'", "<< '221 2.0.0 Bye'"]
    assert "<< '354 End data with <CR><LF>.<CR><LF>'" in said


MISTAKES = {
    "PROXY, version 1": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "without +proxy"),
    "PROXY, version 2": (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
        "without +proxy",
    ),
    "TLS": (
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        "TLS handshake was received on a plaintext port",
    ),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP request was received on an SMTP port"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_probable_mistake_is_one_warning_per_client(
    mistake: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, text = MISTAKES[mistake]
    caplog.set_level(logging.WARNING, logger="smtpd_fork.session")
    async with serve(Discard()) as server:
        for _ in range(5):
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                client.send(sent)
                await until(lambda: text in caplog.text)
        warned = [each for each in caplog.records if text in each.getMessage()]
        assert len(warned) == 1
    assert warned[0].levelno == logging.WARNING
    assert "127.0.0.1" in warned[0].getMessage()


async def test_a_network_of_ipv6_is_one_client_and_a_handlers_reply_is_logged_whole() -> None:
    keys = set()

    class Quotes(Refuses):
        async def handle_RCPT(self, *_: Any) -> str:
            return '550 5.1.1 Nobody is named "bob" here'

    session = SMTP(Quotes(), reporter=client_reporter(), enhanced=True)
    shared = session.connection.shared
    for host in ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"):
        client = SMTP(session.event_handler, shared=shared, peer=(host, 25))
        dialogue = client.connection.dialogue
        dialogue.row, dialogue.line = dialogue.rows[b"RCPT"], b"RCPT TO:<bob@example.com>"
        rejection = rejection_of(dialogue, b'550 5.1.1 Nobody is named "bob" here\r\n', "handler")
        assert rejection.reply == '550 5.1.1 Nobody is named "bob" here'
        keys.add(line_of(dialogue, rejection).key)
    assert len(keys) == 2


def test_text_of_a_client_is_printable_and_short_in_a_rejection() -> None:
    said = Rejection("s", "192.0.2.1", "RCPT", "550 no", "handler", "a", "b", 1, "helo")
    assert str(said) == "rejected RCPT from 192.0.2.1 [s]: 550 no; from=<a> to=<b> helo=<helo>"


def test_every_enhanced_status_code_of_this_server_has_a_reason() -> None:
    from smtpd_fork.dialogue import replies

    texts = [each for each in vars(replies).values() if isinstance(each, tuple)]
    texts += list(replies.BODY_FAULT_REPLIES.values()) + list(
        replies.COMMAND_FAULT_REPLIES.values()
    )
    codes = {text[1] for text in texts if len(text) == 3 and text[0] >= 400}
    strings = [each for each in vars(replies).values() if isinstance(each, str)]
    codes |= {each.split()[1] for each in strings if re.match(r"[45]\d\d \d", each)}
    assert codes <= set(REASONS)


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit TLS"])
@pytest.mark.parametrize("how", ["closed", "reset", "silent", "garbage", "garbage at once"])
async def test_a_failed_tls_handshake_is_logged_with_its_reason(
    how: str, implicit: bool, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    reason = {
        "closed": "connection closed by the client",
        "reset": "(reset by peer|connection closed by the client)",
        "silent": "longer than 0.2 seconds",
        "garbage": r"\[SSL",
        "garbage at once": r"\[SSL",
    }[how]
    caplog.set_level(logging.INFO, logger="smtpd_fork.session")
    garbage = b"this is no handshake\r\n" * 10
    address = f"{'smtps:' if implicit else ''}127.0.0.1:0"
    options = {"listen": [address], "tls_handshake_timeout": 0.2 if how == "silent" else 30}
    async with (
        serve(Discard(), tls_context=certificates.server, **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        if not implicit:
            await client.greet()
        if how == "garbage at once":
            client.send(garbage if implicit else b"STARTTLS\r\n" + garbage)
        elif not implicit:
            await client.say("STARTTLS")
        client.send(garbage if how == "garbage" else b"\x16\x03\x01\x02")
        if how == "closed":
            await client.close()
        elif how == "reset":
            client.reset()
        await until(lambda: "TLS handshake failed" in caplog.text)
    (text,) = (each for each in caplog.messages if "TLS handshake failed" in each)
    assert re.match(rf"\[{ID}\] 127\.0\.0\.1:\d+: TLS handshake failed: .*{reason}", text)
