"""Clients that cause many log lines: one line immediately, then counts, and limited bytes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client
from support.logs import logging_with
from support.server import greeted, serve

from smtpd_fork.gate import ClientLine, RefusalLog
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from support.tls import Certificates

    Noise = Callable[[Client], Awaitable[object]]

log = logging.getLogger("test")


def line(host: str, what: str = "timeout", reason: str = "", kind: str = "") -> ClientLine:
    return ClientLine.of(log, logging.INFO, (host, 25), what, reason, kind=kind, session="s-1")


def test_a_line_has_session_client_event_and_reason() -> None:
    said = line("192.0.2.1", "no session", "too large")
    assert str(said) == "[s-1] 192.0.2.1:25: no session: too large"
    assert said.extra == {"client": "192.0.2.1:25", "session": "s-1", "reason": "too large"}
    without = ClientLine.of(log, logging.INFO, None, "no PROXY header", "x")
    assert (str(without), without.extra) == (
        "unix: no PROXY header: x",
        {"client": "unix", "reason": "x"},
    )


def test_lines_are_summarised_by_client_and_event_and_not_by_text_of_the_client() -> None:
    assert line("192.0.2.1", reason="a").key == line("192.0.2.1", reason="b").key
    assert line("192.0.2.1").key != line("192.0.2.2").key
    assert line("192.0.2.1").key != line("192.0.2.1", "too many errors").key
    assert line("192.0.2.1", kind="a").key != line("192.0.2.1", kind="b").key
    assert line("2001:db8::1").key == line("2001:db8::ffff:2").key  # an IPv6 /64 is one client
    assert line("2001:db8::1").key != line("2001:db8:0:1::1").key
    assert line("::ffff:192.0.2.1").key == line("192.0.2.1").key


def test_the_lines_of_very_many_clients_are_limited() -> None:
    gathered = RefusalLog(max_clients=10, others="lines about other clients")
    lines = [text for n in range(250) if (text := gathered.note(line(f"192.0.2.{n}")))]
    assert len(lines) == 11
    (last,) = gathered.flush(everything=True)
    assert last.text.startswith("lines about other clients; 239 more in ")


class Fails(Discard):
    async def handle_RCPT(self, *args: Any) -> str:
        if args[3].startswith("b"):
            raise ValueError(args[3])
        raise KeyError(args[3])


class FailsAtOnce(Discard):
    async def handle_CONNECT(self, *args: Any) -> str:
        raise ValueError("no")


class FailsAtTheEnd(Discard):
    async def handle_DISCONNECT(self, *args: Any) -> None:
        raise ValueError("no")


class Talks(SMTP):
    """A session whose command fails after its reply."""

    async def smtp_XFAIL(self, arg: str | None) -> None:
        await self.push("250 2.0.0 Ok")
        raise ValueError("no")


async def failing_command(client: Client) -> None:
    await client.reply()
    assert (await client.say("XFAIL")).code == 250
    assert (await client.say("NOOP")).code == 250


async def errors(client: Client) -> None:
    await client.reply()
    await client.say(*["nonsense"] * 3)
    await client.ended()


async def refusals(client: Client) -> None:
    await client.reply()
    await client.say(*[RCPT] * 3)
    await client.ended()


async def silence(client: Client) -> None:
    assert (await client.reply()).code == 220
    assert (await client.reply()).code == 421


async def large_message(client: Client) -> None:
    await client.greet()
    assert (await client.deliver("x" * 2000 + "\r\n")).code == 552


async def large_chunks(client: Client) -> None:
    await client.greet()
    await client.say(MAIL, RCPT)
    client.send("BDAT 2000 LAST\r\n" + "x" * 2000)
    assert (await client.reply()).code == 552


async def failing_recipient(client: Client) -> None:
    await client.greet()
    await client.say(MAIL)
    assert (await client.say(RCPT)).code == 451


async def greeting(client: Client) -> None:
    await client.reply()


async def bad_handshake(client: Client) -> None:
    await client.greet()
    assert (await client.say("STARTTLS")).code == 220
    client.send("this is no handshake\r\n" * 10)
    await client.ended()


async def garbage(client: Client) -> None:
    client.send("this is no TLS, and no PROXY header either\r\n" * 10)
    await client.ended()


async def bad_passwords(client: Client) -> None:
    await client.greet()
    for _ in range(3):
        await client.say("AUTH PLAIN AGEAYg==")
    await client.ended()


def nobody(*_: object) -> Any:
    return None


AUTH = {"auth_callback": nobody, "auth_require_tls": False}
NOISES: dict[str, tuple[Noise, str, dict[str, Any]]] = {
    "errors": (errors, "Too many errors", {"max_errors": 2}),
    "refused commands": (refusals, "Too many refused commands", {"max_rejects": 2}),
    "silence": (silence, "timeout", {"timeout": 0.05}),
    "large messages": (large_message, "rejected DATA from ", {"max_message_size": 1000}),
    "large chunks": (large_chunks, "rejected BDAT from ", {"max_message_size": 1000}),
    "recipients at which a handler fails": (
        failing_recipient,
        "a handler failed, the client gets 451",
        {"handler": Fails()},
    ),
    "connections at which a handler fails": (
        greeting,
        "handle_CONNECT failed",
        {"handler": FailsAtOnce()},
    ),
    "ends at which a handler fails": (
        greeting,
        "handle_DISCONNECT failed",
        {"handler": FailsAtTheEnd()},
    ),
    "commands of a subclass that fail": (
        failing_command,
        "smtp_XFAIL failed after its reply",
        {"session_class": Talks},
    ),
    "TLS handshakes that fail": (bad_handshake, "TLS handshake failed: ", {"tls": True}),
    "garbage instead of TLS": (
        garbage,
        "TLS handshake failed: ",
        {"tls": True, "listen": ["smtps:127.0.0.1:0"]},
    ),
    "garbage instead of a PROXY header": (
        garbage,
        "no PROXY header: ",
        {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.0/8"]},
    ),
    "wrong passwords": (
        bad_passwords,
        "Too many failed attempts to authenticate",
        {"session_options": AUTH},
    ),
}
SESSIONS = 8


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("noise", NOISES)
async def test_repeated_events_of_a_client_are_one_line_and_a_count(
    noise: str, tmp_path: Path, certificates: Certificates
) -> None:
    """This includes many sessions, each from another port."""
    make, what, options = NOISES[noise]
    options = dict(options)
    handler = options.pop("handler", None) or Discard()
    if options.pop("tls", False):
        options["tls_context"] = certificates.server
    path = tmp_path / "log"
    with logging_with(log_to=str(path)):
        async with serve(handler, **options) as server:
            for _ in range(SESSIONS):
                async with await Client.to(server.addresses[0]) as client:
                    await make(client)
            async with await Client.to(server.addresses[0], source="127.0.0.2") as client:
                await make(client)
    lines = [text for text in path.read_text().splitlines() if what in text]
    assert len(lines) == 3, path.read_text()
    first, other, count = lines
    assert "127.0.0.1" in first
    assert "127.0.0.2" in other
    assert "127.0.0.1" in count
    assert f"; {SESSIONS - 1} more in " in count
    # Other lines are limited as well: one traceback for each of the two.
    assert len(path.read_bytes()) < 10_000


async def test_a_session_with_many_rejected_messages_logs_a_few_hundred_bytes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    with logging_with(log_to=str(path)):
        async with greeted(Discard(), max_message_size=3, max_rejects=10_000) as client:
            for _ in range(1000):
                client.send(f"{MAIL}\r\n{RCPT}\r\nDATA\r\n")
                assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
                client.send("too much\r\n.\r\n")
                assert (await client.reply()).code == 552
    text = path.read_text()
    logged = [each for each in text.splitlines() if "rejected DATA" in each]
    counts = [int(each.rpartition("; ")[2].split()[0]) for each in logged[1:]]
    assert sum(counts) == 999
    assert len(text) < 400 + 150 * len(counts)  # a line every five seconds


async def test_errors_in_different_code_do_not_hide_each_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_with(log_to=str(path)):
        async with greeted(Fails()) as client:
            await client.say(MAIL)
            for _ in range(5):
                await client.say("RCPT TO:<b@example.com>")
                await client.say("RCPT TO:<c@example.com>")
    text = path.read_text()
    for error in ("ValueError: b@example.com", "KeyError: 'c@example.com'"):
        assert text.count(f"451: {error}\n") == 1
        assert text.count(f" {error}; 4 more in ") == 1
        assert text.count(f"\n    {error}\n") + text.count(f"\n{error}\n") <= 1
    assert text.count("; 4 more in ") == 2
