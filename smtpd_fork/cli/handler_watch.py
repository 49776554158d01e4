"""HandlerWatch: loads the handlers again when their files change (``--reload-handlers``)."""

from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.handlers import modules_of
from smtpd_fork.observe import Service
from smtpd_fork.server.tls import file_signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.handlers.spec import HandlerEntry

__all__ = ["HandlerWatch"]

log = logging.getLogger("smtpd_fork.daemon")

WATCH_SECONDS = 0.25
"""Interval of the checks of the files; a change is loaded after two of them."""

_PYTHON = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))

_INSTALLED = {"site-packages", "dist-packages"}

_OURS = Path(__file__).parents[1]


class HandlerWatch(Service):
    """Checks the files of the handlers' modules, and of modules that these import.

    The latter only if they are in the directory of a handler's module; installed libraries are not
    checked.

    :param names: the values of ``--handler``
    :param changed: called with the changed file and the names of all modules to import again, once
        the file is the same in two consecutive checks
    """

    def __init__(
        self, names: Iterable[HandlerEntry], changed: Callable[[Path, frozenset[str]], object]
    ) -> None:
        self._names = tuple(names)
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[Path, tuple[int, ...]] = {}
        self._last = self._seen

    async def start(self) -> None:
        """Start the checks, with the current state of the files as the first one."""
        self._seen = self._last = await asyncio.to_thread(self._signatures)
        if self._seen:
            files = ", ".join(map(str, self._seen))
            log.info("changed handlers are loaded for new sessions: %s", files)
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def reloaded(self, config: DaemonConfig) -> None:
        """Check the files of the handlers of the new settings from now on."""
        self._names = config.handler

    async def handed_over(self, pid: int) -> None:
        """Stop the checks, as process *pid* makes them from now on."""
        await self.stop()

    async def stop(self) -> None:
        """Stop the checks."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            last, self._last = self._last, await asyncio.to_thread(self._signatures)
            for path, signature in self._last.items():
                # A new file is a module that was imported since the last check.
                seen = self._seen.setdefault(path, signature)
                if seen != signature == last.get(path):
                    self._seen = dict(self._last)
                    self._changed(path, frozenset(self._modules()))
                    break

    def _signatures(self) -> dict[Path, tuple[int, ...]]:
        return {path: file_signature(path) for path in self._modules().values()}

    def _modules(self) -> dict[str, Path]:
        """Return the modules to check, each with its file."""
        packages = {name.partition(".")[0] for name in modules_of(self._names)}
        ours = {name: path for name, path in _imported() if not _is_library(path)}
        directories = {
            path.parents[1] if path.name == "__init__.py" else path.parent
            for name, path in ours.items()
            if name.partition(".")[0] in packages
        }
        return {
            name: path for name, path in ours.items() if not directories.isdisjoint(path.parents)
        }


def _imported() -> Iterator[tuple[str, Path]]:
    """Yield the imported modules that have a file."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and name != "__main__":
            yield name, Path(file)


def _is_library(path: Path) -> bool:
    parents = path.parents
    return (
        _OURS in parents
        or not _INSTALLED.isdisjoint(path.parts)
        or any(p in parents for p in _PYTHON)
    )
