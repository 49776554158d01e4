"""Ending: the ways in which a session ends, whoever ends it."""

from __future__ import annotations

import logging

from smtpd_fork.gate.verdict import reply_line, shutdown_reply
from smtpd_fork.smtp.work import Work

__all__ = ["LINGER_SECONDS", "Ending"]

LINGER_SECONDS = 5.0
"""How long a closing connection may take to deliver its last reply; then it is cut."""

HEAR_OUT_SECONDS = 2.0
"""How long a client that was interrupted is listened to; it should have noticed by then."""


class Ending(Work):
    """A session that can end."""

    def _close(self, *, interrupting: bool = False) -> None:
        """Send what there is, and close; a client that does not take it is cut a little later.

        :param interrupting: the client does not know, and may be speaking
        """
        if self._closing:
            return
        self._flush()
        interrupting = interrupting or self._framer.pending > 0
        self._closing = True
        self._leave_rest()
        self._forget_input()
        if self.transport is not None:
            self.deadline = self.loop.time() + LINGER_SECONDS
            deaf = self._eof or self._tls_protocol is not None or self.transport.is_closing()
            if interrupting and not deaf:
                self._hear_out()
            else:
                self.transport.close()
        if self._task is None:
            self._set_rset_state()
            self._tell_ended()

    def _forget_input(self) -> None:
        """Act on nothing that has been received: a message that has begun is not to be."""
        if self._framer.reading is not None or self._chunks is not None:
            self._setup.tally.aborted += 1
            self._chunks = None
        self._framer.clear()

    def _hear_out(self) -> None:
        """Close for writing only, and forget what still comes, until the client has closed too.

        Closing at once while it speaks would be a reset, which takes the reply away from it.
        """
        self.deadline = self.loop.time() + HEAR_OUT_SECONDS
        if self._reading_paused:
            self.transport.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.abort()  # the client has reset it, and asyncio has yet to notice

    def abort(self) -> None:
        """Cut the connection; what is unsent is lost."""
        self._closing = True
        self._leave_rest()
        if self.transport is not None:
            self.transport.abort()

    def cut(self) -> None:
        """Cut the connection, and cancel whatever a handler has in hand."""
        if self._message_in_hand:
            self._setup.tally.aborted += 1
        self._message_in_hand = False
        self.abort()
        if self._task is not None:
            self._task.cancel()

    def shut_down(self) -> None:
        """Say 421 and close: at once if the client is idle, else after the command in hand."""
        self._shutting_down = True
        self._leave_rest()
        if self._shaking_hands:
            self.abort()
        elif (
            self._awaited_line is not None
            and not self._awaited_line.done()
            and self._framer.reading is None  # else a message in flight, which is finished
        ):
            self._put_raw(self._goodbye())  # instead of the challenge's answer
            self._close()
            self._awaited_line.cancel()
        elif self.transport is not None and self._task is None and not self._turn_pending:
            self._advance()

    def give_way(self, held: int) -> bool:
        """End, as memory is short and this session holds much of it without going on.

        :param held: how much, in bytes
        :returns: False if that cannot be: a handler works for it
        """
        if self._closing or (self._task is not None and self._awaited_line is None):
            return False
        text = "Insufficient system storage, closing connection"
        reply = reply_line(421, "4.3.1", self.hostname, text)
        self.make_room(reply, f"memory is short, it was idle and held {held} bytes")
        return True

    @property
    def kicked(self) -> bool:
        """Whether an administrator has ended it."""
        return bool(self._kicked)

    def _goodbye(self) -> bytes:
        return self._kicked or shutdown_reply(self.hostname)

    def kick(self, reply: bytes) -> None:
        """Say *reply* and close, also in the middle of a message or to a client that hears nothing.

        What a handler has in hand is finished and answered first: a message that it takes is
        neither lost nor sent twice. It has its own time for that (``handler_timeout``).
        """
        self._kicked = reply
        waits_for_client = self._blocked or self._framer.reading is not None
        waits_for_client = (
            waits_for_client and not self._message_in_hand and not self._shaking_hands
        )
        if self._task is None and not self._turn_pending:
            self._shutting_down = True
            self._leave_rest()
            self._take_leave()
        elif self._task is not None and waits_for_client and not self._closing:
            self._take_leave()
            self._task.cancel()
        else:
            self.shut_down()

    def make_room(self, reply: bytes, reason: str) -> None:
        """Say *reply* and close: other clients need what this one has and does nothing with."""
        self._report(logging.INFO, "ended to make room", reason)
        self._out.clear()
        self._put_raw(reply)
        self._close(interrupting=True)  # doing nothing may be to say NOOP
        if self._task is not None:
            self._task.cancel()

    def _take_leave(self) -> None:
        """End what an administrator has ended; the client may be speaking."""
        if self.transport is not None and not self._closing:
            self._put_raw(self._kicked)
            self._close(interrupting=True)
