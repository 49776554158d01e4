"""A mistake in a handler or a session class is an error when the server is created."""

from __future__ import annotations

import asyncio
import functools
import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock

import aiosmtpd.smtp
import pytest
from aiosmtpd.handlers import Debugging, Sink
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.daemon import run
from support.server import greeted, serve

from smtpd_fork import Server
from smtpd_fork.errors import ExitStatus, HandlerError
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path


class Plain:
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 ok"


class Formatted:
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        if not envelope.content:
            return MISSING
        return f"250 {session.id}"


class Nothing:
    def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        session.gone = True


class Misspelt(Discard):
    async def handle_RCTP(self, *_: Any) -> str:
        return "550 no"


class WrongCase:
    async def handle_data(self, *_: Any) -> str:
        return "250 ok"


class Yields:
    async def handle_DATA(self, *_: Any) -> Any:
        yield "250 ok"


class NotCallable:
    handle_DATA = "250 ok"  # noqa: N815 - aiosmtpd's name


class Ehlo(Discard):
    async def handle_EHLO(self, server: Any, session: Any, name: str) -> str:
        return "250 ok"


class Short(Discard):
    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str) -> str:
        return "250 ok"


def no_hook() -> Any:
    return object()


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (object(), "object is not a handler: it has no handle_DATA"),
        (no_hook, "function is not a handler"),
        (Discard, "Discard is a class, not an instance: write Discard()"),
        (Plain, "Plain is a class"),
        (Plain(), r"Plain: handle_DATA is awaited: write async def handle_DATA\(...\)$"),
        (Formatted(), "Formatted: handle_DATA is awaited"),
        (Nothing(), "Nothing: handle_DISCONNECT is awaited"),
        (Misspelt(), "Misspelt: handle_RCTP would never be called; did you mean handle_RCPT?"),
        (WrongCase(), "handle_data would never be called; did you mean handle_DATA?"),
        (Yields(), "handle_DATA yields; it must return its answer"),
        (NotCallable(), "handle_DATA is '250 ok', and cannot be called"),
        (Ehlo(), r"handle_EHLO takes \(server, session, envelope, hostname, responses\), not "),
        (Short(), r"handle_RCPT takes \(server, session, envelope, address, rcpt_options\), not"),
        ([], "at least one handler is required"),
        ([Discard(), object()], "object is not a handler"),
        ([Discard(), [Discard()]], "list is not a handler"),
        (7, "int is not a handler"),
        ("maildir", "str is not a handler"),
    ],
    ids=lambda _: "",
)
async def test_an_object_that_is_not_a_handler_is_an_error(handler: Any, says: str) -> None:
    with pytest.raises(HandlerError, match=says):
        Server(handler)
    async with serve(Discard()) as server:
        with pytest.raises(HandlerError, match=says):
            await server.reload(handler=handler)
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.reply()).code == 220


class Delegates:
    """Passes hooks on: plain functions that return the coroutine of another function."""

    def __init__(self) -> None:
        self.inner = Discard()

    def handle_DATA(self, *args: Any) -> Any:
        return self.inner.handle_DATA(*args)


