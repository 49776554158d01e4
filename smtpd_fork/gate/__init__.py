"""The gate: who may hold a session. Pure and synchronous; the clock comes in as an argument."""

from smtpd_fork.gate.gate import Gate
from smtpd_fork.gate.limits import Limits
from smtpd_fork.gate.refusal_log import RefusalLog
from smtpd_fork.gate.reporter import Reporter
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.verdict import Full, Refusal, Verdict

__all__ = ["Full", "Gate", "Limits", "Refusal", "RefusalLog", "Reporter", "Ticket", "Verdict"]
