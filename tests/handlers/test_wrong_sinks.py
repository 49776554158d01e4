"""Mistakes in a user's sink: the client gets 451, and the log names the sink and the mistake."""

from __future__ import annotations

import asyncio
import re
import smtplib
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from support.ports import free_port
from support.server import greeted

from smtpd_fork import MISSING, Filter, Sink
from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers import Chain, Route
from smtpd_fork.sinks import Discard
from smtpd_fork.testing import check_sink

MUST = r"Wrong\.deliver\(\) must return a reply such as '250 2\.0\.0 Ok', not "

ANSWERS: list[tuple[Any, str]] = [
    (None, MUST + "None"),
    (True, MUST + "True"),
    (250, MUST + "250"),
    (b"250 2.0.0 Ok", MUST + "b'250 2.0.0 Ok'"),
    (MISSING, MUST),
    ("Ok", MUST + "'Ok'"),
    ("", MUST + "''"),
    ("354 Go on", MUST + "'354 Go on'"),
    ("250 Ok\r\n500 No", MUST),
    (["250 2.0.0 Ok", None], MUST + "None"),
    (["250 2.0.0 Ok", "stored"], MUST + "'stored'"),
    ([], r"Wrong\.deliver\(\) must return one reply, or 2: not 0"),
    (["250 2.0.0 Ok"] * 3, r"Wrong\.deliver\(\) must return one reply, or 2: not 3"),
    (ValueError("no disk"), "ValueError: no disk"),
    (TimeoutError("its own"), "TimeoutError: its own"),
    (SystemExit(3), r"Wrong\.deliver\(\) raised SystemExit"),
    (asyncio.CancelledError(), r"Wrong\.deliver\(\) raised CancelledError"),
]


OK = "250 2.0.0 Ok"


class Wrong(Sink):
    """Returns a given answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def deliver(self, mail: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Late(Sink):
    """Only the first message shows that deliver() does not return an awaitable."""

    def deliver(self, mail: Any) -> Any:
        return OK


async def answer_to(handler: Any, *recipients: str) -> str:
    async with greeted(handler) as client:
        await client.say("MAIL FROM:<a@example.org>")
        for recipient in recipients:
            assert (await client.say(f"RCPT TO:<{recipient}>")).code == 250
        assert (await client.say("DATA")).code == 354
        client.send("Subject: x\r\n\r\n.\r\n")
        reply = await client.reply()
        return f"{reply.code} {reply.text}"


def the_error(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert "] 127.0.0.1:" in line
    return line


@pytest.mark.parametrize(("answer", "fault"), ANSWERS)
async def test_an_invalid_answer_is_451_and_the_log_has_the_reason(
    answer: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = await answer_to(Wrong(answer), "b@one.example", "c@one.example")
    assert said.startswith("451 4.3.0")
    assert re.search(f"the client gets 451: .*{fault}", the_error(caplog))


@pytest.mark.parametrize(("answer", "fault"), ANSWERS)
async def test_no_message_is_lost_if_another_sink_fails(
    answer: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    routes = [Discard(), Route(Wrong(answer), recipients=["one.example"], name="mine")]
    said = await answer_to(routes[::-1], "d@two.example", "b@one.example", "c@one.example")
    assert said.startswith("451 4.3.0")
    assert re.search(f"sink mine failed: .*{fault}", the_error(caplog))


async def test_a_deliver_that_returns_no_awaitable_is_451(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert (await answer_to(Late(), "b@one.example")).startswith("451 4.3.0")
    assert "Late.deliver() must be async def: it returned '250 2.0.0 Ok'" in the_error(caplog)


class Unfinished(Sink):
    pass


class NotAwaited(Sink):
    def deliver(self, mail: Any) -> Any:
        return "250 2.0.0 Ok"


class Yields(Sink):
    async def deliver(self, mail: Any) -> Any:
        yield "250 2.0.0 Ok"


class LikeAHook(Sink):
    async def deliver(self, server: Any, session: Any, envelope: Any) -> Any:  # type: ignore[override]
        return "250 2.0.0 Ok"


class AwaitedPrepare(Discard):
    async def prepare(self) -> None:  # type: ignore[override]
        pass


class PlainClose(Discard):
    def close(self) -> None:  # type: ignore[override]
        pass


class FilterPlainClose(Filter):
    async def handle_RCPT(self, *_: Any) -> Any:
        return MISSING

    def close(self) -> None:  # type: ignore[override]
        pass


class NoSink:
    async def deliver(self, mail: Any) -> str:
        return "250 2.0.0 Ok"


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Unfinished(), "Unfinished has no deliver(): write async def deliver(self, mail)"),
        (NotAwaited(), "NotAwaited: deliver is awaited: write async def deliver(...)"),
        (Yields(), "Yields: deliver yields; it must return its answer"),
        (LikeAHook(), "LikeAHook: deliver takes (mail), not (server: "),
        (AwaitedPrepare(), "AwaitedPrepare: prepare is not awaited: write def prepare(self)"),
        (PlainClose(), "PlainClose: close is awaited: write async def close(...)"),
        (FilterPlainClose(), "FilterPlainClose: close is awaited: write async def close(...)"),
        (
            NoSink(),
            "NoSink is not a handler: deliver() needs the base class smtpd_fork.Sink: class",
        ),
    ],
    ids=lambda _: "",
)
def test_a_mistake_that_can_be_detected_is_an_error_at_the_start(handler: Any, says: str) -> None:
    with pytest.raises(HandlerError, match=re.escape(says)):
        Chain([handler])


async def test_check_sink_refuses_a_sink_that_a_server_would_refuse() -> None:
    with pytest.raises(HandlerError, match="deliver is awaited"):
        await check_sink(NotAwaited, list)


@pytest.mark.parametrize("answer", [None, ValueError("no disk"), ["250 Ok", "stored"]])
def test_under_aiosmtpd_a_mistake_is_451_too(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """aiosmtpd replies 500 to an exception, and the message would bounce."""
    controller = Controller(Wrong(answer), "127.0.0.1", free_port("127.0.0.1"))
    controller.start()
    try:
        with (
            smtplib.SMTP("127.0.0.1", controller.port) as client,
            pytest.raises(smtplib.SMTPDataError) as no,
        ):
            client.sendmail("a@example.org", ["b@example.com", "c@example.com"], "Subject: x\n\n")
    finally:
        controller.stop()
    assert (no.value.smtp_code, no.value.smtp_error[:5]) == (451, b"4.3.0")
    assert "Wrong failed, the client gets 451" in caplog.text


@pytest.mark.parametrize("method", ["check", "prepare", "on_reload"])
def test_an_error_before_the_first_message_is_one_line_that_names_the_method(method: str) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "No such file", "rules://u:s3cret@x\ny")

    sink = Wrong(OK)
    setattr(sink, method, fail)
    with pytest.raises(HandlerError) as caught:
        getattr(Chain([sink]), method)()
    reason = "FileNotFoundError: [Errno 2] No such file: 'rules://u:***@x\\ny'"
    assert str(caught.value) == f"Wrong.{method}() failed: {reason}"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
