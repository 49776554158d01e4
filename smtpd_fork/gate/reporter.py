"""Reporter: writes the log lines and the summaries of a RefusalLog."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate.client_log_line import ClientLine
from smtpd_fork.gate.refusal_log import RefusalLog

if TYPE_CHECKING:
    from smtpd_fork.gate.refusal_log import LogEvent, Summary

__all__ = ["Reporter", "client_reporter"]

log = logging.getLogger("smtpd_fork.gate")


def client_reporter() -> Reporter:
    """Return a reporter of lines about clients, for all sessions of a server."""
    return Reporter(RefusalLog(others="lines about other clients"))


class Reporter:
    """Writes a gate's refusals, or other lines about clients, in the thread of a loop.

    :param refusals: decides which of them get a line of their own
    """

    def __init__(self, refusals: RefusalLog) -> None:
        self._refusals = refusals
        self._timer: asyncio.TimerHandle | None = None

    def note(self, noted: LogEvent, *, error: BaseException | None = None) -> None:
        """Log *noted*, now or in the next summary.

        :param error: its traceback is added to the line; a summary has no traceback
        """
        line = self._refusals.note(noted)
        if line is not None:
            _write(line, noted, error=error)
        if self._timer is None:
            self._schedule_summary()

    def _schedule_summary(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # without a loop, close() writes the summaries
        self._timer = loop.call_later(self._refusals.seconds, self._summarise)

    def _summarise(self) -> None:
        self._timer = None
        _write_all(self._refusals.flush())
        if self._refusals.pending:
            self._schedule_summary()

    def close(self) -> None:
        """Write all summaries, due or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _write_all(self._refusals.flush(everything=True))


def _write_all(summaries: list[Summary]) -> None:
    for text, last, more, seconds in summaries:
        _write(text, last, more=more, seconds=seconds)


def _write(
    text: str, noted: LogEvent | None, *, error: BaseException | None = None, **fields: Any
) -> None:
    if isinstance(noted, ClientLine):
        extra = {**noted.extra, **fields}
        noted.logger.log(noted.level, "%s", text, extra=extra, exc_info=error)
    else:
        log.warning("%s", text, extra={"refusal": noted, **fields})
