"""Tarpit: clients that get each reply with a delay.

A client is slow to be answered if it makes errors (as with Postfix's smtpd_error_sleep_time), if
the server has its reasons from the beginning, or if a handler has set ``session.tarpit``. A delayed
reply costs a deadline and no task; but the session that waits takes a connection slot, so the
number of those that wait at the same time is limited, and others get their replies at once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.client_log import peer_of
from smtpd_fork.setting_types import LONGEST_DELAY

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.peer_address import Peer

__all__ = ["Tarpit", "delay_after_faults", "slow_down"]

FAULTS = 10
"""Errors and refused commands of a session without a delay; Postfix's smtpd_soft_error_limit."""

MOST = 100
"""Sessions that wait at the same time where no server says how many there may be."""


class Tarpit:
    """What the sessions of one server have in common.

    :param seconds: the delay of a client that makes errors; 0: there is none
    :ivar waiting: how many sessions wait
    """

    __slots__ = ("seconds", "waiting")

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.waiting = 0

    def room(self) -> int:
        """Return how many sessions may wait at the same time."""
        return MOST

    def excuses(self, peer: Peer) -> bool:
        """Whether a client is not slowed down for its errors."""
        return False

    @property
    def has_room(self) -> bool:
        """Whether another session may wait."""
        return self.waiting < self.room()


def slow_down(dialogue: Dialogue, seconds: Any, reason: str) -> None:
    """Have each reply be delayed from now on; a handler may end that again.

    :param seconds: up to a minute; 0, or what is no number, ends it
    """
    is_delay = isinstance(seconds, (int, float)) and seconds > 0
    before = dialogue.tarpit
    dialogue.tarpit = float(min(seconds, LONGEST_DELAY)) if is_delay else 0.0
    dialogue.fast = dialogue.shared.fast and not (dialogue.debug or dialogue.tarpit)
    if dialogue.session is not None:
        dialogue.session.tarpit = dialogue.tarpit
    if dialogue.tarpit and not before:
        dialogue.report(logging.INFO, f"replies are delayed by {dialogue.tarpit:g} s", reason)


def delay_after_faults(dialogue: Dialogue) -> None:
    """Slow a client down that makes many errors."""
    tarpit, faults = dialogue.shared.tarpit, dialogue.errors + dialogue.rejects
    if not tarpit.seconds or faults != FAULTS + 1 or dialogue.tarpit:
        return
    if not tarpit.excuses(peer_of(dialogue)):
        slow_down(dialogue, tarpit.seconds, f"{faults} errors and refused commands")
