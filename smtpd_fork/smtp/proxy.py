"""PROXY: a header before the banner, if aiosmtpd's ``proxy_protocol_timeout`` asks for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import MISSING

from smtpd_fork.smtp.engine import NOT_NOW
from smtpd_fork.smtp.starttls import StartTls
from smtpd_fork.smtp.state import log

if TYPE_CHECKING:
    from smtpd_fork.smtp.work import Waiting

__all__ = ["Proxied", "check_proxy_timeout"]

SHORTEST_SENSIBLE = 3.0
"""Seconds; below that aiosmtpd warns."""


def check_proxy_timeout(seconds: float | None) -> None:
    """See that aiosmtpd's keyword makes sense.

    :raises ValueError: it is not above 0
    """
    if seconds is None:
        return
    if seconds <= 0:
        raise ValueError("proxy_protocol_timeout must be > 0")
    if seconds < SHORTEST_SENSIBLE:
        log.warning("proxy_protocol_timeout < 3.0")


class Proxied(StartTls):
    """A session that may begin with a PROXY header."""

    _proxy_timeout: float | None = None
    _proxy_reader: asyncio.StreamReader | None = None

    def _opening(self) -> Waiting | None:
        if self._proxy_timeout is None:
            if self.proxied is not None and "PROXY" in self._setup.hooks:
                return self._ask_about_proxy()
            return super()._opening()
        self._proxy_reader = asyncio.StreamReader(loop=self.loop)
        # It then pauses the transport by itself: what comes behind a header is not held for ever.
        self._proxy_reader.set_transport(self.transport)
        # On this one object, so that sessions without PROXY pay nothing for the question.
        self.data_received = self._proxy_reader.feed_data  # type: ignore[method-assign]  # meant
        return self._ask_proxy(self._proxy_reader, self._proxy_timeout)

    async def _ask_about_proxy(self) -> None:
        """Have a handler judge a header that was read before the session."""
        if not await self._judged(self.proxied):
            self._report(logging.INFO, "PROXY header refused")
            self._close()
            return
        waiting = super()._opening()
        if waiting is not None:
            await waiting

    async def _judged(self, proxy_data: Any) -> Any:
        """Return what a handler says to a header; there is no command that a reply could be to."""
        try:
            return await self._call_handler_hook("PROXY", proxy_data)
        except Exception as error:  # noqa: BLE001 - a handler's, whatever it is
            self._report_failure("handle_PROXY failed", error)
            self._put_raw(NOT_NOW.encode() + b"\r\n")
            return False

    async def _ask_proxy(self, reader: asyncio.StreamReader, seconds: float) -> None:
        self.deadline = self.loop.time() + seconds
        assert self.session is not None
        self.session.proxy_data = await get_proxy(reader)
        status: Any = False
        if self.session.proxy_data:
            status = await self._judged(self.session.proxy_data)
        self._proxy_reader = None
        del self.data_received
        if status is MISSING or not status:
            self._report(logging.INFO, "PROXY header refused")
            self._close()
            return
        self.transport.resume_reading()  # the reader may have paused it
        self._framer.feed(bytes(reader._buffer))  # type: ignore[attr-defined]  # noqa: SLF001 - what came behind it
        waiting = super()._opening()
        if waiting is not None:
            await waiting

    def eof_received(self) -> bool | None:
        """Take the end of input (asyncio.Protocol)."""
        if self._proxy_reader is not None:
            self._proxy_reader.feed_eof()
        return super().eof_received()

    def _time_out(self) -> None:
        if self._proxy_reader is not None:
            self.cut()  # whoever it is, it does not speak SMTP yet
        else:
            super()._time_out()
