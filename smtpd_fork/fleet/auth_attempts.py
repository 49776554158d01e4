"""AuthAttempt: the message of a node about an attempt to authenticate.

All nodes count attempts together, each for a limited time: the failures of a client, the failures
of a user, and the clients that have authenticated as a user. An attempt is sent as two bytes of a
hash: enough to distinguish a few attempts, and too little to find a password that is nearly right.
Names are sent as hashes too, as clients can choose any. All nodes use the hash key of the node that
has sent the first attempt; clients do not know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from smtpd_fork.fleet.sync import FleetError

if TYPE_CHECKING:
    from smtpd_fork.fleet.link import Link

__all__ = ["AuthAttempt", "AuthCount", "key_of", "send_auth_attempt"]

MOST_ATTEMPTS = 1000
"""Maximum number of attempts counted for one name; an answer may have 64 KiB."""


class AuthCount(NamedTuple):
    """A count that nodes share. Nodes with different limits have separate counts.

    :ivar kind: failures of a ``client``, of a ``user``, or a ``login`` of a client as a user
    :ivar most: maximum number of attempts counted for one name
    :ivar seconds: how long an attempt counts
    """

    kind: Literal["client", "user", "login"]
    most: int
    seconds: float


class AuthAttempt(msgspec.Struct, array_like=True, frozen=True):
    """The message.

    :ivar attempt: the hash of the attempt, in hexadecimal; empty: the message only reads
    :ivar most: maximum number of attempts kept for the name
    :ivar period: how long an attempt counts, in milliseconds
    :ivar key: the node's hash key, in hexadecimal
    """

    attempt: str
    most: int
    period: int
    key: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, int]]])


def key_of(count: AuthCount, name: bytes) -> str:
    """Return the fleet's key for a name.

    :param name: hash of the name; empty: return the key under which the hash key is stored
    """
    return f"a:{count.kind}:{count.most}/{count.seconds:g}:{name.hex()}"


async def send_auth_attempt(
    link: Link, count: AuthCount, name: bytes, attempt: bytes, key: bytes
) -> tuple[bytes, dict[bytes, float]]:
    """Send an attempt to the fleet, and read all attempts of this name.

    :param name: hash of the name
    :param attempt: hash of the attempt; empty: only read
    :param key: the hash key of this node
    :returns: the hash key of the fleet, and the attempts with the seconds for which they still
        count. If the hash key is not *key*, the attempt was not counted
    :raises FleetError: the fleet does not answer, or the answer is invalid
    """
    most, period = min(count.most, MOST_ATTEMPTS), round(count.seconds * 1000)
    message = AuthAttempt(attempt.hex(), most, period, key.hex())
    keys = [key_of(count, name), key_of(count, b"")]
    data = await link.ask("auth_attempts", keys, _encoder.encode(message))
    try:
        ours, found = _decoder.decode(data)  # type: ignore[arg-type]  # other types raise an error
        known = bytes.fromhex(ours)
        attempts = {
            bytes.fromhex(each): min(left / 1000, count.seconds) for each, left in found if left > 0
        }
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError, OverflowError):
        raise FleetError("the answer cannot be read") from None
    if len(known) != len(key):
        raise FleetError("the answer has no key")
    return known, dict(list(attempts.items())[:MOST_ATTEMPTS])
