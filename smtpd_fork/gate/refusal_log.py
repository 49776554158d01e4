"""RefusalLog: limits the log lines about refusals and other events that a client can repeat.

The first refusal of a client is logged at once; the others are counted in a summary every few
seconds. So a flood of refusals does not cause a flood of log lines. The same applies to each
:class:`~smtpd_fork.gate.client_log_line.ClientLine`. This class does no I/O:
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

    LogEvent = Refusal | Full | ClientLine
    """An event whose ``str()`` is its log line, and whose ``key`` selects its summary; events
    without a key (``Full``) share one summary."""

__all__ = ["RefusalLog", "Summary"]

SUMMARY_SECONDS = 5.0
"""Interval of the summaries of a client."""

MAX_CLIENTS = 1024
"""Number of clients with summaries of their own. All others share one, so memory is bounded."""

OTHERS = "other clients"


class _Pending:
    """The events of a client since its last line."""

    __slots__ = ("count", "last", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.last: LogEvent | None = None


class Summary(NamedTuple):
    """The summary of the events of a client since its last line.

    :ivar text: the line
    :ivar last: the last event; None in the summary of several clients
    :ivar more: the number of events
    :ivar seconds: the time in which they happened
    """

    text: str
    last: LogEvent | None
    more: int
    seconds: int


class RefusalLog:
    """Decides which events get a log line of their own, and summarises the others.

    :param clock: a monotonic clock, which returns seconds
    :param seconds: interval of the summaries of a client
    :param max_clients: number of clients with summaries of their own
    :param others: beginning of the summary of all other clients
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
        self._clients: dict[str, _Pending] = {}

    def note(self, refusal: LogEvent) -> str | None:
        """Record an event; return its line if it is the first one of its client, else None."""
        now = self._clock()
        key = getattr(refusal, "key", "")
        with self._lock:
            pending = self._clients.get(key)
            if pending is None and len(self._clients) >= self._max_clients:
                key = OTHERS
                pending = self._clients.get(key)
            if pending is None:
                self._clients[key] = _Pending(now)
                return str(refusal)
            pending.count += 1
            # The event and not its text, which is formatted only once for each summary.
            pending.last = None if key == OTHERS else refusal
        return None

    def flush(self, *, everything: bool = False) -> list[Summary]:
        """Return the summaries that are due, and remove clients without new events.

        :param everything: return all summaries, due or not, before the process ends
        """
        now = self._clock()
        lines = []
        with self._lock:
            for key, pending in list(self._clients.items()):
                if not everything and now - pending.since < self.seconds:
                    continue
                if not pending.count:
                    del self._clients[key]
                    continue
                more, seconds = pending.count, round(now - pending.since)
                text = f"{pending.last or self._others}; {more} more in {seconds} s"
                lines.append(Summary(text, pending.last, more, seconds))
                pending.since, pending.count = now, 0
        return lines

    @property
    def pending(self) -> bool:
        """Whether :meth:`flush` must be called again."""
        return bool(self._clients)
