"""Authentication: what a client says after AUTH, PLAIN or LOGIN (RFC 4954, RFC 4616)."""

from __future__ import annotations

from base64 import b64encode
from typing import Self

__all__ = ["Authentication"]


class Authentication:
    """The lines of one AUTH, in order.

    :param lines: without their CR LF
    :param secrets: what no log may show, also where the hop repeats it
    """

    def __init__(self, lines: list[bytes], secrets: list[str]) -> None:
        self._lines = lines
        self._secrets = secrets

    @classmethod
    def of(cls, offered: str, user: str, password: str) -> Self | None:
        """Return what to say to a hop that offers these mechanisms; None if none is known."""
        plain = b64encode(f"\0{user}\0{password}".encode())
        name, word = b64encode(user.encode()), b64encode(password.encode())
        secrets = [password, plain.decode(), word.decode()]
        mechanisms = offered.split()
        if "PLAIN" in mechanisms:
            return cls([b"AUTH PLAIN " + plain], secrets)
        if "LOGIN" in mechanisms:
            return cls([b"AUTH LOGIN", name, word], secrets)
        return None

    @property
    def has_more(self) -> bool:
        """Whether the hop may ask for more."""
        return bool(self._lines)

    def next(self) -> bytes:
        """Return the next line."""
        return self._lines.pop(0) + b"\r\n"

    def without_secrets(self, text: str) -> str:
        """Return *text* with each secret replaced."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def __repr__(self) -> str:
        return "<Authentication>"
