"""DSN (RFC 3461): its parameters for handlers, and the rejected ones."""

from __future__ import annotations

from typing import Any

import pytest
from aiosmtpd.handlers import Sink as AiosmtpdSink
from aiosmtpd.smtp import MISSING
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.handlers import Collect
from support.server import greeted, serve

from smtpd_fork.handlers import Chain
from smtpd_fork.sinks import Debug, Discard, Maildir


class Carries(Discard):
    """A sink that passes messages with all their parameters to another server."""

    supports_dsn = True


async def test_handlers_get_the_parameters_of_dsn_unchanged() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert "DSN" in (await client.greet()).lines
        codes = [
            (await client.say(command)).code
            for command in (
                f"{MAIL} RET=hdrs ENVID=aBc+2Bd SIZE=5",
                "RCPT TO:<b@x.y> NOTIFY=success,Delay ORCPT=rfc822;Bob@X.y",
                "RCPT TO:<c@x.y>",
                "RCPT TO:<d@x.y> NOTIFY=NEVER",
            )
        ]
        assert codes == [250] * 4
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250
    first, second = handler.envelopes
    assert first.mail_params == {"RET": "hdrs", "ENVID": "aBc+2Bd", "SIZE": "5"}
    assert first.rcpt_params == [
        {"NOTIFY": "success,Delay", "ORCPT": "rfc822;Bob@X.y"},
        {},
        {"NOTIFY": "NEVER"},
    ]
    assert first.mail_options == ["RET=HDRS", "ENVID=ABC+2BD", "SIZE=5"]
    assert first.rcpt_options == ["NOTIFY=SUCCESS,DELAY", "ORCPT=RFC822;BOB@X.Y", "NOTIFY=NEVER"]
    assert (second.mail_params, second.rcpt_params) == ({}, [{}])
    assert (second.mail_options, second.rcpt_options) == ([], [])


async def test_hooks_get_the_options_as_aiosmtpd_has_them() -> None:
    told: list[Any] = []

    class Hooks(Carries):
        async def handle_MAIL(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            told.append((address, options, dict(envelope.mail_params)))
            envelope.mail_from = address
            return "250 2.1.0 Ok"

        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            told.append((address, options))
            if address.startswith("no"):
                return "550 5.1.1 No"
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 Ok"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            told.append(list(zip(envelope.rcpt_tos, envelope.rcpt_params, strict=True)))
            return "250 2.0.0 Ok"

    async with greeted(Hooks()) as client:
        assert (await client.say(f"{MAIL} ENVID=aB")).code == 250
        assert (await client.say("RCPT TO:<no@x.y> NOTIFY=never")).code == 550
        assert (await client.say("RCPT TO:<b@x.y> NOTIFY=delay")).code == 250
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        await client.reply()
    assert told == [
        ("a@example.com", ["ENVID=AB"], {"ENVID": "aB"}),
        ("no@x.y", ["NOTIFY=NEVER"]),
        ("b@x.y", ["NOTIFY=DELAY"]),
        [("b@x.y", {"NOTIFY": "delay"})],
    ]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{MAIL} RET=ALL", 501),
        (f"{MAIL} RET", 501),
        (f"{MAIL} ENVID=a+", 501),
        (f"{MAIL} RET=FULL RET=HDRS", 501),
        (f"{MAIL} BODY=9BIT", 501),
        (f"{MAIL} BODY", 501),
        (f"{MAIL} SIZE=x", 501),
        (f"{MAIL} SIZE=-1", 501),
        (f"{MAIL} SIZE", 501),
        (f"{MAIL} SIZE=", 501),
        (f"{MAIL} SMTPUTF8=1", 501),
        (f"{MAIL} NOTIFY=NEVER", 555),
        (f"{MAIL} FOO=BAR", 555),
        (f"{MAIL} AUTH=+", 501),
        (f"{MAIL} SIZE=1 <x>", 501),
        ("MAIL FROM:", 501),
        ("MAIL FROM: ", 501),
        ("MAIL FROM a@b.c", 501),
        ("MAIL TO:<a@b.c>", 501),
        ("MAIL", 501),
    ],
)
async def test_a_mail_with_bad_parameters_is_rejected(command: str, code: int) -> None:
    async with greeted(Carries()) as client:
        assert (await client.say(command)).code == code
        assert (await client.say(RCPT)).code == 503
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{RCPT} NOTIFY=NEVER,DELAY", 501),
        (f"{RCPT} NOTIFY", 501),
        (f"{RCPT} ORCPT=b@c", 501),
        (f"{RCPT} SIZE=1", 555),
        (f"{RCPT} NOTIFY=NEVER NOTIFY=NEVER", 501),
        ("RCPT TO:", 501),
        ("RCPT", 501),
        ("RCPT FROM:<a@b.c>", 501),
        ("RCPT TO:<a@b.c", 553),
    ],
)
async def test_a_rcpt_with_bad_parameters_is_rejected(command: str, code: int) -> None:
    async with greeted(Carries()) as client:
        await client.say(MAIL)
        assert (await client.say(command)).code == code
        assert (await client.say("DATA")).code == 503


class Passes:
    """A filter that returns MISSING for every message."""

    async def handle_DATA(self, *args: Any) -> Any:
        return MISSING


class PassesWithDsn(Passes):
    supports_dsn = True


class Recipients:
    async def handle_RCPT(self, *args: Any) -> Any:
        return MISSING


@pytest.mark.parametrize(
    ("handlers", "offered"),
    [
        ([Discard()], False),
        ([Maildir("unused")], False),
        ([Debug()], False),
        ([Carries()], True),
        ([Recipients()], False),
        ([Recipients(), Carries()], True),
        ([Passes(), Carries()], False),  # it may take a message one day
        ([PassesWithDsn(), Carries()], True),
        ([PassesWithDsn(), Discard()], False),
        ([Carries(), Discard()], True),  # which gets no message
        ([Discard(), Carries()], False),
        ([AiosmtpdSink()], False),
    ],
    ids=lambda value: "+".join(type(h).__name__ for h in value) if isinstance(value, list) else "",
)
def test_a_chain_supports_dsn_if_its_sinks_do(handlers: list[Any], offered: bool) -> None:
    assert Chain(handlers).supports_dsn is offered


@pytest.mark.parametrize("sink", [Discard, Debug])
@pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
async def test_dsn_is_not_offered_without_support_and_its_parameters_are_555(
    sink: Any, scheme: str
) -> None:
    """RFC 3461 4: a client must not send them then; the reply is 555 by RFC 5321 4.1.1.11."""
    async with (
        serve(sink(), listen=[f"{scheme}:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        hello = await client.say("EHLO x" if scheme == "smtp" else "LHLO x")
        assert "CHUNKING" in hello.lines
        assert "DSN" not in hello.lines
        for param in ("RET=FULL", "ENVID=a", "RET=x"):
            assert code_and_enhanced(await client.say(f"{MAIL} {param}")) == (555, "5.5.4")
        assert (await client.say(f"{MAIL} SIZE=5 BODY=8BITMIME")).code == 250
        for param in ("NOTIFY=NEVER", "ORCPT=rfc822;a@b", "NOTIFY=SUCCESS ORCPT=rfc822;a@b"):
            assert code_and_enhanced(await client.say(f"{RCPT} {param}")) == (555, "5.5.4")
        assert (await client.say(RCPT)).code == 250


async def test_after_helo_parameters_are_rejected() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        await client.say("HELO x")
        assert (await client.say(f"{MAIL} SIZE=1")).code == 501
        assert (await client.say(MAIL)).code == 250
