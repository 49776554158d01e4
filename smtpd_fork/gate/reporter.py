"""Reporter: writes refusals to the log, as the refusals' log decides, and in its time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate.client_log_line import ClientLine
from smtpd_fork.gate.refusal_log import RefusalLog

if TYPE_CHECKING:
    from smtpd_fork.gate.refusal_log import Noted, Summary

__all__ = ["Reporter", "client_reporter"]

log = logging.getLogger("smtpd_fork.gate")


def client_reporter() -> Reporter:
    """Return what writes lines about clients, for all sessions of a server."""
    return Reporter(RefusalLog(others="lines about other clients"))


class Reporter:
    """Writes a gate's refusals, or other lines about clients; used from the thread of a loop.

    :param refusals: decides which of them get a line of their own
    """

    def __init__(self, refusals: RefusalLog) -> None:
        self._refusals = refusals
        self._timer: asyncio.TimerHandle | None = None

    def note(self, noted: Noted, *, error: BaseException | None = None) -> None:
        """Write *noted* down, now or in the next summary.

        :param error: the line gets its traceback; a summary has none
        """
        line = self._refusals.note(noted)
        if line is not None:
            _write(line, noted, error=error)
        if self._timer is None:
            self._await_summary()

    def _await_summary(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # a dialogue without one: close() writes what was gathered
        self._timer = loop.call_later(self._refusals.seconds, self._summarise)

    def _summarise(self) -> None:
        self._timer = None
        _write_all(self._refusals.flush())
        if self._refusals.pending:
            self._await_summary()

    def close(self) -> None:
        """Write what was gathered, due or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _write_all(self._refusals.flush(everything=True))


def _write_all(summaries: list[Summary]) -> None:
    for text, last, more, seconds in summaries:
        _write(text, last, more=more, seconds=seconds)


def _write(
    text: str, noted: Noted | None, *, error: BaseException | None = None, **fields: Any
) -> None:
    if isinstance(noted, ClientLine):
        extra = {**noted.extra, **fields}
        noted.logger.log(noted.level, "%s", text, extra=extra, exc_info=error)
    else:
        log.warning("%s", text, extra={"refusal": noted, **fields})
