"""Routes: the sinks of a message, copies, conditions, and partial delivery."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import greeted, serve
from support.sinks import MESSAGE, Keeps, send

from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers import Chain, Route, delivery
from smtpd_fork.message import Mail
from smtpd_fork.sinks import Discard


async def test_each_recipient_has_the_first_matching_sink() -> None:
    one, two, rest = Keeps(), Keeps(), Keeps()
    routes = [
        Route(one, recipients=["a.example"]),
        Route(two, recipients=["b@B.example", "*.c.example"]),
        rest,
    ]
    async with greeted(routes) as client:
        to = ("x@A.example", "B@b.example", "y@b.example", "z@deep.c.example")
        assert (await send(client, *to))[-1].startswith("250")
    assert one.got == [("x@A.example",)]
    assert two.got == [("B@b.example", "z@deep.c.example")]
    assert rest.got == [("y@b.example",)]
    assert one.mails[0].id == two.mails[0].id == rest.mails[0].id
    assert one.mails[0].trace == rest.mails[0].trace
    assert one.mails[0].key == rest.mails[0].key


async def test_a_recipient_without_a_sink_is_rejected_at_rcpt() -> None:
    one = Keeps()
    async with greeted([Route(one, recipients=["a.example"])]) as client:
        refused, accepted, answer = await send(client, "x@b.example", "x@a.example")
        assert refused.startswith("550 5.1.1")
        assert (accepted[:3], answer[:3]) == ("250", "250")
    assert one.got == [("x@a.example",)]


class Verifies(Keeps):
    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, *args: Any) -> Any:
        return MISSING if args[0].startswith("known@") else "550 5.1.1 Unknown"


async def test_a_sink_is_called_at_rcpt_for_its_own_recipients_only() -> None:
    one, two = Verifies(), Keeps()
    async with greeted([Route(one, recipients=["a.example"]), two]) as client:
        replies = await send(client, "new@a.example", "known@a.example", "new@b.example")
        assert [each[:3] for each in replies] == ["550", "250", "250", "250"]
    assert (one.got, two.got) == ([("known@a.example",)], [("new@b.example",)])


async def test_only_a_required_copy_that_failed_is_repeated() -> None:
    main, copy = Keeps(), Keeps("451 4.3.0 Full", "250 2.0.0 Ok")
    async with greeted([main, Route(copy, copy=True)]) as client:
        assert (await send(client, "x@a.example"))[-1] == "451 4.3.0 Full"
        assert (await send(client, "x@a.example"))[-1].startswith("250")
        assert (len(main.got), len(copy.got)) == (1, 2)
        # The delivery is complete, so the same message is a new one.
        assert (await send(client, "x@a.example"))[-1].startswith("250")
    assert (len(main.got), len(copy.got)) == (2, 3)


async def test_a_best_effort_copy_that_fails_is_logged_and_the_message_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    main, copy = Keeps(), Keeps("451 4.3.0 Full", OSError("no disk"))
    async with greeted([main, Route(copy, copy="best-effort", name="archive")]) as client:
        assert (await send(client, "x@a.example"))[-1].startswith("250")
        assert (await send(client, "x@a.example"))[-1].startswith("250")
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("sink archive: the copy was not stored: 451 4.3.0" in each for each in warnings)
    assert all("] 127.0.0.1:" in each for each in warnings)
    assert "sink archive failed: OSError: no disk" in caplog.text


async def test_a_best_effort_copy_that_hangs_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "BEST_EFFORT_SECONDS", 0.05)
    main, copy = Keeps(), Keeps(asyncio.Event())
    async with greeted([main, Route(copy, copy="best-effort")]) as client:
        assert (await send(client, "x@a.example"))[-1].startswith("250")
    assert "the copy took too long" in caplog.text


async def test_a_copy_may_be_limited_to_some_recipients() -> None:
    main, copy = Keeps(), Keeps()
    async with greeted([Route(copy, copy=True, recipients=["a.example"]), main]) as client:
        await send(client, "x@a.example", "x@b.example")
        await send(client, "x@b.example")
    assert main.got == [("x@a.example", "x@b.example"), ("x@b.example",)]
    assert copy.got == [("x@a.example",)]


async def test_one_of_several_sinks_that_raises_is_451_for_its_recipients() -> None:
    routes = [Route(Keeps(ValueError("broken")), recipients=["a.example"]), Keeps()]
    async with greeted(routes) as client:
        assert (await send(client, "x@b.example", "x@a.example"))[-1].startswith("451 4.3.0")


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        (["250 2.0.0 Ok", "451 4.2.1 Later"], "451 4.2.1 Later"),
        (["550 5.2.1 Gone", "451 4.2.1 Later"], "451 4.2.1 Later"),
        (["550 5.2.1 Gone", "250 2.0.0 Ok"], "550 5.2.1 Gone\n5.2.1 (for x@a.example)"),
        (
            ["552 5.2.2 <x> Full", "552 5.2.2 <y> Full"],
            "552 5.2.2 <x> Full\n5.2.2 (for x@a.example, x@b.example)",
        ),
        (["550 5.2.1 Gone"] * 2, "550 5.2.1 Gone\n5.2.1 (for x@a.example, x@b.example)"),
    ],
)
async def test_smtp_gets_the_reply_after_which_nothing_is_lost(
    answers: list[str], reply: str
) -> None:
    one, two = Keeps(answers[0]), Keeps(answers[1])
    async with greeted([Route(one, recipients=["a.example"]), two]) as client:
        assert (await send(client, "x@a.example", "x@b.example"))[-1] == reply


async def test_lmtp_gets_the_reply_of_each_recipients_sink() -> None:
    one, two = Keeps("452 4.2.2 Full"), Keeps(["250 2.0.0 Ok", "550 5.2.1 Gone"])
    routes = [Route(one, recipients=["a.example"]), two]
    async with serve(routes, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x", "MAIL FROM:<a@example.org>")
            await client.say("RCPT TO:<x@b.example>", "RCPT TO:<x@a.example>")
            await client.say("RCPT TO:<y@b.example>", "DATA")
            client.send(f"{MESSAGE}.\r\n")
            replies = [await client.reply() for _ in range(3)]
    assert [each.code for each in replies] == [250, 452, 550]


async def test_a_sink_that_was_fast_enough_does_not_get_the_message_again() -> None:
    fast, slow = Keeps(), Keeps(asyncio.Event())
    routes = [Route(fast, recipients=["a.example"]), slow]
    async with greeted(routes, handler_timeout=0.3) as client:
        assert (await send(client, "x@a.example", "x@b.example"))[-1].startswith("451")
        assert (await send(client, "x@a.example", "x@b.example"))[-1].startswith("250")
    assert (len(fast.got), len(slow.got)) == (1, 2)


# -- conditions --------------------------------------------------------------------------------


class Refuses:
    async def handle_RCPT(self, *_: Any) -> str:
        return "550 5.7.1 No"

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, lines: list[str]
    ) -> list[str]:
        session.host_name = name
        return [*lines[:-1], "250-X-REFUSES", lines[-1]]


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"authenticated": False}, True),
        ({"authenticated": True}, False),
        ({"tls": True}, False),
        ({"client": ["127.0.0.0/8"]}, True),
        ({"client": "192.0.2.0/24,2001:db8::/32"}, False),
        ({"sender": ["example.org"]}, True),
        ({"sender": ["<>"]}, False),
        ({"listener": ["127.0.0.1"]}, True),
        ({"listener": [":1"]}, False),
        ({"client": ["127.0.0.0/8"], "tls": True}, False),
    ],
)
async def test_a_filter_is_called_only_if_its_conditions_match(
    when: dict[str, Any], holds: bool
) -> None:
    async with serve([Route(Refuses(), when=when), Discard()]) as server:
        async with await Client.to(server.addresses[0]) as client:
            hello = await client.greet()
            assert ("X-REFUSES" in hello.text) is (holds and "sender" not in when)
            assert (await send(client, "x@a.example"))[0][:3] == ("550" if holds else "250")


async def test_a_sink_may_be_limited_to_large_messages() -> None:
    large, small = Keeps(), Keeps()
    async with greeted([Route(large, when={"larger-than": "1K"}), small]) as client:
        await send(client, "x@a.example")
        await send(client, "x@a.example", body=MESSAGE + "x" * 900 + "\r\n" + "y" * 900 + "\r\n")
    assert (len(large.got), len(small.got)) == (1, 1)
    assert len(large.mails[0].content) > 1024


@pytest.mark.parametrize("copy", [True, "best-effort"])
async def test_a_copy_alone_is_not_a_delivery(copy: Any) -> None:
    large, archive = Keeps(), Keeps()
    routes = [Route(large, when={"larger-than": "1K"}), Route(archive, copy=copy)]
    async with greeted(routes) as client:
        assert (await send(client, "x@a.example"))[-1].startswith("550 5.1.1")
    assert (large.got, archive.got) == ([], [])


# -- the chain ---------------------------------------------------------------------------------


def test_names_are_unique_and_errors_contain_them() -> None:
    chain = Chain([Discard(), Route(Discard(), name="discard"), Route(Keeps(), copy=True)])
    assert [route.name for route in chain.routes] == ["discard", "discard-2", "keeps"]
    assert chain.errors == [
        "the sink discard-2 gets no message: discard takes all messages before it"
    ]
    assert (
        Chain([Route(Discard(), recipients=["*.a.example", "b.example"]), Discard()]).errors == []
    )
    [fault] = Chain(
        [
            Route(Discard(), recipients=["*.a.example", "b.example"]),
            Route(Discard(), recipients=["x@b.example", "*.a.example"], name="late"),
        ]
    ).errors
    assert fault == "the sink late gets no message: discard takes all messages before it"


def test_a_sink_whose_own_handle_data_would_not_be_called_is_an_error() -> None:
    class Overrides(Discard):
        async def handle_DATA(self, *_: Any) -> str:
            return "451 4.3.0 Never discarded"

    class Own(Overrides):
        async def deliver(self, mail: Mail) -> str:
            return "250 2.0.0 Ok"

    Chain([Overrides()])
    Chain([Route(Own(), recipients=["a.example"]), Discard()])
    with pytest.raises(HandlerError, match=r"^overrides has handle_DATA; .* needs deliver\(\)$"):
        Chain([Route(Overrides(), recipients=["a.example"]), Discard()])
    with pytest.raises(HandlerError, match="needs deliver"):
        Chain([Route(Discard(), recipients=["a.example"]), Overrides()])


async def test_a_single_sink_without_conditions_is_called_directly() -> None:
    sink = Keeps()
    chain: Any = Chain([sink])
    assert chain.handle_DATA.__wrapped__ == sink.handle_DATA
    assert not hasattr(chain, "handle_RCPT")
