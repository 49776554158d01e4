"""Certificate: what has to be known of one, besides what OpenSSL knows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from smtpd_fork.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXPIRY_NOTICE", "Certificate", "read_certificate"]

EXPIRY_NOTICE = timedelta(days=14)
"""ACME clients renew 30 days before; two weeks later something is wrong there."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate that clients are shown.

    :ivar path: its file
    :ivar names: of its subjectAltName, in small letters, perhaps with ``*.`` in front
    :ivar not_before: from when on it is valid
    :ivar not_after: when it expires
    """

    path: Path
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def warning(self, now: datetime) -> str | None:
        """Return what is wrong with its time, or will be soon; None if nothing is."""
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
    """Return what *pem*, the content of *path*, says of its first certificate.

    :raises ConfigError: there is none, or it cannot be read
    """
    from cryptography import x509  # noqa: PLC0415 - it takes a while to load

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
    except ValueError as error:  # whatever is malformed in there
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot use the TLS file {path}: {reason}") from None
