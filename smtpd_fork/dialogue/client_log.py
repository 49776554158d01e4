"""ClientLog: log lines about a client, summarized if a client causes many."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate import ClientLine
from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.peer_address import Peer

__all__ = [
    "log_debug",
    "log_fields",
    "log_replies",
    "peer_of",
    "report",
    "report_failure",
    "summary",
]

LONGEST_SUMMARY = 200
"""Characters of an error's text; the traceback below the line has the whole text."""

log = logging.getLogger("smtpd_fork.session")


def log_fields(dialogue: Dialogue) -> dict[str, str]:
    """Return the fields of a log entry about this session (see smtpd_fork.observe.logs)."""
    return {"session": dialogue.id, "client": describe(peer_of(dialogue))}


def peer_of(dialogue: Dialogue) -> Peer:
    """Return the client's address; None if it is unknown, or the session has ended."""
    peer: Any = None if dialogue.host is None else dialogue.host.peer
    if peer is not None and not isinstance(peer, (str, tuple)):
        peer = str(peer)  # a user's transport may have any type here
    return peer  # type: ignore[no-any-return]  # checked above


def log_replies(dialogue: Dialogue, out: bytes) -> None:
    """Log replies at level debug, one per line."""
    for reply in out.splitlines():
        log_debug(dialogue, f"<< {repr(reply)[1:]}")


def log_debug(dialogue: Dialogue, text: str) -> None:
    """Log a line about this client at level debug: ``[ID] CLIENT: TEXT``."""
    about = dialogue.log_fields()
    log.debug("[%s] %s: %s", dialogue.id, about["client"], text, extra=about)


def report(
    dialogue: Dialogue,
    level: int,
    event: str,
    reason: str = "",
    *,
    kind: str = "",
    error: BaseException | None = None,
) -> None:
    """Log a line about this client: ``[ID] CLIENT: WHAT: REASON``.

    If a client causes many such lines, in this or other sessions, the first is logged at once, and
    the others are summarized every few seconds in a line with a count.

    :param level: the level of :mod:`logging`
    :param event: the event; equal events are summarized in one line
    :param reason: the reason, with any characters
    :param kind: events with same *event*, but another *kind*, are summarized separately
    :param error: an exception whose traceback is added to the line
    """
    if log.isEnabledFor(level):
        peer = peer_of(dialogue)
        line = ClientLine.of(log, level, peer, event, reason, kind=kind, session=dialogue.id)
        dialogue.shared.reporter.note(line, error=error)


def summary(error: BaseException) -> str:
    """Return the class and the text of an error, in one line."""
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "), LONGEST_SUMMARY)


def report_failure(dialogue: Dialogue, event: str, error: BaseException) -> None:
    """Log an exception of a handler; those of different lines of code are summarized separately."""
    location, traceback = "", error.__traceback__
    while traceback is not None:
        location = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    kind = f"{type(error).__name__} {location}"
    report(dialogue, logging.ERROR, event, summary(error), kind=kind, error=error)
