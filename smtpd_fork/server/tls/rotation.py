"""Rotation: reloads certificates that are renewed while the server runs."""

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
"""Interval for checking the files, with a stat(2) for each file in a thread."""

REMINDER = timedelta(days=1)
"""Interval for repeating the warning that a certificate expires soon."""


class Rotation:
    """The certificates of a server, which are loaded at its start, on reload, and on changes.

    The files are checked every few seconds by stat(2). They are read when they have changed, and
    two successive checks have the same result. Therefore an incomplete file, or a certificate
    without its key, is not used, unless the program that writes them pauses in between. If the new
    files cannot be used, the previous certificates stay in use, and an error is logged.

    :ivar current: the context for new handshakes
    :ivar certificates: the certificates in use, in the order of the settings
    :ivar files: the files
    :raises ConfigError: the files cannot be used
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
        """Log warnings about the certificates, and start to watch the files."""
        unreadable = await asyncio.to_thread(self.files.unreadable)
        if unreadable:
            log.warning(
                "a renewed certificate will need a restart: cannot read %s", "; ".join(unreadable)
            )
            # The files were read as another user. If stat(2) fails for this user, that must not
            # count as a change.
            self._seen = await asyncio.to_thread(self.files.signature)
        self._warn()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching the files."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def reload(self) -> None:
        """Read the files again if they have changed; log an error if they cannot be used."""
        async with self._lock:
            if await asyncio.to_thread(self.files.signature) != self._seen:
                await self._read()
            else:
                self._warn()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.check_files()
            except Exception:
                log.exception("cannot check the TLS files for changes")  # try again later

    async def check_files(self) -> None:
        """Check the files; read them if they have changed, but not since the previous check."""
        last, now = self._last, await asyncio.to_thread(self.files.signature)
        self._last = now
        if now not in (last, self._seen):
            log.debug("the TLS files change")
        elif now != self._seen:
            await self.reload()
        elif datetime.now(UTC) - self._reminded >= REMINDER:
            self._warn()

    async def _read(self) -> None:
        """Read the files, and use their certificates from the next handshake on."""
        # Before the attempt, so that a change during a failed attempt is detected.
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
