"""DSN (RFC 3461): its parameters as handlers get them, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.client import MAIL, RCPT, Client
from support.handlers import Collect
from support.server import serve

from smtpd_fork.sinks import Discard


async def test_the_parameters_of_dsn_reach_the_handler_as_they_came() -> None:
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

    class Hooks(Discard):
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

    async with serve(Hooks()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
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
async def test_a_bad_mail_is_told_so(command: str, code: int) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
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
async def test_a_bad_rcpt_is_told_so(command: str, code: int) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(MAIL)
        assert (await client.say(command)).code == code
        assert (await client.say("DATA")).code == 503


async def test_after_helo_there_are_no_parameters() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        await client.say("HELO x")
        assert (await client.say(f"{MAIL} SIZE=1")).code == 501
        assert (await client.say(MAIL)).code == 250
