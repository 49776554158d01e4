"""Refusal and Full: the verdicts of the gate without a ticket, and their SMTP replies."""

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

    It is one line of at most 512 octets (RFC 5321 4.5.3.1.5) for any text: a longer text is cut.
    """
    line = f"{code} {status} {hostname} {text}"
    if not line.isprintable():
        line = "".join(char if char.isprintable() else "?" for char in line)
    return line[:LONGEST_LINE].encode("ascii", "replace") + b"\r\n"


def shutdown_reply(hostname: str) -> bytes:
    """Return the reply to waiting clients and idle sessions when the server stops."""
    return reply_line(421, "4.3.2", hostname, "Service shutting down")


def kick_reply(hostname: str) -> bytes:
    """Return the reply to a client whose session an administrator ends."""
    return reply_line(421, "4.3.2", hostname, "Ended by the administrator, try again later")


@dataclass(slots=True)
class Refusal:
    """The verdict that a rule refuses the client; it cannot be deferred.

    :param rule: the name of the option
    :param key: the client or network that was counted; for a list, the network in the list
    :param count: the count including this client
    :param limit: the maximum
    :param code: of the reply: 421 is temporary, 554 permanent (RFC 5321 3.1 and 3.8)
    :param status: the enhanced status code of the reply (RFC 3463)
    :param text: of the reply; ``{key}`` stands for the key
    :param detail: additional text for the log; may be empty
    :param scope: ``fleet``: the count is that of all nodes; empty: that of this node
    :param origin: of a denial or a listing: file and line, option, or administrator; may be empty
    :param cure: advice instead of the rule's own, see :class:`smtpd_fork.gate.Explanation`
    :ivar client: the address and port of the client; empty if it is not known
    :ivar session: the id of the client's session, if it exists already
    :ivar id: identifies this refusal in the reply and in the log; the gate sets it (see
        :meth:`smtpd_fork.Gate.refuse`)
    """

    rule: str
    key: str
    count: int
    limit: int
    code: int = 421
    status: str = "4.7.0"
    text: str = "Too many connections from {key}, try again later"
    detail: str = ""
    scope: str = ""
    origin: str = field(default="", compare=False)
    cure: str = field(default="", compare=False)
    id: str = field(default="", compare=False)
    client: str = field(default="", compare=False)
    session: str = field(default="", compare=False)

    def reply(self, hostname: str) -> bytes:
        """Return the reply to the client."""
        return reply_line(self.code, self.status, hostname, self.words)

    @property
    def words(self) -> str:
        """The text of the reply, without code and host."""
        text = self.text.replace("{key}", self.key)
        return f"{text} [{self.id}]" if self.id else text

    @property
    def reason(self) -> str:
        """The rule, with its count and limit, and the detail."""
        reason = self.rule
        if self.rule == "paused":
            reason = "the gate is paused"
        elif self.limit:
            scope = f", {self.scope}" if self.scope else ""
            reason = f"{self.rule} ({self.count} > {self.limit}{scope})"
        return f"{reason}, {self.detail}" if self.detail else reason

    def __str__(self) -> str:
        if self.rule == "limit_connections":
            detail = f", {self.detail}" if self.detail else ""
            whose = "connection limit of the fleet" if self.scope else "connection limit"
            text = f"{whose} reached ({self.limit}): new clients are refused{detail}"
        else:
            what = f"refused {self.key}" if self.key else "new clients are refused"
            text = f"{what}: {self.reason}"
        host = self.client.rpartition(":")[0].strip("[]") or self.client
        if host != self.key and host:
            text += f", client {host}"
        if self.session:
            text += f", session {self.session}"
        return f"{text} [{self.id}]" if self.id else text


@dataclass(frozen=True, slots=True)
class Full:
    """The verdict that no connection slot is free: the caller defers or refuses the client.

    :param count: the number of sessions including this client
    :param limit: the maximum
    :param paused: whether the reason is that the gate is paused
    :param scope: ``fleet`` if the limit of the fleet is reached, and not that of this node
    """

    count: int
    limit: int
    paused: bool = False
    scope: str = ""

    def refusal(self) -> Refusal:
        """Return the refusal of a client that is not deferred."""
        return Refusal(
            "paused" if self.paused else "limit_connections",
            "",
            self.count,
            self.limit,
            status="4.3.2",
            text="Too many connections, try again later",
            scope=self.scope,
        )

    def reply(self, hostname: str) -> bytes:
        """Return the reply to a client that is not deferred."""
        return self.refusal().reply(hostname)

    def __str__(self) -> str:
        if self.paused:
            return "the gate is paused"
        whose = "connection limit of the fleet" if self.scope else "connection limit"
        return f"{whose} reached ({self.limit})"


Verdict: TypeAlias = "Ticket | Refusal | Full"
