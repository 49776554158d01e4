"""Sync: the one message of a node to its fleet, and the answer. Plain data, as MessagePack.

A node tells its state, never a change of it: a message that is lost, or comes twice, leaves no
count wrong. Only rates are counted by arrivals, so a client is never asked about twice.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

__all__ = ["LAYOUT", "Answer", "FleetError", "Keys", "Sync", "decode", "encode"]

LAYOUT = "1"
"""Of the keys and the message; nodes of different layouts share nothing."""

LONGEST_ANSWER = 1 << 16
"""Bytes; an answer has four for each client."""


class FleetError(Exception):
    """The fleet cannot be asked; the text says why, for an administrator."""


class Sync(msgspec.Struct, array_like=True, frozen=True):
    """What a node tells and asks. A key is the number of one of the keys that go with it, from 1.

    :ivar node: names the process; random in part
    :ivar lease: milliseconds for which its word counts
    :ivar keep: milliseconds for which a count is kept that is not sent again
    :ivar limit: sessions of the fleet at once; 0: no limit
    :ivar sessions: all that the node has
    :ivar want: slots of the fleet that it wants to hold
    :ivar survey: whether the sessions of all nodes are to be added up
    :ivar waits: whether its clients wait for one
    :ivar leaves: whether this is its last message
    :ivar about: what it says of itself, as JSON; empty: nothing new
    :ivar counts: its sessions by key: key, sessions, key, sessions, and so on
    :ivar clients: whom it asks about; four numbers for each limit: key, limit, and of a rate
        microseconds from one session to the next and by how many it may be ahead
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
"""Lua has no larger ones."""


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What a node is answered.

    :ivar fresh: whether nothing was known of it: it has to tell all its counts again
    :ivar nodes: that live, with this one
    :ivar slots: of the fleet that it holds now
    :ivar sessions: of all nodes, if they were added up; else -1
    :ivar waiting: other nodes whose clients wait for a slot
    :ivar denials: version of the denials of the fleet
    :ivar verdicts: two numbers for each client: which of its limits refuses it (from 1; 0: none),
        and the count with it
    """

    fresh: bool
    nodes: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    slots: Number
    sessions: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]
    waiting: Number
    denials: Number
    verdicts: list[Number]


class Keys:
    """The names of what a fleet keeps.

    :param prefix: one fleet, one prefix
    :ivar fixed: the keys of each message
    :ivar channel: where hints are sent
    """

    def __init__(self, prefix: str) -> None:
        # In braces: all keys are on one node of a Redis Cluster, so one script may use all.
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
    """Return a message as bytes."""
    return _encoder.encode(message)


def decode(data: object, clients: int) -> Answer:
    """Return the answer in *data* to a message about so many clients.

    :raises FleetError: it is none
    """
    if isinstance(data, bytes) and len(data) <= LONGEST_ANSWER:
        try:
            answer = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            if len(answer.verdicts) == 2 * clients:
                return answer
    raise FleetError("the answer cannot be read: it is not of this version, or of another program")
