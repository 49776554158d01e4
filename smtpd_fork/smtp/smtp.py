"""SMTP: aiosmtpd's session, made fit to hold a ticket.

What differs from ``aiosmtpd.smtp.SMTP``, and why:

- **The end is certain.** :meth:`SMTP.connection_lost` runs exactly once for every connection, a
  STARTTLS handshake that fails or stalls included, and calls ``on_close`` there and nowhere else.
- **Time is bounded.** A timeout says ``421 4.4.2`` and closes; a client that does not take the
  reply is cut a little later. TLS handshakes have their own time.
- **EOF is the end of input, not of the session.** Complete commands are still answered, and a
  handler is not cancelled while it has a message in hand.
- **Nothing accepted is lost.** DATA that no handler answers is ``451 4.3.0``, and so is whatever a
  handler raises; the exception's text stays in the log.
- **A stop is orderly.** :meth:`SMTP.shut_down` lets the command in hand finish, then says 421.
- Hooks ``handle_CONNECT`` and ``handle_DISCONNECT``; a 421 from any hook closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, cast

import aiosmtpd.smtp
from aiosmtpd.smtp import MISSING, syntax

from smtpd_fork.config import TLS_HANDSHAKE_SECONDS
from smtpd_fork.gate.verdict import reply_line, shutdown_reply
from smtpd_fork.net import describe, plain_peer
from smtpd_fork.smtp.reader import CommandReader
from smtpd_fork.smtp.session import Session, new_session_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_fork.net import Peer

__all__ = ["SMTP"]

log = logging.getLogger("smtpd_fork.session")

LINGER_SECONDS = 5.0
"""How long a closing connection may take to deliver its last reply; then it is cut."""

FAREWELL_SECONDS = 30.0
"""How long handle_DISCONNECT may take: nobody waits for its answer."""

LOCAL_ERROR = "451 4.3.0 Local error in processing, try again later"
NO_SINK = "451 4.3.0 Nobody here takes messages, try again later"
NOT_NOW = "421 4.3.0 Local error, try again later"

_REPLY = re.compile(r"[2-5]\d\d(?:[ -]|$)")

_NOBODY = re.compile(r"to:\s*<\s*>", re.IGNORECASE)

_TLS_FACTS = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")


class SMTP(aiosmtpd.smtp.SMTP):
    """One SMTP session; takes all keywords of ``aiosmtpd.smtp.SMTP``, and these.

    :param peer: the client, where accept(2) told; default: what the transport says
    :param on_close: called once, when the connection is gone
    :param tls_handshake_timeout: seconds for the handshake after STARTTLS
    """

    def __init__(
        self,
        handler: Any,
        *,
        peer: Peer = None,
        on_close: Callable[[SMTP], None] | None = None,
        tls_handshake_timeout: float = TLS_HANDSHAKE_SECONDS,
        **options: Any,
    ) -> None:
        super().__init__(handler, **options)
        self._session_id = new_session_id()
        self._peer = peer
        self._on_close = on_close
        self._tls_handshake_timeout = tls_handshake_timeout
        self._lost = False
        self._lingering = False
        self._in_hook = False
        self._shaking_hands = False
        self._shutting_down = False
        if not options.get("authenticator") and not options.get("auth_callback"):
            # Nothing to check credentials with: aiosmtpd would offer AUTH, and refuse them all.
            for mechanism in [m for m, impl in self._auth_methods.items() if impl.is_builtin]:
                del self._auth_methods[mechanism]
        if not hasattr(handler, "process_message"):  # aiosmtpd's old way to take a message
            self._handle_hooks.setdefault("DATA", _no_opinion)

    def __repr__(self) -> str:
        return f"<SMTP {self._session_id} {describe(self._peer)}>"

    # -- life ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session (asyncio.BaseProtocol)."""
        super().connection_made(transport)
        self._introduce(transport)
        if transport.get_extra_info("sslcontext") is not None:
            self._use_tls(transport)  # from the first byte: STARTTLS is not offered

    def _introduce(self, transport: asyncio.BaseTransport) -> None:
        """Note who talks to whom."""
        if self._peer is None:
            self._peer = transport.get_extra_info("peername")
        assert isinstance(self.session, Session)
        self.session.peer = plain_peer(self._peer)  # type: ignore[assignment]  # aiosmtpd's hint
        self.session.local = plain_peer(transport.get_extra_info("sockname"))
        if log.isEnabledFor(logging.DEBUG):  # describe() costs, and mostly for nobody
            log.debug("[%s] connected: %s", self._session_id, describe(self._peer))

    def _create_session(self) -> Session:
        return Session(self.loop, self._session_id)

    def connection_lost(self, error: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        if self._lost:
            return
        self._lost = True
        log.debug("[%s] connection closed", self._session_id)
        try:
            if self._timeout_handle is not None:
                self._timeout_handle.cancel()
            # Not aiosmtpd's: it cancels the handler, which may have a message in hand. That one
            # finishes, and its reply goes nowhere.
            asyncio.StreamReaderProtocol.connection_lost(self, error)
            if self._handler_coroutine is not None and not self._in_hook:
                self._handler_coroutine.cancel()
            self.transport = None
        finally:
            if self._on_close is not None:
                self._on_close(self)

    def eof_received(self) -> bool | None:
        """Take the end of input; what was complete is still answered (asyncio.Protocol)."""
        # Not aiosmtpd's, which cancels: a client that half-closes after its final dot, as
        # `nc -N` does, would have its delivery cancelled.
        asyncio.StreamReaderProtocol.eof_received(self)
        return self._tls_protocol is None  # a TLS transport cannot stay half open

    @property
    def done(self) -> asyncio.Task[None] | None:
        """The task of the dialogue and its hooks; None before the connection is made."""
        return self._handler_coroutine

    def abort(self) -> None:
        """Cut the connection; what is unsent is lost."""
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]  # aiosmtpd's hint is too wide

    def cut(self) -> None:
        """Cut the connection, and cancel whatever a handler has in hand."""
        self._in_hook = False
        self.abort()
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def shut_down(self) -> None:
        """Say 421 and close: at once if the client is idle, else after the command in hand."""
        self._shutting_down = True
        if self._shaking_hands:
            self.abort()
        elif self._handler_coroutine is not None and self._reader.idle:  # type: ignore[attr-defined]
            self._close_with(shutdown_reply(self.hostname))

    def _close_with(self, reply: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._writer.write(reply)
        self._close()

    def _close(self) -> None:
        """Close once everything is sent; a client that does not take it is cut a little later."""
        if self.transport is None:
            return
        self.transport.close()
        if not self._lingering:
            self._lingering = True
            self._reset_timeout(LINGER_SECONDS)

    def _timeout_cb(self) -> None:
        if self.transport is None:
            return
        if self.transport.is_closing():
            self.abort()
            return
        log.info("[%s] timeout: %s", self._session_id, describe(self._peer))
        # A handler that took all the time there is gets cancelled after all.
        self._in_hook = False
        self._close_with(reply_line(421, "4.4.2", self.hostname, "Timeout, closing connection"))

    # -- the dialogue --------------------------------------------------------------------------

    def _cb_client_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = CommandReader(reader, self._at_boundary)  # type: ignore[assignment]
        self._writer = writer

    def _at_boundary(self) -> None:
        """Between two commands: all is answered, so the session may end here."""
        if self._shutting_down and not self._lost:
            self._close_with(shutdown_reply(self.hostname))
        if self.transport is None or self.transport.is_closing():
            raise asyncio.CancelledError

    async def _handle_client(self) -> None:
        """Run the dialogue between the hooks CONNECT and DISCONNECT."""
        try:
            if await self._welcome():
                await super()._handle_client()
        except ConnectionError:
            log.debug("[%s] the client is gone", self._session_id)
        except Exception:
            log.exception("[%s] the session failed", self._session_id)
        finally:
            self._close()
            await self._farewell()

    async def _welcome(self) -> bool:
        """Ask handle_CONNECT; return whether the client is to be greeted."""
        hook = self._handle_hooks.get("CONNECT")
        if hook is None:
            return True
        try:
            status = await hook(self, self.session)
            self._check_reply("CONNECT", status)
        except Exception:
            log.exception("[%s] handle_CONNECT failed", self._session_id)
            status = NOT_NOW
        if status is MISSING or status.startswith("2"):
            return True
        await self.push(status)
        return False

    async def _farewell(self) -> None:
        """Tell handle_DISCONNECT; it has its time, and cannot keep the connection."""
        hook = self._handle_hooks.get("DISCONNECT")
        if hook is None:
            return
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await hook(self, self.session)
        except Exception:
            log.exception("[%s] handle_DISCONNECT failed", self._session_id)

    async def push(self, status: Any) -> None:
        """Send a reply; 421 closes the connection after it (RFC 5321 3.8)."""
        if self.transport is None or self.transport.is_closing():
            raise asyncio.CancelledError  # nobody to answer (and uvloop would raise RuntimeError)
        if status == "250-AUTH ":  # EHLO's line for no mechanism at all
            return
        await super().push(status)
        if status[:3] in {"421", b"421"}:
            self._close()

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str) -> None:
        """End the session as the client wishes."""
        if arg:
            await self.push("501 5.5.4 Syntax: QUIT")
            return
        status = await self._call_handler_hook("QUIT")
        await self.push("221 2.0.0 Bye" if status is MISSING else status)
        self._close()

    # -- hooks ---------------------------------------------------------------------------------

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        hook = self._handle_hooks.get(command)
        if hook is None:
            return MISSING
        if not self._lost and not self._lingering:
            self._reset_timeout()  # the client's time is not spent by the handler, nor this by it
        self._in_hook = True
        try:
            status = await _contained(hook(self, self.session, self.envelope, *args))
        finally:
            self._in_hook = False
        if command == "DATA" and status is MISSING:
            return NO_SINK
        if command not in {"EHLO", "PROXY"}:
            self._check_reply(command, status)
        return status

    @staticmethod
    def _check_reply(command: str, status: object) -> None:
        """See that a hook answered what a client can be told."""
        if status is MISSING or (isinstance(status, str) and _REPLY.match(status)):
            return
        raise TypeError(f"handle_{command} must return a reply such as '250 OK', not {status!r}")

    async def handle_exception(self, error: Exception) -> str:
        """Log what a handler raised, and return what the client is told: never the text of it."""
        hook = getattr(self.event_handler, "handle_exception", None)
        if hook is not None:
            try:
                return str(await hook(error))
            except Exception:
                log.exception("[%s] handle_exception failed", self._session_id)
        log.error("[%s] a handler failed, the client is told 451", self._session_id, exc_info=error)
        return LOCAL_ERROR

    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """Take a recipient; nobody is none (RFC 5321 4.1.1.3), though aiosmtpd takes it."""
        if arg is not None and _NOBODY.match(arg):
            await self.push("501 5.1.3 Syntax: RCPT TO: <address>")
        else:
            await super().smtp_RCPT(arg)

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """Take a message."""
        try:
            await super().smtp_DATA(arg)
        except Exception:
            self._set_post_data_state()  # type: ignore[no-untyped-call]  # 451 ended the transaction (RFC 5321 4.1.1.4)
            raise

    def _getaddr(self, arg: str) -> Any:
        # The parser behind it trips over some of what is no address, such as "<".
        try:
            return super()._getaddr(arg)
        except (IndexError, ValueError, AttributeError):
            return None, None

    # -- TLS -----------------------------------------------------------------------------------

    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str) -> None:
        """Begin TLS on this connection (RFC 3207)."""
        if arg:
            await self.push("501 5.5.4 Syntax: STARTTLS")
        elif self._tls_protocol is not None:
            await self.push("503 5.5.1 TLS is active already")
        elif self.tls_context is None:
            await self.push("454 4.7.0 TLS not available")
        else:
            await self._start_tls()

    async def _start_tls(self) -> None:
        raw = cast("asyncio.Transport", self.transport)  # uvloop's is no subclass of it
        # What came behind STARTTLS in the clear is forgotten, lest it be taken for what was sent
        # under TLS; what comes from now on stays in the kernel for the handshake.
        self._reader.discard()  # type: ignore[attr-defined]
        raw.pause_reading()
        await self.push("220 2.0.0 Ready to start TLS")
        transport = await self._handshake(raw)
        self.transport = transport
        self._reader.use(transport)  # type: ignore[attr-defined]
        self._writer._transport = transport  # type: ignore[attr-defined]  # noqa: SLF001 - as aiosmtpd does
        self._forget_plaintext(transport)
        self._reset_timeout()

    async def _handshake(self, raw: asyncio.Transport) -> asyncio.Transport:
        """Return the TLS transport; if there is none in the end, the session is over."""
        assert self._timeout_handle is not None
        self._timeout_handle.cancel()  # the handshake has a time limit of its own
        self._shaking_hands = True
        error: BaseException | None = None
        transport = None
        try:
            transport = await self.loop.start_tls(
                raw,
                self,
                self.tls_context,  # type: ignore[arg-type]  # asked for in smtp_STARTTLS
                server_side=True,
                ssl_handshake_timeout=self._tls_handshake_timeout,
            )
        except (OSError, asyncio.CancelledError) as reason:  # SSLError is an OSError
            error = reason
        finally:
            self._shaking_hands = False
        if transport is not None and not transport.is_closing():
            return transport
        # The loop tells its TLS layer of the loss, and that does not tell us.
        log.info("[%s] TLS handshake failed: %s", self._session_id, error or "connection closed")
        raw.abort()
        self.connection_lost(None)
        raise asyncio.CancelledError

    def _forget_plaintext(self, transport: asyncio.BaseTransport) -> None:
        """Begin anew, as RFC 3207 4.2 wants; who the client is stays known."""
        assert self.session is not None
        proxy_data = self.session.proxy_data
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session = self._create_session()
        self.session.proxy_data = proxy_data
        self._introduce(transport)
        self._use_tls(transport)
        hook = self._handle_hooks.get("STARTTLS")
        if hook is not None:
            self._tls_handshake_okay = hook(self, self.session, self.envelope)

    def _use_tls(self, transport: asyncio.BaseTransport) -> None:
        # aiosmtpd asks this attribute only whether it is there.
        self._tls_protocol = transport  # type: ignore[assignment]
        assert self.session is not None
        self.session.ssl = {fact: transport.get_extra_info(fact) for fact in _TLS_FACTS}


async def _no_opinion(*_: object) -> object:
    """Stand in for a handler's hook."""
    return MISSING


async def _contained(hook: Awaitable[Any]) -> Any:
    """Await a hook; what aiosmtpd would take for the client's doing is the hook's failure."""
    try:
        return await hook
    except ConnectionError as error:
        raise RuntimeError("a connection of the handler's own failed") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("something that the handler awaited was cancelled") from error
