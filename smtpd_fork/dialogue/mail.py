"""MAIL and RCPT: the envelope of a mail transaction.

A command is a function. It returns its reply, or the operation to wait for, or None if it has added
the reply itself. The table of commands states in which states it is allowed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import memory, replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.envelope import Envelope, recipient_memory
from smtpd_fork.dialogue.notes import forget_notes
from smtpd_fork.dialogue.params import Params, invalid_value, parse_params
from smtpd_fork.dialogue.path import NULL, parse_path
from smtpd_fork.dialogue.reply import reply_bytes
from smtpd_fork.dialogue.waiting import Ask

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

_MAIL_PARAMS = {"AUTH", "BODY", "SIZE", "SMTPUTF8"}
_MAIL_PARAMS_OF_DSN = {"ENVID", "RET"}
_RCPT_PARAMS_OF_DSN = {"NOTIFY", "ORCPT"}
_SENDER, _RECIPIENT = State.SENDER, State.RECIPIENT
_BODIES = ("7BIT", "8BITMIME", "BINARYMIME")

OVERSHOOT = 1000
"""Recipients above the limit of a message, in one session, whose rejection is not counted:
Postfix's smtpd_recipient_overshoot_limit. The client sends the message to them later (RFC 5321
4.5.3.1.10); with 421, no recipient would get the message."""


def _parse_argument(
    dialogue: Dialogue, keyword: str, argument: str | None, usage: str, *, malformed: str
) -> tuple[str, Params] | bytes:
    """Return address and parameters of MAIL or RCPT, or the reply to a malformed argument.

    :param keyword: ``FROM:`` or ``TO:``
    :param usage: the syntax, for the reply
    :param malformed: the enhanced status code for a malformed address
    """
    extended, strict = dialogue.session.extended_smtp, dialogue.shared.strict_paths
    bad_syntax = replies.syntax(f"{usage} [SP <mail-parameters>]" if extended else usage)
    keyed = argument is not None and argument[: len(keyword)].upper() == keyword
    text = argument[len(keyword) :].lstrip(" " if strict else " \t") if keyed and argument else ""
    parsed = parse_path(text, strict=strict, postmaster=keyword == "TO:")
    if not text or (parsed is None and text[0] != "<" and "<" in text):
        return dialogue.encode(bad_syntax)  # text before the address, such as a display name
    longest = dialogue.shared.local_part_limit
    if parsed is None or 0 < longest < len(parsed[0].rpartition("@")[0]):
        # Without enhanced status codes, the reply is that of aiosmtpd, which has one nevertheless.
        status = malformed if dialogue.shared.enhanced else "5.1.3"
        return f"553 {status} Error: malformed address\r\n".encode()
    address, rest = parsed
    if not rest:
        return address, {}
    if not strict:
        rest = rest.replace("\t", " ")
    params = parse_params(rest) if extended else None
    return dialogue.encode(bad_syntax) if params is None else (address, params)


# -- MAIL --------------------------------------------------------------------------------------


def parse_mail(dialogue: Dialogue, argument: str | None) -> tuple[str, Params] | bytes:
    """Return the sender and the parameters."""
    return _parse_argument(dialogue, "FROM:", argument, "MAIL FROM: <address>", malformed="5.1.7")


def mail(dialogue: Dialogue, address: str, params: Params) -> Result:
    """Begin a transaction (RFC 5321 4.1.1.2)."""
    if dialogue.transaction is not None:  # perhaps of a rejected MAIL
        forget_notes(dialogue.transaction)
        dialogue.transaction.queue_id = None  # type: ignore[attr-defined]  # see Envelope
    shared, envelope = dialogue.shared, dialogue.envelope
    dialogue.accepted, dialogue.address_indices = 0, None
    dialogue.chunk_fault = None  # of an earlier message
    if params or not address.isascii():
        refused = _mail_refused(dialogue, address, params)
        if refused is not None:
            return refused
    if params or "MAIL" in shared.hooks:
        _note_mail_params(envelope, params)
    if "MAIL" in shared.hooks:
        options = _upper_words(params)
        then = partial(_take_sender, dialogue, address, options)
        return Ask("MAIL", (address, options), then)
    if params:
        envelope.mail_options.extend(_upper_words(params))
    envelope.mail_from = address
    dialogue.state = _SENDER
    return shared.sender_ok


def _take_sender(dialogue: Dialogue, address: str, options: list[str], status: Any) -> Result:
    """Process a handler's answer to MAIL: on MISSING, begin the transaction."""
    if status is not MISSING:
        return reply_bytes(status)
    dialogue.envelope.mail_from = address
    dialogue.envelope.mail_options.extend(options)
    return dialogue.shared.sender_ok


