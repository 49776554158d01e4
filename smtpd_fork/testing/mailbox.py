"""Mailbox and SmtpServer: keep the messages that an application sends, for tests.

The pytest fixture ``smtp_server`` is an :class:`SmtpServer` (smtpd_fork/pytest_plugin.py). This
module does not need pytest. See docs/testing.md.
"""

from __future__ import annotations

import asyncio
import email.policy
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Unpack

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import Reply
from smtpd_fork.server import ThreadedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.dialogue import Answer, Envelope, Session
    from smtpd_fork.server.threaded import ServerOptions
    from smtpd_fork.smtp import SMTP

__all__ = ["Mailbox", "Message", "SmtpServer"]

Command: TypeAlias = Literal["CONNECT", "MAIL", "RCPT", "DATA"]

REPLIES = {
    "CONNECT": "554 5.3.2 No mail today",
    "MAIL": "550 5.7.1 Sender refused",
    "RCPT": "550 5.1.1 No such user",
    "DATA": "554 5.7.1 Message refused",
}
"""The default replies of :meth:`Mailbox.refuse`, by command."""


@dataclass(frozen=True)
class Message:
    """A received message.

    :ivar mail_from: the sender; empty for a bounce
    :ivar rcpt_tos: the accepted recipients
    :ivar content: the header and the body, unchanged
    :ivar mail_options: the parameters of MAIL, such as ``SIZE=1024``
    :ivar peer: the address of the client
    :ivar tls: whether the connection was encrypted
    :ivar login: the ``auth_data`` of the client's AUTH, or None
    """

    mail_from: str
    rcpt_tos: list[str]
    content: bytes
    mail_options: list[str] = field(default_factory=list)
    peer: Any = None
    tls: bool = False
    login: Any = None

    @cached_property
    def email(self) -> EmailMessage:
        """The parsed content: ``message.email["Subject"]``, ``message.email.get_content()``.

        Lines in its texts end with LF, not with CR LF.
        """
        content = self.content.replace(b"\r\n", b"\n")
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed

    def __str__(self) -> str:
        subject = self.email["Subject"]
        return f"{self.mail_from or '<>'} to {', '.join(self.rcpt_tos)}: {subject or 'no subject'}"


@dataclass
class _Refusal:
    command: Command
    address: str | None
    reply: str
    times: float

    def concerns(self, command: Command, address: str | None) -> bool:
        same = self.address is None or self.address == (address or "").casefold()
        return self.command == command and same and self.times > 0


