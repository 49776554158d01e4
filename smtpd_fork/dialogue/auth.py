"""AUTH (RFC 4954): whether a client may authenticate itself now, and what a result of it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.reply import answer_of, sent
from smtpd_fork.dialogue.waiting import Run

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["begin_auth", "judge", "parse_auth"]


def parse_auth(dialogue: Dialogue, argument: str | None) -> tuple[list[str]] | bytes:
    """Return the mechanism and the initial response, if AUTH is possible now."""
    session = dialogue.session
    if not session.extended_smtp:
        return dialogue.say(replies.NO_AUTH_IN_HELO)
    if dialogue.shared.auth_require_tls and not dialogue.tls:
        return sent(replies.ENCRYPTION_REQUIRED)
    if session.authenticated:
        return dialogue.say(replies.IS_AUTHENTICATED)
    return (argument.split() if argument else [],)


def begin_auth(dialogue: Dialogue, words: list[str]) -> Result:
    """Check the arguments of AUTH, and start the mechanism."""
    if not words:
        return dialogue.say(replies.NO_WORDS)
    if len(words) > 2:  # noqa: PLR2004 - mechanism and initial response
        return dialogue.say(replies.TOO_MANY_WORDS)
    mechanism = words[0].upper()
    if mechanism not in dialogue.shared.auth_names:
        return sent(replies.NO_SUCH_MECHANISM)
    dialogue.session.auth_mechanism, dialogue.session.auth_user = mechanism, ""
    dialogue.state = State.EXCHANGE
    return Run("authenticate", ([mechanism, *words[1:]],))


def judge(session: Any, result: Any) -> str | None:
    """Return what to answer to a mechanism's result, or None if it has answered itself.

    :raises ValueError: it says both that the client is who it says it is, and that it is not
    """
    if isinstance(result, AuthResult):
        # Before anything is changed: what cannot be sent counts as raised.
        message: str | None = answer_of("AUTH", result.message) if result.message else None
        if message and (message[0] == "2") is not result.success:
            raise ValueError(f"AuthResult(success={result.success}) with message {message!r}")
        if result.success:
            session.authenticated = True
            session.auth_data = result.auth_data
            session._login_data = getattr(result.auth_data, "login", None)  # noqa: SLF001 - its setter warns
            return message or replies.AUTHENTICATED
        return None if result.handled else message or replies.INVALID_CREDENTIALS
    # aiosmtpd's old way: None has answered, MISSING and False refuse, all else is who it is
    if result is None:
        return None
    if result is MISSING or result is False:
        return replies.INVALID_CREDENTIALS
    session._login_data = result  # noqa: SLF001 - as above
    session.authenticated = True
    return replies.AUTHENTICATED
