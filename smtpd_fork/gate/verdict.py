"""What the gate answers, when it is not a ticket: Refusal and Full, and their SMTP replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from smtpd_fork.gate.ticket import Ticket

__all__ = ["Full", "Refusal", "Verdict", "kick_reply", "reply_line", "shutdown_reply"]

LONGEST_LINE = 510
"""Octets of a reply line without CR LF (RFC 5321 4.5.3.1.5)."""


def reply_line(code: int, status: str, hostname: str, text: str) -> bytes:
    """Return one reply line: code, enhanced status code (RFC 3463), host and text, with CRLF.

    It is one line of at most 512 octets (RFC 5321 4.5.3.1.5), whatever the text is.
    """
    line = f"{code} {status} {hostname} {text}"
    if not line.isprintable():
        line = "".join(char if char.isprintable() else "?" for char in line)
    return line[:LONGEST_LINE].encode("ascii", "replace") + b"\r\n"


def shutdown_reply(hostname: str) -> bytes:
    """Return the reply to clients that wait, or are idle, when the server stops."""
    return reply_line(421, "4.3.2", hostname, "Service shutting down")


def kick_reply(hostname: str) -> bytes:
    """Return the reply to a client whose session an administrator ends."""
    return reply_line(421, "4.3.2", hostname, "Ended by the administrator, try again later")


@dataclass(slots=True)
class Refusal:
    """This client is refused, however long it waits.

    :param rule: the option that fired, by its name
    :param key: the source or network that was counted; for a list, the network that it names
    :param count: what the count would have been
    :param limit: what it may be
    :param code: of the reply: 421 is for now, 554 for good (RFC 5321 3.1 and 3.8)
    :param status: its enhanced status code (RFC 3463)
    :param text: of the reply; ``{key}`` stands for the key
    :param detail: more for the log; may be empty
    :ivar id: names this refusal in the reply and in the log; the gate gives it when the client is
        refused (see :meth:`smtpd_fork.Gate.refuse`)
    """

    rule: str
    key: str
    count: int
    limit: int
    code: int = 421
    status: str = "4.7.0"
    text: str = "Too many connections from {key}, try again later"
    detail: str = ""
    id: str = field(default="", compare=False)

    def reply(self, hostname: str) -> bytes:
        """Return the line that the client is sent."""
        return reply_line(self.code, self.status, hostname, self.words)

    @property
    def words(self) -> str:
        """The text of the reply, without code and host."""
        text = self.text.replace("{key}", self.key)
        return f"{text} [{self.id}]" if self.id else text

    def __str__(self) -> str:
        what = f"refused {self.key}" if self.key else "no room"
        name = f" [{self.id}]" if self.id else ""
        name = f", {self.detail}{name}" if self.detail else name
        if self.rule == "paused":
            return f"{what}: the gate is paused{name}"
        if not self.limit:
            return f"{what}: {self.rule}{name}"
        return f"{what}: {self.rule} ({self.count} > {self.limit}){name}"


@dataclass(frozen=True, slots=True)
class Full:
    """There is no connection slot: the caller defers or refuses, as configured.

    :param count: what the count would have been
    :param limit: what it may be
    :param paused: True if the gate is paused, whatever the count
    """

    count: int
    limit: int
    paused: bool = False

    def refusal(self) -> Refusal:
        """Return the refusal of a client that is not deferred."""
        return Refusal(
            "paused" if self.paused else "limit_connections",
            "",
            self.count,
            self.limit,
            status="4.3.2",
            text="Too many connections, try again later",
        )

    def reply(self, hostname: str) -> bytes:
        """Return the line that the client is sent if it is not to wait."""
        return self.refusal().reply(hostname)

    def __str__(self) -> str:
        if self.paused:
            return "no room: the gate is paused"
        return f"no room: limit_connections ({self.count} > {self.limit})"


Verdict: TypeAlias = "Ticket | Refusal | Full"
