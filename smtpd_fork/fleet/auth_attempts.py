"""AuthAttempt: an attempt to authenticate that a node and its fleet tell each other of.

All nodes count attempts together, each for a time: the failures of a client, the failures of a
user, and the clients that have authenticated as a user. An attempt is two bytes of a hash: that is
enough to tell a few apart, and too little to find out a password that is nearly right. Names are
hashes too: clients choose what they claim to be. The key of the hash is that of the node which has
told first; the others learn it, and no client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from smtpd_fork.fleet.sync import FleetError

if TYPE_CHECKING:
    from smtpd_fork.fleet.link import Link

__all__ = ["AuthAttempt", "AuthCount", "key_of", "tell_auth_attempt"]

MOST_ATTEMPTS = 1000
"""Of one name that are counted together; an answer may have 64 KiB."""


class AuthCount(NamedTuple):
    """What nodes count together; those whose limits differ have counts of their own.

    :ivar kind: failures of a ``client``, of a ``user``, or a ``login`` of a client as a user
    :ivar most: attempts of a name that are counted
    :ivar seconds: for which an attempt counts
    """

    kind: Literal["client", "user", "login"]
    most: int
    seconds: float


class AuthAttempt(msgspec.Struct, array_like=True, frozen=True):
    """A message.

    :ivar attempt: its hash, in hexadecimal; empty: none, the message only asks
    :ivar most: attempts of the name that are kept
    :ivar period: milliseconds for which an attempt counts
    :ivar key: of the hash, in hexadecimal
    """

    attempt: str
    most: int
    period: int
    key: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, int]]])


def key_of(count: AuthCount, name: bytes) -> str:
    """Return the key of a name.

    :param name: empty: for the key of the hash
    """
    return f"a:{count.kind}:{count.most}/{count.seconds:g}:{name.hex()}"


async def tell_auth_attempt(
    link: Link, count: AuthCount, name: bytes, attempt: bytes, key: bytes
) -> tuple[bytes, dict[bytes, float]]:
    """Tell the fleet of an attempt; return all of the name, and the seconds they count yet.

    Before them is the key of the fleet; if it is another one, nothing was counted.

    :param name: its hash
    :param attempt: its hash; empty: there is none, and the others are asked for
    :param key: of the hash
    :raises FleetError: the fleet has no answer, or one that makes no sense
    """
    most, period = min(count.most, MOST_ATTEMPTS), round(count.seconds * 1000)
    message = AuthAttempt(attempt.hex(), most, period, key.hex())
    keys = [key_of(count, name), key_of(count, b"")]
    data = await link.ask("auth_attempts", keys, _encoder.encode(message))
    try:
        ours, found = _decoder.decode(data)  # type: ignore[arg-type]  # what is no bytes is an error
        known = bytes.fromhex(ours)
        attempts = {
            bytes.fromhex(each): min(left / 1000, count.seconds) for each, left in found if left > 0
        }
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError, OverflowError):
        raise FleetError("the answer cannot be read") from None
    if len(known) != len(key):
        raise FleetError("the answer has no key")
    return known, dict(list(attempts.items())[:MOST_ATTEMPTS])
