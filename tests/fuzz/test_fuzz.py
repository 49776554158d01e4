"""The fuzzers, for a few seconds; FUZZ_SECONDS has them run longer."""

from __future__ import annotations

import os
import random

import pytest

from fuzz import hop, milter
from fuzz.session import Fuzzer

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))


@pytest.mark.timeout(SECONDS + 60)
async def test_whatever_arrives_the_session_answers_or_closes() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    fuzzer = Fuzzer(seed)
    await fuzzer.run(SECONDS)
    assert fuzzer.rounds > 0
    assert fuzzer.cuts.count > 0
    assert {b"220", b"250", b"354", b"421", b"500", b"503"} <= fuzzer.said.keys()


@pytest.mark.timeout(SECONDS + 60)
def test_whatever_a_next_hop_says_nobody_has_a_message_that_it_did_not_take() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert hop.fuzz(seed, SECONDS / 3) > 0


@pytest.mark.timeout(SECONDS + 60)
def test_whatever_a_milter_says_a_message_stays_one_message() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert milter.fuzz(seed, SECONDS / 3) > 0
