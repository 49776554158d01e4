"""BDAT: a message in chunks, without a final dot (RFC 3030)."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from aiosmtpd.smtp import syntax

from smtpd_fork.smtp.body import BareNewline, Body, BodyFault, has_bare, normalized
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

    def _stored(self) -> int:
        return self._chunks.tell() if self._chunks is not None else 0

    def _set_post_data_state(self) -> None:
        self._envelope = None
        if self._chunks is not None or self._chunk_fault is not None:
            self._chunks = self._chunk_fault = None

    def _cmd_BDAT(self, arg: str | None) -> Waiting | None:
        match = _BDAT.fullmatch(arg or "")
        if match is None or not match[0].isascii():
            # How much follows is not known, so nothing after it can be understood.
            self._say(501, "5.5.4", "Syntax: BDAT size [LAST]")
            self._close(interrupting=True)
            return None
        fault = self._bdat_fault(int(match[1]))
        if self._chunk_fault is None and fault is not None:
            self._chunk_fault = fault
            self._count_chunk_fault(fault)
        self._chunk_is_last = match[2] is not None
        chunk = Chunk(int(match[1]), keep=self._chunk_fault is None)
        if chunk.left:
            self._expect(chunk)
            return None
        return self._received_chunk(chunk)

    def _bdat_fault(self, size: int) -> tuple[int, str, str] | None:
        """Return why a chunk is not wanted; it is read all the same (RFC 3030 2)."""
        assert self.session is not None
        assert self.envelope is not None
        if self.require_starttls and not self._tls_protocol:
            return (530, "5.7.0", "Must issue a STARTTLS command first")
        if self._auth_required and not self.session.authenticated:
            return (530, "5.7.0", "Authentication required")
        if not self.envelope.rcpt_tos:
            return (503, "5.5.1", "Error: need RCPT command")
        if self.data_size_limit and self._stored() + size > self.data_size_limit:
            return FAULT_REPLIES[BodyFault.TOO_MUCH]
        if self._setup.budget.spent:
            return FAULT_REPLIES[BodyFault.NO_ROOM]
        return None

    def _count_chunk_fault(self, fault: tuple[int, str, str]) -> None:
        """Count a message of which a chunk is the first that is not wanted; once."""
        for kind in (BodyFault.TOO_MUCH, BodyFault.NO_ROOM):
            if fault == FAULT_REPLIES[kind]:
                self._count_fault(kind)

    def _received_chunk(self, chunk: Chunk) -> Waiting | None:
        if chunk.dropped and self._chunk_fault is None:
            self._chunk_fault = FAULT_REPLIES[BodyFault.NO_ROOM]
            self._count_chunk_fault(self._chunk_fault)
        if self._chunk_fault is not None:
            fault = self._chunk_fault
            self._chunks = None
            self._release_budget()
            if self._chunk_is_last:
                self._set_rset_state()
            self._say(*fault)
            return None
        if self._chunks is None:
            self._chunks = io.BytesIO()
        self._chunks.write(chunk.data)
        if not self._chunk_is_last:
            self._say(250, "2.0.0", f"{chunk.size} octets received")
            return None
        content = self._chunks.getvalue()
        self._chunks = None
        return self._whole(content)

    def _whole(self, content: bytes) -> Waiting | None:
        """Have what all chunks make delivered; unless it is binary, it is made of lines."""
        assert self.envelope is not None
        binary = isinstance(self.envelope, Envelope) and self.envelope.body == "BINARYMIME"
        if not binary and self._setup.bare is BareNewline.NORMALIZE:
            content = normalized(content)
        elif not binary and self._setup.bare is BareNewline.REJECT and has_bare(content):
            self._count_fault(BodyFault.BARE)
            self._refuse_message(*FAULT_REPLIES[BodyFault.BARE])
            return None
        return self._content(content)

    @syntax("BDAT size [LAST]")
    async def smtp_BDAT(self, arg: str | None) -> None:
        """Take a part of a message (RFC 3030)."""
        await self._settle(self._cmd_BDAT(arg))
