"""Encode the envelope of a message as JSON, in one schema for webhook, Redis and NATS.

Version 1 is an object with these members; a later version may have more.

``version``
    1.
``id``, ``key``
    The queue id, and the idempotency key: a message that the client sends again has the same key.
``received``
    The time in the format of RFC 3339.
``sender``, ``recipients``
    The addresses of MAIL and RCPT, a string and a list; the null sender is "".
``body``, ``utf8``
    ``7BIT``, ``8BITMIME`` or ``BINARYMIME``; whether the client has used SMTPUTF8.
``client``
    ``address`` (null for a unix socket), ``helo``, ``name`` (verified reverse DNS, or null),
    ``login`` (user of AUTH, or null) and ``tls``.
``origin``
    The original client, which a trusted host has sent by XFORWARD; null without XFORWARD. Members:
    ``address``, ``port``, ``helo``, ``name``, ``protocol``, ``queue_id`` (of that host) and
    ``source`` (``LOCAL`` or ``REMOTE``); each may be null.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from smtpd_fork.message import Mail, fields
from smtpd_fork.peer_address import host_of
from smtpd_fork.sinks.base import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["delivery_key", "envelope_fits", "envelope_json", "header_list", "pieces"]

VERSION = 1

HEADER_BYTES = 1 << 16
"""Bytes of a header whose fields are also listed; later fields are only in the message."""

MOST_FIELDS = 1000
"""Maximum fields of that list; usual messages have a hundred. Without a limit there might be 16,000
of four bytes each, which would take 40 ms."""

PIECE_BYTES = 768 << 10
"""Bytes of a piece of a message, which is encoded, hashed or sent in about a millisecond. It is a
multiple of 3, so that the Base64 of the pieces can be concatenated."""


async def delivery_key(mail: Mail) -> str:
    """Return the idempotency key of this delivery.

    It is the key of the message, or a key of its own if the sink gets only some of the recipients.
    """
    key = await key_of(mail)
    if len(mail.all_recipients) in {0, len(mail.recipients)}:
        return key
    digest = hashlib.sha256(key.encode())
    for address in sorted(each.address for each in mail.recipients):
        digest.update(b"\0" + address.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def envelope_json(mail: Mail, key: str, **more: Any) -> bytes:
    """Return the envelope as JSON, in ASCII and on one line.

    :param key: see :func:`delivery_key`
    :param more: additional members
    """
    client = mail.client
    envelope = {
        "version": VERSION,
        "id": mail.id,
        "key": key,
        "received": mail.received.isoformat(),
        "sender": unicode(mail.sender),
        "recipients": [unicode(each.address) for each in mail.recipients],
        "body": mail.body,
        "utf8": mail.utf8,
        "client": {
            "address": host_of(client.peer),
            "helo": unicode(client.helo),
            "name": client.name,
            "login": None if client.user is None else unicode(client.user),
            "tls": client.tls,
        },
        "origin": _origin(mail.xforward),
        **more,
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def _origin(xforward: Mapping[str, str]) -> dict[str, str | int | None] | None:
    if not xforward:
        return None
    port = xforward.get("PORT")
    return {
        "address": xforward.get("ADDR"),
        "port": None if port is None else int(port),
        "helo": xforward.get("HELO"),
        "name": xforward.get("NAME"),
        "protocol": xforward.get("PROTO"),
        "queue_id": xforward.get("IDENT"),
        "source": xforward.get("SOURCE"),
    }


def envelope_fits(addresses: Iterable[str], longest: int) -> bool:
    """Return whether recipients need at most *longest* bytes as JSON."""
    return sum(len(json.dumps(unicode(each))) + 1 for each in addresses) <= longest


def header_list(content: bytes) -> list[list[str]]:
    """Return the names and values of a header's fields: unfolded, but not decoded."""
    return [
        [each.name.decode("ascii"), " ".join(each.value.decode("utf-8", "replace").split())]
        for each in islice(fields(content[:HEADER_BYTES]), MOST_FIELDS)
    ]


def pieces(*parts: bytes) -> Iterator[memoryview | bytes]:
    """Yield *parts* in pieces of :data:`PIECE_BYTES`; only the last piece is shorter."""
    rest = b""
    for part in parts:
        missing = (PIECE_BYTES - len(rest)) % PIECE_BYTES
        view = memoryview(part)
        if rest and len(part) >= missing:
            yield b"".join((rest, view[:missing]))
            view, rest = view[missing:], b""
        whole = 0 if rest else len(view) - len(view) % PIECE_BYTES
        yield from (view[at : at + PIECE_BYTES] for at in range(0, whole, PIECE_BYTES))
        rest += view[whole:]
    if rest:
        yield rest


def unicode(text: str) -> str:
    """Return *text* without surrogates, which represent bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
