"""Apply a filter's changes to an envelope: to the sender and the recipients."""

from __future__ import annotations

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
    for edit in edits:
        if edit.command == b"e":
            envelope.mail_from = edit.address or NULL
            parameters = getattr(envelope, "mail_params", None)  # aiosmtpd's envelope has none
            if parameters is not None:
                envelope.mail_params = parameters | _known(edit, _OF_SENDER)  # type: ignore[attr-defined] # see above
        elif edit.command in b"+2":
            _add(envelope, edit)
        elif edit.command == b"-":
            _delete(envelope, edit.address)


def _known(edit: Edit, names: frozenset[str]) -> dict[str, str | bool]:
    pairs = [word.partition("=") for word in edit.parameters]
    return {name.upper(): value for name, _, value in pairs if name.upper() in names}


def _params_of(envelope: Envelope) -> list[Any]:
    """Return the list of the recipients' parameters, extended to one entry per recipient."""
    params: list[Any] = getattr(envelope, "rcpt_params", [])
    params += [{} for _ in range(len(envelope.rcpt_tos) - len(params))]
    return params


def _add(envelope: Envelope, edit: Edit) -> None:
    if edit.address not in envelope.rcpt_tos:
        _params_of(envelope).append(_known(edit, _OF_RECIPIENT))
        envelope.rcpt_tos.append(edit.address)
        envelope.recipients_changed = True  # type: ignore[attr-defined] # of ours


def _delete(envelope: Envelope, address: str) -> None:
    wanted, params = address.lower(), _params_of(envelope)
    for index in reversed(range(len(envelope.rcpt_tos))):
        if envelope.rcpt_tos[index].lower() == wanted:
            del envelope.rcpt_tos[index], params[index]
            envelope.recipients_changed = True  # type: ignore[attr-defined] # of ours