def _mail_refused(dialogue: Dialogue, address: str, params: Params) -> bytes | None:
    """Return the reply if MAIL has an invalid or unavailable parameter, or None."""
    shared = dialogue.shared
    bodies = _BODIES if shared.binarymime else _BODIES[:2]
    body = str(params.get("BODY", "7BIT")).upper()
    text = None
    if "BODY" in params and not shared.decode_data and body not in bodies:
        text = (501, "5.5.4", f"Error: BODY can only be one of {', '.join(bodies)}")
    elif params.get("SMTPUTF8", True) is not True:
        text = replies.SMTPUTF8_ARGUMENT
    elif "SMTPUTF8" in params and not shared.enable_SMTPUTF8:
        text = replies.SMTPUTF8_DISABLED
    elif (refused := _size_refused(dialogue, params.get("SIZE"))) is not None:
        text = refused
    elif _unknown(dialogue, params, _MAIL_PARAMS_OF_DSN) - _MAIL_PARAMS or (
        shared.decode_data and "BODY" in params
    ):
        text = replies.MAIL_PARAMETERS
    elif (fault := invalid_value(params)) is not None:
        text = (501, "5.5.4", f"Error: {fault} has no such value")
    elif not _is_allowed(dialogue, address, smtputf8="SMTPUTF8" in params):
        text = replies.TAKES_SMTPUTF8
    return None if text is None else dialogue.encode(text)


def _unknown(dialogue: Dialogue, params: Params, of_dsn: set[str]) -> set[str]:
    """Return the names of *params*, without those of DSN if it is offered (RFC 3461 4)."""
    return params.keys() - of_dsn if dialogue.shared.dsn else set(params)


def _size_refused(dialogue: Dialogue, size: str | bool | None) -> replies.Text | None:
    """Return the reply to an invalid or too large SIZE, or None (RFC 1870 6)."""
    if size is None:
        return None
    if not isinstance(size, str) or not size.isdigit() or not size.isascii():
        return replies.syntax("MAIL FROM: <address> [SP <mail-parameters>]")
    limit = dialogue.shared.data_size_limit
    if limit and (len(size) > 20 or int(size) > limit):  # noqa: PLR2004 - RFC 1870 4
        dialogue.shared.tally.too_big += 1
        return replies.DECLARED_TOO_MUCH
    return None


def _is_allowed(dialogue: Dialogue, address: str, *, smtputf8: bool) -> bool:
    """Return whether an address is allowed: outside ASCII it requires SMTPUTF8 (RFC 6531 3.4)."""
    return smtputf8 or address.isascii() or dialogue.shared.decode_data


def _note_mail_params(envelope: Any, params: Params) -> None:
    envelope.smtp_utf8 = "SMTPUTF8" in params
    if isinstance(envelope, Envelope):
        envelope.mail_params = params
        envelope.body = str(params.get("BODY", "7BIT")).upper()


# -- RCPT --------------------------------------------------------------------------------------


