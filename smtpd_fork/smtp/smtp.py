"""SMTP: the session for handlers and users' classes, compatible with ``aiosmtpd.smtp.SMTP``.

The class has no state of its own. :class:`~smtpd_fork.smtp.connection.Connection` has the
connection and its deadlines, :class:`~smtpd_fork.dialogue.dialogue.Dialogue` the state of the
protocol, and :class:`~smtpd_fork.dialogue.shared.Shared` the settings of all sessions. A session
that calls no handler has no such object.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from warnings import warn

from aiosmtpd.smtp import DATA_SIZE_DEFAULT, MISSING, __ident__, syntax

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.budget import Budget
from smtpd_fork.dialogue.commands import COMMANDS, State
from smtpd_fork.dialogue.content import BareNewline
from smtpd_fork.dialogue.data import received
from smtpd_fork.dialogue.memory import charge_changed
from smtpd_fork.dialogue.reply import answer_of, sendable
from smtpd_fork.dialogue.shared import CurrentTls, Limits, Shared
from smtpd_fork.dialogue.tally import Tally
from smtpd_fork.dialogue.waiting import Ask, Run
from smtpd_fork.gate import client_reporter
from smtpd_fork.smtp.connection import Connection
from smtpd_fork.smtp.hooks import ask, ask_handler
from smtpd_fork.smtp.mechanisms import Mechanisms
from smtpd_fork.smtp.opening import check_proxy_timeout
from smtpd_fork.smtp.protocol_adapter import ProtocolAdapter
from smtpd_fork.smtp.sweep import Sweep
from smtpd_fork.smtp.work import PROCEDURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.dialogue.commands import Command
    from smtpd_fork.dialogue.waiting import Result
    from smtpd_fork.gate import Reporter
    from smtpd_fork.peer_address import Peer

__all__ = ["SMTP"]

log = logging.getLogger("smtpd_fork.session")


class SMTP(Mechanisms):
    """An SMTP session, with all keywords of ``aiosmtpd.smtp.SMTP`` and these.

    :param shared: values that all sessions of a server share; default: derived from the other
        keywords, for this session only
    :param sweep: checks the deadlines of sessions; default: one for each loop
    :param peer: the client's address, from accept(2); default: that of the transport
    :param on_close: called once, when the connection is closed
    :param limits: limits of the session; default: those of aiosmtpd, and those of smtpd-fork for
        limits that aiosmtpd does not have
    :param strict_paths: reject an address without angle brackets, and tabs instead of spaces
    :param bare_newline: handling of bare CR and bare LF; default: they are kept, as in aiosmtpd
        (``smtpd_fork.Server`` and the daemon normalize them by default)
    :param enhanced: whether replies have enhanced status codes (RFC 2034)
    :param lmtp: LMTP instead of SMTP: LHLO, and a reply per recipient (RFC 2033)
    :param budget: memory limits for messages of all sessions
    :param tls_context: that of aiosmtpd, or an object that holds the current one
    :param tally: counters of sessions
    :param reporter: summarizes log lines that a client can cause repeatedly
    """

    line_length_limit = 0
    """Maximum octets of a line of a message; 0 is no limit. aiosmtpd's 1001 rejected real mail."""

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        enable_SMTPUTF8: bool = False,  # noqa: N803 - aiosmtpd's name
        decode_data: bool = False,
        hostname: str | None = None,
        ident: str | None = None,
        tls_context: ssl.SSLContext | CurrentTls | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        auth_required: bool = False,
        auth_require_tls: bool = True,
        auth_exclude_mechanism: Iterable[str] | None = None,
        auth_callback: Callable[[str, bytes, bytes], bool] | None = None,
        command_call_limit: int | dict[str, int] | None = None,
        authenticator: Callable[..., Any] | None = None,
        proxy_protocol_timeout: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        shared: Shared | None = None,
        sweep: Sweep | None = None,
        peer: Peer = None,
        on_close: Callable[[Any], None] | None = None,
        limits: Limits | None = None,
        strict_paths: bool = False,
        bare_newline: BareNewline = BareNewline.ACCEPT,
        enhanced: bool = False,
        lmtp: bool = False,
        budget: Budget | None = None,
        tally: Tally | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        # super().__init__() is not called, as it inspects class and handler for each connection.
        if shared is None:
            check_proxy_timeout(proxy_protocol_timeout)
            _warn_of(tls_context, auth_required=auth_required, auth_require_tls=auth_require_tls)
            shared = Shared(
                type(self),
                handler,
                hostname=hostname or socket.getfqdn(),
                ident=ident or __ident__,
                data_size_limit=data_size_limit,
                enable_SMTPUTF8=enable_SMTPUTF8,
                decode_data=decode_data,
                tls=CurrentTls.of(tls_context),
                require_starttls=require_starttls,
                auth_required=auth_required,
                auth_require_tls=auth_require_tls,
                auth_exclude=auth_exclude_mechanism or (),
                auth_callback=auth_callback,
                authenticator=authenticator,
                command_call_limit=command_call_limit,
                proxy_seconds=proxy_protocol_timeout,
                limits=replace(limits or Limits(), command_seconds=timeout),
                strict_paths=strict_paths,
                bare=bare_newline,
                enhanced=enhanced,
                lmtp=lmtp,
                budget=budget or Budget(0),
                tally=tally or Tally(),
                reporter=reporter or client_reporter(),
            )
        loop = loop or asyncio.get_event_loop()
        if sweep is None:
            sweep = Sweep.of(loop)
            sweep.set_shortest_limit(min(timeout, proxy_protocol_timeout or timeout))
        connection = Connection.of(shared, loop, sweep, peer=peer, on_close=on_close, observed=True)
        connection.dialogue.facade = self
        self.__dict__["connection"] = connection

    @classmethod
    def of(cls, connection: Connection) -> Self:
        """Return the session object of a connection, without a call of the class's constructor."""
        session = object.__new__(cls)
        session.__dict__["connection"] = connection
        return session

    # -- methods of asyncio.Protocol, for event loops that have this object as the protocol --------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; after STARTTLS, begin it again (asyncio.BaseProtocol)."""
        get_protocol = getattr(transport, "get_protocol", None)
        if get_protocol is not None and get_protocol() is self:
            transport.set_protocol(ProtocolAdapter(self))
        self.connection.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End the session; later calls do nothing (asyncio.BaseProtocol)."""
        self.connection.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Process received bytes (asyncio.Protocol)."""
        self.connection.data_received(data)

    def eof_received(self) -> bool | None:
        """Handle the end of input; complete commands still get replies (asyncio.Protocol)."""
        return self.connection.eof_received()

    def pause_writing(self) -> None:
        """Stop processing commands until the client reads its replies (asyncio.BaseProtocol)."""
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        """Process commands again (asyncio.BaseProtocol)."""
        self.connection.resume_writing()

    # -- methods that users' classes call or override ----------------------------------------------

    def kick(self, reply: bytes) -> None:
        """Send *reply* and close the connection, after the running hook's reply.

        :param reply: the bytes of a reply, with its CR LF
        """
        self.connection.kick(reply)

    def deny(
        self, network: str, text: str = "", *, seconds: float | None = None, by: str = "a handler"
    ) -> None:
        """Refuse new clients of *network* with 554, on all nodes of a fleet.

        Handlers call ``server.deny(session.peer[0], "Spam", seconds=3600)``. Parameters and errors
        are those of :meth:`smtpd_fork.Server.deny`. But 1,000 of the 10,000 possible denials are
        reserved for administrators, and a denial that lasts longer is not replaced.

        :raises RuntimeError: the session does not belong to a :class:`smtpd_fork.Server`
        """
        deny = self.connection.shared.deny
        if deny is None:
            raise RuntimeError("only sessions of a smtpd_fork.Server can deny clients")
        deny(network, text, seconds=seconds, by=by)

    @property
    def exempt(self) -> bool:
        """Whether the client is in a network of ``--exempt``, so that filters may trust it."""
        exempt = self.connection.shared.is_exempt
        return exempt is not None and exempt(self.connection.dialogue.session.peer)

    @property
    def stressed(self) -> bool:
        """Whether few connection slots are free, so that ``--stress-timeout`` applies."""
        owner = self.connection.owner
        return owner is not None and owner.stress.active

    def charge_message(self) -> bool:
        """Count the memory of a message again after a handler changed it.

        :returns: whether the memory limits allow it
        """
        return charge_changed(self.connection.dialogue)

    async def push(self, status: str | bytes) -> None:
        """Send a reply, and wait until the client reads it if the write buffer is full.

        :param status: a reply, or the first lines of one (``250-...``), without the last CR LF
        :raises ValueError: *status* is neither
        """
        dialogue = self.connection.dialogue
        if dialogue.state >= State.LEAVING:
            raise asyncio.CancelledError  # the client has gone
        reply = sendable(status)
        last = reply.rpartition("\r\n")[2]
        self.answered = last[0] != "3" and last[3:4] != "-"
        dialogue.put_status(reply)
        self.connection.flush()
        await self.connection.drained()

    async def handle_exception(self, error: Exception) -> str:
        """Return the reply to a command that raised *error*: that of the handler's hook, or 451."""
        hook = getattr(self.event_handler, "handle_exception", None)
        if hook is not None:
            status = answer_of("exception", await hook(error))
            if status is MISSING:
                raise TypeError("handle_exception must return a reply, not MISSING")
            return str(status)
        event = "a handler failed, the client gets 451"
        self.connection.dialogue.report_failure(event, error)
        return replies.LOCAL_ERROR

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Reply 503 and return True if the client has not sent HELO or EHLO."""
        dialogue = self.connection.dialogue
        if dialogue.session is not None and dialogue.session.host_name:
            return False
        dialogue.put(dialogue.encode((503, "5.5.1", f"Error: send {helo} first")))
        return True

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Reply 530 and return True if the client must authenticate first."""
        dialogue = self.connection.dialogue
        if not dialogue.shared.auth_required or dialogue.session.authenticated:
            return False
        dialogue.put_status("530 5.7.0 Authentication required")
        return True

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        """Return the answer of a handler's hook; MISSING if the handler has no such hook."""
        return await ask_handler(self.connection, command, *args)

    async def _perform(self, name: str, argument: str | None) -> None:
        """Carry out a built-in command."""
        await self._settle(self.connection.dialogue.perform(name, argument))

    async def _settle(self, result: Result) -> None:
        """Send the reply of a command; if it needs a hook or a procedure, wait for that."""
        connection = self.connection
        dialogue = connection.dialogue
        if type(result) is Ask:
            result = result.then(await ask(connection, result.hook, *result.args))
        elif type(result) is Run:
            await PROCEDURES[result.step](connection, *result.args)
        if isinstance(result, bytes):
            dialogue.put(result)
        if dialogue.out:
            self.answered = True
        connection.flush()

    async def smtp_DATA(self, arg: str | None) -> None:
        """Receive a message (RFC 5321 4.1.1.4); returns after the reply, as in aiosmtpd."""
        await self._perform("DATA", arg)
        dialogue = self.connection.dialogue
        if dialogue.state != State.DATA:
            return
        self.answered = False  # 354 is not the final reply
        message = await dialogue.next_event()
        assert isinstance(message, Body)
        await self._settle(received(dialogue, message))

    async def smtp_BDAT(self, arg: str | None) -> None:
        """Receive a chunk of a message (RFC 3030)."""
        await self._perform("BDAT", arg)


