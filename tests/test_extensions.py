"""Extensions and limits, as clients meet them."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import syntax
from support.client import PATIENCE, Client, Reply
from support.server import serve

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from support.tls import Certificates

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"


class Collect:
    """Keeps the envelopes that it is handed."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    @property
    def messages(self) -> list[bytes]:
        return [envelope.content for envelope in self.envelopes]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 Ok"


async def replies(client: Client, count: int) -> list[int]:
    return [(await client.reply()).code for _ in range(count)]


def code_and_enhanced(reply: Reply) -> tuple[int, str]:
    return reply.code, reply.text.partition(" ")[0]


# -- PIPELINING (RFC 2920) ---------------------------------------------------------------------


async def test_a_whole_transaction_comes_in_one_packet() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        client.send(f"EHLO x\r\n{MAIL}\r\n{RCPT}\r\nDATA\r\none\r\n.\r\nNOOP\r\n{MAIL}\r\nQUIT\r\n")
        assert await replies(client, 9) == [220, 250, 250, 250, 354, 250, 250, 250, 221]
        assert await client.ended()
    assert handler.messages == [b"one\r\n"]


async def test_many_transactions_come_in_packets_of_any_size() -> None:
    handler = Collect()
    one = f"{MAIL}\r\n{RCPT}\r\nDATA\r\n..%d\r\n.\r\n{MAIL}\r\nRCPT TO:<b@c>\r\nBDAT 4\r\n.\r\n%d"
    stream = "".join((one + "BDAT 2 LAST\r\n\r\n") % (n % 10, n % 10) for n in range(50)).encode()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        size = 1
        while stream:
            client.send(stream[:size])
            stream, size = stream[size:], size % 97 + 13
            await asyncio.sleep(0)
        assert await replies(client, 50 * 8) == [250, 250, 354, 250, 250, 250, 250, 250] * 50
    assert len(handler.messages) == 100
    assert handler.messages[:2] == [b".0\r\n", b".\r\n0\r\n"]
    assert handler.messages[-2:] == [b".9\r\n", b".\r\n9\r\n"]


async def test_the_replies_to_a_batch_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[bytes]] = []
    flush = SMTP._flush

    def watch(self: SMTP) -> None:
        if self._out:
            written.append(list(self._out))
        flush(self)

    monkeypatch.setattr(SMTP, "_flush", watch)
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        written.clear()
        await client.say(MAIL, RCPT, RCPT, "DATA")
        assert [len(batch) for batch in written] == [4]


async def test_after_a_refused_rcpt_a_pipelined_data_is_refused_and_its_text_is_no_text() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.send(f"{MAIL}\r\nRCPT TO:<nobody\r\nDATA\r\nRSET\r\n")
        assert await replies(client, 4) == [250, 553, 503, 250]


# -- CHUNKING and BINARYMIME (RFC 3030) --------------------------------------------------------


async def test_a_message_comes_in_chunks() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert {"CHUNKING", "BINARYMIME"} <= set((await client.greet()).lines)
        await client.say(MAIL, RCPT)
        client.send("BDAT 8\r\nfirst.\r\nBDAT 3\r\n.\r\nbdat 6 last\r\nlast\r\nNOOP\r\n")
        assert await replies(client, 4) == [250, 250, 250, 250]
        assert (await client.say(RCPT)).code == 503
    assert handler.messages == [b"first.\r\n.\r\nlast\r\n"]


async def test_an_empty_last_chunk_ends_a_message() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send("BDAT 4\r\nabc\rBDAT 1\r\n\nBDAT 0 LAST\r\n")
        assert (await client.reply()).code == 250
        assert await replies(client, 2) == [250, 250]
        await client.say(MAIL, RCPT)
        assert (await client.say("BDAT 0 LAST")).code == 250
    assert handler.messages == [b"abc\r\n", b""]