class Mailbox:
    """A handler that keeps all messages, and rejects commands as :meth:`refuse` demands.

    For :class:`smtpd_fork.Server` and :class:`smtpd_fork.ThreadedServer`. The methods may be called
    in any thread.
    """

    supports_dsn = supports_binarymime = True

    def __init__(self) -> None:
        self._lock = Lock()
        self._messages: list[Message] = []
        self._refusals: list[_Refusal] = []
        self._refused: list[str] = []
        self._clients = 0
        self._next: Future[None] = Future()

    @property
    def messages(self) -> list[Message]:
        """The messages received since the start or the last :meth:`clear`, in order."""
        with self._lock:
            return list(self._messages)

    def clear(self) -> None:
        """Remove the messages and the refusals."""
        with self._lock:
            self._clients = 0
            for each in (self._messages, self._refusals, self._refused):
                each.clear()

    def refuse(
        self,
        address: str | None = None,
        reply: str | None = None,
        *,
        command: Command = "RCPT",
        times: int | None = None,
    ) -> None:
        """Reject commands from now on; if several calls match a command, the last call applies.

        :param address: the recipient (or with ``command="MAIL"`` the sender); None is any
        :param reply: such as ``"452 4.2.2 Mailbox full"``; default: 550 or 554
        :param command: the command to reject: CONNECT (instead of the greeting), MAIL, RCPT or DATA
        :param times: number of rejections, after which the command is accepted again; None is no
            limit
        :raises ValueError: the reply is not 4yz or 5yz, or the command has no address
        """
        if command not in REPLIES:
            raise ValueError(f"command {command!r}: expected one of {', '.join(REPLIES)}")
        if address is not None and command not in {"MAIL", "RCPT"}:
            raise ValueError(f"{command} has no address, and {address!r} was given")
        reply = Reply(REPLIES[command] if reply is None else reply)
        if reply[0] not in "45":
            raise ValueError(f"reply {reply!r}: expected a code of 4yz or 5yz")
        address = None if address is None else address.casefold()
        refusal = _Refusal(command, address, reply, math.inf if times is None else times)
        with self._lock:
            self._refusals.insert(0, refusal)

    def wait_for(self, count: int = 1, timeout: float = 5.0) -> list[Message]:
        """Wait until there are *count* messages; return all messages.

        :param count: number of messages since the start or the last :meth:`clear`
        :param timeout: seconds
        :raises TimeoutError: there are fewer messages; the text lists messages and rejected
            commands
        """
        __tracebackhide__ = True  # pytest shows the line of the test
        end = time.monotonic() + timeout
        while True:
            messages, arrival = self._snapshot()
            if len(messages) >= count:
                return messages
            try:
                arrival.result(max(0.0, end - time.monotonic()))
            except TimeoutError:
                text = self._timeout_text(count, timeout)
                if asyncio._get_running_loop() is not None:  # noqa: SLF001 - it is documented
                    text += "; in a coroutine, await wait_for_async(): wait_for() blocks the loop"
                raise TimeoutError(text) from None

    async def wait_for_async(
        self,
        count: int = 1,
        timeout: float = 5.0,  # noqa: ASYNC109 - the same parameters as wait_for()
    ) -> list[Message]:
        """Do the same as :meth:`wait_for` in a coroutine, without blocking its event loop."""
        __tracebackhide__ = True  # pytest shows the line of the test
        end = time.monotonic() + timeout
        while True:
            messages, arrival = self._snapshot()
            if len(messages) >= count:
                return messages
            done, _ = await asyncio.wait(
                [asyncio.wrap_future(arrival)], timeout=max(0.0, end - time.monotonic())
            )
            if not done:
                raise TimeoutError(self._timeout_text(count, timeout))

    def _snapshot(self) -> tuple[list[Message], Future[None]]:
        """Return the messages, and a future that is done when the next one is received."""
        with self._lock:
            return list(self._messages), self._next

    def _timeout_text(self, count: int, seconds: float) -> str:
        with self._lock:
            messages, refused, clients = list(self._messages), list(self._refused), self._clients
        lines = [f"{len(messages)} of {count} messages within {seconds:g} s"]
        if not clients:
            lines.append("no client has connected")
        lines += [f"received: {message}" for message in messages]
        lines += [f"refused: {each}" for each in refused]
        if clients and not messages and not refused:
            lines.append(f"clients that connected: {clients}; none has sent a message")
        return "; ".join(lines)

    def _refusal(self, command: Command, address: str | None = None) -> str | None:
        """Return the reply if a command is to be rejected, and record the rejection."""
        with self._lock:
            for refusal in self._refusals:
                if refusal.concerns(command, address):
                    refusal.times -= 1
                    refused = f"{command} {address}" if address else command
                    self._refused.append(f"{refused} ({refusal.reply})")
                    return refusal.reply
        return None

    # -- hooks ---------------------------------------------------------------------------------

    async def handle_CONNECT(self, server: SMTP, session: Session) -> Answer:
        """Count the client."""
        with self._lock:
            self._clients += 1
        return self._refusal("CONNECT") or MISSING

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Answer:
        """Reject the sender, or return MISSING."""
        return self._refusal("MAIL", address) or MISSING

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Answer:
        """Reject the recipient, or return MISSING."""
        return self._refusal("RCPT", address) or MISSING

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep the message."""
        reply = self._refusal("DATA")
        if reply is not None:
            return reply
        content = envelope.original_content or b""
        message = Message(
            envelope.mail_from or "",
            list(envelope.rcpt_tos),
            content,
            list(envelope.mail_options),
            session.peer,
            session.ssl is not None,
            session.auth_data,
        )
        with self._lock:
            self._messages.append(message)
            arrival, self._next = self._next, Future()
        arrival.set_result(None)
        return "250 2.0.0 Ok"


class SmtpServer(Mailbox):
    """A mailbox with its own SMTP server in a thread; the pytest fixture ``smtp_server``.

    ::

        with SmtpServer() as server:
            signup("bob@example.com", smtp=(server.host, server.port))
            [message] = server.wait_for()

    :param loop_factory: as of :class:`smtpd_fork.ThreadedServer`
    :param options: the keywords of :class:`smtpd_fork.Server`. The default of ``listen`` is a free
        port of 127.0.0.1, that of ``hostname`` is localhost, and that of ``shutdown_timeout`` is 1
    :ivar server: the :class:`smtpd_fork.ThreadedServer`
    """

    def __init__(
        self,
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        **options: Unpack[ServerOptions],
    ) -> None:
        super().__init__()
        options.setdefault("listen", "127.0.0.1:0")
        options.setdefault("hostname", "localhost")
        options.setdefault("shutdown_timeout", 1.0)
        self.server = ThreadedServer(self, loop_factory=loop_factory, **options)

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.server.__exit__(kind)

    @property
    def host(self) -> str:
        """The IP address that the server listens on."""
        return next(each[0] for each in self.server.addresses if isinstance(each, tuple))

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self.server.port
