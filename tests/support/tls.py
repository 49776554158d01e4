"""Certificates for tests."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Certificates:
    """A CA, and a server certificate for localhost, as contexts and as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1", "::1")
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"
        self.ca = folder / "ca.pem"
        issued.private_key_pem.write_to_path(str(self.key))
        for index, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(self.cert), append=index > 0)
        authority.cert_pem.write_to_path(str(self.ca))
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(self.cert, self.key)
        self.client = ssl.create_default_context(cafile=str(self.ca))
