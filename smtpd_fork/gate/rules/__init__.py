"""The rules of the gate: each has one reason to refuse a client."""

from smtpd_fork.gate.rules.access import AccessRule, NetworkList
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.rules.concurrency import (
    ClientLimitRule,
    FairShareRule,
    NetworkLimit,
    NetworkLimitRule,
)
from smtpd_fork.gate.rules.fleet import FleetLimit, FleetRule
from smtpd_fork.gate.rules.overload import Load, OverloadRule
from smtpd_fork.gate.rules.rate import Rate, RateRule, handshake_rules
from smtpd_fork.gate.rules.refuse_every import RefuseEveryRule

__all__ = [
    "AccessRule",
    "ClientLimitRule",
    "Counts",
    "FairShareRule",
    "FleetLimit",
    "FleetRule",
    "Load",
    "NetworkLimit",
    "NetworkLimitRule",
    "NetworkList",
    "OverloadRule",
    "Rate",
    "RateRule",
    "RefuseEveryRule",
    "Rule",
    "handshake_rules",
]
