"""BDAT: a message in chunks, without a final dot (RFC 3030)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiosmtpd.smtp import syntax

from smtpd_fork.smtp.body import Body
from smtpd_fork.smtp.content import BareNewline, BodyFault, Content
from smtpd_fork.smtp.envelope import Envelope
from smtpd_fork.smtp.framer import Chunk
from smtpd_fork.smtp.mail import FAULT_REPLIES, Mail

if TYPE_CHECKING:
    from smtpd_fork.smtp.work import Waiting

__all__ = ["Chunking"]

_BDAT = re.compile(r"(\d{1,12})(?: +(LAST))?", re.IGNORECASE)


class Chunking(Mail):
    """The command BDAT."""

    _chunk_is_last = False

    def _received(self, message: Body | Chunk) -> Waiting | None:
        """Take a message, or a part of one, that is complete."""
        if isinstance(message, Body):
            return super()._received(message)
        self._charge(message)
        return self._received_chunk(message)

    def _set_post_data_state(self) -> None:
        self._envelope = None
        if self._accepted:
            self._accepted = 0
        if self._chunks is not None or self._chunk_fault is not None:
            self._chunks = self._chunk_fault = None

    def _cmd_BDAT(self, arg: str | None) -> Waiting | None:
        match = _BDAT.fullmatch(arg or "")
        if match is None or not match[0].isascii():
            # How much follows is not known, so nothing after it can be understood.
            self._say(501, "5.5.4", "Syntax: BDAT size [LAST]")
            self._close(interrupting=True)
            return None
        size, self._chunk_is_last = int(match[1]), match[2] is not None
        if self._chunks is None:
            self._pace = self.loop.time(), 0
            self._chunk_fault = self._chunk_fault or self._bdat_fault()
            self._chunks = self._new_content() if self._chunk_fault is None else None
        chunk = Chunk(size, self._chunks)
        if self._chunks is not None and not self._fits(size):
            self._chunks.drop()  # it is read and judged all the same (RFC 3030 2)
            self._charge(chunk)
        if chunk.left:
            self._expect(chunk)
            return None
        return self._received_chunk(chunk)

    def _bdat_fault(self) -> tuple[int, str, str] | None:
        """Return why there may be no chunks now."""
        assert self.session is not None
        assert self.envelope is not None
        if not self._setup.chunking:
            return (503, "5.5.1", "Error: CHUNKING is not offered")
        if self.require_starttls and not self._tls_protocol:
            return (530, "5.7.0", "Must issue a STARTTLS command first")
        if self._auth_required and not self.session.authenticated:
            return (530, "5.7.0", "Authentication required")
        if not self.envelope.rcpt_tos:
            return (503, "5.5.1", "Error: need RCPT command")
        return None

    def _new_content(self) -> Content:
        """Return what collects the chunks; unless it is binary, it is made of lines."""
        limit = self.data_size_limit or 0
        if isinstance(self.envelope, Envelope) and self.envelope.body == "BINARYMIME":
            return Content(limit, 0, BareNewline.ACCEPT)
        return Content(limit, self._line_limit(), self._setup.bare)

    def _fits(self, size: int) -> bool:
        """Whether a message need not be refused for *size* octets more."""
        assert self._chunks is not None
        too_much = 0 < (self.data_size_limit or 0) < self._chunks.size + size
        return not too_much and self._has_room(size)

    def _received_chunk(self, chunk: Chunk) -> Waiting | None:
        content = self._chunks
        if content is not None:
            if self._chunk_is_last:
                self._chunks = None
                content.finish()
                return self._deliver(content)
            fault = content.fault
            if fault is BodyFault.BARE:  # what is worse may come: that is said at the end
                fault = BodyFault.NO_ROOM if content.dropped else None
            if fault is None:
                self._say(250, "2.0.0", f"{chunk.declared} octets received")
                return None
            self._chunks = None
            self._chunk_fault = FAULT_REPLIES[fault]
            self._note_fault(fault)
            if self._charged:
                self._charge()
        assert self._chunk_fault is not None
        if self._chunk_is_last:
            self._refuse_message(*self._chunk_fault)
        else:
            self._say(*self._chunk_fault)
        return None

    @syntax("BDAT size [LAST]")
    async def smtp_BDAT(self, arg: str | None) -> None:
        """Take a part of a message (RFC 3030)."""
        await self._settle(self._cmd_BDAT(arg))
