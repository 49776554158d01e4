"""Request: a request of a filter to its program, measured and counted with its answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.replies import LOCAL_ERROR

if TYPE_CHECKING:
    from smtpd_fork.dialogue.tally import AnswerCounts

__all__ = ["Request"]


class Request:
    """A request, from the begin of a ``with`` block to its end.

    :param counts: of the filter; None: nothing is counted
    :ivar answer: the reply that refuses; MISSING or empty: there is no objection. Until it is set
        the program has failed
    :ivar sent: set it to False, and nothing is counted: the program was not asked after all
    """

    __slots__ = ("_begun", "_counts", "answer", "sent")

    def __init__(self, counts: AnswerCounts | None) -> None:
        self._counts = counts
        self._begun = 0.0
        self.answer: Any = LOCAL_ERROR
        self.sent = True

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._counts is not None and self.sent:
            self._counts.note(self.answer or MISSING, time.perf_counter() - self._begun)
