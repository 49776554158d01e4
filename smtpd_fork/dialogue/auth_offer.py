"""Change the mechanisms in the reply to EHLO."""

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
    """Return EHLO's reply with some mechanisms replaced by others.

    A reply that does not offer AUTH is unchanged.

    :param replaced: names of the mechanisms to remove
    :param offered: names of the mechanisms to add, in order, after the remaining ones
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
