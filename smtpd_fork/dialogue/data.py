"""DATA and BDAT: the message of a mail transaction, and what becomes of it."""

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
from smtpd_fork.dialogue.reply import answer_of, replies_of, sent, worst
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
            return dialogue.say(replies.BINARY_TAKES_BDAT)
        declared = int(envelope.mail_params.get("SIZE", 0))
    if (declared or dialogue.charged) and not memory.has_room(dialogue, declared):
        shared.tally.no_room += 1
        return dialogue.say(replies.NO_ROOM)
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
    """Begin to receive a chunk; it is accepted or refused at its end."""
    match = _BDAT.fullmatch(argument or "")
    if match is None or not match[0].isascii():
        # How much follows is not known, so nothing after it can be understood.
        dialogue.put(dialogue.say(replies.syntax("BDAT size [LAST]")))
        dialogue.leave(interrupting=True)
        return None
    size = int(match[1])
    if dialogue.chunks is None:
        dialogue.begun += 1
        dialogue.chunk_fault = dialogue.chunk_fault or _bdat_fault(dialogue)
        dialogue.chunks = _new_content(dialogue) if dialogue.chunk_fault is None else None
    chunk = Chunk(size, dialogue.chunks, last=match[2] is not None)
    if dialogue.chunks is not None and not _fits(dialogue, dialogue.chunks, size):
        dialogue.chunks.drop()  # it is read and judged all the same (RFC 3030 2)
        memory.charge(dialogue, chunk)
    if not chunk.left:
        return _received_chunk(dialogue, chunk)
    dialogue.framed().expect(chunk)
    dialogue.state = State.CHUNK
    return None


def _bdat_fault(dialogue: Dialogue) -> replies.Text | None:
    """Return why there may be no chunks now."""
    shared, session = dialogue.shared, dialogue.session
    if not shared.chunking:
        return replies.NOT_CHUNKING
    if shared.require_starttls and not dialogue.tls:
        return replies.STARTTLS_FIRST
    if shared.auth_required and not session.authenticated:
        return replies.NEEDS_AUTH
    return None if dialogue.envelope.rcpt_tos else replies.NEED_RCPT


def _new_content(dialogue: Dialogue) -> Content:
    """Return what collects the chunks; unless it is binary, it is made of lines."""
    shared = dialogue.shared
    envelope = dialogue.envelope
    binary = isinstance(envelope, Envelope) and envelope.body == "BINARYMIME"
    lines = (0, BareNewline.ACCEPT) if binary else (shared.longest_line, shared.bare)
    return Content(shared.data_size_limit or 0, *lines)


def _fits(dialogue: Dialogue, chunks: Content, size: int) -> bool:
    """Whether a message need not be refused for *size* octets more."""
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
        if fault is BodyFault.BARE:  # what is worse may come: that is said at the end
            fault = BodyFault.NO_ROOM if content.dropped else None
        if fault is None:
            return dialogue.say((250, "2.0.0", f"{chunk.declared} octets received"))
        dialogue.chunks = None
        dialogue.chunk_fault = replies.OF_FAULT[fault]
        _note_fault(dialogue, fault)
        if dialogue.charged:
            memory.charge(dialogue)
    assert dialogue.chunk_fault is not None
    refused = dialogue.say(dialogue.chunk_fault)
    if chunk.last:
        return _refuse_message(dialogue, refused)
    dialogue.place()
    return refused


# -- a message that has come -------------------------------------------------------------------


def received(dialogue: Dialogue, message: Body | Chunk) -> Result:
    """Act on a message, or a part of one, that is complete."""
    if dialogue.charged or message.size + dialogue.envelope_bytes > memory.ALLOWANCE:
        memory.charge(dialogue, message)
    if isinstance(message, Chunk):
        return _received_chunk(dialogue, message)
    dialogue.line = b"DATA"
    return _deliver(dialogue, message)


def _deliver(dialogue: Dialogue, content: Content) -> Result:
    """Hand a complete message to the handler, or refuse it."""
    fault = content.fault
    if fault is not None:
        _note_fault(dialogue, fault)
        return _refuse_message(dialogue, dialogue.say(replies.OF_FAULT[fault]))
    shared, envelope, original = dialogue.shared, dialogue.envelope, content.take()
    if (most := shared.limits.hops) and hop_count(original, most) > most:
        shared.tally.looping += 1
        return _refuse_message(dialogue, dialogue.say(replies.MAIL_LOOP))
    envelope.original_content = envelope.content = original
    if shared.decode_data:
        try:
            how = ("utf-8", "surrogateescape") if shared.enable_SMTPUTF8 else ("ascii",)
            envelope.content = original.decode(*how)
        except UnicodeDecodeError:
            shared.tally.malformed += 1
            return _refuse_message(dialogue, dialogue.say(replies.MESSAGE_NOT_ASCII))
    if "DATA" in shared.hooks:
        result: Result = Ask("DATA", (), partial(delivered, dialogue))
    elif hasattr(shared.handler, "process_message"):
        result = Run("process_message")
    else:
        return delivered(dialogue, MISSING)
    dialogue.state = State.DELIVERY
    dialogue.in_hand = True
    if dialogue.charged:
        memory.charge(dialogue)
    return result


