"""Any exception of a handler is logged and gets a reply, and ends neither server nor session."""

from __future__ import annotations

import asyncio
import logging
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.daemon import Daemon, on_both_loops
from support.server import greeted, serve, until

from smtpd_fork.dialogue.session import current_session
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP
from smtpd_fork.smtp.hooks import ask_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tls import Certificates


class Special(BaseException):
    """An exception that is not an Exception, and is unknown to asyncio."""


ERRORS = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Special)


def raising(error: type[BaseException], *, at_once: bool) -> Callable[..., Any]:
    async def now(*_: Any) -> Any:
        raise error

    async def later(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return now if at_once else later


class Raises(Discard):
    """A handler whose hook raises."""

    def __init__(self, hook: str, error: type[BaseException], *, at_once: bool) -> None:
        setattr(self, hook, raising(error, at_once=at_once))


def every_error() -> Iterator[tuple[type[BaseException], bool]]:
    return ((error, at_once) for error in ERRORS for at_once in (True, False))


@pytest.fixture
def errors_logged(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Return a function that counts the logged errors, on single lines and in summaries."""
    return lambda: sum(
        getattr(record, "more", 1)
        for record in caplog.records
        if record.levelno == logging.ERROR and (record.exc_info or hasattr(record, "more"))
    )


BEFORE = {
    "HELO": [],
    "EHLO": [],
    "NOOP": [],
    "VRFY": [],
    "RSET": [],
    "MAIL": ["EHLO x"],
    "RCPT": ["EHLO x", "MAIL FROM:<a@b.c>"],
    "DATA": ["EHLO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"],
    "AUTH": ["EHLO x"],
}
COMMANDS = {
    "HELO": "HELO x",
    "EHLO": "EHLO x",
    "VRFY": "VRFY <a@b.c>",
    "MAIL": "MAIL FROM:<a@b.c>",
    "RCPT": "RCPT TO:<d@e.f>",
    "DATA": "x\r\n.",
    "AUTH": "AUTH PLAIN AGEAYg==",
}


@pytest.mark.parametrize("command", BEFORE)
async def test_a_command_whose_hook_raises_is_451_and_the_session_continues(
    command: str, errors_logged: Callable[[], int]
) -> None:
    options = {"authenticator": lambda *_: None, "auth_require_tls": False}
    for count, (error, at_once) in enumerate(every_error(), 1):
        handler = Raises(f"handle_{command}", error, at_once=at_once)
        async with serve(handler, session_options=options) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                await client.say(*BEFORE[command])
                assert (await client.say(COMMANDS.get(command, command))).code == 451, error
                client.send("HELP\r\n")
                assert (await client.reply()).code == 250, error
        assert errors_logged() == count, error


async def test_a_task_collected_in_another_session_is_not_an_error_of_a_handler() -> None:
    """The session that runs then is arbitrary, as a closed loop left the task."""

    class Connection:
        shared = SimpleNamespace(hooks={"NOOP": raising(GeneratorExit, at_once=True)}, lmtp=False)
        dialogue = SimpleNamespace(id="own", session=None, envelope=None)
        server = work = None

    connection: Any = Connection()
    token = current_session.set("own")
    with pytest.raises(RuntimeError, match="a handler raised GeneratorExit"):
        await ask_handler(connection, "NOOP")
    current_session.set("another")
    with pytest.raises(GeneratorExit):
        await ask_handler(connection, "NOOP")
    current_session.reset(token)


async def test_quit_ends_the_session_although_its_hook_raises(
    errors_logged: Callable[[], int],
) -> None:
    for error, at_once in every_error():
        async with serve(Raises("handle_QUIT", error, at_once=at_once)) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                assert (await client.say("QUIT")).code == 451
    assert errors_logged() == 2 * len(ERRORS)


async def test_a_connect_hook_that_raises_refuses_the_client_with_421(
    errors_logged: Callable[[], int],
) -> None:
    for error, at_once in every_error():
        async with serve(Raises("handle_CONNECT", error, at_once=at_once)) as server:
            async with await Client.to(server.addresses[0]) as client:
                assert (await client.reply()).code == 421
                assert await client.ended()
    assert errors_logged() == 2 * len(ERRORS)


async def test_a_disconnect_hook_that_raises_does_not_affect_the_others(
    errors_logged: Callable[[], int],
) -> None:
    called = []

    class Notes(Discard):
        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            called.append(session)

    for error, at_once in every_error():
        chain = [Raises("handle_DISCONNECT", error, at_once=at_once), Notes()]
        async with serve(chain) as server, await Client.to(server.addresses[0]) as client:
            await client.reply()
    assert len(called) == errors_logged() == 2 * len(ERRORS)


async def test_a_single_disconnect_hook_that_raises_is_logged(
    errors_logged: Callable[[], int],
) -> None:
    for error, at_once in every_error():
        async with serve(Raises("handle_DISCONNECT", error, at_once=at_once)) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
    assert errors_logged() == 2 * len(ERRORS)


async def test_a_handle_exception_that_raises_is_451(errors_logged: Callable[[], int]) -> None:
    for error, at_once in every_error():
        handler = Raises("handle_exception", error, at_once=at_once)
        handler.handle_DATA = raising(ValueError, at_once=at_once)  # type: ignore[method-assign]
        async with greeted(handler) as client:
            assert (await client.deliver()).code == 451
            assert (await client.deliver()).code == 451
    assert errors_logged() == 4 * len(ERRORS)


async def test_handle_exception_gets_an_exception_whatever_was_raised() -> None:
    got: list[Exception] = []

    class Exits:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            sys.exit(3)

        async def handle_exception(self, error: Exception) -> str:
            got.append(error)
            return "451 4.3.0 mine"

    async with greeted(Exits()) as client:
        assert (await client.deliver()).text == "4.3.0 mine"
    assert isinstance(got[0], RuntimeError)
    assert str(got[0]) == "a handler raised SystemExit"
    assert isinstance(got[0].__cause__, SystemExit)


@pytest.mark.parametrize("where", ["authenticator", "thread", "mechanism"])
async def test_an_authenticator_that_raises_is_451(
    where: str, errors_logged: Callable[[], int]
) -> None:
    for error in ERRORS:

        def fail(*_: Any, error: type[BaseException] = error) -> Any:
            raise error

        async def ask(*_: Any, fail: Callable[..., Any] = fail) -> Any:
            return await asyncio.to_thread(fail)

        handler: Any = Discard()
        if where == "mechanism":
            handler.auth_PLAIN = raising(error, at_once=False)
        options = {"authenticator": ask if where == "thread" else fail, "auth_require_tls": False}
        async with greeted(handler, session_options=options) as client:
            assert (await client.say("AUTH PLAIN AGEAYg==")).code == 451, error
            assert (await client.say("NOOP")).code == 250
    assert errors_logged() == len(ERRORS)


async def test_a_mechanism_that_raises_between_two_challenges_is_451() -> None:
    class Mechanism(Discard):
        async def auth_X(self, server: Any, args: list[str]) -> Any:
            await server.challenge_auth("who?")
            raise asyncio.CancelledError

    async with greeted(Mechanism(), session_options={"auth_require_tls": False}) as client:
        assert (await client.say("AUTH X")).code == 334
        assert (await client.say("AGEAYg==")).code == 451
        assert (await client.say("NOOP")).code == 250


async def test_a_subclass_whose_command_raises_is_451(errors_logged: Callable[[], int]) -> None:
    for error, at_once in every_error():

        class Custom(SMTP):
            smtp_XFOO = raising(error, at_once=at_once)  # noqa: N815 - aiosmtpd's manner

        async with greeted(Discard(), session_class=Custom) as client:
            assert (await client.say("XFOO")).code == 451
            assert (await client.say("NOOP")).code == 250
    assert errors_logged() == 2 * len(ERRORS)


@pytest.mark.parametrize("plain", [True, False])
async def test_after_a_starttls_hook_that_raises_commands_are_rejected(
    plain: bool, certificates: Certificates, errors_logged: Callable[[], int]
) -> None:
    """It is called after the handshake, when the client expects no reply."""
    for error in (ValueError, *ERRORS):

        def fail(*_: Any, error: type[BaseException] = error) -> Any:
            raise error

        handler: Any = Discard()
        handler.handle_STARTTLS = fail if plain else raising(error, at_once=False)
        async with greeted(
            handler, tls_cert=str(certificates.cert), tls_key=str(certificates.key)
        ) as client:
            await client.start_tls(certificates.client)
            assert (await client.say("EHLO x")).code == 554, error
    assert errors_logged() == 1 + len(ERRORS)


@pytest.mark.parametrize("answer", [True, False])
async def test_a_starttls_hook_may_be_a_coroutine_function(
    answer: bool, certificates: Certificates
) -> None:
    class Judge(Discard):
        async def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
            await asyncio.sleep(0)
            return answer

    for handler in (Judge(), [Judge(), Judge()]):
        async with greeted(
            handler, tls_cert=str(certificates.cert), tls_key=str(certificates.key)
        ) as client:
            await client.start_tls(certificates.client)
            assert (await client.say("EHLO x")).code == (250 if answer else 554)


async def test_a_proxy_hook_that_raises_refuses_the_client_with_421() -> None:
    for error, at_once in every_error():
        handler = Raises("handle_PROXY", error, at_once=at_once)
        options: dict[str, Any] = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
        async with serve(handler, **options) as server:
            async with await Client.to(server.addresses[0]) as client:
                client.send("PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n")
                assert (await client.reply()).code == 421
                assert await client.ended()


async def test_a_cancelled_session_ends() -> None:
    started = asyncio.Event()

    class Slow(Discard):
        async def handle_NOOP(self, *_: Any) -> Any:
            started.set()
            await asyncio.sleep(60)
            return MISSING

    async with serve(Slow()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send("NOOP\r\n")
        await started.wait()
        client.reset()
        await until(lambda: server.gate.count == 0)


EXITS = """
import asyncio
import sys


class Exits:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("task"):
            await asyncio.create_task(self.leave())
        elif address.startswith("timed"):
            await asyncio.wait_for(self.leave(), 5)
        elif address.startswith("callback"):
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0.01)
            return "550 5.1.1 No"
        else:
            sys.exit(3)

    async def leave(self):
        sys.exit(3)
"""


@on_both_loops
def test_the_daemon_survives_sys_exit_in_a_hook_its_tasks_and_callbacks(
    loop: str, tmp_path: Path
) -> None:
    (tmp_path / "exits.py").write_text(EXITS)
    options = ["-l", "127.0.0.1:0", "--loop", loop]
    with Daemon(
        *options, "--handler", "exits:Exits", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            client.mail("a@example.org")
            assert client.rcpt("plain@example.com")[0] == 451
            assert client.rcpt("task@example.com")[0] == 451
            assert client.rcpt("timed@example.com")[0] == 451
            assert client.rcpt("callback@example.com")[0] == 550
            assert client.noop()[0] == 250


async def test_a_hook_that_took_too_long_does_not_affect_later_hooks() -> None:
    class Hooks(Discard):
        async def handle_MAIL(self, *_: Any) -> str:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

        async def handle_VRFY(self, *_: Any) -> str:
            await asyncio.sleep(0)
            raise asyncio.CancelledError  # raised by the handler itself, without a cancellation

    async with greeted(Hooks(), handler_timeout=0.1) as client:
        client.send("MAIL FROM:<a@b.c>\r\nVRFY <a@b.c>\r\nNOOP\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [451, 451, 250]
