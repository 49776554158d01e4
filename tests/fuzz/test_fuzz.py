"""The fuzzers, for a few seconds each; FUZZ_SECONDS sets a longer time."""

from __future__ import annotations

import os
import random
from operator import attrgetter
from typing import TYPE_CHECKING

import pytest

from fuzz import dovecot, hop, milter, policy, rspamd
from fuzz.session import Fuzzer

if TYPE_CHECKING:
    from fuzz.plays import Plays

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))


@pytest.mark.timeout(SECONDS + 60)
async def test_with_any_input_the_session_answers_or_closes() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    fuzzer = Fuzzer(seed)
    await fuzzer.run(SECONDS)
    assert fuzzer.rounds > 0
    assert fuzzer.cuts.count > 0
    assert {b"220", b"250", b"354", b"421", b"500", b"503"} <= fuzzer.said.keys()


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(
    "plays",
    [dovecot.PLAYS, hop.PLAYS, milter.PLAYS, policy.PLAYS, rspamd.PLAYS],
    ids=attrgetter("what"),
)
def test_no_input_of_a_peer_violates_the_invariants(plays: Plays) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert plays.fuzz(seed, SECONDS / 3) > 0
