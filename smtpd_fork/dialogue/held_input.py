"""HeldInput: stores input that was received, but not processed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.framer import Framer

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.framer import Event

__all__ = ["forget_input", "framed", "keep", "next_event", "pass_event"]


def keep(dialogue: Dialogue, data: bytes) -> None:
    """Store input for later."""
    if dialogue.state < State.LEAVING:
        framed(dialogue).feed(data)


def framed(dialogue: Dialogue) -> Framer:
    """Return the framer with the stored input; create it if necessary."""
    if dialogue.framer is None:
        dialogue.framer = Framer(dialogue.shared.bare)
        if dialogue.body is not None:
            dialogue.framer.expect(dialogue.body)
            dialogue.body = None
    return dialogue.framer


def pass_event(dialogue: Dialogue) -> None:
    """Pass the next event to the method that awaits it, if the event is complete."""
    waiter = dialogue.awaited
    if waiter is not None and not waiter.done() and dialogue.framer is not None:
        event = dialogue.framer.next()
        if event is not None:
            waiter.set_result(event)


async def next_event(dialogue: Dialogue) -> Event:
    """Return the next event, a line or a message, to a method that runs."""
    dialogue.awaited = waiter = dialogue.host.new_waiter()
    try:
        pass_event(dialogue)
        dialogue.host.wait_for_client()
        event: Event = await waiter
    finally:
        dialogue.awaited = None
    return event


def forget_input(dialogue: Dialogue) -> None:
    """Drop all stored input; a message that has begun is counted as aborted."""
    if dialogue.reading is not None or dialogue.chunks is not None:
        dialogue.shared.tally.aborted += 1
    dialogue.framer = dialogue.body = dialogue.chunks = None
