"""``smtpd-fork try``: runs one SMTP transaction with the handlers, without a server.

It uses the same session as the server, without a socket, and prints the answer and run time of each
hook. Sinks deliver an accepted message.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from aiosmtpd.smtp import MISSING

from smtpd_fork.cli.base_command import BaseCommand, settings_of
from smtpd_fork.dialogue import BareNewline
from smtpd_fork.errors import ConfigError, ExitStatus
from smtpd_fork.handlers import Chain
from smtpd_fork.handlers.load import load_route
from smtpd_fork.sanitizer import printable
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from smtpd_fork.cli.setting_sources import SettingSources

__all__ = ["try_command"]

LONGEST_SHOWN = 300
"""Maximum characters of an answer that are printed."""

_HELP = """\
Test the handlers with one message, without a server. The answer and the run time of each hook are
printed. Sinks really deliver an accepted message. The exit status is 0 if the message is accepted,
69 if it is rejected (5xx), and 75 if it is deferred (4xx).
"""

_REQUIRED: dict[str, Any] = {"required": True}

_PARAMS = tuple(
    click.Option([f"--{name}", *more], metavar=metavar, help=text, show_default=True, **given)
    for name, more, metavar, text, given in (
        ("from", ["sender"], "ADDRESS", "Sender; empty for a bounce.", {"default": ""}),
        ("to", ["recipients"], "ADDRESS", "Recipient. Repeatable.", _REQUIRED | {"multiple": True}),
        (
            "message",
            [],
            "FILE",
            "Message with its header; - is standard input.",
            _REQUIRED,
        ),
        ("peer", [], "IP", "IP address of the client.", {"default": "192.0.2.1"}),
        ("helo", [], "NAME", "HELO name of the client.", {"default": "client.example"}),
    )
)


class _Transport(asyncio.Transport):
    """Stores the bytes that the session sends."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 40000), "sockname": ("127.0.0.1", 25)})
        self.sent = b""
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Store *data* (asyncio.WriteTransport)."""
        self.sent += bytes(data)

    def close(self) -> None:
        """Mark the transport as closed (asyncio.BaseTransport)."""
        self._closing = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        """Return whether the session has closed the transport (asyncio.BaseTransport)."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return a protocol that ignores all calls (asyncio.BaseTransport)."""
        return asyncio.Protocol()

    def pause_reading(self) -> None:
        """Do nothing, as the caller feeds all data (asyncio.ReadTransport)."""

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        """Return 0, as nothing is buffered (asyncio.WriteTransport)."""
        return 0


class _Client:
    """Sends commands as a client does, and prints the replies."""

    def __init__(self, session: SMTP, transport: _Transport, say: Callable[[str], None]) -> None:
        self._session = session
        self._transport = transport
        self._say = say

    async def reply(self, label: str) -> str:
        """Print the last line of the replies received so far, and return it."""
        connection = self._session.connection
        while not connection.waits and not self._transport.is_closing():
            await (asyncio.wait([connection.task]) if connection.task else asyncio.sleep(0))
        sent, self._transport.sent = self._transport.sent, b""
        lines = sent.decode("utf-8", "replace").splitlines() or ["421 the session has ended"]
        self._say(f"{label}: {printable(lines[-1], LONGEST_SHOWN)}")
        return lines[-1]

    async def ask(self, command: str) -> str:
        """Send a command; return the last line of its reply."""
        self._session.data_received(f"{command}\r\n".encode())
        return await self.reply(command)

    async def send(self, message: bytes) -> str:
        """Send a message; return the last line of the reply."""
        lines = message.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
        stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
        self._session.data_received(b"\r\n".join([*stuffed, b".", b""]))
        return await self.reply(f"message of {len(message)} bytes")


def _traced(handler: Any, say: Callable[[str], None], at_data: str = "") -> Any:
    """Make each hook of a handler print its answer and run time; return the handler.

    :param at_data: the method that is called at DATA; default: the hook
    """
    names = [name for name in dir(handler) if name.startswith("handle_")]
    names = [*names, at_data] if at_data else names
    for name in names:
        if name == "handle_exception" or (at_data and name == "handle_DATA"):
            continue
        hook = getattr(handler, name)

        @functools.wraps(hook)
        async def traced(*args: Any, hook: Any = hook, name: str = name) -> Any:
            begun, answer = time.perf_counter(), None
            try:
                answer = hook(*args)
                if asyncio.iscoroutine(answer) or isinstance(answer, asyncio.Future):
                    answer = await answer
            except BaseException as error:
                answer = error
                raise
            finally:
                took = (time.perf_counter() - begun) * 1000
                shown = "no opinion" if answer is MISSING else _shown(answer)
                say(f"  {type(handler).__name__}.{name}  {shown}  ({took:.1f} ms)")
            return answer

        try:
            setattr(handler, name, traced)
        except AttributeError:
            say(f"  {type(handler).__name__} has __slots__: its hooks are called, but not printed")
            return handler
    return handler


def _shown(answer: object) -> str:
    if isinstance(answer, BaseException):
        return printable(f"raised {type(answer).__name__}: {answer}", LONGEST_SHOWN)
    return printable(str(answer), LONGEST_SHOWN)


async def _transact(
    sources: SettingSources, peer: str, commands: list[str], message: bytes
) -> ExitStatus:
    """Send *commands* and the message to a session; return the exit status."""
    config, directory = sources.build(), sources.directory
    routes = [load_route(entry, directory) for entry in config.handler]
    sinks = [route for route in routes if route.is_sink]
    at_data = "deliver" if len(sinks) > 1 or not all(each.is_plain for each in sinks) else ""
    for route in routes:
        route.handler = _traced(route.handler, click.echo, at_data if route.is_sink else "")
    chain = Chain(routes)
    chain.prepare()
    session = SMTP(
        chain,
        hostname=config.hostname,
        data_size_limit=config.max_message_size,
        bare_newline=BareNewline(config.bare_newline),
        strict_paths=config.strict_paths,
        enhanced=True,
        peer=(peer, 40000),
    )
    transport = _Transport(peer)
    session.connection_made(transport)
    client = _Client(session, transport, click.echo)
    try:
        answer = await client.reply(f"connected from {peer}")
        accepted = 0
        for command in commands:
            if answer[:1] != "2" and not command.startswith("RCPT"):
                break
            answer = await client.ask(command)
            accepted += command.startswith("RCPT") and answer.startswith("2")
        if accepted:
            answer = await client.ask("DATA")
            if answer.startswith("354"):
                answer = await client.send(message)
    finally:
        session.connection_lost(None)
        if (task := session.connection.task) is not None:
            await asyncio.wait([task])
        await chain.close()
    if answer.startswith("2"):
        return ExitStatus.OK
    return ExitStatus.UNAVAILABLE if answer.startswith("5") else ExitStatus.FORCED


def _read(name: str) -> bytes:
    """Return the message.

    :raises ConfigError: it cannot be read
    """
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the message {name}: {error.strerror}") from error


def _try(
    *, sender: str, recipients: tuple[str, ...], message: str, peer: str, helo: str, **_: Any
) -> int:
    with settings_of(click.get_current_context()) as sources:
        commands = [f"EHLO {helo}", f"MAIL FROM:<{sender}>"]
        commands += [f"RCPT TO:<{each}>" for each in recipients]
        return asyncio.run(_transact(sources, peer, commands, _read(message)))


try_command = BaseCommand("try", callback=_try, help=_HELP, params=_PARAMS)
