"""DATA and BDAT: receive the message of a mail transaction, and send the replies to it."""

from __future__ import annotations

import re
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import memory, replies
from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.content import BareNewline, BodyFault, Content
from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.framer import Chunk
from smtpd_fork.dialogue.hop_count import hop_count
from smtpd_fork.dialogue.reply import answer_of, replies_of, reply_bytes, worst
from smtpd_fork.dialogue.waiting import Ask, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["bdat", "data", "delivered", "fail_message", "received"]

_BDAT = re.compile(r"(\d{1,12})(?: +(LAST))?", re.IGNORECASE)


def data(dialogue: Dialogue) -> Result:
    """Begin to receive the message (RFC 5321 4.1.1.4)."""
    shared = dialogue.shared
    envelope, declared = dialogue.envelope, 0
    if isinstance(envelope, Envelope):
        if envelope.body == "BINARYMIME":
            return dialogue.encode(replies.BINARY_TAKES_BDAT)
        declared = int(envelope.mail_params.get("SIZE", 0))
    if (declared or dialogue.charged) and not memory.has_room(dialogue, declared):
        shared.tally.no_room += 1
        return dialogue.encode(replies.NO_ROOM)
    body = Body(shared.data_size_limit or 0, shared.longest_line, shared.bare)
    if dialogue.framer is None:
        dialogue.body = body
    else:
        dialogue.framer.expect(body)
    dialogue.begun += 1
    dialogue.state = State.DATA
    return replies.SEND_MESSAGE


# -- BDAT (RFC 3030) ---------------------------------------------------------------------------


def bdat(dialogue: Dialogue, argument: str | None) -> Result:
    """Begin to receive a chunk; the reply follows after it."""
    match = _BDAT.fullmatch(argument or "")
    if match is None or not match[0].isascii():
        # The size of the chunk is unknown, so that no later command can be found.
        dialogue.put(dialogue.encode(replies.syntax("BDAT size [LAST]")))
        dialogue.leave(interrupting=True)
        return None
    size = int(match[1])
    if dialogue.chunks is None:
        dialogue.begun += 1
        dialogue.chunk_fault = dialogue.chunk_fault or _bdat_fault(dialogue)
        dialogue.chunks = _new_content(dialogue) if dialogue.chunk_fault is None else None
    chunk = Chunk(size, dialogue.chunks, last=match[2] is not None)
    if dialogue.chunks is not None and not _fits(dialogue, dialogue.chunks, size):
        dialogue.chunks.drop()  # the chunk is still read and checked (RFC 3030 2)
        memory.charge(dialogue, chunk)
    if not chunk.left:
        return _received_chunk(dialogue, chunk)
    dialogue.framed().expect(chunk)
    dialogue.state = State.CHUNK
    return None


def _bdat_fault(dialogue: Dialogue) -> replies.Text | None:
    """Return the reply if a chunk is not allowed now, or None."""
    shared, session = dialogue.shared, dialogue.session
    if not shared.chunking:
        return replies.NOT_CHUNKING
    if shared.require_starttls and not dialogue.tls:
        return replies.STARTTLS_FIRST
    if shared.auth_required and not session.authenticated:
        return replies.NEEDS_AUTH
    return None if dialogue.envelope.rcpt_tos else replies.NEED_RCPT


def _new_content(dialogue: Dialogue) -> Content:
    """Return the object that collects the chunks; only binary content has no lines."""
    shared = dialogue.shared
    envelope = dialogue.envelope
    binary = isinstance(envelope, Envelope) and envelope.body == "BINARYMIME"
    lines = (0, BareNewline.ACCEPT) if binary else (shared.longest_line, shared.bare)
    return Content(shared.data_size_limit or 0, *lines)


def _fits(dialogue: Dialogue, chunks: Content, size: int) -> bool:
    """Return whether *size* octets more fit in the limits of size and memory."""
    too_much = 0 < (dialogue.shared.data_size_limit or 0) < chunks.size + size
    return not too_much and memory.has_room(dialogue, size)


def _received_chunk(dialogue: Dialogue, chunk: Chunk) -> Result:
    content = dialogue.chunks
    dialogue.state = State.CHUNKS
    if content is not None:
        if chunk.last:
            dialogue.chunks = None
            content.finish()
            return _deliver(dialogue, content)
        fault = content.fault
        if fault is BodyFault.BARE:  # a later error has priority, so this one is sent at the end
            fault = BodyFault.NO_ROOM if content.dropped else None
        if fault is None:
            return dialogue.encode((250, "2.0.0", f"{chunk.declared} octets received"))
        dialogue.chunks = None
        dialogue.chunk_fault = replies.BODY_FAULT_REPLIES[fault]
        _note_fault(dialogue, fault)
        if dialogue.charged:
            memory.charge(dialogue)
    assert dialogue.chunk_fault is not None
    refused = dialogue.encode(dialogue.chunk_fault)
    if chunk.last:
        return _refuse_message(dialogue, refused)
    dialogue.update_state()
    return refused


# -- complete messages -------------------------------------------------------------------------


def received(dialogue: Dialogue, message: Body | Chunk) -> Result:
    """Process a complete message or chunk."""
    if dialogue.charged or message.size + dialogue.envelope_bytes > memory.ALLOWANCE:
        memory.charge(dialogue, message)
    if isinstance(message, Chunk):
        return _received_chunk(dialogue, message)
    dialogue.line = b"DATA"
    return _deliver(dialogue, message)