class Annotated:
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Awaitable[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result("250 ok")
        return future


def wrapped(hook: Any) -> Any:
    @functools.wraps(hook)
    def wrapper(*args: Any) -> Any:
        result = hook(*args)
        return result  # noqa: RET504 - so that its instructions tell nothing

    return wrapper


class Wrapped:
    @wrapped
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 ok"


class Static:
    @staticmethod
    async def handle_DATA(*_: Any) -> str:
        return "250 ok"


class StartTls(Discard):
    def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
        return True


class Helpers(Discard):
    async def handle_message(self, message: Any) -> None:
        """Is derived from aiosmtpd's Message."""

    def handle_data(self) -> None:
        """Be a function of the handler's own: it has handle_DATA as well."""

    async def handle_exception(self, error: Exception) -> str:
        return "451 4.3.0 mine"


class Dynamic:
    """Has a hook that only dir() and getattr() find."""

    def __dir__(self) -> list[str]:
        return ["handle_DATA"]

    def __getattr__(self, name: str) -> Any:
        if name == "handle_DATA":
            return AsyncMock(return_value="250 ok")
        raise AttributeError(name)


MODULE = ModuleType("module")
MODULE.handle_DATA = Static.handle_DATA  # type: ignore[attr-defined]  # a module's function


@pytest.mark.parametrize(
    "handler",
    [
        *(Annotated(), Wrapped(), Static(), Static, StartTls(), Helpers(), Dynamic(), MODULE),
        MagicMock(handle_DATA=AsyncMock(return_value="250 ok"), spec=["handle_DATA"]),
        MagicMock(handle_DATA=functools.partial(Static.handle_DATA), spec=["handle_DATA"]),
    ],
    ids=lambda handler: getattr(handler, "__name__", type(handler).__name__),
)
async def test_hooks_that_aiosmtpd_can_call_are_accepted_without_a_warning(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with greeted(handler) as client:
        assert (await client.deliver()).code == 250
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("handler", [Sink(), Debugging()])
async def test_the_handlers_of_aiosmtpd_are_accepted(handler: Any) -> None:
    Server(handler)


class HasGot(Discard):
    async def handle_XFOO(self, *_: Any) -> str:
        return "250 foo"


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Delegates(), "Delegates: handle_DATA is awaited: write async def handle_DATA(...), or"),
        (HasGot(), "HasGot: handle_XFOO is never called: no command calls it"),
    ],
)
async def test_a_probable_mistake_is_a_warning(
    handler: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with greeted(handler) as client:
        assert (await client.deliver()).code == 250
    assert says in caplog.text


async def test_a_hook_for_a_command_of_a_subclass_is_valid(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Custom(SMTP):
        async def smtp_XFOO(self, arg: str | None) -> None:
            await self.push(await self._call_handler_hook("XFOO"))

    async with serve(HasGot(), session_class=Custom) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            assert await client.say("XFOO") == (250, ["foo"])
    assert "never called" not in caplog.text


def test_the_daemon_names_the_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    async def handle_RCTP(self, *_):\n        return '550 no'\n"
    )
    for command in ([], ["check"]):
        ended = run(*command, "--handler", "mine:Mine", "-l", "127.0.0.1:0", cwd=tmp_path)
        assert ended.returncode == ExitStatus.CONFIG
        assert "did you mean handle_RCPT?" in ended.stderr
        assert ended.stderr.count("\n") == 1


# -- session classes and their keywords --------------------------------------------------------


class Pushes(SMTP):
    async def push(self, status: Any) -> None:
        await super().push(status)


class Handles(SMTP):
    async def _handle_client(self) -> None:
        pass


class Narrow(SMTP):
    def __init__(self, handler: Any, hostname: str) -> None:
        super().__init__(handler, hostname=hostname)


class Flavoured(SMTP):
    def __init__(self, handler: Any, *, flavour: str = "plain", **options: Any) -> None:
        super().__init__(handler, **options)
        self.flavour = flavour

    async def smtp_XTASTE(self, arg: str | None) -> None:
        await self.push(f"250 {self.flavour}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"session_class": aiosmtpd.smtp.SMTP}, "is not a subclass of smtpd_fork.SMTP"),
        ({"session_class": Discard()}, "is not a subclass of smtpd_fork.SMTP"),
        ({"session_class": Pushes}, "Pushes overrides push, which is never called here: replies"),
        ({"session_class": Handles}, "Handles overrides _handle_client"),
        ({"session_class": Narrow}, r"has to accept \*\*kwargs"),
        ({"session_options": {"authenticater": 1}}, "did you mean authenticator?"),
        ({"session_options": {"xyzzy": 1}}, "SMTP has no keyword xyzzy$"),
        ({"session_options": {"ident": "ESMTP\r\n250 x"}}, "ident .* has control characters"),
        ({"session_options": {"tls_context": 1}}, r"use Server\(tls_context=...\)"),
        (
            {"session_options": {"flavor": "x"}, "session_class": Flavoured},
            "Flavoured has no keyword flavor; did you mean flavour?",
        ),
    ],
)
def test_an_invalid_session_class_is_an_error(options: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Server(Discard(), **options)


async def test_a_session_class_may_have_its_own_keywords() -> None:
    options = {"flavour": "sweet"}
    async with serve(Discard(), session_class=Flavoured, session_options=options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            assert await client.say("XTASTE") == (250, ["sweet"])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("command_call_limit", "many", TypeError), ("proxy_protocol_timeout", -1, ValueError)],
)
async def test_a_wrong_value_of_a_keyword_is_an_error_at_the_start(
    name: str, value: Any, error: type[Exception]
) -> None:
    server = Server(Discard(), listen=["127.0.0.1:0"], session_options={name: value})
    with pytest.raises(error, match=name):
        await server.start()
    assert server.addresses == []
