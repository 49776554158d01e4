"""Budget: how many bytes of messages all sessions may hold at once."""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """Counts bytes; shared by the sessions of a server.

    :param limit: bytes; 0 is no limit
    :ivar used: bytes that are held now
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def spent(self) -> bool:
        """Whether there is nothing left."""
        return 0 < self.limit <= self.used
