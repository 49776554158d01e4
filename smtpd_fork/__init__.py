"""smtpd-fork: an SMTP server with connection limits, as a daemon and as a library.

::

    async with Server(handler, listen=["127.0.0.1:0"], max_from_ip=10) as server:
        ...

The public names are those of ``__all__``, and the interfaces that docs/stability.md lists; others
may change in any version. A name is imported when it is first used, as pytest imports this package
at its start in every project, for the fixture.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from aiosmtpd.smtp import MISSING

    from smtpd_fork.config import Config, SettingError
    from smtpd_fork.dialogue import Answer, Envelope, Reply, Session
    from smtpd_fork.errors import HandlerError, SmtpdForkError
    from smtpd_fork.filters import Filter
    from smtpd_fork.gate import Entry, Explanation, Full, Gate, Limits, Refusal, Ticket
    from smtpd_fork.handlers import Route
    from smtpd_fork.message import (
        Mail,
        Marks,
        Recipient,
        Replies,
        add_score,
        add_tag,
        marks_of,
        notes_of,
        prepend,
        quarantine,
    )
    from smtpd_fork.observe.metrics import ServerMetrics
    from smtpd_fork.server import Server, ThreadedServer
    from smtpd_fork.settings import Settings
    from smtpd_fork.sinks import Sink
    from smtpd_fork.smtp import SMTP

__all__ = [
    "MISSING", "SMTP", "Answer", "Config", "Entry", "Envelope", "Explanation", "Filter", "Full",
    "Gate", "HandlerError", "Limits", "Mail", "Marks", "Recipient", "Refusal", "Replies", "Reply",
    "Route", "Server", "ServerMetrics", "Session", "SettingError", "Settings", "Sink",
    "SmtpdForkError", "ThreadedServer", "Ticket", "__version__", "add_score", "add_tag", "marks_of",
    "notes_of", "prepend", "quarantine",
]  # fmt: skip

_MODULES = {
    "aiosmtpd.smtp": "MISSING",
    "smtpd_fork.config": "Config SettingError",
    "smtpd_fork.dialogue": "Answer Envelope Reply Session",
    "smtpd_fork.errors": "HandlerError SmtpdForkError",
    "smtpd_fork.filters": "Filter",
    "smtpd_fork.gate": "Entry Explanation Full Gate Limits Refusal Ticket",
    "smtpd_fork.handlers": "Route",
    "smtpd_fork.message": (
        "Mail Marks Recipient Replies add_score add_tag marks_of notes_of prepend quarantine"
    ),
    "smtpd_fork.observe.metrics": "ServerMetrics",
    "smtpd_fork.server": "Server ThreadedServer",
    "smtpd_fork.settings": "Settings",
    "smtpd_fork.sinks": "Sink",
    "smtpd_fork.smtp": "SMTP",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, whether they have been imported or not."""
    return sorted({*globals(), *__all__})
