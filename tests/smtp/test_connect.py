"""CONNECT and DISCONNECT: the hooks before and after the commands of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import greeted, serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


class Diary(Discard):
    def __init__(self, answer: Any = MISSING) -> None:
        self.answer = answer
        self.told: list[str] = []

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        self.told.append(f"connect {session.peer[0]}")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        self.told.append(f"disconnect {session.peer[0]}")


async def test_connect_and_disconnect_are_called_once_each() -> None:
    diary = Diary()
    async with greeted(diary) as client:
        client.reset()
    assert diary.told == ["connect 127.0.0.1", "disconnect 127.0.0.1"]


async def test_connect_can_refuse_instead_of_the_greeting() -> None:
    diary = Diary("554 5.7.1 Not you")
    async with serve(diary) as server, await Client.to(server.addresses[0]) as client:
        assert await client.reply() == (554, ["5.7.1 Not you"])
        assert await client.ended()
    assert diary.told == ["connect 127.0.0.1", "disconnect 127.0.0.1"]


async def test_connect_that_raises_is_421() -> None:
    diary = Diary(RuntimeError("secret"))
    async with serve(diary) as server, await Client.to(server.addresses[0]) as client:
        reply = await client.reply()
        assert (reply.code, "secret" in reply.text) == (421, False)
        assert await client.ended()


async def test_one_session_id_is_in_the_reply_and_on_the_session_before_and_after_starttls(
    certificates: Certificates,
) -> None:
    ids: list[str] = []

    class Look(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> Any:
            ids.append(session.id)
            return MISSING

        async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
            ids.append(session.id)
            return MISSING

    async with greeted(Look(), tls_context=certificates.server) as client:
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        await client.deliver()
    assert len(ids) == 2
    assert ids[0] == ids[1]
