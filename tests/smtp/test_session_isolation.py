"""Sessions of one server share their settings, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import MAIL, RCPT, Client
from support.server import greeted, serve

from smtpd_fork.dialogue.session import current_session
from smtpd_fork.dialogue.shared import SETTINGS
from smtpd_fork.dialogue.waiting import may_end_at_once, never_waits
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from support.tls import Certificates


@pytest.mark.parametrize("more", [
    {},
    {"hostname": "mx", "data_size_limit": 7, "enable_SMTPUTF8": True, "ident": "x", "timeout": 5},
    {"tls_context": True, "require_starttls": True, "auth_required": True},
    {"auth_require_tls": False, "authenticator": print, "proxy_protocol_timeout": 5},
    {"auth_callback": print, "decode_data": True, "command_call_limit": 7},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Requiring AUTH")
async def test_a_session_change_does_not_affect_new_sessions(
    more: dict[str, Any], certificates: Certificates
) -> None:
    if more.get("tls_context"):
        more = {**more, "tls_context": certificates.server}
    first = SMTP(Discard(), **more)
    another = SMTP(first.event_handler, shared=first.connection.shared, peer=("192.0.2.1", 25))
    for name in SETTINGS:
        assert getattr(another, name) is getattr(first, name), name
    another.hostname = "its.own.example"
    assert first.hostname != another.hostname == another.connection.shared.hostname
    assert another.connection.peer == ("192.0.2.1", 25)
    assert another.connection.id != first.connection.id


async def test_a_tls_context_that_most_clients_cannot_satisfy_is_a_warning(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    SMTP(Discard(), tls_context=certificates.server)
    assert not caplog.messages
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    SMTP(Discard(), tls_context=context)
    assert "verify_mode is CERT_REQUIRED" in caplog.text


async def test_settings_that_a_handler_changes_apply_to_one_session() -> None:
    class Generous(Discard):
        async def handle_MAIL(self, server: Any, *_: Any) -> str:
            server.data_size_limit = 5
            server.hostname = "changed"
            return "250 2.1.0 Ok"

    async with serve(Generous()) as server:
        for _ in range(2):
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                reply = await client.say("EHLO x")
                assert reply.lines[0] == "mx.example.com"
                assert "SIZE 5" not in reply.lines
                assert (await client.say(MAIL)).code == 250
                assert "SIZE 5" in (await client.say("EHLO x")).lines


async def test_a_class_with_its_own_constructor_is_called_for_each_client() -> None:
    class Numbered(SMTP):
        made = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            Numbered.made += 1
            self.hostname = f"mx{Numbered.made}"

    async with serve(Discard(), session_class=Numbered) as server:
        for number in (1, 2):
            async with await Client.to(server.addresses[0]) as client:
                assert (await client.reply()).text.startswith(f"mx{number} ")
    assert Numbered.made == 2


async def test_context_variables_last_for_one_session_as_in_aiosmtpd() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen: list[str] = []

    class Remembers(Discard):
        async def handle_EHLO(
            self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
        ) -> list[str]:
            seen.append(who.get())
            await asyncio.sleep(0)
            who.set(name)
            session.host_name = name
            return replies

        async def handle_MAIL(self, *_: Any) -> str:
            seen.append(who.get())
            return "250 2.1.0 Ok"  # no await: no task

    async with serve(Remembers()) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(2)]
        for number, client in enumerate(clients):
            await client.reply()
            await client.say(f"EHLO client{number}")
        for client in clients:
            assert (await client.say(MAIL)).code == 250
            await client.close()
    assert seen == ["nobody", "nobody", "client0", "client1"]
    assert who.get() == "nobody"


# -- hooks that never wait -----------------------------------------------------------------------


async def at_once(*_: Any) -> str:
    return ", ".join(str(each) for each in range(3))


async def awaits(*_: Any) -> None:
    await at_once()


async def iterates(*things: Any) -> None:
    async for _ in things[0]:
        pass


async def enters(*things: Any) -> None:
    async with things[0]:
        pass


async def comprehends(*things: Any) -> list[Any]:
    return [each async for each in things[0]]


async def asks(*_: Any) -> Any:
    return asyncio.current_task()


async def generates(*_: Any) -> Any:
    yield 1


def plain(*_: Any) -> Any:
    return at_once()


class Holder:
    async def method(self) -> str:
        return "x"

    async def __call__(self) -> str:
        return "x"


@pytest.mark.parametrize(
    ("hook", "never"),
    [
        (at_once, True),
        (Holder().method, True),
        *((hook, False) for hook in (awaits, iterates, enters, comprehends, asks, generates)),
        *((hook, False) for hook in (plain, Holder(), len, None)),
    ],
)
def test_a_hook_without_an_await_is_known_by_its_code(hook: Any, never: bool) -> None:
    assert never_waits(hook) is never


async def test_a_hook_without_an_await_needs_no_task_and_may_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Discard):
        async def handle_RCPT(self, *_: Any) -> str:
            raise ValueError("secret")

        async def handle_NOOP(self, *_: Any) -> str:
            raise asyncio.CancelledError  # no other code cancels it

    async with greeted(Fails()) as client:
        assert (await client.say("NOOP")).code == 451
        assert (await client.say(MAIL, RCPT)).code == 451
        assert (await client.say("RSET")).code == 250
    assert "secret" in caplog.text


class Sometimes(Discard):
    """Waits for a recipient only if it is new, and records the task and session of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, bool, bool]] = []

    @may_end_at_once
    async def handle_RCPT(self, _server: Any, session: Any, _: Any, address: str, *__: Any) -> Any:
        new = address not in {step[0] for step in self.steps}
        if new:
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await asyncio.sleep(0)
        in_task = asyncio.current_task() is not None
        self.steps.append((address, in_task, current_session.get() == session.id))
        return "550 5.1.1 Unknown" if address[0] == "u" else MISSING


class Neutral:
    async def handle_RCPT(self, *_: Any) -> Any:
        return MISSING


async def test_a_hook_that_may_end_at_once_has_a_task_only_while_it_waits() -> None:
    handler = Sometimes()
    async with greeted([Neutral(), handler]) as client:
        assert (await client.say(MAIL)).code == 250
        for _ in range(2):
            assert (await client.say("RCPT TO:<b@example.com>")).code == 250
            assert (await client.say("RCPT TO:<u@example.com>")).code == 550
    known, unknown = ("b@example.com", "u@example.com")
    assert handler.steps == [
        *((known, True, True), (unknown, True, True)),
        *((known, False, True), (unknown, False, True)),
    ]