def _add_command(command: Command) -> None:
    """Add the method of a command to the class, as in aiosmtpd's class."""
    name = command.name

    async def perform(self: SMTP, arg: str | None) -> None:
        await self._perform(name, arg)

    method = perform if name not in {"DATA", "BDAT"} else getattr(SMTP, f"smtp_{name}")
    if command.syntax:
        method = syntax(command.syntax, extended=command.extended, when=command.when)(method)
    method.__name__, method.__doc__ = f"smtp_{name}", method.__doc__ or f"Carry out {name}."
    setattr(SMTP, f"smtp_{name}", method)


for _command in COMMANDS:
    if not _command.lmtp:
        _add_command(_command)


def _warn_of(
    tls_context: ssl.SSLContext | CurrentTls | None, *, auth_required: bool, auth_require_tls: bool
) -> None:
    """Warn, with aiosmtpd's words, of settings that are allowed but unsafe."""
    if auth_required and not auth_require_tls:
        warn(
            "Requiring AUTH while not requiring TLS can lead to security vulnerabilities!",
            stacklevel=3,
        )
        log.warning("auth_required == True but auth_require_tls == False")
    if not isinstance(tls_context, ssl.SSLContext):
        return
    if tls_context.verify_mode is ssl.CERT_REQUIRED:
        log.warning("tls_context.verify_mode is CERT_REQUIRED: clients need a certificate")
    if tls_context.check_hostname:
        log.warning(
            "tls_context.check_hostname == True; this might cause client connection problems"
        )
