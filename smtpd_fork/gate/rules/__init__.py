"""The gate's rules: each is one reason to refuse a client, all of one shape."""

from smtpd_fork.gate.rules.access import AccessList, AccessRule
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.rules.concurrency import (
    ClientLimitRule,
    FairShareRule,
    NetworkLimit,
    NetworkLimitRule,
)
from smtpd_fork.gate.rules.overload import Load, OverloadRule
from smtpd_fork.gate.rules.rate import Rate, RateRule, handshake_rules
from smtpd_fork.gate.rules.rehearsal import RehearsalRule

__all__ = [
    "AccessList",
    "AccessRule",
    "ClientLimitRule",
    "Counts",
    "FairShareRule",
    "Load",
    "NetworkLimit",
    "NetworkLimitRule",
    "OverloadRule",
    "Rate",
    "RateRule",
    "RehearsalRule",
    "Rule",
    "handshake_rules",
]
