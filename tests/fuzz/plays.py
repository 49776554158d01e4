"""Plays: random dialogues whose results are checked; this module runs the small fuzzers."""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from fuzz.client import BrokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONGEST_PLAY = 4000
"""Maximum offset at which a play may be cut into packets, bytes."""


class Plays(NamedTuple):
    """Makes and checks plays.

    :ivar what: a name of the plays, for the last line
    :ivar make: returns one
    :ivar judge: raises an error if one, cut at these offsets, violates an invariant
    """

    what: str
    make: Callable[[random.Random], Any]
    judge: Callable[[Any, Sequence[int]], None]

    def fuzz(self, seed: int, seconds: float) -> int:
        """Run plays until the time is over; return their number.

        :raises BrokenError: an invariant was violated
        """
        chance, end, count = random.Random(seed), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            play = self.make(chance)
            cuts = [chance.randrange(LONGEST_PLAY) for _ in range(chance.randrange(1, 9))]
            try:
                self.judge(play, cuts)
            except Exception as error:
                raise BrokenError(f"seed {seed}, {play}: {error!r}") from error
            count += 1
        return count

    def main(self, description: str | None) -> None:
        """Fuzz from the command line; other options of the session fuzzer have no effect."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--seconds", type=float, default=30.0)
        parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
        options, _ = parser.parse_known_args()
        print(f"seed {options.seed}")
        print(f"{self.fuzz(options.seed, options.seconds)} {self.what}")
