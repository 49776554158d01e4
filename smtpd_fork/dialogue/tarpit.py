"""Tarpit: delays each reply to certain clients.

Replies are delayed if the client makes errors (as with Postfix's smtpd_error_sleep_time), if the
server suspects the client from the start, or if a handler has set ``session.tarpit``. A delayed
reply needs a deadline, but no task. As the session occupies a connection slot meanwhile, the number
of delayed sessions is limited; other sessions get their replies at once.
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
"""Errors and rejected commands of a session before replies are delayed; Postfix's
smtpd_soft_error_limit."""

MOST = 100
"""Maximum of delayed sessions if a session has no server that sets it."""


class Tarpit:
    """The state of the tarpit that all sessions of a server share.

    :param seconds: the delay for clients that make errors; 0: no delay
    :ivar waiting: number of sessions with a delayed reply
    """

    __slots__ = ("seconds", "waiting")

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.waiting = 0

    def capacity(self) -> int:
        """Return the maximum of sessions with a delayed reply."""
        return MOST

    def exempts(self, peer: Peer) -> bool:
        """Return whether a client is exempt from delays for errors."""
        return False

    @property
    def has_room(self) -> bool:
        """Whether another reply may be delayed."""
        return self.waiting < self.capacity()


def slow_down(dialogue: Dialogue, seconds: Any, reason: str) -> None:
    """Delay each reply from now on; a handler may end that again.

    :param seconds: at most 60; 0, or a value that is not a number, ends the delay
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
    """Delay the replies to a client that makes many errors."""
    tarpit, faults = dialogue.shared.tarpit, dialogue.errors + dialogue.rejects
    if not tarpit.seconds or faults != FAULTS + 1 or dialogue.tarpit:
        return
    if not tarpit.exempts(peer_of(dialogue)):
        slow_down(dialogue, tarpit.seconds, f"{faults} errors and refused commands")
