"""The session: aiosmtpd's SMTP class by contract, with a wire and a dialogue of its own."""

from smtpd_fork.smtp.budget import Budget
from smtpd_fork.smtp.content import BareNewline
from smtpd_fork.smtp.current_tls import CurrentTls
from smtpd_fork.smtp.envelope import Envelope
from smtpd_fork.smtp.reply import Answer, Reply
from smtpd_fork.smtp.session import Session, current_session
from smtpd_fork.smtp.setup import Limits
from smtpd_fork.smtp.smtp import SMTP
from smtpd_fork.smtp.sweep import Sweep
from smtpd_fork.smtp.tally import Tally

__all__ = [
    "SMTP",
    "Answer",
    "BareNewline",
    "Budget",
    "CurrentTls",
    "Envelope",
    "Limits",
    "Reply",
    "Session",
    "Sweep",
    "Tally",
    "current_session",
]
