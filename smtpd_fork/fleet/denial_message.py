"""The messages between a node and its fleet about networks denied at run time."""

from __future__ import annotations

import msgspec

from smtpd_fork.fleet.sync import FleetError

__all__ = [
    "DENIAL_KEYS", "MOST_DENIALS", "PAGE", "Changes", "DenialAnswer", "ReceivedDenial",
    "SentDenial", "decode_denials", "encode_denials",
]  # fmt: skip

DENIAL_KEYS = ["denials:order", "denials:ends"]
"""The keys of this message, in addition to the keys of every message."""

MOST_DENIALS = 10_000
"""Maximum number of networks that a fleet denies."""

PAGE = 100
"""Maximum number of networks in one answer, which may have 64 KiB."""


class SentDenial(msgspec.Struct, array_like=True, frozen=True):
    """A network that a node denies, in a message to the fleet.

    :ivar since: when it was denied, in milliseconds since the epoch, by the node's clock
    :ivar age: milliseconds since it was denied; the fleet subtracts it from its own clock
    :ivar left: remaining time in milliseconds; 0: no end
    :ivar only_new: whether to keep the fleet's own denial of this network, if there is one
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
    """The message of a node.

    :ivar after: the node knows the denials up to this version
    :ivar created: when the list that the node knows was created; 0: it knows none
    :ivar next_page: whether this requests the next page of the previous answer
    """

    after: int
    created: int
    next_page: bool = False
    add: list[SentDenial] = []
    remove: list[str] = []


class ReceivedDenial(msgspec.Struct, array_like=True, frozen=True):
    """A network that the fleet denies, in an answer.

    :ivar since: when it was denied, in milliseconds since the epoch
    :ivar left: remaining time in milliseconds; 0: no end
    """

    network: str
    text: str
    by: str
    node: str
    since: int
    left: int


class DenialAnswer(msgspec.Struct, array_like=True, frozen=True):
    """The answer of the fleet.

    :ivar version: of the last change; 0: the fleet has no list
    :ivar created: when the list was created
    :ivar complete: whether this is the whole list, and not only the changes: a denial was removed,
        or the node knows another list or none
    :ivar more: whether there is another page
    :ivar last: version of the last denial on this page
    :ivar full: how many networks were not added because the fleet has :data:`MOST_DENIALS`
    """

    version: int
    created: int
    complete: bool
    more: bool
    last: int
    full: int
    page: list[ReceivedDenial]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DenialAnswer)


def encode_denials(message: Changes) -> bytes:
    """Encode a message."""
    return _encoder.encode(message)


def decode_denials(data: object) -> DenialAnswer:
    """Decode an answer.

    :raises FleetError: *data* is not a valid answer
    """
    try:
        return _decoder.decode(data)  # type: ignore[arg-type]  # other types raise an error
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        raise FleetError("the answer cannot be read") from None
