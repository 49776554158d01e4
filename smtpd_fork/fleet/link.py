"""Link: the interface by which a node reaches its fleet.

``redis_link.py`` implements it for Redis, ``smtpd_fork/supervisor/shared_limits.py`` for the
processes of one supervisor.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Link"]


class Link(Protocol):
    """A connection to the fleet.

    There is at most one :meth:`call` at a time. After one was cancelled, the link must be closed.

    :ivar description: describes the link in the log, without a password
    """

    description: str

    async def open(self) -> None:
        """Connect to the fleet.

        :raises FleetError: the fleet cannot be reached, or refuses the connection
        """

    async def call(self, keys: list[str], message: bytes) -> object:
        """Send a message, and return the bytes of its answer.

        :param keys: the keys of the message, without the prefix of the fleet
        :raises FleetError: the answer is an error, or there is none
        """

    async def hint(self) -> str:
        """Return the next hint: ``empty``, ``waiting``, ``room`` or ``denials``.

        Hints may get lost.

        :raises FleetError: no more hints can be received
        """

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        """Send a question, and return the bytes of the answer; possible during a :meth:`call`.

        :param question: ``view`` (see ``view.py``), ``denials`` (see ``denial_message.py``) or
            ``auth_attempts`` (see ``auth_attempts.py``)
        :param keys: the keys that the question is about, without the prefix of the fleet
        :raises FleetError: the answer is an error, or there is none within some seconds
        """

    async def close(self) -> None:
        """Close the connection; a pending :meth:`call` fails."""
