"""The filter accept in tests: a map of recipients, and clients that send mail to some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_fork.filters import Accept
from support.client import Client, code_and_enhanced

if TYPE_CHECKING:
    from pathlib import Path


MAP = """\
bob@example.com
carol@example.com OK
old@example.com      REJECT 5.1.6 She has moved
busy@example.com     DEFER 450 4.2.1 Not today
all@example.com      bob@example.com, carol@example.com, dave@example.org
"""


def accept(directory: Path, text: str = MAP, **more: Any) -> Accept:
    path = directory / "recipients.map"
    path.write_text(text)
    return Accept(["example.com"], recipients=str(path), **more)


async def rcpt(client: Client, *addresses: str) -> list[tuple[int, str]]:
    await client.say("RSET", "MAIL FROM:<a@example.net>")
    return [code_and_enhanced(await client.say(f"RCPT TO:<{each}>")) for each in addresses]
