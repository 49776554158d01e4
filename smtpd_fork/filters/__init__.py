"""Filters: handlers that either refuse a command or leave it to the later handlers of the chain.

A class that needs an optional library, or many modules of the package, is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from smtpd_fork.filters.accept import Accept
from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.milter import Milter
from smtpd_fork.hops.peer_status import Outage, PeerStatus

if TYPE_CHECKING:
    from smtpd_fork.filters.auth import Auth
    from smtpd_fork.filters.policy import Policy
    from smtpd_fork.filters.rspamd import Rspamd

__all__ = [
    "Accept", "Auth", "Filter", "Milter", "Outage", "PeerStatus", "Policy", "Rspamd",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a built-in filter on first use (PEP 562)."""
    if name not in {"Auth", "Policy", "Rspamd"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{name.lower()}"), name)
    globals()[name] = value
    return value
