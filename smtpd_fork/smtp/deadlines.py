"""Deadlines: what time a client has for what it does next, and what becomes of it afterwards."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.dialogue import memory
from smtpd_fork.dialogue.commands import State
from smtpd_fork.smtp import delays, ending
from smtpd_fork.smtp.status import DELAYED

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["expire", "stuck_since", "wait", "wait_for_client", "wait_for_command", "wait_for_next"]

PACE_SECONDS = 60.0
"""The shortest time over which the rate of a message is measured: neither a slow start nor a pause
is an attack. It is not measured over the whole message: a client that has sent much could stop for
long."""

COMMAND_SECONDS = 60.0
"""Time for a command from its first byte to its end, if ``--timeout`` is not shorter: nginx has
as much for all headers of a request (client_header_timeout). Postfix also gives a command one time,
not one for each read (smtpd_per_request_deadline)."""


def wait_for_next(connection: Connection) -> None:
    """Give the client its time for a command, or for a message of which nothing has come."""
    dialogue = connection.dialogue
    limits = dialogue.shared.limits
    connection.idle_since = now = connection.loop.time()
    if dialogue.body is None:
        connection.deadline = now + limits.command_seconds
    else:
        connection.deadline = now + limits.data_seconds
        connection.pace = dialogue.begun, now, 0


def wait(connection: Connection) -> None:
    """Give the client its time for what comes next, or for the rest of what has begun."""
    dialogue = connection.dialogue
    if dialogue.framer is None and dialogue.chunks is None:
        if dialogue.charged:
            memory.charge(dialogue)
        connection.command_began = 0.0
        wait_for_next(connection)
        return
    now, reading = connection.loop.time(), dialogue.reading
    if reading is not None:
        connection.idle_since = now
        connection.deadline = now + dialogue.shared.limits.data_seconds
        memory.charge(dialogue, reading)
        _see_pace(connection, now, reading.size)
    else:
        if dialogue.charged:
            memory.charge(dialogue)
        _wait_for_rest(connection, now)


def _wait_for_rest(connection: Connection, now: float) -> None:
    """Give the client its time for a chunk, or for a command that has begun."""
    dialogue = connection.dialogue
    limits = dialogue.shared.limits
    seconds = limits.command_seconds
    if connection.events != dialogue.events:
        connection.events = dialogue.events
        connection.command_began = 0.0
    if dialogue.chunks is not None:
        seconds = min(seconds, limits.data_seconds)
        _see_pace(connection, now, dialogue.chunks.size)
    if dialogue.framer is None or dialogue.framer.idle:
        connection.idle_since = now
        connection.deadline = now + seconds
    elif not connection.command_began:
        connection.command_began = connection.idle_since = now
        connection.deadline = now + min(seconds, COMMAND_SECONDS)


def wait_for_client(connection: Connection) -> None:
    """Give the client its time for what a method of the session waits for."""
    dialogue = connection.dialogue
    waiter = dialogue.awaited
    if waiter is None or waiter.done():
        return
    if connection.ended_input or dialogue.state >= State.LEAVING:
        dialogue.leave()  # so that it passes for the session's end, as it is
        waiter.cancel()
        return
    connection.resume_reading()
    if dialogue.reading is not None:
        wait(connection)


def wait_for_command(connection: Connection) -> None:
    """Give the client its time for one line: no byte of it gives more."""
    connection.idle_since = now = connection.loop.time()
    connection.deadline = now + connection.shared.limits.command_seconds


def _see_pace(connection: Connection, now: float, came: int) -> None:
    """End a session whose message has come too slowly, by what the last minute brought."""
    message, since, before = connection.pace
    if message != connection.dialogue.begun:
        connection.pace = connection.dialogue.begun, now, 0
        return
    seconds = now - since
    if seconds < PACE_SECONDS:
        return
    connection.pace = message, now, came
    if came - before < seconds * connection.shared.limits.data_rate:
        connection.dialogue.report(logging.INFO, "message data too slow")
        ending.time_out(connection)


def expire(connection: Connection, now: float) -> None:
    """Act on the deadline that has passed: that of what is awaited, or the whole session's."""
    dialogue = connection.dialogue
    leaves = dialogue.state >= State.LEAVING
    if connection.held & DELAYED and not leaves and connection.deadline <= now:
        delays.release(connection)
        return
    if connection.deadline > now and (
        leaves or (connection.work is not None and dialogue.awaited is None)
    ):
        return  # the session is to end, but its last reply, or a handler, still has time
    if leaves or connection.transport is None:
        connection.abort()
    elif connection.work is None or not connection.work.expire(now):
        ending.time_out(connection)


def stuck_since(connection: Connection) -> float:
    """Return since when a client has got no further; asked only while slots are short.

    Further is: TLS, a name, authentication, a sender, twice as many recipients, each of them once
    until a message is accepted.
    """
    dialogue = connection.dialogue
    session, envelope = dialogue.session, None
    if dialogue.state not in {State.HELLO, State.READY}:
        envelope = dialogue.envelope
    recipients = len(envelope.rcpt_tos) if envelope is not None else 0
    steps = (
        dialogue.messages,
        dialogue.tls
        + bool(session.host_name)
        + bool(session.authenticated)
        + bool(envelope is not None and envelope.mail_from)
        + recipients.bit_length(),
    )
    if steps > connection.steps:
        connection.steps = steps
        connection.stuck_at = connection.idle_since
    return connection.stuck_at
