"""ClientLog: lines of the log about one client, of which it can cause many."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate import ClientLine
from smtpd_fork.peer_address import describe

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.peer_address import Peer

__all__ = ["report", "report_failure", "who"]

log = logging.getLogger("smtpd_fork.session")


def who(dialogue: Dialogue) -> dict[str, str]:
    """Return the fields of a log entry about this session (see smtpd_fork.observe.logs)."""
    return {"session": dialogue.id, "client": describe(_known_peer(dialogue))}


def _known_peer(dialogue: Dialogue) -> Peer:
    peer: Any = None if dialogue.host is None else dialogue.host.peer
    if peer is not None and not isinstance(peer, (str, tuple)):
        peer = str(peer)  # a transport of a user's own: logging must not fail over it
    return peer  # type: ignore[no-any-return]  # asked for above


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
        peer = _known_peer(dialogue)
        line = ClientLine.of(log, level, peer, what, reason, kind=kind, session=dialogue.id)
        dialogue.shared.reporter.note(line, error=error)


def report_failure(dialogue: Dialogue, what: str, error: BaseException) -> None:
    """Log what a handler raised; errors from different lines of code are gathered apart."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    kind = f"{type(error).__name__} {place}"
    report(dialogue, logging.ERROR, what, kind=kind, error=error)