async def test_a_chunk_may_hold_any_bytes_and_hides_commands() -> None:
    handler = Collect()
    data = bytes(range(256)) * 300 + b"\r\n.\r\nQUIT\r\n" + b"x" * 100_000
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
        client.send(b"BDAT %d LAST\r\n" % len(data) + data + b"NOOP\r\n")
        assert await replies(client, 2) == [250, 250]
    assert handler.messages == [data]
    assert handler.envelopes[0].body == "BINARYMIME"


async def test_chunks_that_are_too_much_are_552_behind_the_chunk_and_the_session_goes_on() -> None:
    handler = Collect()
    async with (
        serve(handler, max_message_size=10) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send("BDAT 6\r\n123456BDAT 6\r\nQUIT\r\nBDAT 2 LAST\r\nabNOOP\r\n")
        assert await replies(client, 4) == [250, 552, 552, 250]
        await client.say(MAIL, RCPT)
        client.send("BDAT 11 LAST\r\n01234567890")
        assert code_and_enhanced(await client.reply()) == (552, "5.3.4")
        assert (await client.deliver("ok\r\n")).code == 250
    assert handler.messages == [b"ok\r\n"]


@pytest.mark.parametrize("before", ["", "EHLO x\r\n", f"EHLO x\r\n{MAIL}\r\n"])
async def test_a_chunk_that_may_not_come_is_503_and_read_all_the_same(before: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send(f"{before}BDAT 6\r\nQUIT\r\nNOOP\r\n")
        await replies(client, before.count("\r\n"))
        assert await replies(client, 2) == [503, 250]


@pytest.mark.parametrize("end", ["RSET", "EHLO again", "HELO again"])
async def test_a_chunk_that_was_refused_is_forgotten_with_its_transaction(end: str) -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.send("BDAT 3\r\nabc")
        assert (await client.reply()).code == 503
        await client.say(end)
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\ndef")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"def"]


async def test_a_chunk_refused_before_there_was_a_transaction_does_not_spoil_the_next_one() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.send("BDAT 3\r\nabc")
        assert (await client.reply()).code == 503
        assert (await client.deliver("x\r\n")).code == 250
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 503
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\ndef")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"x\r\n", b"def"]


@pytest.mark.parametrize("end", ["RSET", "EHLO again", "HELO again"])
async def test_chunks_are_forgotten_with_their_transaction(end: str) -> None:
    """Else one transaction's text would stand in another's message."""
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send("BDAT 6\r\nsecret")
        assert (await client.reply()).code == 250
        assert (await client.say(end)).code == 250
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
        assert (await client.deliver("x\r\n")).code == 250
    assert handler.messages == [b"abc", b"x\r\n"]


async def test_chunks_in_the_clear_are_no_part_of_a_message_under_tls(
    certificates: Certificates,
) -> None:
    handler = Collect()
    async with (
        serve(handler, tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send("BDAT 8\r\ninjected")
        assert (await client.reply()).code == 250
        await client.start_tls(certificates.client)
        await client.say("EHLO x", MAIL, RCPT)
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"abc"]


async def test_rset_gives_the_memory_of_chunks_back() -> None:
    async with (
        serve(Discard(), max_buffered=100) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(5):
            await client.say(MAIL, RCPT)
            client.send(b"BDAT 90\r\n" + b"x" * 90)
            assert (await client.reply()).code == 250
            assert (await client.say("RSET")).code == 250
        assert server._session_options["budget"].used == 0


async def test_after_bdat_data_is_503() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send("BDAT 3\r\nabcDATA\r\n")
        assert await replies(client, 2) == [250, 503]
        assert (await client.say("BDAT 0 LAST")).code == 250


async def test_binarymime_takes_bdat() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
        assert code_and_enhanced(await client.say("DATA")) == (503, "5.5.1")
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize("arg", ["", " ", " x", " -1", " 5 FIRST", " 5 LAST 6", " ²", " 5,6"])
async def test_a_bdat_whose_size_is_not_known_ends_the_session(arg: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.say(f"BDAT{arg}")).code == 501
        assert await client.ended()


async def test_bdat_in_the_clear_where_tls_is_required_is_530_and_its_chunk_is_read(
    certificates: Certificates,
) -> None:
    """RFC 3030 2: whatever is answered, the chunk is no commands."""
    async with (
        serve(Discard(), tls_context=certificates.server, require_starttls=True) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        client.send("BDAT 6\r\nQUIT\r\nNOOP\r\n")
        assert await replies(client, 2) == [530, 250]


async def test_bdat_before_auth_is_530_and_its_chunk_is_read() -> None:
    options = {"auth_required": True, "auth_require_tls": False, "authenticator": print}
    with pytest.warns(UserWarning, match="Requiring AUTH"):
        async with (
            serve(Discard(), session_options=options) as server,
            await Client.to(server.addresses[0]) as client,
        ):
            await client.greet()
            client.send("BDAT 6\r\nQUIT\r\nNOOP\r\n")
            assert await replies(client, 2) == [530, 250]


async def test_chunks_past_the_buffers_are_452(caplog: pytest.LogCaptureFixture) -> None:
    handler = Collect()
    async with (
        serve(handler, max_buffered=1000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(b"BDAT 600\r\n" + b"x" * 600 + b"BDAT 600 LAST\r\n" + b"x" * 600)
        first, second = await client.reply(), await client.reply()
        assert first.code == 250
        assert code_and_enhanced(second) == (452, "4.3.1")
        assert server._session_options["budget"].used == 0
        assert (await client.deliver()).code == 250
    assert len(handler.messages) == 1


# -- DSN (RFC 3461) ----------------------------------------------------------------------------


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
        ("MAIL FROM:<a@b.c>SIZE=1", 553),
        ("MAIL FROM:a@b.c", 553),
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


# -- ENHANCEDSTATUSCODES (RFC 2034) ------------------------------------------------------------

WALK = [
    *("NOOP", "MAIL FROM:<a@b.c>", "DATA", "EHLO", "HELO", "VRFY a@b.c", "VRFY", "VRFY <"),
    *("HELP", "HELP MAIL", "HELP FOO", "EXPN x", "STARTTLS", "STARTTLS x", "AUTH PLAIN"),
    *("RSET x", "RSET", "FOO", "", "NOOP\rX", "N\0OP", "ÄÖÜ", "QUIT x", "LHLO x", "TURN"),
    "EHLO x",
    *("AUTH", "AUTH FOO", "AUTH PLAIN =", "AUTH PLAIN x y", "RCPT TO:<a@b.c>", "DATA"),
    *("MAIL", "MAIL FROM:<", "MAIL FROM:<a@b.c> X=1", "MAIL FROM:<a@b.c> SIZE=99999999999"),
    *("MAIL FROM:<a@b.c> BODY=X", "MAIL FROM:<ä@b.c>", "MAIL FROM:<a@b.c>", "MAIL FROM:<a@b.c>"),
    *("RCPT", "RCPT TO:<", "RCPT TO:<>", "RCPT TO:<a@b.c> X=1", "RCPT TO:<ä@b.c>"),
    *("DATA", "RCPT TO:<a@b.c>", "DATA x", "BDAT 0", "DATA", "BDAT 0 LAST", "BDAT 0"),
    "x" * 600,
    "y" * 20_000,
    "QUIT",
]


@pytest.mark.parametrize("tls", [False, True])
async def test_every_reply_but_those_to_hello_has_an_enhanced_status_code(
    tls: bool, certificates: Certificates
) -> None:
    options = {"max_errors": 1000, "tls_context": certificates.server if tls else None}
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        await client.reply()
        for command in WALK:
            reply = await client.say(command)
            assert reply.code, command
            if reply.code == 220:
                async with asyncio.timeout(PATIENCE):
                    await client.writer.start_tls(certificates.client, server_hostname="localhost")
            if reply.code == 250 and command.startswith(("EHLO ", "HELO ")):
                assert "ENHANCEDSTATUSCODES" in reply.lines or command[0] == "H"
                continue
            for line in reply.lines:
                assert re.match(rf"{str(reply.code)[0]}\.\d{{1,3}}\.\d{{1,3}} ", line), (
                    command,
                    reply,
                )
        assert reply.code == 221
        await client.close()


# -- LIMITS (RFC 9422), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531) --------------------------


async def test_recipients_past_the_limit_are_452() -> None:
    handler = Collect()
    async with (
        serve(handler, max_recipients=2) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "LIMITS RCPTMAX=2" in (await client.greet()).lines
        await client.say(MAIL)
        assert [(await client.say(RCPT)).code for _ in range(2)] == [250, 250]
        assert code_and_enhanced(await client.say(RCPT)) == (452, "4.5.3")
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250  # it counts anew
    assert [len(envelope.rcpt_tos) for envelope in handler.envelopes] == [2, 1]


async def test_an_address_in_utf8_takes_the_parameter() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert "SMTPUTF8" in (await client.greet()).lines
        assert code_and_enhanced(await client.say("MAIL FROM:<ä@b.c>")) == (553, "5.6.7")
        await client.say(MAIL)
        assert code_and_enhanced(await client.say("RCPT TO:<ä@b.c>")) == (553, "5.6.7")
        await client.say("RSET")
        assert (await client.say("MAIL FROM:<ä@ö.example> SMTPUTF8")).code == 250
        assert (await client.say("RCPT TO:<用户@例子.广告>")).code == 250
        await client.say("DATA")
        client.send("Subject: ü\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.say(MAIL)).code == 250
        assert (await client.say("RCPT TO:<ä@b.c>")).code == 553  # the parameter is MAIL's, once
    (envelope,) = handler.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ä@ö.example", ["用户@例子.广告"])
    assert envelope.smtp_utf8
    assert envelope.content == "Subject: ü\r\n".encode()


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88"])
async def test_what_is_no_utf8_is_refused(bad: bytes) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.send(b"MAIL FROM:<" + bad + b"@b.c> SMTPUTF8\r\n")
        assert code_and_enhanced(await client.reply()) == (500, "5.5.2")
        assert (await client.say(RCPT)).code == 503


async def test_a_message_is_eight_bits_wide() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert "8BITMIME" in (await client.greet()).lines
        await client.say(f"{MAIL} BODY=8bitmime", RCPT, "DATA")
        client.send(bytes(b for b in range(1, 256) if b not in b"\r\n") + b"\r\n.\r\n")
        assert (await client.reply()).code == 250
    assert handler.envelopes[0].body == "8BITMIME"
    assert len(handler.messages[0]) == 255


@pytest.mark.parametrize(
    ("size", "code"), [(0, 250), (1000, 250), (1001, 552), (10**19, 552), (10**30, 552)]
)
async def test_an_announced_size_is_judged_before_the_message(size: int, code: int) -> None:
    async with (
        serve(Discard(), max_message_size=1000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "SIZE 1000" in (await client.greet()).lines
        assert (await client.say(f"{MAIL} SIZE={size}")).code == code


@pytest.mark.parametrize(("length", "code"), [(998, 250), (1000, 500), (5000, 500)])
async def test_a_line_that_is_too_long_is_told_after_the_final_dot(length: int, code: int) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        reply = await client.deliver("x" * length + "\r\nmore\r\n")
        assert reply.code == code
        if code == 500:
            assert reply.text.startswith("5.6.0")
        assert (await client.deliver()).code == 250


async def test_a_message_that_is_too_large_is_told_after_the_final_dot_and_not_kept() -> None:
    packet = (b"x" * 78 + b"\r\n") * 1000
    async with (
        serve(Discard(), max_message_size=100_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT, "DATA")
        tracemalloc.start()
        try:
            for _ in range(400):  # 32 MB
                client.send(packet)
                await client.writer.drain()
            client.send(".\r\nNOOP\r\n")
            assert code_and_enhanced(await client.reply()) == (552, "5.3.4")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4_000_000  # packets on their way, and what one read takes
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250


async def test_messages_past_the_buffers_are_452_and_the_others_are_not_touched() -> None:
    handler = Collect()
    async with serve(handler, max_buffered=10_000) as server:
        budget = server._session_options["budget"]
        first = await Client.to(server.addresses[0])
        await first.greet()
        await first.say(MAIL, RCPT, "DATA")
        first.send("f" * 70 + "\r\n")
        second = await Client.to(server.addresses[0])
        await second.greet()
        await second.say(MAIL, RCPT, "DATA")
        second.send(("s" * 78 + "\r\n") * 200)
        second.send(".\r\n")
        assert code_and_enhanced(await second.reply()) == (452, "4.3.1")
        first.send(".\r\n")
        assert (await first.reply()).code == 250
        assert budget.used == 0
        assert (await second.deliver()).code == 250
        await first.close()
        await second.close()
    assert handler.messages[0] == b"f" * 70 + b"\r\n"


async def test_with_the_buffers_full_data_is_452_until_they_are_not() -> None:
    async with serve(Discard(), max_buffered=1000) as server:
        budget = server._session_options["budget"]
        client = await Client.to(server.addresses[0])
        await client.greet()
        await client.say(MAIL, RCPT)
        budget.used = 1000  # as if others held it
        assert code_and_enhanced(await client.say("DATA")) == (452, "4.3.1")
        budget.used = 0
        assert (await client.say("DATA")).code == 354
        client.send("x\r\n")
        client.reset()
        async with asyncio.timeout(PATIENCE):
            while server.gate.count:
                await asyncio.sleep(0.001)
        assert budget.used == 0


# -- junk --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    ["FOO", "", " ", "x" * 600, "y" * 20_000, "NO\0OP", "N\rOP", "ÄÖÜ", "FOO BAR"],
    ids=lambda junk: repr(junk[:8]),
)
async def test_junk_past_max_errors_is_421(junk: str) -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(3):
            assert code_and_enhanced(await client.say(junk))[0] == 500
        assert code_and_enhanced(await client.say(junk)) == (421, "4.7.0")
        assert await client.ended()


@pytest.mark.parametrize("idle", ["NOOP", "NOOP x", "RSET", "VRFY a@b.c", "HELP", "EXPN x"])
async def test_commands_that_do_nothing_do_not_keep_a_session_for_ever(idle: str) -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        codes = []
        for _ in range(100):
            codes.append((await client.say(idle)).code)
            if codes[-1] in {0, 421}:
                break
        assert codes[-1] == 421
        assert len(codes) > 10  # some are nobody's fault
        assert await client.ended()


async def test_messages_make_up_for_commands_that_do_nothing() -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(30):
            for command in ("NOOP", "RSET", "NOOP"):
                assert (await client.say(command)).code == 250
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT"])
async def test_a_browser_is_sent_away_at_once(verb: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send(f"{verb} / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@b.c>\r\n")
        assert (await client.reply()).code == 421
        assert (await client.reply()).code == 0


# -- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["DATA\r\n", "BDAT 100\r\n"])
async def test_a_message_that_stalls_is_421(begin: str) -> None:
    async with (
        serve(Discard(), data_timeout=0.15, timeout=30) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(begin)
        if begin.startswith("DATA"):
            assert (await client.reply()).code == 354
        client.send("x\r\n")
        assert code_and_enhanced(await client.reply()) == (421, "4.4.2")
        assert await client.ended()


async def drip(client: Client, packets: bytes, *, pause: float = 0.02) -> Reply:
    """Send *packets* again and again, slowly, until there is a reply."""
    reply = asyncio.ensure_future(client.reply())
    try:
        while not reply.done():
            client.send(packets)
            await asyncio.sleep(pause)
        return await reply
    finally:
        reply.cancel()


async def test_a_session_has_its_time_and_no_more() -> None:
    async with (
        serve(Discard(), session_timeout=0.3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        began = time.monotonic()
        codes = []
        while True:
            reply = await client.say("MAIL FROM:<")
            codes.append(reply.code)
            if reply.code != 553:
                break
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 5
        assert codes[-1] == 421
        assert await client.ended()


@pytest.mark.parametrize("begin", ["DATA", "BDAT 1000000"])
async def test_a_session_has_its_time_and_no_more_for_a_message_too(begin: str) -> None:
    async with (
        serve(Discard(), session_timeout=0.3, data_timeout=5) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(f"{begin}\r\n")
        if begin == "DATA":
            await client.reply()
        async with asyncio.timeout(2):
            assert (await drip(client, b"x\r\n")).code == 421


@pytest.mark.parametrize("hook", ["handle_MAIL", "handle_RCPT", "handle_DATA", "handle_NOOP"])
async def test_a_handler_past_its_time_is_451_and_the_session_goes_on(hook: str) -> None:
    async def sleep(*_: Any) -> str:
        await asyncio.sleep(60)
        return "250 never"

    handler = Discard()
    setattr(handler, hook, sleep)
    async with (
        serve(handler, handler_timeout=0.1) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for command in ("NOOP", MAIL, RCPT, "DATA"):
            reply = await client.say(command)
            if reply.code == 451:
                break
        if reply.code == 354:
            client.send("x\r\n.\r\n")
            reply = await client.reply()
        assert code_and_enhanced(reply) == (451, "4.3.0")
        assert (await client.say("RSET")).code == 250


@pytest.mark.parametrize("begin", ["DATA", "BDAT 1000000"])
async def test_a_message_that_comes_too_slowly_is_421(
    begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.engine.RATE_GRACE_SECONDS", 0.2)
    options = {"min_data_rate": 10_000, "data_timeout": 5, "timeout": 5}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(f"{begin}\r\n")
        if begin == "DATA":
            await client.reply()
        async with asyncio.timeout(2):
            assert code_and_enhanced(await drip(client, b"x\r\n")) == (421, "4.4.2")


async def test_a_message_that_comes_fast_enough_may_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.engine.RATE_GRACE_SECONDS", 0.1)
    options = {"min_data_rate": 1000, "data_timeout": 5, "timeout": 5}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT, "DATA")
        for _ in range(20):
            client.send(("x" * 500 + "\r\n").encode())
            await asyncio.sleep(0.02)
        client.send(".\r\n")
        assert (await client.reply()).code == 250


async def test_the_rate_of_chunks_counts_all_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.engine.RATE_GRACE_SECONDS", 0.1)
    options = {"min_data_rate": 1000, "data_timeout": 5, "timeout": 5}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(b"BDAT 100000\r\n" + b"x" * 100_000)
        assert (await client.reply()).code == 250
        await asyncio.sleep(0.3)
        client.send(b"BDAT 10 LAST\r\n12345")
        await asyncio.sleep(0.1)
        client.send(b"67890")
        assert (await client.reply()).code == 250


# -- users' subclasses -------------------------------------------------------------------------


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


@pytest.mark.parametrize("gone", ["lost", "cut", "timed out"])
async def test_a_session_that_ends_before_its_task_began_is_told_of_its_end(gone: str) -> None:
    """A task that is cancelled before its first step runs nothing, not even a finally."""
    told: list[str] = []

    class Told(Discard):
        async def handle_MAIL(self, *_: Any) -> str:
            await asyncio.sleep(0)  # without an await it would need no task
            return "250 2.1.0 Ok"

        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            told.append("disconnect")

    async with serve(Told()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert server._sessions is not None
        (session,) = server._sessions._tickets
        session.data_received(f"{MAIL}\r\n".encode())
        assert session.task is not None
        if gone == "lost":
            session.abort()
            session.connection_lost(None)
        elif gone == "cut":
            session.cut()
        else:
            session._time_out()
        async with asyncio.timeout(5):
            await session._handler_coroutine
            while server.sessions:
                await asyncio.sleep(0.001)
            while not told:
                await asyncio.sleep(0.001)
    assert told == ["disconnect"]
