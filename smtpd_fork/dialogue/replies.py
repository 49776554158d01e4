"""Replies: the replies of this server, with their codes.

A reply is a code, an enhanced status code (RFC 3463), which is sent only if these are enabled (RFC
2034), and a text. Replies with a number or a name are composed where they are sent.
"""

from __future__ import annotations

from smtpd_fork.dialogue.content import BodyFault
from smtpd_fork.dialogue.framer import CommandFault

Text = tuple[int, str, str]
"""Code, enhanced status code, text."""

OK = (250, "2.0.0", "OK")
BYE = (221, "2.0.0", "Bye")
SEND_MESSAGE = b"354 End data with <CR><LF>.<CR><LF>\r\n"
READY_FOR_TLS = (220, "2.0.0", "Ready to start TLS")

# -- out of sequence ---------------------------------------------------------------------------

SEND_HELO = (503, "5.5.1", "Error: send HELO first")
SEND_EHLO = (503, "5.5.1", "Error: send EHLO first")
NEED_MAIL = (503, "5.5.1", "Error: need MAIL command")
NEED_RCPT = (503, "5.5.1", "Error: need RCPT command")
NESTED_MAIL = (503, "5.5.1", "Error: nested MAIL command")
BDAT_HAS_BEGUN = (503, "5.5.1", "Error: BDAT has begun")  # RFC 3030 3
AUTH_IN_MAIL = (503, "5.5.1", "Error: AUTH within a mail transaction")
IN_MAIL = (503, "5.5.1", "Error: MAIL transaction in progress")
NOT_CHUNKING = (503, "5.5.1", "Error: CHUNKING is not offered")
BINARY_TAKES_BDAT = (503, "5.5.1", "Error: BINARYMIME requires BDAT")
TLS_IS_ACTIVE = (503, "5.5.1", "TLS is active already")
IS_AUTHENTICATED = (503, "5.5.1", "Already authenticated")
THIS_IS_LMTP = (500, "5.5.1", "Error: this is LMTP, send LHLO")
STARTTLS_FIRST = (530, "5.7.0", "Must issue a STARTTLS command first")
NEEDS_AUTH = (530, "5.7.0", "Authentication required")
NOT_TRUSTED = (550, "5.7.0", "Error: insufficient authorization")
LACKS_SECURITY = (554, "5.7.0", "Command refused due to lack of security")

# -- malformed ---------------------------------------------------------------------------------

BAD_SYNTAX = (500, "5.5.2", "Error: bad syntax")
NOT_ASCII = (500, "5.5.2", "Error: strict ASCII mode")
LONG_COMMAND = (500, "5.5.2", "Command line too long")
COMMAND_FAULT_REPLIES = {
    CommandFault.TOO_LONG: LONG_COMMAND,
    CommandFault.BARE: (500, "5.5.2", "Error: bare CR, LF or NUL in a command"),
}
MESSAGE_NOT_ASCII = (500, "5.6.0", "Error: strict ASCII mode")
SMTPUTF8_ARGUMENT = (501, "5.5.4", "Error: SMTPUTF8 takes no arguments")
SMTPUTF8_DISABLED = (501, "5.5.4", "Error: SMTPUTF8 disabled")
TAKES_SMTPUTF8 = (553, "5.6.7", "Error: the address requires SMTPUTF8")
MAIL_PARAMETERS = (555, "5.5.4", "MAIL FROM parameters not recognized or not implemented")
RCPT_PARAMETERS = (555, "5.5.4", "RCPT TO parameters not recognized or not implemented")
NO_WORDS = (501, "5.5.4", "Not enough value")
TOO_MANY_WORDS = (501, "5.5.4", "Too many values")
NO_AUTH_IN_HELO = (500, "5.5.1", "Error: command 'AUTH' not recognized")

# -- not available -----------------------------------------------------------------------------

CANNOT_VRFY = (252, "2.0.0", "Cannot VRFY user, but will accept message and attempt delivery")
NO_TLS = (454, "4.7.0", "TLS not available")
TOO_MANY_RECIPIENTS = (452, "4.5.3", "Too many recipients")
DECLARED_TOO_MUCH = (552, "5.3.4", "Error: message size exceeds fixed maximum message size")
NO_ROOM = (452, "4.3.1", "Insufficient system storage, try again later")

MAIL_LOOP = (554, "5.4.6", "Error: too many hops, the message is in a mail loop")

BODY_FAULT_REPLIES: dict[BodyFault, Text] = {
    BodyFault.TOO_LONG: (500, "5.6.0", "Line too long (see RFC5321 4.5.3.1.6)"),
    BodyFault.TOO_MUCH: (552, "5.3.4", "Error: Too much mail data"),
    BodyFault.BARE: (550, "5.6.11", "Error: bare CR, LF or NUL in the message"),
    BodyFault.NO_ROOM: NO_ROOM,
}
"""The replies to a message that was read to its end and is rejected."""

# -- always with an enhanced status code, as in aiosmtpd -------------------------------------------

ENCRYPTION_REQUIRED = "538 5.7.11 Encryption required for requested authentication mechanism"
NO_SUCH_MECHANISM = "504 5.5.4 Unrecognized authentication type"
AUTHENTICATED = "235 2.7.0 Authentication successful"
INVALID_CREDENTIALS = "535 5.7.8 Authentication credentials invalid"
AUTH_ABORTED = "501 5.7.0 Auth aborted"
NOT_BASE64 = "501 5.5.2 Can't decode base64"
NOT_SPLIT = "501 5.5.2 Can't split auth value"
LOCAL_ERROR = "451 4.3.0 Local error in processing, try again later"
NOT_NOW = "421 4.3.0 Local error, try again later"
NO_SINK = "451 4.3.0 No handler accepts messages, try again later"


def syntax(usage: str) -> Text:
    """Return the reply to a command whose argument is malformed."""
    return 501, "5.5.4", f"Syntax: {usage}"
