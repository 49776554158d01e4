"""openssl s_client, as a client of the daemon."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from support.daemon import PATIENCE
from support.peers import peer

if TYPE_CHECKING:
    from support.authority import Authority

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Shaken(NamedTuple):
    """What came of a handshake, and of the dialogue behind it.

    :ivar status: of the program; 0 is a connection that was verified, used, and ended in peace
    :ivar text: all that it printed
    """

    status: int
    text: str

    @property
    def serial(self) -> str:
        """The number of the certificate that the server showed."""
        found = _PEM.search(self.text)
        assert found, self.text
        return f"{x509.load_pem_x509_certificate(found[0].encode()).serial_number:X}"


def s_client(
    port: int,
    authority: Authority,
    *more: object,
    starttls: bool = False,
    name: str | None = "localhost",
) -> Shaken:
    """Shake hands, verify the certificate, say EHLO and QUIT, and wait for the server to close."""
    words = [
        *(peer("openssl"), "s_client", "-connect", f"127.0.0.1:{port}"),
        *("-CAfile", authority.ca, "-verify_return_error", "-crlf", "-ign_eof"),
        *(("-starttls", "smtp") if starttls else ()),
        *(("-servername", name) if name is not None else ("-noservername",)),
        *more,
    ]
    ended = subprocess.run(
        [str(word) for word in words],
        input="EHLO client.example\nQUIT\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )
    return Shaken(ended.returncode, ended.stdout + ended.stderr)
