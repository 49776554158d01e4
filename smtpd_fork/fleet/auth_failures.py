"""AuthFailure: what a node and its fleet tell each other of a client that fails to authenticate.

All nodes count its guesses together, each for a time. A guess is two bytes of a hash: that is
enough to tell a few apart, and too little to find out a password that is nearly right. The key of
the hash is that of the node which has told first; the others learn it, and no client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.fleet.sync import FleetError

if TYPE_CHECKING:
    from smtpd_fork.fleet.link import Link

__all__ = ["AuthFailure", "key_of", "tell_auth_failure"]

MOST_GUESSES = 1000
"""Of one client that are counted together; an answer may have 64 KiB."""


class AuthFailure(msgspec.Struct, array_like=True, frozen=True):
    """A message.

    :ivar guess: in hexadecimal
    :ivar most: guesses of the client that are kept
    :ivar period: milliseconds for which a guess counts
    :ivar key: of the hash of the guess, in hexadecimal
    """

    guess: str
    most: int
    period: int
    key: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, int]]])


def key_of(client: str, most: int, seconds: float) -> str:
    """Return the key of a client; limits that differ have counts of their own.

    :param client: empty: for the key of the hash
    """
    return f"a:{most}/{seconds:g}:{client}"


async def tell_auth_failure(
    link: Link, client: str, guess: bytes, most: int, seconds: float, key: bytes
) -> tuple[bytes, dict[bytes, float]]:
    """Tell the fleet of a guess; return all guesses of the client, and the seconds they count yet.

    Before them is the key of the fleet; if it is another one, nothing was counted.

    :param key: of the hash of the guess
    :param most: guesses after which the client is refused
    :param seconds: for which a guess counts
    :raises FleetError: the fleet has no answer, or one that makes no sense
    """
    period = round(seconds * 1000)
    failure = AuthFailure(guess.hex(), min(most, MOST_GUESSES), period, key.hex())
    keys = [key_of(client, most, seconds), key_of("", most, seconds)]
    data = await link.ask("auth_failures", keys, _encoder.encode(failure))
    try:
        ours, found = _decoder.decode(data)  # type: ignore[arg-type]  # what is no bytes is an error
        known = bytes.fromhex(ours)
        guesses = {
            bytes.fromhex(each): min(left / 1000, seconds) for each, left in found if left > 0
        }
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError, OverflowError):
        raise FleetError("the answer cannot be read") from None
    if len(known) != len(key):
        raise FleetError("the answer has no key")
    return known, dict(list(guesses.items())[:MOST_GUESSES])
