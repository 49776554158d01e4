"""What a node and its fleet tell each other of the networks that are denied at run time."""

from __future__ import annotations

import msgspec

from smtpd_fork.fleet.sync import FleetError

__all__ = [
    "DENIAL_KEYS", "MOST_DENIALS", "PAGE", "Changes", "DenialAnswer", "Found", "Told",
    "decode_denials", "encode_denials",
]  # fmt: skip

DENIAL_KEYS = ["denials:order", "denials:ends"]
"""The keys that go with a message, besides those of each."""

MOST_DENIALS = 10_000
"""Networks of a fleet."""

PAGE = 100
"""Networks of one answer, which may have 64 KiB."""


class Told(msgspec.Struct, array_like=True, frozen=True):
    """A network that a node denies.

    :ivar since: milliseconds of the epoch, by the node's clock
    :ivar age: milliseconds since it was denied; by this the fleet has its own time of that
    :ivar left: milliseconds; 0: it has no end
    :ivar only_new: whether one that the fleet has already stays as it is
    """

    network: str
    text: str
    by: str
    node: str
    since: int
    age: int
    left: int
    only_new: bool


class Changes(msgspec.Struct, array_like=True, frozen=True):
    """A message.

    :ivar after: version up to which the node knows the denials
    :ivar born: when the list of the fleet was made, as the node knows it; 0: it knows of none
    :ivar goes_on: whether this asks for the next page of the answer before
    """

    after: int
    born: int
    goes_on: bool = False
    add: list[Told] = []
    remove: list[str] = []


class Found(msgspec.Struct, array_like=True, frozen=True):
    """A network that the fleet denies.

    :ivar since: milliseconds of the epoch
    :ivar left: milliseconds; 0: it has no end
    """

    network: str
    text: str
    by: str
    node: str
    since: int
    left: int


class DenialAnswer(msgspec.Struct, array_like=True, frozen=True):
    """An answer.

    :ivar version: of the last change; 0: the fleet has no list
    :ivar born: when the list was made
    :ivar whole: whether this begins with the first of all, as one was removed or nothing was known
    :ivar more: whether there is another page
    :ivar last: version of the last one on this page
    :ivar full: how many were not added, as the fleet has :data:`MOST_DENIALS`
    """

    version: int
    born: int
    whole: bool
    more: bool
    last: int
    full: int
    page: list[Found]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DenialAnswer)


def encode_denials(message: Changes) -> bytes:
    """Return a message as bytes."""
    return _encoder.encode(message)


def decode_denials(data: object) -> DenialAnswer:
    """Return the answer in *data*.

    :raises FleetError: it is none
    """
    try:
        return _decoder.decode(data)  # type: ignore[arg-type]  # what is no bytes is an error
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        raise FleetError("the answer cannot be read") from None