def parse_rcpt(dialogue: Dialogue, argument: str | None) -> tuple[str, Params] | bytes:
    """Return the recipient and the parameters."""
    parsed = _parse_argument(dialogue, "TO:", argument, "RCPT TO: <address>", malformed="5.1.3")
    if isinstance(parsed, bytes):
        return parsed
    address, params = parsed
    text = None
    if address == NULL:
        text = (501, "5.1.3", "Syntax: RCPT TO: <address>")
    elif params and _unknown(dialogue, params, _RCPT_PARAMS_OF_DSN):
        text = replies.RCPT_PARAMETERS
    elif params and (fault := invalid_value(params)) is not None:
        text = (501, "5.5.4", f"Error: {fault} has no such value")
    return parsed if text is None else dialogue.encode(text)


def rcpt(dialogue: Dialogue, address: str, params: Params) -> Result:
    """Add a recipient (RFC 5321 4.1.1.3)."""
    shared, envelope = dialogue.shared, dialogue.envelope
    known = len(envelope.rcpt_tos)
    # A handler may accept a recipient without adding an address.
    if max(known, dialogue.accepted) >= shared.limits.recipients:
        dialogue.overshoot += 1
        excused = dialogue.overshoot <= OVERSHOOT
        dialogue.put(dialogue.encode(replies.TOO_MANY_RECIPIENTS), counted=not excused)
        return None
    if dialogue.charged and not memory.has_budget(dialogue, recipient_memory(address, params)):
        return dialogue.encode(replies.NO_ROOM)
    if not address.isascii() and not _is_allowed(dialogue, address, smtputf8=envelope.smtp_utf8):
        return dialogue.encode(replies.TAKES_SMTPUTF8)
    if "RCPT" in shared.hooks:
        then = partial(_answer_recipient, dialogue, address, params, known)
        return Ask("RCPT", (address, _upper_words(params)), then)
    return _take_recipient(dialogue, envelope, address, params)


def _take_recipient(dialogue: Dialogue, envelope: Any, address: str, params: Params) -> Result:
    envelope.rcpt_tos.append(address)
    _count_accepted(dialogue, address, 1)
    dialogue.state = _RECIPIENT
    if params:
        envelope.rcpt_options.extend(_upper_words(params))
    _charge_recipient(dialogue, envelope, address, params)
    return dialogue.shared.recipient_ok


def _charge_recipient(dialogue: Dialogue, envelope: Any, address: str, params: Params) -> None:
    """Store the parameters of a recipient, and count its memory."""
    if isinstance(envelope, Envelope):
        envelope.rcpt_params.append(params)
    dialogue.envelope_bytes += recipient_memory(address, params)
    if dialogue.envelope_bytes > memory.ALLOWANCE:
        memory.charge(dialogue)


def _answer_recipient(
    dialogue: Dialogue, address: str, params: Params, known: int, status: Any
) -> Result:
    """Process a handler's answer to RCPT: on MISSING, add the recipient.

    :param known: the number of recipients before the hook
    """
    envelope = dialogue.envelope
    if status is MISSING:
        return _take_recipient(dialogue, envelope, address, params)
    taken = envelope.rcpt_tos[known:]
    for each in taken:  # the hook has added the address, or others instead
        _charge_recipient(dialogue, envelope, each, params)
    if status[0] == "2":
        _count_accepted(dialogue, address, len(taken))
    return reply_bytes(status)


def _count_accepted(dialogue: Dialogue, address: str, new: int) -> None:
    """Count a recipient with *new* new addresses, as LMTP has one reply for it."""
    if dialogue.address_indices is None and new != 1:
        dialogue.address_indices = [range(index, index + 1) for index in range(dialogue.accepted)]
    dialogue.accepted += 1
    if dialogue.address_indices is not None:
        addresses = dialogue.envelope.rcpt_tos
        count = len(addresses)
        named_before = () if new or address not in addresses else (addresses.index(address),)
        dialogue.address_indices.append(named_before or range(count - new, count))


def _upper_words(params: Params) -> list[str]:
    """Return the parameters in the form in which aiosmtpd passes them to handlers."""
    return [
        name if value is True else f"{name}={str(value).upper()}" for name, value in params.items()
    ]
