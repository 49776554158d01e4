"""The line of EHLO's reply that offers AUTH."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["with_mechanisms"]

_LINE = re.compile(r"250([- ])AUTH[ =](.*)", re.IGNORECASE)


def with_mechanisms(
    lines: Sequence[str], replaced: Collection[str], offered: Sequence[str]
) -> list[str]:
    """Return EHLO's reply with other mechanisms in place of some.

    A reply that does not offer AUTH stays as it is.

    :param replaced: the names of those that go
    :param offered: the names of those that come, in order; the others stay in front of them
    """
    changed = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            changed.append(line)
            continue
        names = [each for each in found[2].split() if each not in replaced]
        names += [each for each in offered if each not in names]
        if names:
            changed.append(f"250{found[1]}AUTH {' '.join(names)}")
    return changed
