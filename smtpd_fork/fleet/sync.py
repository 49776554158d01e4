"""Sync: the message of a node to its fleet, and the answer. Plain data, encoded as MessagePack.

A node sends its counts, never their changes: so a message that is lost, or arrives twice, makes no
count wrong. Only rates count arrivals, so a node never asks about a client twice.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

__all__ = ["LAYOUT", "Answer", "FleetError", "Keys", "Sync", "decode", "encode"]

LAYOUT = "1"
"""Version of the keys and of the message; nodes of different layouts share nothing."""

LONGEST_ANSWER = 1 << 16
"""Maximum size of an answer in bytes; it has four bytes for each client."""


class FleetError(Exception):
    """The fleet cannot be asked; the text is the reason, for an administrator."""


class Sync(msgspec.Struct, array_like=True, frozen=True):
    """The message of a node. The message has a list of keys; a key is given by its number, from 1.

    :ivar node: id of the process; in part random
    :ivar lease: milliseconds after which the node is removed if it sends nothing
    :ivar keep: milliseconds after which a count is removed if it is not sent again
    :ivar limit: maximum sessions of all nodes together; 0: no limit
    :ivar sessions: all sessions of the node
    :ivar want: how many of the fleet's slots the node wants to hold
    :ivar survey: whether the answer must contain the sessions of all nodes
    :ivar waits: whether clients of the node wait for a slot
    :ivar leaves: whether this is the last message of the node
    :ivar about: description of the node, as JSON; empty: unchanged
    :ivar counts: the node's sessions by key, as a flat list: key, sessions, key, sessions, ...
    :ivar clients: the clients to decide about, each with four numbers for each limit: key, limit,
        and for a rate: the microseconds from one session to the next, and by how many microseconds
        the sessions may be ahead
    """

    node: str
    lease: int
    keep: int
    limit: int
    sessions: int
    want: int
    survey: bool = False
    waits: bool = False
    leaves: bool = False
    about: str = ""
    counts: list[int] = []
    clients: list[list[int]] = []


Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""Lua has no larger integers."""


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a message.

    :ivar fresh: whether the fleet did not know the node, which must send all its counts again
    :ivar nodes: number of live nodes, including this one
    :ivar slots: how many of the fleet's slots the node holds now
    :ivar sessions: of all nodes, if they were added up; else -1
    :ivar waiting: number of other nodes whose clients wait for a slot
    :ivar denials: version of the fleet's denials
    :ivar verdicts: two numbers for each client: which of its limits refuses it (from 1; 0: none),
        and the count including this client
    """

    fresh: bool
    nodes: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    slots: Number
    sessions: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]
    waiting: Number
    denials: Number
    verdicts: list[Number]


class Keys:
    """The names of a fleet's keys in Redis.

    :param prefix: of all keys; different fleets need different prefixes
    :ivar fixed: the keys that every message uses
    :ivar channel: the channel of the hints
    """

    def __init__(self, prefix: str) -> None:
        # In braces, so that all keys are on one node of a Redis Cluster, as a script requires.
        self._front = f"{{{prefix}}}:{LAYOUT}:"
        names = ("nodes", "slots", "waiting", "about", "denials")
        self.fixed = (f"{{{prefix}}}:layout", *map(self.of, names))
        self.channel = self.of("hints")

    def of(self, name: str) -> str:
        """Return the name of one key."""
        return self._front + name


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Answer)


def encode(message: Sync) -> bytes:
    """Encode a message."""
    return _encoder.encode(message)


def decode(data: object, clients: int) -> Answer:
    """Decode the answer to a message about *clients* clients.

    :raises FleetError: *data* is not a valid answer
    """
    if isinstance(data, bytes) and len(data) <= LONGEST_ANSWER:
        try:
            answer = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            if len(answer.verdicts) == 2 * clients:
                return answer
    raise FleetError("the answer cannot be read: another version or another program has sent it")
