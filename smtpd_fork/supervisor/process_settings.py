"""ProcessSettings: changes the settings of all processes, by a reload or at run time."""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from smtpd_fork.config import Config, SettingError
from smtpd_fork.control_protocol import RequestError
from smtpd_fork.gate import GATE_SETTINGS, limits_of
from smtpd_fork.server.run_time_changes import RunTimeChanges
from smtpd_fork.server.setting_changes import change_line
from smtpd_fork.supervisor.answers import ANSWER_SECONDS
from smtpd_fork.supervisor.channel import ChannelClosedError
from smtpd_fork.supervisor.serving_process import ProcessError
from smtpd_fork.supervisor.shares import DIVIDED, share_of

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.gate import Limits
    from smtpd_fork.settings import GateSettings
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["ProcessSettings"]


class ProcessSettings(RunTimeChanges):
    """The settings of a supervisor's processes.

    :param config: the settings in force
    """

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._of = config.processes
        self._running = None
        self._reloaded = -math.inf
        """The time at which the last reload began, by the loop's clock."""

    @property
    @abstractmethod
    def current(self) -> Sequence[ServingProcess]:
        """The running processes, in the order of their numbers."""

    @property
    def config(self) -> DaemonConfig:
        """The settings in force."""
        return self._config

    @property
    def limits(self) -> Limits:
        """The limits of all processes together."""
        return self.gate.limits

    def send_changes(self, process: ServingProcess) -> None:
        """Send the changes made at run time to a process that has just started."""
        if process.began < self._reloaded:  # it may have read the old settings
            process.notify("reload", "a reload during the start")
        if self.gate.paused:
            process.notify("pause", True)
        if self.changed_limits:
            process.notify("limits", self._shares(process, self.changed_limits))

    async def reload(self, config: DaemonConfig, by: str) -> list[str]:
        """Make the processes read the settings again: first one process alone, then the others.

        :param config: the settings, as the supervisor has read them
        :param by: the administrator who has requested it, for the log
        :returns: one line for each change
        :raises SmtpdForkError: a process cannot use the settings; if it is the first one, nothing
            has changed
        """
        self._reloaded = asyncio.get_running_loop().time()
        limits = await asyncio.to_thread(limits_of, config)
        lines: list[str] = []
        for number, process in enumerate(self.current):
            try:
                changes = await process.ask("reload", by)
            except ChannelClosedError:
                continue  # it has ended; see send_changes for its replacement
            except RequestError as error:
                where = f"{process}: " if number else ""
                raise ProcessError(f"{where}{error.text}", error.status or 0) from None
            lines = lines or changes
        before, self._config, self.gate.limits = self._config, config, limits
        changed = [line for line in lines if line.partition(" ")[0] not in DIVIDED]
        return changed + [
            change_line(name, old, new)
            for name in DIVIDED
            if (old := getattr(before, name)) != (new := getattr(config, name))
        ]

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits of all processes together; see :meth:`RunTimeChanges.set_limits`."""
        if "limit_connections" in settings:
            self._check(Config.build({"limit_connections": settings["limit_connections"]}))
        await super().set_limits(**settings)
        values = {name: getattr(self._config, name) for name in GATE_SETTINGS}
        values |= self.changed_limits
        values = {name: values[name] for name in settings}
        # A process that does not answer in time changes its limits once it reads the request.
        answers = await asyncio.gather(
            *(
                each.ask("limits", self._shares(each, values), seconds=ANSWER_SECONDS)
                for each in self.current
            ),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, RequestError):
                raise answer
        return next((text for text in answers if isinstance(text, str) and text), "")

    def _check(self, config: Config) -> None:
        if (wanted := config.limit_connections) < (of := self._of):
            reason = f"each of {of} processes needs a connection slot"
            raise SettingError("limit_connections", wanted, reason)

    def _shares(self, process: ServingProcess, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: share_of(name, value, process.number, self._of) if name in DIVIDED else value
            for name, value in values.items()
        }
