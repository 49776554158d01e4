"""Bugs of aiosmtpd, each tested with both servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from smtp.faults_of_commands import FAULTS as OF_COMMANDS
from smtp.faults_of_sessions import FAULTS as OF_SESSIONS
from support.stock import OURS, STOCK, Bench, Fault

if TYPE_CHECKING:
    from support.tls import Certificates

each_fault = pytest.mark.parametrize(
    "fault", [*OF_COMMANDS, *OF_SESSIONS], ids=lambda fault: fault.probe.__name__
)


@each_fault
@pytest.mark.asyncio(loop_factories=["asyncio"])  # one loop is enough for aiosmtpd
async def test_stock_aiosmtpd_has_the_bug(fault: Fault, certificates: Certificates) -> None:
    assert await fault.probe(Bench(STOCK, certificates)) == fault.stock


@each_fault
async def test_smtpd_fork_does_not_have_the_bug(fault: Fault, certificates: Certificates) -> None:
    assert await fault.probe(Bench(OURS, certificates)) == fault.ours
