"""Those who take part; this daemon first."""

from __future__ import annotations

from bench.contenders.base import Contender, Needs, Served, serving
from bench.contenders.node import Haraka, NodemailerSmtpServer
from bench.contenders.postfix import SmtpSink
from bench.contenders.python import BareProtocol, SmtpdFork, SmtpdForkAllRules, StockAiosmtpd

__all__ = ["CONTENDERS", "Contender", "Needs", "Served", "serving"]

CONTENDERS: tuple[Contender, ...] = (
    SmtpdFork(),
    SmtpSink(),
    StockAiosmtpd(),
    NodemailerSmtpServer(),
    Haraka(),
    BareProtocol(),
    SmtpdForkAllRules(),
)
