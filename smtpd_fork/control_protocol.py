"""The protocol of the control socket, as plain data. docs/control.md documents it.

Requests and replies are JSON objects, one per line. A request has the version and a command; a
reply has the version, ``ok``, and the result or the reason of a failure (``fault``).
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
"""Version of the protocol; requests of other versions are refused."""

MAX_REQUEST = 16 * 1024
"""Bytes of a request with its newline: enough for a few hundred networks in ``limits``."""

MAX_REPLY = 512 * 1024
"""Bytes of a reply with its newline; a page of sessions has at most a third of that."""

PAGE = 100
"""Default number of sessions on a page; the maximum is twice that."""


class Fault(StrEnum):
    """The reasons why a request is not carried out."""

    REQUEST = "request"
    """The request cannot be read: it is not JSON, or has an unknown command or an invalid value."""
    VERSION = "version"
    """The request has another version."""
    PERMISSION = "permission"
    """The client is neither root nor the user of the daemon."""
    BUSY = "busy"
    """Too many clients are connected to the control socket."""
    UNKNOWN = "unknown"
    """There is no session, denial or refusal with the id of the request."""
    REFUSED = "refused"
    """The request is valid, but cannot be carried out."""
    FAILED = "failed"
    """An internal error of the daemon; its log has the details."""


class RequestError(Exception):
    """A request cannot be carried out.

    :ivar fault: the reason, for programs
    :ivar text: the reason, for people
    :ivar status: the exit status of the command; None: that of *fault*
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
    """Return the state of the daemon."""


class Sessions(_Request):
    """Return a page of sessions, the oldest first.

    :ivar limit: maximum number of sessions
    :ivar after: the value ``next`` of the previous page; None: the first page
    """

    limit: Annotated[int, Meta(ge=1, le=2 * PAGE)] = PAGE
    after: tuple[float, Id] | None = None


class Kick(_Request):
    """End one session, or all sessions of an address or a network (``client``)."""

    id: Id | None = None
    client: Name | None = None


class Limits(_Request):
    """Change the limits of the gate, and return them.

    :ivar set: new values, as in options; an empty list removes a limit
    """

    set: dict[Name, list[str]] = {}


class Deny(_Request):
    """Refuse new clients of a network.

    :ivar text: the text of the reply
    :ivar seconds: how long; None: until :class:`Undeny`, or the end of the daemon
    """

    network: Name
    text: str = ""
    seconds: float | None = None


class Undeny(_Request):
    """End the denial of a network."""

    network: Name


class Denials(_Request):
    """Return a page of the networks that are denied by :class:`Deny`, filters or handlers.

    :ivar limit: maximum number of networks
    :ivar after: the value ``next`` of the previous page; 0: the first page
    """

    limit: Annotated[int, Meta(ge=1, le=2 * PAGE)] = PAGE
    after: Annotated[int, Meta(ge=0)] = 0


class Pause(_Request):
    """Admit no new clients until :class:`Resume`."""


class Resume(_Request):
    """Admit clients again."""


class Reload(_Request):
    """Read the settings and their files again, as SIGHUP does."""


class Drain(_Request):
    """Admit no more clients, and stop when the last session has ended.

    :ivar seconds: time after which the daemon stops with sessions open; None: no limit
    """

    seconds: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] | None = None


class Explain(_Request):
    """Return the explanation of a refusal."""

    id: Id


class Fleet(_Request):
    """Return the nodes of the fleet.

    :ivar client: an address or a network whose sessions on each node are returned as well
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
    """Return a reply as a line.

    :raises RequestError: the line is longer than :data:`MAX_REPLY`
    """
    line = _encoder.encode({"v": VERSION, **reply}) + b"\n"
    if len(line) > MAX_REPLY:
        raise RequestError(Fault.FAILED, "the reply would be too long")
    return line


def encode_fault(fault: RequestError) -> bytes:
    """Return the reply to a request that failed, as a line."""
    status = {} if fault.status is None else {"status": int(fault.status)}
    return encode({"ok": False, "fault": str(fault.fault), "text": fault.text, **status})
