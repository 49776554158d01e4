"""Question: a question to the fleet about a client, which waits for the answer."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Sequence

    from smtpd_fork.gate import Refusal
    from smtpd_fork.gate.rules.fleet import FleetCheck

__all__ = ["Question"]

log = logging.getLogger("smtpd_fork.fleet")


class Question:
    """A question about one client.

    :param checks: the limits that the client must not exceed
    :param answered: called with the refusal, or None
    :param since: the time of the question, in seconds of the monotonic clock
    :param loop: in which *answered* is called; None: the fleet's. It may run in another thread
    """

    __slots__ = ("answered", "cancelled", "checks", "ended", "loop", "since")

    def __init__(
        self,
        checks: Sequence[FleetCheck],
        answered: Callable[[Refusal | None], None],
        since: float,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        self.checks = checks
        self.loop = loop
        self.cancelled = False  # may be set in another thread
        self.answered = answered
        self.since = since
        self.ended = False

    def answer(self, refusal: Refusal | None) -> None:
        """Call the callback; an error in it is logged, so that it does not affect other clients."""
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop may be closed
                self.loop.call_soon_threadsafe(self._answer, refusal)
        else:
            self._answer(refusal)

    def _answer(self, refusal: Refusal | None) -> None:
        if self.cancelled:
            return
        try:
            self.answered(refusal)
        except Exception:
            log.exception("internal error")
