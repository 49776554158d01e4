"""Sinks: where accepted mail goes. A sink answers 250 only once the message is safe."""

from smtpd_fork.sinks.base import Sink
from smtpd_fork.sinks.debug import Debug
from smtpd_fork.sinks.discard import Discard
from smtpd_fork.sinks.maildir import Maildir

__all__ = ["Debug", "Discard", "Maildir", "Sink"]
