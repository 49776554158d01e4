"""MilterSessions: the milter sessions of one milter, one for each client session."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smtpd_fork.hops.idle import Idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.filters.milter_session import MilterSession

__all__ = ["MilterSessions"]

KEPT_SECONDS = 5.0
"""Seconds that a connection waits for the next message of its session: a client with several
messages sends them without a pause."""

MOST_KEPT = 100
"""Maximum connections that wait for a next message: the number of connections from Postfix, with a
process for each client (default_process_limit)."""


class MilterSessions:
    """The milter sessions of one milter, by client session.

    :param make: returns a new milter session; its arguments are the server, and a function to call
        when the connection is lost
    :param live: whether the milter gets each stage as it occurs, so that :meth:`end` ends a milter
        session; otherwise a connection waits some seconds for the next message of its session
    """

    def __init__(
        self, make: Callable[[Any, Callable[[], object]], MilterSession], *, live: bool
    ) -> None:
        self._make = make
        self._live = live
        self._milter_sessions: dict[Any, MilterSession] = {}
        self._kept = Idle[Any](KEPT_SECONDS, self._drop)

    def of(self, server: Any, session: AnySession) -> MilterSession:
        """Return the milter session of a client session; make it if there is none."""
        key = self._key(session)
        milter_session = self._milter_sessions.get(key)
        if milter_session is not None:
            self._kept.discard(key)
            return milter_session
        if isinstance(key, weakref.ref):
            key = weakref.ref(session, self._freed)
        milter_session = self._milter_sessions[key] = self._make(server, lambda: self._lost(key))
        return milter_session

    def find(self, session: AnySession) -> MilterSession | None:
        """Return the milter session of a client session, or None."""
        return self._milter_sessions.get(self._key(session))

    def keep(self, session: AnySession) -> None:
        """Keep the connection of a session for its next message, or close it.

        Under aiosmtpd it is closed, because aiosmtpd does not report the end of a session.
        """
        key = self._key(session)
        milter_session = self._milter_sessions.get(key)
        of_ours = hasattr(session, "id")
        if milter_session is None or (self._live and of_ours):
            return
        milter_session.begin(None)
        if not of_ours or not (milter_session.is_open or milter_session.is_decided):
            self._drop(key)
        elif milter_session.is_open:
            if len(self._kept) >= MOST_KEPT:
                self._kept.end_first()
            self._kept.add(key)

    def end(self, session: AnySession) -> None:
        """End the milter session of a client session."""
        self._drop(self._key(session))

    def close(self) -> None:
        """End all milter sessions."""
        self._kept.end_all()
        for key in list(self._milter_sessions):
            self._drop(key)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return sum(each.is_open for each in self._milter_sessions.values())

    @property
    def waiting(self) -> int:
        """The number of open connections that wait for a next message."""
        return len(self._kept)

    def _key(self, session: AnySession) -> Any:
        """Return the key of a session; with *live* it is the id: STARTTLS replaces the object."""
        name = getattr(session, "id", "") if self._live else ""
        return name or weakref.ref(session)

    def _lost(self, key: Any) -> None:
        """Remove a waiting connection that the milter has closed."""
        if key in self._kept:
            self._drop(key)

    def _freed(self, key: Any) -> None:
        """End the milter session of a freed session object; may be called in any thread."""
        milter_session = self._milter_sessions.get(key)
        if milter_session is not None:
            here = asyncio._get_running_loop() is milter_session.loop  # noqa: SLF001 - the public function raises without a loop
            with suppress(RuntimeError):  # the loop is closed
                (
                    milter_session.loop.call_soon
                    if here
                    else milter_session.loop.call_soon_threadsafe
                )(self._drop, key)

    def _drop(self, key: Any) -> None:
        self._kept.discard(key)
        milter_session = self._milter_sessions.pop(key, None)
        if milter_session is not None:
            milter_session.close()
