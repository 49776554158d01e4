"""Route: a handler with conditions that select its sessions and messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers.when import When
from smtpd_fork.message.address_patterns import AddressPatterns
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks import Sink
from smtpd_fork.units import parse_boolean

__all__ = [
    "Copy",
    "Route",
    "is_open_relay",
    "missing_routes",
    "mistaken_files",
    "reachable_sinks",
    "route_errors",
    "routes_of",
    "unmet_conditions",
]

Copy: TypeAlias = Literal[False, True, "best-effort"]
"""Whether a sink gets copies: no; yes, and 250 is sent only after it has stored the copy; or
best-effort."""


class Route:
    """A handler with conditions. Handlers without conditions need no Route.

    ::

        Server([Accept(["example.com"]),
                Route(Lmtp("unix:/run/dovecot/lmtp"), recipients=["example.com"]),
                Relay("mx.internal:25"),
                Route(S3("archive"), copy="best-effort")])

    :param handler: a filter, or a sink
    :param recipients: for a sink: the recipients that it stores messages for, as addresses and
        domains (``a@example.com``, ``example.com``, ``*.example.com``); default: all. In a file
        this is ``for``
    :param copy: for a sink: it gets a copy of the messages that other sinks store. If True, the
        client gets 250 only if the copy was stored; with ``"best-effort"``, a failure is only
        logged and counted
    :param quarantine: for a sink: it stores only messages that a filter has quarantined
        (:func:`smtpd_fork.quarantine`)
    :param when: conditions: a table with the keys of :class:`When`, or a When
    :param name: the name in logs and metrics; default: the name of the class in lower case
    :ivar own_limit: for a sink: its own time limit for a message, in seconds
    :raises SettingError: a condition cannot be read
    :raises HandlerError: *recipients*, *copy* or *quarantine* was given, but the handler is not a
        sink
    """

    def __init__(
        self,
        handler: Any,
        *,
        recipients: Sequence[str] = (),
        copy: Copy = False,
        quarantine: bool = False,
        when: When | Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        self.handler = handler
        self.name = name or type(handler).__name__.lower()
        self.when = when if when is None or isinstance(when, When) else When.of(when)
        self.copy = _checked_copy(copy)
        self.quarantine = _checked_quarantine(quarantine)
        self.own_limit: float = getattr(handler, "time_limit", 0.0)
        try:
            self.recipients = AddressPatterns(
                [recipients] if isinstance(recipients, str) else recipients
            )
        except ValueError as error:
            raise SettingError("for", recipients, str(error)) from None
        of_sinks = {"for": self.recipients, "copy": self.copy, "quarantine": self.quarantine}
        given = [key for key, value in of_sinks.items() if value]
        if given and not isinstance(handler, Sink):
            reason = f"only classes derived from smtpd_fork.Sink have the key {given[0]}"
            raise HandlerError(f"{self.name} is not a sink: {reason}")

    @property
    def is_sink(self) -> bool:
        """Whether the handler is a sink."""
        return isinstance(self.handler, Sink)

    @property
    def is_plain(self) -> bool:
        """Whether there is no condition."""
        return not (self.when or self.recipients or self.copy or self.quarantine)

    def takes(self, address: str) -> bool:
        """Return whether the sink is responsible for a recipient."""
        return not self.recipients or self.recipients.match(address)

    def check_deliver(self) -> None:
        """Check that the sink can get a part of a message, or a copy.

        :raises HandlerError: its class overrides handle_DATA, but not deliver()
        """
        lineage = type(self.handler).__mro__
        of_data = next(each for each in lineage if "handle_DATA" in vars(each))
        of_deliver = next(each for each in lineage if "deliver" in vars(each))
        if of_deliver is Sink or lineage.index(of_data) < lineage.index(of_deliver):
            reason = "has handle_DATA; with several sinks, or with for or copy, it needs deliver()"
            raise HandlerError(f"{self.name} {reason}")

    def __repr__(self) -> str:
        return f"<Route {self.name}>"


def _checked_copy(value: Any) -> Copy:
    if value == "best-effort":
        return "best-effort"
    try:
        return value == "required" or parse_boolean(value)
    except ValueError:
        raise SettingError("copy", value, "expected true, false or best-effort") from None


def _checked_quarantine(value: Any) -> bool:
    try:
        return parse_boolean(value)
    except ValueError as error:
        raise SettingError("quarantine", value, str(error)) from None


def routes_of(handlers: Sequence[Any]) -> tuple[Route, ...]:
    """Return the routes of handlers, with unique names."""
    routes, names = [], set[str]()
    for handler in handlers:
        route = handler if isinstance(handler, Route) else Route(handler)
        name, number = route.name, 1
        while route.name in names:
            number += 1
            route.name = f"{name}-{number}"
        names.add(route.name)
        routes.append(route)
    return tuple(routes)


def reachable_sinks(routes: Sequence[Route]) -> list[Route]:
    """Return the sinks that may get messages, as no sink before them matches all their messages."""
    regular: list[Route] = []
    found = []
    for route in routes:
        if route.is_sink and (
            route.copy or not any(_takes_all_of(each, route) for each in regular)
        ):
            found.append(route)
            if not route.copy:
                regular.append(route)
    return found


def route_errors(routes: Sequence[Route]) -> Iterator[str]:
    """Yield the contradictions in a chain, such as a handler that never gets a message."""
    sinks: list[Route] = []
    for route in routes:
        if route.is_sink:
            regular = [each for each in sinks if not each.copy]
            before = next((each for each in regular if _takes_all_of(each, route)), None)
            if before is not None and not route.copy:
                reason = f"{before.name} takes all messages before it"
                yield f"the sink {route.name} gets no message: {reason}"
            sinks.append(route)
        elif sinks and hasattr(route.handler, "handle_DATA"):
            yield f"{route.name} is after the sink {sinks[0].name} and gets no message"
    yield from _missing_sinks(routes, sinks)


def _missing_sinks(routes: Sequence[Route], sinks: Sequence[Route]) -> Iterator[str]:
    """Yield an error for each copy or quarantine without a sink for the other messages."""
    ordinary = [each for each in sinks if not each.quarantine]
    quarantined = [each for each in sinks if each.quarantine]
    if quarantined and not ordinary:
        yield f"{quarantined[0].name} is a quarantine, and no sink takes the other messages"
    for kind in (ordinary, quarantined):
        if kind and all(each.copy for each in kind):
            yield f"{kind[0].name} is a copy, and no sink takes the messages"
    for route in routes:
        if getattr(route.handler, "quarantines", False) and not quarantined:
            yield f"{route.name} quarantines messages, and no sink has quarantine = true"


def missing_routes(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each domain that a filter accepts, but that has no sink."""
    sinks = [route for route in routes if route.is_sink and not route.quarantine]
    regular = [
        route for route in sinks if not route.copy and not (route.when and route.when.needs_marks)
    ]
    if not regular or not all(route.recipients for route in regular):
        return
    patterns = [pattern for route in regular for pattern in route.recipients.patterns]
    for route in routes:
        for domain in getattr(route.handler, "named_domains", ()):
            ours = AddressPatterns([domain])
            of_address = any("@" in each[1:] and ours.match(each) for each in patterns)
            if not of_address and not AddressPatterns(patterns).covers(ours):
                yield f"no sink takes mail for {domain}, which {route.name} accepts: it gets 550"


