"""PROXY: a header before the greeting, if aiosmtpd's ``proxy_protocol_timeout`` asks for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import replies
from smtpd_fork.smtp import steps
from smtpd_fork.smtp.hooks import ask

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["check_proxy_timeout", "judge_proxy_header", "read_proxy_header"]

log = logging.getLogger("smtpd_fork.session")

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


async def judge_proxy_header(connection: Connection) -> None:
    """Have a handler judge a header that was read before the session; then greet."""
    if await _is_accepted(connection, connection.proxied):
        await steps.greet(connection)
    else:
        _refuse(connection)


async def read_proxy_header(connection: Connection, seconds: float) -> None:
    """Read a header, and have a handler judge it; then greet."""
    session = connection.dialogue.session
    connection.deadline = connection.loop.time() + seconds
    reader = connection.proxy_reader
    assert reader is not None
    session.proxy_data = await get_proxy(reader)
    accepted: Any = MISSING
    if session.proxy_data:
        accepted = await _is_accepted(connection, session.proxy_data)
    connection.proxy_reader = None
    if accepted is MISSING or not accepted:
        _refuse(connection)
        return
    connection.transport.resume_reading()  # the reader may have paused it
    connection.dialogue.keep(bytes(reader._buffer))  # type: ignore[attr-defined]  # noqa: SLF001 - what came behind it
    await steps.greet(connection)


async def _is_accepted(connection: Connection, proxy_data: Any) -> Any:
    """Return what a handler says to a header; there is no command that a reply could be to."""
    try:
        return await ask(connection, "PROXY", proxy_data)
    except Exception as error:  # noqa: BLE001 - a handler's, whatever it is
        connection.dialogue.report_failure("handle_PROXY failed", error)
        connection.dialogue.out.append(f"{replies.NOT_NOW}\r\n".encode())
        return False


def _refuse(connection: Connection) -> None:
    connection.dialogue.report(logging.INFO, "PROXY header refused")
    connection.dialogue.leave()
