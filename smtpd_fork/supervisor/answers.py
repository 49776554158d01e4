"""Send one request to several processes, and collect their answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.supervisor.channel import ChannelClosedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["ANSWER_SECONDS", "answers_of"]

log = logging.getLogger("smtpd_fork.daemon")

ANSWER_SECONDS = 10.0
"""Timeout for the answer of a process; a process that takes longer is left out."""


async def answers_of(
    processes: Sequence[ServingProcess],
    kind: str,
    body: Any,
    seconds: float | None = ANSWER_SECONDS,
) -> dict[ServingProcess, Any | RequestError]:
    """Return the answer or the error of each process, in the order of *processes*.

    A process that ends, or does not answer in time, is left out.

    :param seconds: timeout; None: no timeout
    """
    answers = await asyncio.gather(
        *(process.ask(kind, body, seconds=seconds) for process in processes),
        return_exceptions=True,
    )
    found = {}
    for process, answer in zip(processes, answers, strict=True):
        if isinstance(answer, (ChannelClosedError, TimeoutError)):
            log.debug("%s does not answer %s: %r", process, kind, answer)
        elif isinstance(answer, BaseException) and not isinstance(answer, RequestError):
            raise answer
        else:
            found[process] = answer
    return found
