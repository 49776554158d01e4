"""Joined AUTH: combines the mechanisms of a chain's handlers.

If several handlers have a mechanism, the first one whose conditions match is called. EHLO offers
only mechanisms for which the client has a handler.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import AuthResult

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.auth_offer import with_mechanisms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smtpd_fork.handlers.joined_hooks import Hook
    from smtpd_fork.handlers.route import Route

__all__ = ["conditional_offer", "joined_mechanisms"]


def joined_mechanisms(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the mechanisms of all handlers by attribute name, such as ``auth_PLAIN``."""
    names = {name for route in routes for name in _attributes(route)}
    return {
        name: _joined([route for route in routes if name in _attributes(route)], name)
        for name in names
    }


def conditional_offer(routes: Sequence[Route]) -> Hook | None:
    """Return a hook EHLO that removes mechanisms which the client cannot use, or None."""
    several = [route for route in routes if _attributes(route)]
    if all(route.when is None for route in several):
        return None

    async def handle_EHLO(
        _: Any, session: Any, __: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        here = _mechanisms(route for route in several if _holds(route, session))
        return with_mechanisms(responses, _mechanisms(several) - here, ())

    return handle_EHLO


def _holds(route: Route, session: Any) -> bool:
    return route.when is None or route.when.holds_at("AUTH", session, ())


def _joined(routes: Sequence[Route], name: str) -> Any:
    methods = [(route, getattr(route.handler, name)) for route in routes]
    first = methods[0][1]
    if routes[0].when is None:
        return first

    @functools.wraps(first)
    async def mechanism(server: Any, args: list[str]) -> Any:
        for route, method in methods:
            if _holds(route, server.session):
                return await method(server, args)
        return AuthResult(success=False, handled=False, message=replies.NO_SUCH_MECHANISM)

    return mechanism


def _attributes(route: Route) -> Sequence[str]:
    found = [name for name in dir(route.handler) if name.startswith("auth_")]
    return [name for name in found if callable(getattr(route.handler, name))]


def _mechanisms(routes: Iterable[Route]) -> set[str]:
    return {
        _mechanism(getattr(route.handler, name), name)
        for route in routes
        for name in _attributes(route)
    }


def _mechanism(method: Callable[..., Any], name: str) -> str:
    """Return the name of a mechanism, by the rules of aiosmtpd."""
    named: str = getattr(method, "__auth_mechanism_name__", name[5:].replace("__", "-"))
    return named.upper()
