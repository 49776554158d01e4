"""Authentication: the lines that a client sends for AUTH PLAIN or LOGIN (RFC 4954, RFC 4616)."""

from __future__ import annotations

from base64 import b64encode
from typing import Self

__all__ = ["Authentication"]


class Authentication:
    """The lines of an AUTH command, in order.

    :param lines: the lines without CR LF
    :param secrets: strings that must not be logged, even if a server repeats them in a reply
    """

    def __init__(self, lines: list[bytes], secrets: list[str]) -> None:
        self._lines = lines
        self._secrets = secrets

    @classmethod
    def of(cls, offered: str, user: str, password: str) -> Self | None:
        """Return the lines for a server's mechanisms; None if it offers neither PLAIN nor LOGIN."""
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
        """Whether there are more lines to send."""
        return bool(self._lines)

    def next(self) -> bytes:
        """Return the next line."""
        return self._lines.pop(0) + b"\r\n"

    def without_secrets(self, text: str) -> str:
        """Return *text* with each secret replaced by asterisks."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def __repr__(self) -> str:
        return "<Authentication>"
