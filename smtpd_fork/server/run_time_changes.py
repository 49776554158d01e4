"""RunTimeChanges: what a server changes while it runs: limits, denials, sessions that end."""

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
"""Time for reading the files of networks that a change names."""

SETTABLE = sorted(GATE_SETTINGS - {"max_loop_lag", "deny"})
"""Settings that can be changed; event-loop lag is measured from the start or not at all, and a new
value of ``deny`` would drop the lists."""


class RunTimeChanges(ABC):
    """Changes limits and denials, ends sessions, and leaves clients to another process."""

    gate: Gate
    _running: Running | None
    _set_limits: Limits | None = None  # those that were put in force here
    _changed_limits: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def config(self) -> Config:
        """The settings in force."""

    @property
    def changed_limits(self) -> Mapping[str, Any]:
        """The settings that :meth:`set_limits` has changed, and that are in force."""
        return self._changed_limits if self._set_limits is self.gate.limits else {}

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits until the next reload, all of them or none; other limits keep their state.

        ``await server.set_limits(max_from_ip=5, rate="30/m")`` is ``smtpd-fork limits max_from_ip=5
        rate=30/m``. Lists are replaced; :meth:`deny` adds to them.

        :returns: a warning, such as a lack of file descriptors; empty if there is none
        :raises SettingError: a setting cannot be changed at run time, or its value cannot be read
        """
        before, config = self.gate.limits, self.config
        for name, value in settings.items():
            if name == "deny":
                reason = "this would replace all lists of deny; `smtpd-fork deny NET`, or deny() of"
                raise SettingError(name, value, f"{reason} a Server, adds to them")
            if name not in SETTABLE:
                reason = "no limit that can be changed at run time; those are"
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
            reason = "another change of the limits came first; check the limits and try again"
            raise SettingError("limits", list(values), reason)
        changes = {**self.changed_limits, **values}
        self.gate.limits = self._set_limits = limits
        self._changed_limits = {n: v for n, v in changes.items() if v != getattr(config, n)}
        return _lack_of_descriptors(limits.limit_connections)

    def deny(
        self, network: str, text: str = "", *, seconds: float | None = None, by: str = "the program"
    ) -> Denial:
        """Refuse new clients of *network* with 554, in addition to the lists of ``deny``.

        May be called in any thread. The smallest network around an address decides, among these,
        ``deny`` and ``allow``. A reload changes nothing about it. Sessions that exist go on;
        :meth:`kick` ends them. A second denial of the same network replaces text and time.

        :param network: ``192.0.2.0/24``, ``2001:db8::/32``, or an address
        :param text: of the reply, at most 200 characters; default: ``Access denied``
        :param seconds: how long, at most 366 days; None: until :meth:`undeny`, or the end
        :param by: who denies it, for the explanation of a refusal
        :raises SettingError: *network* is none, text or time is out of its range, or 10,000
            networks are denied already
        """
        return self.gate.denials.add(network, text, seconds=seconds, by=by)

    def undeny(self, network: str) -> bool:
        """Admit clients of *network* again; return whether :meth:`deny` had refused them.

        May be called in any thread.

        :raises SettingError: *network* is none
        """
        return self.gate.denials.remove(network)

    def leave_clients(self, another_process_has_slot: Callable[[], bool]) -> Callable[[], None]:
        """Leave clients in the backlog to another process while that has a free slot.

        :param another_process_has_slot: whether it has; asked while the gate is full
        :returns: is to be called when it has none any more
        """
        assert self._running is not None, "the server was not started"
        self._running.acceptor.another_process_has_slot = another_process_has_slot
        return self._running.acceptor.reopen

    def rest(self) -> None:
        """Accept no more, as after :meth:`withdraw`, but only until the server accepts again."""
        if self._running is not None:
            self._running.withdraw(permanently=False)

    def withdraw(self) -> None:
        """Accept no more: another process does now, on the same listening sockets.

        No client notices: sessions go on, and so do clients that wait for a slot.
        :meth:`leave` ends when they have gone.
        """
        if self._running is not None:
            self._running.withdraw(permanently=True)

    async def leave(self) -> None:
        """Wait until the sessions that existed when the server withdrew have ended."""
        if self._running is not None:
            await self._running.leave()

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions of this server that are *chosen*, also those that have not begun.

        A client that is idle, or in the middle of a message, gets 421 and is closed; one that a
        handler works for gets its answer first; one that still waits for the greeting gets 421 as
        well. One in a TLS handshake, or that would have to begin with one, gets no reply.

        :returns: how many there were
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
