"""Chain: combines several handlers, so that sessions see a single handler of aiosmtpd's interface.

A hook of the chain calls the hooks of its handlers in order
(:mod:`smtpd_fork.handlers.joined_hooks`). Several sinks, and sinks with conditions, are combined as
one handler (:mod:`smtpd_fork.handlers.delivery`). The chain has a hook only if one of its handlers
has it, so that missing hooks cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.handlers import Sink as AiosmtpdSink

from smtpd_fork.errors import HandlerError, SmtpdForkError, error_origin
from smtpd_fork.filters import Filter
from smtpd_fork.handlers.check import COMMANDS, check_handler
from smtpd_fork.handlers.delivery import Delivery
from smtpd_fork.handlers.forged_results import ForgedResults
from smtpd_fork.handlers.joined_auth import conditional_offer, joined_mechanisms
from smtpd_fork.handlers.joined_hooks import (
    Hook,
    conditional,
    hook_of,
    is_hook,
    message_hook,
    one_hook,
)
from smtpd_fork.handlers.route import (
    Route,
    is_open_relay,
    missing_routes,
    mistaken_files,
    reachable_sinks,
    route_errors,
    routes_of,
    unmet_conditions,
)
from smtpd_fork.sanitizer import hidden
from smtpd_fork.sinks import Sink
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from smtpd_fork.dialogue import Tally

__all__ = ["Chain", "sink_limit"]

log = logging.getLogger("smtpd_fork.handlers")

_DELIVERY_HOOKS = {"handle_DATA", "handle_RCPT"}
"""The hooks that several sinks have in common."""

MARGIN_SECONDS = 5.0
"""Difference between the time limits of a hook and of its sink."""


class Chain:
    """Several handlers, in order, that act as one.

    :param handlers: handlers of aiosmtpd's interface, or :class:`Route` objects; at least one
    :param commands: commands of a subclass of SMTP, which may call further hooks
    :raises HandlerError: a handler is invalid
    """

    def __init__(self, handlers: Sequence[Any], *, commands: Collection[str] = ()) -> None:
        self.routes = routes_of(handlers)
        self.handlers = tuple(route.handler for route in self.routes)
        if not self.handlers:
            raise HandlerError("at least one handler is required")
        for handler in self.handlers:
            check_handler(handler, commands)
        self._sinks = sinks = reachable_sinks(self.routes)
        self._forged_results = ForgedResults()
        simple = len(sinks) < 2 and all(route.is_plain for route in sinks)  # noqa: PLR2004 - one
        self._delivery = None if simple else Delivery(sinks)
        for route in sinks if self._delivery is not None else ():
            route.check_deliver()
        names = {name for handler in self.handlers for name in dir(handler) if is_hook(name)}
        if any(isinstance(handler, AiosmtpdSink) for handler in self.handlers):
            names.add("handle_DATA")
        if self._delivery is not None:
            names |= _DELIVERY_HOOKS
        offer = conditional_offer(self.routes)
        if offer is not None:
            names.add("handle_EHLO")
        for name in sorted(names):
            hooks = [hook for _, hook in self._hooks(name)]
            self._join(name, [offer, *hooks] if offer and name == "handle_EHLO" else hooks)
        for name in ("handle_exception", "process_message"):
            self._use_first(name)
        vars(self).update(joined_mechanisms(self.routes))
        self.offers_auth_without_tls = any(
            getattr(handler, "offers_auth_without_tls", False) for handler in self.handlers
        )
        """Whether a handler offers AUTH also on connections without TLS."""
        receivers = [handler for handler in self._reachable if _receives_messages(handler)]
        others = [route.handler for route in sinks if route.copy or route.quarantine]
        self.supports_dsn = _all_have("supports_dsn", [h for h in receivers if h not in others])
        """Whether all handlers that may accept a message support DSN."""
        self.supports_binarymime = _all_have("supports_binarymime", receivers)
        """Whether all handlers that may accept a message preserve binary content."""

    @classmethod
    def of(cls, handler: Any, session_class: type = SMTP) -> Self:
        """Return a chain of *handler*, or of several handlers in a list or tuple.

        An object whose class is derived from ``tuple`` (a ``NamedTuple``) or ``list`` is one
        handler.

        :param session_class: the session class, which may call further hooks
        :raises HandlerError: a handler is invalid
        """
        if isinstance(handler, cls):
            return handler
        commands = {n.removeprefix("smtp_") for n in dir(session_class) if n.startswith("smtp_")}
        several = handler if type(handler) in (list, tuple) else [handler]
        return cls(several, commands=commands - COMMANDS)

    def _hooks(self, name: str) -> Iterator[tuple[Route, Hook]]:
        """Yield the hooks *name*, in order; all sinks have one in common if there is a delivery."""
        delivery = self._delivery if name in _DELIVERY_HOOKS else None
        asked = False
        for route in self.routes:
            if route.is_sink and name in _DELIVERY_HOOKS and route not in self._sinks:
                continue
            if route.is_sink and delivery is not None:
                if not asked:
                    asked = True
                    yield route, getattr(delivery, name)
            elif (hook := hook_of(route.handler, name)) is not None:
                if route.when is not None:
                    hook = conditional(name, hook, route.when, route.handler)
                yield route, hook

    def _join(self, name: str, hooks: Sequence[Hook]) -> None:
        if name == "handle_DATA":
            withhold = not any(each.quarantine for each in self._sinks)
            joined = message_hook(hooks, withhold=withhold)
            setattr(self, name, self._forged_results.hook(joined))
        else:
            setattr(self, name, one_hook(name, hooks))

    def _use_first(self, name: str) -> None:
        """Use the method *name* of the first handler that has it."""
        for handler in self.handlers:
            if hasattr(handler, name):
                setattr(self, name, getattr(handler, name))
                return

    def measure(self, tally: Tally) -> None:
        """Count and measure the answers of sinks, and the requests of filters."""
        self._forged_results.count_with(tally)
        if self._delivery is not None:
            self._delivery.count_with(tally.sink)
        if tally.timing:
            for name, each in self.filters.items():
                each.count_with(tally.filter(name))
        if self._delivery is None and hasattr(self, "handle_DATA"):
            hooks = [
                tally.counted_sink(route.name, hook) if route.is_sink else hook
                for route, hook in self._hooks("handle_DATA")
            ]
            self._join("handle_DATA", hooks)

    @property
    def _reachable(self) -> Sequence[Any]:
        """The handlers that may receive a message: those before the first sink, and the sinks."""
        first = next((i for i, each in enumerate(self.routes) if each.is_sink), len(self.routes))
        return [*self.handlers[:first], *(route.handler for route in self._sinks)]

    @property
    def sinks(self) -> dict[str, Sink]:
        """The sinks by name, in order."""
        return {route.name: route.handler for route in self.routes if route.is_sink}

    @property
    def filters(self) -> dict[str, Filter]:
        """The filters that query a program, by name, in order."""
        return {
            route.name: route.handler
            for route in self.routes
            if isinstance(route.handler, Filter) and route.handler.status is not None
        }

    @property
    def errors(self) -> Sequence[str]:
        """The errors of the chain, such as handlers that never receive a message."""
        return list(route_errors(self.routes))

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings of probable mistakes: domains without a sink, conditions without effect."""
        routes = self.routes
        return [*missing_routes(routes), *mistaken_files(routes), *unmet_conditions(routes)]

    @property
    def destination(self) -> str:
        """The destinations of the sinks; empty without a sink."""
        return ", ".join(route.handler.destination for route in self.routes if route.is_sink)

    @property
    def accepts_any_recipient(self) -> bool:
        """Whether no handler can reject a client, a sender or a recipient."""
        hooks = ("handle_CONNECT", "handle_EHLO", "handle_HELO", "handle_MAIL", "handle_RCPT")
        return not any(hasattr(self, hook) for hook in hooks)

    @property
    def is_open_relay(self) -> bool:
        """Whether a sink relays for any client."""
        return is_open_relay(self.routes)

    def configure(self, *, seconds: float, hostname: str, authserv_ids: Sequence[str] = ()) -> None:
        """Set the time limit of sinks, and the names of this server.

        The time limit of a sink is shorter than that of its hook, so that the sink's own error is
        reported.
        """
        self._forged_results.name(authserv_ids)
        for route in self.routes:
            if route.is_sink:
                route.handler.time_limit = min(route.own_limit, sink_limit(seconds))
                route.handler.hostname = hostname

    def check(self) -> None:
        """Check whether :meth:`prepare` would succeed, without creating anything.

        :raises SmtpdForkError: it would not
        """
        for handler in self._filters_and_sinks:
            _call(handler, "check")

    def prepare(self) -> None:
        """Let filters and sinks create or read their files, as the user that runs them.

        :raises SmtpdForkError: one of them cannot
        """
        for handler in self._filters_and_sinks:
            _call(handler, "prepare")

    @error_origin("handler")
    def on_reload(self) -> list[Callable[[], str | None]]:
        """Let the handlers read their files again; this blocks.

        :returns: functions to call in the event loop; each activates the data that a handler has
            read
        """
        routes = [each for each in self.routes if getattr(each.handler, "on_reload", None)]
        found = [(each.name, _call(each.handler, "on_reload")) for each in routes]
        return [partial(_activate, name, use) for name, use in found if use is not None]

    async def close(self) -> None:
        """Close filters and sinks; an error or a hang of one does not affect the others."""
        await asyncio.gather(*(_close(each) for each in self._filters_and_sinks))
        if self._delivery is not None:
            self._delivery.close()
        self._forged_results.close()

    @property
    def _filters_and_sinks(self) -> Sequence[Filter | Sink]:
        return [each for each in self.handlers if isinstance(each, (Filter, Sink))]


