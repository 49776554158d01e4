"""STARTTLS (RFC 3207), by the loop's public API."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd.smtp import syntax

from smtpd_fork.errors import forget_frames
from smtpd_fork.smtp.auth import Auth

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from smtpd_fork.smtp.work import Waiting

__all__ = ["StartTls"]


class StartTls(Auth):
    """The command STARTTLS."""

    def _cmd_STARTTLS(self, arg: str | None) -> Waiting | None:
        if arg:
            self._say(501, "5.5.4", "Syntax: STARTTLS")
        elif self._tls_protocol is not None:
            self._say(503, "5.5.1", "TLS is active already")
        elif self.tls_context is None:
            self._say(454, "4.7.0", "TLS not available")
        elif refusal := (self.handshakes and self.handshakes.begin_handshake(self)):
            if not self._count_error():
                self._say(454, "4.7.0", refusal.words)
        else:
            # All that follows is the handshake's: what is in the kernel, and what has been read
            # with STARTTLS. Plaintext that is smuggled in there (CVE-2011-0411) ends the handshake,
            # whether it came in the same packet or in the next.
            self._pause_reading()
            early = self._framer.take()
            self._say(220, "2.0.0", "Ready to start TLS")
            return self._start_tls(early)
        return None

    async def _start_tls(self, early: bytes) -> None:
        self._flush()
        raw = cast("asyncio.Transport", self.transport)
        self.connection_made(await self._handshake(raw, early))
        hook = self._setup.hooks.get("STARTTLS")
        if hook is not None:
            self._tls_handshake_okay = await self._ask_starttls(hook)

    async def _ask_starttls(self, hook: Callable[..., Any]) -> bool:
        """Return whether a handler accepts the handshake; no reply is owed, whatever it does."""
        try:
            accepted = hook(self, self.session, self.envelope)
            if inspect.isawaitable(accepted):
                accepted = await accepted
        except BaseException as error:
            if self._is_end(error):
                raise
            self._report_failure("handle_STARTTLS failed", error)
            return False
        return bool(accepted)

    async def _handshake(self, raw: asyncio.Transport, early: bytes) -> asyncio.Transport:
        """Return the TLS transport; if there is none in the end, the session is over."""
        seconds = self._setup.limits.handshake_seconds
        if self.handshakes is not None:
            seconds = self.handshakes.shorten(seconds)
        self.deadline = self.loop.time() + 2 * seconds  # the handshake has a time of its own
        self._shaking_hands = True
        reason = "connection closed"
        transport = None
        starting = self.loop.start_tls(
            raw,
            self._setup.wire(self),
            self.tls_context,  # type: ignore[arg-type]  # asked for in the command
            server_side=True,
            ssl_handshake_timeout=seconds,
        )
        try:
            transport = await (self._with_early(starting, raw, early) if early else starting)
        except (OSError, asyncio.CancelledError) as error:  # SSLError is an OSError
            reason = str(error) or reason
            forget_frames(error)
        finally:
            self._shaking_hands = False
        if transport is not None and not transport.is_closing() and not self._lost:
            return transport
        self._setup.tally.tls_failed += 1
        # The loop tells its TLS layer of the loss, and that does not tell us.
        self._report(logging.INFO, "TLS handshake failed", reason)
        raw.abort()
        self.connection_lost(None)
        raise asyncio.CancelledError

    async def _with_early(
        self,
        starting: Coroutine[Any, Any, asyncio.Transport | None],
        raw: asyncio.Transport,
        early: bytes,
    ) -> asyncio.Transport | None:
        """Start TLS, and have its layer receive *early* before what the socket has."""
        plain = raw.get_protocol()
        task = self.loop.create_task(starting)
        try:
            await asyncio.sleep(0)  # now the layer is the transport's protocol, and is told so next
            layer = raw.get_protocol()
            if layer is not plain:
                self.loop.call_soon(_receive, layer, early)
            return await task
        finally:
            task.cancel()

    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """Begin TLS on this connection (RFC 3207)."""
        await self._settle(self._cmd_STARTTLS(arg))


def _receive(protocol: Any, data: bytes) -> None:
    """Give *data* to an asyncio.BufferedProtocol (which uvloop's TLS layer is in all but name)."""
    rest = memoryview(data)
    while rest:
        buffer = protocol.get_buffer(len(rest))
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]
