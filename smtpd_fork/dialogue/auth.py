"""AUTH (RFC 4954): checks whether a client may authenticate, and evaluates the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.reply import answer_of, reply_bytes
from smtpd_fork.dialogue.waiting import Run

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["begin_auth", "parse_auth", "reply_to_result"]


def parse_auth(dialogue: Dialogue, argument: str | None) -> tuple[list[str]] | bytes:
    """Return the words of the argument, or a reply if AUTH is not possible now."""
    session = dialogue.session
    if not session.extended_smtp:
        return dialogue.encode(replies.NO_AUTH_IN_HELO)
    if dialogue.shared.auth_require_tls and not dialogue.tls:
        return reply_bytes(replies.ENCRYPTION_REQUIRED)
    if session.authenticated:
        return dialogue.encode(replies.IS_AUTHENTICATED)
    return (argument.split() if argument else [],)


def begin_auth(dialogue: Dialogue, words: list[str]) -> Result:
    """Check the mechanism and the initial response, and start the mechanism."""
    if not words:
        return dialogue.encode(replies.NO_WORDS)
    if len(words) > 2:  # noqa: PLR2004 - mechanism and initial response
        return dialogue.encode(replies.TOO_MANY_WORDS)
    mechanism = words[0].upper()
    if mechanism not in dialogue.shared.auth_names:
        return reply_bytes(replies.NO_SUCH_MECHANISM)
    dialogue.session.auth_mechanism, dialogue.session.auth_user = mechanism, ""
    dialogue.state = State.EXCHANGE
    return Run("authenticate", ([mechanism, *words[1:]],))


def reply_to_result(session: Any, result: Any) -> str | None:
    """Return the reply to the result of a mechanism; None if the mechanism has sent it.

    A successful result is stored in the session.

    :raises ValueError: the success and the message of the result contradict each other
    """
    if isinstance(result, AuthResult):
        # Before the session is changed, as this may raise an error.
        message: str | None = answer_of("AUTH", result.message) if result.message else None
        if message and (message[0] == "2") is not result.success:
            raise ValueError(f"AuthResult(success={result.success}) with message {message!r}")
        if result.success:
            session.authenticated = True
            session.auth_data = result.auth_data
            session._login_data = getattr(result.auth_data, "login", None)  # noqa: SLF001 - its setter warns
            return message or replies.AUTHENTICATED
        return None if result.handled else message or replies.INVALID_CREDENTIALS
    # aiosmtpd's older results. None: the mechanism has replied; MISSING, False: failure; any other
    # value: the login data.
    if result is None:
        return None
    if result is MISSING or result is False:
        return replies.INVALID_CREDENTIALS
    session._login_data = result  # noqa: SLF001 - as above
    session.authenticated = True
    return replies.AUTHENTICATED
