"""Filter: the base class of handlers that only refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.filters.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.dialogue.tally import AnswerCounts
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Filter"]


class Filter:
    """A handler whose hooks refuse with 4yz or 5yz, or return MISSING to call the next handler.

    It also runs under aiosmtpd, like any handler.

    :cvar controls_relaying: whether the filter refuses recipients that a client may not send to, so
        that a later relay in the chain is not an open relay; a handler of any class may set it
    :cvar quarantines: whether the chain needs a sink with ``quarantine = true``, so that a chain
        without one is an error; a handler of any class may set it
    :cvar redirects: whether a 2yz reply of ``handle_RCPT`` means that the filter has added other
        addresses to ``envelope.rcpt_tos``; the later handlers are then called for each of these
    :cvar gives_marks: whether the filter may add scores or tags; ``smtpd-fork check`` uses it
    """

    controls_relaying = False
    quarantines = False
    redirects = False
    gives_marks = True
    _request_counts: AnswerCounts | None = None

    @property
    def status(self) -> PeerStatus | None:
        """The state of the external program that the filter uses; None if it uses none.

        ``smtpd-fork status`` and the metrics show a filter with a state, and count its requests.
        """
        return None

    def request(self) -> Request:
        """Return a context manager for a request to the program, which measures and counts it."""
        return Request(self._request_counts)

    def count_with(self, counts: AnswerCounts) -> None:
        """Set the counts of requests; if servers share the filter, the last call counts."""
        self._request_counts = counts

    def check(self) -> None:
        """Check whether :meth:`prepare` would succeed, without creating anything.

        :raises SmtpdForkError: it would fail
        """

    def prepare(self) -> None:
        """Read the files of the filter; called before the first session, with dropped privileges.

        :raises SmtpdForkError: a file cannot be read
        """

    def on_reload(self) -> Callable[[], str] | None:
        """Read the files of the filter again; called in a thread, at each reload.

        :returns: None if no file has changed; otherwise a function that applies the new content and
            returns a log line about it. The function is called in the event loop, after all other
            steps of the reload have succeeded
        :raises SmtpdForkError: a file cannot be read; the reload fails and nothing changes
        """
        return None

    async def close(self) -> None:
        """Finish work in progress; called after the last session."""
