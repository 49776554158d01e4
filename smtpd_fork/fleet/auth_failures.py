"""AuthFailure: what a node and its fleet tell each other of a client that fails to authenticate.

All nodes count its guesses together, each for a time. A guess is two bytes of a hash: that is
enough to tell a few apart, and too little to find out a password that is nearly right.
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
    """

    guess: str
    most: int
    period: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[str, int]])


def key_of(client: str, most: int, seconds: float) -> str:
    """Return the key of a client; limits that differ have counts of their own."""
    return f"a:{most}/{seconds:g}:{client}"


async def tell_auth_failure(
    link: Link, client: str, guess: bytes, most: int, seconds: float
) -> dict[bytes, float]:
    """Tell the fleet of a guess; return all guesses of the client, and the seconds they count yet.

    :param most: guesses after which the client is refused
    :param seconds: for which a guess counts
    :raises FleetError: the fleet has no answer, or one that makes no sense
    """
    failure = AuthFailure(guess.hex(), min(most, MOST_GUESSES), round(seconds * 1000))
    keys = [key_of(client, most, seconds)]
    data = await link.ask("auth_failures", keys, _encoder.encode(failure))
    try:
        found = _decoder.decode(data)  # type: ignore[arg-type]  # what is no bytes is an error
        guesses = {
            bytes.fromhex(each): min(left / 1000, seconds) for each, left in found if left > 0
        }
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError, OverflowError):
        raise FleetError("the answer cannot be read") from None
    return dict(list(guesses.items())[:MOST_GUESSES])
