"""DKIM signatures (RFC 6376) with simple/simple canonicalization, and the DNS record of the key."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from smtpd_fork.message import fields

__all__ = ["DkimKey"]


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)  # The record of a key of this size is one string.


@dataclass
class DkimKey:
    """A DKIM key of a domain."""

    domain: str
    selector: str = "k"
    _key: rsa.RSAPrivateKey = field(default_factory=_new_key)

    @property
    def name(self) -> str:
        """The name of its DNS record."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text of its DNS record."""
        public = self._key.public_key()
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={base64.b64encode(octets).decode()}"

    @property
    def private(self) -> str:
        """The key, as PEM."""
        form = PrivateFormat.PKCS8
        return self._key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()

    def sign(self, message: bytes) -> bytes:
        """Return a message with a signature in front."""
        _, _, body = message.partition(b"\r\n\r\n")
        digest = base64.b64encode(hashlib.sha256(body.rstrip(b"\r\n") + b"\r\n").digest())
        value = (
            f" v=1; a=rsa-sha256; c=simple/simple; d={self.domain}; s={self.selector};"
            f" h=From:Subject; bh={digest.decode()};\r\n\tb="
        ).encode()
        found = {each.name.lower(): each for each in fields(message)}
        signed = b"".join(
            message[found[name].start : found[name].end] for name in (b"from", b"subject")
        )
        signed += b"DKIM-Signature:" + value
        signature = base64.b64encode(self._key.sign(signed, padding.PKCS1v15(), SHA256()))
        return b"DKIM-Signature:" + value + signature + b"\r\n" + message
