"""The protocol of the control socket, as plain data. docs/control.md is its manual.

One JSON object a line, each way. A request has the version and a command; the reply has the version
and ``ok``, and the result or a fault.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from smtpd_fork.setting_types import LONGEST_SECONDS

__all__ = [
    "MAX_REPLY", "MAX_REQUEST", "PAGE", "VERSION", "Denials", "Deny", "Drain", "Explain", "Fault",
    "Fleet", "Kick", "Limits", "Pause", "Reload", "Request", "RequestError", "Resume", "Sessions",
    "Status", "Undeny", "decode", "encode",
]  # fmt: skip

VERSION = 1
"""Of the protocol; other versions are refused."""

MAX_REQUEST = 16 * 1024
"""Bytes of a request with its newline: room for a few hundred networks in ``limits``."""

MAX_REPLY = 512 * 1024
"""Bytes of a reply with its newline; a page of sessions has a third of that at most."""

PAGE = 100
"""Sessions on a page by default; twice that at most."""


class Fault(StrEnum):
    """Why a request was not carried out."""

    REQUEST = "request"
    """It cannot be read: no JSON, an unknown command, a bad value."""
    VERSION = "version"
    """It is of another version."""
    PERMISSION = "permission"
    """The client is neither root nor the daemon's own user."""
    BUSY = "busy"
    """There are too many clients."""
    UNKNOWN = "unknown"
    """There is nothing of that id."""
    REFUSED = "refused"
    """It can be read, and cannot be carried out."""
    FAILED = "failed"
    """A fault of the daemon; its log has more."""


class RequestError(Exception):
    """A request that cannot be carried out.

    :ivar fault: the reason, for programs
    :ivar text: the reason, for people
    :ivar status: the exit status for a command; None: the fault's own
    """

    def __init__(self, fault: Fault, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.fault = fault
        self.text = text
        self.status = status


Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]


class _Request(
    msgspec.Struct, tag_field="command", tag=str.lower, forbid_unknown_fields=True, kw_only=True
):
    v: int


class Status(_Request):
    """The state of the daemon."""


class Sessions(_Request):
    """At most ``limit`` sessions, the oldest first, after ``next`` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=2 * PAGE)] = PAGE
    after: tuple[float, Id] | None = None


class Kick(_Request):
    """End one session, or all sessions of an address or a network (``client``)."""

    id: Id | None = None
    client: Name | None = None


class Limits(_Request):
    """Change the limits of the gate, and return them.

    :ivar set: new values, as options have them; an empty list clears a setting
    """

    set: dict[Name, list[str]] = {}


class Deny(_Request):
    """Deny a network at run time.

    :ivar text: of the reply
    :ivar seconds: how long; None: until :class:`Undeny`, or the end
    """

    network: Name
    text: str = ""
    seconds: float | None = None


class Undeny(_Request):
    """Deny a network no longer."""

    network: Name


class Denials(_Request):
    """At most ``limit`` networks that are denied at run time, after ``next`` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=2 * PAGE)] = PAGE
    after: Annotated[int, Meta(ge=0)] = 0


class Pause(_Request):
    """Admit no new clients until further notice."""


class Resume(_Request):
    """Admit clients again."""


class Reload(_Request):
    """Read the settings and their files again, as SIGHUP does."""


class Drain(_Request):
    """Admit no more clients, and end with the last session.

    :ivar seconds: after which the daemon stops; None: it waits for as long as it takes
    """

    seconds: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] | None = None


class Explain(_Request):
    """Explain a refusal."""

    id: Id


class Fleet(_Request):
    """The nodes of the fleet.

    :ivar client: an address or a network; its sessions are counted by node
    """

    client: Name | None = None


Request: TypeAlias = (
    Status
    | Sessions
    | Kick
    | Limits
    | Deny
    | Undeny
    | Denials
    | Pause
    | Resume
    | Reload
    | Drain
    | Explain
    | Fleet
)


class _AnyVersion(msgspec.Struct):
    v: int


_decoder = msgspec.json.Decoder(Request)
_any_version = msgspec.json.Decoder(_AnyVersion)
_encoder = msgspec.json.Encoder()

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def decode(line: bytes) -> Request:
    """Return the request in *line*.

    :raises RequestError: it cannot be read, or is of another version
    """
    try:
        version = _any_version.decode(line).v
        if version == VERSION:
            request: Request = _decoder.decode(line)
            return request
    except _UNREADABLE as error:
        raise RequestError(Fault.REQUEST, f"cannot read the request: {error}") from None
    text = f"this daemon has version {VERSION} of the protocol, not {version}"
    raise RequestError(Fault.VERSION, text)


def encode(reply: dict[str, Any]) -> bytes:
    """Return the line of a reply.

    :raises RequestError: it would be too long
    """
    line = _encoder.encode({"v": VERSION, **reply}) + b"\n"
    if len(line) > MAX_REPLY:
        raise RequestError(Fault.FAILED, "the reply would be too long")
    return line


def encode_fault(fault: RequestError) -> bytes:
    """Return the line of a reply with a fault."""
    status = {} if fault.status is None else {"status": int(fault.status)}
    return encode({"ok": False, "fault": str(fault.fault), "text": fault.text, **status})
