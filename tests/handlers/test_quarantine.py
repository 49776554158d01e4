"""Quarantine: a separate sink for messages that a filter has quarantined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.server import greeted
from support.sinks import Keeps, send

from smtpd_fork import Filter, Route, quarantine
from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.handlers.load import load_route
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Sequence

WITHHELD = "451 4.7.1 The message is withheld, try again later"


class PutsAside:
    """Quarantines messages whose text demands it."""

    def __init__(self, reason: str = "it says so") -> None:
        self.reason = reason

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        if b"aside" in envelope.original_content:
            quarantine(envelope, self.reason)
        return MISSING


class Declares(Filter):
    quarantines = True

    async def handle_DATA(self, *_: Any) -> Any:
        return MISSING


async def send_both(handlers: Sequence[Any], *recipients: str) -> list[str]:
    """Send a quarantined message, and another one; return the replies."""
    async with greeted(handlers) as client:
        to = recipients or ("x@a.example",)
        bodies = [f"X: y\r\n\r\n{text}\r\n" for text in ("aside", "usual")]
        return [(await send(client, *to, body=body))[-1] for body in bodies]


async def test_a_quarantined_message_is_stored_in_the_quarantine_only() -> None:
    usual, copy, aside = Keeps(), Keeps(), Keeps()
    routes = [PutsAside(), usual, Route(copy, copy=True), Route(aside, quarantine=True)]
    replies = await send_both(routes)
    assert [reply[:3] for reply in replies] == ["250", "250"]
    (withheld,), (taken,), (copied,) = aside.mails, usual.mails, copy.mails
    assert withheld.content == b"X-Quarantine: it says so\r\nX: y\r\n\r\naside\r\n"
    assert (withheld.quarantine, taken.quarantine) == ("it says so", "")
    assert taken.content == copied.content == b"X: y\r\n\r\nusual\r\n"


async def test_a_quarantine_may_be_for_some_recipients_and_the_others_are_deferred() -> None:
    usual, one, two = Keeps(), Keeps(), Keeps()
    routes = [
        PutsAside(),
        Route(one, quarantine=True, recipients=["a.example"]),
        Route(two, quarantine=True, copy=True),
        usual,
    ]
    assert (await send_both(routes, "x@a.example", "y@b.example"))[0] == WITHHELD
    assert (await send_both(routes, "x@a.example"))[0][:3] == "250"
    assert one.got == [("x@a.example",), ("x@a.example",)]
    assert two.got == [("x@a.example",), ("x@a.example",)]
    assert usual.got == [("x@a.example", "y@b.example"), ("x@a.example",)]


@pytest.mark.parametrize("last", [Keeps, lambda: Route(Keeps(), recipients=["a.example"])])
async def test_without_a_quarantine_such_a_message_is_deferred(last: Any) -> None:
    seen = []

    class Behind:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            seen.append(envelope.quarantine)
            return MISSING

    assert (await send_both([PutsAside(), Behind(), last()]))[0] == WITHHELD
    assert seen == [""]  # of the other message


async def test_a_later_handler_sees_the_quarantine_and_may_reject_the_message() -> None:
    class Behind:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            return "550 5.7.1 No" if envelope.quarantine else MISSING

    aside = Keeps()
    routes = [PutsAside(), Behind(), Keeps(), Route(aside, quarantine=True)]
    assert (await send_both(routes))[0] == "550 5.7.1 No"
    assert aside.got == []


async def test_a_reason_is_one_field_whatever_its_text() -> None:
    aside = Keeps()
    reason = "\r\nX-Evil: yes\0" + "z" * 300
    await send_both([PutsAside(reason), Keeps(), Route(aside, quarantine=True)])
    head, _, _ = aside.mails[0].content.partition(b"\r\n\r\n")
    assert head.startswith(rb"X-Quarantine: \r\nX-Evil: yes\x00zzz")
    assert head.count(b"\r\nX") == 1
    assert len(aside.mails[0].quarantine) < 250


async def test_a_second_filter_adds_its_reason() -> None:
    aside = Keeps()
    routes = [PutsAside("first"), PutsAside("second"), Keeps(), Route(aside, quarantine=True)]
    await send_both(routes)
    (mail,) = aside.mails
    assert mail.quarantine == "first"
    assert mail.content.startswith(b"X-Quarantine: second\r\nX-Quarantine: first\r\n")


async def test_a_quarantine_decides_nothing_about_recipients_and_dsn() -> None:
    class Dsn(Discard):
        supports_dsn = True

    aside = Route(Discard(), recipients=["a.example"], quarantine=True)
    async with greeted([aside, Route(Keeps(), recipients=["b.example"])]) as client:
        replies = await send(client, "x@a.example", "x@b.example")
    assert [reply[:3] for reply in replies] == ["550", "250", "250"]
    assert Chain([Dsn(), aside]).supports_dsn


BEHIND = "declares is after the sink discard and gets no message"
UNTAKEN = "declares quarantines messages, and no sink has quarantine = true"


def _aside(**more: Any) -> Route:
    return Route(Discard(), quarantine=True, **more)


@pytest.mark.parametrize(
    ("routes", "fault"),
    [
        ([Declares(), Discard()], UNTAKEN),
        ([Declares(), Discard(), _aside()], None),
        ([_aside()], "discard is a quarantine, and no sink takes the other messages"),
        (
            [Discard(), _aside(copy=True)],
            "discard-2 is a copy, and no sink takes the messages",
        ),
        ([_aside(), Declares(), Discard()], BEHIND),
        ([Route(Discard(), copy=True), Declares(), Discard()], BEHIND),
        (
            [Discard(), _aside(), _aside()],
            "the sink discard-3 gets no message: discard-2 takes all messages before it",
        ),
    ],
)
def test_a_contradictory_quarantine_is_an_error(routes: list[Any], fault: str | None) -> None:
    assert next(iter(Chain(routes).errors), None) == fault


def test_the_key_quarantine_belongs_to_sinks() -> None:
    assert load_route("discard,quarantine=true").quarantine
    assert not load_route({"use": "discard", "quarantine": False}).quarantine
    with pytest.raises(HandlerError, match="quarantine 'maybe': expected true or false"):
        load_route("discard,quarantine=maybe")
    with pytest.raises(HandlerError, match=r"only classes derived .* have the key quarantine"):
        load_route("milter:127.0.0.1:1,quarantine=true")


def test_a_milter_that_quarantines_needs_a_quarantine() -> None:
    milter = "milter:127.0.0.1:1,when-quarantined=sink"
    load_handlers([milter, "discard", "discard,quarantine=true"])
    with pytest.raises(HandlerError, match="milter quarantines messages, and no sink has"):
        load_handlers([milter, "discard"])
