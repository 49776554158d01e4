"""Reloads of handlers: changed files are read again, and an error changes nothing."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.control import CONTROL, command, says
from support.daemon import Daemon, run
from support.handlers import Collect
from support.server import serve

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Accept
from smtpd_fork.handlers import Chain

if TYPE_CHECKING:
    import smtplib
    from collections.abc import Callable
    from pathlib import Path

FAILED = "reload failed, previous settings stay in force: "

OURS = """
from smtpd_fork.filters import Accept
accept = Accept(["./domains"], recipients="recipients.map", relay_from=["./relays"])
"""

OPTIONS = ("-l", "127.0.0.1:0", "--handler", "ours:accept", "--handler", "discard", *CONTROL)


def written(directory: Path) -> None:
    (directory / "ours.py").write_text(OURS)
    (directory / "domains").write_text("example.com\n")
    (directory / "relays").write_text("")
    (directory / "recipients.map").write_text("bob@example.com\n# a comment\ncarol@example.com\n")


def code_for(client: smtplib.SMTP, address: str) -> int:
    client.rset()
    client.mail("a@example.net")
    return client.rcpt(address)[0]


def test_a_reloaded_map_applies_to_open_sessions(tmp_path: Path) -> None:
    written(tmp_path)
    with Daemon(*OPTIONS, cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        daemon.wait_for("accept: domains=1 rules=2 networks=0$")
        assert code_for(client, "dave@example.com") == 550
        assert says(tmp_path, "reload") == "nothing changed\n"
        with (tmp_path / "recipients.map").open("a") as file:
            file.write("dave@example.com\ndave@example.net\n")
        assert says(tmp_path, "reload") == (
            "handler accept: recipients.map read again (2 -> 4 rules)\n"
        )
        assert code_for(client, "dave@example.com") == 250
        daemon.wait_for("WARNING recipients.map: rules for example.net .not in domains. only")
        (tmp_path / "domains").write_text("example.com\nexample.net\n")
        (tmp_path / "relays").write_text("127.0.0.2\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(
            r"configuration reloaded \(handler accept: ./domains, ./relays read again "
            r"\(1 -> 2 domains, 0 -> 1 networks\)\)$"
        )
        assert code_for(client, "dave@example.net") == 250


def test_a_map_with_an_error_fails_the_reload_and_the_old_map_stays(tmp_path: Path) -> None:
    written(tmp_path)
    with Daemon(*OPTIONS, cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        (tmp_path / "recipients.map").write_text("dave@example.com\n\nbob\n")
        ended = command(tmp_path, "reload")
        reason = "recipients.map, line 3: 'bob': the left side has to be an address, @domain, "
        assert ended.returncode == 78
        assert reason in ended.stderr
        daemon.wait_for(re.escape(FAILED) + ".*" + re.escape(reason))
        assert [code_for(client, f"{name}@example.com") for name in ("bob", "dave")] == [250, 550]
        (tmp_path / "recipients.map").unlink()
        assert "cannot read recipients.map: No such file" in command(tmp_path, "reload").stderr
        assert code_for(client, "bob@example.com") == 250
        (tmp_path / "recipients.map").write_text("dave@example.com\n")
        assert "(2 -> 1 rules)" in says(tmp_path, "reload")
        assert [code_for(client, f"{name}@example.com") for name in ("bob", "dave")] == [550, 250]


@pytest.mark.parametrize("what", ["check", "start"])
def test_check_and_start_report_an_error_in_a_map(tmp_path: Path, what: str) -> None:
    written(tmp_path)
    (tmp_path / "recipients.map").write_text("bob\n")
    ended = run(*(["check"] if what == "check" else []), *OPTIONS, cwd=tmp_path)
    assert ended.returncode == 78
    assert ended.stderr.startswith(
        "smtpd-fork: recipients.map, line 1: 'bob': the left side has to be"
    )
    assert ended.stderr.endswith(" (from --handler)\n")


class Words:
    """A custom handler with a file of words."""

    def __init__(self) -> None:
        self.words = ["one"]
        self.next: Any = ["one"]
        self.thread = 0

    async def handle_RCPT(self, *_: Any) -> Any:
        return MISSING if _[3].partition("@")[0] in self.words else "550 5.1.1 No"

    def on_reload(self) -> Callable[[], str | None] | None:
        self.thread = threading.get_ident()
        if self.next == self.words:
            return None
        if isinstance(self.next, Exception):
            raise self.next
        read = list(self.next)
        return lambda: self.use(read)

    def use(self, read: list[str]) -> str | None:
        assert threading.get_ident() != self.thread
        if not read:
            raise ZeroDivisionError
        self.words = read
        return f"{len(read)} words" if len(read) > 1 else None


async def test_on_reload_runs_in_a_thread_and_its_function_after_all_has_succeeded() -> None:
    words, other = Words(), Words()
    async with (
        serve([words, other, Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@example.net>")
        assert await server.reload() == []
        words.next = ["one", "two"]
        other.next = HandlerError("words.txt, line 1: no word")
        with pytest.raises(HandlerError, match="no word"):
            await server.reload()
        assert words.words == ["one"]
        other.next = ["two"]
        assert await server.reload() == ["handler words: 2 words"]
        assert (await client.say("RCPT TO:<two@example.com>")).code == 250
        assert words.thread != threading.get_ident()


class Awaits(Words):
    async def on_reload(self) -> None:  # type: ignore[override]
        """Return a coroutine, which a reload would never await."""


class Wants(Words):
    def on_reload(self, config: object) -> None:  # type: ignore[override]
        """Require an argument, which a reload would not pass."""


@pytest.mark.parametrize(
    ("handler", "error"), [(Awaits(), r"write def on_reload\(self\)"), (Wants(), "no parameter")]
)
def test_an_on_reload_that_cannot_be_called_is_an_error_at_the_start(
    handler: Words, error: str
) -> None:
    with pytest.raises(HandlerError, match=error):
        Chain([handler])


async def test_a_handler_that_fails_to_apply_a_reload_does_not_affect_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words, other = Words(), Words()
    async with serve([words, other, Collect()]) as server:
        words.next, other.next = [], ["one", "two"]
        failed = "handler words: the change failed (ZeroDivisionError), see the log"
        assert await server.reload() == [failed, "handler words-2: 2 words"]
        assert "the function that on_reload returned has failed" in caplog.text


async def test_sessions_continue_while_a_large_map_is_read(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("bob@example.com\n")
    lines = "bob@example.com\n"
    lines += "".join(f"user{number}@example.com OK\n" for number in range(199_999))
    async with (
        serve([Accept(["example.com"], recipients=str(path)), Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@example.net>")
        path.write_text(lines)
        reload = asyncio.ensure_future(server.reload())
        answers = []
        # Bob is in both maps, because a client with many refusals would be disconnected.
        while not reload.done():
            answers.append((await client.say("RCPT TO:<bob@example.com>")).code)
            await client.say("RSET", "MAIL FROM:<a@example.net>")
        assert await reload == [f"handler accept: {path} read again (1 -> 200000 rules)"]
        assert len(answers) > 5
        assert set(answers) == {250}
        assert (await client.say("RCPT TO:<user199998@example.com>")).code == 250
