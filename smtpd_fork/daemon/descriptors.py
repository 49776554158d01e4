"""File descriptors: their limit, and the descriptors 0, 1 and 2."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

__all__ = ["fill_standard_descriptors", "null_standard_descriptors", "raise_descriptor_limit"]


def raise_descriptor_limit(wanted: int) -> int:
    """Raise RLIMIT_NOFILE (setrlimit(2)) to *wanted* if it is lower.

    :returns: the new limit, which the hard limit may keep below *wanted*
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def null_standard_descriptors() -> None:
    """Redirect descriptors 0, 1 and 2 to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def fill_standard_descriptors() -> None:
    """Open /dev/null as each of the descriptors 0, 1 and 2 that is closed.

    If the program was started with ``<&-``, a listening socket would otherwise become descriptor
    0, and would be lost on detaching.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:  # noqa: PLR2004 - the number of standard error
            os.close(descriptor)
            return
