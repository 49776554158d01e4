"""Short: the short way from bytes to a reply, for what mostly comes.

A session is *at rest* when nothing is under way and nothing is pending: no task, no batch half
answered, no partial line, no stop announced. A packet that then holds nothing but flawless frequent
commands is answered here, and so is one that holds the whole of a message after DATA. Everything
else takes the long way, by the framer and :meth:`Engine._advance`, which leads to the same replies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.smtp.body import Body
from smtpd_fork.smtp.engine import EVENTS_A_TURN
from smtpd_fork.smtp.frequent import HELLO, LONGEST, MAIL, RCPT, frequent
from smtpd_fork.smtp.params import parse_params
from smtpd_fork.smtp.proxy import Proxied

if TYPE_CHECKING:
    import re

    from smtpd_fork.smtp.work import Waiting

__all__ = ["Short"]


class Short(Proxied):
    """A session with a short way."""

    def _may_rest(self) -> bool:
        return bool(
            self._setup.all_fast
            and not self._loud
            and (not self.require_starttls or self._tls_protocol)
            and self._tls_handshake_okay
            and self.command_size_limit >= LONGEST
            and not self.local_part_limit
            and self._proxy_reader is None
        )

    def _short(self, data: bytes) -> bytes:
        rest = self._whole_message(data) if self._body is not None else self._commands(data)
        if not rest:
            self._flush()
            if self._eof or self._shutting_down:
                self._advance()  # by a hook's doing
            elif self._task is None and not self._closing:
                self._await_client()
        return rest

    def _await_client(self) -> None:
        """Give the client its time for what comes next."""
        limits = self._setup.limits
        seconds = limits.command_seconds if self._at_rest else limits.data_seconds
        self.idle_since = now = self.loop.time()
        deadline = now + seconds
        self.deadline = min(self._ends_at, deadline)

    def _whole_message(self, data: bytes) -> bytes:
        """Take a message that came in one packet; return *data* if it is not that."""
        body, self._body = self._body, None
        assert body is not None
        if not body.take_whole(data):
            return data
        self._framer.clear()
        try:
            waiting = self._received(body)
        except Exception as error:  # noqa: BLE001 - logged and answered there
            waiting = self._fail(error)
        if waiting is not None:
            self._start(waiting)
        elif not self._closing:
            self._at_rest = True
        return b""

    def _commands(self, data: bytes) -> bytes:
        """Act on the frequent commands that *data* begins with; return what follows them."""
        position = turn = 0
        match = frequent(data)
        while match is not None and turn < EVENTS_A_TURN:
            end = match.end()
            if end - position > LONGEST or not self._has_its_place(match):
                break
            turn += 1
            position = end
            try:
                waiting = self._frequent(match)
            except Exception as error:  # noqa: BLE001 - logged and answered there
                waiting = self._fail(error)
            if waiting is not None:
                self._start(waiting)
            if end == len(data) or not self._at_rest:
                break
            match = frequent(data, end)
        if position < len(data):
            return data[position:]
        reading = self._framer.reading
        if type(reading) is Body:
            self._body = reading
        return b""

    def _has_its_place(self, match: re.Match[bytes]) -> bool:
        """Whether a command comes when it should; who refuses it is on the long way."""
        kind = match.lastindex
        if kind == RCPT:
            return self._envelope is not None and bool(self._envelope.mail_from)
        if kind == MAIL:
            session = self.session
            assert session is not None
            return bool(
                session.host_name
                and (not self._auth_required or session.authenticated)
                and (not match[2] or session.extended_smtp)
            )
        return True

    def _frequent(self, match: re.Match[bytes]) -> Waiting | None:
        """Act on a frequent command."""
        kind = match.lastindex
        if kind == RCPT:
            return self._recipient(match[3].decode("ascii"), {})
        if kind == MAIL:
            params = match[2].decode("ascii")
            return self._sender(
                match[1].decode("ascii"), (parse_params(params) or {}) if params else {}
            )
        if kind == HELLO:
            return self._setup.fast[match[5]](self, match[6].decode("ascii"))  # type: ignore[no-any-return]
        return self._setup.fast[match[4]](self, None)  # type: ignore[no-any-return]
