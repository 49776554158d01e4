"""Route: a handler, and which sessions and messages it is for."""

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
    "route_faults",
    "routes_of",
    "unmet_conditions",
]

Copy: TypeAlias = Literal[False, True, "best-effort"]
"""Whether a sink gets copies: no; yes, and 250 waits for it; or as well as it can."""


class Route:
    """A handler with conditions; one without conditions need not be wrapped.

    ::

        Server([Accept(["example.com"]),
                Route(Lmtp("unix:/run/dovecot/lmtp"), recipients=["example.com"]),
                Relay("mx.internal:25"),
                Route(S3("archive"), copy="best-effort")])

    :param handler: a filter, or a sink
    :param recipients: of a sink: the recipients that it takes, as addresses and domains
        (``a@example.com``, ``example.com``, ``*.example.com``); default: all.
        In a file this is ``for``
    :param copy: of a sink: it gets a copy of what other sinks take. If True, the client gets 250
        only if the copy was stored; ``"best-effort"`` logs and counts a failure
    :param quarantine: of a sink: it takes what a filter has put aside
        (:func:`smtpd_fork.quarantine`), and nothing else
    :param when: conditions, as a table with the keys of :class:`When`, or one
    :param name: for logs and metrics; default: the name of the class in lower case
    :ivar own_limit: of a sink: the seconds that it may take for a message by itself
    :raises SettingError: a condition cannot be read
    :raises HandlerError: *recipients*, *copy* or *quarantine* of a handler that is no sink
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
        """Whether the sink is for a recipient."""
        return not self.recipients or self.recipients.match(address)

    def check_deliver(self) -> None:
        """See that the sink can get a part of a message, or a copy.

        :raises HandlerError: a class with its own handle_DATA has no deliver() of its own
        """
        lineage = type(self.handler).__mro__
        of_data = next(each for each in lineage if "handle_DATA" in vars(each))
        of_deliver = next(each for each in lineage if "deliver" in vars(each))
        if of_deliver is Sink or lineage.index(of_data) < lineage.index(of_deliver):
            reason = "has handle_DATA; one of several sinks, or with for or copy, needs deliver()"
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
    """Return handlers as routes, whose names differ."""
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
    """Return the sinks that get messages: no sink before them takes all that they would take."""
    takers: list[Route] = []
    found = []
    for route in routes:
        if route.is_sink and (route.copy or not any(_takes_all_of(each, route) for each in takers)):
            found.append(route)
            if not route.copy:
                takers.append(route)
    return found


def route_faults(routes: Sequence[Route]) -> Iterator[str]:
    """Yield what is contradictory in a chain: a handler that would never get a message."""
    sinks: list[Route] = []
    for route in routes:
        if route.is_sink:
            takers = [each for each in sinks if not each.copy]
            before = next((each for each in takers if _takes_all_of(each, route)), None)
            if before is not None and not route.copy:
                yield f"the sink {route.name} gets no message: {before.name} before it takes all"
            sinks.append(route)
        elif sinks and hasattr(route.handler, "handle_DATA"):
            yield f"{route.name} stands behind the sink {sinks[0].name} and gets no message"
    yield from _faults_of_kinds(routes, sinks)


def _faults_of_kinds(routes: Sequence[Route], sinks: Sequence[Route]) -> Iterator[str]:
    """Yield where there is a copy, or a quarantine, and no sink that takes the messages."""
    ordinary = [each for each in sinks if not each.quarantine]
    put_aside = [each for each in sinks if each.quarantine]
    if put_aside and not ordinary:
        yield f"{put_aside[0].name} is a quarantine, and no sink takes the other messages"
    for kind in (ordinary, put_aside):
        if kind and all(each.copy for each in kind):
            yield f"{kind[0].name} is a copy, and no sink takes the messages"
    for route in routes:
        if getattr(route.handler, "quarantines", False) and not put_aside:
            yield f"{route.name} quarantines messages, and no sink has quarantine = true"


def missing_routes(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each domain that a filter accepts, and that no sink takes."""
    sinks = [route for route in routes if route.is_sink and not route.quarantine]
    takers = [
        route for route in sinks if not route.copy and not (route.when and route.when.needs_marks)
    ]
    if not takers or not all(route.recipients for route in takers):
        return
    taken = [pattern for route in takers for pattern in route.recipients.patterns]
    for route in routes:
        for domain in getattr(route.handler, "named_domains", ()):
            ours = AddressPatterns([domain])
            of_address = any("@" in each[1:] and ours.match(each) for each in taken)
            if not of_address and not AddressPatterns(taken).covers(ours):
                yield f"no sink takes mail for {domain}, which {route.name} accepts: it gets 550"


def mistaken_files(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each domain that a filter accepts, and that is the name of a file here."""
    for route in routes:
        for domain in getattr(route.handler, "named_domains", ()):
            if "." not in domain and Path(domain).is_file():
                yield f"{route.name}: {domain} is a domain here; write ./{domain} for the file"


def unmet_conditions(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each condition on a score or tags where no other handler gives any."""
    for route in routes:
        others = [each.handler for each in routes if each is not route]
        if route.when is not None and route.when.needs_marks and not any(map(_marks, others)):
            yield f"{route.name} is never asked: no handler gives the score or tag of its when"


def _marks(handler: Any) -> bool:
    """Whether a handler may give scores and tags: one of others may, unless it is a sink."""
    return bool(getattr(handler, "gives_marks", not isinstance(handler, Sink)))


def is_open_relay(routes: Sequence[Route]) -> bool:
    """Whether some sink relays for any client, and no handler says that it controls relaying.

    A sink that has ``for`` relays to certain destinations; a handler that has ``when`` does not
    control those for whom it is not asked. Only clients that have authenticated may be left out.
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
    """Whether a sink takes messages of certain clients, or for certain recipients, alone."""
    when = route.when
    return bool(route.recipients) or (
        when is not None and (bool(when.authenticated) or when.client is not None)
    )


def _takes_all_of(before: Route, route: Route) -> bool:
    """Whether a sink takes whatever *route*, behind it, would take."""
    if before.quarantine != route.quarantine:
        return False
    if before.when is not None and before.when != route.when:
        return False
    return not before.recipients or (
        bool(route.recipients) and before.recipients.covers(route.recipients)
    )
