"""check_sink: valid sinks pass, and each kind of invalid one is found."""

from __future__ import annotations

import asyncio
import importlib.util
import mailbox
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_fork import Mail, Server, Sink
from smtpd_fork.sinks import Maildir
from smtpd_fork.testing import FAULTS, MESSAGES, FaultProxy, Mailbox, check_sink, make_mail

if TYPE_CHECKING:
    from types import ModuleType


def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples/own_sink.py"
    spec = importlib.util.spec_from_file_location("own_sink", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example_of_a_sink_passes(tmp_path: Path) -> None:
    path = str(tmp_path / "mail.db")

    def stored() -> list[bytes]:
        with closing(sqlite3.connect(path)) as database:
            return [row[0] for row in database.execute("SELECT content FROM mail")]

    await check_sink(lambda: example().Database(path), stored)


async def test_the_maildir_passes(tmp_path: Path) -> None:
    def stored() -> list[bytes]:
        return [path.read_bytes() for path in (tmp_path / "new").iterdir()]

    await check_sink(lambda: Maildir(tmp_path), stored)


class Smtp(Sink):
    """A sink with a server, as a user would write it first."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def deliver(self, mail: Mail) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return "451 4.4.1 Later"
        try:
            await self._expect(reader, b"220")
            for line in ("HELO x", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA"):
                writer.write(f"{line}\r\n".encode())
                await self._expect(reader, b"354" if line == "DATA" else b"250")
            content = b"".join(mail.relayed()).replace(b"\n.", b"\n..")
            if not content.endswith(b"\n"):
                content += b"\r\n"
            writer.write(content + b".\r\n")
            return (await self._expect(reader, b"250")).decode().strip()
        except (OSError, ValueError):
            return "451 4.4.1 Later"
        finally:
            writer.transport.abort()

    async def _expect(self, reader: asyncio.StreamReader, code: bytes) -> bytes:
        line = await reader.readline()
        if not line.startswith(code):
            raise ValueError(line)
        return line


@pytest.fixture
async def hop() -> Any:
    """Yield a server that stores messages, and its mailbox."""
    box = Mailbox()
    async with Server(box, listen=["127.0.0.1:0"], shutdown_timeout=0.5) as server:
        yield box, server.addresses[0][1]


async def test_a_sink_with_a_server_is_tested_with_each_fault(hop: Any) -> None:
    box, port = hop
    async with FaultProxy("127.0.0.1", port) as proxy:
        await check_sink(
            lambda: Smtp(proxy.port),
            lambda: [message.content for message in box.messages],
            proxy=proxy,
            time_limit=0.3,
        )


class Lists(Sink):
    """Stores messages in a list; classes derived from it have mistakes."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def deliver(self, mail: Mail) -> Any:
        await asyncio.sleep(0)
        self.kept.append(b"".join(mail.relayed()))
        return "250 2.0.0 Ok"


class Changes(Lists):
    async def deliver(self, mail: Mail) -> Any:
        self.kept.append(mail.content.replace(b"\n.", b"\n"))
        return "250 2.0.0 Ok"


class LeavesTasks(Lists):
    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[Any] = set()

    async def deliver(self, mail: Mail) -> Any:
        self.tasks.add(asyncio.ensure_future(asyncio.sleep(3600)))
        return await super().deliver(mail)


class SaysNoReply(Lists):
    async def deliver(self, mail: Mail) -> Any:
        return "fine"


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Changes, "not stored, or was changed"),
        (LeavesTasks, "close.. leaves tasks"),
        (SaysNoReply, "must return a reply such as .*, not 'fine'"),
    ],
)
async def test_a_bad_sink_is_found(kind: type[Lists], fault: str) -> None:
    sink = kind()
    with pytest.raises((AssertionError, TypeError), match=fault):
        await check_sink(lambda: sink, lambda: sink.kept)
    for task in getattr(sink, "tasks", []):
        task.cancel()


async def test_a_good_sink_in_memory_passes() -> None:
    sink = Lists()
    await check_sink(lambda: sink, lambda: sink.kept)


class RefusesWhenBroken(Smtp):
    async def deliver(self, mail: Mail) -> str:
        return (await super().deliver(mail)).replace("451 4.4.1", "554 5.3.0")


async def test_a_sink_that_bounces_mail_while_its_server_is_broken_is_found(hop: Any) -> None:
    box, port = hop
    async with FaultProxy("127.0.0.1", port) as proxy:
        with pytest.raises(
            AssertionError, match=r"server is broken \(refuse\) the sink answers 554"
        ):
            await check_sink(
                lambda: RefusesWhenBroken(proxy.port),
                lambda: [message.content for message in box.messages],
                proxy=proxy,
                messages=(),
                time_limit=0.3,
            )


async def test_the_proxy_passes_on_what_comes_before_and_after_each_fault(hop: Any) -> None:
    _, port = hop
    async with FaultProxy("127.0.0.1", port) as proxy:
        for fault in FAULTS:
            await proxy.set_fault(fault)
            assert (
                (await Smtp(proxy.port).deliver(make_mail()))[:3] == "451"
                if fault == "refuse"
                else True
            )
            await proxy.set_fault("none")
            assert (await Smtp(proxy.port).deliver(make_mail()))[:3] == "250", fault


def test_the_messages_end_their_lines_as_smtp_does() -> None:
    for name, content in MESSAGES.items():
        assert b"\n" not in content.replace(b"\r\n", b""), name
        assert b"\r" not in content.replace(b"\r\n", b""), name


def test_a_mail_of_tests_is_as_a_server_makes_it() -> None:
    one, two = make_mail(), make_mail(recipients=["b@example.com"])
    assert one.id != two.id
    assert one.key == two.key
    assert make_mail(sender="x@example.org").key != one.key
    head, rest = one.delivered()
    message = mailbox.Message(head + rest)
    assert message["Return-Path"] == "<a@example.org>"
    assert message["Subject"] == "test"
