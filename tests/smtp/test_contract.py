"""The differences for handlers and subclasses: each row of the docs' table, with both servers.

The table is in docs/migrating-from-aiosmtpd.md. A row without a probe fails, and so does a probe
without a row; the behaviour of aiosmtpd is tested as well.
"""

from __future__ import annotations

import asyncio
import logging
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from smtp.faults_of_commands import FAULTS as OF_COMMANDS
from smtp.faults_of_sessions import FAULTS as OF_SESSIONS
from support.page import read
from support.server import greeted
from support.stock import BEGIN, OURS, STOCK, Bench, Fault, Keep, codes

from smtpd_fork import Reply, Server
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.tls import Certificates

PAGE = "docs/migrating-from-aiosmtpd.md"


class Nothing:
    """Has a hook, but none for messages."""

    async def handle_NOOP(self, *_: Any) -> str:
        return "250 ok"


async def what_a_message_without_a_hook_is_answered(bench: Bench) -> int:
    async with bench.client(Nothing()) as client:
        await client.greet()
        return (await client.deliver()).code


async def what_a_hook_that_exits_ends(bench: Bench) -> str:
    class Exits(Keep):
        async def handle_NOOP(self, *_: Any) -> str:
            raise asyncio.CancelledError  # with aiosmtpd sys.exit() would end this test

    async with bench.client(Exits()) as client:
        await client.greet()
        code = (await client.say("NOOP")).code
        return f"answered {code}" if code else "the session"


async def what_two_lines_of_a_hook_are(bench: Bench) -> list[bytes]:
    class Lines(Keep):
        async def handle_NOOP(self, *_: Any) -> str:
            return "250 one\ntwo\r\n"

    async with bench.client(Lines()) as client:
        await client.greet()
        client.send("NOOP\r\nRSET\r\nQUIT\r\n")
        return (await client.reader.read()).split(b"\r\n")[:2]


async def what_a_silent_client_hears(bench: Bench) -> int:
    async with bench.client(timeout=0.3) as client:
        await client.greet()
        return (await client.reply()).code


async def what_a_slow_message_is_answered(bench: Bench) -> int:
    async with bench.client(timeout=0.4) as client:
        await client.greet()
        await codes(client, *BEGIN)
        for _ in range(8):
            client.send("a line\r\n")
            await asyncio.sleep(0.1)
        client.send(".\r\n")
        return (await client.reply()).code


async def what_a_line_of_1100_octets_is_answered(bench: Bench) -> int:
    async with bench.client() as client:
        await client.greet()
        return (await client.deliver("x" * 1100 + "\r\n")).code


async def what_a_comment_in_an_address_is_answered(bench: Bench) -> int:
    async with bench.client() as client:
        await client.greet()
        return (await client.say("MAIL FROM:(me)a@example.com")).code


async def what_auth_login_asks(bench: Bench) -> list[bytes]:
    def authenticator(*_: Any) -> AuthResult:
        return AuthResult(success=False, handled=False)

    async with bench.client(authenticator=authenticator) as client:
        await client.greet()
        name = (await client.say("AUTH LOGIN")).text
        return [b64decode(each) for each in (name, (await client.say("YQ==")).text)]


async def is_there_a_task_in_a_hook_without_await(bench: Bench) -> bool:
    tasks = []

    def note() -> None:
        tasks.append(asyncio.current_task() is not None)

    class Notes(Keep):
        async def handle_NOOP(self, *_: Any) -> str:
            note()
            return "250 ok"

    async with bench.client(Notes()) as client:
        await client.greet()
        await client.say("NOOP")
    return tasks[0]


