"""Apply a filter's changes to an envelope: to the sender and the recipients."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.path import NULL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiosmtpd.smtp import Envelope

    from smtpd_fork.hops.milter.verdict import Edit

__all__ = ["change_envelope"]

_OF_SENDER = frozenset({"RET", "ENVID"})
_OF_RECIPIENT = frozenset({"NOTIFY", "ORCPT"})
"""Parameters that sinks use (RFC 3461); the values of others are ignored."""


def change_envelope(envelope: Envelope, edits: Iterable[Edit]) -> None:
    """Apply changes of sender and recipients, in order."""
    of_recipients = []
    for edit in edits:
        if edit.command == b"e":
            envelope.mail_from = edit.address or NULL
            parameters = getattr(envelope, "mail_params", None)  # aiosmtpd's envelope has none
            if parameters is not None:
                envelope.mail_params = parameters | _known(edit, _OF_SENDER)  # type: ignore[attr-defined] # see above
        elif edit.command in b"+2-":
            of_recipients.append(edit)
    if of_recipients:
        _change_recipients(envelope, of_recipients)


def _known(edit: Edit, names: frozenset[str]) -> dict[str, str | bool]:
    pairs = [word.partition("=") for word in edit.parameters]
    return {name.upper(): value for name, _, value in pairs if name.upper() in names}


def _change_recipients(envelope: Envelope, edits: Iterable[Edit]) -> None:
    """Add and delete recipients.

    They are found by address, because a milter may change as many recipients as a message has.
    """
    params: list[Any] = getattr(envelope, "rcpt_params", [])
    filled = chain(params, ({} for _ in count()))  # one entry per recipient
    recipients = dict(enumerate(zip(envelope.rcpt_tos, filled, strict=False)))
    numbers = defaultdict[str, list[int]](list)
    for number, (address, _) in recipients.items():
        numbers[address.lower()].append(number)
    new, changed = count(len(recipients)), False
    for edit in edits:
        known = numbers[edit.address.lower()]
        if edit.command == b"-":
            changed |= bool(known)
            for number in known:
                del recipients[number]
            known.clear()
        elif all(recipients[number][0] != edit.address for number in known):
            known.append(next(new))
            recipients[known[-1]] = edit.address, _known(edit, _OF_RECIPIENT)
            changed = True
    if changed:
        envelope.rcpt_tos[:] = [address for address, _ in recipients.values()]
        params[:] = [each for _, each in recipients.values()]
        envelope.recipients_changed = True  # type: ignore[attr-defined] # of ours
