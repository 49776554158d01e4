"""Strikes: counts errors, rejections and useless commands; above a limit the session ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.tarpit import delay_after_faults

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.replies import Text
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["count_error", "count_noop", "count_reject", "invalid_command"]

NOOPS = 50
"""Commands without effect between two messages; each further one counts as an error."""


def _end_for(dialogue: Dialogue, reason: str) -> bool:
    """End the session with 421 and the reason; return True."""
    if dialogue.state < State.LEAVING:
        text = f"{reason[0].upper()}{reason[1:]}, closing connection"
        dialogue.put(f"421 4.7.0 {dialogue.shared.hostname} {text}\r\n".encode())
    return True


def invalid_command(dialogue: Dialogue, text: Text) -> Result:
    """Reply to an invalid command, and count it as an error."""
    if not count_error(dialogue):
        dialogue.put(dialogue.encode(text), counted=False)
    return None


def count_error(dialogue: Dialogue) -> bool:
    """Count an error; return True if there were too many, which ends the session."""
    dialogue.errors += 1
    delay_after_faults(dialogue)
    return dialogue.errors > dialogue.shared.limits.errors and _end_for(dialogue, "too many errors")


def count_reject(dialogue: Dialogue) -> bool:
    """Count a rejected command; return True if there were too many, which ends the session."""
    dialogue.rejects += 1
    delay_after_faults(dialogue)
    return dialogue.rejects > dialogue.shared.limits.rejects and _end_for(
        dialogue, "too many refused commands"
    )


def count_noop(dialogue: Dialogue) -> None:
    """Count a command without effect; after NOOPS of them, each counts as an error."""
    dialogue.noops += 1
    if dialogue.noops > NOOPS:
        count_error(dialogue)
