"""ClientLog: lines of the log about one client, of which it can cause many."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate import ClientLine
from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.peer_address import Peer

__all__ = ["log_debug", "log_replies", "peer_of", "report", "report_failure", "summary", "who"]

LONGEST_SUMMARY = 200
"""Characters of what an error says; the traceback below the line has all of it."""

log = logging.getLogger("smtpd_fork.session")


def who(dialogue: Dialogue) -> dict[str, str]:
    """Return the fields of a log entry about this session (see smtpd_fork.observe.logs)."""
    return {"session": dialogue.id, "client": describe(peer_of(dialogue))}


def peer_of(dialogue: Dialogue) -> Peer:
    """Return the client's address; None if it is not known (any more)."""
    peer: Any = None if dialogue.host is None else dialogue.host.peer
    if peer is not None and not isinstance(peer, (str, tuple)):
        peer = str(peer)  # a transport of a user's own: logging must not fail over it
    return peer  # type: ignore[no-any-return]  # asked for above


def log_replies(dialogue: Dialogue, out: bytes) -> None:
    """Log what the client is sent, at level debug, a line each."""
    for reply in out.splitlines():
        log_debug(dialogue, f"<< {repr(reply)[1:]}")


def log_debug(dialogue: Dialogue, text: str) -> None:
    """Log a line about this client at level debug: ``[ID] CLIENT: TEXT``."""
    about = dialogue.who()
    log.debug("[%s] %s: %s", dialogue.id, about["client"], text, extra=about)


def report(
    dialogue: Dialogue,
    level: int,
    what: str,
    reason: str = "",
    *,
    kind: str = "",
    error: BaseException | None = None,
) -> None:
    """Log a line about this client: ``[ID] CLIENT: WHAT: REASON``.

    If a client causes many, in this session or in others, the first is written at once, and the
    others become a line with a count every few seconds.

    :param level: logging's
    :param what: what happened; lines are gathered by it
    :param reason: why; may be anything
    :param kind: lines with the same *what* that are gathered apart
    :param error: its traceback goes below the line
    """
    if log.isEnabledFor(level):
        peer = peer_of(dialogue)
        line = ClientLine.of(log, level, peer, what, reason, kind=kind, session=dialogue.id)
        dialogue.shared.reporter.note(line, error=error)


def summary(error: BaseException) -> str:
    """Return the class of an error and what it says, on one line."""
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "), LONGEST_SUMMARY)


def report_failure(dialogue: Dialogue, what: str, error: BaseException) -> None:
    """Log what a handler raised; errors from different lines of code are gathered apart."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    kind = f"{type(error).__name__} {place}"
    report(dialogue, logging.ERROR, what, summary(error), kind=kind, error=error)
