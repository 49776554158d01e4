"""Rotation: certificates that are renewed while the server runs."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from smtpd_fork.dialogue import CurrentTls
from smtpd_fork.errors import ConfigError

if TYPE_CHECKING:
    from smtpd_fork.server.tls.certificate import Certificate
    from smtpd_fork.server.tls.files import TlsFiles

__all__ = ["Rotation"]

log = logging.getLogger("smtpd_fork.server")

WATCH_SECONDS = 2.0
"""Between two looks at the files, which cost a stat(2) each, in a thread."""

REMINDER = timedelta(days=1)
"""How often it is said that a certificate is running out."""


class Rotation:
    """The certificates of a server: read at its start, on a reload, and when they change.

    The files are looked at by stat(2), every few seconds. Once they have changed, and look the
    same twice, they are read: so neither a half-written file nor a certificate without its key is
    ever used, unless the program that writes them pauses in the midst. What cannot be used leaves
    all as it was, and one line in the log.

    :ivar current: has the context for new handshakes
    :ivar certificates: that are shown now, in the order of the settings
    :ivar files: to be read now, and again
    :raises ConfigError: they cannot be used
    """

    def __init__(self, files: TlsFiles) -> None:
        loaded = files.load()
        self.files = files
        self._seen = self._last = loaded.signature
        self._warnings = loaded.warnings
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._reminded = datetime.min.replace(tzinfo=UTC)
        self.current = CurrentTls(loaded.context)
        self.certificates: tuple[Certificate, ...] = loaded.certificates

    async def start(self) -> None:
        """Say what is wrong with the certificates, and watch them from now on."""
        unreadable = await asyncio.to_thread(self.files.unreadable)
        if unreadable:
            log.warning(
                "a renewed certificate will need a restart: cannot read %s", "; ".join(unreadable)
            )
            # What this user cannot see is no change: it was read by another.
            self._seen = await asyncio.to_thread(self.files.signature)
        self._warn()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Watch no longer."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def reload(self) -> None:
        """Read the files again, if they have changed; what cannot be used is logged, no more."""
        async with self._lock:
            if await asyncio.to_thread(self.files.signature) != self._seen:
                await self._read()
            else:
                self._warn()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("cannot check the TLS files for changes")  # the next time, perhaps

    async def look(self) -> None:
        """Look at the files; read them if they have changed, and are at rest."""
        last, now = self._last, await asyncio.to_thread(self.files.signature)
        self._last = now
        if now not in (last, self._seen):
            log.debug("the TLS files change")
        elif now != self._seen:
            await self.reload()
        elif datetime.now(UTC) - self._reminded >= REMINDER:
            self._warn()

    async def _read(self) -> None:
        """Have what the files hold now, from the next handshake on."""
        # First, so that what changes during a failure is looked at again.
        self._seen = await asyncio.to_thread(self.files.signature)
        try:
            loaded = await asyncio.to_thread(self.files.load)
        except ConfigError as error:
            log.error("certificates not reloaded, the previous ones stay in use: %s", error)  # noqa: TRY400 - one line
            return
        self._seen = loaded.signature
        self._warnings = loaded.warnings
        self.certificates = loaded.certificates
        self.current.context = loaded.context
        log.info("certificates reloaded: %s", self.files)
        self._warn()

    def _warn(self) -> None:
        now = self._reminded = datetime.now(UTC)
        for warning in (*self._warnings, *(c.warning(now) for c in self.certificates)):
            if warning is not None:
                log.warning("%s", warning)
