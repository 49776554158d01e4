"""smtpd-fork: the SMTP front door, as a daemon and as a library.

::

    async with Server(handler, listen=["127.0.0.1:0"], max_from_ip=10) as server:
        ...

The public names are those of ``__all__``; the rest may move.
"""

from aiosmtpd.smtp import MISSING

from smtpd_fork.config import Config, SettingError
from smtpd_fork.dialogue import Answer, Envelope, Reply, Session
from smtpd_fork.errors import HandlerError, SmtpdForkError
from smtpd_fork.gate import Entry, Explanation, Full, Gate, Limits, Refusal, Ticket
from smtpd_fork.server import Server
from smtpd_fork.settings import Settings
from smtpd_fork.smtp import SMTP
from smtpd_fork.version import __version__

__all__ = [
    "MISSING",
    "SMTP",
    "Answer",
    "Config",
    "Entry",
    "Envelope",
    "Explanation",
    "Full",
    "Gate",
    "HandlerError",
    "Limits",
    "Refusal",
    "Reply",
    "Server",
    "Session",
    "SettingError",
    "Settings",
    "SmtpdForkError",
    "Ticket",
    "__version__",
]
