"""Sinks: handlers that deliver or store messages. A sink answers 250 only when the message is safe.

A class is imported on first use, because some need optional libraries or many modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.sinks.base import Discard, Sink

if TYPE_CHECKING:
    from smtpd_fork.sinks.debug import Debug
    from smtpd_fork.sinks.lmtp import Lmtp
    from smtpd_fork.sinks.maildir import Maildir
    from smtpd_fork.sinks.mbox import Mbox
    from smtpd_fork.sinks.nats import Nats
    from smtpd_fork.sinks.pipe import Pipe
    from smtpd_fork.sinks.redis import Redis
    from smtpd_fork.sinks.relay import Relay
    from smtpd_fork.sinks.s3 import S3
    from smtpd_fork.sinks.webhook import Webhook

__all__ = [
    "S3",
    "Debug",
    "Discard",
    "Lmtp",
    "Maildir",
    "Mbox",
    "Nats",
    "PeerStatus",
    "Pipe",
    "Redis",
    "Relay",
    "Sink",
    "Webhook",
]  # fmt: skip

_LATER = ("Debug", "Lmtp", "Maildir", "Mbox", "Nats", "Pipe", "Redis", "Relay", "S3", "Webhook")


def __getattr__(name: str) -> object:
    """Import a built-in sink on first use (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{name.lower()}"), name)
    globals()[name] = value
    return value
