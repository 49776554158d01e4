"""Commands: every state of a session, every command, and the commands that each state allows.

Read this first. A session is in one state at a time; what a client may do next follows from it,
and nothing else says the same. The laws:

- after a handler, or a command of a user's class, has run, the state is read off the session and
  the envelope again (:meth:`~smtpd_fork.dialogue.dialogue.Dialogue.place`): aiosmtpd lets handlers
  set ``host_name``, ``mail_from`` and ``rcpt_tos``;
- while something is waited for (``Dialogue.waiting``) what comes is kept, and not acted on;
- LEAVING, DISMISSED, CLOSING and GONE are left for no other state than the next of them.

docs/session.md has this table as a diagram; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from smtpd_fork.dialogue import replies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_fork.dialogue.replies import Text

__all__ = ["COMMANDS", "TAKES_COMMANDS", "Command", "State"]


class State(IntEnum):
    """What a client may do next, or what it has to wait for."""

    HELLO = 0  # introduce itself: after the greeting, and after a TLS handshake
    READY = 1  # begin a transaction: it has introduced itself
    SENDER = 2  # name recipients: MAIL was accepted
    RECIPIENT = 3  # name more recipients, or send the message: RCPT was accepted
    CHUNKS = 4  # send the next chunk: BDAT has brought a part of the message, accepted or not
    BARRED = 5  # QUIT: handle_STARTTLS did not accept the TLS handshake

    GREETING = 6  # nothing: it is not greeted yet, what it sends is kept
    DATA = 7  # send a message, up to CR LF . CR LF
    CHUNK = 8  # send the octets that BDAT announced
    DELIVERY = 9  # wait: a handler has the message, what it sends is kept
    EXCHANGE = 10  # answer a challenge of AUTH, with one line
    HANDSHAKE = 11  # the TLS handshake: what it sends is no SMTP

    LEAVING = 12  # nothing: it knows that the session is over
    DISMISSED = 13  # nothing: the session is over, and the client may still be sending
    CLOSING = 14  # nothing: the connection is being closed
    GONE = 15  # nothing: the connection is closed


TAKES_COMMANDS = tuple(State)[: State.GREETING]
"""The states in which commands come."""

H, R, S, P, C = State.HELLO, State.READY, State.SENDER, State.RECIPIENT, State.CHUNKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: where it may come, what is answered elsewhere, and where it leads.

    A client that has to authenticate itself first gets 530 before *otherwise* applies, but for
    HELLO. Until TLS is spoken, where that is required, all is refused but what has *before_tls*.
    """

    name: str
    syntax: str = ""  # what HELP tells; nothing if it is empty
    extended: str | None = None  # what it tells more to a client that has said EHLO
    when: str | None = None  # the attribute of a session that says whether it is offered
    otherwise: Mapping[State, Text] = field(default_factory=dict)
    """Replies in states in which it may not come, whatever its argument is."""
    late: Mapping[State, Text] = field(default_factory=dict)
    """The same, once its argument has been found well-formed."""
    leads_to: State | None = None  # the state after its success; None: the state stays
    before_tls: bool = False  # whether it may come before TLS
    needs_auth: bool = False  # whether the client has to be authenticated, where that is required
    lmtp: bool | None = None  # True: of LMTP alone; False: of SMTP alone; None: of both


COMMANDS = (
    Command(name="EHLO", syntax="EHLO hostname", leads_to=R, before_tls=True, lmtp=False),
    Command(name="HELO", syntax="HELO hostname", leads_to=R, lmtp=False),
    Command(name="LHLO", syntax="LHLO hostname", leads_to=R, before_tls=True, lmtp=True),
    Command(
        name="MAIL",
        syntax="MAIL FROM: <address>",
        extended=" [SP <mail-parameters>]",
        otherwise={H: replies.SEND_HELO},
        late={S: replies.NESTED_MAIL, P: replies.NESTED_MAIL, C: replies.NESTED_MAIL},
        leads_to=S,
        needs_auth=True,
    ),
    Command(
        name="RCPT",
        syntax="RCPT TO: <address>",
        extended=" [SP <mail-parameters>]",
        otherwise={H: replies.SEND_HELO, R: replies.NEED_MAIL},
        late={C: replies.BDAT_HAS_BEGUN},
        leads_to=P,
        needs_auth=True,
    ),
    Command(
        name="DATA",
        syntax="DATA",
        otherwise={H: replies.SEND_HELO, R: replies.NEED_RCPT, S: replies.NEED_RCPT},
        late={C: replies.BDAT_HAS_BEGUN},
        leads_to=State.DATA,
        needs_auth=True,
    ),
    # Its octets come whether it may or not: it takes them, and says what is wrong at their end.
    Command(name="BDAT", syntax="BDAT size [LAST]", leads_to=State.CHUNK, before_tls=True),
    Command(
        name="AUTH",
        syntax="AUTH <mechanism>",
        otherwise={H: replies.SEND_EHLO},
        late={S: replies.AUTH_IN_MAIL, P: replies.AUTH_IN_MAIL, C: replies.AUTH_IN_MAIL},
        leads_to=State.EXCHANGE,
    ),
    Command(
        name="STARTTLS",
        syntax="STARTTLS",
        when="tls_context",
        leads_to=State.HANDSHAKE,
        before_tls=True,
    ),
    Command(name="RSET", syntax="RSET", leads_to=R),
    Command(name="NOOP", syntax="NOOP [ignored]", before_tls=True),
    Command(name="VRFY", syntax="VRFY <address>", needs_auth=True),
    # EXPN discloses who is on a list (RFC 2505 2.11). ETRN (RFC 1985) and TURN (RFC 5321 F.1) ask
    # for mail that a server keeps for its client, and none is kept here.
    Command(name="EXPN"),
    Command(name="ETRN"),
    Command(name="TURN"),
    # Of hosts that are trusted to name their clients: unknown unless there are some.
    Command(
        name="XCLIENT",
        syntax="XCLIENT attribute=value...",
        when="may_send_xclient",
        late={S: replies.IN_MAIL, P: replies.IN_MAIL, C: replies.IN_MAIL},
        leads_to=H,
        before_tls=True,
    ),
    Command(
        name="XFORWARD",
        syntax="XFORWARD attribute=value...",
        when="may_send_xforward",
        late={S: replies.IN_MAIL, P: replies.IN_MAIL, C: replies.IN_MAIL},
        before_tls=True,
    ),
    Command(name="HELP", syntax="HELP [command]", needs_auth=True),
    Command(name="QUIT", syntax="QUIT", leads_to=State.LEAVING, before_tls=True),
)
"""All of them. A user's class may have more, and may have its own in place of these."""
