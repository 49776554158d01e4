"""Question: a client that a fleet is asked about, and that waits for the answer."""

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
    """A client that the fleet is asked about.

    :param checks: the limits that it must not exceed
    :param answered: called with the refusal, or None
    :param since: when it was asked, in seconds
    :param loop: of the asker, if that is not the fleet's: it runs in another thread
    """

    __slots__ = ("answered", "checks", "ended", "forgotten", "loop", "since")

    def __init__(
        self,
        checks: Sequence[FleetCheck],
        answered: Callable[[Refusal | None], None],
        since: float,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        self.checks = checks
        self.loop = loop
        self.forgotten = False  # by an asker in another thread
        self.answered = answered
        self.since = since
        self.ended = False

    def answer(self, refusal: Refusal | None) -> None:
        """Tell the asker; an error of one does not reach the others."""
        if self.loop is not None:
            with suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self._answer, refusal)
        else:
            self._answer(refusal)

    def _answer(self, refusal: Refusal | None) -> None:
        if self.forgotten:
            return
        try:
            self.answered(refusal)
        except Exception:
            log.exception("internal error")
