"""The requests of the control socket, carried out by all processes.

A request that changes something is carried out in the supervisor first: an error is found before
any process gets the request, and a process that starts later gets the change as well. A request
that reads something is sent to all processes, and their answers are merged.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import msgspec

from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.fleet.status import FleetStatus
from smtpd_fork.observe.control.administration import TOP_CLIENTS, Administration
from smtpd_fork.observe.sink_state import SinkState
from smtpd_fork.supervisor.answers import answers_of
from smtpd_fork.supervisor.merged_fleet import merged_fleet
from smtpd_fork.supervisor.merged_sinks import merged_sinks, sum_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import smtpd_fork.control_protocol as protocol
    from smtpd_fork.supervisor.processes import Processes

__all__ = ["AllProcesses"]


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _sinks(values: Sequence[Any]) -> list[SinkState]:
    return merged_sinks(msgspec.convert(each, list[SinkState]) for each in values)


def _fleet(values: Sequence[Any]) -> FleetStatus | None:
    return merged_fleet(msgspec.convert(each, FleetStatus | None) for each in values)


_COUNTED: dict[str, Callable[[Sequence[Any]], Any]] = {
    "version": _first,
    "hostname": _first,
    "admitted": sum,
    "refused": sum,
    "rules": sum_counts,
    "messages": sum_counts,
    "rejections": sum_counts,
    "sinks": _sinks,
    "filters": _sinks,
    "listeners": _first,
    "fleet": _fleet,
}
"""How to merge the fields of the status that cover the processes of this supervisor only."""

_PRESENT: dict[str, Callable[[Sequence[Any]], Any]] = {"sessions": sum, "phases": sum_counts}
"""How to merge the fields that also cover the sessions of other supervisors' processes."""

NO_PROCESS = "no process serves at the moment; try again"


class AllProcesses(Administration):
    """Carries out requests in all processes."""

    def __init__(self, processes: Processes, drain: Callable[[float | None], None]) -> None:
        super().__init__(processes, drain)
        self._processes = processes

    async def _ask(self, request: protocol.Request, who: str) -> list[dict[str, Any]]:
        """Return the answers of all processes to a request of the control socket."""
        text = msgspec.json.encode(request).decode()
        return list((await self._processes.ask_all("control", (who, text))).values())

    async def _ask_both(
        self, request: protocol.Request, who: str
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the answers of this supervisor's processes, and those of other supervisors'.

        :raises RequestError: no process has answered
        """
        own, others = await asyncio.gather(self._ask(request, who), self._ask_others(request, who))
        if not own:  # at the end of an upgrade, the old processes may have ended
            own, others = others, []
        if not own:
            raise RequestError(Fault.BUSY, NO_PROCESS)
        return own, others

    async def _ask_others(self, request: protocol.Request, who: str) -> list[dict[str, Any]]:
        """Return the answers of other supervisors' processes; there are some during an upgrade."""
        text = msgspec.json.encode(request).decode()
        return list((await self._processes.upgrades.answers("control", (who, text))).values())

    async def _status(self, request: protocol.Status, who: str) -> dict[str, Any]:
        own, others = await self._ask_both(request, who)
        answers = own + others
        clients = sum_counts(
            [{top["client"]: top["sessions"] for top in a["top"]} for a in answers]
        )
        return {
            **{name: merge([a[name] for a in own]) for name, merge in _COUNTED.items()},
            **{name: merge([a[name] for a in answers]) for name, merge in _PRESENT.items()},
            "limit": self._processes.limits.limit_connections,
            "pid": os.getpid(),
            "state": self._state(),
            "seconds": self._uptime,
            "clients": len(clients),
            "top": [
                {"client": client, "sessions": n} for client, n in clients.most_common(TOP_CLIENTS)
            ],
            "limits_changed": sorted(self._processes.changed_limits),
            "denied": max(answer["denied"] for answer in own),
            "processes": [
                {name: a[name] for name in ("pid", "state", "seconds", "sessions", "limit")}
                for a in answers
            ],
        }

    async def _sessions(self, request: protocol.Sessions, who: str) -> dict[str, Any]:
        own, others = await self._ask_both(request, who)
        answers = own + others
        found = sorted(
            (session for answer in answers for session in answer["sessions"]),
            key=lambda session: (session["since"], session["id"]),
        )[: request.limit]
        last = (found[-1]["since"], found[-1]["id"]) if len(found) == request.limit else None
        for session in found:
            del session["since"]
        return {"sessions": found, "next": last}

    async def _fleet(self, request: protocol.Fleet, who: str) -> dict[str, Any]:
        own, _ = await self._ask_both(request, who)
        return own[0]

    async def _explain(self, request: protocol.Explain, who: str) -> dict[str, Any]:
        return (await self._answers_for_id(request, who))[0]

    async def _kick(self, request: protocol.Kick, who: str) -> dict[str, Any]:
        answers = await self._answers_for_id(request, who)
        return {"kicked": sum(answer["kicked"] for answer in answers)}

    async def _answers_for_id(self, request: protocol.Request, who: str) -> list[dict[str, Any]]:
        """Return the answers of the processes in which the id in *request* exists.

        :raises RequestError: no process has this id
        """
        text, unknown = msgspec.json.encode(request).decode(), None
        answers = []
        found, others = await asyncio.gather(
            answers_of(self._processes.current, "control", (who, text)),
            self._ask_others(request, who),
        )
        for answer in found.values():
            if not isinstance(answer, RequestError):
                answers.append(answer)
            elif answer.fault is Fault.UNKNOWN:
                unknown = answer
            else:
                raise answer
        answers += others
        if not answers:
            raise unknown or RequestError(Fault.BUSY, NO_PROCESS)
        return answers

    async def _deny(self, request: protocol.Deny, who: str) -> dict[str, Any]:
        answer = await super()._deny(request, who)
        body = (request.network, request.text, request.seconds, who)
        failures = await self._processes.ask_all("deny", body)
        if self._processes.config.fleet:
            # The fleet stores the denial. A copy in the supervisor would be given to a process
            # that starts later, perhaps after another node has removed the denial.
            self._processes.gate.denials.remove(request.network)
        return {**answer, "untold": next(filter(None, failures.values()), None)}

    async def _undeny(self, request: protocol.Undeny, who: str) -> dict[str, Any]:
        try:
            answer = await super()._undeny(request, who)
        except RequestError as error:
            if error.fault is not Fault.UNKNOWN:
                raise
            # The denial was added by a handler in a process, or by another node of the fleet.
            return (await self._answers_for_id(request, who))[0]
        await self._processes.ask_all("undeny", request.network)
        return answer

    async def _list_denials(self, request: protocol.Denials, who: str) -> dict[str, Any]:
        own, _ = await self._ask_both(request, who)
        return own[0]

    async def _pause(self, request: protocol.Pause, who: str) -> dict[str, Any]:
        answer = await super()._pause(request, who)
        await self._processes.ask_all("pause", body=True)
        return answer

    async def _resume(self, request: protocol.Resume, who: str) -> dict[str, Any]:
        answer = await super()._resume(request, who)
        await self._processes.ask_all("pause", body=False)
        return answer

    async def _drain(self, request: protocol.Drain, who: str) -> dict[str, Any]:
        return {**await super()._drain(request, who), "sessions": self._processes.sessions}
