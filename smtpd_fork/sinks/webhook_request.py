"""Make the request of a webhook: header fields, body, and the signature of standardwebhooks.com.

Sans-io. A body is made in pieces, once for the signature and once to send it, so that a large
message is in memory only once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING
from urllib.parse import quote

from smtpd_fork.message import Mail
from smtpd_fork.peer_address import host_of
from smtpd_fork.sinks.base import THREAD_BYTES
from smtpd_fork.sinks.mail_json import envelope_json, header_list, pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Body", "addresses", "envelope_fields", "read_secrets", "signature_fields"]

_SECRET = re.compile(r"whsec_((?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2,3})?)={0,2}")

KEY_BYTES = range(24, 65)
"""Allowed numbers of bytes of a key (standardwebhooks.com)."""

_ADDRESS = "!#$&'*+-./:=?@[]^_`{|}~"
"""Characters of an address that are not percent-coded; ``%`` and ``,`` are."""


def read_secrets(text: str) -> list[bytes]:
    """Return the keys of one or more secrets (``whsec_`` and Base64), separated by spaces.

    :raises ValueError: a secret is not valid
    """
    keys = []
    for word in text.split():
        match = _SECRET.fullmatch(word)
        key = b64decode(match[1] + "=" * (-len(match[1]) % 4)) if match else b""
        if len(key) not in KEY_BYTES:
            raise ValueError("write whsec_ and 24 to 64 random bytes in Base64")
        keys.append(key)
    return keys


def addresses(texts: Iterable[str]) -> str:
    """Return addresses separated by commas; unusual characters are percent-coded."""
    return ", ".join(_coded(text) for text in texts)


def _coded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe=_ADDRESS)


def envelope_fields(mail: Mail) -> dict[str, str]:
    """Return the envelope as header fields of HTTP, in percent-coded ASCII."""
    client = mail.client
    origin = mail.xforward.get("ADDR")
    return {
        "X-Mail-Id": _coded(mail.id),
        "X-Mail-From": _coded(mail.sender),
        "X-Mail-To": addresses(each.address for each in mail.recipients),
        "X-Mail-Received": mail.received.isoformat(),
        "X-Mail-Body": _coded(mail.body),
        "X-Mail-Utf8": "yes" if mail.utf8 else "no",
        "X-Mail-Client": _coded(host_of(client.peer) or ""),
        "X-Mail-Helo": _coded(client.helo),
        **({"X-Mail-Origin": _coded(origin)} if origin else {}),
    }


class Body:
    """The body of a request; it can be iterated over several times.

    :ivar size: size in bytes
    """

    def __init__(self, parts: Sequence[bytes], envelope: bytes | None = None) -> None:
        self._parts = parts
        self._prefix = self._suffix = b""
        self._coded = envelope is not None
        self.size = sum(map(len, parts))
        if envelope is not None:
            self._prefix, self._suffix = envelope[:-1] + b',"content":"', b'"}'
            size = (self.size + 2) // 3 * 4
            self.size = len(self._prefix) + size + len(self._suffix)

    @classmethod
    def raw(cls, mail: Mail) -> Body:
        """Return a body that is the message."""
        return cls(mail.relayed())

    @classmethod
    def json(cls, mail: Mail, key: str) -> Body:
        """Return a JSON object with the envelope, the header fields, and the message in Base64."""
        headers = header_list(mail.content)
        return cls(mail.relayed(), envelope_json(mail, key, headers=headers))

    def __iter__(self) -> Iterator[bytes | memoryview]:
        if not self._coded:
            yield from pieces(*self._parts)
            return
        yield self._prefix
        for piece in pieces(*self._parts):
            yield b64encode(piece)
        yield self._suffix


async def signature_fields(
    key: str, now: int, body: Body, secrets: Sequence[bytes]
) -> dict[str, str]:
    """Return the header fields of standardwebhooks.com; the signature only if there is a secret.

    :param key: the idempotency key
    :param now: seconds since the epoch
    """
    fields = {"webhook-id": key, "webhook-timestamp": str(now)}
    if not secrets:
        return fields
    if body.size > THREAD_BYTES:
        signatures = await asyncio.to_thread(_signatures, key, now, body, secrets)
    else:
        signatures = _signatures(key, now, body, secrets)
    return {**fields, "webhook-signature": " ".join(signatures)}


def _signatures(key: str, now: int, body: Body, secrets: Sequence[bytes]) -> list[str]:
    begin = f"{key}.{now}.".encode()
    digests = [hmac.new(secret, begin, hashlib.sha256) for secret in secrets]
    for piece in body:
        for digest in digests:
            digest.update(piece)
    return [f"v1,{b64encode(digest.digest()).decode()}" for digest in digests]
