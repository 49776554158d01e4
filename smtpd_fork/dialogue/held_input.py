"""HeldInput: what a client has sent and has not been acted on yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.framer import Framer

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.framer import Event

__all__ = ["forget_input", "framed", "hand_over", "keep", "next_event"]


def keep(dialogue: Dialogue, data: bytes) -> None:
    """Take what the client sends, and leave it for later."""
    if dialogue.state < State.LEAVING:
        framed(dialogue).feed(data)


def framed(dialogue: Dialogue) -> Framer:
    """Return what holds input that is not acted on yet."""
    if dialogue.framer is None:
        dialogue.framer = Framer(dialogue.shared.bare)
        if dialogue.body is not None:
            dialogue.framer.expect(dialogue.body)
            dialogue.body = None
    return dialogue.framer


def hand_over(dialogue: Dialogue) -> None:
    """Give a method that awaits it what was received, if it is complete."""
    waiter = dialogue.awaited
    if waiter is not None and not waiter.done() and dialogue.framer is not None:
        event = dialogue.framer.next()
        if event is not None:
            waiter.set_result(event)


async def next_event(dialogue: Dialogue) -> Event:
    """Return what the client sends next, a line or a message: for a method that is run."""
    dialogue.awaited = waiter = dialogue.host.new_waiter()
    try:
        hand_over(dialogue)
        dialogue.host.wait_for_client()
        event: Event = await waiter
    finally:
        dialogue.awaited = None
    return event


def forget_input(dialogue: Dialogue) -> None:
    """Act on nothing that has been received: a message that has begun is not to be."""
    if dialogue.reading is not None or dialogue.chunks is not None:
        dialogue.shared.tally.aborted += 1
    dialogue.framer = dialogue.body = dialogue.chunks = None
