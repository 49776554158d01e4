"""MilterSessions: the talks of one milter, one for each session that it has learned of."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smtpd_fork.hops.idle import Idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.filters.milter_talk import Talk

__all__ = ["MilterSessions"]

KEPT_SECONDS = 5.0
"""How long a connection waits for the next message of its session: a client that has more sends
them at once."""

MOST_KEPT = 100
"""Connections that wait for a next message: milters are used to that many of Postfix, which has a
process for each client (default_process_limit)."""


class MilterSessions:
    """The talks by session.

    :param make: makes a talk, and is given a function to call when its connection is lost
    :param live: sessions are sent as they go, and end by :meth:`end`; else a connection waits for
        the next message of a session for a few seconds
    """

    def __init__(self, make: Callable[[Any, Callable[[], object]], Talk], *, live: bool) -> None:
        self._make = make
        self._live = live
        self._talks: dict[Any, Talk] = {}
        self._kept = Idle[Any](KEPT_SECONDS, self._drop)

    def of(self, server: Any, session: AnySession) -> Talk:
        """Return the talk of a session."""
        key = self._key(session)
        talk = self._talks.get(key)
        if talk is not None:
            self._kept.discard(key)
            return talk
        if isinstance(key, weakref.ref):
            key = weakref.ref(session, self._freed)
        talk = self._talks[key] = self._make(server, lambda: self._lost(key))
        return talk

    def find(self, session: AnySession) -> Talk | None:
        """Return the talk of a session if there is one."""
        return self._talks.get(self._key(session))

    def keep(self, session: AnySession) -> None:
        """Have the connection of a session wait for its next message, or end it.

        aiosmtpd does not say that a session has ended: there it waits for nothing.
        """
        key = self._key(session)
        talk = self._talks.get(key)
        of_ours = hasattr(session, "id")
        if talk is None or (self._live and of_ours):
            return
        talk.begin(None)
        if not of_ours or not (talk.is_open or talk.is_decided):
            self._drop(key)
        elif talk.is_open:
            if len(self._kept) >= MOST_KEPT:
                self._kept.end_first()
            self._kept.add(key)

    def end(self, session: AnySession) -> None:
        """End the talk of a session."""
        self._drop(self._key(session))

    def close(self) -> None:
        """End all."""
        self._kept.end_all()
        for key in list(self._talks):
            self._drop(key)

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(talk.is_open for talk in self._talks.values())

    @property
    def waiting(self) -> int:
        """How many of them wait for a next message."""
        return len(self._kept)

    def _key(self, session: AnySession) -> Any:
        """Return what stands for a session: its id outlasts STARTTLS, its object does not."""
        name = getattr(session, "id", "") if self._live else ""
        return name or weakref.ref(session)

    def _lost(self, key: Any) -> None:
        """Forget a connection that waits, as the milter has closed it."""
        if key in self._kept:
            self._drop(key)

    def _freed(self, key: Any) -> None:
        """End the talk of a session, wherever that is freed: the loop need not be woken in it."""
        talk = self._talks.get(key)
        if talk is not None:
            here = asyncio._get_running_loop() is talk.loop  # noqa: SLF001 - without one it raises nothing
            with suppress(RuntimeError):  # the loop is closed
                (talk.loop.call_soon if here else talk.loop.call_soon_threadsafe)(self._drop, key)

    def _drop(self, key: Any) -> None:
        self._kept.discard(key)
        talk = self._talks.pop(key, None)
        if talk is not None:
            talk.close()
