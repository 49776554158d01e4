"""Several handlers as one: the first answer is used, MISSING leaves the decision to others."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import greeted, serve

from smtpd_fork.handlers import Chain
from smtpd_fork.sinks import Debug, Discard, Maildir


class Says:
    """A handler with one hook that records its call, and answers."""

    def __init__(self, name: str, answer: Any, asked: list[str], *, hook: str = "RCPT") -> None:
        async def answer_it(*_: Any) -> Any:
            asked.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        setattr(self, f"handle_{hook}", answer_it)


async def test_the_first_answer_is_used_and_no_later_handler_is_called() -> None:
    asked: list[str] = []
    chain: Any = Chain(
        [Says("a", MISSING, asked), Says("b", "550 no", asked), Says("c", "250 ok", asked)]
    )
    assert await chain.handle_RCPT() == "550 no"
    assert asked == ["a", "b"]


async def test_missing_of_all_handlers_is_missing() -> None:
    asked: list[str] = []
    chain: Any = Chain([Says("a", MISSING, asked), Says("b", MISSING, asked)])
    assert await chain.handle_RCPT() is MISSING
    assert asked == ["a", "b"]


async def test_after_a_hook_that_raises_no_other_is_called() -> None:
    asked: list[str] = []
    chain: Any = Chain([Says("a", ValueError("no"), asked), Says("b", "250 ok", asked)])
    with pytest.raises(ValueError, match="no"):
        await chain.handle_RCPT()
    assert asked == ["a"]


async def test_disconnect_is_called_for_every_handler() -> None:
    asked: list[str] = []
    chain: Any = Chain(
        [
            Says("a", ValueError("no"), asked, hook="DISCONNECT"),
            Says("b", "whatever", asked, hook="DISCONNECT"),
        ]
    )
    with pytest.raises(ValueError, match="no"):
        await chain.handle_DISCONNECT(None, None)
    assert asked == ["a", "b"]
    chain = Chain([Says(name, ValueError(name), asked, hook="DISCONNECT") for name in "cd"])
    with pytest.raises(BaseExceptionGroup) as caught:
        await chain.handle_DISCONNECT(None, None)
    assert [str(error) for error in caught.value.exceptions] == ["c", "d"]
    assert asked == ["a", "b", "c", "d"]


def test_a_chain_has_only_the_hooks_that_its_handlers_have() -> None:
    chain = Chain([Says("a", MISSING, []), Discard()])
    hooks = {name for name in dir(chain) if name.startswith("handle_")}
    assert hooks == {"handle_RCPT", "handle_DATA"}


async def test_each_ehlo_hook_gets_the_replies_of_the_previous_one() -> None:
    class Adds:
        def __init__(self, line: str) -> None:
            self.line = line

        async def handle_EHLO(
            self, server: Any, session: Any, envelope: Any, name: str, lines: list[str]
        ) -> list[str]:
            session.host_name = name
            return [*lines[:-1], f"250-{self.line}", lines[-1]]

    class Old:
        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, name: str) -> str:
            return "250 OLD"

    async with (
        serve([Adds("ONE"), Old(), Adds("TWO"), Discard()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        lines = (await client.greet()).lines
        assert lines[-3:] == ["ONE", "TWO", "OLD"]
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize(("fails", "code"), [(False, 550), (True, 451)])
async def test_if_a_handler_rejects_ehlo_the_name_is_restored(fails: bool, code: int) -> None:
    class Takes(Discard):
        async def handle_EHLO(
            self, server: Any, session: Any, envelope: Any, name: str, lines: list[str]
        ) -> list[str]:
            session.host_name = name
            return lines

    class Refuses(Discard):
        async def handle_EHLO(
            self, server: Any, session: Any, envelope: Any, name: str, lines: list[str]
        ) -> list[str]:
            if fails:
                raise OSError("no")
            return ["550 5.7.1 Not you"]

    async with (
        serve([Takes(), Refuses()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert (await client.greet()).code == code
        assert (await client.say("MAIL FROM:<a@example.com>")).code == 503


async def test_handle_exception_of_a_handler_is_used() -> None:
    class Excuses:
        async def handle_exception(self, error: Exception) -> str:
            return f"450 4.0.0 {type(error).__name__}"

        async def handle_RCPT(self, *_: Any) -> str:
            raise KeyError

    async with greeted([Excuses(), Discard()]) as client:
        await client.say("MAIL FROM:<a@b.c>")
        assert await client.say("RCPT TO:<d@e.f>") == (450, ["4.0.0 KeyError"])


async def test_process_message_still_receives_messages() -> None:
    class Old:
        def __init__(self) -> None:
            self.taken: list[Any] = []

        def process_message(self, peer: Any, sender: str, recipients: Any, data: bytes) -> None:
            self.taken.append((sender, list(recipients), data))

    old = Old()
    with pytest.warns(DeprecationWarning, match="process_message"):
        async with greeted(old) as client:
            assert (await client.deliver("x\r\n")).code == 250
    assert old.taken == [("a@example.com", ["b@example.com"], b"x\r\n")]


def test_a_sink_that_gets_no_message_is_an_error_of_the_chain(tmp_path: Any) -> None:
    behind = Maildir(tmp_path)
    [fault] = Chain([Says("a", MISSING, []), Debug(), behind]).errors
    assert fault == "the sink maildir gets no message: debug takes all messages before it"
    assert Chain([behind]).errors == []


async def test_debug_prints_nothing_that_acts_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with greeted(Debug()) as client:
        assert (await client.deliver("Subject: x\r\n\r\nred \x1b[31m\r\n")).code == 250
    printed = capsys.readouterr().out
    assert "from: a@example.com  to: b@example.com" in printed
    assert "Subject: x" in printed
    assert "\x1b" not in printed


class Pair(NamedTuple):
    """A handler whose class is a tuple, as mailrise's."""

    first: Any
    second: Any

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return f"250 2.0.0 {self.first} {self.second}"


class Listed(list[str]):
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return f"250 2.0.0 {' '.join(self)}"


async def test_a_handler_that_is_a_list_or_tuple_by_its_class_is_one_handler() -> None:
    for handler in (Pair("a", "b"), Listed(["a", "b"]), [Pair("a", "b")], (Listed("ab"),)):
        async with greeted(handler) as client:
            assert await client.deliver() == (250, ["2.0.0 a b"])
