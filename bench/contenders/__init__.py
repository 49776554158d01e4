"""The servers that are compared; this daemon is the first."""

from __future__ import annotations

from bench.contenders.base import Contender, Needs, Served, serving
from bench.contenders.dovecot import Dovecot
from bench.contenders.node import Haraka, NodemailerSmtpServer
from bench.contenders.postfix import Postfix, SmtpSink
from bench.contenders.python import (
    BareProtocol,
    SmtpdFork,
    SmtpdForkAllRules,
    SmtpdForkFilters,
    SmtpdForkFleet,
    SmtpdForkPool,
    SmtpdForkTwo,
    StockAiosmtpd,
)
from bench.contenders.qpsmtpd import Qpsmtpd
from bench.contenders.sinks import SINKS

__all__ = ["CONTENDERS", "Contender", "Needs", "Served", "serving"]

CONTENDERS: tuple[Contender, ...] = (
    SmtpdFork(),
    SmtpSink(),
    StockAiosmtpd(),
    Postfix(),
    Qpsmtpd(),
    Dovecot(),
    NodemailerSmtpServer(),
    Haraka(),
    BareProtocol(),
    SmtpdForkAllRules(),
    SmtpdForkFleet(),
    SmtpdForkPool(),
    SmtpdForkTwo(),
    SmtpdForkFilters(),
    *SINKS,
)
