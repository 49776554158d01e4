"""Strategies of hypothesis that several test files use."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = st.lists(
    st.sampled_from(
        [
            *("<", ">", "@", ".", "..", '"', "\\", "[", "]", ":", ",", " ", "a", "b-", "-", "ä"),
            *("postmaster", "IPv6:", "1.2.3.4", "\r", "\n", "\0", "\t", "<>", "<a@b.c>", "SIZE=1"),
        ]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)
"""Pieces of paths and parameters, and other text."""
