"""RunTimeChanges: changes of a running server: limits, denials, ending sessions, withdrawal."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from smtpd_fork.config import RESERVED_DESCRIPTORS, Config, SettingError
from smtpd_fork.daemon import raise_descriptor_limit
from smtpd_fork.gate import GATE_SETTINGS, Limits

if TYPE_CHECKING:
    from smtpd_fork.gate import Denial, Gate, Ticket
    from smtpd_fork.server.running import Running
    from smtpd_fork.settings import GateSettings

__all__ = ["RunTimeChanges"]

READ_SECONDS = 10.0
"""Time limit for reading the files of networks that a change names."""

SETTABLE = sorted(GATE_SETTINGS - {"max_loop_lag", "deny"})
"""Settings that can be changed at run time. Not among them are ``max_loop_lag``, as the lag is
measured from the start or not at all, and ``deny``, as a new value would replace the lists."""


class RunTimeChanges(ABC):
    """The methods of :class:`smtpd_fork.Server` that change it at run time.

    They change limits and denials, end sessions, and leave clients to another process.
    """

    gate: Gate
    _running: Running | None
    _set_limits: Limits | None = None  # the limits of the last set_limits()
    _changed_limits: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def config(self) -> Config:
        """The settings in force."""

    @property
    def changed_limits(self) -> Mapping[str, Any]:
        """The settings that :meth:`set_limits` has changed and that are still in force."""
        return self._changed_limits if self._set_limits is self.gate.limits else {}

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits until the next reload, all of them or none; other limits keep their state.

        ``await server.set_limits(max_from_ip=5, rate="30/m")`` is ``smtpd-fork limits max_from_ip=5
        rate=30/m``. Lists are replaced; :meth:`deny` adds to them.

        :returns: a warning, such as a lack of file descriptors; empty if there is none
        :raises SettingError: a setting cannot be changed at run time, or its value is invalid
        """
        before, config = self.gate.limits, self.config
        for name, value in settings.items():
            if name == "deny":
                reason = "this would replace all lists of deny; `smtpd-fork deny NET`, or deny() of"
                raise SettingError(name, value, f"{reason} a Server, adds to them")
            if name not in SETTABLE:
                reason = "not a limit that can be changed at run time; these are"
                raise SettingError(name, value, f"{reason} {', '.join(SETTABLE)}")
        in_force = {name: getattr(config, name) for name in GATE_SETTINGS}
        wanted = Config.build({**in_force, **self.changed_limits, **settings})
        values = {name: getattr(wanted, name) for name in settings}
        try:
            async with asyncio.timeout(READ_SECONDS):
                limits = await asyncio.to_thread(partial(replace, before, **values))
        except TimeoutError:
            raise SettingError("limits", list(values), "the lists take too long to read") from None
        if self.gate.limits is not before or self.config is not config:
            reason = "the limits were changed meanwhile; check them and try again"
            raise SettingError("limits", list(values), reason)
        changes = {**self.changed_limits, **values}
        self.gate.limits = self._set_limits = limits
        self._changed_limits = {n: v for n, v in changes.items() if v != getattr(config, n)}
        return _lack_of_descriptors(limits.limit_connections)

    def deny(
        self, network: str, text: str = "", *, seconds: float | None = None, by: str = "the program"
    ) -> Denial:
        """Refuse new clients of *network* with 554, in addition to the lists of ``deny``.

        May be called in any thread. Among these denials, ``deny`` and ``allow``, the smallest
        network that contains an address applies to it. A reload does not change the denials.
        Existing sessions continue; :meth:`kick` ends them. A second denial of the same network
        replaces its text and time.

        :param network: ``192.0.2.0/24``, ``2001:db8::/32``, or an address
        :param text: text of the reply, at most 200 characters; default: ``Access denied``
        :param seconds: duration, at most 366 days; None: until :meth:`undeny`, or the server ends
        :param by: origin of the denial, for the explanation of a refusal
        :raises SettingError: *network* is not a network, text or time is out of its range, or
            10,000 networks are denied already
        """
        return self.gate.denials.add(network, text, seconds=seconds, by=by)

    def undeny(self, network: str) -> bool:
        """Admit clients of *network* again; return whether :meth:`deny` had refused them.

        May be called in any thread.

        :raises SettingError: *network* is not a network
        """
        return self.gate.denials.remove(network)

    def leave_clients(self, another_process_has_slot: Callable[[], bool]) -> Callable[[], None]:
        """Leave clients in the backlog to another process while that process has a free slot.

        :param another_process_has_slot: returns whether it has; called while the gate is full
        :returns: a function to call when the other process has no free slot any more
        """
        assert self._running is not None, "the server was not started"
        self._running.acceptor.another_process_has_slot = another_process_has_slot
        return self._running.acceptor.reopen

    def rest(self) -> None:
        """Stop accepting clients, as :meth:`withdraw` does, until :meth:`accept` is called."""
        if self._running is not None:
            self._running.withdraw(permanently=False)

    def withdraw(self) -> None:
        """Stop accepting clients: another process accepts them on the same listening sockets.

        Clients are not affected: sessions continue, and clients that wait for a slot still get
        one. :meth:`leave` waits for their end.
        """
        if self._running is not None:
            self._running.withdraw(permanently=True)

    async def leave(self) -> None:
        """Wait until all sessions, and clients that will still have one, have ended."""
        if self._running is not None:
            await self._running.leave()

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions of this server whose ticket is *chosen*, also before the greeting.

        A client that is idle, sends a message, or waits for the greeting gets 421, and its
        connection is closed. While a handler works for the client, the handler's reply is sent
        first. A client in a TLS handshake, or before one of implicit TLS, gets no reply.

        :param chosen: returns whether to end the session with a ticket
        :returns: number of sessions
        """
        return 0 if self._running is None else await self._running.kick(chosen)


def _lack_of_descriptors(limit_connections: int) -> str:
    wanted = limit_connections + RESERVED_DESCRIPTORS
    allowed = raise_descriptor_limit(wanted)
    if allowed >= wanted:
        return ""
    return (
        f"{limit_connections} sessions need {wanted} open files, and the system allows {allowed} "
        "(RLIMIT_NOFILE)"
    )
