"""Deadlines: set the time for the client's next step, and handle its expiry."""

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

RATE_SECONDS = 60.0
"""Seconds over which the rate of a message is measured, at least: a slow start or a pause is not an
attack. The rate is not measured over the whole message, as a client that has sent much could
then pause for long."""

COMMAND_SECONDS = 60.0
"""Time for a command from its first byte to its end, unless ``--timeout`` is shorter. nginx has the
same limit for all headers of a request (client_header_timeout). Postfix also limits a whole
command instead of each read (smtpd_per_request_deadline)."""


def wait_for_next(connection: Connection) -> None:
    """Set the deadline of the next command, or of a message before its first byte."""
    dialogue = connection.dialogue
    limits = dialogue.shared.limits
    connection.idle_since = now = connection.loop.time()
    if dialogue.body is None:
        connection.deadline = now + limits.command_seconds
    else:
        connection.deadline = now + limits.data_seconds
        connection.rate_state = dialogue.begun, now, 0


def wait(connection: Connection) -> None:
    """Set the deadline of the next input, or of the rest of incomplete input."""
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
        _check_rate(connection, now, reading.size)
    else:
        if dialogue.charged:
            memory.charge(dialogue)
        _wait_for_rest(connection, now)


def _wait_for_rest(connection: Connection, now: float) -> None:
    """Set the deadline of a chunk, or of an incomplete command."""
    dialogue = connection.dialogue
    limits = dialogue.shared.limits
    seconds = limits.command_seconds
    if connection.events != dialogue.events:
        connection.events = dialogue.events
        connection.command_began = 0.0
    if dialogue.chunks is not None:
        seconds = min(seconds, limits.data_seconds)
        _check_rate(connection, now, dialogue.chunks.size)
    if dialogue.framer is None or dialogue.framer.idle:
        connection.idle_since = now
        connection.deadline = now + seconds
    elif not connection.command_began:
        connection.command_began = connection.idle_since = now
        connection.deadline = now + min(seconds, COMMAND_SECONDS)


def wait_for_client(connection: Connection) -> None:
    """Set the deadline of the input that a method of the session awaits."""
    dialogue = connection.dialogue
    waiter = dialogue.awaited
    if waiter is None or waiter.done():
        return
    if connection.ended_input or dialogue.state >= State.LEAVING:
        dialogue.leave()  # before cancel(), which is then taken for the end of the session
        waiter.cancel()
        return
    connection.resume_reading()
    if dialogue.reading is not None:
        wait(connection)


def wait_for_command(connection: Connection) -> None:
    """Set the deadline of one line; its bytes do not extend it."""
    connection.idle_since = now = connection.loop.time()
    connection.deadline = now + connection.shared.limits.command_seconds


def _check_rate(connection: Connection, now: float, received: int) -> None:
    """End the session if the data rate of the last minute was too low."""
    message, since, before = connection.rate_state
    if message != connection.dialogue.begun:
        connection.rate_state = connection.dialogue.begun, now, 0
        return
    seconds = now - since
    if seconds < RATE_SECONDS:
        return
    connection.rate_state = message, now, received
    if received - before < seconds * connection.shared.limits.data_rate:
        connection.dialogue.report(logging.INFO, "message data too slow")
        ending.time_out(connection)


def expire(connection: Connection, now: float) -> None:
    """Handle an expired deadline: that of the current step, or that of the session."""
    dialogue = connection.dialogue
    leaves = dialogue.state >= State.LEAVING
    if connection.held & DELAYED and not leaves and connection.deadline <= now:
        delays.release(connection)
        return
    if connection.deadline > now and (
        leaves or (connection.work is not None and dialogue.awaited is None)
    ):
        return  # the session must end, but its last reply, or a handler, still has time
    if leaves or connection.transport is None:
        connection.abort()
    elif connection.work is None or not connection.work.expire(now):
        ending.time_out(connection)


def stuck_since(connection: Connection) -> float:
    """Return the time of the client's last progress; used only while few slots are free.

    Progress is: TLS, a host name, authentication, a sender, twice as many recipients; each of them
    once until a message is accepted.
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