def _deliver(dialogue: Dialogue, content: Content) -> Result:
    """Pass a complete message to the handler, or reject it."""
    fault = content.fault
    if fault is not None:
        _note_fault(dialogue, fault)
        return _refuse_message(dialogue, dialogue.encode(replies.BODY_FAULT_REPLIES[fault]))
    shared, envelope, original = dialogue.shared, dialogue.envelope, content.take()
    if (limit := shared.limits.hops) and hop_count(original, limit) > limit:
        shared.tally.looping += 1
        return _refuse_message(dialogue, dialogue.encode(replies.MAIL_LOOP))
    envelope.original_content = envelope.content = original
    if shared.decode_data:
        try:
            how = ("utf-8", "surrogateescape") if shared.enable_SMTPUTF8 else ("ascii",)
            envelope.content = original.decode(*how)
        except UnicodeDecodeError:
            shared.tally.malformed += 1
            return _refuse_message(dialogue, dialogue.encode(replies.MESSAGE_NOT_ASCII))
    if "DATA" in shared.hooks:
        result: Result = Ask("DATA", (), partial(delivered, dialogue))
    elif hasattr(shared.handler, "process_message"):
        result = Run("process_message")
    else:
        return delivered(dialogue, MISSING)
    dialogue.state = State.DELIVERY
    dialogue.handler_busy = True
    if dialogue.charged:
        memory.charge(dialogue)
    return result


def _note_fault(dialogue: Dialogue, fault: BodyFault) -> None:
    """Count a message that is rejected for its content or size."""
    tally = dialogue.shared.tally
    if fault is BodyFault.TOO_MUCH:
        tally.too_big += 1
    elif fault is BodyFault.NO_ROOM:
        tally.no_room += 1
    else:
        tally.malformed += 1


def _refuse_message(dialogue: Dialogue, reply: bytes) -> Result:
    """Reject a message that was read to its end, and end its transaction."""
    dialogue.handler_busy = False
    _put_replies(dialogue, [reply] * _expected_replies(dialogue))
    dialogue.reset()
    return None


def fail_message(dialogue: Dialogue, status: str) -> None:
    """Send the reply to a message whose delivery has failed (RFC 5321 4.1.1.4)."""
    dialogue.shared.tally.failed += 1
    dialogue.by_handler = status != replies.LOCAL_ERROR
    _refuse_message(dialogue, reply_bytes(status))
    dialogue.by_handler = False


def delivered(dialogue: Dialogue, status: Any) -> Result:
    """Send the handler's reply to a message."""
    shared = dialogue.shared
    tally = shared.tally
    unclaimed = status is MISSING
    if unclaimed:
        status = replies.NO_SINK
    answers: list[str] = _per_recipient(dialogue, status) if shared.lmtp else [status]
    # Of several replies, the best is counted, as that recipient has the message.
    digit = min(answers)[0] if shared.lmtp else status[0]
    if unclaimed:
        tally.unclaimed += 1
    elif digit == "2":
        tally.accepted += 1
        tally.content += len(dialogue.envelope.original_content or b"")
        dialogue.messages += 1
    elif digit == "5":
        tally.rejected += 1
    else:
        tally.deferred += 1
    dialogue.handler_busy = False  # a subclass's smtp_DATA may continue
    dialogue.noops = 0
    usual = digit == "2" and len(answers) == 1  # no limit applies to this reply
    if not usual:
        _put_replies(dialogue, [reply_bytes(answer) for answer in answers])
    dialogue.reset()
    return reply_bytes(answers[0]) if usual else None


def _put_replies(dialogue: Dialogue, answers: Sequence[bytes]) -> None:
    """Add the replies to one message; several rejections are counted as one.

    They are not replaced by 421, as some recipient may have the message.
    """
    for answer in answers:
        dialogue.put(answer, counted=False)
    if min(answers)[0] >= ord("4"):
        dialogue.count_reject()


def _per_recipient(dialogue: Dialogue, status: Any) -> list[str]:
    """Return a reply for each recipient (RFC 2033 4.2).

    A handler returns one reply for all recipients, a list, or several replies in one text, as for
    aiosmtpd. If a handler has replaced a recipient by several addresses, the list may have a reply
    for each address; the recipient gets the worst of them.

    :raises TypeError: the result is none of these, or has another number of replies
    :raises ValueError: as TypeError
    """
    count, addresses = _expected_replies(dialogue), dialogue.address_indices
    if isinstance(status, (list, tuple)):
        answers = list(status)
        if getattr(dialogue.envelope, "recipients_changed", False):
            return [worst([answer_of("DATA", answer) for answer in answers])] * count
    else:
        answers = list(replies_of(status)) if isinstance(status, str) else [status]
        if len(answers) == 1:
            answers *= count
    several = addresses and set(chain.from_iterable(addresses)) == set(range(len(answers)))
    if len(answers) != count and not several:
        raise TypeError(f"handle_DATA must return one reply, or {count}: not {len(answers)}")
    if MISSING in answers:
        raise TypeError("handle_DATA returned MISSING for some recipients")
    checked = [answer_of("DATA", answer) for answer in answers]
    return _by_recipient(checked, addresses) if several and addresses else checked


def _by_recipient(answers: list[str], addresses: list[Sequence[int]]) -> list[str]:
    """Return for each recipient the worst reply to its addresses.

    A recipient without addresses gets the worst of all replies, as its addresses may be those of
    other recipients as well.
    """
    return [worst([answers[index] for index in indices] or answers) for indices in addresses]


def _expected_replies(dialogue: Dialogue) -> int:
    """Return the number of replies that the client expects to a message."""
    if not dialogue.shared.lmtp:
        return 1
    if "RCPT" in dialogue.shared.subclass_commands:
        return len(dialogue.envelope.rcpt_tos) or 1
    # The number of accepted recipients, even if a handler has changed the envelope.
    return dialogue.accepted or 1
