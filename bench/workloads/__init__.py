"""The workloads, in two sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.workloads.base import Metric, Workload
from bench.workloads.down import HopDown
from bench.workloads.durable import Durable
from bench.workloads.fleet import Fleet
from bench.workloads.hop import Lmtp, Relay
from bench.workloads.idle import IdleMemory, MessageAmongIdle
from bench.workloads.mail import LargeMail, ManyAConnection, OneAConnection
from bench.workloads.milter import Milter
from bench.workloads.peak import PeakMemory
from bench.workloads.processes import TwoProcesses
from bench.workloads.refusals import Flood, Refusal
from bench.workloads.rspamd import Rspamd
from bench.workloads.sinks import EverySink
from bench.workloads.starttls import StartTls

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KEYS", "Metric", "Workload", "workloads"]

KEYS = (*(f"W{n}" for n in range(1, 15)), "W16", "W17", "W18", "W19")


def workloads(*, quick: bool) -> Sequence[Workload]:
    """Return all workloads; quick ones only show that they work, and their values say nothing."""
    if quick:
        return (
            OneAConnection(1000),
            ManyAConnection(2000),
            LargeMail(4),
            IdleMemory(),
            Refusal(2000),
            Flood(200),
            StartTls(200),
            PeakMemory(),
            MessageAmongIdle(1000),
            Relay(1000),
            Lmtp(200),
            Durable(100),
            Milter(500),
            EverySink(),
            HopDown(1),
            TwoProcesses(2000),
            Fleet(1000, 200),
            Rspamd(1000),
        )
    return (
        OneAConnection(5000),
        ManyAConnection(15000),
        LargeMail(40),
        IdleMemory(),
        Refusal(10000),
        Flood(1000),
        StartTls(1000),
        PeakMemory(),
        MessageAmongIdle(5000),
        Relay(10000),
        Lmtp(2000),
        Durable(500),
        Milter(4000),
        EverySink(),
        HopDown(5),
        TwoProcesses(12000),
        Fleet(5000, 1000),
        Rspamd(5000),
    )
