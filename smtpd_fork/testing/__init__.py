"""Testing: an SMTP server that keeps messages for assertions, and checks for sinks.

The pytest fixture ``smtp_server`` is an :class:`SmtpServer` (smtpd_fork/pytest_plugin.py). This
package does not need pytest. See docs/testing.md.
"""

from smtpd_fork.testing.fault_proxy import FAULTS, FaultProxy
from smtpd_fork.testing.mailbox import Mailbox, Message, SmtpServer
from smtpd_fork.testing.messages import MESSAGES, make_mail
from smtpd_fork.testing.sink_check import check_sink

__all__ = [
    "FAULTS", "MESSAGES", "FaultProxy", "Mailbox", "Message", "SmtpServer", "check_sink",
    "make_mail",
]  # fmt: skip
