"""RefusalLog: a client's first refusal gets a line at once, the rest a count every few seconds.

A flood of refusals must not become a flood of log lines; nor must anything else that a client can
cause again and again (:class:`~smtpd_fork.gate.client_log_line.ClientLine`). Pure:
:meth:`RefusalLog.note` and :meth:`RefusalLog.flush` return the lines that are due, and the caller
writes them.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.gate.client_log_line import ClientLine
    from smtpd_fork.gate.verdict import Full, Refusal

    Noted = Refusal | Full | ClientLine
    """What has a ``key`` by which it is gathered, and is a line as a text; ``Full`` has no key."""

__all__ = ["RefusalLog", "Summary"]

SUMMARY_SECONDS = 5.0
"""How long a client's refusals are gathered before a summary."""

MAX_CLIENTS = 1024
"""Clients that are counted apart at once; further ones share a count, so memory is bounded."""

OTHERS = "other clients"


class _Gathered:
    """A client's refusals since its last line."""

    __slots__ = ("count", "last", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.last: Noted | None = None


class Summary(NamedTuple):
    """The summary of a client's refusals since its last line.

    :ivar text: the line
    :ivar last: the last one; None if it is several clients'
    :ivar more: how many
    :ivar seconds: in which time
    """

    text: str
    last: Noted | None
    more: int
    seconds: int


class RefusalLog:
    """Decides which refusals get a line of their own.

    :param clock: returns seconds, never backwards
    :param seconds: how long refusals of one client are gathered
    :param max_clients: how many clients are counted apart
    :param others: how the summary of all further clients begins
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = SUMMARY_SECONDS,
        max_clients: int = MAX_CLIENTS,
        others: str = f"refused {OTHERS}",
    ) -> None:
        self.seconds = seconds
        self._others = others
        self._clock = clock
        self._max_clients = max_clients
        self._lock = Lock()
        self._clients: dict[str, _Gathered] = {}

    def note(self, refusal: Noted) -> str | None:
        """Take *refusal* down; return its line if it is the first of its client, else None."""
        now = self._clock()
        key = getattr(refusal, "key", "")
        with self._lock:
            gathered = self._clients.get(key)
            if gathered is None and len(self._clients) >= self._max_clients:
                key = OTHERS
                gathered = self._clients.get(key)
            if gathered is None:
                self._clients[key] = _Gathered(now)
                return str(refusal)
            gathered.count += 1
            # Kept as it is: a text is made once a summary, not once a refusal.
            gathered.last = None if key == OTHERS else refusal
        return None

    def flush(self, *, everything: bool = False) -> list[Summary]:
        """Return the summaries that are due, and forget the clients that have gone quiet.

        :param everything: all that was gathered, due or not (for the end)
        """
        now = self._clock()
        lines = []
        with self._lock:
            for key, gathered in list(self._clients.items()):
                if not everything and now - gathered.since < self.seconds:
                    continue
                if not gathered.count:
                    del self._clients[key]
                    continue
                more, seconds = gathered.count, round(now - gathered.since)
                text = f"{gathered.last or self._others}; {more} more in {seconds} s"
                lines.append(Summary(text, gathered.last, more, seconds))
                gathered.since, gathered.count = now, 0
        return lines

    @property
    def pending(self) -> bool:
        """Whether a later :meth:`flush` has something to tell or to forget."""
        return bool(self._clients)