async def who_logs_commands_and_how(bench: Bench) -> set[tuple[str, str]]:
    found = set()

    class Finds(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if ">>" in record.getMessage():
                found.add((record.name, record.levelname))

    root, finds = logging.getLogger(), Finds()
    before = root.level
    root.addHandler(finds)
    root.setLevel(logging.DEBUG)
    try:
        async with bench.client() as client:
            await client.greet()
    finally:
        root.removeHandler(finds)
        root.setLevel(before)
    return found


# -- subclasses --------------------------------------------------------------------------------


def of(bench: Bench, **methods: Any) -> Bench:
    """Return a bench with a subclass of its engine."""
    return Bench(type("Sub", (bench.engine,), methods), bench.certificates)


async def what_becomes_of_an_overridden_push(bench: Bench) -> str:
    pushed = []

    async def push(self: Any, status: Any) -> None:
        pushed.append(status)
        await bench.engine.push(self, status)

    sub = of(bench, push=push)
    if issubclass(bench.engine, OURS):
        with pytest.raises(TypeError, match="overrides push, which is never called"):
            Server(Discard(), session_class=sub.engine)  # type: ignore[arg-type]  # it is one
        return "refused"
    async with sub.client() as client:
        await client.greet()
    return "called" if pushed else "not called"


async def is_chunking_offered_around_smtp_data(bench: Bench) -> bool:
    async def smtp_DATA(self: Any, arg: str | None) -> None:
        """Reject all, as an example."""

    async with of(bench, smtp_DATA=smtp_DATA).client() as client:
        return "CHUNKING" in (await client.greet()).text


async def how_often_a_command_that_fails_after_its_reply_is_answered(bench: Bench) -> int:
    async def smtp_XFOO(self: Any, arg: str | None) -> None:
        await self.push("250 ok")
        raise ValueError

    async with of(bench, smtp_XFOO=smtp_XFOO).client() as client:
        await client.greet()
        client.send("XFOO\r\nQUIT\r\n")
        return len((await client.reader.read()).splitlines()) - 1


async def has_a_session_a_reader_and_a_writer(bench: Bench) -> bool:
    async with bench.client() as client:
        await client.greet()
        return all(hasattr(bench.sessions[0], name) for name in ("_reader", "_writer"))


async def are_command_size_limits_read(bench: Bench) -> bool:
    def connection_made(self: Any, transport: Any) -> None:
        self.command_size_limits["NOOP"] = 900
        bench.engine.connection_made(self, transport)

    try:
        async with of(bench, connection_made=connection_made).client() as client:
            await client.greet()
            return (await client.say("NOOP " + "x" * 700)).code == 250
    finally:
        STOCK.command_size_limits.clear()  # one reply for all recipients, in aiosmtpd


FAULTS = {fault.probe.__name__: fault for fault in (*OF_COMMANDS, *OF_SESSIONS)}

NEW: Mapping[str, Fault] = {
    "no hook for the message": Fault(what_a_message_without_a_hook_is_answered, 250, 451),
    "`sys.exit()`, CancelledError": Fault(
        what_a_hook_that_exits_ends, "the session", "answered 451"
    ),
    "a reply of several lines": Fault(
        what_two_lines_of_a_hook_are, [b"250 one\ntwo", b""], [b"250-one", b"250 two"]
    ),
    "a time-out": Fault(what_a_silent_client_hears, 0, 421),
    "a slow message": Fault(what_a_slow_message_is_answered, 0, 250),
    "a line of more than 1,001 octets": Fault(what_a_line_of_1100_octets_is_answered, 500, 250),
    "comments in addresses": Fault(what_a_comment_in_an_address_is_answered, 250, 553),
    "AUTH LOGIN asks": Fault(
        what_auth_login_asks, [b"User Name\0", b"Password\0"], [b"Username:", b"Password:"]
    ),
    "`asyncio.current_task()`": Fault(is_there_a_task_in_a_hook_without_await, True, False),
    "the log has commands": Fault(
        who_logs_commands_and_how, {("mail.log", "INFO")}, {("smtpd_fork.session", "DEBUG")}
    ),
    "`push` is overridden": Fault(what_becomes_of_an_overridden_push, "called", "refused"),
    "`smtp_DATA` is overridden": Fault(is_chunking_offered_around_smtp_data, False, False),
    "a command raises after its reply": Fault(
        how_often_a_command_that_fails_after_its_reply_is_answered, 2, 1
    ),
    "`_reader` and `_writer`": Fault(has_a_session_a_reader_and_a_writer, True, False),
    "`command_size_limits`": Fault(are_command_size_limits_read, True, False),
}
"""Rows by the beginning of their first cell, each with its probe."""

OLD = {
    "a hook raises": "what_a_client_is_told_of_an_error",
    "after a failed DATA": "what_rcpt_is_answered_after_a_failed_data",
    "the client is gone": "what_becomes_of_a_message_when_its_client_half_closes",
    "a reply of 421": "what_is_answered_after_a_hooks_421",
    "a second STARTTLS": "what_a_second_starttls_is_answered",
    "recipients of a message": "how_many_recipients_a_message_may_have",
    "failed attempts to authenticate": "how_often_a_client_may_fail_to_authenticate",
    "AUTH is offered": "is_auth_offered_with_nothing_to_check_it",
    "EHLO offers": "which_extensions_are_offered",
}
"""Rows that are tested in another file."""

each_row = pytest.mark.parametrize("row", NEW, ids=lambda row: re.sub(r"\W+", "-", row))


def test_every_row_of_the_table_has_a_probe_and_every_probe_a_row() -> None:
    text = read(PAGE).partition("## Differences")[2].partition("\n## ")[0]
    rows = [row for row in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE) if row != "---"]
    known = [*NEW, *OLD]
    assert [row for row in rows if not any(row.startswith(each) for each in known)] == []
    assert [each for each in known if not any(row.startswith(each) for row in rows)] == []
    assert set(OLD.values()) <= FAULTS.keys()


@each_row
@pytest.mark.asyncio(loop_factories=["asyncio"])  # one loop is enough for aiosmtpd
async def test_stock_aiosmtpd_behaves_as_the_row_says(row: str, certificates: Certificates) -> None:
    assert await NEW[row].probe(Bench(STOCK, certificates)) == NEW[row].stock


@each_row
async def test_smtpd_fork_behaves_as_the_row_says(row: str, certificates: Certificates) -> None:
    assert await NEW[row].probe(Bench(OURS, certificates)) == NEW[row].ours


async def test_a_reply_runs_in_stock_aiosmtpd_as_well(certificates: Certificates) -> None:
    class Replies(Keep):
        async def handle_NOOP(self, *_: Any) -> Reply:
            return Reply("250 2.0.0 one\ntwo")

    for engine in (STOCK, OURS):
        async with Bench(engine, certificates).client(Replies()) as client:
            await client.greet()
            assert await client.say("NOOP") == (250, ["2.0.0 one", "2.0.0 two"])


async def test_a_server_has_the_same_differences_as_its_session_class() -> None:
    async with greeted(Nothing()) as client:
        assert (await client.deliver()).code == 451
