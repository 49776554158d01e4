"""Certificates of one run: a CA, and a server certificate that it has issued."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Certificates"]


class Certificates:
    """Certificate files for *localhost*; they need trustme.

    :ivar missing: why there are no files, or an empty string
    """

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "certificate.pem"
        self.key = folder / "key.pem"
        self.authority = folder / "authority.pem"
        self.missing = ""
        try:
            import trustme  # noqa: PLC0415 - other workloads run without it
        except ImportError:
            self.missing = "trustme is not installed"
            return
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(self.key))
        for index, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(self.certificate), append=index > 0)
        authority.cert_pem.write_to_path(str(self.authority))