def mistaken_files(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each domain of a filter that is the name of an existing file."""
    for route in routes:
        for domain in getattr(route.handler, "named_domains", ()):
            if "." not in domain and Path(domain).is_file():
                yield f"{route.name}: {domain} is a domain here; write ./{domain} for the file"


def unmet_conditions(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each condition on a score or tags if no other handler sets these."""
    for route in routes:
        others = [each.handler for each in routes if each is not route]
        if route.when is not None and route.when.needs_marks and not any(map(_marks, others)):
            yield f"{route.name} is never called: no handler sets the score or tag of its when"


def _marks(handler: Any) -> bool:
    """Return whether a handler may set scores and tags, as a user's filter may."""
    return bool(getattr(handler, "gives_marks", not isinstance(handler, Sink)))


def is_open_relay(routes: Sequence[Route]) -> bool:
    """Return whether a sink relays for any client, without a handler that controls relaying.

    A sink with ``for`` relays only to certain destinations. A handler with ``when`` does not
    control clients for which it is not called, unless these are the authenticated ones.
    """
    unless_authenticated = When(authenticated=False)
    controlled = any(
        getattr(route.handler, "controls_relaying", False)
        and route.when in (None, unless_authenticated)
        for route in routes
    )
    return not controlled and any(
        route.is_sink and route.handler.relays and not _is_limited(route) for route in routes
    )


def _is_limited(route: Route) -> bool:
    """Return whether a sink is limited to certain clients or recipients."""
    when = route.when
    return bool(route.recipients) or (
        when is not None and (bool(when.authenticated) or when.client is not None)
    )


def _takes_all_of(before: Route, route: Route) -> bool:
    """Return whether the sink *before* matches all messages of *route*."""
    if before.quarantine != route.quarantine:
        return False
    if before.when is not None and before.when != route.when:
        return False
    return not before.recipients or (
        bool(route.recipients) and before.recipients.covers(route.recipients)
    )