def _note_fault(dialogue: Dialogue, fault: BodyFault) -> None:
    """Count a message that is refused for its content or size."""
    tally = dialogue.shared.tally
    if fault is BodyFault.TOO_MUCH:
        tally.too_big += 1
    elif fault is BodyFault.NO_ROOM:
        tally.no_room += 1
    else:
        tally.malformed += 1


def _refuse_message(dialogue: Dialogue, reply: bytes) -> Result:
    """Answer a message that was read to its end, and is not accepted: its transaction is over."""
    dialogue.in_hand = False
    _put_verdict(dialogue, [reply] * _replies_owed(dialogue))
    dialogue.reset()
    return None


def fail_message(dialogue: Dialogue, status: str) -> None:
    """Answer a message whose delivery has failed (RFC 5321 4.1.1.4)."""
    dialogue.shared.tally.failed += 1
    dialogue.by_handler = status != replies.LOCAL_ERROR
    _refuse_message(dialogue, sent(status))
    dialogue.by_handler = False


def delivered(dialogue: Dialogue, status: Any) -> Result:
    """Send the handler's reply to a message."""
    shared = dialogue.shared
    tally = shared.tally
    unclaimed = status is MISSING
    if unclaimed:
        status = replies.NO_SINK
    answers: list[str] = _per_recipient(dialogue, status) if shared.lmtp else [status]
    # Of several replies the best counts: some recipient has the message.
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
    dialogue.in_hand = False  # a subclass's smtp_DATA goes on
    dialogue.noops = 0
    usual = digit == "2" and len(answers) == 1  # it counts against no limit
    if not usual:
        _put_verdict(dialogue, [sent(answer) for answer in answers])
    dialogue.reset()
    return sent(answers[0]) if usual else None


def _put_verdict(dialogue: Dialogue, answers: Sequence[bytes]) -> None:
    """Add the replies to one message; several recipients' refusals of it count as one.

    None of them gives way to 421: some recipient may have the message.
    """
    for answer in answers:
        dialogue.put(answer, counted=False)
    if min(answers)[0] >= ord("4"):
        dialogue.count_reject()


def _per_recipient(dialogue: Dialogue, status: Any) -> list[str]:
    """Return a reply for each recipient (RFC 2033 4.2).

    A handler returns one for all, a list, or several in one text, as it would for aiosmtpd. Of a
    recipient that a handler made several addresses of, the list may have a reply for each of these:
    the worst of them is the recipient's.

    :raises TypeError: it returned something else, or another number of replies
    :raises ValueError: as TypeError
    """
    count, became = _replies_owed(dialogue), dialogue.became
    if isinstance(status, (list, tuple)):
        answers = list(status)
        if getattr(dialogue.envelope, "recipients_changed", False):
            return [worst([answer_of("DATA", answer) for answer in answers])] * count
    else:
        answers = list(replies_of(status)) if isinstance(status, str) else [status]
        if len(answers) == 1:
            answers *= count
    several = became and set(chain.from_iterable(became)) == set(range(len(answers)))
    if len(answers) != count and not several:
        raise TypeError(f"handle_DATA must return one reply, or {count}: not {len(answers)}")
    if MISSING in answers:
        raise TypeError("handle_DATA returned MISSING for some recipients")
    checked = [answer_of("DATA", answer) for answer in answers]
    return _by_recipient(checked, became) if several and became else checked


def _by_recipient(answers: list[str], became: list[Sequence[int]]) -> list[str]:
    """Return the worst of the replies to its addresses for each recipient.

    One without an address gets the worst of all: its addresses may be others' as well.
    """
    return [worst([answers[index] for index in indices] or answers) for indices in became]


def _replies_owed(dialogue: Dialogue) -> int:
    """Return how many replies the client expects to a message."""
    if not dialogue.shared.lmtp:
        return 1
    if "RCPT" in dialogue.shared.own:
        return len(dialogue.envelope.rcpt_tos) or 1
    # As many recipients as were accepted, whatever a handler has done to the envelope.
    return dialogue.accepted or 1
