"""Trusted proxies that name their clients with XCLIENT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.sinks import Discard
from support.client import Client

if TYPE_CHECKING:
    from smtpd_fork import Server

TRUST: dict[str, Any] = {"xclient_trust": ["127.0.0.1"]}


class Looks(Discard):
    """Stores the attributes of the client of each message."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
        self.seen.append((session.peer, session.host_name_dns, session.host_name))
        return MISSING


async def named(client: Client, words: str) -> str:
    """Send XCLIENT; return the code and the text of the reply."""
    reply = await client.say(f"XCLIENT {words}")
    return f"{reply.code} {reply.text}"


async def proxy_to(server: Server, words: str, *, source: str | None = None) -> tuple[Client, str]:
    """Connect as a proxy, and send XCLIENT."""
    client = await Client.to(server.addresses[0], source=source)
    await client.greet("proxy.example")
    return client, await named(client, words)
