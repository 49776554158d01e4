"""Filter: a handler that answers only to refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Filter"]


class Filter:
    """A handler whose hooks refuse with 4yz or 5yz, or return MISSING: the next one is asked.

    It runs under aiosmtpd as well, as any handler does.

    :cvar controls_relaying: whether it refuses recipients that a client may not send to, so that a
        relay behind it is no open relay; a handler of any class may declare it
    :cvar quarantines: whether a chain without a sink that has ``quarantine = true`` is a mistake; a
        handler of any class may declare it
    :cvar redirects: whether a 2yz of its ``handle_RCPT`` means that it has put other addresses
        into ``envelope.rcpt_tos``, about each of which the handlers behind it are asked
    :cvar gives_marks: whether it may give scores or tags, for ``smtpd-fork check``
    """

    controls_relaying = False
    quarantines = False
    redirects = False
    gives_marks = True

    @property
    def status(self) -> PeerStatus | None:
        """The state of the program that the filter asks; None if it asks none.

        A filter that has one is in ``status`` and in the metrics, with its replies.
        """
        return None

    def check(self) -> None:
        """See whether :meth:`prepare` would succeed; nothing is made.

        :raises SmtpdForkError: it would not
        """

    def prepare(self) -> None:
        """Read what the filter needs; called before the first session, after privileges fell.

        :raises SmtpdForkError: it cannot be read
        """

    def on_reload(self) -> Callable[[], str] | None:
        """Read the files of the filter again; called in a thread, at each reload.

        :returns: None if none of them has changed; else a function that puts the new content in
            force, and returns a log line about it. It is called in the event loop, once all else
            of the reload has succeeded
        :raises SmtpdForkError: the reload fails; nothing changes
        """
        return None

    async def close(self) -> None:
        """Finish work in progress; called after the last session."""
