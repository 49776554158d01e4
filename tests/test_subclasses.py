"""Users' subclasses of SMTP: commands that they add, and those that they override."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import syntax
from support.client import MAIL, RCPT, Client, replies
from support.handlers import Collect
from support.server import serve

from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    import pytest


class Custom(SMTP):
    """What users write."""

    @syntax("XFOO [anything]")
    async def smtp_XFOO(self, arg: str | None) -> None:
        await asyncio.sleep(0)
        await self.push(f"250 2.0.0 foo {arg}")

    async def smtp_XBAD(self, arg: str | None) -> None:
        raise ValueError("secret")

    async def smtp_MAIL(self, arg: str | None) -> None:
        if arg and "evil" in arg:
            await self.push("550 5.7.1 Not you")
            return
        await super().smtp_MAIL(arg)


async def test_a_users_subclass_adds_and_overrides_commands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Collect()
    async with (
        serve(handler, session_class=Custom) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await client.say("xfoo bar") == (250, ["2.0.0 foo bar"])
        assert "XFOO" in (await client.say("HELP")).text
        assert (await client.say("HELP XFOO")).text.endswith("Syntax: XFOO [anything]")
        assert await client.say("MAIL FROM:<evil@x.y>") == (550, ["5.7.1 Not you"])
        assert (await client.say("RCPT TO:<b@x.y>")).code == 503
        assert (await client.say("MAIL FROM:<")).code == 553
        assert (await client.deliver()).code == 250
        client.send(f"{MAIL}\r\nXFOO 1\r\n{RCPT}\r\nDATA\r\nx\r\n.\r\nXFOO 2\r\n")
        assert await replies(client, 6) == [250, 250, 250, 354, 250, 250]
        reply = await client.say("XBAD")
        assert (reply.code, "secret" in reply.text) == (451, False)
        assert (await client.say("NOOP")).code == 250
    assert len(handler.messages) == 2
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_users_mail_with_super_and_a_handlers_hook_answers_once() -> None:
    class Hook(Collect):
        async def handle_MAIL(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            await asyncio.sleep(0)
            envelope.mail_from = address
            return "250 2.1.0 from the hook"

    async with (
        serve(Hook(), session_class=Custom) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await client.say(MAIL) == (250, ["2.1.0 from the hook"])
        assert await client.say("NOOP") == (250, ["2.0.0 OK"])
