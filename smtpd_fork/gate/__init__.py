"""The gate: admits or refuses clients. It is synchronous and does no I/O; time is an argument."""

from smtpd_fork.gate.client_log_line import ClientLine
from smtpd_fork.gate.denials import Denial, Denials
from smtpd_fork.gate.fleet_share import FleetShare
from smtpd_fork.gate.gate import Gate
from smtpd_fork.gate.ledger import Entry
from smtpd_fork.gate.limits import GATE_SETTINGS, Limits, limits_of
from smtpd_fork.gate.refusal_log import RefusalLog
from smtpd_fork.gate.reporter import Reporter, client_reporter
from smtpd_fork.gate.settings import networks_of
from smtpd_fork.gate.statistics import Explanation
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.trusted_hosts import TrustedHosts
from smtpd_fork.gate.verdict import Full, Refusal, Verdict

__all__ = [
    "GATE_SETTINGS",
    "ClientLine",
    "Denial",
    "Denials",
    "Entry",
    "Explanation",
    "FleetShare",
    "Full",
    "Gate",
    "Limits",
    "Refusal",
    "RefusalLog",
    "Reporter",
    "Ticket",
    "TrustedHosts",
    "Verdict",
    "client_reporter",
    "limits_of",
    "networks_of",
]
