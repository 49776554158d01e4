"""The SMTP session without sockets, event loop or clock: states, commands and replies.

Read :mod:`~smtpd_fork.dialogue.commands` first.
"""

from smtpd_fork.dialogue.budget import Budget
from smtpd_fork.dialogue.content import BareNewline
from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.reply import Answer, Reply
from smtpd_fork.dialogue.session import Session, current_session
from smtpd_fork.dialogue.shared import CurrentTls, Limits, Shared
from smtpd_fork.dialogue.tally import Tally

__all__ = [
    "Answer",
    "BareNewline",
    "Budget",
    "CurrentTls",
    "Envelope",
    "Limits",
    "Reply",
    "Session",
    "Shared",
    "Tally",
    "current_session",
]