def _call(handler: Any, method: str) -> Any:
    """Return the result of a method; convert an unexpected exception to HandlerError.

    :raises SmtpdForkError: the method fails
    """
    try:
        return getattr(handler, method)()
    except SmtpdForkError:
        raise
    except Exception as error:
        kind = type(handler).__name__
        log.debug("%s.%s() has failed", kind, method, exc_info=True)
        text = hidden(" ".join(str(error).split()))
        reason = f"{type(error).__name__}: {text}".removesuffix(": ")
        raise HandlerError(f"{kind}.{method}() failed: {reason}") from error


async def _close(handler: Filter | Sink) -> None:
    try:
        await handler.close()
    except Exception:
        log.exception("close() of the handler %s has failed", type(handler).__name__)


def _activate(name: str, use: Callable[[], object]) -> str | None:
    """Activate the data that a handler has read; an error does not affect other handlers."""
    try:
        line = use()
    except Exception as error:
        log.exception("handler %s: the function that on_reload returned has failed", name)
        line = f"the change failed ({type(error).__name__}), see the log"
    return None if line is None else f"handler {name}: {line}"


def sink_limit(seconds: float) -> float:
    """Return the longest time limit of a sink whose hook has the limit *seconds*."""
    return max(seconds - MARGIN_SECONDS, seconds / 2)


def _all_have(name: str, handlers: Sequence[Any]) -> bool:
    return bool(handlers) and all(getattr(handler, name, False) for handler in handlers)


def _receives_messages(handler: Any) -> bool:
    return hook_of(handler, "handle_DATA") is not None or hasattr(handler, "process_message")
