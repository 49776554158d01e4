"""Link: what a node reaches its fleet by. Redis is one (``redis_link.py``)."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Link"]


class Link(Protocol):
    """A way to the fleet. One call is under way at a time, and none is cancelled without a close.

    :ivar shown: names it in the log, without a password
    """

    shown: str

    async def open(self) -> None:
        """Reach the fleet.

        :raises FleetError: it cannot be reached, or refuses
        """

    async def call(self, keys: list[str], message: bytes) -> object:
        """Send a message, and return the bytes of its answer.

        :param keys: of the message, without the prefix of the fleet
        :raises FleetError: the answer is an error, or none came
        """

    async def hint(self) -> str:
        """Return the next hint: ``empty``, ``waiting``, ``room`` or ``denials``; one may get lost.

        :raises FleetError: none will come any more
        """

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        """Ask beside the call under way, which is not disturbed; return the bytes of the answer.

        :param question: ``view`` (see ``view.py``), ``denials`` (see ``denial_message.py``) or
            ``auth_attempts`` (see ``auth_attempts.py``)
        :param keys: those that are asked about, without the prefix of the fleet
        :raises FleetError: the answer is an error, or none came within some seconds
        """

    async def close(self) -> None:
        """Let go of the fleet; a call under way has no answer any more."""
