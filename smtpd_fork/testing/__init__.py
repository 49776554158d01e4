"""Testing: an SMTP server that keeps the messages that an application sends, and a kit for sinks.

``smtp_server``, the fixture for pytest, is an :class:`SmtpServer` (smtpd_fork/pytest_plugin.py);
nothing here needs pytest. See docs/testing.md.
"""

from smtpd_fork.testing.fault_proxy import FAULTS, FaultProxy
from smtpd_fork.testing.mailbox import Mailbox, Message, SmtpServer
from smtpd_fork.testing.messages import MESSAGES, make_mail
from smtpd_fork.testing.sink_check import check_sink

__all__ = [
    "FAULTS", "MESSAGES", "FaultProxy", "Mailbox", "Message", "SmtpServer", "check_sink",
    "make_mail",
]  # fmt: skip
