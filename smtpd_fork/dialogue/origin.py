"""Origin: where a message came from at first, as a trusted host says by XFORWARD; for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Origin"]


class Origin(NamedTuple):
    """The client that a trusted host had a message of, and the id that it has there.

    :ivar client: its address; empty if that is not known
    :ivar queue_id: so too
    """

    client: str = ""
    queue_id: str = ""

    @classmethod
    def of(cls, xforward: Mapping[str, str] | None) -> Origin:
        """Return what the attributes of XFORWARD say; None for none."""
        if not xforward:
            return _UNKNOWN
        host, port = xforward.get("ADDR", ""), int(xforward.get("PORT") or 0)
        client = describe((host, port) if port else host) if host else ""
        return cls(client, printable(xforward.get("IDENT", "")).replace(" ", "?"))

    def __str__(self) -> str:
        """Return it as a line of the log ends; empty if nothing is known."""
        return "".join(f" {name}={value}" for name, value in self.facts.items())

    @property
    def facts(self) -> dict[str, str]:
        """Return it as fields of a log entry, those there are; Postfix calls them the same."""
        facts = {"orig_client": self.client, "orig_queue_id": self.queue_id}
        return {name: value for name, value in facts.items() if value}


_UNKNOWN = Origin()
"""Of most messages: made once."""
