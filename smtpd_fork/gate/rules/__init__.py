"""The gate's rules: one reason to refuse a client each, one module each, all of one shape."""

from smtpd_fork.gate.rules.access import AccessList, AccessRule
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.rules.fair_share import FairShareRule
from smtpd_fork.gate.rules.handshake import handshake_rules
from smtpd_fork.gate.rules.network import NetworkLimit, NetworkRule
from smtpd_fork.gate.rules.overload import Load, OverloadRule
from smtpd_fork.gate.rules.rate import NetworkRateRule, Rate, RateRule
from smtpd_fork.gate.rules.rehearsal import RehearsalRule
from smtpd_fork.gate.rules.source import SourceRule

__all__ = [
    "AccessList",
    "AccessRule",
    "Counts",
    "FairShareRule",
    "Load",
    "NetworkLimit",
    "NetworkRateRule",
    "NetworkRule",
    "OverloadRule",
    "Rate",
    "RateRule",
    "RehearsalRule",
    "Rule",
    "SourceRule",
    "handshake_rules",
]
