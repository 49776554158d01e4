"""Reporter: writes refusals to the log, as the refusals' log decides, and in its time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.gate.refusal_log import RefusalLog, Summary
    from smtpd_fork.gate.verdict import Full, Refusal

__all__ = ["Reporter"]

log = logging.getLogger("smtpd_fork.gate")


class Reporter:
    """Writes one gate's refusals; used from the thread of a running loop.

    :param refusals: decides which refusals have a line of their own
    """

    def __init__(self, refusals: RefusalLog) -> None:
        self._refusals = refusals
        self._timer: asyncio.TimerHandle | None = None

    def note(self, verdict: Refusal | Full) -> None:
        """Write *verdict* down, now or in the next summary."""
        line = self._refusals.note(verdict)
        if line is not None:
            log.warning("%s", line, extra={"refusal": verdict})
        if self._timer is None:
            self._await_summary()

    def _await_summary(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._refusals.seconds, self._summarise)

    def _summarise(self) -> None:
        self._timer = None
        self._write(self._refusals.flush())
        if self._refusals.pending:
            self._await_summary()

    def close(self) -> None:
        """Write what was gathered, due or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write(self._refusals.flush(everything=True))

    @staticmethod
    def _write(summaries: list[Summary]) -> None:
        for text, last, more, seconds in summaries:
            about = {"refusal": last, "more": more, "seconds": seconds}
            log.warning("%s", text, extra=about)
