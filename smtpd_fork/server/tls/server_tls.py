"""ServerTls: the TLS of a server: a context of the caller, or files that are reloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.config import SettingError
from smtpd_fork.dialogue import CurrentTls
from smtpd_fork.errors import ConfigError, error_origin
from smtpd_fork.listeners import parse_address
from smtpd_fork.server.tls.files import TlsFiles
from smtpd_fork.server.tls.rotation import Rotation
from smtpd_fork.setting_types import MissingSettingError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.listeners import Listener
    from smtpd_fork.server.tls.certificate import Certificate

__all__ = ["ServerTls"]


class ServerTls:
    """Keeps the certificates of a server.

    :param context: instead of all settings of TLS
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = CurrentTls.of(context)
        self._rotation: Rotation | None = None

    @property
    def current(self) -> CurrentTls | None:
        """The TLS of new handshakes; None without TLS."""
        return self._rotation.current if self._rotation is not None else self._context

    @property
    def certificates(self) -> Sequence[Certificate]:
        """The certificates in use, in the order of the settings; none with a context."""
        return self._rotation.certificates if self._rotation is not None else ()

    @error_origin("tls_cert", "tls_key", "tls_client_ca")
    def plan(self, config: Config, inherited: Sequence[Listener]) -> Rotation | None:
        """Return the certificates that *config* names: those that are there, or new ones.

        :param inherited: listeners that the settings do not name
        :raises ConfigError: files cannot be used, or a listener has to have some
        :raises SettingError: the settings want TLS, and name no certificate
        """
        files = TlsFiles.of(config) if self._context is None else None
        if files is not None:
            if self._rotation is not None and self._rotation.files == files:
                return self._rotation
            return Rotation(files)
        if self._context is None:
            _check_that_none_is_wanted(config, inherited)
        return None

    def use(self, rotation: Rotation | None) -> Rotation | None:
        """Have what was planned from now on; return what was before."""
        before, self._rotation = self._rotation, rotation
        return before

    async def start(self) -> None:
        """Begin to watch the files."""
        if self._rotation is not None:
            await self._rotation.start()

    async def follow(self, before: Rotation | None) -> None:
        """Have the files read again if they are those of *before*, or others watched."""
        rotation = self._rotation
        if rotation is not None and rotation is before:
            await rotation.reload()
            return
        if before is not None:
            await before.stop()
        await self.start()

    async def stop(self) -> None:
        """Watch the files no longer."""
        if self._rotation is not None:
            await self._rotation.stop()


def _check_that_none_is_wanted(config: Config, inherited: Sequence[Listener]) -> None:
    if config.require_starttls:
        reason = "there is no certificate to offer TLS with"
        raise SettingError("require_starttls", True, reason)
    for text in config.listen:
        if (address := parse_address(text)).tls or address.require_tls:
            raise MissingSettingError("listen", text, "tls_cert")
    for listener in inherited:
        if listener.address.tls or listener.address.require_tls:
            raise ConfigError(f"cannot listen on {listener}: there is no certificate for TLS")
