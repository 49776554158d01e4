"""Origin: the original client of a message, from a trusted host's XFORWARD, for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Origin"]


class Origin(NamedTuple):
    """The client from which a trusted host received a message, and the message's id at that host.

    :ivar client: the address of the client; empty if unknown
    :ivar queue_id: the id; empty if unknown
    """

    client: str = ""
    queue_id: str = ""

    @classmethod
    def of(cls, xforward: Mapping[str, str] | None) -> Origin:
        """Return the origin of a message with these attributes of XFORWARD; None is without any."""
        if not xforward:
            return _UNKNOWN
        host, port = xforward.get("ADDR", ""), int(xforward.get("PORT") or 0)
        client = describe((host, port) if port else host) if host else ""
        return cls(client, printable(xforward.get("IDENT", "")).replace(" ", "?"))

    def __str__(self) -> str:
        """Return the text at the end of a log line; empty if the origin is unknown."""
        return "".join(f" {name}={value}" for name, value in self.facts.items())

    @property
    def facts(self) -> dict[str, str]:
        """Return the known fields of a log entry; they have the same names as in Postfix."""
        facts = {"orig_client": self.client, "orig_queue_id": self.queue_id}
        return {name: value for name, value in facts.items() if value}


_UNKNOWN = Origin()
"""The origin of most messages, created once."""
