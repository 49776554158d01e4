"""Commands: all states of a session, all commands, and the commands that each state allows.

Read this first. A session is in one state at a time, which alone determines what the client may do
next. These rules apply:

- after a handler or a command of a subclass has run, the state is derived from the session and the
  envelope again (:meth:`~smtpd_fork.dialogue.dialogue.Dialogue.update_state`), as aiosmtpd lets
  handlers set ``host_name``, ``mail_from`` and ``rcpt_tos``;
- while the dialogue waits for something (``Dialogue.waiting``), input is stored and not processed;
- from LEAVING, DISMISSED, CLOSING and GONE, a session only changes to a later one of them.

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
    """The next step that a session expects from its client, or waits for."""

    HELLO = 0  # HELO, EHLO or LHLO: after the greeting, and after a TLS handshake
    READY = 1  # MAIL: HELO, EHLO or LHLO was accepted
    SENDER = 2  # RCPT: MAIL was accepted
    RECIPIENT = 3  # RCPT, DATA or BDAT: RCPT was accepted
    CHUNKS = 4  # BDAT: a part of the message was received, whether accepted or not
    BARRED = 5  # QUIT: handle_STARTTLS did not accept the TLS handshake

    GREETING = 6  # the greeting was not sent yet; input is stored
    DATA = 7  # the message, up to CR LF . CR LF
    CHUNK = 8  # the octets that BDAT announced
    DELIVERY = 9  # a handler processes the message; input is stored
    EXCHANGE = 10  # a line with the answer to a challenge of AUTH
    HANDSHAKE = 11  # the TLS handshake: input is not SMTP

    LEAVING = 12  # the session has ended, and the client knows it
    DISMISSED = 13  # the session has ended, but the client may still send
    CLOSING = 14  # the connection is being closed
    GONE = 15  # the connection is closed


TAKES_COMMANDS = tuple(State)[: State.GREETING]
"""The states in which commands are expected."""

H, R, S, P, C = State.HELLO, State.READY, State.SENDER, State.RECIPIENT, State.CHUNKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: the states that allow it, the replies in other states, and the next state.

    If AUTH is required, an unauthenticated client gets 530 before *otherwise* is considered, except
    in HELLO. If TLS is required, all commands without *before_tls* are rejected until STARTTLS.
    """

    name: str
    syntax: str = ""  # the syntax in HELP; empty: HELP does not list the command
    extended: str | None = None  # added to the syntax for clients that sent EHLO
    when: str | None = None  # the attribute of a session that is true if the command is offered
    otherwise: Mapping[State, Text] = field(default_factory=dict)
    """Replies in states that do not allow the command, checked before its argument."""
    late: Mapping[State, Text] = field(default_factory=dict)
    """Replies in states that do not allow the command, checked after its argument."""
    leads_to: State | None = None  # the state after success; None: the state does not change
    before_tls: bool = False  # whether it is allowed before a required STARTTLS
    needs_auth: bool = False  # whether it needs AUTH if AUTH is required
    lmtp: bool | None = None  # True: LMTP only; False: SMTP only; None: both


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
    # The octets follow even if BDAT is not allowed, so they are read before an error is sent.
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
    # EXPN discloses the members of a list (RFC 2505 2.11). ETRN (RFC 1985) and TURN (RFC 5321 F.1)
    # request mail that a server stores for its client; this one stores none.
    Command(name="EXPN"),
    Command(name="ETRN"),
    Command(name="TURN"),
    # For trusted hosts, which name their clients; unknown commands if there are no such hosts.
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
"""All commands. A user's subclass may have more commands, and may override these."""
