"""Commands for pipe, and messages delivered to them."""

from __future__ import annotations

from typing import Any

from smtpd_fork.sinks.pipe import Pipe
from support.mail import a_mail

MESSAGE = b"Subject: x\r\n\r\nhello\r\n"

LARGE = b"Subject: x\r\n\r\n" + b"y" * 78 * 50_000 + b"\r\n"


def shell(script: str, *words: str) -> str:
    """Return the command that runs a script in a shell."""
    quoted = script.replace("'", "'\\''").replace("{", "{{").replace("}", "}}")
    return " ".join(["sh", "-c", f"'{quoted}'", "sh", *words])


async def reply_of(command: str, *recipients: str, content: bytes = MESSAGE, **options: Any) -> Any:
    pipe = Pipe(command, **options)
    pipe.prepare()
    try:
        return await pipe.deliver(a_mail(*recipients, content=content))
    finally:
        await pipe.close()
