"""Hostile sessions, a few thousand of the 100,000 that ``make hostile`` runs."""

from __future__ import annotations

import random

import pytest

from fuzz.hostile import is_flat, measure


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("tls", "loop"), [pytest.param(False, "asyncio", marks=pytest.mark.peers), (True, "uvloop")]
)
def test_hostile_sessions_leave_no_memory_in_use(tls: bool, loop: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert is_flat(measure(1500, tls=tls, seed=seed, loop=loop))
