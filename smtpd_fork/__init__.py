"""smtpd-fork: the SMTP front door, as a daemon and as a library.

::

    async with Server(handler, listen=["127.0.0.1:0"], max_from_ip=10) as server:
        ...

The public names are those of ``__all__``; the rest may move.
"""

from smtpd_fork.config import Config
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.gate import Entry, Explanation, Full, Gate, Limits, Refusal, Ticket
from smtpd_fork.server import Server
from smtpd_fork.version import __version__

__all__ = [
    "Config",
    "Entry",
    "Explanation",
    "Full",
    "Gate",
    "Limits",
    "Refusal",
    "Server",
    "SmtpdForkError",
    "Ticket",
    "__version__",
]
