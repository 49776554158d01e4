"""Request: measure a request of a filter to its program, and count it with its answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.replies import LOCAL_ERROR

if TYPE_CHECKING:
    from smtpd_fork.dialogue.tally import AnswerCounts

__all__ = ["Request"]


class Request:
    """A context manager whose block is a request.

    :param counts: the counts of the filter; None: nothing is counted
    :ivar answer: the reply that refuses; MISSING or empty if the program does not refuse. If it is
        not set, the request counts as failed
    :ivar sent: whether to count the request; set it to False if the program was not asked
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
