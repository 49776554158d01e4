"""Kick: ends some of the sessions of a server, whatever they are doing."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from smtpd_fork.gate.verdict import kick_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.listeners import Listener
    from smtpd_fork.server.sessions import Sessions

__all__ = ["kick"]

A_TURN = 64
"""Sessions that are ended before the others have their turn: a few milliseconds."""


async def kick(
    gate: Gate,
    listeners: Collection[Listener],
    sessions: Sessions,
    chosen: Callable[[Ticket], bool],
    hostname: str,
) -> int:
    """End those who are *chosen*; return how many there were.

    A client that is idle, or in the middle of a message, is told 421 and closed; one that a handler
    works for hears its answer first; one that still waits for the greeting is told 421 as well. One
    in a TLS handshake, or that would have to begin with one, can be told nothing.

    :param listeners: of one server: a gate may be shared with others
    """
    doomed = (t for t in gate.tickets() if t.listener in listeners and chosen(t))
    count = 0
    while some := list(islice(doomed, A_TURN)):
        holders = {ticket.holder for ticket in some if not ticket.released}
        sessions.kick(holders, reply := kick_reply(hostname))
        for holder in holders:
            if holder is not None and holder not in sessions:
                holder.kick(reply)
        count += len(holders)
        await asyncio.sleep(0)
    return count
