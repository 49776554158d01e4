"""What the gate answers, when it is not a ticket: Refusal and Full, and their SMTP replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from smtpd_fork.gate.ticket import Ticket

__all__ = ["Full", "Refusal", "Verdict", "reply_line", "shutdown_reply"]


def reply_line(code: int, status: str, hostname: str, text: str) -> bytes:
    """Return one reply line: code, enhanced status code (RFC 3463), host and text, with CRLF."""
    return f"{code} {status} {hostname} {text}\r\n".encode("ascii", "replace")


def shutdown_reply(hostname: str) -> bytes:
    """Return the reply to whoever is still waiting, or idle, when the server stops."""
    return reply_line(421, "4.3.2", hostname, "Service shutting down")


@dataclass(frozen=True, slots=True)
class Refusal:
    """This source may not come in now, however long it waits.

    :param rule: the option that fired, by its name
    :param key: the source that was counted
    :param count: what the count would have been
    :param limit: what it may be
    """

    rule: str
    key: str
    count: int
    limit: int

    def reply(self, hostname: str) -> bytes:
        """Return the line that the client is sent (RFC 5321 4.2.1: 421, try again later)."""
        text = f"Too many connections from {self.key}, try again later"
        return reply_line(421, "4.7.0", hostname, text)

    def __str__(self) -> str:
        return f"refused {self.key}: {self.rule} ({self.count} > {self.limit})"


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room for anybody: the caller waits (defers) or refuses, as it was told.

    :param count: what the count would have been
    :param limit: what it may be
    :param paused: True if the gate is paused, whatever the count
    """

    count: int
    limit: int
    paused: bool = False

    def reply(self, hostname: str) -> bytes:
        """Return the line that the client is sent if it is not to wait."""
        return reply_line(421, "4.3.2", hostname, "Too many connections, try again later")

    def __str__(self) -> str:
        if self.paused:
            return "no room: the gate is paused"
        return f"no room: limit_connections ({self.count} > {self.limit})"


Verdict: TypeAlias = "Ticket | Refusal | Full"
