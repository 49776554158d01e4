"""ServerTls: the certificates of a server: a context of the caller, or files that are reloaded."""

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

    :param context: used instead of all TLS settings
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = CurrentTls.of(context)
        self._rotation: Rotation | None = None

    @property
    def current(self) -> CurrentTls | None:
        """The TLS context for new handshakes; None without TLS."""
        return self._rotation.current if self._rotation is not None else self._context

    @property
    def certificates(self) -> Sequence[Certificate]:
        """The certificates in use, in the order of the settings; empty with a caller's context."""
        return self._rotation.certificates if self._rotation is not None else ()

    @error_origin("tls_cert", "tls_key", "tls_client_ca")
    def load(self, config: Config, inherited: Sequence[Listener]) -> Rotation | None:
        """Return the certificates that *config* names: the current ones if it names the same files.

        :param inherited: listeners that the settings do not name
        :raises ConfigError: the files cannot be used, or an inherited listener needs a certificate
        :raises SettingError: the settings require TLS, and name no certificate
        """
        files = TlsFiles.of(config) if self._context is None else None
        if files is not None:
            if self._rotation is not None and self._rotation.files == files:
                return self._rotation
            return Rotation(files)
        if self._context is None:
            _check_tls_is_not_required(config, inherited)
        return None

    def use(self, rotation: Rotation | None) -> Rotation | None:
        """Use the certificates that :meth:`load` returned; return the previous ones."""
        before, self._rotation = self._rotation, rotation
        return before

    async def start(self) -> None:
        """Start to watch the files."""
        if self._rotation is not None:
            await self._rotation.start()

    async def reload_or_watch(self, before: Rotation | None) -> None:
        """Read the files again if they are those of *before*; otherwise watch the new files."""
        rotation = self._rotation
        if rotation is not None and rotation is before:
            await rotation.reload()
            return
        if before is not None:
            await before.stop()
        await self.start()

    async def stop(self) -> None:
        """Stop watching the files."""
        if self._rotation is not None:
            await self._rotation.stop()


def _check_tls_is_not_required(config: Config, inherited: Sequence[Listener]) -> None:
    if config.require_starttls:
        reason = "TLS needs a certificate, and none is configured"
        raise SettingError("require_starttls", True, reason)
    for text in config.listen:
        if (address := parse_address(text)).tls or address.require_tls:
            raise MissingSettingError("listen", text, "tls_cert")
    for listener in inherited:
        if listener.address.tls or listener.address.require_tls:
            raise ConfigError(f"cannot listen on {listener}: there is no certificate for TLS")
