"""LMTP: each recipient gets one well-formed reply, whatever a hook returns."""

from __future__ import annotations

from typing import Any

from aiosmtpd.smtp import MISSING
from support.client import Client
from support.replies import ODD, assert_well_formed, everything
from support.server import serve

from smtpd_fork.sinks import Discard


async def test_in_lmtp_each_recipient_gets_one_reply() -> None:
    class Answers:
        answer: Any = None

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            envelope.rcpt_tos.clear()  # a handler may
            return self.answer

    handler = Answers()
    several = ["250 a\r\n250 b", "250 a\r\n550-b\r\n550 c", "250 a\r\n250 b\r\n250 c"]
    listed = [["250 a", "550 b\nc"], ["250 a", MISSING], ("250 a\r\n", "450")]
    async with serve(handler, listen=["lmtp:127.0.0.1:0"]) as server:
        for handler.answer in (*ODD, *several, *listed):
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                await client.say("LHLO x")
                for count in (1, 2, 3):
                    recipients = ["RCPT TO:<b@example.com>"] * count
                    await client.say("MAIL FROM:<a@example.com>", *recipients, "DATA")
                    client.send("x\r\n.\r\n")
                    codes = [(await client.reply()).code for _ in range(count)]
                    assert set(codes) <= {250, 450, 451, 550}
                    assert (await client.say("NOOP")) == (250, ["2.0.0 OK"]), handler.answer
                client.send("QUIT\r\n")
                assert_well_formed(await everything(client), 1)


async def test_mailmans_replies_are_one_for_each_recipient() -> None:
    """Mailman 3's LMTP handler joins them with CR LF, as aiosmtpd sends them unchanged."""

    class Joins:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "\r\n".join(
                "250 Ok" if to.startswith("a") else "550 Requested action not taken"
                for to in envelope.rcpt_tos
            )

    async with (
        serve(Joins(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x")
        for _ in range(2):  # the second transaction reads replies of its own
            recipients = [f"RCPT TO:<{name}@example.com>" for name in ("a1", "b1", "a2")]
            assert (await client.say("MAIL FROM:<a@b.c>", *recipients, "DATA")).code == 354
            client.send("x\r\n.\r\n")
            assert [(await client.reply()).code for _ in range(3)] == [250, 550, 250]
        assert (await client.say("NOOP")).code == 250


async def test_lmtp_replies_go_to_the_recipients_that_were_accepted() -> None:
    """A hook may accept a recipient, and deliver to others, or to none."""

    class Alias(Discard):
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            if address.startswith("no"):
                return "550 5.1.1 Unknown"
            envelope.rcpt_tos += ["one@b.c", "two@b.c"]
            return "250 2.1.5 Ok"

    async with (
        serve(Alias(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x", "MAIL FROM:<a@b.c>", "RCPT TO:<no@b.c>", "RCPT TO:<all@b.c>")
        assert (await client.say("DATA")).code == 354
        client.send("x\r\n.\r\nNOOP\r\n")
        assert_well_formed(await everything(client), 2)


async def test_in_lmtp_a_command_after_a_message_gets_one_reply() -> None:
    async with (
        serve(Discard(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        recipients = ["RCPT TO:<b@example.com>"] * 3
        for end in ("DATA\r\nx\r\n.\r\n", "BDAT 3 LAST\r\nx\r\n"):
            await client.say("LHLO x", "MAIL FROM:<a@b.c>", *recipients)
            client.send(end)
            codes = [(await client.reply()).code for _ in range(3 + end.startswith("DATA"))]
            assert codes[-3:] == [250] * 3
            assert (await client.say("BDAT 0 LAST")).code == 503
            assert (await client.say("DATA")).code == 503
        client.send("QUIT\r\n")
        assert_well_formed(await everything(client), 1)
