"""The answers of several processes to one question."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.supervisor.line import LineClosedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["ANSWER_SECONDS", "answers_of"]

log = logging.getLogger("smtpd_fork.daemon")

ANSWER_SECONDS = 10.0
"""For the answer of a process; one that takes longer is left out."""


async def answers_of(
    processes: Sequence[ServingProcess],
    word: str,
    body: Any,
    seconds: float | None = ANSWER_SECONDS,
) -> dict[ServingProcess, Any | RequestError]:
    """Return the answers of all, in order; those that end meanwhile have none.

    :param seconds: those that take longer have none either; None: no limit
    """
    answers = await asyncio.gather(
        *(process.ask(word, body, seconds=seconds) for process in processes),
        return_exceptions=True,
    )
    found = {}
    for process, answer in zip(processes, answers, strict=True):
        if isinstance(answer, (LineClosedError, TimeoutError)):
            log.debug("%s does not answer %s: %r", process, word, answer)
        elif isinstance(answer, BaseException) and not isinstance(answer, RequestError):
            raise answer
        else:
            found[process] = answer
    return found
