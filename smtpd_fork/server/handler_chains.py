"""HandlerChains: the handlers of new sessions, and those that older sessions still have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from smtpd_fork.handlers import Chain
from smtpd_fork.handlers.check import COMMANDS
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from smtpd_fork.server.sessions import Sessions

__all__ = ["HandlerChains", "chain_of"]


class HandlerChains:
    """The chains of a server.

    :ivar current: of new sessions
    """

    def __init__(self, current: Chain) -> None:
        self.current = current
        self._retired: dict[Chain, asyncio.Task[None]] = {}

    def change(self, chain: Chain, sessions: Sessions) -> None:
        """Have new sessions use *chain*; the other is closed when nobody has it any more."""
        old, self.current = self.current, chain
        if old is not chain:
            self._retired[old] = asyncio.ensure_future(self._retire(old, sessions))

    async def _retire(self, chain: Chain, sessions: Sessions) -> None:
        await sessions.outlived(chain)
        del self._retired[chain]
        await chain.close()

    async def close(self) -> None:
        """Close all of them: there are no sessions any more."""
        for chain, task in list(self._retired.items()):
            task.cancel()
            await chain.close()
        self._retired.clear()
        await self.current.close()


def chain_of(handler: Any, session_class: type = SMTP) -> Chain:
    """Return *handler*, or several in a list or tuple, in order, as a chain.

    A handler whose class is derived from ``tuple`` (a ``NamedTuple``) or ``list`` is one handler.

    :raises HandlerError: one of them cannot be asked
    """
    if isinstance(handler, Chain):
        return handler
    commands = {n.removeprefix("smtp_") for n in dir(session_class) if n.startswith("smtp_")}
    several = handler if type(handler) in (list, tuple) else [handler]
    return Chain(several, commands=commands - COMMANDS)
