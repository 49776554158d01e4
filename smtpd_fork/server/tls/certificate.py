"""Certificate: names and dates of a certificate, which Python's ssl module does not provide."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from smtpd_fork.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXPIRY_NOTICE", "Certificate", "read_certificate"]

EXPIRY_NOTICE = timedelta(days=14)
"""When to warn before a certificate expires. ACME clients renew 30 days before; if that has not
happened two weeks later, the renewal has probably failed."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of the server.

    :ivar path: its file
    :ivar names: names of its subjectAltName, in lower case; a wildcard begins with ``*.``
    :ivar not_before: time at which it becomes valid
    :ivar not_after: time at which it expires
    """

    path: Path
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def warning(self, now: datetime) -> str | None:
        """Return a warning if the certificate is not valid now, or expires soon; else None."""
        if now > self.not_after:
            return f"the certificate in {self.path} has expired: {_day(self.not_after)}"
        if now < self.not_before:
            return f"the certificate in {self.path} is not valid before {_day(self.not_before)}"
        if self.not_after - now <= EXPIRY_NOTICE:
            days = (self.not_after - now).days
            return f"the certificate in {self.path} expires in {days} days: {_day(self.not_after)}"
        return None


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_certificate(path: Path, pem: bytes) -> Certificate:
    """Return the first certificate in *pem*, the content of *path*.

    :raises ConfigError: there is no certificate, or it is malformed
    """
    from cryptography import x509  # noqa: PLC0415 - the import is slow

    try:
        found = x509.load_pem_x509_certificate(pem)
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            dns_names = names.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            dns_names = []
        return Certificate(
            path,
            tuple(dict.fromkeys(name.lower().removesuffix(".") for name in dns_names)),
            found.not_valid_before_utc,
            found.not_valid_after_utc,
        )
    except ValueError as error:  # any part of it may be malformed
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot use the TLS file {path}: {reason}") from None
