"""A fake of Dovecot's authentication service: it sends the lines that a test sets."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.scripted_server import ScriptedServer

if TYPE_CHECKING:
    import asyncio

__all__ = ["OPENING", "AuthService"]

OPENING = (
    "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\n"
    "MECH\tCRAM-MD5\tdictionary\tactive\nMECH\tANONYMOUS\tanonymous\nMECH\tSCRAM-SHA-256-PLUS\n"
    "SPID\t1\nCUID\t2\nCOOKIE\t00\nDONE\n"
)


@dataclass
class AuthService(ScriptedServer):
    """A service whose answers a test sets, and which stores the received lines.

    :ivar opening: the first lines that it sends
    :ivar answers: by the first word and the mechanism of a line: the answer, with ``{id}``;
        None: no answer
    :ivar heard: received lines, as words
    """

    opening: str = OPENING
    answers: dict[str, str | None] = field(default_factory=dict)
    heard: list[list[str]] = field(default_factory=list)

    def requests(self, command: str) -> list[list[str]]:
        return [words for words in self.heard if words[0] == command]

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.opening.encode())
        while line := await reader.readline():
            words = line.decode().rstrip("\n").split("\t")
            self.heard.append(words)
            said = self._answer(words)
            if said:
                writer.write(said.format(id=words[1]).encode())

    def _answer(self, words: list[str]) -> str | None:
        if words[0] not in {"AUTH", "CONT"}:
            return None
        key = f"AUTH {words[2]}" if words[0] == "AUTH" else "CONT"
        if key in self.answers:
            return self.answers[key]
        response = words[-1].removeprefix("resp=") if words[0] == "AUTH" else words[2]
        user = b64decode(response).split(b"\0")[1].decode()
        if b64decode(response).endswith(b"\0secret"):
            return f"OK\t{{id}}\tuser={user}\n"
        return f"FAIL\t{{id}}\tuser={user}\n"


def challenge(text: bytes) -> str:
    return f"CONT\t{{id}}\t{b64encode(text).decode()}\n"
