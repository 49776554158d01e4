"""A CA that issues certificates into files, as a certificate renewal does."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import trustme
from cryptography import x509

if TYPE_CHECKING:
    from pathlib import Path

RENEWED = "certificates reloaded: "
KEPT = "certificates not reloaded, the previous ones stay in use: "
"""Patterns of the log lines about a renewal, and about a certificate that cannot be used."""


class Authority:
    """A CA, and the directory of its certificates.

    :ivar ca: its own certificate, PEM
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / f"{name}.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(
        self,
        file: str,
        *names: str,
        common_name: str | None = None,
        begins: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=90),
    ) -> Issued:
        """Issue a certificate for *names* into ``FILE.pem``, and its key into ``FILE.key``."""
        now = datetime.now(UTC)
        leaf = self.authority.issue_cert(
            *names, common_name=common_name, not_before=now + begins, not_after=now + ends
        )
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return Issued(self.folder, file).write(chain, leaf.private_key_pem.bytes())

    def client(self, issued: Issued | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts the CA, perhaps with a client certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if issued is not None:
            context.load_cert_chain(issued.cert, issued.key)
        return context


class Issued:
    """Files of a certificate and its key."""

    def __init__(self, folder: Path, file: str) -> None:
        self.cert = folder / f"{file}.pem"
        self.key = folder / f"{file}.key"

    def write(self, chain: bytes, key: bytes) -> Self:
        self.cert.write_bytes(chain)
        self.key.write_bytes(key)
        return self

    @property
    def serial(self) -> str:
        """The serial number, as OpenSSL prints it."""
        return f"{x509.load_pem_x509_certificate(self.cert.read_bytes()).serial_number:X}"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))


class Volume:
    """A directory that is renewed as Kubernetes does it: one symbolic link in the path is replaced.

    :param first: its initial content
    """

    def __init__(self, folder: Path, first: Issued) -> None:
        self.folder = folder
        folder.mkdir()
        self._count = 0
        self.put(first)
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")
        self.options = ("--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"))

    def put(self, issued: Issued) -> None:
        """Replace both files atomically."""
        self._count += 1
        new = self.folder / f"..{self._count}"
        new.mkdir()
        (new / "tls.crt").write_bytes(issued.cert.read_bytes())
        (new / "tls.key").write_bytes(issued.key.read_bytes())
        link = self.folder / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self.folder / "..data")


def copy(source: Issued, target: Issued) -> None:
    target.write(source.cert.read_bytes(), source.key.read_bytes())
